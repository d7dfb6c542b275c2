"""The best and the worst slices of an evaluation: scan, reference and prediction in a column.

Figures 14 and 16 of paper B, for every task, from `evaluation/<split>/slices.json` and the files
that cases.json names. Slices are cut to the part around reference and prediction. The page stores
the scan once per slice and draws it three times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from spinejax import labels, overlay, records, sweep_state
from spinejax.errors import InputError, check_choice
from spinejax.reports import figures
from spinejax.reports.run import Run
from spinejax.reports.tables import finite, item, whole
from spinejax.volume import PLANES

_MOST = 4  # slices of a kind
_MARGIN_MM = 12.0
_LEAST_MM = 70.0
_PIXELS = (360, 150_000)  # largest width, and largest number, of a stored picture


@dataclass(frozen=True)
class Pick:
    """A slice to show: `index` along the canonical axis of the plane; Dice None if not given."""

    kind: str
    case: str
    index: int
    dice: float | None


@dataclass(frozen=True, eq=False)
class _Slice:
    """A slice as a picture: `grey` uint8 and labels, (rows, columns); spacing in mm."""

    grey: np.ndarray
    prediction: np.ndarray
    reference: np.ndarray | None
    spacing_mm: tuple[float, float]
    count: int

    def extents_mm(self) -> list[tuple[float, float]]:
        """Return (low, high) of what is marked along rows and columns."""
        found = self.prediction > 0
        if self.reference is not None:
            found |= self.reference > 0
        extents = []
        for axis in (0, 1):
            marked = np.flatnonzero(found.any(axis=1 - axis))
            low, high = (marked[0], marked[-1] + 1) if marked.size else (0, found.shape[axis])
            extents.append((low * self.spacing_mm[axis], high * self.spacing_mm[axis]))
        return extents


def read_picks(record: Mapping[str, Any], path: str) -> tuple[str, list[Pick]]:
    """Return the plane and the slices that slices.json names, the best first.

    Raises:
        InputError: the plane or an entry is wrong.
    """
    plane = str(record.get("plane"))
    check_choice(f"{path}: plane", plane, PLANES)
    picks = []
    for kind in ("best", "worst"):
        entries = record.get(kind)
        for entry in entries[:_MOST] if isinstance(entries, list) else ():
            case, index = item(entry, "case"), whole(item(entry, "index"))
            if not isinstance(case, str) or index is None:
                raise InputError(
                    f"{path}: an entry of {kind} has no case and index; run `spinejax evaluate` "
                    "again"
                )
            picks.append(Pick(kind, case, index, finite(item(entry, "dice"))))
    return plane, picks


def section(run: Run) -> dict[str, Any] | None:
    """Return what the section shows; None where nothing was evaluated."""
    if run.split is None:
        return None
    path = run.folder / "slices.json"
    if not path.is_file():
        return {"problem": "", "groups": []}
    try:
        plane, picks = read_picks(records.read(path, dict, sweep_state.REMOVE), str(path))
    except InputError as error:
        return {"problem": str(error), "groups": []}
    slices, problems = _load(run, plane, picks)
    aspect = _aspect([found for found in slices if found is not None])
    groups = []
    for kind, title in (("best", "Highest Dice"), ("worst", "Lowest Dice")):
        figures_of_kind = [
            _figure(pick, found, plane, aspect, f"slice-{number}", run.is_named)
            if found is not None
            else {"pick": pick, "problem": str(problems[pick.case, pick.index])}
            for number, (pick, found) in enumerate(zip(picks, slices, strict=True))
            if pick.kind == kind
        ]
        if figures_of_kind:
            groups.append((title, figures_of_kind))
    return {"problem": None, "groups": groups, "plane": plane, "hanging": figures.hanging(plane)}


def _load(
    run: Run, plane: str, picks: Sequence[Pick]
) -> tuple[list[_Slice | None], dict[tuple[str, int], InputError]]:
    """Return the slices in the order of `picks`, None for those that cannot be shown, and why."""
    found: dict[tuple[str, int], _Slice] = {}
    problems: dict[tuple[str, int], InputError] = {}
    for case in dict.fromkeys(pick.case for pick in picks):  # every scan is read once
        wanted = {pick.index for pick in picks if pick.case == case}
        try:
            volume, masks = run.read_case(case)
        except InputError as error:
            problems.update({(case, index): error for index in wanted})
            continue
        count = volume.shape[PLANES[plane]]
        column_axis, row_axis = (axis for axis in range(3) if axis != PLANES[plane])
        for index in wanted:
            if index >= count:
                problems[case, index] = InputError(f"{case} has no slice {index}, only {count}")
                continue
            cut = {name: figures.hung(mask, plane, index) for name, mask in masks.items()}
            found[case, index] = _Slice(
                grey=overlay.window(figures.hung(volume.array, plane, index)),
                prediction=cut["prediction"],
                reference=cut.get("labels"),
                spacing_mm=(volume.spacing_mm[row_axis], volume.spacing_mm[column_axis]),
                count=count,
            )
    return [found.get((pick.case, pick.index)) for pick in picks], problems


def _aspect(slices: Sequence[_Slice]) -> float:
    """Return height per width of all pictures, from what is marked on the slices.

    The value is bounded, because a row of pictures has to fit a screen.
    """
    shapes = []
    for found in slices:
        (top, bottom), (left, right) = found.extents_mm()
        shapes.append((bottom - top + 2 * _MARGIN_MM) / (right - left + 2 * _MARGIN_MM))
    return min(max(float(np.median(shapes)), 0.8), 1.6) if shapes else 1.0


def _window(found: _Slice, aspect: float) -> tuple[float, float]:
    """Return (height, width) in mm that hold what is marked on a slice, with a margin."""
    high, wide = (high - low + 2 * _MARGIN_MM for low, high in found.extents_mm())
    wide = max(wide, high / aspect, _LEAST_MM)
    return wide * aspect, wide


def _crop(array: np.ndarray, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return `array[ranges]`; 0 where a range leaves the array."""
    (top, bottom), (left, right) = ranges
    inside = array[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    before = (max(-top, 0), max(-left, 0))
    out = np.zeros((bottom - top, right - left), array.dtype)
    out[before[0] : before[0] + inside.shape[0], before[1] : before[1] + inside.shape[1]] = inside
    return out


def _ranges(found: _Slice, window: tuple[float, float]) -> list[tuple[int, int]]:
    """Return the rows and columns to show: `window` around what is marked, inside the slice."""
    ranges = []
    for axis, (low, high) in enumerate(found.extents_mm()):
        spacing, length = found.spacing_mm[axis], found.grey.shape[axis]
        size = max(1, round(window[axis] / spacing))
        start = round((low + high) / 2 / spacing - size / 2)
        # A slice smaller than the window lies in its middle.
        start = min(max(start, 0), length - size) if size <= length else (length - size) // 2
        ranges.append((start, start + size))
    return ranges


def _figure(
    pick: Pick, found: _Slice, plane: str, aspect: float, name: str, is_named: bool
) -> dict[str, Any]:
    window = _window(found, aspect)
    ranges = _ranges(found, window)
    pixels_per_mm = min(_PIXELS[0], (_PIXELS[1] / aspect) ** 0.5) / window[1]
    size = max(8, round(window[0] * pixels_per_mm)), max(8, round(window[1] * pixels_per_mm))

    def enlarged(mask: np.ndarray) -> np.ndarray:
        mask = mask if is_named else mask > 0
        return figures.resize(_crop(mask.astype(np.uint8), ranges), size, smooth=False)

    grey = figures.resize(_crop(found.grey, ranges), size, smooth=True)
    prediction = enlarged(found.prediction)
    reference = None if found.reference is None else enlarged(found.reference)

    def over(mask: np.ndarray, number: int) -> np.ndarray:
        return figures.fill(mask, figures.level_numbers(mask) if is_named else number)

    def panel(title: str, layer: np.ndarray | None, mask: np.ndarray | None) -> dict[str, Any]:
        scan = figures.pixels_uri(grey) if layer is None else f"#{name}"
        words = f"{pick.case}, slice {pick.index + 1} of {found.count}: {title.lower()}"
        names = _names(mask) if is_named and mask is not None else ()
        picture = figures.Picture(size, scan, layer, names, words, plane, pixels_per_mm)
        return {"title": title, "picture": picture, "problem": ""}

    panels = [panel("Scan", None, None)]
    if reference is None:
        panels.append({"problem": "The file of the reference is gone."})
    else:
        panels.append(panel("Reference", over(reference, figures.REFERENCE), reference))
    if is_named:
        predicted = figures.compare_layer(prediction, reference, named=True)
    else:
        predicted = over(prediction, figures.PREDICTION)
        if reference is not None:
            edge = over(reference, figures.REFERENCE)
            predicted = np.where(edge > figures.OUTLINE, edge, predicted)
    panels.append(panel("Prediction", predicted, prediction))
    return {"pick": pick, "count": found.count, "id": name, "panels": panels, "problem": ""}


def _names(mask: np.ndarray) -> tuple[figures.Name, ...]:
    """Return the names of vertebrae in a slice, each in the middle of its largest part."""
    found = []
    for label in sorted(set(np.unique(mask).tolist()) & set(labels.NAMES)):
        parts, _ = ndimage.label(mask == label)
        y, x = np.nonzero(parts == np.bincount(parts.ravel())[1:].argmax() + 1)
        found.append(figures.Name(float(x.mean()), float(y.mean()), labels.name(label)))
    return tuple(found)
