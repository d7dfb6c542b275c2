"""The class of every voxel of a scan: a network of cubes in overlapping windows.

Windows are weighted by a Gaussian, as in nnU-Net (Isensee et al., Nature Methods 2021), because a
voxel near the border of a window has little context. The probabilities of all classes are held for
one layer of windows only. Layers go from foot to head, and slices that no later layer reaches are
decided. On a GPU or TPU the layer lies there, and only the classes come to the host.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.geometry import window_starts
from spinejax.inference.devices import (
    add_windows,
    behind,
    fetch,
    first_device,
    over_local_devices,
    rounded_up,
)

Size = tuple[int, int, int]

CubePredictor = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]
"""(image (b, x, y, z) int16 HU preprocessed, spine (b, x, y, z) uint8 0 or 1, stats (4,) of the
scan) -> (b, x, y, z, c) float32 probabilities of the classes, of numpy or jax. With offsets, three
more channels hold the offset to the vertebra's centre in cm."""

_SIGMA = 1 / 8  # of the side of the window
_LEAST_WEIGHT = 1e-3


class Classes(NamedTuple):
    """The two most probable classes of every voxel: three bytes instead of all probabilities."""

    first: np.ndarray
    """(x, y, z) uint8, the most probable class."""
    second: np.ndarray
    """(x, y, z) uint8, the second most probable class."""
    share: np.ndarray
    """(x, y, z) uint8, 255 p / (p + q) for the probabilities p of the first and q of the second."""
    offsets_mm: np.ndarray | None = None
    """(x, y, z, 3) float16, the offset to the vertebra's centre, if the network gives it."""


def gaussian_weights(window: Size) -> np.ndarray:
    """Return the weight of each voxel of a window, (x, y, z) float32: 1 at the centre, never 0."""
    weights = np.ones(window, np.float32)
    for axis, length in enumerate(window):
        offset = (np.arange(length) - (length - 1) / 2) / (length * _SIGMA)
        shape = [1, 1, 1]
        shape[axis] = length
        weights *= np.exp(-0.5 * offset**2, dtype=np.float32).reshape(shape)
    return np.maximum(weights, _LEAST_WEIGHT)


_CONTEXT = 2
"""Windows reach so many voxels beyond the spine, where there are any."""


def layers(
    shape: Size, window: Size, overlap: float, spine: np.ndarray | None
) -> Iterator[tuple[int, list[Size]]]:
    """Yield the first slice of each layer of windows along z, and the corners of its windows.

    Args:
        shape: voxels of the scan, at least those of the window.
        window: voxels of a window.
        overlap: least share of a window that the next window covers again.
        spine: (x, y, z) mask, which the windows of each layer cover, with its middle in their
            middle; None covers all.
    """

    def starts(axis: int, found: Any) -> list[int]:
        """Return where windows along an axis begin that cover what was found there, (n,) bool."""
        places, n, side = np.flatnonzero(found), shape[axis], window[axis]
        if not len(places):
            return []
        low, high = max(0, places[0] - _CONTEXT), min(n, places[-1] + 1 + _CONTEXT)
        if high - low <= side:
            return [int(min(max(0, (low + high - side) // 2), n - side))]
        return [int(low) + start for start in window_starts(int(high - low), side, overlap)]

    for z in window_starts(shape[2], window[2], overlap):
        if spine is None:
            columns = np.ones(shape[:2], bool)
        else:
            columns = np.asarray((spine[:, :, z : z + window[2]] > 0).any(axis=2))
        yield (
            z,
            [
                (x, y, z)
                for x in starts(0, columns.any(axis=1))
                for y in starts(1, columns[x : x + window[0]].any(axis=0))
            ],
        )


def _box(corner: Size, window: Size) -> tuple[slice, ...]:
    return tuple(slice(c, c + side) for c, side in zip(corner, window, strict=True))


def moved_grids(shape: Size, shifts: int) -> list[tuple[slice, ...]]:
    """Return the coarse grids of every `shifts`-th voxel that together hold each voxel once.

    A scan with fewer than `shifts` voxels along an axis has fewer grids.
    """
    firsts = product(*(range(min(n, shifts)) for n in shape))
    return [tuple(slice(i, None, shifts) for i in first) for first in firsts]


def count_windows(
    shape: Size, spine: np.ndarray | None, *, shifts: int, window: Size, overlap: float
) -> int:
    """Return how many windows `predict_moved` reads of an image of a shape."""
    count = 0
    for grid in moved_grids(shape, shifts):
        lengths = [len(range(*part.indices(n))) for part, n in zip(grid, shape, strict=True)]
        padding = _padding(lengths, window)
        x, y, z = (n + sum(pad) for n, pad in zip(lengths, padding, strict=True))
        mask = None if spine is None else np.pad(spine[grid], padding)
        count += sum(len(corners) for _, corners in layers((x, y, z), window, overlap, mask))
    return count


def _padding(shape: Sequence[int], window: Size) -> list[tuple[int, int]]:
    """Return the voxels before and after a scan along each axis that fill up a window."""
    missing = [max(0, side - n) for n, side in zip(shape, window, strict=True)]
    return [(m // 2, m - m // 2) for m in missing]


def predict_moved(
    predict: CubePredictor,
    image: np.ndarray,
    spine: np.ndarray | None,
    stats: np.ndarray,
    *,
    shifts: int,
    offsets: bool = False,
    **how: Any,
) -> Classes:
    """Return classes on a grid that is finer than the network's; it reads all `moved_grids`.

    Where a voxel of one grid lies half in a vertebra, a voxel of another grid lies wholly in it.

    Args:
        predict: the network.
        image: (x, y, z) int16 HU, with voxels `shifts` times as small as the network's, smoothed as
            for the network's.
        spine: (x, y, z) uint8 on that grid, or None.
        stats: see `predict_classes`.
        shifts: 1 or more; `shifts`^3 times as many windows are classified. A batch holds windows of
            one grid only.
        offsets: see `predict_classes`.
        **how: further arguments of `predict_classes`.

    Returns:
        The classes of every voxel of `image`.
    """
    x, y, z = image.shape
    grids = moved_grids((x, y, z), shifts)
    if len(grids) == 1:
        return predict_classes(predict, image, spine, stats, offsets=offsets, **how)
    first, second, share = (np.empty(image.shape, np.uint8) for _ in range(3))
    ways = np.empty((*image.shape, 3), np.float16) if offsets else None
    classes = Classes(first, second, share, ways)
    for grid in grids:
        mask = None if spine is None else spine[grid]
        parts = predict_classes(predict, image[grid], mask, stats, offsets=offsets, **how)
        for whole, part in zip(classes, parts, strict=True):
            if whole is not None:
                whole[grid] = part
    return classes


def predict_classes(
    predict: CubePredictor,
    image: np.ndarray,
    spine: np.ndarray | None,
    stats: np.ndarray,
    *,
    window: Size,
    overlap: float,
    batch_size: int,
    fill: int,
    offsets: bool = False,
    on_device: bool | None = None,
    advance: Callable[[int], object] = lambda windows: None,
) -> Classes:
    """Return the most probable classes of every voxel.

    All calls of `predict` have the same shape, so that it is compiled once. Scans smaller than the
    window are padded around their centre.

    Args:
        predict: the network.
        image: (x, y, z) int16 HU, preprocessed.
        spine: (x, y, z) uint8, the mask of an earlier network, or None. Windows without a voxel of
            it are background.
        stats: (4,) of the scan, if the normalisation needs them.
        window: (x, y, z) voxels, the size that the network was trained with.
        overlap: least share of a window that the next window covers again, in [0, 1).
        batch_size: windows in one call.
        fill: HU beyond the borders of the scan.
        offsets: whether the last three channels are offsets.
        on_device: whether the windows are joined on the device of the network; None asks
            `blends_on_device`.
        advance: called with the number of windows done since the last call.

    Returns:
        The classes of every voxel of `image`; background with share 255 where no window was.
    """
    shape = image.shape
    padding = _padding(shape, window)
    image = np.pad(image, padding, constant_values=fill)
    mask = None if spine is None else np.pad(spine, padding)
    x, y, z = image.shape
    first, second, share = (np.full((x, y, z), value, np.uint8) for value in (0, 0, 255))
    ways = np.zeros((x, y, z, 3), np.float16) if offsets else None
    classes = Classes(first, second, share, ways)

    def calls() -> Iterator[tuple[int, list[Size], Any]]:
        """Yield the first slice of each batch's layer, its corners, and its probabilities."""
        for start, corners in layers((x, y, z), window, overlap, mask):
            for at in range(0, len(corners), batch_size):
                chunk = corners[at : at + batch_size]
                # A short last batch is filled up with its first window.
                full = chunk + chunk[:1] * (batch_size - len(chunk))
                cubes = np.stack([image[_box(c, window)] for c in full])
                masks = (
                    np.zeros(cubes.shape, np.uint8)
                    if mask is None
                    else np.stack([mask[_box(c, window)] for c in full])
                )
                yield start, chunk, predict(cubes, masks, stats)

    sums: _HostSums | _DeviceSums | None = None
    base = 0
    decided: tuple[int, int, Classes] | None = None

    def write() -> None:
        """Write what was decided; the device has decided it before the calls that followed."""
        nonlocal decided
        if decided is not None:
            low, slices, found = decided
            for whole, part in zip(classes, found, strict=True):
                if whole is not None:
                    whole[:, :, low : low + slices] = fetch(part)[:x, :y, :slices]
        decided = None

    for start, chunk, found in behind(calls()):
        if sums is None:
            sums = _sums((x, y), window, found, offsets=offsets, on_device=on_device)
        write()
        if start > base:
            # Beyond a window there is nothing to decide, if layers were left out.
            slices = min(start - base, window[2])
            decided = base, slices, sums.settle(slices)
            base = start
        sums.add(chunk, found)
        del found  # before the next call makes room for its own
        advance(len(chunk))
    write()
    if sums is not None:
        slices = min(z - base, window[2])
        decided = base, slices, sums.settle(slices)
        write()
    inner = tuple(slice(b, b + n) for (b, _), n in zip(padding, shape, strict=True))
    first, second, share = (np.ascontiguousarray(part[inner]) for part in (first, second, share))
    return Classes(first, second, share, None if ways is None else ways[inner])


def blends_on_device(platform: str, needed: int, free: int | None) -> bool:
    """Return whether the sums of windows are held where the network computes them.

    On a CPU both places are the same memory, and NumPy needs less of it.

    Args:
        platform: "cpu", "gpu" or "tpu".
        needed: bytes of the sums and of what is computed from them.
        free: bytes that the device has left; None if it does not say. Half of them are for the
            network.
    """
    return platform != "cpu" and (free is None or 2 * needed <= free)


def _sums(
    sides: tuple[int, int], window: Size, found: Any, *, offsets: bool, on_device: bool | None
) -> "_HostSums | _DeviceSums":
    """Return empty sums for one layer of windows.

    Args:
        sides: voxels of the scan along x and y.
        window: voxels of a window.
        found: the first call's probabilities (b, x, y, z, c).
        offsets: see `predict_classes`.
        on_device: see `predict_classes`.
    """
    if on_device is None:
        on_device = False
        device = first_device(found)
        if device is not None:
            memory = device.memory_stats() or {}
            limit, used = memory.get("bytes_limit"), memory.get("bytes_in_use", 0)
            voxels = np.prod([rounded_up(side) for side in sides]) * window[2]
            # The sums before and after a layer is decided, and the best of them.
            needed = 3 * 4 * int(voxels) * found.shape[-1]
            free = None if limit is None else limit - used
            on_device = blends_on_device(device.platform, needed, free)
    weights = gaussian_weights(window)[..., None]
    return (_DeviceSums if on_device else _HostSums)(sides, weights, found, offsets)


class _HostSums:
    """Weighted sums over windows of one layer, (x, y, window, c) float32, in NumPy."""

    def __init__(
        self, sides: tuple[int, int], weights: np.ndarray, found: Any, offsets: bool
    ) -> None:
        self._weights, self._offsets = weights, offsets
        self._sums = np.zeros((*sides, weights.shape[2], found.shape[-1]), np.float32)

    def add(self, corners: Sequence[Size], found: Any) -> None:
        """Add windows at their corners."""
        width, height, *_ = self._weights.shape
        for (x, y, _), probability in zip(corners, fetch(found), strict=False):
            rows = self._sums[x : x + width, y : y + height]
            for row, weights, part in zip(rows, self._weights, probability, strict=True):
                row += weights * part  # row by row, to keep the copies small

    def settle(self, slices: int) -> Classes:
        """Decide the lowest slices, and move the others down."""
        width, height, depth, _ = self._sums.shape
        shape = width, height, slices
        ways = np.empty((*shape, 3), np.float16) if self._offsets else None
        first, second, share = (np.empty(shape, np.uint8) for _ in range(3))
        classes = Classes(first, second, share, ways)
        for i, row in enumerate(self._sums):  # row by row, to keep the copies small
            parts = _decided(row[:, :slices], np, offsets=self._offsets)
            for whole, part in zip(classes, parts, strict=True):
                if whole is not None:
                    whole[i] = part
            row[:, : depth - slices] = row[:, slices:].copy()
            row[:, depth - slices :] = 0
        return classes


class _DeviceSums:
    """The same sums on the first device that the network computes on; only classes leave it."""

    def __init__(
        self, sides: tuple[int, int], weights: np.ndarray, found: Any, offsets: bool
    ) -> None:
        self._device = first_device(found)
        self._weights, self._offsets = jax.device_put(weights, self._device), offsets
        rounded = map(rounded_up, sides)
        zeros = jnp.zeros((*rounded, weights.shape[2], found.shape[-1]), jnp.float32)
        self._sums = jax.device_put(zeros, self._device)

    def add(self, corners: Sequence[Size], found: Any) -> None:
        """Add windows at their corners, and wait until they were computed.

        The wait keeps the host from filling the device with the probabilities of later calls.
        """
        at = np.zeros((len(found), 2), np.int32)
        at[: len(corners)] = np.array(corners)[:, :2]
        here = jax.device_put(found, self._device)
        self._sums = add_windows(self._sums, self._weights, here, at, len(corners))
        jax.block_until_ready(found)

    def settle(self, slices: int) -> Classes:
        """Decide the lowest slices, and move the others down; without waiting."""
        self._sums, classes = _settled(self._sums, slices, offsets=self._offsets)
        return classes


@partial(jax.jit, donate_argnums=0, static_argnames="offsets")
def _settled(sums: jax.Array, slices: jax.Array, *, offsets: bool) -> tuple[jax.Array, Classes]:
    """Return the sums moved down by `slices`, and the classes of all slices."""
    depth = sums.shape[2]
    there = jnp.arange(depth)[:, None] < depth - slices
    return jnp.where(there, jnp.roll(sums, -slices, 2), 0), _decided(sums, jnp, offsets=offsets)


def _decided(sums: Any, xp: Any, *, offsets: bool) -> Classes:
    """Return the classes for weighted sums over windows (..., c), all 0 where no window was.

    `xp` is numpy or jax.numpy, like `sums`.
    """
    if not offsets:
        return _two_best(sums, xp)
    # The probabilities of a voxel add up to 1, so their weighted sums add up to the weight.
    weight = sums[..., :-3].sum(-1, keepdims=True)
    mean = sums[..., -3:] / xp.where(weight > 0, weight, 1)
    return _two_best(sums[..., :-3], xp)._replace(offsets_mm=(10.0 * mean).astype(np.float16))


def _two_best(sums: Any, xp: Any) -> Classes:
    """Return the two best classes for weights (..., c), all 0 where no window was."""
    first = sums.argmax(-1)
    best = xp.take_along_axis(sums, first[..., None], -1)[..., 0]
    if xp is np:  # faster than a comparison
        rest = sums.copy()
        np.put_along_axis(rest, first[..., None], -1.0, -1)
    else:
        rest = jnp.where(jnp.arange(sums.shape[-1]) == first[..., None], -1.0, sums)
    second = rest.argmax(-1)
    total = best + xp.maximum(rest.max(-1), 0)
    share = xp.where(total > 0, best / xp.where(total > 0, total, 1), 1)
    rounded = xp.round(255.0 * share).astype(np.uint8)
    return Classes(first.astype(np.uint8), second.astype(np.uint8), rounded)


def make_cube_predictor(
    probability: Callable[[Mapping[str, Any], jax.Array, jax.Array, jax.Array], jax.Array],
    variables: Mapping[str, Any],
    *,
    batch_size: int,
) -> tuple[CubePredictor, int]:
    """Compile a network for windows of cubes, each batch divided among all local devices.

    Args:
        probability: (variables, image (b, x, y, z) HU, spine (b, x, y, z), stats (b, 4)) ->
            (b, x, y, z, c).
        variables: of the network.
        batch_size: windows in a call, rounded up to a multiple of the number of devices.

    Returns:
        The predictor, and the number of windows in a call.
    """
    compiled, rows = over_local_devices(probability, variables, batch_size)

    def predict(image: np.ndarray, spine: np.ndarray, stats: np.ndarray) -> jax.Array:
        return compiled(image, spine, np.tile(stats, (rows, 1)))

    return predict, rows
