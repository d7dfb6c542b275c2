"""Successive halving on made-up validations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinejax.launch.halving import rungs, worst
from spinejax.sweep_state import LearningCurve


def curve(score, until, steps=9):
    """A unit that has the same score at each step up to `until`."""
    return LearningCurve(steps, [(step, score) for step in range(1, until + 1)])


def test_rungs_are_those_of_the_paper():
    # Figure 1 of Li et al.: nine units, eta 3; of nine resources, rungs after 1 and 3.
    assert rungs(9, 3) == [pytest.approx(1 / 9), pytest.approx(1 / 3)]
    assert rungs(27, 3)[0] == pytest.approx(1 / 27)
    assert rungs(4, 2) == [0.25, 0.5] and rungs(2, 2) == [0.5] and rungs(2, 3) == []


def test_units_side_by_side_are_halved_as_in_the_paper():
    # The same figure: nine units train for 1, three of them for 3, one of them for 9.
    running, alive, curves = set(range(9)), [], {}
    for step in range(1, 10):
        alive.append(len(running))
        curves |= {name: curve(name / 10, step) for name in running}
        running -= worst(curves, 3).keys()
    assert alive == [9, 3, 3, 1, 1, 1, 1, 1, 1]
    assert running == {8}


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9)), max_size=12), st.integers(2, 4))
def test_the_best_and_the_finished_go_on_and_the_rest_are_few(found, eta):
    curves = {number: curve(score, until) for number, (score, until) in enumerate(found)}
    stopped = worst(curves, eta)
    for number, (score, until) in enumerate(found):
        if until in (0, 9):
            assert number not in stopped  # not begun, or at its end
        if score == max(score for score, _ in found):
            assert number not in stopped
    # Nothing but the scores counts: not the order of the units, not who was looked at before.
    assert worst(dict(reversed(curves.items())), eta) == stopped


def test_a_unit_alone_goes_on_and_answers_for_its_highest_rung_only():
    assert worst({"a": curve(0.1, 5), "b": curve(0, 0)}, 2) == {}
    # b was better at the first rung, where a no longer stands.
    curves = {"a": curve(0.1, 5), "b": curve(0.2, 3), "c": curve(0, 0), "d": curve(0, 0)}
    assert worst(curves, 2) == {}
    assert worst({**curves, "b": curve(0.2, 5)}, 2).keys() == {"a"}
    assert worst({**curves, "b": curve(0.1, 5)}, 2) == {}  # equally good


def test_lengths_and_validations_may_differ_between_units():
    sparse = LearningCurve(
        90, [(45, 0.3), (90, 0.9)]
    )  # its first validation after half of its training
    dense = LearningCurve(9, [(4, 0.1), (5, 0.5), (6, 0.6)])
    assert worst({"sparse": sparse, "dense": dense}, 2) == {}  # sparse is at its end
    half = sparse._replace(scores=sparse.scores[:1])
    reason = "Dice 0.3000 at step 45 is not among the best 1 of 2 units there"
    assert worst({"sparse": half, "dense": dense}, 2) == {"sparse": reason}
    assert worst({"new": LearningCurve(0, []), "dense": dense}, 2) == {}
