"""What a prediction misses and what it takes for a vertebra, in words and as a table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from spinejax import labels
from spinejax.metrics import mistakes
from spinejax.reports import markup, tables

NOTABLE = 5
"""Changes of the share of a vertebra that are marked, in points."""


@dataclass(frozen=True)
class Found:
    """Errors of a scan, as `metrics.errors.analyse` returns them, and those of an earlier run.

    `numbered`: whether labels are VerSe ids; else everything labelled is one row.
    """

    after: Mapping[str, Any]
    before: Mapping[str, Any] | None = None
    numbered: bool = True


def _name(label: int, numbered: bool) -> str:
    if not numbered:
        return "spine"
    return labels.name(label) if label in labels.NAMES else f"label {label}"


def _in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return vertebrae from head to foot, then labels that are none."""
    known = labels.NAMES
    return sorted(
        rows,
        key=lambda row: (
            labels.order(row["label"]) if row["label"] in known else 1000.0 + row["label"]
        ),
    )


def _ml(value: float) -> str:
    if value < 0.05:
        return "less than 0.1 ml" if value else "nothing"
    return f"{value:.1f} ml" if value < 9.95 else f"{value:.0f} ml"


def _hu(value: float | None) -> str:
    return tables.DASH if value is None else f"{value:.0f}".replace("-", "−")


def words(found: Found) -> str:
    """Return what is missed most, and where the false positives are, in words."""
    false = found.after["false_positives"]
    before = ""
    if found.before is not None:
        before = f" (before: {_ml(found.before['false_positives']['total']['ml'])})"
    lines = [_missed(found)] if found.after["vertebrae"] else []
    lines.append(f"<b>Not in the reference:</b> {_false(false, before)}")
    return "".join(f"<p>{line}</p>" for line in lines)


def _missed(found: Found) -> str:
    rows = found.after["vertebrae"]
    worst = max(rows, key=_lost_ml)
    line = f"<b>Missed:</b> {_ml(_lost_by_all(rows))} of {_ml(sum(row['ml'] for row in rows))}"
    if found.before is not None:
        line += f" (before: {_ml(_lost_by_all(found.before['vertebrae']))})"
    if not _lost_ml(worst):
        return f"{line}."
    where = ""
    if len(rows) > 1:
        cut = ", at the end of the scan" if worst["at_end"] else ""
        name = escape(_name(worst["label"], found.numbered))
        line += f", most of {name} ({_ml(_lost_ml(worst))}{cut})"
        where = " there"
    if worst["found_hu"] is None:
        return f"{line}. Its median{where} is {_hu(worst['missed_hu'])} HU."
    return (
        f"{line}. The median{where} is {_hu(worst['missed_hu'])} HU where missed and "
        f"{_hu(worst['found_hu'])} HU where found."
    )


def _lost_ml(row: Mapping[str, Any]) -> float:
    return float(row["ml"] * (1 - row["recall"]))


def _lost_by_all(rows: Iterable[Mapping[str, Any]]) -> float:
    return sum(map(_lost_ml, rows))


def _false(places: Mapping[str, Mapping[str, float | None]], before: str) -> str:
    """Say where false positives are; `before` is put behind their sum."""
    ml = {place: places[place]["ml"] or 0.0 for place in places}
    if not ml["total"]:
        return f"nothing{before}."
    total = f"{_ml(ml['total'])}{before}, median {_hu(places['total']['hu'])} HU"
    if places["within"]["ml"] is None:
        return f"{total}; the reference is empty."
    return (
        f"{total}: {_ml(ml['above'])} above the labelled range, {_ml(ml['within'])} within it, "
        f"{_ml(ml['below'])} below."
    )


_PLACES = {
    "above": "above the labelled range",
    "near": f"within it, up to {mistakes.NEAR_MM:g} mm off: a border too wide",
    "far": "within it, farther off: other structure, or bone without a label",
    "below": "below the labelled range",
}


def false_positives(found: Found) -> str:
    """Return the false positives by place, and their HU; "" where there is no place or none."""
    after = found.after["false_positives"]
    both = [after] if found.before is None else [found.before["false_positives"], after]
    if after["within"]["ml"] is None or not any(one["total"]["ml"] for one in both):
        return ""
    times = [""] if len(both) == 1 else [" before", " after"]
    header = ["not in the reference", *(f"ml{time}" for time in times)]
    header += [f"HU{time}" for time in times]
    rows = []
    for place, name in _PLACES.items():
        cells = [f"<td>{one[place]['ml']:.1f}</td>" for one in both]
        cells += [f"<td>{_hu(one[place]['hu'])}</td>" for one in both]
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
    return f'<div class="places">{markup.table(header, rows)}</div>'


def table(found: Found) -> str:
    """Return the vertebrae from head to foot: how much of each was found, and its HU."""
    rows = _in_order(found.after["vertebrae"])
    if not rows:
        return '<p class="nothing">The reference is empty.</p>'
    earlier = {row["label"]: row["recall"] for row in (found.before or {}).get("vertebrae", ())}
    compared = found.before is not None
    header = ["" if found.numbered else "whole", "ml"]
    header += ["found before", "found after", "change"] if compared else ["found"]
    header += ["HU where found", "HU where missed", "scan’s edge"]
    html = []
    for row in rows:
        cells = [f"<td>{row['ml']:.1f}</td>"]
        if compared:
            cells.append(_share(earlier[row["label"]]))
        cells.append(_share(row["recall"]))
        if compared:
            cells.append(_change(_percent(row["recall"]) - _percent(earlier[row["label"]])))
        cells += [f"<td>{_hu(row[key])}</td>" for key in ("found_hu", "missed_hu")]
        edge = "end" if row["at_end"] else "side" if row["at_border"] else ""
        cells.append(f"<td>{edge}</td>")
        name = escape(_name(row["label"], found.numbered))
        html.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
    return f'<div class="vertebrae">{markup.table(header, html)}</div>'


def _percent(share: float) -> int:
    return round(100 * share)


def _share(share: float) -> str:
    missed = f"--missed:{1 - share:.2f}"
    return f'<td class="share" style="{missed}">{_percent(share)} %</td>'


def _change(points: int) -> str:
    """Return a change of a share, in points; of what is shown, so that the row adds up."""
    if not points:
        return "<td>0</td>"
    shown = f"{'+' if points > 0 else '−'}{abs(points)}"
    if abs(points) < NOTABLE:
        return f"<td>{shown}</td>"
    kind, arrow = ("better", "▲") if points > 0 else ("worse", "▼")
    return f'<td class="{kind}">{arrow} {shown}</td>'
