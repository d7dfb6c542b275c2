"""Joining the pieces of one vertebra: by size, by place along the spine, and by how they touch."""

from dataclasses import dataclass

import numpy as np

from spinejax.inference.pieces import NUM_LABELS, STEP_MM, VOLUME_ML, Axis, Piece, coarse_steps

# Joining, in usual volumes: no vertebra is larger than the first of these; one may well be as large
# as the second; two that are both larger than the third are two; the last is a fragment.
_TOO_LARGE, _ONE, _LARGE, FRAGMENT = 1.6, 1.4, 0.7, 0.2
_WIDE_MM = 65.0


@dataclass
class Group:
    """Pieces of one vertebra: numbers of the pieces, and sums over them."""

    members: list[int]
    origins: set[int]
    volume: float
    centroid: np.ndarray
    along: float
    counts: np.ndarray  # (26,) ml
    cut: bool

    @property
    def label(self) -> int:
        """Class - 1 of the most voxels."""
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
    """Return the groups of pieces that are taken for one vertebra each.

    Args:
        numbers: (x, y, z) of `find_pieces`.
        found: its pieces.
        spacing: (3,) mm.
        axis: the curve along which places are compared.
        ends: whether the last and the first slice along z are the scan's head and foot end.
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
    """Return a group of each piece alone; arguments as of `join_pieces`."""
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
    """Centre of mass in mm of a mask that lies in `box`, and its number of voxels."""
    sums = [mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    size = int(sums[0].sum())
    middle = [(s * np.arange(len(s))).sum() / max(1, size) for s in sums]
    return (np.array(middle) + [s.start for s in box]) * spacing, size


def _contacts(
    numbers: np.ndarray, steps: tuple[int, ...], spacing: np.ndarray
) -> dict[tuple[int, int], float]:
    """Area in cm2 at which two pieces touch, by their indices, the smaller one first."""
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
    """Join what belongs to one vertebra, the smallest first, with what it touches most."""
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
    """How strongly `small` seems to be a part of the vertebra of `large`; 0 for not at all.

    Neighbours touch at their facets; halves of one vertebra at a whole cross-section of it, and
    their middles are less apart along the spine than those of neighbours.
    """
    usual, step = max(small.usual_ml, large.usual_ml), STEP_MM[large.label]
    both = small.volume + large.volume
    along = abs(small.along - large.along) / step
    # Of a small person, both of two neighbours may be hardly larger than half of the usual.
    half = _LARGE if along < 0.45 else _LARGE - 0.1
    if both > _TOO_LARGE * usual or small.volume > half * usual:
        return 0.0
    contact = area / small.volume ** (2 / 3)
    if small.origins & large.origins:  # parted before: was that one cut too many?
        return contact if contact >= 0.5 and along < 0.45 else 0.0
    if small.cut and along >= 0.35:
        return 0.0
    if small.label == large.label:
        # Tips of thoracic spinous processes lie a whole vertebra lower.
        reach = 1.3 if small.volume < FRAGMENT * usual else 0.75
        apart = np.linalg.norm(small.centroid - large.centroid)
        return 1.0 + contact - along if along < reach and apart < _WIDE_MM else 0.0
    if contact >= 0.5 and along < 0.6:
        return contact
    if both < _ONE * usual and contact >= 0.8 and along < 0.75:
        return contact
    # Halves of C1 meet at thin arches only; but no neighbour lies at the same height.
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
