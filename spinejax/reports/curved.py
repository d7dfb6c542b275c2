"""Curved planar reformation: a spine drawn straight along the curve through its vertebral bodies.

Kanitsar et al. 2002, "CPR - Curved Planar Reformation", IEEE Visualization, section 3.3
("straightened CPR"): each row of the picture is a line through one point of the curve, at a right
angle to it. Lengths along the curve and across it stay true.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.interpolate import make_smoothing_spline

from spinejax import geometry

_APART_MM = 5.0
"""Centres that lie closer together than this are one point of the curve."""

_STIFFNESS = 1.6e5
"""mm^4. A smoothing spline with this times the density of its points keeps 97 % of a bend with a
wavelength of 300 mm, and 2 % of one of 50 mm: errors of single centres, no bends of a spine."""

_SHARPEST_COS = 0.5
"""An end of the spine that turns by more than 60 degrees is no body: the scan cuts the vertebra."""


class Centreline(NamedTuple):
    """A curve through the bodies, from head to foot.

    Attributes:
        points: (m, 3) at equal steps, mm, in NIfTI's RAS+ world.
        tangents: (m, 3) unit vectors, from head to foot.
        step_mm: between two points, along the curve.
    """

    points: np.ndarray
    tangents: np.ndarray
    step_mm: float

    def nearest(self, point_mm: np.ndarray) -> tuple[int, float]:
        """Return the row that is nearest to a point (3,), and its distance in mm."""
        apart = np.linalg.norm(self.points - point_mm, axis=1)
        return int(apart.argmin()), float(apart.min())


def centreline(centres_mm: np.ndarray, step_mm: float, beyond_mm: float) -> Centreline:
    """Return the smooth curve along the centres of vertebral bodies.

    A smoothing spline over the length of the chords, which does not follow the error of a single
    centre; a parabola of four centres, a line of fewer. It goes on straight at both ends.

    Args:
        centres_mm: (n, 3) from head to foot, at least one, RAS+.
        step_mm: between two points of the curve.
        beyond_mm: how far the curve goes on beyond the first and the last centre.
    """
    kept = [centres_mm[0]]
    for centre in centres_mm[1:]:
        if np.linalg.norm(centre - kept[-1]) >= _APART_MM:
            kept.append(centre)
    for end, step in ((0, 1), (-1, -1)):
        if len(kept) > 2:
            outer, inner = kept[end + step] - kept[end], kept[end + 2 * step] - kept[end + step]
            if outer @ inner < _SHARPEST_COS * np.linalg.norm(outer) * np.linalg.norm(inner):
                kept.pop(end)
    points = np.array(kept, np.float64)
    if len(points) == 1:
        points = np.stack([points[0], points[0] - (0, 0, 1)])  # straight down
    chords = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    along = float(chords[-1]) if len(kept) > 1 else 0.0
    fine = np.linspace(0, along, 2 + int(4 * along / step_mm))
    sides = []
    for side in points.T:
        if len(points) < 5:
            sides.append(np.polyval(np.polyfit(chords, side, len(points) // 2), fine))
        else:
            stiff = _STIFFNESS * (len(points) - 1) / along
            sides.append(make_smoothing_spline(chords, side, lam=stiff)(fine))
    curve = np.stack(sides, axis=1)
    first, last = points[1] - points[0], points[-1] - points[-2]
    if along:
        first, last = curve[1] - curve[0], curve[-1] - curve[-2]
    first, last = first / np.linalg.norm(first), last / np.linalg.norm(last)
    curve = np.concatenate(
        [curve[:1] - beyond_mm * first, curve, curve[-1:] + beyond_mm * last], axis=0
    )
    length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))]
    equal = np.arange(0, length[-1] + step_mm / 2, step_mm)
    equal = np.minimum(equal, length[-1])
    even = np.stack([np.interp(equal, length, side) for side in curve.T], axis=1)
    tangents = np.gradient(even, axis=0)
    return Centreline(even, tangents / np.linalg.norm(tangents, axis=1, keepdims=True), step_mm)


def straighten(
    array: np.ndarray,
    affine: np.ndarray,
    curve: Centreline,
    toward: tuple[float, float, float],
    reach_mm: tuple[float, float],
    *,
    order: int,
    fill: float,
) -> np.ndarray:
    """Sample the surface that a line at right angles to a curve sweeps along it.

    Args:
        array: (x, y, z), a scan or labels.
        affine: (4, 4) of `array`.
        curve: rows of the picture.
        toward: unit vector in RAS+: where columns go. Its part along the curve is taken off.
        reach_mm: of the first and of the last column from the curve, along `toward`.
        order: 1 for a scan (linear), 0 for labels (nearest).
        fill: value outside of the scan.

    Returns:
        (rows, columns) with pixels of `curve.step_mm`, of the array's dtype.
    """
    towards = np.asarray(toward, np.float64)
    across = towards - (curve.tangents @ towards)[:, None] * curve.tangents
    # Where the curve runs along `toward`, there is nothing across it.
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    first, last = reach_mm
    offsets = np.linspace(first, last, 1 + round((last - first) / curve.step_mm))
    places = curve.points[:, None] + offsets[:, None] * across[:, None]
    index = geometry.world_to_voxel(affine, places)
    return ndimage.map_coordinates(
        array, np.moveaxis(index, -1, 0), order=order, mode="constant", cval=fill, prefilter=False
    )
