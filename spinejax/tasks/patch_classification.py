"""Classification of patches, and of pixels by the patches around them (paper B)."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from spinejax import augment, losses
from spinejax.data import normalise, preprocess
from spinejax.data.cache import CachedCase
from spinejax.data.feeds import Feed
from spinejax.data.patch_feed import PatchFeed
from spinejax.inference import patch_scan
from spinejax.inference.masks import StackPredictor
from spinejax.phantom import online
from spinejax.tasks import record
from spinejax.tasks.record import Keys, LossAux, MaskTask


def build(config: ConfigDict, axis_name: str | None) -> MaskTask:
    """Return the task: square patches, and pixels by their patches, are vertebra or not.

    The label of a patch follows from its pixels after augmentation, which may turn and shift them.
    The patch of a pixel is the one with the pixel in row and column n // 2.
    """
    n = config.data.patches.size
    model = record.network(config, axis_name, out_channels=2, of="patches")
    how = preprocess.from_config(config.data)
    mode = config.data.normalise
    loss_fn = losses.make_loss(config.loss)
    label_of = PATCH_LABELS[config.data.patches.label_rule]
    arrays = record.arrays_of(
        config, partial(augment.augment, plane=how.plane, fill_hu=how.fill_hu)
    )
    moves = {k: config.augment[k] for k in ("scale", "rotation_deg", "translation_px")}
    margin = _margin(n, **moves) if config.augment.geometry else 0

    def to_input(image_hu: jax.Array, stats: jax.Array) -> jax.Array:
        return normalise.network_input(image_hu, mode, how.range_hu, stats)

    def loss(
        params: Any, batch_stats: Any, batch: Mapping[str, jax.Array], keys: Keys | None
    ) -> tuple[jax.Array, LossAux]:
        image, label = arrays(batch, keys)
        border = (image.shape[1] - n) // 2
        inner = slice(border, border + n)
        truth = label_of(label[:, inner, inner] > 0)
        x = to_input(image[:, inner, inner], batch["stats"])[..., None]
        logits, _, batch_stats = record.apply(model, params, batch_stats, x, keys)
        weight = batch["weight"]
        value = loss_fn(logits, truth.astype(jnp.int32), weight=weight, axis_name=axis_name)
        found = logits[:, 1] > logits[:, 0]
        return value, LossAux(batch_stats, record.counts(found, truth, weight), found)

    init = record.initial(model, (n, n, 1))

    def feed(split: Mapping[str, Sequence[CachedCase]]) -> Feed:
        make = partial(
            PatchFeed,
            **config.data.patches,
            val_fraction=config.data.val_fraction,
            margin=margin,
            **record.feed_options(config),
        )
        return online.feed(config, split, make)

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

    return MaskTask(
        model=model,
        input_shape=(n, n, 1),
        sample_shape=(n + 2 * margin, n + 2 * margin),
        init=init,
        loss=loss,
        stream=online.of_patches(config, n, margin),
        feed=feed,
        stack_predictor=stack_predictor,
        least_side=1,
        sample="patches",
        overlap="F-score",
    )


def _majority(foreground: jax.Array) -> jax.Array:
    """Return whether more than half of the pixels are foreground: (b, n, n) bool -> (b,)."""
    return 2 * foreground.sum((1, 2)) > foreground.shape[1] * foreground.shape[2]


def _centre(foreground: jax.Array) -> jax.Array:
    """Return the pixel of row and column n // 2: (b, n, n) bool -> (b,)."""
    n = foreground.shape[1]
    return foreground[:, n // 2, n // 2]


PATCH_LABELS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "majority": _majority,
    "centre": _centre,
}
"""Label of a patch; paper B, section II.B, uses the majority, 513 of 1024 pixels."""


def _margin(
    n: int, *, scale: tuple[float, float], rotation_deg: float, translation_px: float
) -> int:
    """Return how many pixels around a patch augmentation may move into it."""
    angle = math.radians(min(rotation_deg, 45.0))
    half = (n - 1) / 2  # to the centre of the outermost pixel
    # A shift along both axes is turned, too.
    reach = (half + translation_px) * (math.cos(angle) + math.sin(angle)) / min(scale)
    return max(0, math.ceil(reach - half + 0.01))  # 0.01: rounding on the device
