"""Losses of segmentation: pure functions of logits and labels.

All but `offset_error` share the signature
`loss(logits, labels, *, weight=None, axis_name=None, ...) -> ()`:

* `logits` (b, ..., k) float. k = 1 is binary: a sigmoid, foreground where `labels` > 0. k > 1 is
  a softmax over contiguous classes 0..k-1; class 0 is background.
* `labels` (b, ...) integers.
* `weight` (b,): 0 leaves a sample out (the padding of a last batch); None is all ones.
* `axis_name`: the mapped device axis. Every loss is a quotient (or a sum of quotients) of sums over
  the **whole** batch. The sums are added over the axis, so each device returns the loss of the
  global batch.

Gradients under `axis_name`. Let S = sum_i s_i be the sums over devices i and L = f(S). JAX's psum
is its own transpose, so the derivative on device i of the value that every device returns is
d(sum_j L_j)/d(theta_i) = n f'(S) ds_i/d(theta). The mean over the n devices, sum_i f'(S)
ds_i/d(theta), is dL/d(theta): the gradient of the global batch, exactly, from the usual `pmean`.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from spinejax import schema
from spinejax.labels import NUM_CLASSES

SMOOTH = 1e-5


def _total(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Sum `x` over the devices of `axis_name`, if there is one."""
    return jax.lax.psum(x, axis_name) if axis_name else x


def _per_pixel_weight(labels: jax.Array, weight: jax.Array | None) -> jax.Array:
    """Return float32 weights that broadcast over `labels`."""
    if weight is None:
        weight = jnp.ones(labels.shape[0])
    return weight.astype(jnp.float32).reshape(-1, *[1] * (labels.ndim - 1))


def _check(logits: jax.Array, labels: jax.Array) -> None:
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"`logits` {logits.shape} must have the shape of `labels` {labels.shape} and a "
            "channel axis"
        )


def _cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy of each pixel, of the shape of `labels`."""
    logits = logits.astype(jnp.float32)
    if logits.shape[-1] == 1:
        target = (labels > 0).astype(jnp.float32)
        return optax.sigmoid_binary_cross_entropy(logits[..., 0], target)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32))


def _overlap_sums(
    logits: jax.Array, labels: jax.Array, weight: jax.Array | None, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return per foreground class, over the global batch, sums of p*t, p and t.

    p are probabilities and t indicators of the class; shapes (1,) for k = 1, else (k - 1,).
    """
    logits = logits.astype(jnp.float32)
    pixel_weight = _per_pixel_weight(labels, weight)[..., None]
    if logits.shape[-1] == 1:
        probability = jax.nn.sigmoid(logits)
        target = (labels > 0).astype(jnp.float32)[..., None]
    else:
        probability = jax.nn.softmax(logits)[..., 1:]
        target = jax.nn.one_hot(labels.astype(jnp.int32), logits.shape[-1])[..., 1:]
    axes = tuple(range(labels.ndim))
    both = jnp.sum(pixel_weight * probability * target, axes)
    predicted = jnp.sum(pixel_weight * probability, axes)
    true = jnp.sum(pixel_weight * target, axes)
    sums = _total(jnp.stack([both, predicted, true]), axis_name)
    return sums[0], sums[1], sums[2]


def _mean_over_present(scores: jax.Array, true: jax.Array) -> jax.Array:
    """Mean of `scores` over the classes with pixels in the batch; over all if none has any.

    For a class without pixels, the smallest false positive turns the score from about 1 to about 0,
    and most of the 26 vertebrae are absent from any slice. False positives already cost the classes
    that lose the pixels.
    """
    present = (true > 0).astype(jnp.float32)
    present = jnp.where(present.sum() > 0, present, jnp.ones_like(present))
    return jnp.sum(scores * present) / jnp.sum(present)


def dice(
    logits: jax.Array,
    labels: jax.Array,
    *,
    weight: jax.Array | None = None,
    axis_name: str | None = None,
    smooth: float = SMOOTH,
) -> jax.Array:
    """Soft Dice loss over the whole batch, mean over foreground classes that are present.

    The value is 1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s): 0 for a perfect prediction, 1 for no
    overlap, and, because of s, 0 where neither has foreground.

    Args:
        logits: (b, ..., k).
        labels: (b, ...) integers.
        weight: (b,) sample weights.
        axis_name: Device axis over which sums are added.
        smooth: s, in pixels.

    References:
        Milletari et al., V-Net, 3DV 2016 (there with squares in the denominator); sums over the
        batch as in Isensee et al., nnU-Net, 2021 ("batch Dice").
    """
    _check(logits, labels)
    both, predicted, true = _overlap_sums(logits, labels, weight, axis_name)
    scores = (2 * both + smooth) / (predicted + true + smooth)
    return 1 - _mean_over_present(scores, true)


def ce(
    logits: jax.Array,
    labels: jax.Array,
    *,
    weight: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Cross entropy in nats, mean over all weighted pixels of the global batch.

    The value is log 2 for binary logits of 0 and log k for equal logits of k classes. It tends to 0
    for certain and correct logits, and is 0 where every weight is 0.
    """
    _check(logits, labels)
    return weighted_mean(_cross_entropies(logits, labels), weight, axis_name)


def weighted_mean(values: jax.Array, weight: jax.Array | None, axis_name: str | None) -> jax.Array:
    """Mean of (b, ...) `values` under (b,) weights over the global batch; 0 for no weight."""
    pixel_weight = _per_pixel_weight(values, weight)
    pixels = values.size // values.shape[0]
    total = _total(
        jnp.stack([jnp.sum(pixel_weight * values), jnp.sum(pixel_weight) * pixels]), axis_name
    )
    return total[0] / jnp.maximum(total[1], jnp.finfo(jnp.float32).tiny)


def dice_ce(
    logits: jax.Array,
    labels: jax.Array,
    *,
    weight: jax.Array | None = None,
    axis_name: str | None = None,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    smooth: float = SMOOTH,
) -> jax.Array:
    """Return `dice_weight` * dice + `ce_weight` * ce, the default; paper A names no loss."""
    common: dict[str, Any] = dict(weight=weight, axis_name=axis_name)
    return dice_weight * dice(logits, labels, **common, smooth=smooth) + ce_weight * ce(
        logits, labels, **common
    )


def focal(
    logits: jax.Array,
    labels: jax.Array,
    *,
    weight: jax.Array | None = None,
    axis_name: str | None = None,
    gamma: float = 2.0,
) -> jax.Array:
    """Focal loss: mean of -(1 - p)^gamma log(p), p the probability of the true class.

    It equals `ce` for gamma = 0. As gamma grows, well classified pixels weigh less.

    References:
        Lin et al., Focal loss for dense object detection, ICCV 2017 (without its alpha).
    """
    _check(logits, labels)
    entropies = _cross_entropies(logits, labels)
    # 1 - p without cancellation where p is near 1. At 0 the derivative of a power below 1 would be
    # infinite, so the value stays above 0.
    miss = jnp.maximum(-jnp.expm1(-entropies), jnp.finfo(jnp.float32).tiny)
    return weighted_mean(miss**gamma * entropies, weight, axis_name)


def tversky(
    logits: jax.Array,
    labels: jax.Array,
    *,
    weight: jax.Array | None = None,
    axis_name: str | None = None,
    alpha: float = 0.3,
    smooth: float = SMOOTH,
) -> jax.Array:
    """Tversky loss over the whole batch, mean over foreground classes that are present.

    The value is 1 - (TP + s) / (TP + alpha FP + (1 - alpha) FN + s) with soft counts. alpha = 0.5
    is `dice` with s halved; with alpha < 0.5 a missed pixel costs more than a false one.

    References:
        Salehi et al., MLMI 2017.
    """
    _check(logits, labels)
    both, predicted, true = _overlap_sums(logits, labels, weight, axis_name)
    errors = alpha * (predicted - both) + (1 - alpha) * (true - both)
    scores = (both + smooth) / (both + errors + smooth)
    return 1 - _mean_over_present(scores, true)


def centre_offsets(classes: jax.Array, spacing_mm: float) -> jax.Array:
    """Return the offset of each voxel to the centre of its vertebra's part in the cube.

    Args:
        classes: (b, x, y, z) contiguous classes.
        spacing_mm: of the voxels, along all axes.

    Returns:
        (b, x, y, z, 3) float32 in cm. The values of background mean nothing.
    """
    axes = [jnp.arange(n, dtype=jnp.float32) * (spacing_mm / 10) for n in classes.shape[1:]]
    places = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1)

    def one(own: jax.Array) -> jax.Array:
        total = jax.ops.segment_sum(places.reshape(-1, 3), own.reshape(-1), NUM_CLASSES)
        count = jax.ops.segment_sum(jnp.ones(own.size), own.reshape(-1), NUM_CLASSES)
        return (total / jnp.maximum(count, 1.0)[:, None])[own] - places

    return jax.vmap(one)(classes)


def offset_error(
    offsets: jax.Array,
    classes: jax.Array,
    *,
    spacing_mm: float,
    weight: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Mean absolute error of the offsets to the centre, over voxels of vertebrae and axes.

    Vertebrae that touch have different centres, so offsets separate them even if names fail (as in
    Neven et al., CVPR 2019, for instances of a class).

    Args:
        offsets: (b, x, y, z, 3), in cm.
        classes: (b, x, y, z) contiguous classes.
        spacing_mm: of the voxels.
        weight: (b,) sample weights.
        axis_name: device axis over which sums are added.

    Returns:
        In cm; 0 where there is no vertebra.
    """
    inside = _per_pixel_weight(classes, weight) * (classes > 0)
    errors = jnp.abs(offsets.astype(jnp.float32) - centre_offsets(classes, spacing_mm)).mean(-1)
    total = _total(jnp.stack([jnp.sum(inside * errors), jnp.sum(inside)]), axis_name)
    return total[0] / jnp.maximum(total[1], 1.0)


def contour(labels: jax.Array) -> jax.Array:
    """Return the contour of the foreground of slices: its dilation without its erosion.

    The structuring element is 3x3 pixels, so the contour is two pixels wide, one on each side. What
    lies outside of the image counts for neither: a mask that the edge cuts has no contour there.

    Args:
        labels: (b, h, w) integers, foreground above 0.

    Returns:
        (b, h, w) bool.
    """
    # Pooling pads with minus infinity, which is never the maximum.
    foreground = (labels > 0).astype(jnp.float32)[..., None]
    near = partial(nn.max_pool, window_shape=(3, 3), padding="SAME")
    return (near(foreground) > -near(-foreground))[..., 0]


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "dice": dice,
    "ce": ce,
    "dice_ce": dice_ce,
    "focal": focal,
    "tversky": tversky,
}

OFFSET_WEIGHT = "offset_weight"
"""Field of a config's `loss` block: weight of `offset_error` beside the loss. Above 0, networks of
cubes have three more outputs."""
AUXILIARY_WEIGHT = "auxiliary_weight"
"""Field of a config's `loss` block: weight of the `ce` of a network's auxiliary logits beside the
loss. Networks of slices predict the `contour`, networks of cubes the classes."""


def make_loss(fields: Mapping[str, Any]) -> Callable[..., jax.Array]:
    """Return `loss(logits, labels, *, weight=None, axis_name=None)` of a config's `loss` block.

    Args:
        fields: `name`, a key of LOSSES, and numbers by the name of the loss's argument; a loss
            ignores the numbers of other losses, so that a sweep can change the name alone.

    Raises:
        InputError: the name or a field is unknown, or a number is not allowed.
    """
    schema.check_block({"name": None, **fields}, schema.block("loss"), "loss")
    loss = LOSSES[fields["name"]]
    read = inspect.signature(loss).parameters
    return partial(loss, **{name: value for name, value in fields.items() if name in read})
