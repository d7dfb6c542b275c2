"""The class of every voxel of a scan: a network of cubes in overlapping windows.

Windows are weighted by a Gaussian, as in nnU-Net (Isensee et al., Nature Methods 2021), because a
voxel near the border of a window has little context. The probabilities of all classes are held for
one layer of windows only. Layers go from foot to head, and slices that no later layer reaches are
decided.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax
import numpy as np

from spinejax.geometry import window_starts
from spinejax.inference.devices import over_local_devices

Size = tuple[int, int, int]

CubePredictor = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(image (b, x, y, z) int16 HU preprocessed, spine (b, x, y, z) uint8 0 or 1, stats (4,) of the
scan) -> (b, x, y, z, c) float32 probabilities of the classes. With offsets, three more channels
hold the offset to the vertebra's centre in cm."""

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
        advance: called with the number of windows done since the last call.

    Returns:
        The classes of every voxel of `image`; background with share 255 where no window was.
    """
    shape = image.shape
    padding = _padding(shape, window)
    image = np.pad(image, padding, constant_values=fill)
    mask = None if spine is None else np.pad(spine, padding)
    weights = gaussian_weights(window)[..., None]
    x, y, z = image.shape
    first, second, share = (np.full((x, y, z), value, np.uint8) for value in (0, 0, 255))
    ways = np.zeros((x, y, z, 3), np.float16) if offsets else None
    classes = Classes(first, second, share, ways)
    sums: np.ndarray | None = None
    base = 0

    def settle(slices: int) -> None:
        """Decide the lowest slices of `sums` and move the others down."""
        nonlocal base
        if sums is not None:
            for i, row in enumerate(sums):  # row by row, to keep the copies small
                for whole, part in zip(classes, _decided(row[:, :slices], offsets), strict=True):
                    if whole is not None:
                        whole[i, :, base : base + slices] = part
                row[:, : window[2] - slices] = row[:, slices:].copy()
                row[:, window[2] - slices :] = 0
        base += slices

    for start, corners in layers((x, y, z), window, overlap, mask):
        settle(start - base)
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
            found = predict(cubes, masks, stats)
            if sums is None:
                sums = np.zeros((x, y, window[2], found.shape[-1]), np.float32)
            for corner, probability in zip(chunk, found, strict=False):
                sums[_box(corner, window)[:2]] += weights * probability
            advance(len(chunk))
    settle(z - base)
    inner = tuple(slice(b, b + n) for (b, _), n in zip(padding, shape, strict=True))
    first, second, share = (np.ascontiguousarray(part[inner]) for part in (first, second, share))
    return Classes(first, second, share, None if ways is None else ways[inner])


def _decided(sums: np.ndarray, offsets: bool) -> Classes:
    """Return the classes for weighted sums over windows (..., c), all 0 where no window was."""
    if not offsets:
        return _two_best(sums)
    # The probabilities of a voxel add up to 1, so their weighted sums add up to the weight.
    weight = sums[..., :-3].sum(-1, keepdims=True)
    mean = np.divide(sums[..., -3:], weight, out=np.zeros_like(sums[..., -3:]), where=weight > 0)
    return _two_best(sums[..., :-3])._replace(offsets_mm=(10.0 * mean).astype(np.float16))


def _two_best(sums: np.ndarray) -> Classes:
    """Return the two best classes for weights (..., c), all 0 where no window was."""
    rest = sums.copy()
    first = sums.argmax(-1)
    best = np.take_along_axis(sums, first[..., None], -1)[..., 0]
    np.put_along_axis(rest, first[..., None], -1.0, -1)
    second = rest.argmax(-1)
    total = best + np.maximum(rest.max(-1), 0.0)
    share = np.divide(best, total, out=np.ones_like(total), where=total > 0)
    rounded = np.round(255.0 * share).astype(np.uint8)
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

    def predict(image: np.ndarray, spine: np.ndarray, stats: np.ndarray) -> np.ndarray:
        return compiled(image, spine, np.tile(stats, (rows, 1)))

    return predict, rows
