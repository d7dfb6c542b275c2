"""What a kind of work is to the training loop: one record of pure functions per task.

A task knows the network, the loss and what counts as right; it knows nothing of optimisers, devices
or files. Functions of a task are written for one device's share of a batch and take the collective
axis, where there is one, when the task is built.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from spinejax import models
from spinejax.data.cache import CachedCase
from spinejax.data.feeds import Feed
from spinejax.errors import InputError
from spinejax.inference.masks import StackPredictor
from spinejax.phantom import stream_feed


class Keys(NamedTuple):
    """Randomness of one update: `augment` (b,) keys, one per sample; `dropout` one key."""

    augment: jax.Array
    dropout: jax.Array


class LossAux(NamedTuple):
    """What a loss gives besides its value.

    batch_stats: updated running statistics.
    sums: (b, 4) float32 true positives, false positives, false negatives and true negatives of each
        sample, times the sample's weight: pixels of a slice, voxels of a cube, or the patch itself.
    mask: bool, predicted foreground: (b, h, w) of slices, (b, x, y, z) of cubes, (b,) of patches.
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


ClassProbability = Callable[[Mapping[str, Any], jax.Array, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Task:
    """One kind of work.

    model: the network.
    input_shape: (h, w, channels) of what it is trained on; (x, y, z, channels) of cubes.
    sample_shape: of the image of a sample in a batch: (h, w) or (x, y, z); of patches with the
        pixels around them that augmentation may bring in.
    init: key -> variables {"params": ..., "batch_stats": ...} of the network.
    loss: see `Loss`.
    stream: what draws the training samples on the device; None where batches bring them.
    feed: cached scans of "train" and "val" -> where batches come from.
    stack_predictor: variables -> what gives every pixel of a stack of slices its probability; None
        of cubes.
    class_probability: (variables, image (b, x, y, z) HU, spine (b, x, y, z) 0 or 1, stats (b, 4))
        -> (b, x, y, z, classes) float32, with three more channels where the network gives the way
        to the vertebra's centre, in cm (`losses.centre_offsets`); None of slices and patches.
    least_side: pixels that a slice must have at least to be predicted.
    sample: what a sample is called, in the plural.
    overlap: what the Dice of its counts is called.
    """

    name: str
    model: nn.Module
    input_shape: tuple[int, ...]
    sample_shape: tuple[int, ...]
    init: Callable[[jax.Array], dict[str, Any]]
    loss: Loss
    stream: stream_feed.Stream | None
    feed: Callable[[Mapping[str, Sequence[CachedCase]]], Feed]
    stack_predictor: Callable[[Mapping[str, Any]], StackPredictor] | None
    least_side: int
    sample: str
    overlap: str
    class_probability: ClassProbability | None = None


def common_shares(config: ConfigDict) -> dict[str, Any]:
    """Fields of every feed."""
    return dict(
        batch_size=config.train.batch_size,
        seed=config.seed,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )


def network(config: ConfigDict, axis_name: str | None, *, out_channels: int, of: str) -> Any:
    """Return the config's network; refuse one that takes something else than `of`.

    Args:
        config: the experiment.
        axis_name: device axis over which BatchNorm is pooled.
        out_channels: of the logits.
        of: "slices", "patches" or "cubes".
    """
    model = models.build_model(
        config.model,
        out_channels=out_channels,
        dtype=jnp.dtype(config.train.compute_dtype),
        remat=config.train.remat,
        axis_name=axis_name,
    )
    kinds = dict.fromkeys(models.CLASSIFIERS, "patches") | dict.fromkeys(models.VOLUMETRIC, "cubes")
    fitting = [name for name in models.MODELS if kinds.get(name, "slices") == of]
    if config.model.name not in fitting:
        raise InputError(
            f"model.name={config.model.name!r} is no network of task={config.task!r}; choose one "
            f"of {', '.join(fitting)}, or another task"
        )
    return model


def initial(model: Any, shape: tuple[int, ...]) -> Callable[[jax.Array], dict[str, Any]]:
    """Return what makes variables of a key, for inputs of `shape` without the batch axis."""

    def init(key: jax.Array) -> dict[str, Any]:
        x = jnp.zeros((1, *shape), jnp.float32)
        return dict(model.init({"params": key, "dropout": key}, x, train=False))

    return init


def arrays_of(
    config: ConfigDict, change: Callable[..., tuple[jax.Array, jax.Array]]
) -> Callable[[Mapping[str, jax.Array], Keys | None], tuple[jax.Array, jax.Array]]:
    """Return what makes float32 HU and int32 labels of a batch, augmented where there are keys.

    Args:
        config: the experiment.
        change: (keys, image, label, **fields of `augment`) -> image, label.
    """
    fields = dict(config.augment)
    enabled = fields.pop("enabled")

    def arrays(batch: Mapping[str, jax.Array], keys: Keys | None) -> tuple[jax.Array, jax.Array]:
        image, label = batch["image"].astype(jnp.float32), batch["label"].astype(jnp.int32)
        if keys is None or not enabled:
            return image, label
        return change(keys.augment, image, label, **fields)

    return arrays


def counts(mask: jax.Array, truth: jax.Array, weight: jax.Array) -> jax.Array:
    """Counts of `LossAux.sums` of (b, ...) bool arrays."""
    cells = (mask & truth, mask & ~truth, ~mask & truth, ~mask & ~truth)
    axes = tuple(range(1, mask.ndim))
    sums = jnp.stack([jnp.sum(c, axis=axes, dtype=jnp.float32) for c in cells], axis=-1)
    return sums * weight[:, None]


def needed(keys: Keys | None) -> Keys:
    """Return `keys`, which training has.

    Raises:
        ValueError: there are none.
    """
    if keys is None:
        raise ValueError("training needs `keys`")
    return keys


def apply(
    model: nn.Module, params: Any, batch_stats: Any, x: jax.Array, keys: Keys | None, *, train: bool
) -> tuple[jax.Array, Any]:
    """Return logits and the running statistics, which only training moves."""
    variables = {"params": params, "batch_stats": batch_stats}
    if not train:
        return model.apply(variables, x, train=False)[0], batch_stats
    (logits, _), updated = model.apply(
        variables,
        x,
        train=True,
        rngs={"dropout": needed(keys).dropout},
        mutable=["batch_stats"],
    )
    return logits, updated.get("batch_stats", batch_stats)
