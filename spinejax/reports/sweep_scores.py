"""The scores of a sweep's units, in the rows of the published tables or in rows of their own.

Our values are per cent. A unit's value is a mean over the scans of the test split (patches are
pooled; vertebrae: over all vertebrae). A cell has mean and sample standard deviation over its seeds
and folds.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spinejax import records, sweep_state
from spinejax.errors import InputError
from spinejax.metrics import paired
from spinejax.reports import papers, protocols
from spinejax.reports.papers import PaperTable
from spinejax.reports.tables import case_values, finite, is_phantom, item
from spinejax.schema import SECOND
from spinejax.sweep_state import State, Sweep, SweepUnit

_FOLDS = {"data.split": "kfold", "data.folds": None, "data.fold": None}

COSTS = ("parameters", "gflops", "vertebrae_gflops", "train_h", "predict_s")
"""Columns of a sweep that is not of a paper: parameters, GFLOPs of a forward pass of one sample,
hours of training and seconds that the prediction of a scan took; of a pipeline, of both networks
together. Its networks see different samples, so the GFLOPs of the second have a column."""
OWN_METRICS = ("dice", "iou", "precision", "recall", "hd95_mm", "id_rate", "vertebra_dice", *COSTS)
"""Columns of a sweep that is not of a paper; those without any value are left out."""

_OF_VERTEBRAE = {
    "dice": "dice_mean",
    "iou": "iou_mean",
    "precision": "precision_mean",
    "recall": "recall_mean",
}


@dataclass(frozen=True)
class Mean:
    """Mean and sample standard deviation of `n` units; no deviation of one."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class SweepLine:
    """One row: words of its label columns, published cells (none in our own tables), and ours.

    `runs` says how many units it has and how many of them are scored, `missing` why others are not,
    `units` what they are called.
    """

    place: tuple[str, ...]
    published: tuple[str, ...]
    ours: tuple[Mean | None, ...]
    runs: tuple[int, int]
    missing: str = ""
    units: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepTable:
    """A table to be written. `marks`: (row, column) of published cells -> numbers of `notes`."""

    name: str
    title: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    lines: tuple[SweepLine, ...]
    marks: Mapping[tuple[int, int], tuple[int, ...]]
    notes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    protocol: tuple[str, ...] = ()
    source: str = ""
    paired: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """A unit, how far it is, and what its folder holds; empty where there is nothing yet."""

    unit: SweepUnit
    state: State
    config: Mapping[str, Any]
    record: Mapping[str, Any]
    scores: Mapping[str, Any]
    patches: Mapping[str, Any]
    second: Mapping[str, Any]
    times: Mapping[str, Any]


def results(workdir: Path, found: Sweep) -> list[Result]:
    """Return the result of each unit of a sweep."""
    read = []
    for unit in found.units:
        folder = workdir / unit.name
        scored = folder / "evaluation" / "test"
        found_state = sweep_state.state(folder)
        try:
            content = [
                records.read_if_there(folder / "config.json", dict, sweep_state.RESTORE),
                sweep_state.read_run(folder),
                sweep_state.read_scores(scored / "scores.json"),
                records.read_if_there(scored / "patches.json", dict, sweep_state.REMOVE),
                sweep_state.read_run(folder / SECOND),
                records.read_if_there(scored / "times.json", dict, sweep_state.REMOVE),
            ]
        except InputError as error:
            found_state, content = State("failed", note=str(error)), [{}] * 6
        read.append(Result(unit, found_state, *content))
    return read


def tables(workdir: Path, found: Sweep) -> list[SweepTable]:
    """Return the published tables to which units belong, and one table of all units without a cell.

    Raises:
        InputError: a unit names a table or a row that is not published.
    """
    every = results(workdir, found)
    names = dict.fromkeys(str(r.unit.cell["table"]) for r in every if "table" in r.unit.cell)
    made = [
        _published(name, [r for r in every if r.unit.cell.get("table") == name]) for name in names
    ]
    others = [r for r in every if "table" not in r.unit.cell]
    return [*made, own_table(found, others)] if others else made


def _published(name: str, members: Sequence[Result]) -> SweepTable:
    known = papers.tables()
    if name not in known:
        raise InputError(
            f"unit {members[0].unit.name}: table {name!r} is not published; choose one of "
            f"{', '.join(known)}"
        )
    table = known[name]
    for result in members:
        if not any(_fits(result.unit, table, row) for row in table.rows):
            cell = {k: v for k, v in result.unit.cell.items() if k in table.labels}
            raise InputError(f"unit {result.unit.name}: {name} has no row of {cell}")
    lines = []
    for row in table.rows:
        own = [r for r in members if _fits(r.unit, table, row)]
        columns = [_mean([_value(r, table, metric) for r in own]) for metric in table.metrics]
        lines.append(
            SweepLine(
                table.place(row),
                table.cells(row),
                tuple(columns),
                (sum(r.state.kind == "done" for r in own), len(own)),
                _why_missing(own),
                tuple(r.unit.name for r in own),
            )
        )
    marks: dict[tuple[int, int], tuple[int, ...]] = {}
    for number, cells in enumerate(table.doubts.values(), 1):
        for place in cells:
            marks[place] = (*marks.get(place, ()), number)
    phantom = any(is_phantom(r.config) for r in members)
    return SweepTable(
        name,
        f"{table.title} (per cent)",
        table.labels,
        table.columns,
        tuple(lines),
        marks,
        tuple(table.doubts),
        tuple(papers.reasons(table.paper, phantom=phantom)),
        tuple(protocols.notes(table.paper, {r.unit.name: r.config for r in members})),
        table.source,
    )


def _fits(unit: SweepUnit, table: PaperTable, row: tuple[str, ...]) -> bool:
    """Whether a unit belongs to a row: all words of labels that it gives are the row's."""
    words = dict(zip(table.labels, row, strict=False))
    given = {k: v for k, v in unit.cell.items() if k in words}
    return bool(given) and all(words[k] == v for k, v in given.items())


def _value(result: Result, table: PaperTable, metric: str) -> float | None:
    kind = result.unit.cell.get("scores", table.scores)
    if metric == "cases":
        return float(len(result.scores["cases"])) if result.scores.get("cases") else None
    if metric == "parameters":
        return finite(result.record.get("parameters"))
    if kind == "patches":
        value = finite(item(result.patches, "summary", metric, "pooled"))
    elif kind == "vertebrae":
        value = finite(item(result.scores, "summary", "vertebrae", _OF_VERTEBRAE[metric]))
    else:
        value = finite(item(result.scores, "summary", "binary", metric, "mean"))
    return None if value is None else 100 * value


def _mean(values: Sequence[float | None]) -> Mean | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Mean(statistics.fmean(known), deviation, len(known))


def _why_missing(own: Sequence[Result]) -> str:
    """Say why a row lacks some of its units, or all; "" where it lacks none."""
    if not own:
        return "no unit of the sweep"
    words = []
    for result in own:
        state = result.state
        if state.kind == "done":
            if not result.scores:
                words.append(f"{result.unit.name}: no scan to test on")
            continue
        at = "" if state.step is None else f" at step {state.step}"
        of = f" of {state.steps}" if at and state.steps else ""
        why = f": {state.note}" if state.kind in ("failed", "pruned") else ""
        words.append(f"{result.unit.name} {state.kind}{at}{of}{why}")
    return "; ".join(words)


def own_table(found: Sweep, members: Sequence[Result]) -> SweepTable:
    """Return a table of the units without a published cell: their overrides and scores.

    Units that differ in seed and fold only share a row.
    """
    rows: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for result in members:
        overrides = result.unit.overrides
        told = tuple((k, str(v)) for k, v in overrides.items() if not _repeats(k, v))
        rows.setdefault(told, []).append(result)
    keys = tuple(dict.fromkeys(key for told in rows for key, _ in told))
    columns = [m for m in OWN_METRICS if any(_own(r, m) is not None for r in members)]
    lines = []
    for told, own in rows.items():
        lines.append(
            SweepLine(
                tuple(dict(told).get(key, "") for key in keys) or (found.name,),
                (),
                tuple(_mean([_own(r, metric) for r in own]) for metric in columns),
                (sum(r.state.kind == "done" for r in own), len(own)),
                _why_missing(own),
                tuple(r.unit.name for r in own),
            )
        )
    short = [key.rpartition(".")[2] for key in keys]
    labels = tuple(
        name if short.count(name) == 1 else key for name, key in zip(short, keys, strict=True)
    ) or ("sweep",)
    title = f"{found.name} of {found.config} (per cent; distances in mm)"
    beside = _paired([(line.place, own) for line, own in zip(lines, rows.values(), strict=True)])
    return SweepTable(found.name, title, labels, tuple(columns), tuple(lines), {}, paired=beside)


def _paired(rows: Sequence[tuple[tuple[str, ...], Sequence[Result]]]) -> tuple[str, ...]:
    """Return sentences that compare the Dice of each row with that of the first, scan by scan."""
    said = []
    (baseline, first), *others = rows
    for place, own in others:
        found = paired.difference(_dice_of_scans(own), _dice_of_scans(first))
        if found is not None:
            mean, low, high = (f"{100 * value:+.2f}" for value in found[:3])
            said.append(
                f"Dice of {', '.join(place)} against {', '.join(baseline)}: {mean} points, "
                f"{low} to {high} (95 % interval, bootstrap over {found.n} scans)"
            )
    return tuple(said)


def _dice_of_scans(own: Sequence[Result]) -> dict[str, float]:
    """Return the Dice of each test scan, the mean over the units of a row that tested on it."""
    values: dict[str, list[float]] = {}
    for result in own:
        for case, dice in case_values(result.scores, "dice").items():
            values.setdefault(case, []).append(dice)
    return {case: statistics.fmean(those) for case, those in values.items()}


def _repeats(key: str, value: Any) -> bool:
    """Whether a field differs between the repetitions that a row averages: seeds and folds."""
    return key == "seed" or (key in _FOLDS and _FOLDS[key] in (None, value))


def _own(result: Result, metric: str) -> float | None:
    if metric in ("id_rate", "vertebra_dice"):
        key = "id_rate" if metric == "id_rate" else "dice_mean"
        value = finite(item(result.scores, "summary", "vertebrae", key))
    elif metric in COSTS:
        return _cost(result, metric)
    else:
        value = finite(item(result.scores, "summary", "binary", metric, "mean"))
    return value if value is None or metric.endswith("_mm") else 100 * value


def _cost(result: Result, metric: str) -> float | None:
    if metric == "predict_s":
        seconds = item(result.times, "seconds")
        known = map(finite, seconds.values() if isinstance(seconds, Mapping) else ())
        values = [value for value in known if value is not None]
        return statistics.fmean(values) if values else None
    if metric.endswith("gflops"):
        return finite((result.record if metric == "gflops" else result.second).get("gflops"))
    of_both = [
        finite(record.get("seconds" if metric == "train_h" else metric))
        for record in (result.record, result.second)
    ]
    values = [value for value in of_both if value is not None]
    return sum(values) / (3600 if metric == "train_h" else 1) if values else None
