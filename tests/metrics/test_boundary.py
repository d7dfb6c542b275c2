"""Boundary F1 against scipy and closed forms (brute force and MONAI: test_surface)."""

import numpy as np
import pytest

from spinejax.metrics import boundary
from tests.support.surfaces import blobs, with_scipy


def bf_by_scipy(prediction, reference, spacing, tolerance):
    there, back = with_scipy(prediction, reference, spacing)
    precision, recall = np.mean(there <= tolerance), np.mean(back <= tolerance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("shape", [(60, 70), (20, 24, 28)])
@pytest.mark.parametrize("seed", range(3))
def test_bf_score_agrees_with_scipy(shape, seed):
    rng = np.random.default_rng(seed)
    spacing = rng.uniform(0.5, 2, len(shape))
    prediction, reference = blobs(rng, shape), blobs(rng, shape)
    for fraction in (0.0075, 0.03, 0.1):
        tolerance = fraction * np.sqrt(
            sum((n * s) ** 2 for n, s in zip(shape, spacing, strict=True))
        )
        counts = boundary.count_boundary(prediction, reference, spacing, tolerance_mm=tolerance)
        assert boundary.bf_score(counts) == pytest.approx(
            bf_by_scipy(prediction, reference, spacing, tolerance), abs=1e-9
        )
    default = boundary.count_boundary(prediction, reference, spacing)
    tolerance = boundary.default_tolerance_mm(shape, spacing)
    assert default == boundary.count_boundary(
        prediction, reference, spacing, tolerance_mm=tolerance
    )


@pytest.mark.parametrize("slice_axis", range(3))
def test_slices_are_compared_one_by_one(slice_axis):
    rng = np.random.default_rng(slice_axis)
    spacing = (0.8, 1.1, 0.4)
    prediction, reference = blobs(rng, (18, 20, 22)), blobs(rng, (18, 20, 22))
    prediction.swapaxes(0, slice_axis)[3] = False
    reference.swapaxes(0, slice_axis)[5] = False
    whole = boundary.count_boundary(prediction, reference, spacing, slice_axis=slice_axis)
    in_plane = np.delete(spacing, slice_axis)
    slices = [
        boundary.count_boundary(one, other, in_plane)
        for one, other in zip(
            np.moveaxis(prediction, slice_axis, 0),
            np.moveaxis(reference, slice_axis, 0),
            strict=True,
        )
    ]
    assert whole == boundary.pool(slices)


def test_bf_score_of_a_shifted_square():
    """In an image of 400 x 300 the diagonal is 500, the tolerance 3.75 pixels."""
    prediction, reference = np.zeros((2, 400, 300), bool)
    reference[100:200, 100:200] = True
    assert boundary.default_tolerance_mm((400, 300), (1, 1)) == pytest.approx(3.75)
    prediction[103:203, 100:200] = True
    assert boundary.bf_score(boundary.count_boundary(prediction, reference, (1, 1))) == 1
    prediction = np.roll(prediction, 17, axis=0)
    # Shifted by 20: of the 396 contour pixels the sides still match along 80 + 3 rows, and the
    # pixels of the end faces within 3 columns of a side do where the other's side passes.
    counts = boundary.count_boundary(prediction, reference, (1, 1))
    assert counts.predicted == counts.reference == 396
    assert counts.predicted_matched == counts.reference_matched == 2 * 83 + 2 * 3
    with pytest.raises(ValueError, match="slice_axis"):
        boundary.count_boundary(prediction, reference, (1, 1), slice_axis=2)
