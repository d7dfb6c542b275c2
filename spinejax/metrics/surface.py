"""Distances between the surfaces of two masks, in mm of the world.

*Surface*: the voxels of a mask that are not in its erosion by the face-neighbour cross (6
neighbours in 3D, 4 in 2D). Outside the image counts as background, so that a mask cut by the image
border has surface voxels there. Distances are between voxel centres, from every surface voxel of
one mask to the nearest surface voxel of the other. MONAI (`use_subvoxels=False`) and most public
scripts measure in this way. Surfaces of marching cubes, or area-weighted ones, give other numbers.

`surface_distances` measures once; `hd95_mm`, `assd_mm` and `nsd` use its result. Distances on a
grid repeat often. They are kept as distinct values with counts, a few kilobytes per scan, so that
`pool` can join all cases.

Empty masks: if one mask is empty, the distances from the other are infinite; if both are, there are
none. `hd95_mm` and `assd_mm` are then undefined (NaN here, null in JSON).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from spinejax.geometry import bounding_box
from spinejax.metrics.classification import same_shape

ROUNDING_MM = 1e-5
"""Slack of the comparison of a distance with a tolerance.

Affines are stored in float32, so that a voxel of 1 mm may be read as 1.00000003 mm. Without slack,
all voxels exactly 1 mm away would be inside or outside of a tolerance of 1 mm by chance.
"""

_DECIMALS = 9
_QUERY_POINTS = 1 << 18


@dataclass(frozen=True, eq=False)
class Distances:
    """A multiset of distances: ascending distinct `values` (n,) in mm, with `counts` (n,)."""

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, distances_mm: np.ndarray) -> "Distances":
        """Collect distances (m,), rounded to 1e-9 mm so that equal ones coincide."""
        values, counts = np.unique(np.round(distances_mm, _DECIMALS), return_counts=True)
        return cls(values, counts.astype(np.int64))

    @property
    def total(self) -> int:
        """The number of distances."""
        return int(self.counts.sum())

    def within(self, tolerance_mm: float) -> int:
        """Return the number of distances of at most `tolerance_mm` (plus `ROUNDING_MM`)."""
        return int(self.counts[self.values <= tolerance_mm + ROUNDING_MM].sum())

    def sum_mm(self) -> float:
        """Return the sum of all distances."""
        return float(np.dot(self.values, self.counts))

    def percentile(self, percent: float) -> float:
        """Return a percentile by linear interpolation, as NumPy does by default."""
        ends = np.cumsum(self.counts)
        position = (int(ends[-1]) - 1) * percent / 100
        below = int(np.floor(position))
        low, high = self.values[
            np.searchsorted(ends, [below, min(below + 1, int(ends[-1]) - 1)], side="right")
        ]
        return float(low + (high - low) * (position - below))


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances in both directions.

    `from_prediction` holds the distance from each surface voxel of the prediction to the surface of
    the reference; `from_reference` holds the opposite direction.
    """

    from_prediction: Distances
    from_reference: Distances

    @property
    def defined(self) -> bool:
        """Whether both masks have a surface, so that all distances are finite."""
        both = (self.from_prediction, self.from_reference)
        return all(one.total > 0 and bool(np.isfinite(one.values[-1])) for one in both)


def surface(mask: np.ndarray, axes: Sequence[int] | None = None) -> np.ndarray:
    """Mark the surface voxels of a mask.

    Args:
        mask: bool, any number of axes.
        axes: the axes along which neighbours count; all by default. Two axes of a volume give the
            contours of its slices.

    Returns:
        bool, the shape of `mask`: the mask minus its erosion. Outside the array is background.
    """
    interior = mask.copy()
    for axis in range(mask.ndim) if axes is None else axes:
        source, target = np.moveaxis(mask, axis, 0), np.moveaxis(interior, axis, 0)
        target[1:] &= source[:-1]
        target[:-1] &= source[1:]
        target[0] = False
        target[-1] = False
    return mask & ~interior


def surface_voxels(mask: np.ndarray, axes: Sequence[int] | None = None) -> np.ndarray:
    """Return the indices (n, ndim) int64 of the surface voxels of everything above 0."""
    box = bounding_box(mask)
    if box is None:
        return np.zeros((0, mask.ndim), np.int64)
    return np.argwhere(surface(mask[box] > 0, axes)) + [side.start for side in box]


def steps_of(spacing_mm: Sequence[float] | np.ndarray, ndim: int) -> np.ndarray:
    """Return the steps of one voxel in mm, (ndim, ndim), see `geometry.steps_mm`.

    Args:
        spacing_mm: voxel size along each axis, or already the steps of a grid.
        ndim: number of axes.

    Raises:
        ValueError: it is neither a positive number for each axis nor a matrix of steps.
    """
    steps = np.asarray(spacing_mm, np.float64)
    if steps.shape == (ndim,):
        steps = np.diag(steps)
    if (
        steps.shape != (ndim, ndim)
        or not np.isfinite(steps).all()
        or (np.diag(steps) <= 0).any()
        or np.triu(steps, 1).any()
    ):
        raise ValueError(
            f"spacing_mm is {np.asarray(spacing_mm).tolist()}, but must be {ndim} positive "
            "numbers, one per axis, or `geometry.steps_mm`"
        )
    return steps


def depth_mm(mask: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the distance in mm from every voxel of a mask to the nearest voxel outside of it.

    Args:
        mask: bool, with background at every border.
        spacing_mm: voxel size along each axis, or `geometry.steps_mm`.

    Returns:
        float64, the shape of `mask`; 0 outside of it.
    """
    steps = steps_of(spacing_mm, mask.ndim)
    sizes = np.diag(steps)
    if not np.tril(steps, -1).any():
        return ndimage.distance_transform_edt(mask, sampling=sizes)
    depth = np.zeros(mask.shape)
    depth[mask] = nearest_mm(np.argwhere(mask) @ steps, np.argwhere(~mask) @ steps)
    return depth


def nearest_mm(
    points_mm: np.ndarray, targets_mm: np.ndarray, limit_mm: float = np.inf
) -> np.ndarray:
    """Return the Euclidean distance from every point to the nearest target, (n,) float64.

    Args:
        points_mm: (n, d).
        targets_mm: (m, d); without targets every distance is infinite.
        limit_mm: distances of this size or more are returned as infinite, which is faster.
    """
    distances = np.full(len(points_mm), np.inf)
    if len(points_mm) and len(targets_mm):
        # A few distant voxels would make the box around both masks as large as the scan, so this
        # is no distance transform of that box. Many coordinates of a grid are equal, so the tree is
        # not split at medians.
        tree = KDTree(targets_mm, leafsize=32, balanced_tree=False, compact_nodes=False)
        for start in range(0, len(points_mm), _QUERY_POINTS):
            part = slice(start, start + _QUERY_POINTS)
            distances[part] = tree.query(points_mm[part], distance_upper_bound=limit_mm)[0]
    return distances


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float] | np.ndarray
) -> SurfaceDistances:
    """Measure the distances between two surfaces in both directions, in mm.

    Args:
        prediction: bool or number, any number of axes; foreground is everything above 0.
        reference: the same shape.
        spacing_mm: voxel size along each axis, or `geometry.steps_mm`.

    Raises:
        ValueError: shapes differ or are empty, or `spacing_mm` does not fit.
    """
    same_shape(prediction, reference)
    steps = steps_of(spacing_mm, prediction.ndim)
    found = surface_voxels(prediction) @ steps
    true = surface_voxels(reference) @ steps
    return SurfaceDistances(
        from_prediction=Distances.of(nearest_mm(found, true)),
        from_reference=Distances.of(nearest_mm(true, found)),
    )


def hausdorff_mm(distances: SurfaceDistances, percent: float = 100) -> float:
    """Return the larger of the two directed percentiles in mm; 100 is the Hausdorff distance.

    NaN if either mask is empty.
    """
    if not distances.defined:
        return float("nan")
    return max(
        distances.from_prediction.percentile(percent), distances.from_reference.percentile(percent)
    )


def hd95_mm(distances: SurfaceDistances) -> float:
    """Return the 95 % Hausdorff distance in mm.

    It is the larger of the two directed 95th percentiles, each with linear interpolation, as in
    MONAI's `compute_hausdorff_distance(percentile=95)`, not the percentile of both directions
    together. NaN if either mask is empty (MONAI: infinity, or NaN for two empty masks).
    """
    return hausdorff_mm(distances, 95)


def assd_mm(distances: SurfaceDistances) -> float:
    """Return the average symmetric surface distance in mm.

    It is the mean over the surface voxels of both masks together, as in MONAI's
    `compute_average_surface_distance(symmetric=True)`, not the mean of the two directed means. NaN
    if either mask is empty (MONAI: infinity, or NaN for two empty masks).
    """
    if not distances.defined:
        return float("nan")
    both = (distances.from_prediction, distances.from_reference)
    return sum(one.sum_mm() for one in both) / sum(one.total for one in both)


def nsd(distances: SurfaceDistances, tolerance_mm: float = 1.0) -> float:
    """Return the normalised surface Dice; in [0, 1].

    It is the share of both surfaces that is at most `tolerance_mm` from the other, in surface
    voxels, as in MONAI's `compute_surface_dice(use_subvoxels=False)`. (Nikolov et al. 2021 weigh by
    surface area.) Both masks empty: 1 (MONAI: NaN). One of them empty: 0.
    """
    both = (distances.from_prediction, distances.from_reference)
    total = sum(one.total for one in both)
    if total == 0:
        return 1.0
    return sum(one.within(tolerance_mm) for one in both) / total


def pool(cases: Iterable[SurfaceDistances]) -> SurfaceDistances:
    """Join the distances of several cases, as if their surfaces were one.

    Cases with one empty mask have infinite distances: `nsd` counts them as missed. Drop them before
    `hd95_mm` or `assd_mm`.
    """
    cases = list(cases)
    return SurfaceDistances(
        from_prediction=_join([case.from_prediction for case in cases]),
        from_reference=_join([case.from_reference for case in cases]),
    )


def _join(parts: Sequence[Distances]) -> Distances:
    if not parts:
        return Distances(np.zeros(0), np.zeros(0, np.int64))
    values, where = np.unique(np.concatenate([one.values for one in parts]), return_inverse=True)
    counts = np.zeros(len(values), np.int64)
    np.add.at(counts, where, np.concatenate([one.counts for one in parts]))
    return Distances(values, counts)
