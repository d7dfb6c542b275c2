"""Statistics of metrics over cases, and text tables of them."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from spinejax.text_table import text_table


def over_cases(
    cases: Mapping[str, Mapping[str, float | None]], pooled: Mapping[str, float | None]
) -> dict[str, dict[str, Any]]:
    """Return mean, population standard deviation and median of each metric of `pooled`.

    Args:
        cases: case -> metric -> value; None where it is undefined.
        pooled: metric -> its value for all cases taken as one.

    Returns:
        metric -> {"mean", "std", "median", "pooled", "n"}; `n` counts the cases where the metric is
        defined. Without such a case the statistics are None.
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
    """Return a text table: metrics of each case, of the whole scan and of its labelled range.

    Args:
        scores: what `scoring.score` returns.
    """
    metrics = list(scores["summary"]["labelled_range"])
    rows = [["case", *metrics, *(f"{name} (range)" for name in metrics)]]
    for name, case in scores["cases"].items():
        parts = (case["binary"], case["labelled_range"])
        rows.append([name, *(_number(part[metric]) for part in parts for metric in metrics)])
    return text_table(rows)


def summary_table(scores: Mapping[str, Any]) -> str:
    """Return a text table of what `scoring.score` returns: one line per metric.

    Ratios are fractions, not percent; distances are in mm; "-" stands for undefined.
    """
    metrics = dict(scores["summary"]["binary"])
    for name, row in scores["summary"]["labelled_range"].items():
        metrics[f"{name} (labelled range)"] = row
    rows = [["metric", "mean ± std", "median", "pooled", "n"]]
    for name, row in metrics.items():
        rows.append(
            [name, _spread(row), _number(row["median"]), _number(row["pooled"]), str(row["n"])]
        )
    lines = [text_table(rows), f"cases: {len(scores['cases'])}"]
    if "vertebrae" in scores["summary"]:
        lines.append(_vertebra_table(scores["summary"]["vertebrae"]))
    for why, ids in _by_reason(scores.get("without_vertebrae", {})).items():
        lines.append(f"no scores per vertebra, {why}: {some(ids)}")
    for kind, ids in scores["missing"].items():
        if ids:
            lines.append(f"not scored, no {kind}: {some(ids)}")
    if "failed" in scores:
        lines.append(f"not scored, failed: {some(scores['failed'])}")
    return "\n".join(lines)


def patch_table(scores: Mapping[str, Any]) -> str:
    """Return a text table of what `classification.patch_scores` returns: one line per metric.

    Ratios are fractions, not percent; "-" stands for undefined.
    """
    rows = [["patches", "mean ± std", "pooled", "n"]]
    for name, row in scores["summary"].items():
        rows.append([name, _spread(row), _number(row["pooled"]), str(row["n"])])
    return text_table(rows)


def _vertebra_table(scores: Mapping[str, Any]) -> str:
    """Return a text table of what `identification.summarise` returns.

    It has a line for all vertebrae, and one for each region of the spine that occurs.
    """
    source = {
        "masks": "centroids are the masks' centres of mass",
        "files": "centroids are the given ones, and the centres of the prediction's bodies",
    }.get(scores["reference_centroids"], scores["reference_centroids"])
    rows = [["", "id.rate", "d_mean mm", "Dice", "number", "missed", "extra"]]
    for name, row in {"all": scores, **scores["per_region"]}.items():
        if row["n_reference"] or row["n_extra"]:
            means = (_number(row[key]) for key in ("id_rate", "d_mean_mm", "dice_mean"))
            counts = (str(row[key]) for key in ("n_reference", "n_missed", "n_extra"))
            rows.append([name, *means, *counts])
    right = round(scores["all_correct"] * scores["n_scans"])
    return (
        f"vertebrae; {source}\n{text_table(rows)}\n"
        f"scans with every vertebra right: {right} of {scores['n_scans']}"
    )


def _spread(row: Mapping[str, Any]) -> str:
    """Return "mean ± std" as text, only the mean of a single case, "-" where it is undefined."""
    spread = f" ± {row['std']:.4f}" if row["n"] > 1 else ""
    return _number(row["mean"]) + spread


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Return reason -> the cases that have it."""
    cases: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        cases.setdefault(reason, []).append(name)
    return cases


def some(names: Iterable[str], most: int = 5) -> str:
    """Return the first `most` names and how many more there are, as text."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
