"""Islands: parts of a mask that lie away from the line of the spine, as hips and ribs do.

Networks that segment slices take joints and the wings of the pelvis for vertebrae where a slice
shows nothing else. Such pieces are as large as a vertebra, so that their volume does not give them
away, but the spine is the largest of all, and they lie beside where it goes on.
"""

import numpy as np
from scipy import ndimage

from spinejax.geometry import bounding_box

_BESIDE_MM = 40.0  # processes reach this far from the line, which leads through bodies and arches
_BEYOND_MM = 30.0  # where the spine goes on after a gap,
_PER_MM = 0.35  # and how much farther it may curve away for every mm of height
_SMOOTH_MM = 12.0  # of the line
_END_MM = 80.0  # of the line, from which it goes on straight, no farther than this


def without_islands(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Return `mask` without the connected pieces that lie away from the line of the spine.

    The largest 26-connected component is spine; its line leads through its centres of mass from
    slice to slice, and straight on beyond its ends. Of the others, the nearest in height first,
    those stay whose centre of mass is at most 40 mm from that line, or, above or below it, at most
    30 mm and 0.35 mm more for each mm of distance, and the line then leads through them, too.

    Needs four bytes for each voxel of the box around the foreground, and one for each of the mask.

    Args:
        mask: (x, y, z) bool in the canonical orientation (volume.py): z along the body.
        spacing_mm: voxel size along each axis.
    """
    box = bounding_box(mask)
    if box is None:
        return mask
    components, count = ndimage.label(mask[box], structure=np.ones((3, 3, 3), bool))
    if count < 2:
        return mask
    profiles = [
        _profile(components[place] == i, place, spacing_mm)
        for i, place in enumerate(ndimage.find_objects(components), start=1)
    ]
    sizes = np.array([profile[2].sum() for profile in profiles])
    centres = np.array([np.average(p, axis=0, weights=w) for _, p, w in profiles])
    spine = [int(sizes.argmax())]
    left = set(range(count)) - set(spine)
    while left:
        line = _Line([profiles[i] for i in spine], spacing_mm[2])
        # All that lie between the ends at once, those beyond one by one, each from the new end.
        beyond = {i: line.beyond(centres[i, 2]) for i in left}
        least = min(beyond.values())
        near = [i for i in left if beyond[i] == least]
        spine += [i for i in near if line.holds(centres[i])]
        left -= set(near)
    keep = np.zeros(count + 1, bool)
    keep[np.add(spine, 1)] = True
    result = np.zeros_like(mask)
    for target, part in zip(result[box], components, strict=True):
        target[...] = keep[part]
    return result


_Profile = tuple[np.ndarray, np.ndarray, np.ndarray]


def _profile(
    own: np.ndarray, place: tuple[slice, ...], spacing_mm: tuple[float, float, float]
) -> _Profile:
    """Slices (n,) of a piece, its centres of mass there (n, 3) in mm, and voxels (n,)."""
    beside = own.sum(1), own.sum(0)  # (x, z), (y, z)
    voxels = beside[0].sum(0)
    found = np.flatnonzero(voxels)
    points = [
        (np.arange(side.start, side.stop) @ counts)[found] / voxels[found] * mm
        for side, counts, mm in zip(place, beside, spacing_mm, strict=False)
    ]
    level = found + place[2].start
    return level, np.stack([*points, level * spacing_mm[2]], 1), voxels[found]


class _Line:
    """Where the spine is at each height, mm."""

    def __init__(self, profiles: list[_Profile], spacing_mm: float) -> None:
        level, points, voxels = (np.concatenate(part) for part in zip(*profiles, strict=True))
        found = np.unique(level)
        sums = [
            np.bincount(level - found[0], voxels * values)
            for values in (np.ones(len(level)), points[:, 0], points[:, 1])
        ]
        # Single slices may show nothing but a process.
        smooth = ndimage.gaussian_filter1d(sums, _SMOOTH_MM / spacing_mm, mode="constant")
        total, *sums = smooth[:, found - found[0]]
        self._heights = found * spacing_mm
        self._places = [axis / total for axis in sums]
        self._weight = np.sqrt(total)

    def beyond(self, z: float) -> float:
        """How far a height lies beyond the ends, 0 between them."""
        return float(max(self._heights[0] - z, z - self._heights[-1], 0.0))

    def holds(self, centre: np.ndarray) -> bool:
        """Whether a piece with this centre lies where the spine is, or goes on."""
        heights, beyond = self._heights, self.beyond(centre[2])
        if beyond == 0.0:
            at = [np.interp(centre[2], heights, axis) for axis in self._places]
            limit = _BESIDE_MM
        else:
            end = heights[0] if centre[2] < heights[0] else heights[-1]
            near = np.abs(heights - end) <= _END_MM
            degree = 1 if np.count_nonzero(near) > 2 else 0
            away = float(np.clip(centre[2] - end, -_END_MM, _END_MM))
            at = [
                np.polyval(
                    np.polyfit(heights[near] - end, axis[near], degree, w=self._weight[near]), away
                )
                for axis in self._places
            ]
            limit = _BEYOND_MM + _PER_MM * beyond
        return bool(np.hypot(*(centre[:2] - at)) <= limit)
