"""Pieces of a label map, connected parts of one class, split and joined to single vertebrae.

A piece that holds several vertebrae is split. Sizes, places along the spine and areas of contact
decide which pieces are joined to one vertebra. Lengths and volumes are compared with the usual
values of the piece's class, which were measured on the masks of VerSe (verse004, verse014, GL003)
and of TotalSegmentator's example, and interpolated linearly between levels. Adults differ from them
by some 15 % in length, children by far more.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from spinejax import geometry, labels

NUM_LABELS = len(labels.VERSE_IDS)
"""Number of vertebra classes, 26. Arrays of this length hold contiguous class c at c - 1."""

# fmt: off
STEP_MM = np.array(
    [18, 20, 17.5, 17, 17, 17, 19.5, 23, 25, 25, 25, 25, 24, 24, 24, 25, 27, 29, 29]
    + [30, 31, 31, 31, 31, 31, 29], float)
"""(26,) usual distance in mm between the centroids of a vertebra and the next one below."""

VOLUME_ML = np.array(
    [15, 19, 14, 14, 15, 16, 19, 24, 24, 24, 27, 28, 28, 28, 28, 29, 32, 36, 44]
    + [49, 54, 58, 61, 62, 62, 46], float)
"""(26,) usual volume in ml of a whole vertebra."""
# fmt: on

_COARSE_MM = 1.5
"""Shapes are judged on a grid with voxels of about this size or more."""

_MAX_PIECES = 1000

_SLAB = 2**22
_ALL = np.ones((3, 3, 3), bool)


class Piece(NamedTuple):
    """A part of the label map."""

    box: tuple[slice, ...]
    label: int
    """Contiguous class, 1 to 26."""
    origin: int
    """The piece that this one was split from; equal for all parts of one piece."""


class Axis:
    """A smooth curve through the spine; places along it are compared.

    The curve is a polynomial through the median of the foreground at every height. Its degree is 0
    (less than 80 mm of spine) to 4 (480 mm and more): flexible enough for lordosis, kyphosis and
    scoliosis, and too stiff to follow single processes. It continues straight beyond its ends.
    """

    def __init__(self, mask: np.ndarray, spacing_mm: np.ndarray) -> None:
        """Fit the curve to `mask` (x, y, z) bool with at least one voxel, z towards the head."""
        z = np.flatnonzero(mask.any((0, 1)))
        middles, weights = [], []
        for k in z:
            x, y = np.nonzero(mask[:, :, k])
            middles.append((np.median(x), np.median(y)))
            weights.append(np.sqrt(len(x)))
        height = z * spacing_mm[2]
        length = height[-1] - height[0]
        degree = 0 if length < 80 or len(z) < 8 else min(4, 1 + int(length // 120))
        points = np.asarray(middles) * spacing_mm[:2]
        at = np.arange(height[0], height[-1] + 1.0)
        centre, half = height.mean(), max(1.0, length / 2)
        curve = [
            np.polyval(
                np.polyfit((height - centre) / half, p, degree, w=weights), (at - centre) / half
            )
            for p in points.T
        ]
        samples = np.stack([*curve, at], axis=1)
        reach = np.arange(1.0, 60.0)[:, None]
        foot = samples[0] - reach[::-1] * _direction(samples[:10])
        head = samples[-1] + reach * _direction(samples[-10:])
        samples = np.concatenate([foot, samples, head])
        self._tree = cKDTree(samples)
        steps = np.linalg.norm(np.diff(samples, axis=0), axis=1)
        self._arc = np.concatenate([[0.0], np.cumsum(steps)])

    def along(self, points_mm: np.ndarray) -> np.ndarray:
        """Return the arc length in mm, growing to the head, at the points nearest to (..., 3)."""
        return self._arc[self._tree.query(points_mm)[1]]


def _direction(part: np.ndarray) -> np.ndarray:
    """Return the unit vector (3,) from the first to the last point; upwards for a single point."""
    way = part[-1] - part[0]
    length = float(np.linalg.norm(way))
    return way / length if length > 0 else np.array([0.0, 0.0, 1.0])


def coarse_steps(spacing_mm: np.ndarray) -> tuple[int, ...]:
    """Return the step in voxels of the coarse grid along each axis."""
    return tuple(max(1, int(_COARSE_MM / s)) for s in spacing_mm)


def find_pieces(
    classes: np.ndarray, spacing_mm: np.ndarray, speck_ml: float
) -> tuple[np.ndarray, list[Piece]]:
    """Number the 26-connected components of each class.

    Components below `speck_ml` are left out, and all but the 1000 largest.

    Returns:
        (x, y, z) uint16, 0 for none and i + 1 for piece i; and the pieces.
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    numbers = np.zeros(classes.shape, np.uint16)
    found: list[Piece] = []
    volumes: list[float] = []
    for label, box in geometry.label_boxes(classes).items():
        components, count = ndimage.label(classes[box] == label, _ALL)
        sizes = count_values(components, count + 1) * voxel_ml
        keep = [i for i in range(1, count + 1) if sizes[i] >= speck_ml]
        keep = sorted(keep, key=lambda i: -sizes[i])[:_MAX_PIECES]
        to = np.zeros(count + 1, np.uint16)
        to[keep] = np.arange(len(found) + 1, len(found) + len(keep) + 1)
        numbers[box] += to[components]
        boxes = ndimage.find_objects(components)
        del components
        for i in keep:
            found.append(Piece(_shifted(boxes[i - 1], box), label, len(found)))
            volumes.append(sizes[i])
    if len(found) > _MAX_PIECES:
        kept = np.sort(np.argsort(-np.asarray(volumes), kind="stable")[:_MAX_PIECES])
        to = np.zeros(len(found) + 1, np.uint16)
        to[kept + 1] = np.arange(1, len(kept) + 1)
        numbers = to[numbers]
        found = [found[i] for i in kept]
    return numbers, found


def split_pieces(
    numbers: np.ndarray, pieces: list[Piece], spacing_mm: np.ndarray, axis: Axis
) -> list[Piece]:
    """Split the pieces that hold several vertebrae, in `numbers` itself; return all pieces."""
    steps = coarse_steps(spacing_mm)
    result = list(pieces)
    for index, piece in enumerate(pieces):
        view = numbers[piece.box]
        mask = view == index + 1
        coarse = mask[:: steps[0], :: steps[1], :: steps[2]]
        origin_mm = np.array([s.start for s in piece.box]) * spacing_mm
        parts = _part(coarse, spacing_mm * steps, origin_mm, piece.label, axis)
        count = int(parts.max())
        if count < 2 or len(result) + count > _MAX_PIECES + 1:
            continue
        nearest = ndimage.distance_transform_edt(
            parts == 0, sampling=spacing_mm * steps, return_distances=False, return_indices=True
        )
        parts = parts[tuple(nearest)]
        at = [
            np.minimum((np.arange(n) + step // 2) // step, m - 1)
            for n, step, m in zip(mask.shape, steps, parts.shape, strict=True)
        ]
        fine = np.where(mask, parts[np.ix_(*at)], 0)
        for part, box in enumerate(ndimage.find_objects(fine), start=1):
            if box is None:
                continue
            moved = Piece(_shifted(box, piece.box), piece.label, piece.origin)
            if part == 1:
                result[index] = moved
            else:
                result.append(moved)
                view[fine == part] = len(result)
    return result


def count_values(array: np.ndarray, length: int) -> np.ndarray:
    """Return how often each of 0 to `length` - 1 occurs in an integer array."""
    counts = np.zeros(length, np.int64)
    step = max(1, _SLAB // max(1, array[:1].size))
    for start in range(0, len(array), step):  # by slabs: bincount copies its input to 8 bytes each
        counts += np.bincount(array[start : start + step].ravel(), minlength=length)
    return counts


def _shifted(box: tuple[slice, ...], outer: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(o.start + b.start, o.start + b.stop) for b, o in zip(box, outer, strict=True)
    )


def _part(
    mask: np.ndarray, spacing_mm: np.ndarray, origin_mm: np.ndarray, label: int, axis: Axis
) -> np.ndarray:
    """Return the vertebrae of a coarse piece as int16, numbered from 1.

    The body is the thickest part of a vertebra. Two thick cores that lie apart along the spine are
    two bodies. A thick part of twice the usual length and volume is two bodies that have merged.
    The remaining voxels go to the core from which the thickest path leads to them.
    """
    whole = mask.astype(np.int16)
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    volume = mask.sum() * voxel_ml
    if volume < 0.9 * VOLUME_ML[label - 1]:
        return whole
    padded = np.pad(ndimage.binary_fill_holes(mask), 1)
    depth = ndimage.distance_transform_edt(padded, sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    step = STEP_MM[label - 1]
    seeds = _cores(depth, spacing_mm, origin_mm, 0.55 * step, axis)
    if seeds is None and volume >= 1.5 * VOLUME_ML[label - 1]:
        seeds = _sections(depth, spacing_mm, origin_mm, step, volume / VOLUME_ML[label - 1], axis)
    if seeds is None:
        return whole
    flooded = _flood(depth, seeds, mask, spacing_mm)
    boxes = ndimage.find_objects(flooded)
    if sum(box is not None for box in boxes) < 2:
        return whole
    result = np.zeros_like(whole)
    for part, box in enumerate(boxes, start=1):
        if box is None:
            continue
        corner = origin_mm + np.array([s.start for s in box]) * spacing_mm
        own = flooded[box] == part
        inner = _part(own, spacing_mm, corner, label, axis)
        result[box] = np.where(own, inner + result.max(), result[box])
    return result


def _cores(
    depth: np.ndarray,
    spacing_mm: np.ndarray,
    origin_mm: np.ndarray,
    apart_mm: float,
    axis: Axis,
) -> np.ndarray | None:
    """Return seeds (int32, as `depth`) where erosion leaves thick parts `apart_mm` apart."""
    deepest = depth.max()
    for share in (0.3, 0.4, 0.5, 0.6):
        components, count = ndimage.label(depth > share * deepest)
        sizes = np.bincount(components.ravel(), minlength=count + 1)
        sizes[0] = 0
        peaks = np.zeros(count + 1)
        np.maximum.at(peaks, components.ravel(), depth.ravel())
        # Processes and articular pillars are thinner than the body, or their thick part is small.
        cores = np.flatnonzero((sizes >= 0.25 * sizes.max()) & (peaks >= 0.5 * deepest))
        if len(cores) < 2:
            continue
        middles = np.stack([np.argwhere(components == i).mean(axis=0) for i in cores])
        along = axis.along(origin_mm + middles * spacing_mm)
        order = np.argsort(along)
        up = np.diff(along[order])
        # Cores side by side, such as the lateral masses of C1, belong to one vertebra, even if it
        # is tilted more than the curve.
        apart = np.linalg.norm(np.diff(middles[order] * spacing_mm, axis=0), axis=1)
        group = np.concatenate([[0], np.cumsum((up >= apart_mm) & (up >= 0.6 * apart))])
        if group[-1] == 0:
            continue
        to = np.zeros(count + 1, np.int32)
        to[cores[order]] = group + 1
        return to[components]
    return None


def _sections(
    depth: np.ndarray,
    spacing_mm: np.ndarray,
    origin_mm: np.ndarray,
    step_mm: float,
    vertebrae: float,
    axis: Axis,
) -> np.ndarray | None:
    """Return seeds in a thick part that is too long: the middles of sections of equal length."""
    thick = np.argwhere(depth > 0.5 * depth.max())
    along = axis.along(origin_mm + thick * spacing_mm)
    low, high = np.percentile(along, (2, 98))
    length = (high - low) + depth.max()  # half of the depth was eroded at each end
    count = max(2, round(min(vertebrae, length / (0.95 * step_mm))))
    if length < 1.5 * step_mm:
        return None
    place = (along - low) / max(1e-6, high - low) * count
    section = np.clip(place.astype(int), 0, count - 1)
    off = np.abs(place - section - 0.5)
    nearest = np.full(count, np.inf)
    np.minimum.at(nearest, section, off)
    # Coarse voxels may miss the middle, so take at least the nearest one.
    middle = off < np.maximum(0.25, nearest[section] + 1e-6)
    seeds = np.zeros(depth.shape, np.int32)
    seeds[tuple(thick[middle].T)] = section[middle] + 1
    return seeds


def _flood(
    depth: np.ndarray, seeds: np.ndarray, mask: np.ndarray, spacing_mm: np.ndarray
) -> np.ndarray:
    """Return the watershed of `depth` from `seeds` in `mask`, level by level from thick to thin.

    `ndimage.watershed_ift` compares neighbours, not levels, and would cross thin bridges.
    """
    owner = seeds.copy()
    for level in [*np.linspace(0.9, 0.1, 7) * depth.max(), -1.0]:
        region = (owner > 0) | (depth > level if level >= 0 else mask)
        components, count = ndimage.label(region, _ALL)
        seeded = owner > 0
        highest = np.zeros(count + 1, np.int32)
        lowest = np.full(count + 1, np.iinfo(np.int32).max, np.int32)
        np.maximum.at(highest, components[seeded], owner[seeded])
        np.minimum.at(lowest, components[seeded], owner[seeded])
        reached = highest > 0
        reached[0] = False
        fill = reached[components] & (owner == 0)
        near = ndimage.distance_transform_edt(
            owner == 0, sampling=spacing_mm, return_distances=False, return_indices=True
        )
        # A voxel that is connected to one seed only belongs to it, even if another is nearer.
        value = np.where((highest == lowest)[components], highest[components], owner[tuple(near)])
        owner[fill] = value[fill]
    return np.where(mask, owner, 0)


# In units of the usual volume:
_TOO_LARGE = 1.6  # no vertebra is larger
_ONE = 1.4  # two parts that are together smaller may be one vertebra
_LARGE = 0.7  # two parts that are each larger are two vertebrae
FRAGMENT = 0.2  # smaller pieces are fragments
_WIDE_MM = 65.0  # parts of one vertebra are closer together


@dataclass
class Group:
    """Pieces of one vertebra: their numbers, and sums over them."""

    members: list[int]
    origins: set[int]
    volume: float
    centroid: np.ndarray
    along: float
    counts: np.ndarray  # (26,) ml
    cut: bool

    @property
    def label(self) -> int:
        """Class - 1 of most voxels."""
        return int(np.argmax(self.counts))

    @property
    def usual_ml(self) -> float:
        """Usual volume of its class."""
        return float(VOLUME_ML[self.label])


def join_pieces(
    numbers: np.ndarray,
    found: list[Piece],
    spacing: np.ndarray,
    axis: Axis,
    ends: tuple[bool, bool],
) -> list[Group]:
    """Join the pieces of each vertebra to a group.

    Args:
        numbers: (x, y, z) of `find_pieces`.
        found: its pieces.
        spacing: (3,) mm.
        axis: the curve through the spine.
        ends: whether the last slice along z is the head end of the scan, and the first its foot
            end.
    """
    areas = _contacts(numbers, coarse_steps(spacing), spacing)
    return _join(groups_of(numbers, found, spacing, axis, ends), areas)


def groups_of(
    numbers: np.ndarray,
    found: list[Piece],
    spacing: np.ndarray,
    axis: Axis,
    ends: tuple[bool, bool],
) -> list[Group]:
    """Make a group of each piece; the arguments are those of `join_pieces`."""
    voxel_ml = float(np.prod(spacing)) / 1000.0
    groups = []
    for index, piece in enumerate(found):
        own = numbers[piece.box] == index + 1
        centroid, size = centre(own, piece.box, spacing)
        counts = np.zeros(NUM_LABELS)
        counts[piece.label - 1] = size * voxel_ml
        z = piece.box[2]
        cut = (ends[0] and z.stop == numbers.shape[2]) or (ends[1] and z.start == 0)
        along = float(axis.along(centroid))
        groups.append(Group([index], {piece.origin}, size * voxel_ml, centroid, along, counts, cut))
    return groups


def centre(mask: np.ndarray, box: tuple[slice, ...], spacing: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the centre of mass in mm of a mask that lies in `box`, and its number of voxels."""
    sums = [mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    size = int(sums[0].sum())
    middle = [(s * np.arange(len(s))).sum() / max(1, size) for s in sums]
    return (np.array(middle) + [s.start for s in box]) * spacing, size


def _contacts(
    numbers: np.ndarray, steps: tuple[int, ...], spacing: np.ndarray
) -> dict[tuple[int, int], float]:
    """Return the area in cm2 at which two pieces touch, by their indices in ascending order."""
    coarse = numbers[:: steps[0], :: steps[1], :: steps[2]]
    sides = spacing * steps
    areas: dict[tuple[int, int], float] = {}
    for axis in range(3):
        view = np.moveaxis(coarse, axis, 0)
        one, other = view[:-1], view[1:]
        touch = (one != other) & (one > 0) & (other > 0)
        ends = np.sort(np.stack([one[touch], other[touch]], axis=1).astype(np.int64) - 1, axis=1)
        pairs, count = np.unique(ends, axis=0, return_counts=True)
        for (i, j), n in zip(pairs.tolist(), count.tolist(), strict=True):
            areas[i, j] = areas.get((i, j), 0.0) + n * np.prod(sides) / sides[axis] / 100.0
    return areas


def _join(groups: list[Group], areas: dict[tuple[int, int], float]) -> list[Group]:
    """Join each group, the smallest first, with the group of the strongest bond."""
    touching: list[dict[int, float]] = [{} for _ in groups]
    for (i, j), area in areas.items():
        touching[i][j] = touching[j][i] = area
    alive = set(range(len(groups)))
    waiting = sorted(alive, key=lambda i: groups[i].volume)
    while waiting:
        small = waiting.pop(0)
        if small not in alive:
            continue
        near = {i for i in alive if groups[i].label == groups[small].label} | set(touching[small])
        bonds = {
            other: _bond(groups[small], groups[other], touching[small].get(other, 0.0))
            for other in sorted(near & alive - {small})
            if groups[other].volume >= groups[small].volume
        }
        best = max(bonds, key=lambda i: bonds[i], default=None)
        if best is None or bonds[best] <= 0:
            continue
        groups[best] = _united(groups[small], groups[best])
        alive.remove(small)
        for other, area in touching[small].items():
            if other in alive and other != best:
                total = touching[best].get(other, 0.0) + area
                touching[best][other] = touching[other][best] = total
        waiting = sorted(set(waiting) | {best}, key=lambda i: groups[i].volume)
    return [groups[i] for i in sorted(alive)]


def _bond(small: Group, large: Group, area: float) -> float:
    """Return how strongly `small` seems to be part of the vertebra of `large`; 0 for not at all.

    Neighbouring vertebrae touch at their facets. Halves of one vertebra touch at a whole cross-
    section, and their centres are closer together along the spine.
    """
    usual, step = max(small.usual_ml, large.usual_ml), STEP_MM[large.label]
    both = small.volume + large.volume
    along = abs(small.along - large.along) / step
    # In a small person, each of two neighbours may have little more than half of the usual volume.
    half = _LARGE if along < 0.45 else _LARGE - 0.1
    if both > _TOO_LARGE * usual or small.volume > half * usual:
        return 0.0
    contact = area / small.volume ** (2 / 3)
    if small.origins & large.origins:  # split before, perhaps wrongly
        return contact if contact >= 0.5 and along < 0.45 else 0.0
    if small.cut and along >= 0.35:
        return 0.0
    if small.label == large.label:
        # The tip of a thoracic spinous process lies a whole vertebra lower.
        reach = 1.3 if small.volume < FRAGMENT * usual else 0.75
        apart = np.linalg.norm(small.centroid - large.centroid)
        return 1.0 + contact - along if along < reach and apart < _WIDE_MM else 0.0
    if contact >= 0.5 and along < 0.6:
        return contact
    if both < _ONE * usual and contact >= 0.8 and along < 0.75:
        return contact
    # The halves of C1 touch at thin arches only, but no neighbour lies at the same height.
    if both < _ONE * usual and not small.cut and contact > 0.05 and along < 0.25:
        return contact
    if small.volume < FRAGMENT * usual and not small.cut and contact >= 0.3 and along < 1.0:
        return contact
    return 0.0


def _united(one: Group, other: Group) -> Group:
    volume = one.volume + other.volume
    weight = one.volume / volume
    return Group(
        one.members + other.members,
        one.origins | other.origins,
        volume,
        weight * one.centroid + (1 - weight) * other.centroid,
        weight * one.along + (1 - weight) * other.along,
        one.counts + other.counts,
        one.cut or other.cut,
    )
