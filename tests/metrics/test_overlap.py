"""Counts and ratios against numpy on flattened arrays, closed forms, and set identities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spinejax.metrics import classification, overlap
from spinejax.metrics.classification import Counts

MASKS = st.integers(1, 3).flatmap(
    lambda ndim: hnp.array_shapes(min_dims=ndim, max_dims=ndim, max_side=7).flatmap(
        lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
    )
)
RATIOS = [
    classification.precision,
    classification.recall,
    classification.specificity,
    classification.accuracy,
    classification.f_score,
    classification.f1_pre_sen,
    overlap.dice,
    overlap.iou,
    overlap.miou_with_background,
]


def close(value: float, expected: float) -> None:
    assert value == pytest.approx(expected, abs=1e-12)


@given(MASKS)
@settings(max_examples=200, deadline=None)
def test_agrees_with_sets(masks):
    prediction, reference = masks
    counts = classification.count(prediction, reference)
    found = set(np.flatnonzero(prediction))
    true = set(np.flatnonzero(reference))
    everything = set(range(prediction.size))
    assert counts.total == prediction.size
    assert counts.tp == len(found & true)
    if found | true:
        close(overlap.dice(counts), 2 * len(found & true) / (len(found) + len(true)))
        close(overlap.iou(counts), len(found & true) / len(found | true))
    if found:
        close(classification.precision(counts), len(found & true) / len(found))
    if true:
        close(classification.recall(counts), len(found & true) / len(true))
    if everything - true:
        close(classification.specificity(counts), 1 - len(found - true) / len(everything - true))
    close(classification.accuracy(counts), np.mean(prediction == reference))
    if found | true and (everything - found) | (everything - true):
        background = (everything - found, everything - true)
        background_iou = len(background[0] & background[1]) / len(background[0] | background[1])
        close(
            overlap.miou_with_background(counts),
            (len(found & true) / len(found | true) + background_iou) / 2,
        )


@given(MASKS)
@settings(max_examples=100, deadline=None)
def test_identities(masks):
    counts = classification.count(*masks)
    swapped = classification.count(*masks[::-1])
    score = overlap.dice(counts)
    close(overlap.iou(counts), score / (2 - score))
    close(classification.f_score(counts), score)
    close(classification.f1_pre_sen(counts), score)
    close(overlap.dice(swapped), score)
    close(classification.precision(counts), classification.recall(swapped))
    assert all(0 <= ratio(counts) <= 1 for ratio in RATIOS)
    assert all(ratio(classification.count(masks[0], masks[0])) == 1 for ratio in RATIOS)


def test_empty_masks():
    empty, full = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    full[1] = True
    both = classification.count(empty, empty)
    assert all(ratio(both) == 1 for ratio in RATIOS)
    for counts in (classification.count(empty, full), classification.count(full, empty)):
        for ratio in (
            overlap.dice,
            overlap.iou,
            classification.precision,
            classification.recall,
            classification.f1_pre_sen,
        ):
            assert ratio(counts) == 0
    close(overlap.miou_with_background(classification.count(empty, full)), 0.75 / 2)


def test_two_boxes():
    """Two 10 x 10 x 10 boxes shifted by 4 along one axis overlap in 600 of 1000 voxels."""
    prediction, reference = np.zeros((2, 20, 20, 20), np.uint8)
    reference[2:12, 2:12, 2:12] = 20
    prediction[6:16, 2:12, 2:12] = 21
    counts = classification.count(prediction, reference)
    assert counts == Counts(tp=600, fp=400, fn=400, tn=8000 - 1400)
    close(overlap.dice(counts), 0.6)
    close(overlap.iou(counts), 600 / 1400)
    close(classification.specificity(counts), 6600 / 7000)
    close(classification.accuracy(counts), 7200 / 8000)
    close(overlap.miou_with_background(counts), (600 / 1400 + 6600 / 7400) / 2)


def test_paper_b_accuracy_follows_from_its_other_figures():
    """PRE 90.1, recall 90.1 and SPE 99.4 with 5.7 % foreground give ACC 98.8 (paper B)."""
    positives, negatives = 57_000, 943_000
    tp, fp = round(0.901 * positives), round(0.006 * negatives)
    counts = Counts(tp=tp, fp=fp, fn=positives - tp, tn=negatives - fp)
    assert classification.precision(counts) == pytest.approx(0.901, abs=1e-3)
    assert classification.accuracy(counts) == pytest.approx(0.988, abs=1e-3)


def test_pooling_equals_concatenation():
    rng = np.random.default_rng(0)
    prediction, reference = rng.random((2, 5, 8, 8)) > 0.6
    parts = [classification.count(prediction[i], reference[i]) for i in range(5)]
    assert classification.pooled(parts) == classification.count(prediction, reference)


def test_slabs_cover_every_element_once(monkeypatch):
    seen = np.zeros((3, 4, 11), int)
    for slab in classification.slabs(seen.shape, elements=30):
        seen[slab] += 1
    assert (seen == 1).all()


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match="must agree"):
        classification.count(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="no elements"):
        classification.count(np.zeros((0, 3)), np.zeros((0, 3)))
