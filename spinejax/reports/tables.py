"""Tables of scores as data: over all scans, scan by scan, and beside the papers' rows.

A score file is what `spinejax score` and `spinejax evaluate` write:
`{"cases": {id: {"binary": {metric: value}, ...}}, "summary": {"binary": {metric: {"mean", "std",
"median", "pooled"}}}}`. Values are shares (0 to 1) or millimetres; null or NaN: not defined for
that case.

A file of patch scores (`evaluation/<split>/patches.json`) holds

    {"label_rule", "stride", "size", "cases": {id: {"tp", "fp", "fn", "tn", "precision",
     "specificity", "accuracy", "f_score", "recall"}},
     "summary": {metric: {"mean", "std", "pooled", "n"}},
     "balanced_training": {"tp", "fp", "fn", "tn", "of", "used"} or null}

with shares from 0 to 1, null where undefined.
"""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spinejax import labels, schema
from spinejax.reports import papers

Scores = Mapping[str, Any]

OWN_SPLITS = ("test", "val", "train")
"""Parts of a run's own data; an evaluation of any other name is of a folder of scans."""

DASH = "–"
COUNTS = ("tp", "fp", "fn", "tn")


@dataclass(frozen=True)
class Line:
    """A row of a table: its name, its cells as text, a second line below the name.

    `kind` is a class of the style sheet: "all" (scans together), "ours", "theirs" or "theirs
    matched" (the published row of this network).
    """

    name: str
    cells: tuple[str, ...]
    more: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table: `header` names the columns; the first column holds the names of the rows."""

    header: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Metric:
    """A metric as the page shows it: `unit` is "" for a share or "mm"."""

    key: str
    name: str
    unit: str
    hint: str

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name


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
    Metric("hd95_mm", "HD95", "mm", "95th percentile of the surface distances"),
    Metric("assd_mm", "ASSD", "mm", "average symmetric surface distance"),
    Metric("nsd_1mm", "NSD at 1 mm", "", "share of the surfaces within 1 mm of each other"),
)
PATCH_METRICS = {
    "precision": "Precision",
    "specificity": "Specificity",
    "accuracy": "Accuracy",
    "f_score": "F-score",
    "recall": "Recall",
}
"""Key of a metric of patches -> its name, in the order of the tables."""

_BY_KEY = {metric.key: metric for metric in METRICS}
_CASE_COLUMNS = (
    *("dice", "iou", "precision", "recall", "bf_score", "nsd_1mm"),
    *("hd95_mm", "assd_mm"),
)


@dataclass(frozen=True)
class MetricSummary:
    """One metric over the cases where it is defined (`cases` of them)."""

    metric: Metric
    cases: int
    mean: float
    std: float
    median: float
    low: float
    high: float
    pooled: float | None


def finite(value: Any) -> float | None:
    """Return a number as float; None for anything else (null, NaN, text)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def whole(value: Any) -> int | None:
    """Return a count; None for anything else."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None


def item(value: Any, *keys: str) -> Any:
    """Return what nested mappings hold under `keys`; None where there is nothing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def count(number: int, noun: str, plural: str = "") -> str:
    """Return "1 scan", "2,000 scans", "3 patches"; `plural` defaults to the noun and an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def shown(value: float | None, metric: Metric | str) -> str:
    """Return a value as it is printed: three decimals for shares, two for millimetres."""
    metric = _BY_KEY[metric] if isinstance(metric, str) else metric
    return _fixed(value, 2 if metric.unit == "mm" else 3)


def _fixed(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def _number(value: Any, digits: int) -> str:
    return _fixed(finite(value), digits)


def case_values(scores: Scores, key: str) -> dict[str, float]:
    """Return case id -> value of a metric, for the cases where it is defined."""
    values = {
        case: finite(item(record, "binary", key))
        for case, record in (scores.get("cases") or {}).items()
    }
    return {case: value for case, value in values.items() if value is not None}


def ranked(scores: Scores) -> list[tuple[str, float]]:
    """Return (case id, Dice) from the worst to the best; ties in the order of the ids."""
    return sorted(case_values(scores, "dice").items(), key=lambda pair: (pair[1], pair[0]))


def chosen_cases(ranked: Sequence[tuple[str, float]]) -> list[tuple[str, str, float]]:
    """Return (word, case id, score) of the scans to show, from cases ranked worst to best.

    Three or more: best, median (the lower one of two middle scans), worst; two: best and worst.
    """
    if not ranked:
        return []
    if len(ranked) == 1:
        return [("The only scan", *ranked[0])]
    chosen = [("Best scan", *ranked[-1]), ("Worst scan", *ranked[0])]
    if len(ranked) > 2:
        chosen.insert(1, ("Median scan", *ranked[(len(ranked) - 1) // 2]))
    return chosen


def summarise(scores: Scores) -> list[MetricSummary]:
    """Return one row per metric that any case has, in the order of `METRICS`.

    Mean, standard deviation and median come from the file's own summary, so that page and file
    cannot differ. If it lacks them, they are computed (population standard deviation).
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
            MetricSummary(
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


def score_table(scores: Scores) -> Table:
    """Return every metric with its spread over the scans; of a single scan its value."""
    rows = summarise(scores)
    if all(row.cases == 1 for row in rows):
        lines = [Line(r.metric.title, (shown(r.mean, r.metric),), r.metric.hint) for r in rows]
        return Table(("", "value"), tuple(lines))
    lines = []
    for row in rows:
        low, high = shown(row.low, row.metric), shown(row.high, row.metric)
        spread = f" ± {shown(row.std, row.metric)}" if row.cases > 1 else ""
        cells = (
            shown(row.mean, row.metric) + spread,
            shown(row.median, row.metric),
            f"{low} to {high}" if row.cases > 1 else low,
            shown(row.pooled, row.metric),
            str(row.cases),
        )
        lines.append(Line(row.metric.title, cells, row.metric.hint))
    return Table(("", "mean ± std", "median", "lowest to highest", "pooled", "scans"), tuple(lines))


def case_table(scores: Scores) -> Table:
    """Return one row per scan, the worst first, those without a Dice before them."""
    columns = [_BY_KEY[key] for key in _CASE_COLUMNS if case_values(scores, key)]
    values = {metric.key: case_values(scores, metric.key) for metric in columns}
    order = [case for case, _ in ranked(scores)]
    order = [case for case in scores.get("cases") or {} if case not in order] + order
    lines = [Line(c, tuple(shown(values[m.key].get(c), m) for m in columns)) for c in order]
    return Table(("scan", *(metric.title for metric in columns)), tuple(lines))


# Names of the vertebrae.

_REGIONS = {"C": "Cervical", "T": "Thoracic", "L": "Lumbar"}


def vertebra_summary(scores: Scores) -> Mapping[str, Any] | None:
    """Return the summary over vertebrae of a score file; None where none were named."""
    found = item(scores, "summary", "vertebrae")
    return found if isinstance(found, Mapping) else None


def vertebra_table(summary: Mapping[str, Any]) -> Table:
    """Return VerSe's scores of all vertebrae and by region."""
    rows: list[tuple[str, Mapping[str, Any]]] = [("All", summary)]
    for key, word in _REGIONS.items():
        values = item(summary, "per_region", key)
        if isinstance(values, Mapping) and (values.get("n_reference") or values.get("n_extra")):
            rows.append((word, values))
    columns = (
        *(("id_rate", 3), ("d_mean_mm", 1), ("dice_mean", 3), ("hd95_mean_mm", 1)),
        *(("n_reference", 0), ("n_missed", 0), ("n_extra", 0)),
    )
    lines = [
        Line(word, tuple(_number(values.get(key), digits) for key, digits in columns))
        for word, values in rows
    ]
    header = "id.rate", "d_mean, mm", "Dice", "HD95, mm", "vertebrae", "missed", "extra"
    return Table(("", *header), tuple(lines))


def vertebra_case_table(scores: Scores) -> Table:
    """Return VerSe's scores scan by scan."""
    lines = []
    for case, record in scores["cases"].items():
        values = item(record, "vertebrae")
        if not isinstance(values, Mapping):
            continue
        ids = [int(label) for label in values.get("per_label", {})]
        ends = tuple(labels.name(ids[i]) if ids else DASH for i in (0, -1))
        columns = ("id_rate", 3), ("dice_mean", 3), ("n_missed", 0), ("n_extra", 0)
        cells = tuple(_number(values.get(key), digits) for key, digits in columns)
        right = "yes" if values.get("all_correct") else "no"
        lines.append(Line(case, (*ends, *cells, right)))
    header = "scan", "from", "to", "id.rate", "Dice", "missed", "extra", "all right"
    return Table(header, tuple(lines))


# Patches.


def confusion(record: Any) -> tuple[int, int, int, int] | None:
    """Return (tp, fp, fn, tn) of a record; None where one is missing or all are 0."""
    found = [whole(item(record, key)) for key in COUNTS]
    counts = [value for value in found if value is not None]
    if len(counts) < len(COUNTS) or not sum(counts):
        return None
    tp, fp, fn, tn = counts
    return tp, fp, fn, tn


def patch_cases(patches: Scores) -> Mapping[str, Any]:
    """Return case id -> record of a file of patch scores."""
    cases = patches.get("cases")
    return cases if isinstance(cases, Mapping) else {}


def ranked_patches(patches: Scores) -> list[tuple[str, float]]:
    """Return (case id, F-score) from the worst to the best; ties in the order of the ids."""
    scores = {case: finite(item(r, "f_score")) for case, r in patch_cases(patches).items()}
    found = [(case, score) for case, score in scores.items() if score is not None]
    return sorted(found, key=lambda pair: (pair[1], pair[0]))


def pooled(patches: Scores, key: str) -> float | None:
    """Return a patch metric over the patches of all scans together."""
    return finite(item(patches, "summary", key, "pooled"))


def how_cut(patches: Scores) -> str:
    """Return how the scored patches were cut and labelled, in words; "" where unknown."""
    size, stride, rule = (patches.get(key) for key in ("size", "stride", "label_rule"))
    words = [f"{size} × {size} pixels"] if whole(size) else []
    words += [f"stride {stride}"] if whole(stride) else []
    words += [f"{rule} rule"] if isinstance(rule, str) else []
    return ", ".join(words)


def patch_table(patches: Scores) -> Table:
    """Return the patch scores: all scans pooled, their mean, then each scan, the worst first.

    Scans without an F-score come before the others.
    """
    cases = patch_cases(patches)

    def line(name: str, record: Any, values: Sequence[str], kind: str = "") -> Line:
        counts = confusion(record)
        if counts is None:
            return Line(name, (DASH, DASH, *values), kind=kind)
        total = sum(counts)
        share = 100 * (counts[0] + counts[2]) / total
        return Line(name, (f"{total:,}", f"{share:.1f} %", *values), kind=kind)

    all_counts = [counts for r in cases.values() if (counts := confusion(r)) is not None]
    together = dict(zip(COUNTS, map(sum, zip(*all_counts, strict=True)), strict=False))
    values = [_fixed(pooled(patches, key), 3) for key in PATCH_METRICS]
    lines = [line("All, pooled", together, values, "all")]
    if len(cases) > 1:
        spread = []
        for key in PATCH_METRICS:
            mean, std = (item(patches, "summary", key, name) for name in ("mean", "std"))
            spread.append(f"{_number(mean, 3)} ± {_number(std, 3)}")
        lines.append(Line("Mean ± std over scans", ("", "", *spread), kind="all"))
    order = [case for case, _ in ranked_patches(patches)]
    for case in [*(case for case in cases if case not in order), *order]:
        values = [_number(item(cases[case], key), 3) for key in PATCH_METRICS]
        lines.append(line(case, cases[case], values))
    return Table(("scan", "patches", "vertebra", *PATCH_METRICS.values()), tuple(lines))


# Beside the papers.

_NORMALISATIONS = {
    "hu": "−1000 to 800",
    "minmax_to_hu": "−1000 to 800",
    "zscore": "Zero mean",
    "unit": "0 to 1",
    "sym": "−1 to 1",
}
"""`config.data.normalise` -> paper A's name for it (two readings of the first one exist)."""

_TABLE_11 = {
    "apcnn": "APCNN",
    "chasppraunet": "CHASPPRAU-Net",
    "mlpnn": "MLPNN",
    "pcnn": "PCNN",
    "unet": "U-Net",
}
_TABLES_2_AND_3 = {
    "opconvnet": "OP-convNet",
    "vgg": "VGG net",
    "resnet": "ResNet",
    "densenet": "DenseNet",
    "padbn": "PaDBN Model",
    "unet": "UNet",
    "saunet": "SAU-Net",
    "dtvnet": "D-TVNet",
    "spineparsenet": "SpineParseNet",
    "multiresunet": "MultiResuNet",
}
"""Our name of a network -> its row."""


@dataclass(frozen=True)
class Beside:
    """A run beside rows of a paper: titles and tables in per cent, and why not to compare them."""

    paper: str
    citation: str
    tables: tuple[tuple[str, Table], ...]
    reasons: tuple[str, ...]

    @property
    def has_ours(self) -> bool:
        """Whether the run has a row."""
        return any(line.kind == "ours" for _, table in self.tables for line in table.lines)


def is_phantom(config: Mapping[str, Any], split: str = "test") -> bool:
    """Whether a run draws its own scans, and `split` is of these rather than a folder of others."""
    own = split in OWN_SPLITS
    return own and item(config, "data", "source") in ("phantom", "phantom_stream")


def _scans(number: int, config: Mapping[str, Any], split: str, how: str) -> str:
    kind = "synthetic scan" if is_phantom(config, split) else "scan"
    return f"{count(number, kind)} ({split}), {how}"


def _percent(value: float | None, digits: int) -> str:
    return _fixed(None if value is None else 100 * value, digits)


def _means(scores: Scores | None) -> dict[str, float]:
    return {row.metric.key: row.mean for row in summarise(scores or {})}


def beside_paper_a(
    config: Mapping[str, Any],
    scores: Scores | None,
    parameters: int | None = None,
    split: str = "test",
) -> Beside | None:
    """Return this run (mean over its scans) and the rows of paper A for its experiment.

    These are the rows of Table 5 (with augmentation) or Table 3 (without) that have the run's
    normalisation, else the network's row of Table 11; None if paper A has no row.

    Args:
        config: the run's resolved config; `model.name`, `data.normalise` and `augment.geometry` are
            read.
        scores: a score file, or None where nothing has been scored.
        parameters: of the run's network.
        split: name of the part of the data that `scores` is about.
    """
    lines = []
    means = _means(scores)
    keys = "dice", "iou", "miou_with_background", "precision", "recall"
    if "dice" in means:
        data = _scans(len(case_values(scores or {}, "dice")), config, split, "mean over scans")
        dice, iou, miou, *others = (_percent(means.get(key), 2) for key in keys)
        size = DASH if parameters is None else f"{parameters:,}"
        lines.append(Line("This run", (dice, iou, miou, DASH, *others, size), data, "ours"))
    network = _TABLE_11.get(str(item(config, "model", "name")))
    if network == "MLPNN" and len(item(config, "model", "features") or ()) == 1:
        network = "MLPNN1F"
    other_works = papers.tables()["saeed2023_table11"]
    work = next((row for row in other_works.rows if row[1] == network), None)
    changes = item(schema.complete(config), "augment", "geometry")
    experiments = papers.tables()["saeed2023_table5" if changes else "saeed2023_table3"]
    setting = _NORMALISATIONS.get(str(item(config, "data", "normalise")))
    rows = [row for row in experiments.rows if row[1] == setting]
    is_quoted = not rows or network != experiments.system
    if work is None:
        return None
    samples, size, work_dice = other_works.cells(work)
    if is_quoted:
        name = "U-Net (Kim et al.)" if network == "U-Net" else str(network)
        cells = (work_dice, *[DASH] * 5, size)
        lines.append(Line(name, cells, f"{samples} test samples, Table 11", "theirs"))
    else:
        for data, words, dice, iou, precision, recall in rows:
            cells = (dice, DASH, DASH, iou, precision, recall, size)
            more = f"{data}, {words}, Table {experiments.number}"
            lines.append(Line(experiments.system, cells, more, "theirs"))
    header = "per cent", "Dice", "IoU", "IoU with background", "IoU, unstated which"
    table = Table((*header, "precision", "recall", "parameters"), tuple(lines))
    reasons = papers.reasons("saeed2023", phantom=is_phantom(config, split), quoted=is_quoted)
    return Beside("A", papers.citation("saeed2023"), (("", table),), tuple(reasons))


def beside_paper_b(
    config: Mapping[str, Any],
    scores: Scores | None,
    patches: Scores | None,
    split: str = "test",
) -> Beside | None:
    """Return this run beside Tables 2 and 3 of paper B, the row of its own network first.

    None if paper B does not have the network. The paper's BF-score has a column of its own, since
    it is neither of our two.

    Args:
        config: the run's resolved config.
        scores: a score file, or None where nothing has been scored. The run's row of Table 3 is the
            mean over its scans.
        patches: a file of patch scores, or None. The run's row of Table 2 is of the patches of all
            scans together.
        split: name of the part of the data that the scores are about.
    """
    network = _TABLES_2_AND_3.get(str(item(config, "model", "name")))
    found = []
    table = papers.tables()["qadri2021_table2"]
    names = [papers.short_name(row[0]) for row in table.rows]
    if network in names:
        lines = []
        values = [pooled(patches or {}, key) for key in table.metrics]
        if patches is not None and any(value is not None for value in values):
            data = _scans(len(patch_cases(patches)), config, split, "pooled")
            cells = tuple(_percent(value, 1) for value in values)
            lines.append(Line("This run", cells, f"{data}, {how_cut(patches)}", "ours"))
        lines += _theirs(zip(names, map(table.cells, table.rows), strict=True), network)
        header = "per cent", "PRE", "SPE", "ACC", "F-score"
        found.append(("Patches (Table 2)", Table(header, tuple(lines))))
    table = papers.tables()["qadri2021_table3"]
    names = [papers.short_name(row[1]) for row in table.rows]
    if network in names:
        lines = []
        means = _means(scores)
        if "dice" in means:
            data = _scans(len(case_values(scores or {}, "dice")), config, split, "mean over scans")
            keys = "recall", "bf_score", "f1_pre_sen", "", "iou", "dice"
            cells = tuple(_percent(means.get(key), 1) for key in keys)
            lines.append(Line("This run", cells, data, "ours"))
        printed = [(sen, DASH, DASH, bf, jac, dice) for *_, sen, bf, jac, dice in table.rows]
        lines += _theirs(zip(names, printed, strict=True), network)
        header = "per cent", "SEN", "BF-score", "F1 of PRE and SEN", "BF-score as printed"
        found.append(("Pixels (Table 3)", Table((*header, "JAC", "DSC"), tuple(lines))))
    if not found:
        return None
    reasons = papers.reasons("qadri2021", phantom=is_phantom(config, split))
    return Beside("B", papers.citation("qadri2021"), tuple(found), tuple(reasons))


def _theirs(rows: Iterable[tuple[str, tuple[str, ...]]], network: str | None) -> list[Line]:
    """Return published rows, that of `network` first."""
    return [
        Line(name, cells, kind="theirs matched" if name == network else "theirs")
        for name, cells in sorted(rows, key=lambda row: row[0] != network)
    ]


# Files.


def markdown(table: Table) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    ruler = ["---", *["---:"] * (len(table.header) - 1)]
    rows = [
        (f"{row.name}: {row.more}" if row.kind and row.more else row.name, *row.cells)
        for row in table.lines
    ]
    return "\n".join([line(table.header), line(ruler), *map(line, rows)]) + "\n"


def tables_markdown(
    config: Mapping[str, Any],
    evaluations: Mapping[str, Scores],
    patches: Mapping[str, Scores],
    parameters: int | None = None,
) -> str:
    """Return the tables of the page as Markdown.

    Args:
        config: the run's resolved config.
        evaluations: split -> score file.
        patches: split -> file of patch scores.
        parameters: of the run's network.
    """
    parts = [f"# {config.get('name', 'run')}\n"]
    for split, scores in evaluations.items():
        scans = count(len(scores.get("cases") or {}), "scan")
        parts += [f"## Scores, {split}: {scans}\n", markdown(score_table(scores))]
    for split, record in patches.items():
        cut = how_cut(record)
        parts.append(f"## Patches, {split}{f': {cut}' if cut else ''}\n")
        parts.append(markdown(patch_table(record)))
    split = next(iter(evaluations), "test")
    scored = evaluations.get(split)
    for beside in (
        beside_paper_a(config, scored, parameters, split),
        beside_paper_b(config, scored, patches.get(split), split),
    ):
        if beside is not None:
            for title, table in beside.tables:
                heading = f"Beside paper {beside.paper}{f': {title}' if title else ''}"
                parts += [f"## {heading}\n", markdown(table)]
            parts.append(f"Published: {beside.citation}. Not comparable, because:\n")
            parts.append("".join(f"- {reason}\n" for reason in beside.reasons))
    return "\n".join(parts)


def tables_csv(
    evaluations: Mapping[str, Scores], patches: Mapping[str, Scores] | None = None
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
