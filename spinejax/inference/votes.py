"""Vertebrae by votes: every voxel votes for the centre of its vertebra.

A network that learns these offsets (`losses.offset_error`) separates vertebrae that touch or that
it cannot name: the voxels of one vertebra vote for one place, those of its neighbour for a place
one vertebra away. Centres are the peaks of the density of votes, as in the Hough transform (Ballard
1981; with learnt offsets for instances e.g. Neven et al., CVPR 2019).
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from spinejax.inference.pieces import NUM_LABELS, STEP_MM, Piece, count_values

_BIN_MM = 2.0
_SIGMA = 0.115  # of the density, in units of the usual distance between vertebrae of the class
# Two peaks are two vertebrae if the density between them falls below a share of the lower one. A
# density of few votes is rough by chance. The share is therefore 1 - _ROUGH / sqrt(h) for a peak of
# height h, within _SHARES.
_SHARES = (0.3, 0.85)
_ROUGH = 1.5
# In units of the usual distance: two classes of one peak are two vertebrae if their votes are
# further apart along the spine than _TWO and each has at least _LEAST_SHARE of the voxels. Two
# parts of one class are one vertebra if they are closer than _NEAR.
_TWO, _LEAST_SHARE, _NEAR = 0.4, 0.1, 0.7
_MAX_CENTRES = 255
_REACH_MM = 60.0  # peaks that are further apart are always two vertebrae


class _Cluster(NamedTuple):
    """Votes for one centre."""

    voters: np.ndarray
    """Indices of the votes."""
    label: int
    """Contiguous class."""
    middle: np.ndarray
    """The centre in mm."""
    new: bool
    """Whether it was split from a peak."""


def vote_pieces(
    classes: np.ndarray, offsets_mm: np.ndarray, spacing_mm: np.ndarray, speck_ml: float
) -> tuple[np.ndarray, list[Piece]]:
    """Split the foreground of a label map by the centre that each voxel votes for.

    Args:
        classes: (x, y, z) contiguous classes.
        offsets_mm: (x, y, z, 3) from each voxel to the centre of its vertebra.
        spacing_mm: (3,) of the voxels.
        speck_ml: centres with fewer votes are dropped; their voxels go to the nearest other centre.

    Returns:
        (x, y, z) uint16, 0 for none and i + 1 for piece i; and the pieces, each with the class of
        most of its voxels.
    """
    numbers = np.zeros(classes.shape, np.uint16)
    where = np.nonzero(classes)
    if not where[0].size:
        return numbers, []
    votes = np.stack(where, -1) * spacing_mm + offsets_mm[where]
    votes = np.clip(votes, -_REACH_MM, np.array(classes.shape) * spacing_mm + _REACH_MM)
    sigma_mm = _SIGMA * STEP_MM[classes[where] - 1]
    centres = _peaks(votes, sigma_mm)
    least = max(1.0, speck_ml * 1000.0 / float(np.prod(spacing_mm)))
    owner = cKDTree(centres).query(votes)[1]
    owner, centres = _parted(votes, classes[where], owner, centres)
    # If all centres are specks, there is no vertebra.
    kept = np.flatnonzero(np.bincount(owner, minlength=len(centres)) >= least)
    if not kept.size:
        return numbers, []
    speck = ~np.isin(owner, kept)
    owner[speck] = kept[cKDTree(centres[kept]).query(votes[speck])[1]]
    numbers[where] = 1 + np.searchsorted(kept, owner)
    found = []
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        if box is not None:
            own = classes[box][numbers[box] == number]
            label = int(np.argmax(count_values(own, NUM_LABELS + 1)))
            found.append(Piece(box, label, number - 1))
    return numbers, found


def _parted(
    votes: np.ndarray, classes: np.ndarray, owner: np.ndarray, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Split the peaks of several vertebrae, and return the new owners and centres.

    Two small vertebrae may blur into one peak. The peak then has voxels of two classes, whose votes
    lie half a vertebra apart. (If the class of a single vertebra is uncertain, all its votes lie at
    one place.) A part that is split off joins a part of its class at the next peak if that is near.

    Args:
        votes: (m, 3) mm.
        classes: (m,) contiguous.
        owner: (m,) index of each vote's peak.
        centres: (n, 3) mm, of the peaks.
    """
    parts: list[_Cluster] = []
    ways = _directions(centres, 1 + np.bincount(owner, minlength=len(centres)))
    for peak, (box,) in ndimage.value_indices(owner).items():
        own, counts = classes[box], count_values(classes[box], NUM_LABELS + 1)
        found: list[int] = []
        middles: list[np.ndarray] = []
        for label in np.argsort(-counts, kind="stable").tolist():
            if counts[label] < max(1.0, _LEAST_SHARE * own.size):
                break
            middle = np.median(votes[box][own == label], axis=0)
            # Votes of processes spread sideways, so only the distance along the spine counts.
            if all(
                abs((middle - other) @ ways[peak]) > _TWO * _step_mm(label, at)
                for at, other in zip(found, middles, strict=True)
            ):
                found.append(label)
                middles.append(middle)
        if len(found) < 2:
            parts.append(_Cluster(box, int(counts.argmax()), centres[peak], False))
            continue
        nearest = cKDTree(middles).query(votes[box])[1]
        for place, label in enumerate(found):
            nearest[own == label] = place
        for place, label in enumerate(found):
            parts.append(_Cluster(box[nearest == place], label, middles[place], True))
    return _united(parts, len(owner))


def _united(parts: list[_Cluster], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Join new parts to near parts of their class; return owners of `count` votes and centres."""
    owner = np.zeros(count, np.intp)
    centres: list[np.ndarray] = []
    left = sorted(parts, key=lambda part: -len(part.voters))
    while left:
        whole, *rest = left
        left = []
        for part in rest:
            near = np.linalg.norm(part.middle - whole.middle) < _NEAR * STEP_MM[whole.label - 1]
            if part.label == whole.label and (part.new or whole.new) and near:
                share = len(part.voters) / (len(part.voters) + len(whole.voters))
                middle = whole.middle + share * (part.middle - whole.middle)
                voters = np.concatenate([whole.voters, part.voters])
                whole = _Cluster(voters, whole.label, middle, True)
            else:
                left.append(part)
        owner[whole.voters] = len(centres)
        centres.append(whole.middle)
    return owner, np.array(centres)


def _step_mm(one: int, other: int) -> float:
    """Return the usual distance between the vertebrae of two classes, taken as neighbours."""
    return float(STEP_MM[min(one, other) - 1])


def _directions(centres: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the direction of the spine at each of `centres` (n, 3), as unit vectors (n, 3).

    It is the main direction of the centres within 60 mm, weighted by `weights` (n,) above 0.
    """
    ways = np.tile([0.0, 0.0, 1.0], (len(centres), 1))
    for way, centre in zip(ways, centres, strict=True):
        near = np.linalg.norm(centres - centre, axis=1) < _REACH_MM
        if near.sum() > 2:
            apart = centres[near] - np.average(centres[near], axis=0, weights=weights[near])
            spread = (apart * weights[near, None]).T @ apart
            way[:] = np.linalg.eigh(spread)[1][:, -1]
    return ways


def _peaks(votes: np.ndarray, sigma_mm: np.ndarray) -> np.ndarray:
    """Return the peaks (n, 3) in mm of the density of `votes` (m, 3), at most 255."""
    widest = sigma_mm.max()
    corner = votes.min(0) - 2 * widest
    bins = np.floor((votes - corner) / _BIN_MM).astype(np.intp)
    shape = tuple(int(n) for n in bins.max(0) + 1 + round(2 * widest / _BIN_MM))
    flat = np.ravel_multi_index(tuple(bins.T), shape)
    density = np.zeros(shape, np.float32)  # a single vote has a peak of height 1
    for sigma in np.unique(sigma_mm):
        counts = count_values(flat[sigma_mm == sigma], density.size).reshape(shape)
        spread = ndimage.gaussian_filter(
            counts.astype(np.float32), sigma / _BIN_MM, mode="constant"
        )
        density += spread * ((4 * np.pi) ** 1.5 * (sigma / _BIN_MM) ** 3)
    highest = ndimage.maximum_filter(density, size=3)
    tops = np.argwhere((density == highest) & (density > 0))
    heights = density[tuple(tops.T)]
    order = np.argsort(-heights, kind="stable")[: 4 * _MAX_CENTRES]
    accepted = tops[order[:1]]
    for top, height in zip(tops[order[1:]], heights[order[1:]], strict=True):
        if len(accepted) == _MAX_CENTRES:
            break
        near = np.linalg.norm(accepted - top, axis=1) * _BIN_MM < _REACH_MM
        if all(_apart(density, top, other, height) for other in accepted[near]):
            accepted = np.concatenate([accepted, top[None]])
    return (accepted + 0.5) * _BIN_MM + corner


def _apart(density: np.ndarray, top: np.ndarray, other: np.ndarray, height: float) -> bool:
    """Return whether the density falls low enough between two peaks; the first is the lower one."""
    steps = int(np.ceil(np.linalg.norm(other - top)))
    way = top[:, None] + (other - top)[:, None] * np.linspace(0.0, 1.0, steps + 1)
    between = density[tuple(np.round(way).astype(np.intp))]
    share = np.clip(1.0 - _ROUGH / np.sqrt(max(height, 1.0)), *_SHARES)
    return bool(between.min() < share * height)
