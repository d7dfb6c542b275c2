"""Affines, orientations and grids: where voxels are, and how to move between grids.

Arrays, axes and units are those of `volume.py`: the first three array axes are spatial, an affine
(4, 4) maps voxel indices to world millimetres (RAS+), and integer indices are voxel *centres*, so
that a grid of n voxels covers indices -0.5 to n - 0.5.

Linear and nearest interpolation between grids that are aligned by their outer edges.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
_WORLD = {
    letter: (axis, sign)
    for axis, pair in enumerate(_LETTERS)
    for sign, letter in zip((-1, 1), pair, strict=True)
}

ALL_ORIENTATIONS: tuple[str, ...] = tuple(
    "".join(letters)
    for axes in itertools.permutations(_LETTERS)
    for letters in itertools.product(*axes)
)
"""The 48 codes: six orders of the axes times eight choices of direction."""

# An affine turned by exactly 45 degrees lies between two codes. Turning the world by this much
# before choosing settles such ties by the geometry alone, whatever the order or the direction of
# the array axes, so that reorienting there and back is always exact.
_TIE_BREAK_RAD = 1e-6
# Slack in voxels when asking whether a point is inside a grid: rounding of affines, not geometry.
_INSIDE_SLACK = 1e-4
_SLAB_VOXELS = 2**21


def spacing_mm(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel size in mm along each array axis: the lengths of the affine's columns."""
    x, y, z = np.sqrt((np.asarray(affine, np.float64)[:3, :3] ** 2).sum(axis=0))
    return float(x), float(y), float(z)


def is_usable_affine(affine: np.ndarray) -> bool:
    """Whether `affine` is (4, 4), finite, invertible, and has voxels of 1 um to 1 m.

    Invertible means that the three directions span at least 1e-4 of the volume of a box with the
    same sides; a gantry tilt of 60 degrees still spans 0.5.
    """
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return False
    if not np.allclose(affine[3], (0, 0, 0, 1)) or np.abs(affine).max() > 1e7:
        return False
    spacing = spacing_mm(affine)
    if min(spacing) < 1e-3 or max(spacing) > 1e3:
        return False
    return bool(abs(np.linalg.det(affine[:3, :3])) >= 1e-4 * math.prod(spacing))


def _world_axes(affine: np.ndarray) -> tuple[list[int], list[int]]:
    """World axis and sign (+1 or -1) nearest to the direction of each array axis.

    The directions are first made orthogonal (the polar factor of the direction matrix, which
    removes shear); then the array axis with the largest cosine chooses its world axis first. These
    are the rules of `nibabel.aff2axcodes`, away from ties.
    """
    directions = np.asarray(affine, np.float64)[:3, :3] / np.asarray(spacing_mm(affine))
    if not np.isfinite(directions).all():
        raise ValueError("affine has a zero or non-finite column; check it with is_usable_affine")
    left, _, right = np.linalg.svd(directions)
    angle = np.asarray((0.3, 0.5, 1.0)) * _TIE_BREAK_RAD
    turn = np.eye(3) - np.cross(np.eye(3), angle)
    cosines = turn @ left @ right
    free = np.abs(cosines)
    axes, signs = [0, 0, 0], [1, 1, 1]
    for array_axis in np.argsort(-np.abs(cosines).max(axis=0), kind="stable"):
        world = int(np.argmax(free[:, array_axis]))
        axes[array_axis] = world
        signs[array_axis] = 1 if cosines[world, array_axis] > 0 else -1
        free[world] = -1
    return axes, signs


def orientation(affine: np.ndarray) -> str:
    """Direction in which each array index grows, e.g. "LPS"; oblique axes go to the nearest.

    Raises:
        ValueError: the affine has a zero or non-finite column.
    """
    axes, signs = _world_axes(affine)
    return "".join(_LETTERS[a][int(s > 0)] for a, s in zip(axes, signs, strict=True))


def reorient(array: np.ndarray, affine: np.ndarray, to: str) -> tuple[np.ndarray, np.ndarray]:
    """Flip and transpose the first three axes so that the indices grow as `to` says.

    Nothing is interpolated: every voxel keeps its place in the world.

    Args:
        array: (x, y, z, ...).
        affine: (4, 4) of `array`.
        to: one of `ALL_ORIENTATIONS`.

    Returns:
        A view of `array`, and the affine of that view, float64.

    Raises:
        ValueError: `to` is not an orientation code, or the array has fewer than three axes.
    """
    if to not in ALL_ORIENTATIONS:
        raise ValueError(f"`to` (={to!r}) must be three letters of R/L, A/P, S/I, e.g. 'LPS'")
    if array.ndim < 3:
        raise ValueError(f"`array` must have three spatial axes, has shape {array.shape}")
    axes, signs = _world_axes(affine)
    order = [axes.index(_WORLD[letter][0]) for letter in to]
    flips = [_WORLD[letter][1] != signs[axis] for letter, axis in zip(to, order, strict=True)]
    view = array.transpose(*order, *range(3, array.ndim))
    view = view[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    old_from_new = np.zeros((4, 4))
    old_from_new[3, 3] = 1
    for new_axis, (old_axis, flip) in enumerate(zip(order, flips, strict=True)):
        old_from_new[old_axis, new_axis] = -1 if flip else 1
        old_from_new[old_axis, 3] = array.shape[old_axis] - 1 if flip else 0
    return view, np.asarray(affine, np.float64) @ old_from_new


def voxel_to_world(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """World mm (..., 3) of the voxel indices `points` (..., 3)."""
    affine = np.asarray(affine, np.float64)
    return np.asarray(points, np.float64) @ affine[:3, :3].T + affine[:3, 3]


def world_to_voxel(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Voxel indices (..., 3), fractional, of the world points (..., 3) in mm."""
    return voxel_to_world(np.linalg.inv(np.asarray(affine, np.float64)), points)


def max_corner_distance_mm(
    affine_a: np.ndarray, affine_b: np.ndarray, shape: Sequence[int]
) -> float:
    """Largest distance in mm between where two affines put the same voxel of a grid of `shape`.

    The displacement is affine in the index, so that its largest value is at one of the corners.
    """
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape[:3]))))
    shift = voxel_to_world(affine_a, corners) - voxel_to_world(affine_b, corners)
    return float(np.sqrt((shift**2).sum(axis=-1)).max())


def overlap_fraction(
    shape_a: Sequence[int], affine_a: np.ndarray, shape_b: Sequence[int], affine_b: np.ndarray
) -> float:
    """Share of grid a (0 to 1) that lies inside grid b, from 32 x 32 x 32 sample points of a."""
    ticks = [(np.arange(32) + 0.5) / 32 * n - 0.5 for n in shape_a[:3]]
    points = np.stack(np.meshgrid(*ticks, indexing="ij"), axis=-1)
    inside = world_to_voxel(affine_b, voxel_to_world(affine_a, points))
    upper = np.asarray(shape_b[:3]) - 0.5
    slack = _INSIDE_SLACK
    return float(((inside >= -0.5 - slack) & (inside <= upper + slack)).all(axis=-1).mean())


def resample(
    array: np.ndarray,
    affine: np.ndarray,
    shape_out: Sequence[int],
    affine_out: np.ndarray,
    *,
    order: int,
    fill: float,
) -> np.ndarray:
    """Values of `array` at the voxel centres of another grid.

    A point outside the input grid, that is, more than half a voxel beyond the outermost centres,
    gets `fill`; within that half voxel the outermost value holds. Work goes slab by slab along the
    last axis: beside input and output some 100 MB are needed.

    Args:
        array: (x, y, z), on the grid of `affine`.
        affine: (4, 4) of `array`.
        shape_out: the three sides of the result.
        affine_out: (4, 4) of the result.
        order: 0 nearest neighbour (for labels), 1 linear.
        fill: value outside the input grid.

    Returns:
        (x, y, z) of `shape_out`: of the input's dtype for order 0, float32 for order 1.

    Raises:
        ValueError: another `order`, or an array that is not three-dimensional.
    """
    if order not in (0, 1):
        raise ValueError(f"`order` (={order}) must be 0 (nearest) or 1 (linear)")
    if array.ndim != 3 or len(shape_out) != 3:
        raise ValueError(f"shapes {array.shape} and {tuple(shape_out)} must have three axes each")
    nx, ny, nz = (int(n) for n in shape_out)
    matrix = np.linalg.inv(np.asarray(affine, np.float64)) @ np.asarray(affine_out, np.float64)
    matrix = _snap(matrix)
    dtype = array.dtype if order == 0 else np.dtype(np.float32)
    out = np.empty((nx, ny, nz), dtype, order="F")
    step = max(1, _SLAB_VOXELS // max(1, nx * ny))
    i, j = np.arange(nx)[:, None, None], np.arange(ny)[None, :, None]
    for start in range(0, nz, step):
        stop = min(nz, start + step)
        offset = matrix[:3, 3] + matrix[:3, 2] * start
        slab = ndimage.affine_transform(
            array,
            matrix[:3, :3],
            offset,
            output_shape=(nx, ny, stop - start),
            output=dtype,
            order=order,
            mode="nearest",
            prefilter=False,
        )
        k = np.arange(stop - start)[None, None, :]
        for axis, length in enumerate(array.shape):
            row = matrix[axis]
            at = row[0] * i + row[1] * j + (row[2] * k + offset[axis])
            slab[(at < -0.5 - _INSIDE_SLACK) | (at > length - 0.5 + _INSIDE_SLACK)] = fill
        out[:, :, start:stop] = slab
    return out


def _snap(matrix: np.ndarray) -> np.ndarray:
    """`matrix` with entries that are whole numbers but for rounding made whole.

    Grids that differ by flips and whole voxels then map centre to centre exactly.
    """
    whole = np.round(matrix)
    return np.where(np.abs(matrix - whole) < 1e-9 * np.maximum(1, np.abs(whole)), whole, matrix)


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]
) -> tuple[int, ...]:
    """Sides of the grid that covers the same extent at another spacing, at least 1 voxel each."""
    return tuple(
        max(1, round(n * old / new))
        for n, old, new in zip(shape, spacing_mm, new_spacing_mm, strict=True)
    )


def resampled_affine(
    affine: np.ndarray, shape: Sequence[int], new_spacing_mm: Sequence[float]
) -> np.ndarray:
    """Affine of the grid of `resampled_shape`: exactly the new spacing, the same centre."""
    affine = np.asarray(affine, np.float64)
    spacing = spacing_mm(affine)
    new_shape = resampled_shape(shape[:3], spacing, new_spacing_mm)
    out = affine.copy()
    out[:3, :3] *= np.asarray(new_spacing_mm, np.float64) / np.asarray(spacing)
    centre = voxel_to_world(affine, (np.asarray(shape[:3]) - 1) / 2)
    out[:3, 3] = centre - out[:3, :3] @ ((np.asarray(new_shape) - 1) / 2)
    return out


def crop_or_pad(
    array: np.ndarray,
    shape: Sequence[int],
    fill: float,
    center: Sequence[float] | None = None,
) -> np.ndarray:
    """A window of `shape` out of `array`, with `fill` where the window leaves the array.

    Args:
        array: any number of axes.
        shape: sides of the result, one per axis of `array`.
        fill: value outside the array.
        center: index of the voxel at `side // 2` of the result; None puts the window in the
            middle, so that padding and then cropping back to the old shape gives the old array.

    Returns:
        A view of `array` where the window lies inside it, else a new array.
    """
    if len(shape) != array.ndim or (center is not None and len(center) != array.ndim):
        raise ValueError(f"`shape` (={tuple(shape)}) and `center` need {array.ndim} entries each")
    starts = [
        (n - m) // 2 if n >= m else -((m - n) // 2) for n, m in zip(array.shape, shape, strict=True)
    ]
    if center is not None:
        starts = [math.floor(c + 0.5) - m // 2 for c, m in zip(center, shape, strict=True)]
    inner = tuple(
        slice(min(n, max(0, s)), min(n, max(0, s + m)))
        for s, m, n in zip(starts, shape, array.shape, strict=True)
    )
    if all(i.stop - i.start == m for i, m in zip(inner, shape, strict=True)):
        return array[inner]
    out = np.full(tuple(shape), fill, array.dtype)
    if all(i.stop > i.start for i in inner):
        place = tuple(slice(i.start - s, i.stop - s) for i, s in zip(inner, starts, strict=True))
        out[place] = array[inner]
    return out


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Smallest box that holds everything above 0; None if there is nothing.

    Works axis by axis: no index array of the size of the foreground is needed.
    """
    occupied = mask if mask.dtype.kind in "bu" else mask > 0
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hits = np.flatnonzero(occupied.any(axis=others))
        if hits.size == 0:
            return None
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return tuple(box)


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """First indices of windows that cover 0 to `length`, evenly spread.

    Args:
        length: voxels along the axis.
        window: voxels in a window; where it is not smaller than `length` the answer is [0].
        overlap: least share of a window (0 <= overlap < 1) that its successor covers again.

    Returns:
        Increasing starts; the last window ends at `length`.
    """
    if length < 1 or window < 1:
        raise ValueError(f"`length` (={length}) and `window` (={window}) must be positive")
    if not 0 <= overlap < 1:
        raise ValueError(f"`overlap` (={overlap}) must be at least 0 and below 1")
    if window >= length:
        return [0]
    # The epsilon keeps e.g. 10 * (1 - 0.9) at 1 rather than 0.
    step = max(1, math.floor(window * (1 - overlap) + 1e-9))
    last = length - window
    count = math.ceil(last / step) + 1
    return [last * index // (count - 1) for index in range(count)]


def centres_of(native: int, wanted: int) -> np.ndarray:
    """Input coordinates of output pixel centres, aligned by the outer edges."""
    return (np.arange(wanted) + 0.5) * (native / wanted) - 0.5


def nearest(native: int, wanted: int) -> np.ndarray:
    """Index of the input pixel that holds each output pixel's centre."""
    return np.clip(np.floor(centres_of(native, wanted) + 0.5), 0, native - 1).astype(np.intp)


def linear(values: np.ndarray, axis: int, wanted: int) -> np.ndarray:
    """Linear interpolation of float32 `values` along `axis` to `wanted` pixels."""
    native = values.shape[axis]
    if native == wanted:
        return values
    return at(values, axis, np.clip(centres_of(native, wanted), 0, native - 1))


def at(values: np.ndarray, axis: int, centres: np.ndarray) -> np.ndarray:
    """Linear interpolation of float32 `values` at positions within them along `axis`."""
    native = values.shape[axis]
    below = np.minimum(np.floor(centres).astype(np.intp), max(native - 2, 0))
    above = np.minimum(below + 1, native - 1)
    shape = [1] * values.ndim
    shape[axis] = len(centres)
    weight = (centres - below).astype(np.float32).reshape(shape)
    result = np.take(values, below, axis)
    result *= 1 - weight
    upper = np.take(values, above, axis)
    upper *= weight
    result += upper
    return result
