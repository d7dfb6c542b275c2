"""Classifying every pixel of a slice by the patch around it (paper B, section II.D: stride 1).

The patch of pixel (y, x) has n x n pixels, and pixel (y, x) is its pixel (n // 2, n // 2): n // 2
pixels lie before it, n - 1 - n // 2 after it. Beyond the borders of a slice lies the value of
`fill_hu` or the reflection of the slice. Patches that contain only `fill_hu` are all equal and are
evaluated once.

OP-convNet is evaluated tile by tile without cutting patches, wherever its layers allow it; other
networks get batches of patches. The logits are equal. Layers without padding treat all patches
alike and are evaluated once for the whole tile at stride 1. A layer of stride s makes the map
coarser; the layers after it read every s-th pixel instead (dilation). A patch then sees the
resulting map at m x m pixels that are `step` apart (3 x 3 pixels, 4 apart, for the defaults of
paper B).

The first convolution with zero padding differs from patch to patch, because the zeros lie at the
patch's own border. But it is a sum over the taps of its kernel. The product of a tap with a pixel
of the map is the same for all patches, and an output of a patch is the sum over the taps that fall
inside it. For k taps along an axis there are at most k such ranges of taps ("no tap is cut", "the
first tap is cut", ...). So k * k products and the sums over ranges of them, once for each pixel,
serve every position in every patch. The rest (pooling, later layers, fully connected layers) is
evaluated for each patch.

For the default network and one pixel, the second convolution takes 74 k multiplications, the third
295 k, and the fully connected layers 1.31 M. A patch by itself takes 5.9 M.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import special

from spinejax import schema
from spinejax.inference.devices import behind, fetch, one_each, over_local_devices
from spinejax.inference.masks import StackPredictor
from spinejax.models.layers import max_pool
from spinejax.models.opconvnet import OPConvNet

TILE = 64

# Patches in one call of the fully connected layers; the last call of a tile is padded.
_ROWS = 512
# Output channels of the padded convolution at a time. Its products are k * k times as large as the
# map; beyond the processor's cache, moving them would take longer than computing them.
_GROUP = 16

Params = Mapping[str, Mapping[str, jax.Array]]

ToInput = Callable[[jax.Array, jax.Array], jax.Array]
"""(image (..., h, w) preprocessed HU, stats (..., 4)) -> network input, float32, pixel by pixel."""

SliceLogits = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(slice (h, w) int16 preprocessed HU, stats (4,) float32) -> (h, w, classes) float32 logits."""

StackLogits = Callable[[Iterable[np.ndarray], np.ndarray], Iterator[np.ndarray]]
"""(slices, stats) -> the logits of one slice after the other, as `SliceLogits`."""


@dataclass
class _Slice:
    """A slice that is evaluated.

    Attributes:
        padded: the slice, see `pad_slice`.
        wanted: (h, w) bool, the pixels whose patches are evaluated.
        result: (h, w, classes) float32, their logits as far as they are known, and all others.
        missing: the number of wanted pixels whose logits are not known.
    """

    padded: np.ndarray
    wanted: np.ndarray
    result: np.ndarray
    missing: int


# An evaluation yields the logits of all wanted patches in parts: (slices, stats) -> places, logits.
# Of each place, a slice with rows (b,) and columns (b,), there is a row of logits (places, at least
# b, classes). Row and column of a patch are its first pixel in the padded slice, which is its
# centre in the slice.
_Place = tuple[_Slice, np.ndarray, np.ndarray]
_Evaluate = Callable[[Iterable[_Slice], np.ndarray], Iterator[tuple[list[_Place], jax.Array]]]


class SplitNetwork(NamedTuple):
    """A network in two halves.

    Attributes:
        features: (params, image (t + n - 1, t + n - 1) network input) -> (t * t, f), the input of
            the second half for each patch of n x n pixels. Row y * t + x holds the patch that
            begins at pixel (y, x).
        classify: (params, features (b, f)) -> (b, classes) float32 logits.
    """

    features: Callable[[Params, jax.Array], jax.Array]
    classify: Callable[[Params, jax.Array], jax.Array]


class _Tap(NamedTuple):
    """The taps of a padded convolution that an output uses along an axis."""

    taps: tuple[int, int]  # [first, last) that fall inside
    pixel: int  # of the map under the first of them


def make_stack_predictor(model: Any, variables: Mapping[str, Any], **how: Any) -> StackPredictor:
    """Return a function that computes the probability of vertebra at every pixel of a stack.

    See `foreground_probability`. Arguments, errors and memory are those of `make_slice_logits`.
    """
    stack_logits = _make_stack_logits(model, variables, **how)

    def predict(
        stack: np.ndarray,
        stats: np.ndarray,
        advance: Callable[[int], object],
        within: np.ndarray | None = None,
    ) -> np.ndarray:
        result = np.zeros(stack.shape, np.float32)
        wanted = [i for i in range(len(stack)) if within is None or within[i].any()]
        if len(wanted) < len(stack):
            advance(len(stack) - len(wanted))
        for i, logits in zip(wanted, stack_logits((stack[i] for i in wanted), stats), strict=True):
            result[i] = foreground_probability(logits)
            advance(1)
        return result

    return predict


def make_slice_logits(model: Any, variables: Mapping[str, Any], **how: Any) -> SliceLogits:
    """Return a function that computes the logits of every pixel of a slice of any size.

    All shapes on the device are fixed, so that each part is compiled once. Tiles, or batches of
    patches, are divided among all local devices. Each holds at most two tiles at a time, 4 kB for
    each pixel of a tile with the default network, and under 100 MB with intermediate results.

    Args:
        model: classifier of patches (b, n, n, 1), which returns (logits (b, classes), rest).
        variables: of the model.
        **how: `patch`, n, the side of a patch in pixels; `to_input`, the normalisation of training;
            `fill_hu`, the value outside a slice and of an empty patch; `padding`, "zero" for
            `fill_hu` beyond the borders, or "reflect", which reflects a slice smaller than half a
            patch repeatedly; `batch_size`, patches in one call, if patches are cut (on CPUs 64 to
            128 patches of 32 x 32 pixels are fastest); `skip_empty`, whether to evaluate empty
            patches only once; `tile`, side of a tile in pixels, if no patches are cut;
            `without_patches`, False cuts patches whatever the model.

    Raises:
        InputError: unknown padding, or a patch too small for OP-convNet.
    """
    stack_logits = _make_stack_logits(model, variables, **how)
    return lambda image, stats: next(stack_logits([image], stats))


def _make_stack_logits(
    model: Any,
    variables: Mapping[str, Any],
    *,
    patch: int,
    to_input: ToInput,
    fill_hu: int,
    padding: str,
    batch_size: int,
    skip_empty: bool = True,
    tile: int = TILE,
    without_patches: bool = True,
) -> StackLogits:
    """Return a function that computes the logits of slices one after the other.

    See `make_slice_logits`. While the host collects the logits of one slice, the devices work on
    the next one.
    """
    schema.check_value("predict.padding", padding)

    # The default of GPUs is TF32; with its ten bits, both ways would give different numbers.
    @jax.default_matmul_precision("float32")
    def network(held: Any, images: jax.Array, stats: jax.Array) -> jax.Array:
        return model.apply(held, to_input(images, stats)[..., None], train=False)[0]

    of_few, few = over_local_devices(network, variables, 1)
    empty = np.full((few, patch, patch), fill_hu, np.int16)
    halves = None
    if without_patches and isinstance(model, OPConvNet):
        halves = split_network(model, patch)
    if halves is None:
        evaluate = _by_patches(network, variables, patch, batch_size)
    else:
        evaluate = _by_tiles(halves, variables["params"], to_input, patch, tile)

    def stack_logits(images: Iterable[np.ndarray], stats: np.ndarray) -> Iterator[np.ndarray]:
        stats = np.asarray(stats, np.float32)
        of_empty = fetch(of_few(empty, np.tile(stats, (few, 1))))[0]
        begun: deque[_Slice] = deque()

        def slices() -> Iterator[_Slice]:
            for image in images:
                padded = pad_slice(image, patch, fill_hu, padding)
                wanted = np.ones(image.shape, bool)
                result = np.empty((*image.shape, len(of_empty)), np.float32)
                if skip_empty:
                    wanted = patches_with_content(padded, patch, fill_hu)
                    result[~wanted] = of_empty
                begun.append(_Slice(padded, wanted, result, int(wanted.sum())))
                yield begun[-1]

        for places, logits in behind(evaluate(slices(), stats)):
            for (one, rows, columns), found in zip(places, fetch(logits), strict=False):
                one.result[rows, columns] = found[: len(rows)]
                one.missing -= len(rows)
            while begun and not begun[0].missing:
                yield begun.popleft().result
        for one in begun:
            yield one.result

    return stack_logits


def foreground_probability(logits: np.ndarray) -> np.ndarray:
    """Return the probability of foreground, (...) float32, for logits (..., classes).

    One class has a sigmoid. Of more classes the second half is foreground, and the probabilities of
    its classes add up.

    Raises:
        ValueError: another odd number of classes.
    """
    classes = logits.shape[-1]
    if classes == 1:
        return special.expit(logits[..., 0])
    if classes % 2:
        raise ValueError(f"`logits` (shape={logits.shape}) must be of one class or an even number")
    background, vertebra = np.split(logits, 2, axis=-1)
    return special.expit(
        np.logaddexp.reduce(vertebra, axis=-1) - np.logaddexp.reduce(background, axis=-1)
    )


def pad_slice(image: np.ndarray, patch: int, fill_hu: int, padding: str) -> np.ndarray:
    """Return a slice (h, w) padded for its patches, (h + patch - 1, w + patch - 1).

    The patch that begins at pixel (y, x) of the result is the patch of pixel (y, x) of the slice.
    """
    around = (patch // 2, patch - 1 - patch // 2)
    if padding == "reflect":
        return np.pad(image, around, mode="reflect")
    return np.pad(image, around, constant_values=fill_hu)


def patches_with_content(padded: np.ndarray, patch: int, fill_hu: int) -> np.ndarray:
    """Return whether each patch of a padded slice has a pixel other than `fill_hu`, (h, w) bool."""
    sums = np.zeros((padded.shape[0] + 1, padded.shape[1] + 1), np.int32)
    content = sums[1:, 1:]
    np.cumsum(padded != fill_hu, axis=0, dtype=np.int32, out=content)
    np.cumsum(content, axis=1, out=content)
    sums = sums[patch:] - sums[:-patch]
    return sums[:, patch:] > sums[:, :-patch]


def _by_patches(
    network: Callable[[Any, jax.Array, jax.Array], jax.Array],
    variables: Mapping[str, Any],
    patch: int,
    batch_size: int,
) -> _Evaluate:
    """Return an evaluation by batches of patches, each divided among all local devices."""
    compiled, size = over_local_devices(network, variables, batch_size)

    def evaluate(
        slices: Iterable[_Slice], stats: np.ndarray
    ) -> Iterator[tuple[list[_Place], jax.Array]]:
        for one in slices:
            windows = np.lib.stride_tricks.sliding_window_view(one.padded, (patch, patch))
            rows, columns = np.nonzero(one.wanted)
            for first in range(0, len(rows), size):
                y, x = rows[first : first + size], columns[first : first + size]
                images = np.zeros((size, patch, patch), one.padded.dtype)
                images[: len(y)] = windows[y, x]
                yield [(one, y, x)], compiled(images, np.tile(stats, (size, 1)))[None]

    return evaluate


def _by_tiles(
    halves: SplitNetwork, params: Params, to_input: ToInput, patch: int, tile: int
) -> _Evaluate:
    """Return an evaluation by tiles, one on each local device at a time.

    The last layers are evaluated for wanted patches only.
    """

    @jax.default_matmul_precision("float32")
    def features(params: Any, image: jax.Array, stats: jax.Array) -> jax.Array:
        return halves.features(params, to_input(image, stats))

    @jax.default_matmul_precision("float32")
    def classify(params: Any, features: jax.Array, at: jax.Array) -> jax.Array:
        return halves.classify(params, features[at])

    features_of, devices = one_each(features, params)
    classes_of, _ = one_each(classify, params)
    side = tile + patch - 1

    def tiles(slices: Iterable[_Slice]) -> Iterator[tuple[_Slice, np.ndarray, int, int]]:
        for one in slices:
            # Room for tiles that reach beyond the last patch; no patch there is wanted.
            padded = np.pad(one.padded, (0, tile))
            for top, left in _tiles(one.wanted, tile):
                yield one, padded[top : top + side, left : left + side], top, left

    def evaluate(
        slices: Iterable[_Slice], stats: np.ndarray
    ) -> Iterator[tuple[list[_Place], jax.Array]]:
        every = tiles(slices)
        while group := list(islice(every, devices)):
            images = np.zeros((devices, side, side), group[0][1].dtype)
            images[: len(group)] = [image for _, image, _, _ in group]
            of_tiles = features_of(images, np.tile(stats, (devices, 1)))
            found = [
                np.nonzero(one.wanted[top : top + tile, left : left + tile])
                for one, _, top, left in group
            ]
            for first in range(0, max(len(rows) for rows, _ in found), _ROWS):
                at = np.zeros((devices, _ROWS), np.int32)
                places = []
                for i, ((one, _, top, left), (rows, columns)) in enumerate(
                    zip(group, found, strict=True)
                ):
                    y, x = rows[first : first + _ROWS], columns[first : first + _ROWS]
                    at[i, : len(y)] = y * tile + x
                    places.append((one, y + top, x + left))
                yield places, classes_of(of_tiles, at)

    return evaluate


def _tiles(wanted: np.ndarray, tile: int) -> Iterator[tuple[int, int]]:
    """Yield the first pixels of tiles that cover each wanted pixel once.

    Bands of rows begin at a wanted row, and the tiles of a band at a wanted column. These are fewer
    tiles than on a fixed grid.
    """
    rows = np.flatnonzero(wanted.any(axis=1))
    while len(rows):
        top = int(rows[0])
        columns = np.flatnonzero(wanted[top : top + tile].any(axis=0))
        while len(columns):
            left = int(columns[0])
            yield top, left
            columns = columns[columns >= left + tile]
        rows = rows[rows >= top + tile]


def split_network(model: OPConvNet, patch: int) -> SplitNetwork | None:
    """Split a network into a half that is shared between patches and the rest.

    Returns:
        The two halves for patches of `patch` x `patch` pixels; None if the first convolution is
        padded, because patches then share no layer.

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

    return SplitNetwork(features, classify)


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
        # Bias and ReLU keep the order of numbers, so they may follow the maximum, where there are
        # fewer numbers.
        x = jax.nn.relu(x + bias)
    return x


def _padded_stage(
    model: OPConvNet, params: Params, x: jax.Array, stage: int, side: int, step: int
) -> jax.Array:
    """Evaluate padded convolution, ReLU and pooling of a stage for every patch.

    Args:
        model: the network.
        params: its parameters.
        x: (t + step * (side - 1), same, c), the map that all patches share.
        stage: index of the stage.
        side: a patch sees side x side pixels of the map.
        step: distance between these pixels.

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
        # If the width is no multiple of the group, the last group begins earlier and computes some
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

    Sums and maxima are separable: rows come first, then columns.
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


def _padding(model: OPConvNet, stage: int, side: int) -> tuple[int, int]:
    """Return the pixels that a stage's convolution adds before and after `side` input pixels."""
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
