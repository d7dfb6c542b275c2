"""Whether every vertebra has its right name: the section of a page on VerSe's scores."""

from collections.abc import Mapping
from html import escape
from typing import Any

from spinejax import labels
from spinejax.reports import tables
from spinejax.reports.markup import count, table
from spinejax.reports.run import Run

_REGIONS = {"C": "Cervical", "T": "Thoracic", "L": "Lumbar"}
_SCAN_HEADER = ("scan", "from", "to", "id.rate", "Dice", "missed", "extra", "all right")
_HEADER = ("", "id.rate", "d_mean, mm", "Dice", "HD95, mm", "vertebrae", "missed", "extra")


def scores_of(run: Run) -> Mapping[str, Any] | None:
    """Return the summary over vertebrae of the page's evaluation, where it has one."""
    if run.split is None:
        return None
    found = tables.item(run.evaluations[run.split], "summary", "vertebrae")
    return found if isinstance(found, Mapping) else None


def vertebrae(run: Run) -> str:
    """Return VerSe's scores by region and by scan; "" where vertebrae were not named."""
    scores = scores_of(run)
    if scores is None or run.split is None:
        return ""
    regions = tables.item(scores, "per_region")
    rows = [_row("All", scores)]
    for key, word in _REGIONS.items():
        values = tables.item(regions, key)
        if isinstance(values, Mapping) and (values.get("n_reference") or values.get("n_extra")):
            rows.append(_row(word, values))
    cases = run.evaluations[run.split]["cases"]
    scans = "".join(filter(None, (_scan(case, cases[case]) for case in cases)))
    right, number = scores.get("all_correct"), scores.get("n_scans")
    words = ""
    if isinstance(right, int | float) and isinstance(number, int):
        all_right = round(right * number)
        share = f"{all_right} of {count(number, 'scan')}"
        words = f"Every vertebra has its right name, and nothing else has one, in {share}. "
    where = "the masks" if scores.get("reference_centroids") == "masks" else "the bodies"
    return (
        f"<section><h2>Names of the vertebrae</h2><p>{words}A vertebra counts as identified where "
        "the reference’s vertebra nearest to it has the same name, at most 20 mm away; distances "
        f"are between the centroids of {where} (Sekuboyina et al., 2021). A missed vertebra has "
        f"Dice 0 and no distance.</p>{table(_HEADER, rows)}"
        "<h3>By scan</h3>"
        f"{table(_SCAN_HEADER, [scans])}"
        "</section>"
    )


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else tables.DASH


def _row(word: str, values: Mapping[str, Any]) -> str:
    cells = [
        _number(values.get("id_rate"), 3),
        _number(values.get("d_mean_mm"), 1),
        _number(values.get("dice_mean"), 3),
        _number(values.get("hd95_mean_mm"), 1),
        *(_number(values.get(key), 0) for key in ("n_reference", "n_missed", "n_extra")),
    ]
    return f'<tr><th scope="row">{word}</th>' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"


def _scan(case: str, scores: Mapping[str, Any]) -> str:
    values = tables.item(scores, "vertebrae")
    if not isinstance(values, Mapping):
        return ""
    ids = [int(label) for label in values.get("per_label", {})]
    ends = [labels.name(ids[i]) if ids else tables.DASH for i in (0, -1)]
    cells = [
        *ends,
        _number(values.get("id_rate"), 3),
        _number(values.get("dice_mean"), 3),
        _number(values.get("n_missed"), 0),
        _number(values.get("n_extra"), 0),
        "yes" if values.get("all_correct") else "no",
    ]
    row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{escape(case)}</th>{row}</tr>'
