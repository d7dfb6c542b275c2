"""Statistics of metrics over cases, and tables of them for the terminal."""

from collections.abc import Iterable, Mapping
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


def case_table(scores: Mapping[str, Any]) -> str:
    """A table for the terminal: metrics of each case, of all of it and of its labelled range."""
    width = max([4, *map(len, scores["cases"])])
    metrics = list(scores["summary"]["labelled_range"])
    names = ("  " + "".join(f"{name:>10}" for name in metrics)) * 2
    lines = [
        f"{'':<{width}}  {'whole scan':>30}  {'labelled range':>30}",
        f"{'case':<{width}}{names}",
    ]
    for name, case in scores["cases"].items():
        line = f"{name:<{width}}"
        for part in ("binary", "labelled_range"):
            values = (case[part][metric] for metric in metrics)
            line += "  " + "".join(f"{'-' if v is None else f'{v:.4f}':>10}" for v in values)
        lines.append(line)
    return "\n".join(lines)


def summary_table(scores: Mapping[str, Any]) -> str:
    """A table for the terminal of what `scoring.score` returned: one line per metric.

    Ratios are fractions, not percent; distances are in mm. "-" stands for undefined.
    """
    width = 28
    lines = [f"{'metric':<{width}}{'mean ± std':>18}{'median':>10}{'pooled':>10}{'n':>6}"]
    rows = dict(scores["summary"]["binary"])
    for name, row in scores["summary"]["labelled_range"].items():
        rows[f"{name} (labelled range)"] = row
    for metric, row in rows.items():
        mean, std, median, pooled = (
            "-" if row[key] is None else f"{row[key]:.4f}"
            for key in ("mean", "std", "median", "pooled")
        )
        spread = f"{mean} ± {std}" if row["n"] else "-"
        lines.append(f"{metric:<{width}}{spread:>18}{median:>10}{pooled:>10}{row['n']:>6}")
    lines.append(f"cases: {len(scores['cases'])}")
    if "vertebrae" in scores["summary"]:
        lines.append(vertebra_table(scores["summary"]["vertebrae"]))
    for why, ids in _by_reason(scores.get("without_vertebrae", {})).items():
        lines.append(f"no scores per vertebra, {why}: {some(ids)}")
    for kind, ids in scores["missing"].items():
        if ids:
            lines.append(f"not scored, no {kind}: {some(ids)}")
    return "\n".join(lines)


def vertebra_table(scores: Mapping[str, Any]) -> str:
    """A table for the terminal of what `vertebra_scores.summarise` returned.

    One line for all vertebrae, and one for each region of the spine that occurs.
    """
    source = {
        "masks": "centroids are the masks' centres of mass",
        "files": "centroids are the given ones, and the centres of the prediction's bodies",
    }.get(scores["reference_centroids"], scores["reference_centroids"])
    lines = [
        f"vertebrae; {source}",
        f"{'':<8}{'id.rate':>9}{'d_mean mm':>11}{'Dice':>9}{'number':>8}{'missed':>8}{'extra':>7}",
    ]
    rows = {"all": scores, **scores["per_region"]}
    for name, row in rows.items():
        if row["n_reference"] or row["n_extra"]:
            means = (row["id_rate"], row["d_mean_mm"], row["dice_mean"])
            rate, distance, dice = ("-" if value is None else f"{value:.4f}" for value in means)
            lines.append(
                f"{name:<8}{rate:>9}{distance:>11}{dice:>9}{row['n_reference']:>8}"
                f"{row['n_missed']:>8}{row['n_extra']:>7}"
            )
    right = round(scores["all_correct"] * scores["n_scans"])
    lines.append(f"scans with every vertebra right: {right} of {scores['n_scans']}")
    return "\n".join(lines)


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> the cases that have it."""
    cases: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        cases.setdefault(reason, []).append(name)
    return cases


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
