"""A task, as training and inference see it: a record of pure functions.

A task knows the network, the loss and what counts as right, but no optimiser, device or file. Its
functions work on one device's share of a batch; `build_task` gives them the device axis. There are
three kinds of task: `MaskTask` finds the spine slice by slice, `NameTask` names vertebrae in cubes,
and `OutlineTask` outlines one vertebra in its own cube.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from spinejax import augment, losses, models
from spinejax.data.cache import CachedCase
from spinejax.data.feeds import Feed
from spinejax.errors import InputError
from spinejax.inference.masks import StackPredictor
from spinejax.models.layers import Network
from spinejax.phantom import online


class Keys(NamedTuple):
    """Random keys of one update: `augment` (b,), one per sample; `dropout` one key."""

    augment: jax.Array
    dropout: jax.Array


class LossAux(NamedTuple):
    """The further results of a loss.

    batch_stats: updated running statistics.
    sums: (b, 4) float32 true positives, false positives, false negatives and true negatives of each
        sample, times its weight. They count pixels of a slice, voxels of a cube, or one patch.
    mask: bool, predicted foreground: (b, h, w) of slices, (b, x, y, z) of cubes, (b,) of patches.
    """

    batch_stats: Any
    sums: jax.Array
    mask: jax.Array


class Loss(Protocol):
    """Signature of `Task.loss`; `keys` is None in validation."""

    def __call__(
        self, params: Any, batch_stats: Any, batch: Mapping[str, jax.Array], keys: Keys | None
    ) -> tuple[jax.Array, LossAux]:
        """Return the loss of a batch, equal on all devices of the axis, and `LossAux`."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """The part of a task that training needs.

    model: the network.
    input_shape: shape of the network's input without the batch axis: (h, w, channels) or
        (x, y, z, channels).
    sample_shape: shape of "image" in a batch without the batch axis and channels: (h, w) or
        (x, y, z); patches have the pixels around them that augmentation may bring in.
    init: key -> variables {"params": ..., "batch_stats": ...} of the network.
    loss: see `Loss`.
    stream: draws the training samples on the device; None if batches hold them.
    feed: cached scans of "train" and "val" -> where batches come from.
    sample: word for the samples, in the plural.
    overlap: word for the Dice of the counts.
    neighbours: slices on each side that "image" also holds, in a last axis of 2n + 1 channels; 0
        for none, and no such axis.
    """

    model: Network
    input_shape: tuple[int, ...]
    sample_shape: tuple[int, ...]
    init: Callable[[jax.Array], dict[str, Any]]
    loss: Loss
    stream: online.Stream | None
    feed: Callable[[Mapping[str, Sequence[CachedCase]]], Feed]
    sample: str
    overlap: str
    neighbours: int = 0


@dataclass(frozen=True, kw_only=True)
class MaskTask(Task):
    """A task that finds the spine slice by slice.

    probability: (variables, image (b, h, w) preprocessed HU, with neighbours (b, h, w, channels),
        stats (b, 4)) -> (b, h, w) float32, the probability of each pixel of a window; of a patch
        (b,), that of its pixel in row and column n // 2.
    stack_predictor: variables -> function that gives every pixel of a stack of slices its
        probability.
    least_side: smallest side of a slice in pixels.
    whole: whether that stack must hold all slices of a scan, of cubic voxels.
    """

    probability: "Probability"
    stack_predictor: Callable[[Mapping[str, Any]], StackPredictor]
    least_side: int
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class NameTask(Task):
    """A task that gives every voxel of a cube the name of its vertebra.

    class_probability: (variables, image (b, x, y, z) HU, spine (b, x, y, z) 0 or 1, stats (b, 4))
        -> (b, x, y, z, classes) float32 probabilities; three more channels follow if the network
        predicts the offset to the vertebra's centre, in cm (`losses.centre_offsets`).
    """

    class_probability: Callable[[Mapping[str, Any], jax.Array, jax.Array, jax.Array], jax.Array]


Probability = Callable[[Mapping[str, Any], jax.Array, jax.Array], jax.Array]
"""(variables, image (b, ...) HU, stats (b, 4)) -> (b, ...) float32 probability of foreground."""


@dataclass(frozen=True, kw_only=True)
class OutlineTask(Task):
    """A task that outlines the vertebra whose body's centre lies at a fixed place of a cube.

    probability: (variables, image (b, x, y, z) HU, stats (b, 4)) -> (b, x, y, z) float32, the
        probability of each voxel to belong to that vertebra.
    """

    probability: Probability


def feed_options(config: ConfigDict) -> dict[str, Any]:
    """Return the options that every feed has (`ScanFeed`)."""
    return dict(
        batch_size=config.train.batch_size,
        seed=config.seed,
        threads=config.data.threads if config.data.threads >= 0 else None,
        prefetch=config.data.prefetch,
        workers=config.data.workers,
    )


def network(config: ConfigDict, axis_name: str | None, *, out_channels: int, of: str) -> Any:
    """Return the config's network.

    Args:
        config: the experiment.
        axis_name: device axis over which BatchNorm is pooled.
        out_channels: of the logits.
        of: what the network must take: "slices", "patches" or "cubes".

    Raises:
        InputError: the network takes something else.
    """
    model = models.build_model(
        config.model,
        out_channels=out_channels,
        dtype=jnp.dtype(config.train.compute_dtype),
        remat=config.train.remat,
        axis_name=axis_name,
    )
    fitting = [name for name, network in models.MODELS.items() if network.SEES == of]
    if config.model.name not in fitting:
        raise InputError(
            f"model.name={config.model.name!r} is no network for task={config.task!r}; choose one "
            f"of {', '.join(fitting)}, or another task"
        )
    return model


def auxiliary_weight(config: ConfigDict, model: models.Network) -> float:
    """Return `loss.auxiliary_weight`, 0 for a task without the field.

    Raises:
        InputError: the weight is above 0, and the network has no auxiliary logits.
    """
    weight = config.loss.get(losses.AUXILIARY_WEIGHT, 0.0)
    if weight and not model.AUXILIARY:
        fitting = [
            name
            for name, network in models.MODELS.items()
            if network.AUXILIARY and network.SEES == model.SEES
        ]
        raise InputError(
            f"loss.auxiliary_weight={weight:g} needs a network with auxiliary logits, and "
            f"model.name={config.model.name!r} has none; set it to 0, or choose the network "
            f"{' or '.join(fitting)}"
        )
    return weight


def check_stride(config: ConfigDict, model: Any) -> None:
    """Raise InputError unless the sides of the config's cubes are multiples of the stride."""
    if any(side % model.stride for side in config.data.cube.size):
        raise InputError(
            f"data.cube.size={tuple(config.data.cube.size)} must be multiples of {model.stride}, "
            f"the stride of model {config.model.name!r}"
        )


def initial(model: Any, shape: tuple[int, ...]) -> Callable[[jax.Array], dict[str, Any]]:
    """Return key -> variables, for inputs of `shape` (without the batch axis).

    Raises:
        InputError: the network cannot process inputs of this shape.
    """
    model.check_input((1, *shape))

    def init(key: jax.Array) -> dict[str, Any]:
        x = jnp.zeros((1, *shape), jnp.float32)
        return dict(model.init({"params": key, "dropout": key}, x, train=False))

    return init


def arrays_of(
    config: ConfigDict, change: Callable[..., tuple[jax.Array, jax.Array]]
) -> Callable[[Mapping[str, jax.Array], Keys | None], tuple[jax.Array, jax.Array]]:
    """Return (batch, keys) -> float32 HU and int32 labels, augmented if there are keys.

    Args:
        config: the experiment.
        change: (keys, image, label, **fields of `augment`) -> image, label.
    """
    fields = dict(config.augment)
    if not fields.pop("geometry"):
        fields |= augment.NO_GEOMETRY
    if not fields.pop("intensity"):
        fields |= augment.NO_INTENSITY

    def arrays(batch: Mapping[str, jax.Array], keys: Keys | None) -> tuple[jax.Array, jax.Array]:
        image, label = batch["image"].astype(jnp.float32), batch["label"].astype(jnp.int32)
        return (image, label) if keys is None else change(keys.augment, image, label, **fields)

    return arrays


def counts(mask: jax.Array, truth: jax.Array, weight: jax.Array) -> jax.Array:
    """Return `LossAux.sums` of (b, ...) bool arrays."""
    cells = (mask & truth, mask & ~truth, ~mask & truth, ~mask & ~truth)
    axes = tuple(range(1, mask.ndim))
    sums = jnp.stack([jnp.sum(c, axis=axes, dtype=jnp.float32) for c in cells], axis=-1)
    return sums * weight[:, None]


def apply(
    model: nn.Module, params: Any, batch_stats: Any, x: jax.Array, keys: Keys | None
) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """Return logits, intermediates and running statistics; training, with `keys`, changes these."""
    variables = {"params": params, "batch_stats": batch_stats}
    if keys is None:
        return *model.apply(variables, x, train=False), batch_stats
    (logits, out), updated = model.apply(
        variables,
        x,
        train=True,
        rngs={"dropout": keys.dropout},
        mutable=["batch_stats"],
    )
    return logits, out, updated.get("batch_stats", batch_stats)


def learnt(logits: jax.Array, intermediates: Mapping[str, jax.Array]) -> list[jax.Array]:
    """Return the logits of a network and of its parts that learn by the loss, see `Network`."""
    return [logits, *(v for name, v in intermediates.items() if name.endswith("_logits"))]


def foreground(
    config: ConfigDict,
    model: models.Network,
    arrays: Callable[[Mapping[str, jax.Array], Keys | None], tuple[jax.Array, jax.Array]],
    network_input: Callable[[jax.Array, jax.Array], jax.Array],
    axis_name: str | None,
) -> tuple[Loss, Probability]:
    """Return the loss and the probability of a network that tells foreground from background.

    With `loss.auxiliary_weight` above 0 the network also learns the contour of the foreground.

    Args:
        config: the experiment.
        model: the network, with one channel of logits.
        arrays: of `arrays_of`.
        network_input: (image (b, ...) HU, stats (b, 4)) -> (b, ..., channels).
        axis_name: device axis over which the loss is pooled.

    Raises:
        InputError: as `auxiliary_weight`.
    """
    loss_fn = losses.make_loss(config.loss)
    auxiliary = auxiliary_weight(config, model)

    def loss(
        params: Any, batch_stats: Any, batch: Mapping[str, jax.Array], keys: Keys | None
    ) -> tuple[jax.Array, LossAux]:
        image, label = arrays(batch, keys)
        x = network_input(image, batch["stats"])
        logits, out, batch_stats = apply(model, params, batch_stats, x, keys)
        weight = batch["weight"]
        common: dict[str, Any] = dict(weight=weight, axis_name=axis_name)
        value = jnp.zeros(())
        for each in learnt(logits, out):
            value += loss_fn(each, label, **common)
        if auxiliary:
            value += auxiliary * losses.ce(out["auxiliary"], losses.contour(label), **common)
        found = logits[..., 0] > 0
        return value, LossAux(batch_stats, counts(found, label > 0, weight), found)

    def probability(
        variables: Mapping[str, Any], image_hu: jax.Array, stats: jax.Array
    ) -> jax.Array:
        logits, _ = model.apply(dict(variables), network_input(image_hu, stats), train=False)
        return jax.nn.sigmoid(logits[..., 0].astype(jnp.float32))

    return loss, probability
