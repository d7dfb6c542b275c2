"""Boundary F1 (BF-score): how well the contours of two masks match within a tolerance.

Definition (Csurka et al., BMVC 2013; MATLAB's `bfscore`): a contour pixel of one mask is matched if
the other mask has a contour pixel within a tolerance of it. Boundary precision and boundary recall
are the matched shares of prediction and reference; the score is their harmonic mean. `surface`
defines contours, here in the plane.

The tolerance is 0.75 % of the diagonal of the image in mm: about 2 mm for an axial CT slice of
200 x 200 mm. It grows with the field of view. Compare scores only between equal fields of view, or
give `tolerance_mm`.

Paper B reports a BF-score of axial slices (its eq. 5 prints another formula, see
`classification.f1_pre_sen`). For a scan, contours are therefore those of its slices; the diagonal
of a tall volume would allow more than 5 mm. Counts of all slices are added before precision and
recall are formed, so a slice with one stray pixel weighs little.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from spinejax.metrics.classification import same_shape
from spinejax.metrics.surface import ROUNDING_MM, nearest_mm, steps_of, surface_voxels

DIAGONAL_FRACTION = 0.0075
"""Default tolerance as a fraction of the diagonal of the image (Csurka et al. 2013)."""


@dataclass(frozen=True)
class BoundaryCounts:
    """Numbers of contour pixels of prediction and reference, and of the matched ones."""

    predicted: int
    predicted_matched: int
    reference: int
    reference_matched: int

    def __add__(self, other: "BoundaryCounts") -> "BoundaryCounts":
        """Return the counts of both sets of contours together."""
        return BoundaryCounts(
            self.predicted + other.predicted,
            self.predicted_matched + other.predicted_matched,
            self.reference + other.reference,
            self.reference_matched + other.reference_matched,
        )


def default_tolerance_mm(
    shape: Sequence[int], spacing_mm: Sequence[float] | np.ndarray, slice_axis: int | None = None
) -> float:
    """Return 0.75 % of the diagonal of the image, or of one of its slices, in mm.

    Args:
        shape: elements along each axis of the whole image.
        spacing_mm: element size along each axis, or `geometry.steps_mm`.
        slice_axis: the axis that a slice fixes; None takes the diagonal over all axes.
    """
    sides = np.asarray(shape, np.float64) * np.linalg.norm(steps_of(spacing_mm, len(shape)), axis=1)
    if slice_axis is not None:
        sides = np.delete(sides, slice_axis)
    return float(DIAGONAL_FRACTION * np.linalg.norm(sides))


def count_boundary(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
    *,
    tolerance_mm: float | None = None,
    slice_axis: int | None = None,
) -> BoundaryCounts:
    """Count matched contour elements.

    Args:
        prediction: bool or number, 2D or 3D; foreground is everything above 0.
        reference: the same shape.
        spacing_mm: element size along each axis, or `geometry.steps_mm`.
        tolerance_mm: largest distance of a match; None takes `default_tolerance_mm`.
        slice_axis: the axis whose slices are compared one by one, with contours and matches within
            a slice; None takes contours (in 3D, surfaces) of the whole array.

    Returns:
        The counts, over all slices.

    Raises:
        ValueError: shapes differ or are empty, or `spacing_mm` or `slice_axis` does not fit.
    """
    same_shape(prediction, reference)
    ndim = prediction.ndim
    steps = steps_of(spacing_mm, ndim)
    if slice_axis is not None and not 0 <= slice_axis < ndim:
        raise ValueError(f"slice_axis is {slice_axis}, but must be one of 0 .. {ndim - 1}")
    if tolerance_mm is None:
        tolerance_mm = default_tolerance_mm(prediction.shape, spacing_mm, slice_axis)
    limit_mm = tolerance_mm + ROUNDING_MM
    axes = [axis for axis in range(ndim) if axis != slice_axis]

    def points(mask: np.ndarray) -> np.ndarray:
        voxels = surface_voxels(mask, axes)
        if slice_axis is None:
            return voxels @ steps
        # Slices that are further apart than the tolerance cannot match each other.
        apart = voxels[:, slice_axis] * (4 * limit_mm)
        return np.column_stack([voxels[:, axes] @ steps[axes], apart])

    found, true = points(prediction), points(reference)
    # The search limit is exclusive; the exact comparison follows.
    search_mm = 2 * limit_mm
    return BoundaryCounts(
        predicted=len(found),
        predicted_matched=int(np.sum(nearest_mm(found, true, search_mm) <= limit_mm)),
        reference=len(true),
        reference_matched=int(np.sum(nearest_mm(true, found, search_mm) <= limit_mm)),
    )


def bf_score(counts: BoundaryCounts) -> float:
    """Return the boundary F1 score 2 P R / (P + R) of boundary precision and recall; in [0, 1].

    Both masks empty: 1. One of them empty, or nothing matched: 0.
    """
    if counts.predicted == 0 and counts.reference == 0:
        return 1.0
    if counts.predicted_matched == 0 or counts.reference_matched == 0:
        return 0.0
    precision = counts.predicted_matched / counts.predicted
    recall = counts.reference_matched / counts.reference
    return 2 * precision * recall / (precision + recall)


def pool(counts: Iterable[BoundaryCounts]) -> BoundaryCounts:
    """Return the sum of counts, as if all slices or cases were one."""
    return sum(counts, BoundaryCounts(0, 0, 0, 0))
