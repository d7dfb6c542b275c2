"""Charts of the pages: learning curves, bars, one dot per case. `templates/charts.html` draws them.

This module computes where lines and dots lie. Colours come from the style sheet, so that charts
follow light and dark mode and print.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH, HEIGHT = 330, 206
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 36
_MOST_POINTS = 400
_RADIUS = 5

UNIT_KINDS = tuple(f"u{number}" for number in range(1, 13))
"""Classes of the style sheet for lines that lie in one chart: six colours, solid, then dashed."""

_UNIT_POINTS = 120  # of one line among many
_UNIT_CHARTS = (("val", "Validation"), ("train", "Training"))

BARS_WIDTH = 360
BARS_LEFT, BARS_RIGHT = 140, 290  # where bars of 0 and of 100 per cent end
_BAR, _BETWEEN_ROWS, _HEADING = 12, 7, 20
_MOST_LETTERS = 23

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class ChartLine:
    """A line of a line chart.

    Attributes:
        name: for the legend.
        kind: class of the style sheet: "train", "val", "rate" or one of UNIT_KINDS.
        last: its last value, as text.
        paths: (class, SVG path) that draw it.
        dots: (x, y, radius) of its dots.
    """

    name: str
    kind: str
    last: str
    paths: list[tuple[str, str]]
    dots: list[tuple[float, float, float]]


@dataclass(frozen=True)
class LineChart:
    """A chart over training steps; without lines there is nothing to draw.

    Attributes:
        title: its caption.
        lines: what it shows.
        rows: (y, words) of the horizontal grid.
        columns: (x, words) of the steps.
        mark: (x, words) of a vertical line, or None.
    """

    title: str
    lines: list[ChartLine] = field(default_factory=list)
    rows: list[tuple[float, str]] = field(default_factory=list)
    columns: list[tuple[float, str]] = field(default_factory=list)
    mark: tuple[float, str] | None = None

    @property
    def spoken(self) -> str:
        """The chart in words."""
        parts = [f"{line.name}: last value {line.last}" for line in self.lines]
        parts += [self.mark[1]] if self.mark else []
        return f"{self.title}. {'; '.join(parts)}"


@dataclass(frozen=True)
class DotChart:
    """One dot per case on a line; `x` are per cent of the width, `y` are pixels.

    Attributes:
        floor: y of the line.
        dots: (x, y, words).
        columns: (x, words) of the scale.
        mean: (x, words).
        spoken: the chart in words.
    """

    floor: int
    dots: list[tuple[float, int, str]]
    columns: list[tuple[float, str]]
    mean: tuple[float, str]
    spoken: str


@dataclass(frozen=True)
class UnitCurves:
    """Curves of the units of a sweep, and the legend of all their charts.

    Attributes:
        charts: one for each kind of value that is recorded.
        legend: (class, name, number of curves, last values in the order of `charts`). The value of
            several curves is their mean.
    """

    charts: list[LineChart]
    legend: list[tuple[str, str, int, list[str]]]


@dataclass(frozen=True)
class Bar:
    """A bar from BARS_LEFT to `right`.

    Attributes:
        kind: class of the style sheet: "printed" or "own".
        y: its upper edge.
        height: its thickness.
        right: its end, None where the value is no number.
        spread: ends of the line that stands for the standard deviation, or None.
        words: the value.
        words_x: where they begin.
    """

    kind: str
    y: float
    height: float
    right: float | None
    spread: tuple[float, float] | None
    words: str
    words_x: float


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars of one metric in per cent, one or two for each network.

    Attributes:
        title: the metric.
        names: (y of the middle, words that fit, all words) beside the bars.
        headings: (y of the middle, words) above groups of bars.
        bars: the bars.
        columns: (x, words) of the scale.
        height: of the chart.
        spoken: the chart in words.
    """

    title: str
    names: list[tuple[float, str, str]]
    headings: list[tuple[float, str]]
    bars: list[Bar]
    columns: list[tuple[float, str]]
    height: float
    spoken: str


@dataclass(frozen=True)
class BarRow:
    """A row of a table, for `bar_charts`.

    Attributes:
        place: words of its label columns.
        published: its printed cells.
        ours: (mean, standard deviation or None, text) for each of them, or None.
    """

    place: tuple[str, ...]
    published: tuple[str, ...]
    ours: tuple[tuple[float, float | None, str] | None, ...]


def _series(records: Sequence[Mapping[str, Any]], kind: str, name: str) -> Points:
    points = []
    for record in records:
        value = record.get(name)
        if (
            record.get("kind", "train") == kind
            and isinstance(value, int | float)
            and math.isfinite(value)
        ):
            points.append((float(record["step"]), float(value)))
    return points


def _thin(points: Points, most: int = _MOST_POINTS) -> Points:
    """Return at most `most` points: the means of equal runs of neighbours."""
    if len(points) <= most:
        return points
    group = math.ceil(len(points) / most)
    runs = [points[i : i + group] for i in range(0, len(points), group)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def _smooth(points: Points) -> Points:
    """Return the running mean over a twentieth of the curve."""
    reach = len(points) // 40
    smooth = []
    for i, (x, _) in enumerate(points):
        near = points[max(0, i - reach) : i + reach + 1]
        smooth.append((x, sum(y for _, y in near) / len(near)))
    return smooth


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten) from `low` to `high`."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _number(value: float) -> str:
    if value and (abs(value) >= 1e6 or abs(value) < 1e-4):
        mantissa, _, exponent = f"{value:.0e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.10g}"


def _path(points: Points) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def line_chart(
    title: str,
    curves: Sequence[tuple[str, str, Points]],
    floor: float | None,
    mark: tuple[float, str] | None = None,
) -> LineChart:
    """Return a chart over training steps.

    Args:
        title: its caption.
        curves: (name, class, points of (step, value)); curves without points are left out. A long
            curve of class "train" is drawn faint, with its running mean on top.
        floor: smallest value on the vertical axis, or None for that of the data.
        mark: (step, words) of a line to draw across, or None.
    """
    curves = [(name, kind, points) for name, kind, points in curves if points]
    if not curves:
        return LineChart(title)
    xs = [x for _, _, points in curves for x, _ in points]
    ys = [y for _, _, points in curves for _, y in points]
    x_low, x_high = min(0.0, min(xs)), max(max(xs), 1.0)
    y_low = min(ys) if floor is None else min(floor, min(ys))
    y_high = max(ys) if max(ys) > y_low else y_low + (abs(y_low) or 1.0)
    y_high += 0.04 * (y_high - y_low)

    def across(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    drawn = []
    for name, kind, points in curves:
        thin = _thin(points)
        places = [(across(x), down(y)) for x, y in thin]
        paths, dots = [(f"line {kind}", _path(places))], []
        if len(places) == 1:
            paths, dots = [], [(*places[0], 3.0)]
        elif kind == "train" and len(places) >= 40:
            smooth = [(across(x), down(y)) for x, y in _smooth(thin)]
            paths = [(f"line {kind} faint", paths[0][1]), (f"line {kind}", _path(smooth))]
        if kind == "val" and 1 < len(places) <= 60:
            dots = [(x, y, 2.2) for x, y in places]
        drawn.append(ChartLine(name, kind, f"{points[-1][1]:.3g}", paths, dots))
    return LineChart(
        title,
        drawn,
        rows=[(down(y), _number(y)) for y in ticks(y_low, y_high)],
        columns=[(across(x), _number(x)) for x in ticks(x_low, x_high, 4)],
        mark=None if mark is None else (across(min(max(mark[0], x_low), x_high)), mark[1]),
    )


def lowest_loss(records: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Return (step, loss) of the lowest validation loss, the first of equal ones; None if none."""
    return min(_series(records, "val", "loss"), key=lambda point: point[1], default=None)


def epoch_of(
    records: Sequence[Mapping[str, Any]], step: float, epochs_per_evaluation: float
) -> float | None:
    """Return the epoch of an evaluated step; None where the record does not tell.

    The first of several evaluations comes after `epochs_per_evaluation`, and a single one at the
    end of the run, whenever that is.
    """
    steps = sorted({at for at, _ in _series(records, "val", "loss") if at > 0})
    if len(steps) < 2:
        return None
    return round(step / steps[0] * epochs_per_evaluation, 1)


def learning_curves(
    records: Sequence[Mapping[str, Any]],
    overlap: str = "Dice",
    best: tuple[float, str] | None = None,
) -> list[LineChart]:
    """Return loss, accuracy, overlap and learning rate over the steps of a run.

    Args:
        records: lines of metrics.jsonl in order of step. Accuracy is drawn where any line has it.
        overlap: the name of "dice": for patches it is their F-score.
        best: (step, words) of a line across the loss, or None; the accuracy chart has it, too, with
            its own value.
    """

    def both(name: str) -> list[tuple[str, str, Points]]:
        return [
            ("training", "train", _series(records, "train", name)),
            ("validation", "val", _series(records, "val", name)),
        ]

    rate = [("last", "rate", _series(records, "train", "learning_rate"))]
    charts = [line_chart("Loss", both("loss"), 0.0, best)]
    if any("accuracy" in record for record in records):
        right = dict(_series(records, "val", "accuracy"))
        there = best[0] if best is not None and best[0] in right else None
        mark = None if there is None else (there, f"{right[there]:.3f} at the lowest loss")
        shares = [y for _, _, points in both("accuracy") for _, y in points]
        floor = next((edge for edge in (0.9, 0.8, 0.5) if min(shares, default=0) > edge), 0.0)
        charts.append(line_chart("Accuracy", both("accuracy"), floor, mark))
    charts.append(line_chart(overlap, both("dice"), 0.0))
    charts.append(line_chart("Learning rate", rate, 0.0))
    return charts


def unit_curves(
    groups: Sequence[tuple[str, Sequence[Sequence[Mapping[str, Any]]]]], overlap: str = "Dice"
) -> UnitCurves:
    """Return validation and training values over the steps of several runs, a line for each run.

    Args:
        groups: at most as many as UNIT_KINDS has entries; of each the name, and the lines of
            metrics.jsonl of each of its runs, which share a colour.
        overlap: the name of "dice".
    """
    charts, columns = [], []
    for kind, prefix in _UNIT_CHARTS:
        for key, name in (("dice", overlap), ("loss", "loss")):
            found = [[_series(records, kind, key) for records in runs] for _, runs in groups]
            if not any(map(any, found)):
                continue
            # Training values are of single batches; only their running mean can be compared.
            draw = _smooth if kind == "train" else list
            lines = [
                (group, unit, draw(_thin(points, _UNIT_POINTS)))
                for (group, _), unit, runs in zip(groups, UNIT_KINDS, found, strict=False)
                for points in runs
            ]
            charts.append(line_chart(f"{prefix} {name}", lines, 0.0))
            last = [[draw(points)[-1][1] for points in runs if points] for runs in found]
            columns.append([_mean_words(values) for values in last])
    legend = [
        (unit, name, len(runs), [column[at] for column in columns])
        for at, ((name, runs), unit) in enumerate(zip(groups, UNIT_KINDS, strict=False))
    ]
    return UnitCurves(charts, legend)


def _mean_words(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = sum(values) / len(values)
    return f"{mean:.3f}" if abs(mean) < 100 else f"{mean:,.0f}"


def bar_charts(metrics: Sequence[str], rows: Sequence[BarRow]) -> list[BarChart]:
    """Return one chart for each metric: published values, and ours below each of them.

    All bars begin at zero, so that their lengths are in proportion to the values.

    Args:
        metrics: names of the columns, in per cent.
        rows: with one cell for each of `metrics`. A first label that neighbours share becomes the
            heading of their group, where there are two labels.
    """
    return [_bar_chart(metric, at, rows) for at, metric in enumerate(metrics)]


def _bar_chart(metric: str, at: int, rows: Sequence[BarRow]) -> BarChart:
    def along(value: float) -> float:
        return BARS_LEFT + (BARS_RIGHT - BARS_LEFT) * min(max(value, 0.0), 100.0) / 100

    firsts = [row.place[0] for row in rows]
    grouped = len(rows[0].place) > 1 and len(set(firsts)) <= len(rows) / 2
    names, headings, bars, spoken = [], [], [], []
    y, above = 0.0, ""
    for row in rows:
        if grouped and row.place[0] != above:
            above = row.place[0]
            headings.append((y + _HEADING / 2, above))
            y += _HEADING
        name = row.place[-1]
        short = name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 1].rstrip() + "…"
        values: list[tuple[str, float | None, float | None, str]]
        values = [("printed", _published_number(row.published[at]), None, row.published[at])]
        ours = row.ours[at]
        if ours is not None:
            values.append(("own", *ours))
        names.append((y + _BAR * len(values) / 2, short, name))
        for kind, value, deviation, words in values:
            right = None if value is None else along(value)
            spread = None
            if value is not None and deviation:
                spread = along(value - deviation), along(value + deviation)
            end = max(BARS_LEFT if right is None else right, spread[1] if spread else 0.0)
            bars.append(Bar(kind, y, _BAR - 1, right, spread, words, end + 5))
            y += _BAR
        said = [f"published {row.published[at]}"] + (["ours " + ours[2]] if ours else [])
        spoken.append(f"{name} {', '.join(said)}")
        y += _BETWEEN_ROWS
    columns = [(along(tick), f"{tick:.0f}") for tick in (0, 50, 100)]
    return BarChart(metric, names, headings, bars, columns, y, f"{metric}: {'; '.join(spoken)}")


def _published_number(cell: str) -> float | None:
    """Return a printed cell as a number, None where it is a dash or holds several."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def dot_chart(values: Sequence[tuple[str, float]], label: str) -> DotChart | None:
    """Return one dot per case on a line that ends at 1, with the mean marked; None without cases.

    Args:
        values: (case, value between 0 and 1); dots at one place are stacked.
        label: the name of the values.
    """
    if not values:
        return None
    low = min(value for _, value in values)
    # If every case is good, the line starts later: else the dots would be one blob.
    start = next((edge for edge in (0.9, 0.8, 0.5) if low >= edge + 0.01), 0.0)

    def at(value: float) -> float:
        return 2 + 96 * (value - start) / (1 - start)

    apart = 1.4
    placed: list[tuple[float, int, str]] = []
    for case, value in sorted(values, key=lambda pair: pair[1]):
        x, level = at(value), 0
        while any(other == level and abs(x - where) < apart for where, other, _ in placed):
            level += 1
        placed.append((x, level, f"{case}: {value:.3f}"))
    floor = 22 + 2 * _RADIUS * (1 + max(level for _, level, _ in placed))
    mean = sum(value for _, value in values) / len(values)
    return DotChart(
        floor,
        dots=[(x, floor - _RADIUS - 2 - 2 * _RADIUS * level, words) for x, level, words in placed],
        columns=[(at(tick), f"{tick:.10g}") for tick in ticks(start, 1.0)],
        mean=(at(mean), f"mean {mean:.3f}"),
        spoken=f"{label} of {len(values)} cases, mean {mean:.3f}, lowest {low:.3f}",
    )
