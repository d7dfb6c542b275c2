"""What a kind of work is to the training loop: one record of pure functions per task.

A task knows the network, the loss and what counts as right; it knows nothing of optimisers, devices
or files. Functions of a task are written for one device's share of a batch and take the collective
axis, where there is one, when the task is built.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from spinejax import augment, losses, models, streams
from spinejax.choices import check_choice
from spinejax.data import normalise, preprocess
from spinejax.data.cache import CachedCase
from spinejax.data.patch_pipeline import PatchFeed
from spinejax.data.pipeline import Feed, SliceFeed
from spinejax.errors import InputError
from spinejax.inference import patch_scan, sliding_window
from spinejax.inference.scan import StackPredictor


class Keys(NamedTuple):
    """Randomness of one update: `augment` (b,) keys, one per sample; `dropout` one key."""

    augment: jax.Array
    dropout: jax.Array


class LossAux(NamedTuple):
    """What a loss gives besides its value.

    batch_stats: updated running statistics.
    sums: (b, 4) float32 true positives, false positives, false negatives and true negatives of each
        sample, times the sample's weight: pixels of a slice, or the patch itself.
    mask: (b, h, w) bool, predicted foreground of slices; (b,) of patches.
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

    model: the network.
    input_shape: (h, w, channels) of what it is trained on.
    init: key -> variables {"params": ..., "batch_stats": ...} of the network.
    loss: see `Loss`.
    stream: what draws the training samples on the device; None where batches bring them.
    feed: cached scans of "train" and "val" -> where batches come from.
    stack_predictor: variables -> what gives every pixel of a stack of slices its probability.
    least_side: pixels that a slice must have at least to be predicted.
    sample: what a sample is called, in the plural.
    overlap: what the Dice of its counts is called.
    """

    name: str
    model: nn.Module
    input_shape: tuple[int, int, int]
    init: Callable[[jax.Array], dict[str, Any]]
    loss: Loss
    stream: streams.Stream | None
    feed: Callable[[Mapping[str, Sequence[CachedCase]]], Feed]
    stack_predictor: Callable[[Mapping[str, Any]], StackPredictor]
    least_side: int
    sample: str
    overlap: str


def _common_shares(config: ConfigDict) -> dict[str, Any]:
    """Fields of every feed."""
    return dict(
        batch_size=config.train.batch_size,
        seed=config.seed,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )


def _network(
    config: ConfigDict, axis_name: str | None, *, out_channels: int, classifies: bool
) -> Any:
    """Return the config's network; refuse one of classes where one of pixels is needed."""
    model = models.build_model(
        config.model,
        out_channels=out_channels,
        dtype=jnp.dtype(config.train.compute_dtype),
        remat=config.train.remat,
        axis_name=axis_name,
    )
    fitting = [
        name
        for name in models.MODELS
        if (name in models.CLASSIFIERS) == classifies and name not in models.VOLUMETRIC
    ]
    if config.model.name not in fitting:
        raise InputError(
            f"model.name={config.model.name!r} is no network of task={config.task!r}; choose one "
            f"of {', '.join(fitting)}, or another task"
        )
    return model


def _arrays(
    config: ConfigDict, how: preprocess.SlicePreprocess
) -> Callable[[Mapping[str, jax.Array], Keys | None], tuple[jax.Array, jax.Array]]:
    """Return what makes float32 HU and int32 labels of a batch, augmented where there are keys."""
    fields = dict(config.augment)
    enabled = fields.pop("enabled")

    def arrays(batch: Mapping[str, jax.Array], keys: Keys | None) -> tuple[jax.Array, jax.Array]:
        image, label = batch["image"].astype(jnp.float32), batch["label"].astype(jnp.int32)
        if keys is None or not enabled:
            return image, label
        return augment.augment(
            keys.augment, image, label, plane=how.plane, fill_hu=how.fill_hu, **fields
        )

    return arrays


def _counts(mask: jax.Array, truth: jax.Array, weight: jax.Array) -> jax.Array:
    """Counts of `LossAux.sums` of (b, ...) bool arrays."""
    cells = (mask & truth, mask & ~truth, ~mask & truth, ~mask & ~truth)
    axes = tuple(range(1, mask.ndim))
    sums = jnp.stack([jnp.sum(c, axis=axes, dtype=jnp.float32) for c in cells], axis=-1)
    return sums * weight[:, None]


def _slice_segmentation(config: ConfigDict, axis_name: str | None) -> Task:
    """Binary segmentation of slices: vertebra or not (paper A)."""
    model = _network(config, axis_name, out_channels=1, classifies=False)
    size = tuple(config.data.size)
    if any(side % model.stride for side in size):
        raise InputError(
            f"data.size={size} must be multiples of {model.stride}, the stride of model "
            f"{config.model.name!r}"
        )
    how = preprocess.from_config(config.data)
    mode = normalise.check_mode(config.data.normalise)
    loss_fn = losses.make_loss(config.loss)
    arrays = _arrays(config, how)

    def network_input(image_hu: jax.Array, stats: jax.Array) -> jax.Array:
        return normalise.network_input(image_hu, mode, how.range_hu, stats)[..., None]

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
        image, label = arrays(batch, keys)
        x = network_input(image, batch["stats"])
        logits, batch_stats = _apply(model, params, batch_stats, x, keys, train=train)
        weight = batch["weight"]
        value = loss_fn(logits, label, weight=weight, axis_name=axis_name)
        mask = logits[..., 0] > 0
        return value, LossAux(batch_stats, _counts(mask, label > 0, weight), mask)

    def probability(
        variables: Mapping[str, Any], image_hu: jax.Array, stats: jax.Array
    ) -> jax.Array:
        logits, _ = model.apply(dict(variables), network_input(image_hu, stats), train=False)
        return jax.nn.sigmoid(logits[..., 0].astype(jnp.float32))

    def feed(split: Mapping[str, Sequence[CachedCase]]) -> Feed:
        free = config.data.spine_free_fraction
        make = partial(SliceFeed, size=size, spine_free_fraction=free, **_common_shares(config))
        return streams.feed(config, split, make)

    def stack_predictor(variables: Mapping[str, Any]) -> StackPredictor:
        return sliding_window.make_stack_predictor(
            probability,
            variables,
            window=(size[0], size[1]),
            overlap=config.predict.overlap,
            batch_size=config.predict.batch_size,
            fill=int(how.fill_hu),
        )

    return Task(
        "slice_segmentation",
        model=model,
        input_shape=(size[0], size[1], config.model.get("in_channels", 1)),
        init=init,
        loss=loss,
        stream=streams.of_slices(config),
        feed=feed,
        stack_predictor=stack_predictor,
        least_side=model.stride,
        sample="slices",
        overlap="Dice",
    )


def _needed(keys: Keys | None) -> Keys:
    if keys is None:
        raise ValueError("training needs `keys`")
    return keys


def _apply(
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
        rngs={"dropout": _needed(keys).dropout},
        mutable=["batch_stats"],
    )
    return logits, updated.get("batch_stats", batch_stats)


def _patch_classification(config: ConfigDict, axis_name: str | None) -> Task:
    """Classification of square patches, vertebra or not, and of every pixel by its patch (paper B).

    A patch is labelled by its pixels after augmentation, which may turn or shift the one rule's
    answer. A pixel's patch is the one in whose row and column n // 2 it lies.
    """
    n = config.data.patches.size
    model = _network(config, axis_name, out_channels=2, classifies=True)
    how = preprocess.from_config(config.data)
    mode = normalise.check_mode(config.data.normalise)
    loss_fn = losses.make_loss(config.loss)
    rule = config.data.patches.label_rule
    check_choice("data.patches.label_rule", rule, PATCH_LABELS)
    label_of = PATCH_LABELS[rule]
    arrays = _arrays(config, how)
    moves = {k: config.augment[k] for k in ("scale", "rotation_deg", "translation_px")}
    margin = _margin(n, **moves) if config.augment.enabled else 0

    def to_input(image_hu: jax.Array, stats: jax.Array) -> jax.Array:
        return normalise.network_input(image_hu, mode, how.range_hu, stats)

    def init(key: jax.Array) -> dict[str, Any]:
        x = jnp.zeros((1, n, n, 1), jnp.float32)
        return dict(model.init({"params": key, "dropout": key}, x, train=False))

    def loss(
        params: Any,
        batch_stats: Any,
        batch: Mapping[str, jax.Array],
        keys: Keys | None,
        *,
        train: bool,
    ) -> tuple[jax.Array, LossAux]:
        image, label = arrays(batch, keys)
        border = (image.shape[1] - n) // 2
        inner = slice(border, border + n)
        truth = label_of(label[:, inner, inner] > 0)
        x = to_input(image[:, inner, inner], batch["stats"])[..., None]
        logits, batch_stats = _apply(model, params, batch_stats, x, keys, train=train)
        weight = batch["weight"]
        value = loss_fn(logits, truth.astype(jnp.int32), weight=weight, axis_name=axis_name)
        found = logits[:, 1] > logits[:, 0]
        return value, LossAux(batch_stats, _counts(found, truth, weight), found)

    jax.eval_shape(init, jax.random.key(0))  # a patch too small for the layers is refused here

    def feed(split: Mapping[str, Sequence[CachedCase]]) -> Feed:
        make = partial(
            PatchFeed,
            **config.data.patches,
            val_fraction=config.data.val_fraction,
            margin=margin,
            **_common_shares(config),
        )
        return streams.feed(config, split, make)

    def stack_predictor(variables: Mapping[str, Any]) -> StackPredictor:
        return patch_scan.make_stack_predictor(
            model,
            variables,
            patch=n,
            to_input=to_input,
            fill_hu=int(how.fill_hu),
            padding=config.predict.padding,
            batch_size=config.predict.batch_size,
        )

    return Task(
        "patch_classification",
        model=model,
        input_shape=(n, n, 1),
        init=init,
        loss=loss,
        stream=streams.of_patches(config, n, margin),
        feed=feed,
        stack_predictor=stack_predictor,
        least_side=1,
        sample="patches",
        overlap="F-score",
    )


def _majority(foreground: jax.Array) -> jax.Array:
    """(b, n, n) bool -> (b,): whether more than half of the pixels are foreground."""
    return 2 * foreground.sum((1, 2)) > foreground.shape[1] * foreground.shape[2]


def _centre(foreground: jax.Array) -> jax.Array:
    """(b, n, n) bool -> (b,): the pixel of row and column n // 2."""
    n = foreground.shape[1]
    return foreground[:, n // 2, n // 2]


PATCH_LABELS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "majority": _majority,
    "centre": _centre,
}
"""Label of a patch: paper B, section II.B, has the majority, 513 of 1024 pixels."""


def _margin(
    n: int, *, scale: tuple[float, float], rotation_deg: float, translation_px: float
) -> int:
    """Pixels around a patch that turning, shifting and shrinking may bring into it."""
    angle = math.radians(min(rotation_deg, 45.0))
    half = (n - 1) / 2  # to the centre of the outermost pixel
    # A shift along both axes is turned, too.
    reach = (half + translation_px) * (math.cos(angle) + math.sin(angle)) / min(scale)
    return max(0, math.ceil(reach - half + 0.01))  # 0.01: rounding on the device


TASKS: dict[str, Callable[[ConfigDict, str | None], Task]] = {
    "slice_segmentation": _slice_segmentation,
    "patch_classification": _patch_classification,
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
