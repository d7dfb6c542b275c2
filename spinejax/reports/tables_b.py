"""Tables of patch scores, and this run beside Tables 2 and 3 of paper B.

A file of patch scores (`evaluation/<split>/patches.json`) holds

    {"label_rule", "stride", "size", "cases": {id: {"tp", "fp", "fn", "tn", "precision",
     "specificity", "accuracy", "f_score", "recall"}},
     "summary": {metric: {"mean", "std", "pooled", "n"}},
     "balanced_training": {"tp", "fp", "fn", "tn", "of", "used"} or null}

with shares from 0 to 1, null where undefined.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spinejax.reports import published_b, tables
from spinejax.reports.tables import COUNTS, DASH, PATCH_METRICS, finite, item

TABLE_2_COLUMNS = ("PRE", "SPE", "ACC", "F-score")
TABLE_3_COLUMNS = ("SEN", "BF-score", "F1 of PRE and SEN", "JAC", "DSC")

_TABLE_2_KEYS = ("precision", "specificity", "accuracy", "f_score")
_TABLE_3_KEYS = ("recall", "bf_score", "f1_pre_sen", "iou", "dice")


@dataclass(frozen=True)
class ComparedB:
    """One row beside Table 2 or 3: per cent, None where not given.

    `bf_printed` is the paper's BF-score, which is neither of our two columns; `matched` marks the
    published row of this run's network.
    """

    who: str
    data: str
    values: tuple[float | None, ...]
    bf_printed: float | None = None
    ours: bool = False
    matched: bool = False


def whole(value: Any) -> int | None:
    """Return a count; None for what is not one."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None


def confusion(record: Any) -> tuple[int, int, int, int] | None:
    """Return (tp, fp, fn, tn) of a record; None where one is missing or all are 0."""
    found = [whole(item(record, key)) for key in COUNTS]
    counts = [value for value in found if value is not None]
    if len(counts) < len(COUNTS) or not sum(counts):
        return None
    tp, fp, fn, tn = counts
    return tp, fp, fn, tn


def patch_cases(patches: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return case id -> record of a file of patch scores."""
    cases = patches.get("cases")
    return cases if isinstance(cases, Mapping) else {}


def ranked_patches(patches: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return (case id, F-score) from the worst to the best; ties in the order of the ids."""
    scores = {case: finite(item(r, "f_score")) for case, r in patch_cases(patches).items()}
    found = [(case, score) for case, score in scores.items() if score is not None]
    return sorted(found, key=lambda pair: (pair[1], pair[0]))


def pooled(patches: Mapping[str, Any], key: str) -> float | None:
    """Return a patch metric over the patches of all scans together."""
    return finite(item(patches, "summary", key, "pooled"))


def how_cut(patches: Mapping[str, Any]) -> str:
    """Return how the scored patches were cut and labelled, in words; "" where unknown."""
    size, stride, rule = (patches.get(key) for key in ("size", "stride", "label_rule"))
    words = [f"{size} × {size} pixels"] if whole(size) else []
    words += [f"stride {stride}"] if whole(stride) else []
    words += [f"{rule} rule"] if isinstance(rule, str) else []
    return ", ".join(words)


def _per_cent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def compare_patches(
    config: Mapping[str, Any], patches: Mapping[str, Any] | None, split: str = "test"
) -> list[ComparedB]:
    """Return this run (patches of all its scans together) and Table 2, its own network first.

    Args:
        config: the run's resolved config.
        patches: a file of patch scores, or None where there is none.
        split: name of the part of the data that `patches` is about.

    Returns:
        Empty for a network that Table 2 does not have.
    """
    match, _ = published_b.matching_rows(config)
    if match is None:
        return []
    rows = []
    values = tuple(_per_cent(pooled(patches or {}, key)) for key in _TABLE_2_KEYS)
    if patches is not None and any(value is not None for value in values):
        number = len(patch_cases(patches))
        kind = "synthetic scan" if tables.is_phantom(config, split) else "scan"
        scans = f"{number} {kind}{'' if number == 1 else 's'} ({split}), pooled"
        rows.append(ComparedB("This run", ", ".join([scans, how_cut(patches)]), values, ours=True))
    for row in sorted(published_b.TABLE_2, key=lambda row: row != match):
        printed = (row.precision, row.specificity, row.accuracy, row.f_score)
        rows.append(ComparedB(row.name, "", printed, matched=row == match))
    return rows


def compare_pixels(
    config: Mapping[str, Any], scores: Mapping[str, Any] | None, split: str = "test"
) -> list[ComparedB]:
    """Return this run (mean over its scans) and Table 3, its own network first.

    Args:
        config: the run's resolved config.
        scores: a score file, or None where nothing has been scored.
        split: name of the part of the data that `scores` is about.

    Returns:
        Empty for a network that Table 3 does not have.
    """
    _, match = published_b.matching_rows(config)
    if match is None:
        return []
    rows = []
    means = {row.metric.key: 100 * row.mean for row in tables.summarise(scores or {})}
    if "dice" in means:
        number = len(tables.case_values(scores or {}, "dice"))
        kind = "synthetic scan" if tables.is_phantom(config, split) else "scan"
        data = f"{number} {kind}{'' if number == 1 else 's'} ({split}), mean over scans"
        values = tuple(means.get(key) for key in _TABLE_3_KEYS)
        rows.append(ComparedB("This run", data, values, ours=True))
    for row in sorted(published_b.TABLE_3, key=lambda row: row != match):
        rows.append(
            ComparedB(
                row.name,
                "",
                (row.sensitivity, None, None, row.jaccard, row.dice),
                bf_printed=row.bf_score,
                matched=row == match,
            )
        )
    return rows


def per_cent(value: float | None) -> str:
    """Return a percentage with one decimal, as paper B prints them."""
    return DASH if value is None else f"{value:.1f}"


def _three(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def patch_table(patches: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the patch scores: all scans pooled, their mean, then each scan.

    Scans come worst first, those without an F-score before them.
    """
    header = ["scan", "patches", "vertebra", *PATCH_METRICS.values()]
    cases = patch_cases(patches)

    def of(name: str, record: Any, values: Sequence[str]) -> list[str]:
        counts = confusion(record)
        if counts is None:
            return [name, DASH, DASH, *values]
        total = sum(counts)
        share = 100 * (counts[0] + counts[2]) / total
        return [name, f"{total:,}", f"{share:.1f} %", *values]

    all_counts = [counts for r in cases.values() if (counts := confusion(r)) is not None]
    together = dict(zip(COUNTS, map(sum, zip(*all_counts, strict=True)), strict=False))
    rows = [of("All, pooled", together, [_three(pooled(patches, key)) for key in PATCH_METRICS])]
    if len(cases) > 1:
        spread = []
        for key in PATCH_METRICS:
            mean, std = (finite(item(patches, "summary", key, name)) for name in ("mean", "std"))
            spread.append(f"{_three(mean)} ± {_three(std)}")
        rows.append(["Mean ± std over scans", "", "", *spread])
    order = [case for case, _ in ranked_patches(patches)]
    for case in [*(case for case in cases if case not in order), *order]:
        values = [_three(finite(item(cases[case], key))) for key in PATCH_METRICS]
        rows.append(of(case, cases[case], values))
    return header, rows


def markdown(
    config: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Any]],
    patches: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the tables of patches and of paper B as Markdown; "" where there are none.

    Args:
        config: the run's resolved config.
        evaluations: split -> score file.
        patches: split -> file of patch scores.
    """
    parts = []
    for split, record in patches.items():
        cut = how_cut(record)
        parts.append(f"## Patches, {split}{f': {cut}' if cut else ''}\n")
        parts.append(tables.markdown_table(*patch_table(record)))
    split = next(iter(evaluations), "test")
    compared = compare_patches(config, patches.get(split), split)
    if compared:
        parts.append("## Beside paper B, Table 2: patches (per cent)\n")
        parts.append(_compared(TABLE_2_COLUMNS, compared))
    compared = compare_pixels(config, evaluations.get(split), split)
    if compared:
        parts.append("## Beside paper B, Table 3: pixels (per cent)\n")
        parts.append(_compared((*TABLE_3_COLUMNS, "BF-score as printed"), compared))
        parts.append(f"Published: {published_b.PAPER_B}. Not comparable, because:\n")
        reasons = published_b.why_not_comparable(tables.is_phantom(config, split))
        parts.append("".join(f"- {reason}\n" for reason in reasons))
    return "\n".join(parts)


def _compared(columns: Sequence[str], rows: Sequence[ComparedB]) -> str:
    with_bf = "BF-score as printed" in columns
    return tables.markdown_table(
        ["system", "data", *columns],
        [
            [
                row.who,
                row.data or "published",
                *map(per_cent, row.values),
                *([per_cent(row.bf_printed)] if with_bf else []),
            ]
            for row in rows
        ],
    )
