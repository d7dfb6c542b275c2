"""Where a prediction errs: the measurements, in closed form and against the scores."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from spinejax import scoring
from spinejax.metrics import mistakes

SPACING = (1.0, 2.0, 3.0)
VOXEL_ML = 0.006


def example():
    """Two labels over one another in a grid (6, 5, 12), the upper half of one not found."""
    reference = np.zeros((6, 5, 12), np.uint8)
    reference[2:4, 1:4, 2:4] = 21
    reference[2:4, 1:4, 6:10] = 20
    prediction = reference > 0
    prediction[2:4, 1:4, 8:10] = False
    image = np.full(reference.shape, 50, np.int16)
    image[prediction] = 400
    image[(reference > 0) & ~prediction] = 120
    return image, reference, prediction


def test_vertebrae_in_closed_form():
    rows = mistakes.vertebrae(*example(), SPACING)
    assert [row["label"] for row in rows] == [20, 21]
    upper, lower = rows
    assert upper["ml"] == pytest.approx(24 * VOXEL_ML)
    assert upper["recall"] == 0.5 and (upper["found_hu"], upper["missed_hu"]) == (400, 120)
    assert lower["recall"] == 1 and (lower["found_hu"], lower["missed_hu"]) == (400, None)
    assert not any(row["at_border"] or row["at_end"] for row in rows)


def test_the_border_of_the_scan_and_its_ends():
    image, reference, prediction = (array[2:, :, 2:] for array in example())
    rows = {r["label"]: r for r in mistakes.vertebrae(image, reference, prediction, SPACING)}
    assert rows[20]["at_border"] and not rows[20]["at_end"]  # a side only
    assert rows[21]["at_border"] and rows[21]["at_end"]


def test_false_positives_by_place_in_closed_form():
    image, reference, _ = example()
    prediction = np.zeros_like(reference)
    prediction[2, 2, 11] = 1  # above the range
    prediction[0, 0, 0:2] = 1  # below it, two voxels
    prediction[2, 2, 4] = 1  # one voxel of 3 mm off: within 3 mm, inclusive
    prediction[0, 2, 5:7] = 1  # 2 mm off, and sqrt(4 + 9) off
    prediction[5, 4, 3] = 1  # sqrt(4 + 4) mm off
    image[2, 2, 11], image[0, 2, 5] = 700, 300
    found = mistakes.false_positives(image, reference, prediction, SPACING)
    voxels = {place: round(value["ml"] / VOXEL_ML) for place, value in found.items()}
    assert voxels == {"total": 7, "above": 1, "below": 2, "within": 4, "near": 3, "far": 1}
    assert found["above"]["hu"] == 700 and found["far"]["hu"] == 300 and found["total"]["hu"] == 50


def test_empty_masks_and_what_does_not_fit():
    image, reference, prediction = example()
    nothing = np.zeros_like(reference)
    found = mistakes.analyse(image, nothing, prediction, SPACING)
    assert found["vertebrae"] == []
    assert found["false_positives"]["total"]["ml"] == pytest.approx(24 * VOXEL_ML)
    assert found["false_positives"]["within"] == {"ml": None, "hu": None}
    found = mistakes.analyse(image, reference, nothing, SPACING)
    assert [row["recall"] for row in found["vertebrae"]] == [0, 0]
    assert all(v == {"ml": 0, "hu": None} for v in found["false_positives"].values())
    json.dumps(found)
    with pytest.raises(ValueError, match="shape"):
        mistakes.analyse(image[1:], reference, prediction, SPACING)
    with pytest.raises(ValueError, match="spacing"):
        mistakes.analyse(image, reference, prediction, (1, 1))


shapes = st.tuples(*[st.integers(1, 6)] * 3)


@settings(max_examples=60, deadline=None)
@given(st.data(), shapes)
def test_parts_add_up_and_agree_with_the_scores(data, shape):
    reference = data.draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 20, 28])))
    prediction = data.draw(arrays.arrays(bool, shape))
    image = data.draw(arrays.arrays(np.int16, shape))
    affine = np.diag([*SPACING, 1])
    score = scoring.score_arrays(prediction, reference, affine)
    found = mistakes.analyse(image, reference, prediction, SPACING)
    places = found["false_positives"]
    total = score.counts.fp * VOXEL_ML
    assert places["total"]["ml"] == pytest.approx(total)
    rows = found["vertebrae"]
    assert sum(row["ml"] * row["recall"] for row in rows) == pytest.approx(
        score.counts.tp * VOXEL_ML
    )
    assert sum(row["ml"] * (1 - row["recall"]) for row in rows) == pytest.approx(
        score.counts.fn * VOXEL_ML
    )
    if not reference.any():
        assert all(places[place]["ml"] is None for place in mistakes.PLACES)
        return
    assert sum(places[place]["ml"] for place in mistakes.PLACES) == pytest.approx(total)
    assert places["near"]["ml"] + places["far"]["ml"] == pytest.approx(places["within"]["ml"])
    assert places["within"]["ml"] == pytest.approx(score.in_range.fp * VOXEL_ML)
    for row in rows:
        assert (row["found_hu"] is None) == (row["recall"] == 0)
        assert (row["missed_hu"] is None) == (row["recall"] == 1)
