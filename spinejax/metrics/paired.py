"""Paired differences: two methods on the same scans."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

DRAWS = 10_000


class Paired(NamedTuple):
    """The mean difference over `n` scans, and its interval of 95 % confidence."""

    mean: float
    low: float
    high: float
    n: int


def difference(ours: Mapping[str, float], baseline: Mapping[str, float]) -> Paired | None:
    """Return how much larger our values are, over the scans that both have.

    The interval is a percentile bootstrap over scans (Efron and Tibshirani, 1993, chapter 13):
    scans are drawn again with replacement, DRAWS times. The draws are the same each time.

    Args:
        ours: scan -> value.
        baseline: scan -> value.

    Returns:
        None for fewer than two scans.
    """
    both = sorted(ours.keys() & baseline.keys())
    if len(both) < 2:
        return None
    values = np.array([ours[scan] - baseline[scan] for scan in both])
    interval = stats.bootstrap(
        (values,), np.mean, n_resamples=DRAWS, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return Paired(float(values.mean()), float(interval.low), float(interval.high), len(both))
