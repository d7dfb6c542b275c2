"""Dice of slices against sets of pixels; which slices are shown."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spinejax.metrics import slice_dice

MASKS = hnp.array_shapes(min_dims=3, max_dims=3, max_side=6).flatmap(
    lambda shape: st.tuples(
        *(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1, 24])) for _ in range(2))
    )
)


@settings(max_examples=100, deadline=None)
@given(MASKS, st.integers(0, 2))
def test_agrees_with_sets_of_pixels(masks, axis):
    prediction, reference = masks
    indices, dice = slice_dice.slice_dice(prediction, reference, axis=axis)
    found = [set(np.flatnonzero(prediction.take(i, axis))) for i in range(reference.shape[axis])]
    true = [set(np.flatnonzero(reference.take(i, axis))) for i in range(reference.shape[axis])]
    largest = max(map(len, true))
    expected = [i for i, one in enumerate(true) if one and 10 * len(one) >= largest]
    assert indices.tolist() == expected
    for index, value in zip(expected, dice, strict=True):
        both = len(found[index] & true[index])
        assert value == pytest.approx(2 * both / (len(found[index]) + len(true[index])))


def test_slices_with_only_the_tip_of_a_bone_are_left_out():
    reference = np.zeros((20, 20, 6), bool)
    reference[:10, :20, 1:3] = True  # 200 pixels
    reference[:10, :2, 3] = True  # 20
    reference[:19, 0, 4] = True  # 19
    prediction = np.zeros_like(reference)
    prediction[:10, :10, 1] = True
    indices, dice = slice_dice.slice_dice(prediction, reference, axis=2)
    assert indices.tolist() == [1, 2, 3]
    assert dice.tolist() == [pytest.approx(2 / 3), 0, 0]


@pytest.mark.parametrize("axis", range(3))
def test_slabs_change_nothing(axis, monkeypatch):
    rng = np.random.default_rng(0)
    prediction, reference = rng.random((2, 9, 10, 11)) > 0.5
    whole = slice_dice.slice_dice(prediction, reference, axis=axis)
    monkeypatch.setattr(slice_dice, "_SLAB_ELEMENTS", 250)
    for one, other in zip(
        slice_dice.slice_dice(prediction, reference, axis=axis), whole, strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_takes_little_memory(monkeypatch):
    monkeypatch.setattr(slice_dice, "_SLAB_ELEMENTS", 1 << 16)
    prediction, reference = np.ones((2, 160, 160, 160), np.uint8)
    tracemalloc.start()
    slice_dice.slice_dice(prediction, reference, axis=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * (1 << 16)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="must agree"):
        slice_dice.slice_dice(np.ones((2, 3, 4)), np.ones((2, 4, 3)), axis=0)


def case(values, first=0):
    return np.arange(first, first + len(values)), np.array(values, float)


def listed(entries):
    return [(entry["case"], entry["index"]) for entry in entries]


def test_best_and_worst_of_a_ramp_are_its_ends_spread_out():
    # 80 slices of one case: chosen ones lie 10 apart.
    lists = slice_dice.best_and_worst({"a": case(np.linspace(0.2, 0.99, 80), first=100)})
    assert listed(lists["best"]) == [("a", 179), ("a", 169), ("a", 159), ("a", 149)]
    assert listed(lists["worst"]) == [("a", 100), ("a", 110), ("a", 120), ("a", 130)]
    assert lists["worst"][0]["dice"] == pytest.approx(0.2)
    assert json.loads(json.dumps(lists)) == lists


def test_a_bad_case_does_not_fill_the_list():
    scores = {"good": case(np.linspace(0.8, 0.9, 40)), "bad": case(np.linspace(0.1, 0.3, 40))}
    lists = slice_dice.best_and_worst(scores)
    assert listed(lists["worst"]) == [("bad", 0), ("bad", 5), ("good", 0), ("good", 5)]
    assert listed(lists["best"]) == [("good", 39), ("good", 34), ("bad", 39), ("bad", 34)]


def test_equal_scores_go_by_case_then_index():
    scores = {"b": case([0.5] * 16), "a": case([0.5] * 16)}
    lists = slice_dice.best_and_worst(scores, count=2)
    assert listed(lists["best"]) == [("b", 0), ("a", 0)]
    assert listed(lists["worst"]) == [("b", 1), ("a", 1)]


def test_places_left_free_are_filled_and_no_slice_is_in_both_lists():
    # Another case has but one slice, so that the cap gives way.
    scores = {"a": case(np.linspace(0.1, 0.8, 30)), "b": case([0.9])}
    assert [name for name, _ in listed(slice_dice.best_and_worst(scores)["best"])] == list("baaa")
    few = slice_dice.best_and_worst({"a": case([0.7, 0.9, 0.1])})
    assert listed(few["best"]) == [("a", 1), ("a", 0)]
    assert listed(few["worst"]) == [("a", 2)]
    one = slice_dice.best_and_worst({"a": case([0.7]), "empty": case([])})
    assert (listed(one["best"]), one["worst"]) == ([("a", 0)], [])
    assert slice_dice.best_and_worst({}) == {"best": [], "worst": []}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), max_size=12), max_size=4),
    st.integers(1, 5),
)
def test_lists_are_full_ordered_and_apart(values, count):
    scores = {f"c{i}": case(np.array(one) / 5, first=i) for i, one in enumerate(values)}
    total = sum(map(len, values))
    lists = slice_dice.best_and_worst(scores, count=count)
    best, worst = listed(lists["best"]), listed(lists["worst"])
    assert len(best) == min(count, (total + 1) // 2)
    assert len(worst) == min(count, total // 2)
    assert len(set(best + worst)) == len(best + worst)
    for entries, sign in ((lists["best"], -1), (lists["worst"], 1)):
        found = [entry["dice"] for entry in entries]
        assert found == sorted(found, key=lambda value: sign * value)
        for entry in entries:
            indices, dice = scores[entry["case"]]
            assert dice[indices.tolist().index(entry["index"])] == entry["dice"]
