"""Dice slice by slice, and the best and the worst slices for a report.

A mean hides where a method fails; paper B shows the best and the worst slices (figures 14 and 16).
Slices that show only the tip of a process or of a facet are left out. Their few pixels are found or
missed by chance and would fill the list of the worst. A slice counts if it shows at least 10 % of
the foreground of the scan's fullest slice. In axial slices of a spine this leaves out 0 to 7 % of
the slices with foreground, at the ends of the spine; in sagittal slices a quarter to a half, those
that cut only transverse processes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from spinejax.metrics.classification import same_shape

_SMALLEST_SHARE = 0.1
_SLAB_ELEMENTS = 1 << 23


def slice_dice(
    prediction: np.ndarray, reference: np.ndarray, *, axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the Dice of every slice that shows enough of the reference.

    See the module's docstring. The function works slab by slab and needs some 50 MB.

    Args:
        prediction: (x, y, z) bool or number; foreground is everything above 0.
        reference: the same shape.
        axis: the axis that a slice fixes.

    Returns:
        Increasing indices (n,) int64 along `axis`, and Dice (n,) float64 in [0, 1]; both are empty
        for an empty reference.

    Raises:
        ValueError: the shapes differ or have no elements.
    """
    same_shape(prediction, reference)
    found, true = np.moveaxis(prediction, axis, 0), np.moveaxis(reference, axis, 0)
    counts = np.zeros((3, len(true)), np.int64)  # of prediction, reference, both
    step = max(1, _SLAB_ELEMENTS * len(true) // true.size)
    for start in range(0, len(true), step):
        slab = slice(start, start + step)
        ours, theirs = found[slab] > 0, true[slab] > 0
        for row, mask in enumerate((ours, theirs, ours & theirs)):
            counts[row, slab] = np.count_nonzero(mask, axis=tuple(range(1, mask.ndim)))
    predicted, area, both = counts
    indices = np.flatnonzero((area > 0) & (area >= _SMALLEST_SHARE * area.max()))
    return indices, 2 * both[indices] / (predicted + area)[indices]


def best_and_worst(
    scores: Mapping[str, tuple[np.ndarray, np.ndarray]], count: int = 4
) -> dict[str, list[dict[str, Any]]]:
    """Choose the slices of highest and of lowest Dice, from several cases and not side by side.

    A list has at most `count // 2` slices of one case. Two of them are at least an eighth of the
    case's slices apart (for a count of 4), because neighbours look alike. If these rules leave
    places free, they are dropped one after the other. No slice is in both lists; if there are too
    few slices for both, each list gets half of them. Equal scores are ordered by case, then by
    index.

    Args:
        scores: case id -> what `slice_dice` returns.
        count: length of each list, at least 1.

    Returns:
        {"best": [{"case", "index", "dice"}], "worst": [...]}, the most extreme first.
    """
    entries = [
        (float(dice), case, int(index))
        for case, (indices, values) in scores.items()
        for index, dice in zip(indices, values, strict=True)
    ]
    gaps = {case: max(1, len(indices) // (2 * count)) for case, (indices, _) in scores.items()}
    most = min(count, -(-len(entries) // 2))
    best = _choose(sorted(entries, key=lambda entry: -entry[0]), most, gaps)
    rest = sorted((entry for entry in entries if entry not in best), key=lambda entry: entry[0])
    worst = _choose(rest, min(most, len(rest)), gaps)
    return {
        name: [{"case": case, "index": index, "dice": dice} for dice, case, index in chosen]
        for name, chosen in (("best", best), ("worst", worst))
    }


_Entry = tuple[float, str, int]


def _choose(entries: list[_Entry], count: int, gaps: Mapping[str, int]) -> list[_Entry]:
    """Return the first `count` entries that keep the rules, in their order."""
    chosen: list[_Entry] = []
    per_case = max(1, count // 2)
    for cap, spread in ((per_case, True), (count, True), (count, False)):
        for entry in entries:
            of_case = [index for _, case, index in chosen if case == entry[1]]
            near = spread and any(abs(index - entry[2]) < gaps[entry[1]] for index in of_case)
            if len(chosen) < count and entry not in chosen and len(of_case) < cap and not near:
                chosen.append(entry)
    return sorted(chosen, key=entries.index)
