"""The figure of `phantom --compare`: slices of real scans over those of phantoms, and charts.

Real scans are cyan, phantoms orange, everywhere; slices are all of one scale and one window.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from spinejax import files, labels, overlay
from spinejax.data.phantom import statistics
from spinejax.reports import figures, realism_scans
from spinejax.reports.realism_scans import PIXELS_PER_MM, WINDOW_MM, Measured

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


def draw(real: Sequence[Measured], phantoms: Sequence[Measured], rows: Mapping[str, Any]) -> Figure:
    """Draw the figure.

    Args:
        real: measured real scans; those with slices are shown, spread over all of them.
        phantoms: likewise; the first ones are shown.
        rows: "statistics" of `realism.collect`.
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


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, whole or not at all."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=_PAPER, metadata={"Software": None})
    with files.atomic_path(path) as temporary:
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
        f"{realism_scans.tally(real)}; {len(phantoms)} phantoms. Slices: through the middle, "
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


def _slice(axes: Axes, grey: np.ndarray, mask: np.ndarray, kind: str) -> None:
    given, ours = (mask, None) if kind == "Real" else (None, mask)
    rgb = overlay.paint(grey, ours, given)
    axes.imshow(rgb, interpolation="nearest", aspect="auto")
    axes.set_axis_off()


def _bar(axes: Axes, rows: int) -> None:
    """A bar of `_BAR_MM` in the corner of a slice."""
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
    """Histograms: one line per real scan, a band for the phantoms."""
    _plain(axes, title)
    middles = (statistics.BINS_HU[:-1] + statistics.BINS_HU[1:]) / 2
    ours = [scan.histograms[layer] for scan in phantoms if layer in scan.histograms]
    if ours:
        low, middle, high = np.percentile(ours, (5, 50, 95), axis=0)
        axes.fill_between(middles, low, high, color=_PHANTOM, alpha=0.3, lw=0)
        axes.plot(middles, middle, color=_PHANTOM, lw=1.8)
    for scan in real:
        if layer in scan.histograms:
            axes.plot(middles, scan.histograms[layer], color=_REAL, lw=1.4, alpha=0.9)
    axes.set_xlim(statistics.BINS_HU[0], statistics.BINS_HU[-1])
    axes.set_ylim(bottom=0)
    axes.set_yticks([])


def _profile(axes: Axes, real: Sequence[Measured], rows: Mapping[str, Any]) -> None:
    """Median HU against the distance from the surface of the mask."""
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


def _ring(axes: Axes, x: Any, y: Any) -> None:
    axes.plot(x, y, "o", ms=10, mfc="none", mec=_OFF, mew=1.4)


def _by_level(
    axes: Axes, group: str, title: str, real: Sequence[Measured], rows: Mapping[str, Any]
) -> None:
    """One place per level (or pair): the phantoms' band, a dot per real scan."""
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
    """One dot per scan, real ones above the phantoms."""
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
