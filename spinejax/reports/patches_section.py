"""Sections of a run that classifies patches: class balance and confusion matrices."""

from collections.abc import Mapping
from typing import Any

from spinejax import records, sweep_state
from spinejax.errors import InputError
from spinejax.reports import tables
from spinejax.reports.run import Run
from spinejax.reports.tables import DASH, finite, item, whole

_CLASSES = ("background", "vertebra")


def balance_section(run: Run) -> dict[str, Any] | None:
    """Return how many patches of each class training had, before and after under-sampling.

    Figures 5 and 6 of paper B, from `<workdir>/patches.json`; None for a run without patches.
    """
    path = run.workdir / "patches.json"
    if not path.exists():
        return {"recorded": False} if run.is_patches else None
    try:
        record = records.read(path, dict, sweep_state.REMOVE)
        stages = _stages(record, str(path))
    except InputError as error:
        return {"recorded": True, "problem": str(error)}
    return {
        "recorded": True,
        "problem": "",
        "cut": tables.how_cut(record),
        "sampling": _sampling(record),
        "split_unit": record.get("split_unit"),
        "stages": stages,
    }


def _sampling(record: Mapping[str, Any]) -> str:
    rus, ratio = record.get("rus"), finite(record.get("rus_ratio"))
    if rus == "none":
        return "No under-sampling: training sees every patch."
    if rus not in ("once", "epoch"):
        return ""
    when = "once, before training" if rus == "once" else "anew in each epoch"
    if not ratio:
        return f"Background patches are under-sampled at random, {when}."
    kept = "as many" if ratio == 1 else f"{ratio:g} times as many"
    return (
        f"Random under-sampling leaves out background patches until there are at most {kept} as "
        f"vertebra patches; it is drawn {when}."
    )


def _stages(record: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    stages = []
    for key, title in (
        ("before", "Before under-sampling"),
        ("after", "After under-sampling"),
        ("validation", "Validation"),
    ):
        found = [whole(item(record, key, name)) for name in _CLASSES]
        numbers = [value for value in found if value is not None]
        if len(numbers) == len(_CLASSES):
            stages.append((title, numbers))
    if not stages:
        raise InputError(f"{path}: has no counts of patches; train again to have it written")
    most = max(max(counts) for _, counts in stages) or 1
    return [
        {
            "title": title,
            "total": sum(counts),
            "bars": [
                {
                    "name": name,
                    "count": f"{value:,}",
                    "share": f"{100 * value / sum(counts):.1f} %" if sum(counts) else DASH,
                    "width": f"{100 * value / most:.2f}",
                }
                for name, value in zip(_CLASSES, counts, strict=True)
            ],
        }
        for title, counts in stages
    ]


def scores_section(run: Run) -> dict[str, Any] | None:
    """Return the patch level: confusion matrices (figure 13 of paper B) and a row per scan."""
    patches = run.patches.get(run.split or "")
    if patches is None:
        return {"scored": False} if run.is_patches else None
    cases = tables.patch_cases(patches)
    dice = patches.get("rule_dice")
    is_limit = isinstance(dice, int | float) and not isinstance(dice, bool) and 0 <= dice < 1
    table = tables.patch_table(patches)
    fixed = sum(line.kind == "all" for line in table.lines)
    return {
        "scored": True,
        "scans": len(cases),
        "cut": tables.how_cut(patches),
        # The Dice that the label rule allows, where it is a limit.
        "rule_dice": f"{dice:.3f}" if is_limit else "",
        "matrices": _matrices(patches),
        "table": table,
        "together": tables.Table(table.header, table.lines[:fixed]),
        "by_scan": tables.Table(table.header, table.lines[fixed:]),
    }


def _matrices(patches: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    balanced = patches.get("balanced_training")
    counts = tables.confusion(balanced)
    if counts is not None:
        total, used = whole(item(balanced, "of")), sum(counts)
        some = f"{used:,} of {total:,}" if total and total > used else f"all {used:,}"
        found.append(_matrix("Balanced training", f"{some} patches", counts))
    for word, case, score in tables.chosen_cases(tables.ranked_patches(patches)):
        counts = tables.confusion(tables.patch_cases(patches)[case])
        if counts is not None:
            found.append(_matrix(word, f"{case}, F-score {score:.3f}", counts))
    return found


def _matrix(title: str, more: str, counts: tuple[int, int, int, int]) -> dict[str, Any]:
    tp, fp, fn, tn = counts

    def cell(value: int, row: int, kind: str) -> dict[str, str]:
        share = value / row if row else 0.0
        words = f"{100 * share:.1f} %" if row else DASH
        return {"kind": kind, "share": f"{share:.3f}", "count": f"{value:,}", "words": words}

    rows = [
        ("vertebra", [cell(tp, tp + fn, "right"), cell(fn, tp + fn, "wrong")]),
        ("background", [cell(fp, fp + tn, "wrong"), cell(tn, fp + tn, "right")]),
    ]
    return {"title": title, "more": more, "rows": rows}
