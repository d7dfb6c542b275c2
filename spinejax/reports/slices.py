"""The best and the worst slices of an evaluation: input, reference and prediction, one above other.

Figures 14 and 16 of paper B, for every task, from `evaluation/<split>/slices.json` and the files
that cases.json names. Slices are cut to the part around reference and prediction.
The scan is stored once per slice and drawn three times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from scipy import ndimage

from spinejax import overlay
from spinejax.errors import InputError, check_choice
from spinejax.reports import figures, markup, tables, tables_b
from spinejax.reports.pictures import read_case
from spinejax.reports.run import Run, read_json
from spinejax.volume import PLANES

_MOST = 4  # slices of a kind
_MARGIN_MM = 12.0
_LEAST_MM = 70.0
_PIXELS = (360, 150_000)  # largest width, and largest number, of a stored picture
_FILL = 96  # opacity of a filled region, of 255


@dataclass(frozen=True)
class Pick:
    """A slice to show: `index` along the canonical axis of the plane; Dice None if not given."""

    kind: str
    case: str
    index: int
    dice: float | None


@dataclass(frozen=True, eq=False)
class _Slice:
    """A slice as a picture: `grey` uint8 and the masks bool, (rows, columns); spacing in mm."""

    grey: np.ndarray
    prediction: np.ndarray
    reference: np.ndarray | None
    spacing_mm: tuple[float, float]
    count: int

    @property
    def found(self) -> np.ndarray:
        """Where either mask is."""
        return self.prediction if self.reference is None else self.prediction | self.reference


def read_picks(record: Mapping[str, Any], path: str) -> tuple[str, list[Pick]]:
    """Return the plane and the slices that slices.json names, the best first.

    Raises:
        InputError: an entry is not what it should be.
    """
    plane = str(record.get("plane"))
    check_choice(f"{path}: plane", plane, PLANES)
    picks = []
    for kind in ("best", "worst"):
        entries = record.get(kind)
        for entry in entries[:_MOST] if isinstance(entries, list) else ():
            case, index = tables.item(entry, "case"), tables_b.whole(tables.item(entry, "index"))
            if not isinstance(case, str) or index is None:
                raise InputError(
                    f"{path}: an entry of {kind} has no case and index; run `spinejax evaluate` "
                    "again"
                )
            picks.append(Pick(kind, case, index, tables.finite(tables.item(entry, "dice"))))
    return plane, picks


def best_and_worst_slices(run: Run) -> str:
    """Return the best and the worst slices as rows of pictures; "" where nothing was evaluated."""
    if run.split is None:
        return ""
    head = "<section><h2>Best and worst slices</h2>"
    path = run.folder / "slices.json"
    if not path.is_file():
        return (
            f'{head}<p class="nothing">Which slices are best and worst was not recorded; '
            f"{markup.command(run.workdir, 'evaluate')} does.</p></section>"
        )
    try:
        plane, picks = read_picks(read_json(path), str(path))
    except InputError as error:
        return f"{head}{markup.missing(error)}</section>"
    if not picks:
        return f'{head}<p class="nothing">No slice has any reference.</p></section>'
    slices, problems = _load(run, plane, picks)
    aspect = _aspect([found for found in slices if found is not None])
    parts = []
    for kind, title in (("best", "Highest Dice"), ("worst", "Lowest Dice")):
        figures_of_kind = [
            _figure(pick, found, plane, aspect, f"slice-{number}")
            if found is not None
            else _absent(pick, problems[pick.case, pick.index])
            for number, (pick, found) in enumerate(zip(picks, slices, strict=True))
            if pick.kind == kind
        ]
        if figures_of_kind:
            parts.append(f'<h3>{title}</h3><div class="slices">{"".join(figures_of_kind)}</div>')
    left, _, top, _ = figures.EDGES[plane]
    sides = {"R": "the patient’s right is on the left", "A": "anterior is on the left"}[left]
    up = {"A": "anterior at the top", "S": "superior at the top"}[top]
    low, high = (f"{hu:.0f}".replace("-", "−") for hu in overlay.BONE_WINDOW_HU)
    return (
        f"{head}<p>Of all {plane} slices that hold enough of the reference, those of the highest "
        "and of the lowest Dice, cut to the part around reference and prediction: the scan itself "
        f"({low} to {high} HU), the reference (cyan), the prediction (orange) with the outline of "
        f"the reference. As on the pictures above, {sides}, {up}.</p>"
        f"{''.join(parts)}</section>"
    )


def _load(
    run: Run, plane: str, picks: Sequence[Pick]
) -> tuple[list[_Slice | None], dict[tuple[str, int], InputError]]:
    """Return the slices in the order of `picks`, None for those that cannot be shown, and why."""
    found: dict[tuple[str, int], _Slice] = {}
    problems: dict[tuple[str, int], InputError] = {}
    for case in dict.fromkeys(pick.case for pick in picks):  # every scan is read once
        wanted = {pick.index for pick in picks if pick.case == case}
        try:
            volume, masks = read_case(run, case)
        except InputError as error:
            problems.update({(case, index): error for index in wanted})
            continue
        count, spacing = volume.shape[PLANES[plane]], volume.spacing_mm
        column_axis, row_axis = (axis for axis in range(3) if axis != PLANES[plane])
        for index in wanted:
            if index >= count:
                problems[case, index] = InputError(f"{case} has no slice {index}, only {count}")
                continue

            def cut(array: np.ndarray, index: int = index) -> np.ndarray:
                return figures.display(figures.take_slice(array, plane, index), plane)

            reference = masks.get("labels")
            found[case, index] = _Slice(
                grey=overlay.window(cut(volume.array)),
                prediction=cut(masks["prediction"]) > 0,
                reference=None if reference is None else cut(reference) > 0,
                spacing_mm=(spacing[row_axis], spacing[column_axis]),
                count=count,
            )
    return [found.get((pick.case, pick.index)) for pick in picks], problems


def _extent_mm(found: _Slice) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return (low, high) of what is marked along rows and columns, in mm."""
    extents = []
    for axis in (0, 1):
        marked = np.flatnonzero(found.found.any(axis=1 - axis))
        low, high = (marked[0], marked[-1] + 1) if marked.size else (0, found.grey.shape[axis])
        extents.append((low * found.spacing_mm[axis], high * found.spacing_mm[axis]))
    return extents[0], extents[1]


def _aspect(slices: Sequence[_Slice]) -> float:
    """Return height per width of all pictures, from what is marked on the slices.

    Neither stripes nor towers: a row of them has to fit a screen.
    """
    shapes = []
    for found in slices:
        (top, bottom), (left, right) = _extent_mm(found)
        shapes.append((bottom - top + 2 * _MARGIN_MM) / (right - left + 2 * _MARGIN_MM))
    return min(max(float(np.median(shapes)), 0.8), 1.6) if shapes else 1.0


def _window(found: _Slice, aspect: float) -> tuple[float, float]:
    """Return (height, width) in mm that hold what is marked on a slice, with a margin."""
    high, wide = (high - low + 2 * _MARGIN_MM for low, high in _extent_mm(found))
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
    for axis, (low, high) in enumerate(_extent_mm(found)):
        spacing, length = found.spacing_mm[axis], found.grey.shape[axis]
        size = max(1, round(window[axis] / spacing))
        start = round((low + high) / 2 / spacing - size / 2)
        # A slice smaller than the window lies in its middle.
        start = min(max(start, 0), length - size) if size <= length else (length - size) // 2
        ranges.append((start, start + size))
    return ranges


def _figure(
    pick: Pick,
    found: _Slice,
    plane: str,
    aspect: float,
    name: str,
) -> str:
    window = _window(found, aspect)
    ranges = _ranges(found, window)
    pixels_per_mm = min(_PIXELS[0], (_PIXELS[1] / aspect) ** 0.5) / window[1]
    rows, columns = (max(8, round(side * pixels_per_mm)) for side in window)
    grey = figures.resize(_crop(found.grey, ranges), (rows, columns), smooth=True)
    words = f"{pick.case}, slice {pick.index + 1} of {found.count}"
    size = f'width="{columns}" height="{rows}"'
    scan = f'<image id="{name}" {size} href="{markup.picture_uri(grey)}"/>'
    drawn = marks(plane, rows, columns, pixels_per_mm)
    panels = [_panel("Scan", words, scan + drawn, rows, columns)]
    under = f'<use href="#{name}" opacity="0.7"/>'

    def over(mask: np.ndarray, rgb: tuple[int, int, int], fill: int) -> str:
        region = figures.resize(_crop(mask, ranges).astype(np.uint8), (rows, columns), smooth=False)
        return f'<image {size} href="{markup.picture_uri(_layer(region > 0, rgb, fill))}"/>'

    predicted = over(found.prediction, overlay.PREDICTION_RGB, _FILL)
    if found.reference is None:
        panels.append('<p class="missing">The file of the reference is gone.</p>')
    else:
        given = over(found.reference, overlay.REFERENCE_RGB, _FILL)
        panels.append(_panel("Reference", words, under + given, rows, columns))
        predicted += over(found.reference, overlay.REFERENCE_RGB, 0)
    panels.append(_panel("Prediction", words, under + predicted, rows, columns))
    return f'<figure class="slice">{_caption(pick, found.count)}{"".join(panels)}</figure>'


def _layer(mask: np.ndarray, rgb: tuple[int, int, int], fill: int) -> np.ndarray:
    """Return the outline of a mask as RGBA, its inside with opacity `fill`."""
    layer = np.zeros((*mask.shape, 4), np.uint8)
    layer[mask] = (*rgb, fill)
    edge = ndimage.binary_dilation(overlay.outline(mask)) & mask
    layer[edge] = (*rgb, 255)
    return layer


def marks(plane: str, rows: int, columns: int, pixels_per_mm: float) -> str:
    """Return the direction on the left and a bar of a round length, as SVG."""
    left = figures.EDGES[plane][0]
    bar = figures.scale_bar_mm(columns / pixels_per_mm)
    y = rows - 12
    line = f"M10 {y}h{bar * pixels_per_mm:.1f}"
    return (
        f'<text x="8" y="{rows / 2:.0f}">{left}</text>'
        f'<path class="under" d="{line}"/><path d="{line}"/>'
        f'<text x="10" y="{y - 8}">{bar} mm</text>'
    )


def _panel(title: str, words: str, drawn: str, rows: int, columns: int) -> str:
    spoken = escape(f"{words}: {title.lower()}")
    return (
        f'<div class="panel"><svg viewBox="0 0 {columns} {rows}" role="img" aria-label="{spoken}">'
        f"{drawn}</svg><span>{title}</span></div>"
    )


def _caption(pick: Pick, count: int | None = None) -> str:
    of = "" if count is None else f" of {count}"
    dice = "" if pick.dice is None else f", Dice {pick.dice:.3f}"
    return (
        f"<figcaption><b>{escape(pick.case)}</b><span>slice {pick.index + 1}{of}{dice}</span>"
        "</figcaption>"
    )


def _absent(pick: Pick, error: InputError) -> str:
    return f'<figure class="slice">{_caption(pick)}{markup.missing(error)}</figure>'
