"""Statistics of metrics over cases."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def over_cases(
    cases: Mapping[str, Mapping[str, float | None]], pooled: Mapping[str, float | None]
) -> dict[str, dict[str, Any]]:
    """Mean, population standard deviation and median of each metric of `pooled`.

    Args:
        cases: case -> metric -> value, None where it is undefined.
        pooled: metric -> its value of all cases taken as one.

    Returns:
        metric -> {"mean", "std", "median", "pooled", "n"}; `n` counts the cases where the metric is
        defined, and the others are None where there is none.
    """
    summary = {}
    for metric in pooled:
        values = [value for case in cases.values() if (value := case[metric]) is not None]
        summary[metric] = {
            "mean": float(np.mean(values)) if values else None,
            "std": float(np.std(values)) if values else None,
            "median": float(np.median(values)) if values else None,
            "pooled": pooled[metric] if cases else None,
            "n": len(values),
        }
    return summary
