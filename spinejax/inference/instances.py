"""From the label map of a network to instances: one for each vertebra, from head to foot.

A network may give one vertebra two labels or two vertebrae one label, and leaves specks and holes.
Connected pieces of one class are split where they hold two vertebrae, and fragments are joined to
their vertebra (`pieces`). The rest goes to the instance around it or is removed. If the network
predicts the offset of each voxel to the centre of its vertebra, the offsets alone separate the
vertebrae (`votes`).

Instances are sorted by their places along a smooth curve through the spine, because heights would
be wrong in a tilted stretch (kyphosis, lordosis, scoliosis). Then neighbours are exchanged as long
as that shortens the path through all centroids. The curve is a function of height, so a spine that
turns back on itself is sorted wrongly.

Beside input and result, each voxel of the box around the foreground takes about nine bytes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from spinejax.errors import InputError
from spinejax.geometry import bounding_box
from spinejax.inference import pieces, votes
from spinejax.inference.masks import remove_small_components
from spinejax.inference.pieces import NUM_LABELS, Axis

_MAX_INSTANCES = 255

_ABSORB_MM = 6.0

_BESIDE = 0.35
"""Two instances of one height are closer together along the spine than this share of a step."""


class Instance(NamedTuple):
    """A vertebra of a scan that has no name yet, or a structure that looks like one."""

    centroid_mm: np.ndarray
    """(3,) centre of mass, voxel index x spacing."""
    volume_ml: float
    counts: np.ndarray
    """(26,) its voxels of each class, by contiguous class - 1."""
    cut_head: bool
    """Whether the head end of the scan cuts it."""
    cut_foot: bool
    """Whether the foot end of the scan cuts it."""


@dataclass(frozen=True, eq=False)
class Instances:
    """Instances from head to foot."""

    array: np.ndarray
    """(x, y, z) uint8: 0, or 1 + the instance's place in `items`."""
    items: tuple[Instance, ...]
    spacing_mm: tuple[float, float, float]
    room_mm: tuple[float, float]
    """Height that the scan shows above the first and below the last instance, in mm."""


def find_instances(
    classes: np.ndarray,
    spacing_mm: tuple[float, float, float],
    *,
    spine: np.ndarray | None = None,
    offsets_mm: np.ndarray | None = None,
    beyond_mm: tuple[float, float] = (0.0, 0.0),
    speck_ml: float = 0.3,
    min_ml: float = 3.0,
) -> Instances:
    """Find the vertebrae of a label map.

    An end of the scan cuts a vertebra that has voxels in the first or last slice along z.

    Args:
        classes: (x, y, z) integer contiguous classes, 0 to 26, canonical: z grows towards the head.
        spacing_mm: voxel size along each axis.
        spine: (x, y, z) bool, the mask of an earlier network. Classes outside it are dropped. Its
            voxels without a class go to an instance that is at most 6 mm away.
        offsets_mm: (x, y, z, 3) from each voxel to the centre of its vertebra, if the network gives
            it.
        beyond_mm: height that the scan shows above and below the map, if the map is a part of the
            scan. Such an end of the map cuts no vertebra.
        speck_ml: smaller connected components are specks and dropped.
        min_ml: an instance that is smaller than this or than a fifth of the usual volume of its
            class is removed, unless an end cuts it and it lies beyond the other vertebrae.

    Returns:
        The instances on the grid of `classes`.

    Raises:
        InputError: an argument has another shape or range.
    """
    spacing = _checked(classes, spacing_mm, spine)
    if offsets_mm is not None and offsets_mm.shape != (*classes.shape, 3):
        raise InputError(
            f"the offsets have shape {offsets_mm.shape}, the label map {classes.shape}; give three "
            "for each voxel"
        )
    array = np.zeros(classes.shape, np.uint8)
    empty = Instances(array, (), spacing_mm, (0.0, 0.0))
    clean, box = _cleaned(classes, spine, spacing_mm, speck_ml)
    if clean is None:
        return empty
    if offsets_mm is None:
        numbers, found = pieces.find_pieces(clean, spacing, speck_ml)
    else:
        numbers, found = votes.vote_pieces(clean, offsets_mm[box], spacing, speck_ml)
    if not found:
        return empty
    steps = pieces.coarse_steps(spacing)
    axis = Axis(numbers[:: steps[0], :: steps[1], :: steps[2]] > 0, spacing * steps)
    heights = (box[2].start, classes.shape[2] - box[2].stop)
    ends = (heights[1] == 0 and beyond_mm[0] <= 0, heights[0] == 0 and beyond_mm[1] <= 0)
    if offsets_mm is None:
        found = pieces.split_pieces(numbers, found, spacing, axis)
        groups = pieces.join_pieces(numbers, found, spacing, axis, ends)
    else:
        groups = pieces.groups_of(numbers, found, spacing, axis, ends)
    groups = _without_fragments(groups, min_ml)[:_MAX_INSTANCES]
    if not groups:
        return empty
    order = _ordered(np.stack([g.centroid for g in groups]), axis)
    to = np.zeros(len(found) + 1, np.uint8)
    for place, index in enumerate(order, start=1):
        to[[member + 1 for member in groups[index].members]] = place
    inner = array[box]
    inner[...] = to[numbers]
    del numbers
    _absorb(inner, clean if spine is None else (clean > 0) | (spine[box] > 0), spacing)
    _fill(inner, len(order))
    items, lowest, highest = _measured(inner, clean, spacing, len(order), box, ends)
    room = (
        (classes.shape[2] - 1 - highest) * spacing[2] + beyond_mm[0],
        lowest * spacing[2] + beyond_mm[1],
    )
    return Instances(array, items, spacing_mm, room)


def _checked(classes: np.ndarray, spacing_mm: object, spine: np.ndarray | None) -> np.ndarray:
    """Return the spacing as an array; raise InputError for arguments of another shape or range."""
    if classes.ndim != 3 or classes.dtype.kind not in "ui" or 0 in classes.shape:
        raise InputError(
            f"a label map is (x, y, z) integers, not {classes.dtype} of shape {classes.shape}; "
            "give the contiguous classes of one scan"
        )
    lowest, highest = int(classes.min()), int(classes.max())
    if lowest < 0 or highest > NUM_LABELS:
        raise InputError(
            f"the label map holds {lowest} to {highest}; contiguous classes are 0 to {NUM_LABELS}, "
            "labels.to_contiguous makes them from VerSe ids"
        )
    spacing = np.asarray(spacing_mm, np.float64)
    if spacing.shape != (3,) or not np.isfinite(spacing).all() or spacing.min() <= 0:
        raise InputError(f"spacing_mm = {spacing_mm} must be three positive numbers, in mm")
    if spine is not None and spine.shape != classes.shape:
        raise InputError(
            f"the spine mask has shape {spine.shape}, the label map {classes.shape}; both must be "
            "on the same grid"
        )
    return spacing


def _cleaned(
    classes: np.ndarray,
    spine: np.ndarray | None,
    spacing_mm: tuple[float, float, float],
    speck_ml: float,
) -> tuple[np.ndarray | None, tuple[slice, ...]]:
    """Return the classes without specks as uint8, cut to their box, and the box; None if empty."""
    box = bounding_box(classes)
    if box is None:
        return None, ()
    mask = classes[box] > 0
    if spine is not None:
        mask &= spine[box] > 0
    # Distant specks would make every later box as large as the scan.
    mask = remove_small_components(mask, spacing_mm=spacing_mm, min_ml=speck_ml)
    inner = bounding_box(mask)
    if inner is None:
        return None, ()
    outer = tuple(
        slice(b.start + i.start, b.start + i.stop) for b, i in zip(box, inner, strict=True)
    )
    clean = classes[outer].astype(np.uint8)
    clean *= mask[inner]
    return clean, outer


def _without_fragments(groups: list[pieces.Group], min_ml: float) -> list[pieces.Group]:
    """Return the groups that are vertebrae, from the largest to the smallest.

    An end of the scan may leave a sliver of a vertebra. It may also cut the tip of a process off,
    which then lies beside a larger vertebra, not above or below it.
    """
    kept: list[pieces.Group] = []
    for group in sorted(groups, key=lambda g: -g.volume):
        small = group.volume < max(min_ml, pieces.FRAGMENT * group.usual_ml)
        apart = _BESIDE * pieces.STEP_MM[group.label]
        beside = any(abs(group.along - other.along) < apart for other in kept)
        if not small or (group.cut and not beside):
            kept.append(group)
    return kept


def _ordered(centroids: np.ndarray, axis: Axis) -> list[int]:
    """Return the order of the rows of `centroids` (n, 3) in mm from head to foot."""
    order = np.argsort(-axis.along(centroids), kind="stable").tolist()

    def length(path: list[int]) -> float:
        return float(np.linalg.norm(np.diff(centroids[path], axis=0), axis=1).sum())

    for _ in order:
        before = list(order)
        for i in range(len(order) - 1):
            swapped = [*order[:i], order[i + 1], order[i], *order[i + 2 :]]
            # With two instances, and at the ends, only rounding makes one order shorter.
            if length(swapped) < length(order) - 1.0:
                order = swapped
        if order == before:
            break
    return order


def _absorb(array: np.ndarray, wanted: np.ndarray, spacing: np.ndarray) -> None:
    """Give voxels of `wanted` without an instance to the nearest one within 6 mm."""
    left = [i.astype(np.int32) for i in np.nonzero(wanted & (array == 0))]
    finest = spacing.min()
    for turn in range(1, int(_ABSORB_MM / finest) + 1):
        value = np.zeros(len(left[0]), np.uint8)
        for axis in range(3):
            # A coarser axis needs fewer steps for the same distance.
            far = finest / spacing[axis]
            if int(turn * far + 1e-6) == int((turn - 1) * far + 1e-6):
                continue
            for way in (-1, 1):
                beside = list(left)
                beside[axis] = np.clip(left[axis] + way, 0, array.shape[axis] - 1)
                value = np.where(value > 0, value, array[tuple(beside)])
        array[tuple(left)] = value
        left = [i[value == 0] for i in left]
        if not left[0].size:
            break


def _fill(array: np.ndarray, count: int) -> None:
    """Fill the cavities of the instances 1 to `count`."""
    for number, box in enumerate(ndimage.find_objects(array, count), start=1):
        if box is not None:
            own = array[box] == number
            array[box][ndimage.binary_fill_holes(own) & (array[box] == 0)] = number


def _measured(
    array: np.ndarray,
    clean: np.ndarray,
    spacing: np.ndarray,
    count: int,
    box: tuple[slice, ...],
    ends: tuple[bool, bool],
) -> tuple[tuple[Instance, ...], int, int]:
    """Return the instances of `array`, and the first and last slice of the scan with one."""
    voxel_ml = float(np.prod(spacing)) / 1000.0
    corner = np.array([s.start for s in box]) * spacing
    items = []
    low, high = array.shape[2], 0
    for number, place in enumerate(ndimage.find_objects(array, count), start=1):
        if place is None:  # cannot be: `_absorb` and `_fill` remove no voxels
            continue
        own = array[place] == number
        centroid, size = pieces.centre(own, place, spacing)
        counts = pieces.count_values(clean[place][own], NUM_LABELS + 1)[1:]
        z = place[2]
        head, foot = ends[0] and z.stop == array.shape[2], ends[1] and z.start == 0
        items.append(Instance(centroid + corner, size * voxel_ml, counts, head, foot))
        low, high = min(low, z.start), max(high, z.stop - 1)
    return tuple(items), low + box[2].start, high + box[2].start
