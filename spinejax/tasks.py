"""What a kind of work is to the training loop: one record of pure functions per task.

A task knows the network, the loss and what counts as right; it knows nothing of optimisers, devices
or files. Functions of a task are written for one device's share of a batch and take the collective
axis, where there is one, when the task is built.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from spinejax import augment, losses, models
from spinejax.choices import check_choice
from spinejax.data import normalise
from spinejax.errors import InputError


class Keys(NamedTuple):
    """Randomness of one update: `augment` (b,) keys, one per sample; `dropout` one key."""

    augment: jax.Array
    dropout: jax.Array


class LossAux(NamedTuple):
    """What a loss gives besides its value.

    batch_stats: updated running statistics.
    sums: (b, 3) float32 true positive, false positive and false negative pixels of each sample,
        times the sample's weight.
    mask: (b, h, w) bool, predicted foreground.
    """

    batch_stats: Any
    sums: jax.Array
    mask: jax.Array


class Loss(Protocol):
    """Signature of `Task.loss`; `keys` is None exactly when `train` is false."""

    def __call__(
        self,
        params: Any,
        batch_stats: Any,
        batch: Mapping[str, jax.Array],
        keys: Keys | None,
        *,
        train: bool,
    ) -> tuple[jax.Array, LossAux]:
        """Return the loss of a batch, equal on all devices of the axis, and the rest."""


@dataclass(frozen=True)
class Task:
    """One kind of work.

    init: key -> variables {"params": ..., "batch_stats": ...} of the network.
    loss: see `Loss`.
    probability: (variables, image (b, h, w) preprocessed HU, stats (b, 4)) -> (b, h, w) float32
        foreground probability in [0, 1]; the one way from scans to the network in inference.
    stride: image sides must be multiples of it.
    """

    name: str
    init: Callable[[jax.Array], dict[str, Any]]
    loss: Loss
    probability: Callable[[Mapping[str, Any], jax.Array, jax.Array], jax.Array]
    stride: int


def _slice_segmentation(config: ConfigDict, axis_name: str | None) -> Task:
    """Binary segmentation of slices: vertebra or not (paper A)."""
    model = models.build_model(
        config.model,
        out_channels=1,
        dtype=jnp.dtype(config.train.compute_dtype),
        remat=config.train.remat,
        axis_name=axis_name,
    )
    size = tuple(config.data.size)
    if any(side % model.stride for side in size):
        raise InputError(
            f"data.size={size} must be multiples of {model.stride}, the stride of model "
            f"{config.model.name!r}"
        )
    clamp_hu = tuple(config.data.preprocess.clamp_hu)
    mode = normalise.check_mode(config.data.normalise)
    loss_fn = losses.make_loss(config.loss)
    fields = dict(config.augment)
    augmented = fields.pop("enabled")

    def network_input(image_hu: jax.Array, stats: jax.Array) -> jax.Array:
        return normalise.network_input(image_hu, mode, clamp_hu, stats)[..., None]

    def init(key: jax.Array) -> dict[str, Any]:
        x = jnp.zeros((1, *size, 1), jnp.float32)
        return dict(model.init({"params": key, "dropout": key}, x, train=False))

    def loss(
        params: Any,
        batch_stats: Any,
        batch: Mapping[str, jax.Array],
        keys: Keys | None,
        *,
        train: bool,
    ) -> tuple[jax.Array, LossAux]:
        image, label = batch["image"].astype(jnp.float32), batch["label"].astype(jnp.int32)
        variables = {"params": params, "batch_stats": batch_stats}
        if train:
            if keys is None:
                raise ValueError("training needs `keys`")
            if augmented:
                image, label = augment.augment(
                    keys.augment,
                    image,
                    label,
                    plane=config.data.plane,
                    fill_hu=clamp_hu[0],
                    **fields,
                )
            (logits, _), updated = model.apply(
                variables,
                network_input(image, batch["stats"]),
                train=True,
                rngs={"dropout": keys.dropout},
                mutable=["batch_stats"],
            )
            batch_stats = updated.get("batch_stats", batch_stats)
        else:
            logits, _ = model.apply(variables, network_input(image, batch["stats"]), train=False)
        weight = batch["weight"]
        value = loss_fn(logits, label, weight=weight, axis_name=axis_name)
        mask, truth = logits[..., 0] > 0, label > 0
        counts = [mask & truth, mask & ~truth, ~mask & truth]
        sums = jnp.stack([jnp.sum(c, axis=(1, 2), dtype=jnp.float32) for c in counts], axis=-1)
        return value, LossAux(batch_stats, sums * weight[:, None], mask)

    def probability(
        variables: Mapping[str, Any], image_hu: jax.Array, stats: jax.Array
    ) -> jax.Array:
        logits, _ = model.apply(dict(variables), network_input(image_hu, stats), train=False)
        return jax.nn.sigmoid(logits[..., 0].astype(jnp.float32))

    return Task("slice_segmentation", init, loss, probability, model.stride)


TASKS: dict[str, Callable[[ConfigDict, str | None], Task]] = {
    "slice_segmentation": _slice_segmentation,
}


def build_task(config: ConfigDict, *, axis_name: str | None = None) -> Task:
    """Build the task that `config.task` names.

    Args:
        config: the experiment.
        axis_name: device axis over which losses and BatchNorm are pooled; None outside a mapped
            function, that is for inference.

    Raises:
        InputError: unknown task, model, loss or normalisation, or sizes that do not fit.
    """
    check_choice("task", config.task, TASKS)
    return TASKS[config.task](config, axis_name)
