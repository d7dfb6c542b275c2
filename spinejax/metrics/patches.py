"""Scores of a patch classifier, case by case: paper B, section III.B.1, table 2 and figure 13.

Here the elements that `Counts` counts are patches: a patch is right if its predicted class is that
of its label, whatever its pixels. Scores of pixels are another matter (`spinejax.scoring`): the
recall that table 2 implies and the sensitivity of table 3 differ by up to 15 points.

Empty cases follow the one rule of `classification`: a ratio 0/0 is 1 where prediction and
reference agree everywhere and 0 otherwise, so that every score is defined for every case.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from spinejax.metrics import classification
from spinejax.metrics.classification import Counts

PATCH_METRICS = {
    "precision": classification.precision,
    "specificity": classification.specificity,
    "accuracy": classification.accuracy,
    "f_score": classification.f_score,
    "recall": classification.recall,
}
"""The four of table 2 in its order (eqs. 2, 1, 3, 4), and the recall that the text describes."""


def patch_scores(
    cases: Mapping[str, Counts],
    *,
    size: int,
    stride: int,
    label_rule: str,
    balanced_training: tuple[Counts, int] | None = None,
) -> dict[str, Any]:
    """Collect the scores of a split, ready for `files.write_json`.

    The counts are the confusion matrices of figure 13: "tp" and "fn" are its row of patches that
    are vertebra, "fp" and "tn" that of background.

    Args:
        cases: case id -> counts of its patches.
        size: side of a patch, pixels.
        stride: pixels from one patch to the next.
        label_rule: how a patch gets its label from its pixels.
        balanced_training: counts of patches of the balanced training data, and how many patches
            these data have in all (the counts may be of a part of them); None if unknown.

    Returns:
        {"label_rule", "stride", "size", "cases": {id: {"tp", "fp", "fn", "tn", metric: value}},
        "summary": {metric: {"mean", "std", "pooled", "n"}}, "balanced_training": {"tp", "fp", "fn",
        "tn", "of", "used"} or None}. `mean` and `std` (of the population) are over the `n` cases,
        `pooled` is of the counts of all cases added up; all None without cases.
    """
    table = {
        name: asdict(counts) | {metric: score(counts) for metric, score in PATCH_METRICS.items()}
        for name, counts in cases.items()
    }
    together = classification.pooled(cases.values())
    summary = {}
    for metric, score in PATCH_METRICS.items():
        values = [row[metric] for row in table.values()]
        summary[metric] = {
            "mean": float(np.mean(values)) if values else None,
            "std": float(np.std(values)) if values else None,
            "pooled": score(together) if values else None,
            "n": len(values),
        }
    balanced = None
    if balanced_training is not None:
        counts, available = balanced_training
        balanced = asdict(counts) | {"of": available, "used": counts.total}
    return {
        "label_rule": label_rule,
        "stride": stride,
        "size": size,
        "cases": table,
        "summary": summary,
        "balanced_training": balanced,
    }


def summary_table(scores: Mapping[str, Any]) -> str:
    """A table for the terminal of what `patch_scores` returned: one line per metric.

    Ratios are fractions, not percent; "-" stands for undefined.
    """
    lines = [f"{'patches':<22}{'mean ± std':>18}{'pooled':>10}{'n':>6}"]
    for metric, row in scores["summary"].items():
        mean, std, total = (
            "-" if row[key] is None else f"{row[key]:.4f}" for key in ("mean", "std", "pooled")
        )
        lines.append(f"{metric:<22}{f'{mean} ± {std}':>18}{total:>10}{row['n']:>6}")
    return "\n".join(lines)
