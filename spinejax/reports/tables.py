"""Tables of scores: with spread over cases, per case, and beside the published rows of paper A.

A score file is what `spinejax score` and `spinejax evaluate` write:
`{"cases": {id: {"binary": {metric: value}, ...}}, "summary": {"binary": {metric: {"mean", "std",
"median", "pooled"}}}}`. Values are shares (0 to 1) or millimetres; null or NaN: not defined for
that case.
"""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spinejax.reports import published

OWN_SPLITS = ("test", "val", "train")
"""Parts of a run's own data; an evaluation of any other name is of a folder of scans."""


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: `unit` is "" for a share or "mm"."""

    key: str
    name: str
    unit: str
    hint: str
    higher_is_better: bool = True


METRICS = (
    Metric("dice", "Dice", "", "2 TP / (2 TP + FP + FN), spine against background"),
    Metric("iou", "IoU", "", "TP / (TP + FP + FN) of the spine"),
    Metric(
        "miou_with_background", "IoU, mean with background", "", "mean of spine and background IoU"
    ),
    Metric("precision", "Precision", "", "share of the prediction that is spine"),
    Metric("recall", "Recall", "", "share of the spine that is found (sensitivity)"),
    Metric("specificity", "Specificity", "", "share of the background that is left alone"),
    Metric("accuracy", "Accuracy", "", "share of all voxels that are right; high for any CT"),
    Metric("bf_score", "BF score", "", "F1 of the boundaries, within a tolerance"),
    Metric("f1_pre_sen", "F1", "", "harmonic mean of precision and sensitivity"),
    Metric("hd95_mm", "HD95", "mm", "95th percentile of the surface distances", False),
    Metric("assd_mm", "ASSD", "mm", "average symmetric surface distance", False),
    Metric("nsd_1mm", "NSD at 1 mm", "", "share of the surfaces within 1 mm of each other"),
)
CASE_COLUMNS = (
    "dice",
    "iou",
    "precision",
    "recall",
    "bf_score",
    "nsd_1mm",
    "hd95_mm",
    "assd_mm",
)
COUNTS = ("tp", "fp", "fn", "tn")

PATCH_METRICS = {
    "precision": "Precision",
    "specificity": "Specificity",
    "accuracy": "Accuracy",
    "f_score": "F-score",
    "recall": "Recall",
}
"""Key of a metric of patches (`tables_b`) -> its name, in the order of the tables."""

_BY_KEY = {metric.key: metric for metric in METRICS}
DASH = "–"


@dataclass(frozen=True)
class Summary:
    """One metric over the cases where it is defined (`cases` of them); None where unknown."""

    metric: Metric
    cases: int
    mean: float
    std: float
    median: float
    low: float
    high: float
    pooled: float | None


@dataclass(frozen=True)
class Compared:
    """One row of the comparison with paper A; scores in per cent, None where not given.

    `iou_unstated` is an IoU whose classes its source does not state.
    """

    who: str
    data: str
    dice: float | None
    iou: float | None = None
    miou_with_background: float | None = None
    iou_unstated: float | None = None
    precision: float | None = None
    recall: float | None = None
    parameters: int | None = None
    source: str = ""
    ours: bool = False


def finite(value: Any) -> float | None:
    """Return a number as float; None for what is not one (null, NaN, text)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def item(value: Any, *keys: str) -> Any:
    """Return what nested mappings hold under `keys`; None where there is nothing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def case_values(scores: Mapping[str, Any], key: str) -> dict[str, float]:
    """Return case id -> value of a metric, for the cases where it is defined."""
    values = {
        case: finite(item(record, "binary", key))
        for case, record in (scores.get("cases") or {}).items()
    }
    return {case: value for case, value in values.items() if value is not None}


def ranked(scores: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return (case id, Dice) from the worst to the best; ties in the order of the ids."""
    return sorted(case_values(scores, "dice").items(), key=lambda item: (item[1], item[0]))


def summarise(scores: Mapping[str, Any]) -> list[Summary]:
    """Return one row per metric that any case has, in the order of `METRICS`.

    Mean, standard deviation and median are those of the file's own summary where it has them, so
    that the page and the file cannot differ; they are computed (population standard deviation)
    where it does not.
    """
    rows = []
    for metric in METRICS:
        values = list(case_values(scores, metric.key).values())
        if not values:
            continue
        given = {
            name: finite(item(scores, "summary", "binary", metric.key, name))
            for name in ("mean", "std", "median", "pooled")
        }
        mean, std, median = given["mean"], given["std"], given["median"]
        rows.append(
            Summary(
                metric=metric,
                cases=len(values),
                mean=statistics.fmean(values) if mean is None else mean,
                std=statistics.pstdev(values) if std is None else std,
                median=statistics.median(values) if median is None else median,
                low=min(values),
                high=max(values),
                pooled=given["pooled"],
            )
        )
    return rows


def shown(value: float | None, metric: Metric | str) -> str:
    """Return a value as it is printed: three decimals for shares, two for millimetres."""
    metric = _BY_KEY[metric] if isinstance(metric, str) else metric
    if value is None:
        return DASH
    return f"{value:.2f}" if metric.unit == "mm" else f"{value:.3f}"


def percent(value: float | None) -> str:
    """Return a percentage with two decimals, as the paper prints them."""
    return DASH if value is None else f"{value:.2f}"


def is_phantom(config: Mapping[str, Any], split: str = "test") -> bool:
    """Whether a run draws its own scans, and `split` is of these rather than a folder of others."""
    own = split in OWN_SPLITS
    return own and item(config, "data", "source") in ("phantom", "phantom_stream")


def compare(
    config: Mapping[str, Any],
    scores: Mapping[str, Any] | None,
    parameters: int | None = None,
    split: str = "test",
) -> list[Compared]:
    """Return this run (mean over its scans) and the published rows of the same experiment.

    Args:
        config: the run's resolved config.
        scores: a score file, or None where nothing has been scored.
        parameters: of the run's network.
        split: name of the part of the data that `scores` is about.
    """
    rows = []
    means = {row.metric.key: 100 * row.mean for row in summarise(scores or {})}
    if "dice" in means:
        count = len(case_values(scores or {}, "dice"))
        kind = "synthetic scan" if is_phantom(config, split) else "scan"
        rows.append(
            Compared(
                who="This run",
                data=f"{count} {kind}{'s' if count != 1 else ''} ({split}), mean over scans",
                dice=means["dice"],
                iou=means.get("iou"),
                miou_with_background=means.get("miou_with_background"),
                precision=means.get("precision"),
                recall=means.get("recall"),
                parameters=parameters,
                ours=True,
            )
        )
    work = published.OTHER_WORKS.get(str(item(config, "model", "name")))
    for row in published.matching_rows(config):
        rows.append(
            Compared(
                who=row.system,
                data=f"{row.dataset}, {row.setting}",
                dice=row.dice,
                iou_unstated=row.iou,
                precision=row.precision,
                recall=row.recall,
                parameters=work.parameters if work else None,
                source=f"Table {row.table}",
            )
        )
    if work is not None and not published.matching_rows(config):
        rows.append(
            Compared(
                who=work.system,
                data=f"{work.test_samples} test samples",
                dice=work.dice,
                parameters=work.parameters,
                source="Table 11",
            )
        )
    return rows


def reasons_apart(config: Mapping[str, Any], split: str = "test") -> list[str]:
    """Return why the rows of `compare` may not be set against each other."""
    return published.why_not_comparable(
        phantom=is_phantom(config, split), quoted=not published.matching_rows(config)
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join([line(header), line(ruler), *map(line, rows)]) + "\n"


def tables_markdown(
    config: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Any]],
    parameters: int | None = None,
) -> str:
    """Return every table of the page as Markdown.

    Args:
        config: the run's resolved config.
        evaluations: split -> score file.
        parameters: of the run's network.
    """
    parts = [f"# {config.get('name', 'run')}\n"]
    for split, scores in evaluations.items():
        parts.append(f"## Scores, {split}: {len(scores.get('cases') or {})} scans\n")
        parts.append(
            markdown_table(
                ["metric", "mean ± std", "median", "lowest", "highest", "pooled", "scans"],
                [
                    [
                        row.metric.name + (f" ({row.metric.unit})" if row.metric.unit else ""),
                        f"{shown(row.mean, row.metric)} ± {shown(row.std, row.metric)}",
                        shown(row.median, row.metric),
                        shown(row.low, row.metric),
                        shown(row.high, row.metric),
                        shown(row.pooled, row.metric),
                        str(row.cases),
                    ]
                    for row in summarise(scores)
                ],
            )
        )
    first = next(iter(evaluations), "test")
    compared = compare(config, evaluations.get(first), parameters, first)
    if any(not row.ours for row in compared):
        parts.append("## Beside paper A (per cent)\n")
        header = ["system", "data", "Dice", "IoU", "IoU with background"]
        parts.append(
            markdown_table(
                [*header, "IoU, unstated which", "precision", "recall", "parameters", "source"],
                [
                    [
                        row.who,
                        row.data,
                        *map(
                            percent,
                            (row.dice, row.iou, row.miou_with_background, row.iou_unstated),
                        ),
                        percent(row.precision),
                        percent(row.recall),
                        DASH if row.parameters is None else f"{row.parameters:,}",
                        row.source or "this run",
                    ]
                    for row in compared
                ],
            )
        )
        parts.append("Not comparable, because:\n")
        reasons = reasons_apart(config, first)
        parts.append("".join(f"- {reason}\n" for reason in reasons))
    return "\n".join(parts)


def tables_csv(
    evaluations: Mapping[str, Mapping[str, Any]],
    patches: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Return one line per scan with every metric, at full precision; empty where undefined.

    Args:
        evaluations: split -> score file.
        patches: split -> file of patch scores; counts and scores of patches follow as columns whose
            names begin with `patch_`.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    of_patches = (*COUNTS, *PATCH_METRICS) if patches else ()
    names = [*(metric.key for metric in METRICS), *(f"patch_{key}" for key in of_patches)]
    writer.writerow(["split", "case", *names])
    for split, scores in evaluations.items():
        for case, record in (scores.get("cases") or {}).items():
            values = [finite(item(record, "binary", metric.key)) for metric in METRICS]
            cells = ["" if v is None else repr(v) for v in values]
            for key in of_patches:
                value = item(patches, split, "cases", case, key)
                cells.append("" if finite(value) is None else repr(value))
            writer.writerow([split, case, *cells])
    return stream.getvalue()
