"""Phantoms beside real scans, measured in the same way: `spinejax phantom --compare`.

`compare` measures both (`phantom.measures`), `collect` brings the numbers together, `table` makes
text of them, and `draw` makes a figure: slices of real scans over slices of phantoms, all at one
scale and in one grey window, and charts. Real scans are cyan, phantoms orange.

A statistic is *off* if the range of the phantoms (5th to 95th percentile) and that of the real
scans (least to greatest, since they are few) do not overlap: a network could tell the two apart.
Fewer than `LEAST` phantoms make no range.
"""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from spinejax import files, labels, overlay
from spinejax.datasets.plain_folders import real_scans
from spinejax.datasets.verse import Case
from spinejax.errors import InputError, describe
from spinejax.io import centroid_json, scanfile
from spinejax.io.grids import match_labels
from spinejax.phantom import dataset, measures
from spinejax.progress import Progress, silent
from spinejax.reports import figures, plots
from spinejax.reports.plots import Axes, Figure, FigureCanvasAgg, Line2D, Patch, patheffects
from spinejax.text_table import text_table
from spinejax.volume import PLANES, LabelVolume, Volume

logger = logging.getLogger("spinejax")

JSON_NAME, FIGURE_NAME = "realism.json", "realism.png"
RANGE = (5, 50, 95)
"""Percentiles of the phantoms."""
LEAST = 5
"""Fewest phantoms with a statistic whose percentiles are compared."""

_SIZES = ("volume_ml", *measures.EXTENTS)
_DISTANCES = ("body_distance_mm", "mask_distance_mm")


def compare(
    real: Path,
    out: Path,
    *,
    cases: int,
    seed: int,
    limits: Mapping[str, Any],
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure real scans and phantoms, and write `realism.json` and `realism.png`.

    Args:
        real: Folder of CTs and masks, in any layout that the package reads.
        out: Folder for the two files; made if needed.
        cases: Number of phantoms.
        seed: Seed of the phantoms.
        limits: Limits of their voxels and extents, see `dataset.write_dataset`.
        overwrite: Replace files that this program did not write, too.
        progress: Shows how many scans and phantoms are measured.

    Returns:
        The content of `realism.json`: that of `collect`, with "phantoms", their settings, and
        "real_data", the folder.

    Raises:
        InputError: no usable scan under `real`, unusable numbers, or `out` cannot be written.
    """
    settings = dataset.check_limits(cases, seed, **limits)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out is the folder for {JSON_NAME} and {FIGURE_NAME}")
    for name in (JSON_NAME, FIGURE_NAME):  # drawing takes minutes
        files.check_output(out / name, "realism", overwrite=overwrite)
    found = real_scans(real)
    scans = []
    with progress("real scans", len(found), "scan") as bar:
        for entry in found:
            scan = measure_files(entry)
            scans += [] if scan is None else [scan]
            bar.advance()
    if not any(scan.values for scan in scans):
        raise InputError(f"{real}: none of its scans can be measured; spinejax doctor names why")
    phantoms = []
    with progress("phantoms", cases, "scan") as bar:
        for index in range(cases):
            volume, mask, points, _ = dataset.draw_case(seed, index, settings)
            phantoms.append(measure(dataset.case_name(index), volume, mask, points))
            bar.advance()
    record = collect(scans, phantoms)
    record = {"phantoms": {"cases": cases, **settings}, "real_data": str(real), **record}
    picture = draw(scans, phantoms, record["statistics"])
    files.write_json(out / JSON_NAME, record, "realism", overwrite=overwrite)
    save(picture, out / FIGURE_NAME, overwrite=overwrite)
    return record


# Measuring one scan

PIXELS_PER_MM = 2.0
WINDOW_MM = {"sagittal": (120.0, 190.0), "axial": (120.0, 120.0)}
"""Width and height of a picture, mm, the same for every scan."""

_ASIDE_MM = 15.0  # from the first sagittal slice to the second, through pedicles and joints


@dataclass(frozen=True, eq=False)
class Panel:
    """A slice as a picture: `grey` uint8 and VerSe ids `mask`, both (rows, columns)."""

    plane: str
    grey: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class Measured:
    """One scan, measured.

    Attributes:
        case: Its name.
        values: Statistic -> number; names are `group/name`, e.g. "volume_ml/L1".
        histograms: Layer -> shares over `measures.BINS_HU`; empty without a CT.
        panels: Slices for the figure; empty without a CT or without vertebrae.
        words: Voxel size and levels, for the figure.
    """

    case: str
    values: dict[str, float]
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    panels: list[Panel] = field(default_factory=list)
    words: str = ""


def measure_files(files: Case) -> Measured | None:
    """Read and measure a real scan; log a warning and return None if it cannot be read."""
    try:
        mask = None if files.labels is None else scanfile.read_labels(files.labels)
        points = None
        if mask is not None and files.centroids is not None:
            points = centroid_json.read_centroids(
                files.centroids, mask, edition=files.edition, mask=mask
            )
        if files.image is None:
            return (
                None
                if mask is None
                else Measured(files.id, _flat(measures.measure_labels(mask, points)))
            )
        if mask is None:
            volume = scanfile.read_volume(files.image)
            nothing = np.zeros(volume.shape, np.uint8)
            return Measured(files.id, _flat(measures.measure_hu(volume, nothing)[0]))
        volume = scanfile.read_volume(files.image)
        return measure(files.id, volume, match_labels(volume, mask).array, points, mask)
    except Exception as error:
        logger.warning("%s: left out: %s", files.id, describe(error))
        return None


def measure(
    case: str,
    volume: Volume,
    mask: np.ndarray,
    points: Mapping[int, np.ndarray] | None,
    own_grid: LabelVolume | None = None,
) -> Measured:
    """Measure a scan and its mask.

    Args:
        case: Name of the scan.
        volume: The scan, HU.
        mask: (x, y, z) VerSe ids on the scan's canonical grid.
        points: VerSe id -> (3,) voxel index of the body's centroid, or None.
        own_grid: The mask on the grid that it was stored on, which `points` then refer to.
    """
    shape = LabelVolume(mask, volume.affine) if own_grid is None else own_grid
    sizes = measures.measure_labels(shape, points)
    greys, histograms = measures.measure_hu(volume, mask)
    values = _flat(sizes) | _flat(greys)
    words = " × ".join(f"{side:.2g}" for side in volume.spacing_mm) + " mm"
    names = [labels.name(i) for i in sorted(np.unique(mask[mask > 0]), key=labels.order)]
    if names:
        words += f", {names[0]}–{names[-1]}" if len(names) > 1 else f", {names[0]}"
    return Measured(case, values, histograms, panels(volume, mask), words)


def _flat(found: measures.Statistics) -> dict[str, float]:
    return {
        f"{group}/{name}": round(float(value), 4)
        for group, values in found.items()
        for name, value in values.items()
    }


def panels(volume: Volume, mask: np.ndarray) -> list[Panel]:
    """Cut slices about the middle of the labelled spine, each `WINDOW_MM` large.

    Returns:
        A sagittal slice through the middle, one `_ASIDE_MM` to the left of it, and the axial slice
        near the middle with the most labelled pixels; no slice without vertebrae.
    """
    middle = figures.centre(mask)
    if middle is None:
        return []
    hu, spacing = volume.array, volume.spacing_mm
    x, y, z = middle
    reach = round(_ASIDE_MM / spacing[2])
    slices = range(max(0, z - reach), min(mask.shape[2], z + reach + 1))
    level = max(slices, key=lambda k: int(np.count_nonzero(mask[:, :, k])))
    aside = min(x + round(_ASIDE_MM / spacing[0]), hu.shape[0] - 1)
    cuts = [("sagittal", x), ("sagittal", aside), ("axial", level)]
    return [_cut(hu, mask, spacing, plane, index, (x, y, z)) for plane, index in cuts]


def _cut(
    hu: np.ndarray,
    mask: np.ndarray,
    spacing: Sequence[float],
    plane: str,
    index: int,
    middle: tuple[int, int, int],
) -> Panel:
    """A window of one slice about `middle`, with square pixels; black outside the scan."""
    across, down = (axis for axis in range(3) if axis != PLANES[plane])
    wide, high = WINDOW_MM[plane]
    columns, rows = (round(side * PIXELS_PER_MM) for side in (wide, high))
    u = (np.arange(columns) - (columns - 1) / 2) / PIXELS_PER_MM / spacing[across]
    v = (np.arange(rows) - (rows - 1) / 2) / PIXELS_PER_MM / spacing[down]
    # The top is superior; in axial slices it is anterior, where the index starts.
    v = v if plane == "axial" else -v
    where = np.meshgrid(v + middle[down], u + middle[across], indexing="ij")[::-1]
    image = figures.take_slice(hu, plane, index).astype(np.float32)
    ids = figures.take_slice(mask, plane, index)
    drawn = ndimage.map_coordinates(image, where, order=1, cval=-1024.0)
    return Panel(plane, overlay.window(drawn), ndimage.map_coordinates(ids, where, order=0, cval=0))


# All scans together


def collect(real: Sequence[Measured], phantoms: Sequence[Measured]) -> dict[str, Any]:
    """Bring the numbers of all scans together.

    Returns:
        "real" and "phantom": case -> its statistics. "statistics": name -> {"real": {"n", "low",
        "high"} or None, "phantom": {"n", "p5", "p50", "p95"} or None, "off": "low" or "high" if the
        phantoms lie wholly below or above the real scans, else None}.
    """
    names = sorted({name for one in (*real, *phantoms) for name in one.values}, key=_order)
    table = {}
    for name in names:
        ours = np.array([one.values[name] for one in phantoms if name in one.values])
        theirs = np.array([one.values[name] for one in real if name in one.values])
        row: dict[str, Any] = {"real": None, "phantom": None, "off": None}
        if theirs.size:
            least, most = float(theirs.min()), float(theirs.max())
            row["real"] = {"n": theirs.size, "low": least, "high": most}
        if ours.size:
            low, middle, high = (round(float(v), 4) for v in np.percentile(ours, RANGE))
            row["phantom"] = {"n": ours.size, "p5": low, "p50": middle, "p95": high}
        if theirs.size and ours.size >= LEAST:
            row["off"] = "low" if high < least else "high" if low > most else None
        table[name] = row
    return {
        "real": {one.case: one.values for one in real},
        "phantom": {one.case: one.values for one in phantoms},
        "statistics": table,
    }


def _order(name: str) -> tuple[Any, ...]:
    group, _, item = name.partition("/")
    layers = (f"{layer}_hu" for layer in measures.LAYERS)
    groups = (*_SIZES, *_DISTANCES, *layers, "depth_hu", "scan")
    if group in (*_SIZES, *_DISTANCES):
        rank = labels.order(labels.id_of(item.partition("-")[0]))
    else:
        rank = 0.0 if group == "scan" else float(item)
    return groups.index(group), rank, item


# The table

_MARKS = {None: " ", "low": "<", "high": ">"}


def table(record: Mapping[str, Any]) -> str:
    """Return the record of `compare` as a table for the terminal.

    One line per level, then per pair of levels, then per remaining statistic: the range of the real
    scans | the 5th to 95th percentile of the phantoms, "-" for no value, and "<" or ">" behind
    phantoms that lie wholly below or above.
    """
    rows: dict[str, Any] = record["statistics"]
    parts = [
        f"{len(record['real'])} real scans of {record['real_data']} | "
        f"{len(record['phantom'])} phantoms of seed {record['phantoms']['seed']}, 5 to 95 %\n"
        "< and >: phantoms lie wholly below or above the real scans"
    ]
    for groups, title in ((_SIZES, "whole vertebrae"), (_DISTANCES, "from centre to centre")):
        items = dict.fromkeys(
            name.partition("/")[2]
            for name, row in rows.items()
            if name.partition("/")[0] in groups and row["real"]
        )
        lines = [[i, *(_cell(rows.get(f"{group}/{i}")) for group in groups)] for i in items]
        if lines:
            heads = ["", *(group.replace("_", " ") + "  " for group in groups)]
            parts.append(f"{title}\n{text_table([heads, *lines])}")
    lines = [["", "real", "phantoms  ", "median"]]
    for name, row in rows.items():
        group, _, item = name.partition("/")
        if group in (*_SIZES, *_DISTANCES):
            continue
        words = {"scan": item.replace("_", " "), "depth_hu": f"HU {item} mm off the surface"}.get(
            group, f"HU {group.removesuffix('_hu')} {item} %"
        )
        middle = f"{row['phantom']['p50']:.{_digits(row)}f}" if row["phantom"] else "-"
        lines.append([words, *_cell(row).split(" | "), middle])
    parts.append(text_table(lines))
    compared = [row for row in rows.values() if row["real"] and row["phantom"]]
    off = sum(row["off"] is not None for row in compared)
    return "\n\n".join([*parts, f"{off} of {len(compared)} statistics are off"])


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "- | -  "
    real, phantom, digits = row["real"], row["phantom"], _digits(row)
    left = _range(real["low"], real["high"], digits) if real else "-"
    right = _range(phantom["p5"], phantom["p95"], digits) if phantom else "-"
    return f"{left} | {right} {_MARKS[row['off']]}"


def _range(low: float, high: float, digits: int) -> str:
    words = [f"{value:.{digits}f}" for value in (low, high)]
    return words[0] if words[0] == words[1] else "..".join(words)


def _digits(row: Mapping[str, Any]) -> int:
    """Decimals of all numbers of a statistic."""
    found = [row[kind][key] for kind in ("real", "phantom") if row[kind] for key in row[kind]
             if key != "n"]  # fmt: skip
    largest = max(map(abs, found))
    return 2 if largest < 2 else 1 if largest < 40 else 0


# The figure

_PAPER, _FRAME, _TEXT, _FAINT = "#0c0e11", "#2c333a", "#eef1f4", "#9aa4af"
_REAL, _PHANTOM, _OFF = (
    f"#{red:02x}{green:02x}{blue:02x}"
    for red, green, blue in (overlay.REFERENCE_RGB, overlay.PREDICTION_RGB, overlay.BOTH_RGB)
)
_DPI = 100
_BLOCKS = 3  # scans beside each other
_ROWS = {"real": 1, "phantom": 2}
_MARGIN, _GAP, _BLOCK_GAP, _HEADER = 36, 4, 26, 92
_CHART, _CHART_GAP, _CHART_APART = 232, 78, 60
_LAYERS = {
    "inside": "HU inside vertebrae",
    "deep": "HU, eroded by two voxels",
    "shell": "HU of the outermost voxel",
    "around": "HU within 3 mm around",
}
_BY_LEVEL = {
    "volume_ml": "volume, ml",
    "right_left_mm": "right to left, mm",
    "front_back_mm": "front to back, mm",
    "height_mm": "height, mm",
    "body_distance_mm": "from body to next body, mm",
}
_SCANS = (
    ("noise, SD in HU", {"noise_hu": "as scanned", "noise_prepared_hu": "smoothed"}),
    (
        "shares",
        {
            "bright_elsewhere": "above 150 HU,\nnot vertebra",
            "labelled_height": "of the height\nlabelled",
            "cut_share": "of labelled\nvertebrae cut",
        },
    ),
)
_COLUMNS = 4
_BAR_MM = 50
_SHADOW = [patheffects.withStroke(linewidth=3, foreground=_PAPER)]


@plots.defaults()
def draw(real: Sequence[Measured], phantoms: Sequence[Measured], rows: Mapping[str, Any]) -> Figure:
    """Draw the figure.

    Args:
        real: Real scans; the figure shows slices of some, spread over those that have slices.
        phantoms: Phantoms; the figure shows slices of the first ones.
        rows: "statistics" of `collect`.
    """
    with_slices = [scan for scan in real if scan.panels]
    most = _BLOCKS * _ROWS["real"]
    if len(with_slices) > most:
        places = np.linspace(0, len(with_slices) - 1, most).round().astype(int)
        with_slices = [with_slices[i] for i in places]
    shown = [scan for scan in phantoms if scan.panels][: _BLOCKS * _ROWS["phantom"]]
    groups = [("Real", _REAL, with_slices), ("Phantoms", _PHANTOM, shown)]
    sizes = [round(WINDOW_MM[p][0] * PIXELS_PER_MM) for p in ("sagittal", "sagittal", "axial")]
    tall = round(WINDOW_MM["sagittal"][1] * PIXELS_PER_MM)
    block = sum(sizes) + 2 * _GAP
    width = 2 * _MARGIN + _BLOCKS * block + (_BLOCKS - 1) * _BLOCK_GAP
    lines = sum(-(-len(scans) // _BLOCKS) for *_, scans in groups)
    height = _HEADER + lines * (tall + _BLOCK_GAP) + 3 * (_CHART + _CHART_GAP) + 12
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=_PAPER)
    FigureCanvasAgg(figure)

    def place(left: float, top: float, wide: float, high: float) -> Axes:
        return figure.add_axes(
            (left / width, (height - top - high) / height, wide / width, high / height)
        )

    _heading(figure, width, height, real, phantoms)
    top: float = _HEADER
    for title, colour, scans in groups:
        for start in range(0, len(scans), _BLOCKS):
            for column, scan in enumerate(scans[start : start + _BLOCKS]):
                left = _MARGIN + column * (block + _BLOCK_GAP)
                for panel, wide in zip(scan.panels, sizes, strict=True):
                    high = panel.grey.shape[0]
                    picture = place(left, top, wide, high)
                    _slice(picture, panel.grey, panel.mask, title)
                    if panel is scan.panels[0]:
                        _bar(picture, high)
                    if panel.plane == "axial":
                        _caption(figure, (left / width, 1 - (top + high + 14) / height), scan,
                                 colour)  # fmt: skip
                    left += wide + _GAP
            top += tall + _BLOCK_GAP
    top += _CHART_GAP - _BLOCK_GAP - 18
    chart = (width - 2 * _MARGIN - (_COLUMNS - 1) * _CHART_APART) / _COLUMNS
    cells = [
        place(
            _MARGIN + column * (chart + _CHART_APART),
            top + row * (_CHART + _CHART_GAP),
            chart,
            _CHART,
        )
        for row in range(3)
        for column in range(_COLUMNS)
    ]
    for axes, (layer, title) in zip(cells, _LAYERS.items(), strict=False):
        _densities(axes, layer, title, real, phantoms)
    for axes, (group, title) in zip(cells[_COLUMNS:], _BY_LEVEL.items(), strict=False):
        _by_level(axes, group, title, real, rows)
    _profile(cells[-3], real, rows)
    for axes, (title, names) in zip(cells[-2:], _SCANS, strict=True):
        _strips(axes, title, names, real, phantoms, rows)
    return figure


@plots.defaults()
def save(figure: Figure, path: Path, *, overwrite: bool = False) -> None:
    """Write the figure as PNG, whole or not at all; see `files.check_output` for `overwrite`."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=_PAPER, metadata={"Software": None})
    with files.atomic_path(path, "realism", overwrite=overwrite) as temporary:
        temporary.write_bytes(stream.getvalue())


def _heading(
    figure: Figure,
    width: float,
    height: float,
    real: Sequence[Measured],
    phantoms: Sequence[Measured],
) -> None:
    low, high = (f"{hu:.0f}".replace("-", "−") for hu in overlay.BONE_WINDOW_HU)
    style: dict[str, Any] = {"va": "baseline", "parse_math": False}
    figure.text(_MARGIN / width, 1 - 44 / height, "Phantoms beside real scans", color=_TEXT,
                fontsize=20, fontweight="bold", **style)  # fmt: skip
    figure.text(
        _MARGIN / width, 1 - 72 / height,
        f"{tally(real)}; {len(phantoms)} phantoms. Slices: through the middle, "
        f"15 mm to the left of it, axial; {low} to {high} HU; all at one scale; anterior, in axial "
        "ones the patient's right, is on the left. Bands: phantoms from the 5th to the 95th "
        "percentile.",
        color=_FAINT, fontsize=12, **style,
    )  # fmt: skip
    handles: list[Any] = [
        Line2D([], [], color=_REAL, lw=3, label="real"),
        Patch(color=_PHANTOM, label="phantoms"),
        Line2D([], [], color=_OFF, marker="o", mfc="none", ms=10, mew=1.6, lw=0,
               label="off: ranges do not overlap"),
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="upper right", ncols=3, frameon=False, labelcolor=_TEXT, fontsize=13,
        bbox_to_anchor=(1 - _MARGIN / width, 1 - 22 / height), borderaxespad=0,
    )  # fmt: skip


def tally(scans: Sequence[Measured]) -> str:
    """Count real scans by kind, e.g. "3 CTs with masks, 2 masks, 1 CT"."""
    pairs = sum(bool(scan.histograms) for scan in scans)
    masks = sum("scan/cut_share" in scan.values for scan in scans) - pairs
    counted = {"CT{} with mask{}": pairs, "mask{}": masks, "CT{}": len(scans) - pairs - masks}
    return ", ".join(
        f"{count} {words.replace('{}', 's' if count > 1 else '')}"
        for words, count in counted.items()
        if count
    )


def _slice(axes: Axes, grey: np.ndarray, mask: np.ndarray, kind: str) -> None:
    given, ours = (mask, None) if kind == "Real" else (None, mask)
    rgb = overlay.paint(grey, ours, given)
    axes.imshow(rgb, interpolation="nearest", aspect="auto")
    axes.set_axis_off()


def _bar(axes: Axes, rows: int) -> None:
    """Draw a bar of `_BAR_MM` in the corner of a slice."""
    y = rows - 12
    style: dict[str, Any] = {"color": _TEXT, "path_effects": _SHADOW}
    axes.plot([10, 10 + _BAR_MM * PIXELS_PER_MM], [y, y], lw=2.5, solid_capstyle="butt", **style)
    axes.text(10, y - 7, f"{_BAR_MM // 10} cm", fontsize=11, va="bottom", **style)


def _caption(figure: Figure, at: tuple[float, float], scan: Measured, colour: str) -> None:
    noise = scan.values.get("scan/noise_hu")
    words = scan.words + ("" if noise is None else f"\nnoise {noise:.0f} HU")
    name = figures.printable(scan.case, 28)
    figure.text(*at, name, color=colour, fontsize=12, fontweight="bold", va="top",
                parse_math=False)  # fmt: skip
    figure.text(at[0], at[1] - 22 / (figure.get_figheight() * _DPI), words.replace(", ", "\n"),
                color=_FAINT, fontsize=11, va="top", parse_math=False, linespacing=1.4)  # fmt: skip


def _plain(axes: Axes, title: str) -> None:
    axes.set_facecolor(_PAPER)
    axes.set_title(title, color=_TEXT, fontsize=12.5, fontweight="bold", loc="left", pad=9)
    axes.tick_params(colors=_FAINT, labelsize=10, length=0)
    axes.grid(color=_FRAME, lw=0.7)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _densities(
    axes: Axes, layer: str, title: str, real: Sequence[Measured], phantoms: Sequence[Measured]
) -> None:
    """Draw histograms: a line for each real scan, a band for the phantoms."""
    _plain(axes, title)
    middles = (measures.BINS_HU[:-1] + measures.BINS_HU[1:]) / 2
    ours = [scan.histograms[layer] for scan in phantoms if layer in scan.histograms]
    if ours:
        low, middle, high = np.percentile(ours, (5, 50, 95), axis=0)
        axes.fill_between(middles, low, high, color=_PHANTOM, alpha=0.3, lw=0)
        axes.plot(middles, middle, color=_PHANTOM, lw=1.8)
    for scan in real:
        if layer in scan.histograms:
            axes.plot(middles, scan.histograms[layer], color=_REAL, lw=1.4, alpha=0.9)
    axes.set_xlim(measures.BINS_HU[0], measures.BINS_HU[-1])
    axes.set_ylim(bottom=0)
    axes.set_yticks([])


def _profile(axes: Axes, real: Sequence[Measured], rows: Mapping[str, Any]) -> None:
    """Draw the median HU against the distance from the surface of the mask."""
    _plain(axes, "median HU by mm outside the mask")
    found = [
        (float(name.partition("/")[2]), row["phantom"])
        for name, row in rows.items()
        if name.startswith("depth_hu/") and row["phantom"]
    ]
    if found:
        x = [depth for depth, _ in found]
        low, middle, high = ([row[p] for _, row in found] for p in ("p5", "p50", "p95"))
        axes.fill_between(x, low, high, color=_PHANTOM, alpha=0.3, lw=0)
        axes.plot(x, middle, color=_PHANTOM, lw=1.8)
    for scan in real:
        points = sorted(
            (float(name.partition("/")[2]), value)
            for name, value in scan.values.items()
            if name.startswith("depth_hu/")
        )
        if points:
            axes.plot(*zip(*points, strict=True), color=_REAL, lw=1.4, marker="o", ms=3.5)
        for depth, value in points:
            if rows[f"depth_hu/{depth:+.1f}"]["off"]:
                _ring(axes, depth, value)


def _by_level(
    axes: Axes, group: str, title: str, real: Sequence[Measured], rows: Mapping[str, Any]
) -> None:
    """Draw a bar of the phantoms for each level or pair, and a dot for each real scan."""
    _plain(axes, title)
    items = [name.partition("/")[2] for name in rows if name.startswith(f"{group}/")]
    order = {name: i for i, name in enumerate(sorted(items, key=_rank))}
    for item, x in order.items():
        row = rows[f"{group}/{item}"]
        if row["phantom"]:
            low, middle, high = (row["phantom"][p] for p in ("p5", "p50", "p95"))
            axes.bar(x, max(high - low, 0.4), 0.64, low, color=_PHANTOM, alpha=0.42, lw=0)
            axes.plot([x - 0.32, x + 0.32], [middle, middle], color=_PHANTOM, lw=2)
        for scan in real:
            value = scan.values.get(f"{group}/{item}")
            if value is not None:
                axes.plot(x, value, "o", ms=4.5, color=_REAL)
                if row["off"]:
                    _ring(axes, x, value)
    step = 1 if len(order) <= 13 else 2
    ticks = [(x, name.partition("-")[0]) for name, x in order.items() if x % step == 0]
    axes.set_xticks([x for x, _ in ticks], [name for _, name in ticks])
    axes.grid(visible=False, axis="x")
    if group == "volume_ml":
        axes.set_ylim(bottom=0)


def _rank(item: str) -> tuple[float, ...]:
    return tuple(labels.order(labels.id_of(name)) for name in item.split("-"))


def _strips(
    axes: Axes,
    title: str,
    names: Mapping[str, str],
    real: Sequence[Measured],
    phantoms: Sequence[Measured],
    rows: Mapping[str, Any],
) -> None:
    """Draw a dot for each scan, real ones above the phantoms."""
    _plain(axes, title)
    box = axes.get_position()
    room = 0.24 * box.width  # for the names on the left
    axes.set_position((box.x0 + room, box.y0, box.width - room, box.height))
    for place, name in enumerate(names):
        row = rows.get(f"scan/{name}")
        for scans, colour, up in ((real, _REAL, -0.16), (phantoms, _PHANTOM, 0.16)):
            values = [v for scan in scans if (v := scan.values.get(f"scan/{name}")) is not None]
            axes.plot(values, [place + up] * len(values), "o", ms=6, color=colour, alpha=0.75)
            if row is not None and row["off"] and scans is real:
                _ring(axes, values, [place + up] * len(values))
    axes.set_yticks(range(len(names)), list(names.values()))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")


def _ring(axes: Axes, x: Any, y: Any) -> None:
    axes.plot(x, y, "o", ms=10, mfc="none", mec=_OFF, mew=1.4)
