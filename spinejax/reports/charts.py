"""Charts as inline SVG: training curves, and one dot per case.

Colours come from the page's style sheet (CSS variables), so that the charts follow light and dark
mode and print; nothing is drawn in a fixed colour, and no script is needed.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 330, 206
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 36
_MOST_POINTS = 400


def _series(
    records: Sequence[Mapping[str, Any]], kind: str, name: str
) -> list[tuple[float, float]]:
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


def _thin(points: list[tuple[float, float]], most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """Return at most `most` points: the means of equal runs of neighbours."""
    if len(points) <= most:
        return points
    group = math.ceil(len(points) / most)
    runs = [points[i : i + group] for i in range(0, len(points), group)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
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


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def line_chart(
    title: str,
    curves: Sequence[tuple[str, str, list[tuple[float, float]]]],
    floor: float | None,
    mark: tuple[float, str] | None = None,
) -> str:
    """Return one chart over training steps as SVG inside a <figure>.

    Args:
        title: its caption, plain text.
        curves: (name, CSS class, points of (step, value)); curves without points are left out. A
            curve of class "train" is drawn faint, with its running mean on top.
        floor: smallest value on the vertical axis, or None for that of the data.
        mark: (step, words) of a line to draw across, or None.

    Returns:
        HTML; says so in words when there is nothing to draw.
    """
    curves = [(name, kind, points) for name, kind, points in curves if points]
    if not curves:
        return (
            f'<figure class="chart"><figcaption><b>{escape(title)}</b></figcaption>'
            '<p class="nothing">nothing recorded yet</p></figure>'
        )
    xs = [x for _, _, points in curves for x, _ in points]
    ys = [y for _, _, points in curves for _, y in points]
    x_low, x_high = min(0.0, min(xs)), max(max(xs), 1.0)
    y_low = min(ys) if floor is None else min(floor, min(ys))
    y_high = max(ys) if max(ys) > y_low else y_low + (abs(y_low) or 1.0)
    y_high += 0.04 * (y_high - y_low)

    def place(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return [
            (
                _LEFT + (x - x_low) / (x_high - x_low) * wide,
                _TOP + (y_high - y) / (y_high - y_low) * high,
            )
            for x, y in points
        ]

    parts = []
    for y in ticks(y_low, y_high):
        [(_, at)] = place([(x_low, y)])
        parts.append(
            f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>'
            f'<text x="{_LEFT - 7}" y="{at + 3.5:.1f}" text-anchor="end">{_number(y)}</text>'
        )
    for x in ticks(x_low, x_high, 4):
        [(at, _)] = place([(x, y_low)])
        anchor = "end" if at > _WIDTH - _RIGHT - 18 else "middle"
        parts.append(
            f'<text x="{at:.1f}" y="{_HEIGHT - 17}" text-anchor="{anchor}">{_number(x)}</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 3}" text-anchor="middle">'
        "step</text>"
    )
    legend = []
    if mark is not None:
        [(at, _)] = place([(min(max(mark[0], x_low), x_high), y_low)])
        parts.append(
            f'<path class="mark" d="M{at:.1f} {_TOP}V{_HEIGHT - _BOTTOM}">'
            f"<title>{escape(mark[1])}</title></path>"
        )
    for name, kind, points in curves:
        drawn = place(_thin(points))
        if len(drawn) == 1:
            [(x, y)] = drawn
            parts.append(f'<circle class="{kind} dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        elif kind == "train" and len(drawn) >= 40:
            parts.append(f'<path class="line {kind} faint" d="{_path(drawn)}"/>')
            parts.append(f'<path class="line {kind}" d="{_path(place(_smooth(_thin(points))))}"/>')
        else:
            parts.append(f'<path class="line {kind}" d="{_path(drawn)}"/>')
        if kind == "val" and 1 < len(drawn) <= 60:
            parts += [
                f'<circle class="{kind} dot" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>' for x, y in drawn
            ]
        last = f"{points[-1][1]:.3g}"
        legend.append(
            f'<span class="key {kind}">{escape(name)} <span class="last">{last}</span></span>'
        )
    spoken = "; ".join(f"{name}: last value {points[-1][1]:.3g}" for name, _, points in curves)
    if mark is not None:
        legend.append(f'<span class="key mark">{escape(mark[1])}</span>')
        spoken += f"; {mark[1]}"
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>{"".join(legend)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(f"{title}. {spoken}")}">{"".join(parts)}</svg></figure>'
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


def curves(
    records: Sequence[Mapping[str, Any]],
    overlap: str = "Dice",
    best: tuple[float, str] | None = None,
) -> str:
    """Return loss, accuracy, overlap and learning rate over the steps of a run as inline SVG.

    Args:
        records: lines of metrics.jsonl in order of step. Accuracy is drawn where any line has it.
        overlap: what "dice" is called: of patches it is their F-score.
        best: (step, words) of a line to draw across the loss, or None; the accuracy gets it too,
            with its own value there.
    """

    def both(name: str) -> list[tuple[str, str, list[tuple[float, float]]]]:
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
    four = " four" if len(charts) == 4 else ""
    return f'<div class="charts{four}">{"".join(charts)}</div>'


def dot_chart(values: Sequence[tuple[str, float]], label: str) -> str:
    """Return one dot per case on a line from 0 to 1, with the mean marked, as inline SVG.

    Args:
        values: (case, value between 0 and 1); dots at one place are stacked.
        label: what the values are, plain text.
    """
    if not values:
        return ""
    low = min(value for _, value in values)
    # Zoom in where every case is good, else the dots are one blob; the axis says where it starts.
    start = next((edge for edge in (0.9, 0.8, 0.5) if low >= edge + 0.01), 0.0)

    def at(value: float) -> float:
        """Per cent of the width: the chart stretches with the page, its text does not."""
        return 2 + 96 * (value - start) / (1 - start)

    radius, apart = 5, 1.4
    placed: list[tuple[float, int, str, float]] = []
    for case, value in sorted(values, key=lambda item: item[1]):
        x, level = at(value), 0
        while any(other == level and abs(x - where) < apart for where, other, *_ in placed):
            level += 1
        placed.append((x, level, case, value))
    floor = 22 + 2 * radius * (1 + max(level for _, level, *_ in placed))
    parts = [f'<line class="axis" x1="2%" x2="98%" y1="{floor}" y2="{floor}"/>']
    for tick in ticks(start, 1.0):
        x = at(tick)
        parts.append(
            f'<line class="axis" x1="{x:.2f}%" x2="{x:.2f}%" y1="{floor}" y2="{floor + 4}"/>'
            f'<text x="{x:.2f}%" y="{floor + 18}" text-anchor="middle">{tick:.10g}</text>'
        )
    for x, level, case, value in placed:
        parts.append(
            f'<circle class="case" cx="{x:.2f}%" cy="{floor - radius - 2 - 2 * radius * level}" '
            f'r="{radius}"><title>{escape(case)}: {value:.3f}</title></circle>'
        )
    mean = sum(value for _, value in values) / len(values)
    x = at(mean)
    anchor = "end" if x > 90 else "start" if x < 10 else "middle"
    parts.append(
        f'<line class="mean" x1="{x:.2f}%" x2="{x:.2f}%" y1="16" y2="{floor}"/>'
        f'<text class="strong" x="{x:.2f}%" y="11" text-anchor="{anchor}">mean {mean:.3f}</text>'
    )
    spoken = f"{label} of {len(values)} cases, mean {mean:.3f}, lowest {low:.3f}"
    return (
        f'<svg class="dots" width="100%" height="{floor + 24}" role="img" '
        f'aria-label="{escape(spoken)}">{"".join(parts)}</svg>'
    )
