"""Affines, orientations and grids: places of voxels, and interpolation between grids.

The first three array axes are spatial. An affine (4, 4) maps voxel indices to world millimetres
(RAS+, see `volume.py`). Whole indices are voxel *centres*, so that a grid of n voxels covers the
indices -0.5 to n - 0.5.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from spinejax.errors import InputError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From the world of DICOM, ITK and the phantoms to that of NIfTI, which is ours."""

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
"""The 48 codes: six orders of the axes times eight combinations of directions."""

# An affine turned by exactly 45 degrees lies between two codes. The world is therefore turned by
# this much before a code is chosen. The choice then depends on the geometry alone, whatever the
# order and direction of the array axes, so that reorienting there and back is always exact.
_TIE_BREAK_RAD = 1e-6
# Axes whose cosine is below it are at right angles: affines are rounded to float32.
_RIGHT_ANGLE = 1e-5
# Half a degree. A smaller shear does not matter to a network.
_STRAIGHT = math.sin(math.radians(0.5))
# Slack in voxels for points at the border of a grid, because affines are rounded.
_INSIDE_SLACK = 1e-4
_SLAB_VOXELS = 2**21


def spacing_mm(affine: np.ndarray) -> tuple[float, float, float]:
    """Return the voxel size in mm along each array axis: the lengths of the affine's columns."""
    x, y, z = np.sqrt((np.asarray(affine, np.float64)[:3, :3] ** 2).sum(axis=0))
    return float(x), float(y), float(z)


def steps_mm(affine: np.ndarray) -> np.ndarray:
    """Return the steps of one voxel along each array axis in mm, as rows, in a turned world.

    Voxels at the indices `i` and `j` are `norm((i - j) @ steps_mm(affine))` apart, also on a grid
    whose axes are not at right angles (a gantry tilt shears it). For axes at right angles, the
    result is the diagonal matrix of `spacing_mm`.

    Returns:
        (3, 3) float64, lower triangular, with positive diagonal.
    """
    columns = np.asarray(affine, np.float64)[:3, :3]
    lengths = np.asarray(spacing_mm(affine))
    products = columns.T @ columns
    cosines = products / np.outer(lengths, lengths)
    if np.abs(cosines - np.diag(np.diag(cosines))).max() < _RIGHT_ANGLE:
        return np.diag(lengths)
    return np.linalg.cholesky(products)


def straight_grid(
    shape: Sequence[int], affine: np.ndarray
) -> tuple[tuple[int, int, int], np.ndarray] | None:
    """Return a grid with axes at right angles that covers a sheared one; None if it is not sheared.

    A gantry tilt shears a grid. Angles within half a degree of 90 degrees count as right. The last
    axis keeps its direction. The voxels are as large as before, but at most 1 mm, or the smallest
    side, along each axis: a turned grid of coarse slices would lose detail.

    Args:
        shape: voxels along each axis of the given grid.
        affine: (4, 4) of the given grid.

    Returns:
        Voxels along each axis, and the affine (4, 4).
    """
    columns = np.asarray(affine, np.float64)[:3, :3]
    sides = np.asarray(spacing_mm(affine))
    cosines = (columns / sides).T @ (columns / sides)
    if np.abs(cosines - np.diag(np.diag(cosines))).max() < _STRAIGHT:
        return None
    # Gram-Schmidt from the last axis to the first, with the signs of the given axes.
    directions, upper = np.linalg.qr((columns / sides)[:, ::-1])
    directions = (directions * np.sign(np.diag(upper)))[:, ::-1]
    sides = np.minimum(sides, max(1.0, sides.min()))
    corners = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in shape[:3]))))
    reach = voxel_to_world(affine, corners) @ directions
    low, high = reach.min(axis=0), reach.max(axis=0)
    x, y, z = (int(n) for n in np.ceil((high - low) / sides - 1e-6))
    straight = np.eye(4)
    straight[:3, :3] = directions * sides
    straight[:3, 3] = directions @ (low + sides / 2)
    return (x, y, z), straight


def voxel_ml(affine: np.ndarray) -> float:
    """Return the volume of a voxel in ml."""
    return float(np.prod(np.diag(steps_mm(affine)))) / 1000


def as_affine(affine: ArrayLike, what: str) -> np.ndarray:
    """Return an affine as a new (4, 4) float64 array.

    Args:
        affine: numbers, which may be a list.
        what: the name of its scan in errors.

    Raises:
        InputError: it is not 4 x 4 finite real numbers, or cannot be inverted.
    """
    try:
        if np.iscomplexobj(affine):
            raise TypeError
        found = np.array(affine, np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"{what}: the affine is not 4 x 4 real numbers; give that of the scan, from voxel "
            "indices to mm"
        ) from None
    if found.shape != (4, 4) or not np.isfinite(found).all() or not np.linalg.det(found[:3, :3]):
        raise InputError(
            f"{what}: the affine is unusable ({affine_problem(found)}); give that of the scan, "
            "from voxel indices to mm"
        )
    return found


def affine_problem(affine: np.ndarray) -> str:
    """Return why an affine is not usable (`is_usable_affine`), for messages."""
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4):
        return f"of shape {affine.shape}, not 4 x 4"
    if not np.isfinite(affine).all():
        return "with NaN or infinite numbers"
    sides = spacing_mm(affine)
    if min(sides) < 1e-3 or max(sides) > 1e3:
        return f"voxels of {' x '.join(f'{side:.3g}' for side in sides)} mm"
    if np.abs(affine[:3, 3]).max() > 1e7:
        return "an origin more than 10 km away"
    return "flat: two axes have one direction, or its last row is not 0 0 0 1"


def is_usable_affine(affine: np.ndarray) -> bool:
    """Return whether an affine is (4, 4), finite, invertible, and has voxels of 1 um to 1 m.

    It counts as invertible if its three directions span at least 1e-4 of the volume of a box with
    the same sides. (With a gantry tilt of 60 degrees they span 0.5.)
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
    """Return the world axis and the sign nearest to the direction of each array axis.

    The directions are made orthogonal (by the polar factor of the direction matrix, which removes
    shear). Then the array axis with the largest cosine chooses its world axis first. Apart from
    ties, these are the rules of `nibabel.aff2axcodes`.
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
    """Return the direction in which each array index grows, e.g. "LPS"; oblique axes are rounded.

    Raises:
        ValueError: the affine has a zero or non-finite column.
    """
    axes, signs = _world_axes(affine)
    return "".join(_LETTERS[a][int(s > 0)] for a, s in zip(axes, signs, strict=True))


def reorient(array: np.ndarray, affine: np.ndarray, to: str) -> tuple[np.ndarray, np.ndarray]:
    """Flip and transpose the first three axes so that the indices grow as `to` says.

    Every voxel keeps its place in the world; nothing is interpolated.

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
    """Return the world points (..., 3) in mm of voxel indices (..., 3)."""
    affine = np.asarray(affine, np.float64)
    return np.asarray(points, np.float64) @ affine[:3, :3].T + affine[:3, 3]


def world_to_voxel(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the fractional voxel indices (..., 3) of world points (..., 3) in mm."""
    return voxel_to_world(np.linalg.inv(np.asarray(affine, np.float64)), points)


def max_corner_distance_mm(
    affine_a: np.ndarray, affine_b: np.ndarray, shape: Sequence[int]
) -> float:
    """Return the largest distance in mm between the places that two affines give a voxel.

    The displacement is affine in the index, so that it is largest at a corner of the grid.
    """
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape[:3]))))
    shift = voxel_to_world(affine_a, corners) - voxel_to_world(affine_b, corners)
    return float(np.sqrt((shift**2).sum(axis=-1)).max())


def overlap_fraction(
    shape_a: Sequence[int], affine_a: np.ndarray, shape_b: Sequence[int], affine_b: np.ndarray
) -> float:
    """Return the share of grid a that lies inside grid b, from 32 x 32 x 32 points of a."""
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
    """Interpolate an array at the voxel centres of another grid.

    Points outside the input grid, more than half a voxel beyond the outermost centres, get `fill`.
    Within that half voxel the outermost value holds. The function works slab by slab along the last
    axis and needs some 100 MB beside input and output.

    Args:
        array: (x, y, z), on the grid of `affine`.
        affine: (4, 4) of `array`.
        shape_out: the three sides of the result.
        affine_out: (4, 4) of the result.
        order: 0 for nearest neighbour (labels), 1 for linear.
        fill: value outside the input grid.

    Returns:
        An array of `shape_out`, of the input's dtype for order 0, float32 for order 1.

    Raises:
        ValueError: another `order`, or the array is not 3D.
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
    """Return a matrix whose nearly whole entries are rounded.

    Grids that differ by flips and whole voxels then map centres exactly to centres.
    """
    whole = np.round(matrix)
    return np.where(np.abs(matrix - whole) < 1e-9 * np.maximum(1, np.abs(whole)), whole, matrix)


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Return the smallest box around everything above 0; None if there is nothing."""
    box = [slice(0, n) for n in mask.shape]
    for axis in range(mask.ndim):
        part = mask[tuple(box)]  # what the earlier axes leave
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hits = np.flatnonzero((part if part.dtype.kind in "bu" else part > 0).any(axis=others))
        if hits.size == 0:
            return None
        box[axis] = slice(int(hits[0]), int(hits[-1]) + 1)
    return tuple(box)


def axes_by_stride(array: np.ndarray) -> list[int]:
    """Return the axes by descending stride, which is the fastest order to visit an array."""
    return sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))


def label_boxes(array: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """Return label -> the smallest box around it, for each label above 0, in ascending order.

    `ndimage.find_objects` alone visits the background, too, and in an order that is up to ten times
    slower for an array as NIfTI stores it.

    Args:
        array: (x, y, z) bool or integers.
    """
    whole = bounding_box(array)
    if whole is None:
        return {}
    part = array[whole]
    part = part.view(np.uint8) if part.dtype == bool else part
    order = axes_by_stride(part)
    found = {}
    for label, box in enumerate(ndimage.find_objects(part.transpose(order)), start=1):
        if box is not None:
            sides = dict(zip(order, box, strict=True))
            found[label] = tuple(
                slice(outer.start + sides[axis].start, outer.start + sides[axis].stop)
                for axis, outer in enumerate(whole)
            )
    return found


def affine_of_part(affine: np.ndarray, box: Sequence[slice]) -> np.ndarray:
    """Return the affine (4, 4) of a box of a grid, whose slices have starts."""
    moved = np.array(affine, np.float64)
    moved[:3, 3] = voxel_to_world(affine, np.array([side.start for side in box]))
    return moved


def box_on_grid(
    box: Sequence[slice], affine: np.ndarray, shape_out: Sequence[int], affine_out: np.ndarray
) -> tuple[slice, ...] | None:
    """Return the box of another grid whose voxel centres may lie in a box of a grid.

    Args:
        box: three slices with start and stop.
        affine: (4, 4) of the grid of `box`.
        shape_out: the three sides of the other grid.
        affine_out: (4, 4) of the other grid.

    Returns:
        Three slices that hold every voxel whose centre lies in a voxel of `box`, and a few more;
        None if they lie beyond the other grid.
    """
    corners = np.array(list(itertools.product(*((s.start - 0.5, s.stop - 0.5) for s in box))))
    places = world_to_voxel(affine_out, voxel_to_world(affine, corners))
    low = np.maximum(np.floor(places.min(axis=0)).astype(int), 0).tolist()
    high = np.minimum(np.ceil(places.max(axis=0)).astype(int) + 1, shape_out).tolist()
    if any(start >= stop for start, stop in zip(low, high, strict=True)):
        return None
    return tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Return the first indices of evenly spread windows that cover 0 to `length`.

    Args:
        length: voxels along the axis.
        window: voxels in a window; a window of at least `length` voxels starts at 0 alone.
        overlap: least share of a window that the next window covers again, in [0, 1).

    Returns:
        Increasing starts; the last window ends at `length`.

    Raises:
        ValueError: an argument is out of range.
    """
    if length < 1 or window < 1:
        raise ValueError(f"`length` (={length}) and `window` (={window}) must be positive")
    if not 0 <= overlap < 1:
        raise ValueError(f"`overlap` (={overlap}) must be at least 0 and below 1")
    if window >= length:
        return [0]
    # Without the epsilon, 10 * (1 - 0.9) would become 0.
    step = max(1, math.floor(window * (1 - overlap) + 1e-9))
    last = length - window
    count = math.ceil(last / step) + 1
    return [last * index // (count - 1) for index in range(count)]


def centres_of(native: int, wanted: int) -> np.ndarray:
    """Return the centres of `wanted` pixels as indices of `native` pixels over the same extent."""
    return (np.arange(wanted) + 0.5) * (native / wanted) - 0.5


def nearest(native: int, wanted: int) -> np.ndarray:
    """Return the index of the `native` pixel that contains the centre of each `wanted` pixel."""
    return np.clip(np.floor(centres_of(native, wanted) + 0.5), 0, native - 1).astype(np.intp)


def linear(values: np.ndarray, axis: int, wanted: int) -> np.ndarray:
    """Interpolate float32 `values` linearly along `axis` to `wanted` pixels of the same extent."""
    native = values.shape[axis]
    if native == wanted:
        return values
    return at(values, axis, np.clip(centres_of(native, wanted), 0, native - 1))


def at(values: np.ndarray, axis: int, centres: np.ndarray) -> np.ndarray:
    """Interpolate float32 `values` linearly along `axis` at the indices `centres` within them."""
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
