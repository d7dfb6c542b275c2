"""OP-convNet at every pixel of an image without cutting patches: the same numbers, less work.

Convolutions and pools without padding do the same to every patch, wherever it lies. They are
evaluated once for the whole image at stride 1: what a layer of stride s makes coarser, the layers
after it make up by reading every s-th pixel (dilation). A patch then sees the resulting map at a
few pixels that are `step` apart, m along each axis (3 x 3, 4 apart, for the defaults of paper B).

The first convolution with zero padding differs from patch to patch, since the zeros lie at each
patch's own border. But it is a sum over the taps of its kernel, the product of a tap with a pixel
of the map is the same for all patches, and an output of a patch is the sum over those taps that
fall inside. For k taps along an axis there are at most k such ranges of taps ("none is cut", "the
first is cut", ...), so that k * k products and the sums of ranges of them, once for each pixel,
serve every position in every patch. What remains (pooling, later layers, fully connected ones)
belongs to single patches and is done for each.

For the default network and one pixel: 74 k multiplications for the second convolution, 295 k for
the third, 1.31 M for the fully connected layers, against 5.9 M for a patch by itself.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from spinejax.models.layers import max_pool
from spinejax.models.opconvnet import OPConvNet

Params = Mapping[str, Mapping[str, jax.Array]]

# Output channels of the padded convolution at a time: its products are k * k times as large as the
# map, and outside the cache, moving them would cost more than computing them.
_GROUP = 16


class Dense(NamedTuple):
    """The two halves of a network.

    features: (params, image (t + n - 1, t + n - 1) network input) -> (t * t, f), what the rest of
        the network needs of each patch of n pixels; patch (y, x), in row y * t + x, begins at pixel
        (y, x).
    classify: (params, features (b, f)) -> (b, classes) float32 logits.
    """

    features: Callable[[Params, jax.Array], jax.Array]
    classify: Callable[[Params, jax.Array], jax.Array]


class _Tap(NamedTuple):
    """Which taps of a padded convolution an output takes along an axis, and where."""

    taps: tuple[int, int]  # first and beyond the last that fall inside
    pixel: int  # of the map, under the first of them


def split(model: OPConvNet, patch: int) -> Dense | None:
    """Return the network in two halves for patches of `patch` pixels, if that saves anything.

    Returns:
        None if the very first convolution is padded: then no layer is shared between patches.

    Raises:
        InputError: the patch is too small for the layers.
    """
    sizes = model.activation_sizes(patch)
    sides = (patch, *sizes[1::2])  # of the input of each stage
    stages = range(len(model.widths))
    shared = next((i for i in stages if sum(_padding(model, i, sides[i]))), len(stages))
    if shared == 0:
        return None
    side = sides[shared]
    step = math.prod(model.strides[:shared]) * math.prod(model.pool_strides[:shared])
    first_head = min(shared + 1, len(stages))

    def features(params: Params, image: jax.Array) -> jax.Array:
        tile = image.shape[0] - patch + 1
        x = _shared_stages(model, params, image[..., None], shared)
        x = x[: tile + step * (side - 1), : tile + step * (side - 1)]
        if shared == len(stages):
            steps = range(0, step * side, step)
            x = jnp.stack([x[i : i + tile, j : j + tile] for i in steps for j in steps], axis=2)
        else:
            x = _padded_stage(model, params, x, shared, side, step)
        return x.reshape(tile * tile, -1)

    def classify(params: Params, rows: jax.Array) -> jax.Array:
        x = rows.reshape(len(rows), sides[first_head], sides[first_head], -1)
        for stage in range(first_head, len(stages)):
            stride = (model.strides[stage],) * 2
            kernel, bias = _weights(params, f"conv_{stage + 1}", model.dtype)
            x = _convolve(x, kernel, stride, padding=model.paddings[stage].upper())
            x = jax.nn.relu(max_pool(x, model.pools[stage], model.pool_strides[stage]) + bias)
        x = x.reshape(len(x), -1)
        for layer in range(1, len(model.fc_widths) + 1):
            kernel, bias = _weights(params, f"fc_{layer}", model.dtype)
            x = x @ kernel + bias
            x = jax.nn.relu(x) if model.fc_relu else x
        kernel, bias = _weights(params, f"fc_{len(model.fc_widths) + 1}", jnp.float32)
        return x.astype(jnp.float32) @ kernel + bias

    return Dense(features, classify)


def _padding(model: OPConvNet, stage: int, side: int) -> tuple[int, int]:
    """Pixels that the convolution of a stage adds before and after an input of `side` pixels."""
    if model.paddings[stage] == "valid":
        return 0, 0
    kernel, stride = model.kernels[stage], model.strides[stage]
    ((low, high),) = lax.padtype_to_pads((side,), (kernel,), (stride,), "SAME")
    return low, high


def _weights(params: Params, name: str, dtype: Any) -> tuple[jax.Array, jax.Array]:
    return params[name]["kernel"].astype(dtype), params[name]["bias"].astype(dtype)


def _convolve(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], **how: Any) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, stride, dimension_numbers=layout, **how)


def _shared_stages(model: OPConvNet, params: Params, x: jax.Array, count: int) -> jax.Array:
    """Evaluate the first stages at every pixel of `x` (h, w, c); sides shrink by their reach."""
    x = x.astype(model.dtype)
    dilation = 1
    for stage in range(count):
        kernel, bias = _weights(params, f"conv_{stage + 1}", model.dtype)
        rate = (dilation, dilation)
        x = _convolve(x[None], kernel, (1, 1), padding="VALID", rhs_dilation=rate)[0]
        dilation *= model.strides[stage]
        for axis in (0, 1):
            last = x.shape[axis] - dilation * (model.pools[stage] - 1)
            starts = range(0, dilation * model.pools[stage], dilation)
            x = _maximum([lax.slice_in_dim(x, i, i + last, axis=axis) for i in starts])
        dilation *= model.pool_strides[stage]
        # Adding a bias and ReLU keep the order of numbers, hence may follow the maximum: there
        # are fewer to do it to.
        x = jax.nn.relu(x + bias)
    return x


def _padded_stage(
    model: OPConvNet, params: Params, x: jax.Array, stage: int, side: int, step: int
) -> jax.Array:
    """Evaluate convolution with padding, ReLU and pooling for every patch.

    Args:
        model: the network.
        params: its parameters.
        x: (t + step * (side - 1), same, c), the map that all patches share.
        stage: which.
        side: pixels along each axis of what a patch sees of the map.
        step: pixels of the map between them.

    Returns:
        (t, t, p * p, c'), the p x p pooled outputs of each patch.
    """
    kernel, bias = _weights(params, f"conv_{stage + 1}", model.dtype)
    k, _, depth, width = kernel.shape
    tile = x.shape[0] - step * (side - 1)
    low = _padding(model, stage, side)[0]
    stride = model.strides[stage]
    starts = range(-low, -(-side // stride) * stride - low, stride)
    outputs = [_Tap((max(0, -at), min(k, side - at)), max(0, at)) for at in starts]
    pooled = (len(outputs) - model.pools[stage]) // model.pool_strides[stage] + 1
    group = min(_GROUP, width)

    def add(index: jax.Array, result: jax.Array) -> jax.Array:
        # Where the width is no multiple of the group, the last group begins earlier and finds some
        # channels again.
        first = jnp.minimum(index * group, width - group)
        part = lax.dynamic_slice_in_dim(kernel, first, group, axis=3)
        products = x.reshape(-1, depth) @ part.transpose(2, 0, 1, 3).reshape(depth, -1)
        products = products.reshape(*x.shape[:2], k, k, group)
        y = _sum_and_pool(
            products, outputs, model.pools[stage], model.pool_strides[stage], step, tile
        )
        y = jax.nn.relu(y + lax.dynamic_slice_in_dim(bias, first, group))
        return lax.dynamic_update_slice_in_dim(result, y, first, axis=3)

    empty = jnp.zeros((tile, tile, pooled * pooled, width), model.dtype)
    return lax.fori_loop(0, -(-width // group), add, empty)


def _sum_and_pool(
    products: jax.Array, outputs: list[_Tap], pool: int, pool_stride: int, step: int, tile: int
) -> jax.Array:
    """Return the pooled outputs of each patch, (t, t, p * p, c), from products (h, w, k, k, c).

    Rows and columns are treated one after another, in the sums as in the maxima.
    """
    ranges = sorted({output.taps for output in outputs})
    taps = range(products.shape[2])

    def total(maps: list[jax.Array], taps: tuple[int, int], axis: int) -> jax.Array:
        length = maps[0].shape[axis] - step * (taps[1] - taps[0] - 1)
        starts = range(0, step * (taps[1] - taps[0]), step)
        parts = zip(maps[slice(*taps)], starts, strict=True)
        return sum(lax.slice_in_dim(m, at, at + length, axis=axis) for m, at in parts)  # type: ignore

    def greatest(maps: Mapping[tuple[int, int], jax.Array], first: int, axis: int) -> jax.Array:
        window = [(maps[o.taps], step * o.pixel) for o in outputs[first : first + pool]]
        return _maximum([lax.slice_in_dim(m, at, at + tile, axis=axis) for m, at in window])

    down = [
        {r: total([products[:, :, i, j] for i in taps], r, axis=0) for r in ranges} for j in taps
    ]
    sums = {c: {r: total([d[r] for d in down], c, axis=1) for r in ranges} for c in ranges}
    firsts = range(0, len(outputs) - pool + 1, pool_stride)
    rows = [{c: greatest(sums[c], first, axis=0) for c in ranges} for first in firsts]
    return jnp.stack([greatest(row, first, axis=1) for row in rows for first in firsts], axis=2)


def _maximum(maps: list[jax.Array]) -> jax.Array:
    result = maps[0]
    for other in maps[1:]:
        result = jnp.maximum(result, other)
    return result
