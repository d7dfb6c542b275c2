"""Errors of a run: missed vertebrae and false positives, beside those of an earlier run.

The section shows a row of slices of each scan: found, missed and wrongly found voxels over the CT.
The page stores each slice once, as a JPEG, under a picture of a few colours. A second row, of
another prediction on the same slices, therefore costs little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spinejax import geometry, labels, overlay
from spinejax.errors import InputError
from spinejax.io import scanfile
from spinejax.io.grids import match_labels
from spinejax.metrics import mistakes
from spinejax.reports import figures, tables
from spinejax.reports.run import Run
from spinejax.reports.tables import DASH, Line, Table
from spinejax.volume import PLANES, Volume

COUNT = 7
"""Slices in a row."""

NOTABLE = 5
"""Smallest marked change of a vertebra's found share, in percentage points."""

_MARGIN_MM = 8.0
_SIDE = 56  # width of the column of names, in the pixels of a slice
_HIGHEST = 720  # CSS pixels of a slice on the page
_LINE = 22  # least distance between two names
_STRAY = 0.005  # share of what is marked that may lie outside the pictures at either end
_PIXELS = (300, 900)  # largest width and height of a stored slice
_MAX_PIXELS_PER_MM = 5.0
_BYTES = 330_000  # of all JPEGs of a row


# Which slices are shown, and which part of them.


@dataclass(frozen=True)
class View:
    """Slices of a scan that are shown in a row.

    Attributes:
        plane: one of `volume.PLANES`.
        indices: of the slices along the canonical axis of `plane`.
        rows: of the displayed slice, the part that is shown.
        columns: likewise.
        size: of the stored picture, (rows, columns) in pixels.
        pixels_per_mm: of the stored picture.
    """

    plane: str
    indices: tuple[int, ...]
    rows: slice
    columns: slice
    size: tuple[int, int]
    pixels_per_mm: float

    def cut(self, array: np.ndarray, index: int) -> np.ndarray:
        """Return the shown part of slice `index` of a canonical array."""
        return figures.hung(array, self.plane, index)[self.rows, self.columns]


def choose(weights: np.ndarray, count: int = COUNT) -> tuple[int, ...]:
    """Choose slices that are spread over those that have a weight, denser where it is larger.

    Args:
        weights: (n,) of the slices, at least 0.
        count: most slices to choose.

    Returns:
        Increasing indices, fewer than `count` where fewer slices have a weight.
    """
    free = np.flatnonzero(weights).tolist()
    if len(free) <= count:
        return tuple(free)
    reached = np.cumsum(weights) / np.sum(weights)
    chosen: list[int] = []
    for index in np.searchsorted(reached, (np.arange(count) + 0.5) / count).tolist():
        # If a slice is wanted twice, its neighbour takes the second place.
        chosen.append(min(free, key=lambda other: abs(other - index)))
        free.remove(chosen[-1])
    return tuple(sorted(chosen))


def view(
    reference: np.ndarray,
    predictions: Sequence[np.ndarray],
    spacing_mm: Sequence[float],
    plane: str,
    count: int = COUNT,
) -> View:
    """Choose the slices, and the part of them that holds what the masks mark.

    The reference decides on two thirds of the slices, false positives on one third. The view holds
    the whole reference and nearly all of the predictions: a few stray voxels do not widen it.

    Args:
        reference: canonical (x, y, z); everything above 0 is marked.
        predictions: one or more of the same shape, likewise.
        spacing_mm: voxel size along each axis.
        plane: one of `volume.PLANES`.
        count: most slices.
    """
    true = np.array(reference > 0)
    false = np.zeros_like(true)
    for prediction in predictions:
        false |= prediction > 0
    false &= ~true
    fixed = PLANES[plane]
    least = _STRAY * float((_counts(true, fixed) + _counts(false, fixed)).max())
    weights = _weights(true, fixed, least) + 0.5 * _weights(false, fixed, least)
    box = [_side(true, false, axis, spacing_mm[axis]) for axis in range(3)]
    column_axis, row_axis = (axis for axis in range(3) if axis != fixed)
    rows, columns = box[row_axis], box[column_axis]
    if plane != "axial":  # superior is at the top
        length = reference.shape[row_axis]
        rows = slice(length - rows.stop, length - rows.start)
    high_mm = (rows.stop - rows.start) * spacing_mm[row_axis]
    wide_mm = (columns.stop - columns.start) * spacing_mm[column_axis]
    scale = min(_PIXELS[0] / wide_mm, _PIXELS[1] / high_mm, _MAX_PIXELS_PER_MM)
    size = (max(8, round(high_mm * scale)), max(8, round(wide_mm * scale)))
    if not weights.any():
        weights = np.ones(reference.shape[fixed])
    return View(plane, choose(weights, count), rows, columns, size, scale)


def _counts(mask: np.ndarray, axis: int) -> np.ndarray:
    return np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis))


def _weights(mask: np.ndarray, axis: int, least: float) -> np.ndarray:
    """Return the weight of every slice along `axis`, 1 in all; 0 for those below `least` voxels."""
    counts = _counts(mask, axis)
    # The root: by area alone all slices would lie in the midline, by extent alone half of them
    # would show tips of processes.
    weights = np.sqrt(np.where(counts < least, 0, counts))
    return weights / max(1.0, weights.sum())


def _side(true: np.ndarray, false: np.ndarray, axis: int, spacing_mm: float) -> slice:
    """Return what to show along an axis."""
    given, every = _counts(true, axis), _counts(true, axis) + _counts(false, axis)
    length = true.shape[axis]
    if not every.any():
        return slice(0, length)
    low, high = np.searchsorted(np.cumsum(every) / every.sum(), (_STRAY, 1 - _STRAY)).tolist()
    if given.any():
        marked = np.flatnonzero(given)
        low, high = min(low, int(marked[0])), max(high, int(marked[-1]))
    margin = round(_MARGIN_MM / spacing_mm)
    return slice(max(0, low - margin), min(length, high + 1 + margin))


def layer(reference: np.ndarray, prediction: np.ndarray, shown: View, index: int) -> np.ndarray:
    """Return what lies over a slice as numbers of the palette; 0 where nothing is marked."""
    true, found = shown.cut(reference, index) > 0, shown.cut(prediction, index) > 0
    kinds = np.zeros(true.shape, np.uint8)
    kinds[true & found] = figures.FOUND
    kinds[~true & found] = figures.FALSE
    kinds[true & ~found] = figures.MISSED
    kinds = figures.resize(kinds, shown.size, smooth=False).copy()
    kinds[overlay.outline(np.where(kinds == figures.FOUND, 0, kinds))] += figures.OUTLINE
    return kinds


def side_names(reference: np.ndarray | None, shown: View) -> list[tuple[int, str]]:
    """Return (y, name) of each vertebra at the height of its middle.

    Empty without a reference, and beside axial slices.
    """
    if reference is None or shown.plane == "axial":
        return []
    height, high = reference.shape[2], shown.size[0]
    scale = high / (shown.rows.stop - shown.rows.start)
    heights = []
    for label, box in geometry.label_boxes(reference).items():
        if label not in labels.NAMES:
            continue
        voxels = np.count_nonzero(reference[box] == label, axis=(0, 1))
        middle = box[2].start + float(np.average(np.arange(len(voxels)), weights=voxels))
        heights.append(((height - 0.5 - middle - shown.rows.start) * scale, labels.name(label)))
    found, last = [], 0.0
    for y, name in sorted(heights):  # a part of a vertebra may be close to the next one
        last = max(y, last + _LINE)
        found.append((round(last), name))
    return found


def captions(reference: np.ndarray | None, shown: View) -> list[str]:
    """Return the words below each slice: its number, and the vertebrae in an axial one."""
    lines = [f"slice {index + 1}" for index in shown.indices]
    if reference is None or shown.plane != "axial":
        return lines
    return [
        ": ".join(filter(None, (line, ", ".join(_names_in(shown.cut(reference, index))))))
        for line, index in zip(lines, shown.indices, strict=True)
    ]


def _names_in(labelled: np.ndarray) -> list[str]:
    found = [label for label in np.unique(labelled).tolist() if label in labels.NAMES]
    return [labels.name(label) for label in sorted(found, key=labels.order)]


# The errors in words and as tables.


@dataclass(frozen=True)
class Mistakes:
    """Errors of a scan, as `metrics.mistakes.analyse` returns them, and those of an earlier run.

    `numbered`: whether labels are VerSe ids; else everything labelled is one row.
    """

    after: Mapping[str, Any]
    before: Mapping[str, Any] | None = None
    numbered: bool = True

    def name(self, label: int) -> str:
        """Return what a label is called."""
        if not self.numbered:
            return "spine"
        return labels.name(label) if label in labels.NAMES else f"label {label}"


def _ml(value: float) -> str:
    if value < 0.05:
        return "less than 0.1 ml" if value else "nothing"
    return f"{value:.1f} ml" if value < 9.95 else f"{value:.0f} ml"


def _hu(value: float | None) -> str:
    return DASH if value is None else f"{value:.0f}".replace("-", "−")


def _lost_ml(row: Mapping[str, Any]) -> float:
    return float(row["ml"] * (1 - row["recall"]))


def missed_words(found: Mistakes) -> str:
    """Return what is missed most, in words; "" for an empty reference."""
    rows = found.after["vertebrae"]
    if not rows:
        return ""
    worst = max(rows, key=_lost_ml)
    line = f"{_ml(sum(map(_lost_ml, rows)))} of {_ml(sum(row['ml'] for row in rows))}"
    if found.before is not None:
        line += f" (before: {_ml(sum(map(_lost_ml, found.before['vertebrae'])))})"
    if not _lost_ml(worst):
        return f"{line}."
    where = ""
    if len(rows) > 1:
        cut = ", at the end of the scan" if worst["at_end"] else ""
        line += f", most of {found.name(worst['label'])} ({_ml(_lost_ml(worst))}{cut})"
        where = " there"
    if worst["found_hu"] is None:
        return f"{line}. Its median{where} is {_hu(worst['missed_hu'])} HU."
    return (
        f"{line}. The median{where} is {_hu(worst['missed_hu'])} HU where missed and "
        f"{_hu(worst['found_hu'])} HU where found."
    )


def false_words(found: Mistakes) -> str:
    """Return where the false positives are, in words."""
    places = found.after["false_positives"]
    before = ""
    if found.before is not None:
        before = f" (before: {_ml(found.before['false_positives']['total']['ml'])})"
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


def false_table(found: Mistakes) -> Table | None:
    """Return the false positives by place, and their HU; None where there is no place or none."""
    after = found.after["false_positives"]
    both = [after] if found.before is None else [found.before["false_positives"], after]
    if after["within"]["ml"] is None or not any(one["total"]["ml"] for one in both):
        return None
    times = [""] if len(both) == 1 else [" before", " after"]
    lines = []
    for place, name in _PLACES.items():
        cells = [f"{one[place]['ml']:.1f}" for one in both]
        lines.append(Line(name, (*cells, *(_hu(one[place]["hu"]) for one in both))))
    header = *(f"ml{time}" for time in times), *(f"HU{time}" for time in times)
    return Table(("not in the reference", *header), tuple(lines))


def vertebra_rows(found: Mistakes) -> list[dict[str, Any]]:
    """Return the found share of the vertebrae from head to foot, then of other labels.

    "missed" is a share. "change" (None without an earlier run) is the difference of the printed per
    cent, so that the row adds up.
    """

    def place(row: Mapping[str, Any]) -> float:
        label = row["label"]
        return labels.order(label) if label in labels.NAMES else 1000.0 + label

    earlier = {row["label"]: row["recall"] for row in (found.before or {}).get("vertebrae", ())}
    rows = []
    for row in sorted(found.after["vertebrae"], key=place):
        shares = [earlier[row["label"]]] if found.before is not None else []
        shares.append(row["recall"])
        percents = [round(100 * share) for share in shares]
        rows.append(
            {
                "name": found.name(row["label"]),
                "ml": f"{row['ml']:.1f}",
                "found": [(f"{1 - s:.2f}", p) for s, p in zip(shares, percents, strict=True)],
                "change": percents[-1] - percents[0] if len(shares) > 1 else None,
                "hu": [_hu(row[key]) for key in ("found_hu", "missed_hu")],
                "edge": "end" if row["at_end"] else "side" if row["at_border"] else "",
            }
        )
    return rows


# The section.


def shown_splits(run: Run) -> list[str]:
    """Return the evaluations whose errors are shown: the page's own, and all folders of scans."""
    folders = [name for name in run.evaluations if name not in tables.OWN_SPLITS]
    return list(dict.fromkeys([*([run.split] if run.split else []), *folders]))


def check_before(run: Run, before: Run) -> None:
    """Refuse an earlier run that shares no evaluation with this one.

    Raises:
        InputError: it is the run itself, or there is nothing to compare.
    """
    if before.workdir.resolve() == run.workdir.resolve():
        raise InputError(
            f"--before: {before.workdir} is the run itself; give the workdir of another"
        )
    wanted = shown_splits(run)
    if not wanted:
        raise InputError(
            f"{run.workdir} has no evaluation to compare; run `spinejax evaluate "
            f"--workdir={run.workdir}` first"
        )
    if not set(wanted) & set(before.evaluations):
        first = wanted[0]
        flag = f"--split={first}" if first in tables.OWN_SPLITS else "--data=DIR"
        raise InputError(
            f"--before: {before.workdir} has no evaluation called {' or '.join(wanted)}; run "
            f"`spinejax evaluate --workdir={before.workdir} {flag}` on the same scans first"
        )


def section(run: Run, before: Run | None = None) -> dict[str, Any] | None:
    """Return missed vertebrae and false positives, scan by scan; None without an evaluation.

    Args:
        run: the run of the page.
        before: an earlier run that `check_before` accepts.
    """
    parts: list[dict[str, Any]] = []
    for split in shown_splits(run):
        chosen = tables.chosen_cases(tables.ranked(run.evaluations[split]))
        cases = [
            _shown(run, before, split, one, f"errs-{len(parts)}-{number}")
            for number, one in enumerate(reversed(chosen))
        ]
        if cases:
            own = split in tables.OWN_SPLITS
            parts.append({"split": "" if own else split, "cases": cases})
    plane = _plane(run)
    colours = {"found": figures.FOUND_RGB, "missed": figures.MISSED_RGB}
    colours["found, but not in the reference"] = figures.FALSE_RGB
    if not parts:
        return None
    return {
        "parts": parts,
        "plane": plane,
        "hanging": figures.hanging(plane),
        "window": figures.window_words(),
        "before": before and str(before.workdir),
        "colours": colours,
        "notable": NOTABLE,
    }


def _plane(run: Run) -> str:
    plane = tables.item(run.config, "data", "plane")
    return plane if plane in PLANES else "sagittal"


def _shown(
    run: Run, before: Run | None, split: str, chosen: tuple[str, str, float], key: str
) -> dict[str, Any]:
    """Return a scan, its errors, and those of the earlier run; the problem if a file is gone."""
    word, case, dice = chosen
    title = f"{word}: {case}"
    try:
        volume, masks = run.read_case(case, split)
    except InputError as error:
        return {"title": title, "problem": str(error)}
    if "labels" not in masks:
        return {"title": title, "problem": "The file of the reference is gone."}
    reference, rows = masks["labels"], [("", masks["prediction"])]
    numbered = tables.item(run.config, "data", "labels") != "binary" and reference.max() != 1
    note, words = "", f"Dice {dice:.3f}"
    if before is not None:
        try:
            earlier = _read_before(before, volume, reference, split, case)
            rows = [("Before", earlier), ("After", masks["prediction"])]
            dice_before = tables.case_values(before.evaluations[split], "dice").get(case)
            if dice_before is not None:
                words = f"Dice {dice_before:.3f} before, {dice:.3f} after"
        except InputError as error:
            note = f"Without a Before: {error}"
    if not numbered:
        reference = (reference > 0).astype(np.uint8)
    *befores, after = (
        mistakes.analyse(volume.array, reference, mask, volume.steps_mm) for _, mask in rows
    )
    found = Mistakes(after, befores[0] if befores else None, numbered)
    return {
        "title": title,
        "problem": "",
        "dice": words,
        "shape": " × ".join(map(str, volume.shape)),
        "spacing": " × ".join(f"{mm:.3g}" for mm in volume.spacing_mm),
        "note": note,
        "montage": _montage(case, volume, reference, rows, numbered, _plane(run), key),
        "missed": missed_words(found),
        "false": false_words(found),
        "vertebrae": vertebra_rows(found),
        "numbered": numbered,
        "false_table": false_table(found),
    }


def _read_before(
    before: Run, volume: Volume, reference: np.ndarray, split: str, case: str
) -> np.ndarray:
    """Return what the earlier run predicted, on the grid of `volume`.

    Raises:
        InputError: it has no such case, a file is gone or damaged, or it scored another scan of
            that name.
    """
    if case not in (before.evaluations.get(split, {}).get("cases") or {}):
        raise InputError(f"the earlier run did not score {case}.")
    paths = before.case_files(case, split)
    if not paths["prediction"].is_file():
        raise InputError(f"{paths['prediction']} is gone")
    given = paths.get("labels")
    if given is not None and given.is_file():
        # Two sets of phantoms have the same names.
        theirs = scanfile.read_labels(given, before.valid_labels("labels", case, split))
        same = theirs.shape == volume.shape and np.array_equal(
            match_labels(volume, theirs).array, reference
        )
        if not same:
            raise InputError(f"what the earlier run scored as {case} is another scan.")
    valid = before.valid_labels("prediction", case, split)
    predicted = scanfile.read_labels(paths["prediction"], valid)
    return match_labels(volume, predicted).array


def _montage(
    case: str,
    volume: Volume,
    reference: np.ndarray,
    masks: Sequence[tuple[str, np.ndarray]],
    numbered: bool,
    plane: str,
    key: str,
) -> dict[str, Any]:
    """Return a row of slices for each (title, prediction), all of the same slices."""
    shown = view(reference, [mask for _, mask in masks], volume.spacing_mm, plane)
    count = volume.shape[PLANES[plane]]
    greys = [
        figures.resize(overlay.window(shown.cut(volume.array, i)), shown.size, smooth=True)
        for i in shown.indices
    ]
    scans = [figures.data_uri(jpeg, "jpeg") for jpeg in figures.jpegs(greys, _BYTES)]
    names = side_names(reference if numbered else None, shown)
    below = captions(reference if numbered else None, shown)
    rows: list[dict[str, Any]] = []
    for title, mask in masks:
        tiles = []
        for number, index in enumerate(shown.indices):
            name = f"{key}-{number}"
            words = f"{case} {title.lower()}".strip() + f", slice {index + 1} of {count}"
            picture = figures.Picture(
                shown.size,
                f"#{name}" if rows else scans[number],
                layer(reference, mask, shown, index),
                (),
                words,
                plane,
                shown.pixels_per_mm if number == 0 else None,
                below[number],
            )
            tiles.append({"id": "" if rows else name, "picture": picture})
        rows.append({"title": title, "tiles": tiles})
    side, (high, wide) = _SIDE if names else 0, shown.size
    return {
        "rows": rows,
        "names": names,
        "side": _SIDE,
        "high": high,
        # A whole spine is high and narrow; it must not fill the width.
        "widest": round((side + len(shown.indices) * wide) * _HIGHEST / high),
        "columns": f"{side}fr repeat({len(shown.indices)},{wide}fr)",
    }
