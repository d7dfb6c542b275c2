"""Paired differences against closed forms and against scans of unequal difficulty."""

import numpy as np
import pytest

from spinejax.metrics.paired import difference


def named(values):
    return {f"scan{number}": value for number, value in enumerate(values)}


def test_a_constant_difference_has_no_width():
    scans = np.random.default_rng(0).uniform(0.2, 0.9, 30)
    found = difference(named(scans + 0.05), named(scans))
    assert found.n == 30
    assert (found.mean, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05))


def test_the_interval_is_that_of_the_mean_and_not_of_the_scans():
    rng = np.random.default_rng(1)
    hard = rng.uniform(0.1, 0.9, 400)  # scans differ far more than the methods
    found = difference(named(hard + rng.normal(0.02, 0.01, 400)), named(hard))
    half = 1.96 * 0.01 / 400**0.5  # of a normal distribution
    assert found.high - found.mean == pytest.approx(half, rel=0.15)
    assert found.mean - found.low == pytest.approx(half, rel=0.15)
    assert found.low > 0


def test_only_scans_that_both_have_count_and_the_result_is_the_same_each_time():
    ours, baseline = named([0.5, 0.7, 0.9]), named([0.4, 0.5])
    found = difference(ours, {**baseline, "other": 0.0})
    assert found.n == 2 and found.mean == pytest.approx(0.15)
    assert found == difference(ours, baseline)
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.2)
    assert difference(ours, {"other": 0.0}) is None
    assert difference(named([0.5]), named([0.4])) is None
