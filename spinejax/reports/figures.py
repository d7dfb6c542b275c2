"""The quick-look picture of a scan: three planes with the outlines of prediction and reference.

Only the three slices that are shown are ever copied, so the picture costs the same few megabytes
for a scan of 512 x 512 x 1000 voxels as for a small one.
"""

import io
import os
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from spinejax import files, geometry, labels, overlay
from spinejax.volume import CANONICAL, PLANES, Volume

_PIXELS = (1560, 980)
"""Largest width of the three panels together and largest height of one, in pixels."""

_MAX_PIXELS_PER_MM = 6.0
_GAP, _MARGIN, _HEADER, _FOOTER = 22, 26, 84, 40
_BACKGROUND, _TEXT, _FAINT = "#0c0e11", "#eef1f4", "#9aa4af"
_DPI = 100

EDGES = {
    "sagittal": ("A", "P", "S", "I"),
    "coronal": ("R", "L", "S", "I"),
    "axial": ("R", "L", "A", "P"),
}
"""Plane -> (left, right, top, bottom) of its picture as directions of the patient."""

_FROM = {"sagittal": "from the right", "coronal": "from the front", "axial": "from below"}
_NEAR_AXIAL_MM = 15.0
_SLAB = 32


@dataclass(frozen=True)
class _Panel:
    """One plane, ready to show: rgb (rows, columns, 3) uint8 at `pixels_per_mm`."""

    plane: str
    index: int
    count: int
    rgb: np.ndarray


def centre(mask: np.ndarray) -> tuple[int, int, int] | None:
    """Return the voxel in the middle of a spine, or None for an empty mask.

    Args:
        mask: (x, y, z) labels, 0 for background, any axis order.

    Returns:
        The median of the foreground's indices along each axis: it follows the bulk of the spine and
        ignores a few stray voxels far away.
    """
    counts = [np.zeros(length, np.int64) for length in mask.shape]
    for start in range(0, mask.shape[2], _SLAB):
        slab = np.asarray(mask[:, :, start : start + _SLAB]) != 0
        counts[0] += slab.sum(axis=(1, 2))
        counts[1] += slab.sum(axis=(0, 2))
        counts[2][start : start + slab.shape[2]] += slab.sum(axis=(0, 1))
    total = int(counts[0].sum())
    if total == 0:
        return None
    i, j, k = (int(np.searchsorted(np.cumsum(axis), (total + 1) // 2)) for axis in counts)
    return i, j, k


def display(slice_2d: np.ndarray, plane: str) -> np.ndarray:
    """Turn a canonical slice into rows and columns of a picture (radiological convention).

    Args:
        slice_2d: (h, w), the in-plane axes in canonical order.
        plane: one of `volume.PLANES`.

    Returns:
        A view: superior, in axial slices anterior, at the top; the patient's right, in sagittal
        slices anterior, on the left.
    """
    # (first axis, second axis) -> (row, column): sagittal (y, z) and coronal (x, z) show superior
    # at the top, so z runs upwards; axial (x, y) shows anterior at the top, where y starts.
    rows = slice_2d.T
    return rows if plane == "axial" else rows[::-1]


def resize(picture: np.ndarray, size: tuple[int, int], smooth: bool) -> np.ndarray:
    """Resize (rows, columns) to `size` (rows, columns); labels (smooth=False) stay labels."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(image.resize((size[1], size[0]), how))


def take_slice(array: np.ndarray, plane: str, index: int) -> np.ndarray:
    """Return one slice of a canonical (x, y, z) array as (h, w), without copying."""
    # Not numpy.take: that copies the whole array first when it is a flipped view.
    return np.moveaxis(array, PLANES[plane], 0)[index]


def _panels(
    volume: Volume,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    window_hu: tuple[float, float],
) -> tuple[list[_Panel], float]:
    """Return the three panels and their common scale in pixels per mm."""
    image, affine = geometry.reorient(volume.array, volume.affine, CANONICAL)
    masks = [
        None if mask is None else geometry.reorient(mask, volume.affine, CANONICAL)[0]
        for mask in (prediction, reference)
    ]
    spacing = geometry.spacing_mm(affine)
    extent = [length * mm for length, mm in zip(image.shape, spacing, strict=True)]
    where: tuple[int, ...] | None = None
    for mask in (masks[1], masks[0]):  # the reference says better where the spine is
        if mask is not None and where is None:
            where = centre(mask)
            guide = mask
    if where is None:
        where = tuple((length - 1) // 2 for length in image.shape)
    else:
        # The median level may be a disc; take the slice nearby that shows most of a vertebra.
        reach = int(_NEAR_AXIAL_MM / spacing[2])
        low = max(0, where[2] - reach)
        areas = [
            np.count_nonzero(guide[:, :, k])
            for k in range(low, where[2] + reach + 1)
            if k < guide.shape[2]
        ]
        where = (where[0], where[1], low + int(np.argmax(areas)))

    across = extent[1] + extent[0] + extent[0]
    tallest = max(extent[2], extent[1])
    scale = min(_PIXELS[0] / across, _PIXELS[1] / tallest, _MAX_PIXELS_PER_MM)
    panels = []
    for plane, axis in PLANES.items():
        column_axis, row_axis = (other for other in range(3) if other != axis)
        size = (
            max(8, round(extent[row_axis] * scale)),
            max(8, round(extent[column_axis] * scale)),
        )
        index = where[axis]
        grey = overlay.window(display(take_slice(image, plane, index), plane), window_hu)
        labels = [
            None
            if mask is None
            else resize(
                display(take_slice(mask, plane, index), plane).astype(np.int32), size, smooth=False
            )
            for mask in masks
        ]
        rgb = overlay.paint(resize(grey, size, smooth=True), labels[0], labels[1], width=2)
        panels.append(_Panel(plane, index, image.shape[axis], rgb))
    return panels, scale


def scale_bar_mm(width_mm: float) -> int:
    """Return a round length of about a fifth of a panel."""
    lengths = [1, 2, 5, 10, 20, 50, 100]
    return max((mm for mm in lengths if mm <= max(1.0, width_mm / 4)), default=1)


def _annotate(axes: Axes, panel: _Panel, scale: float) -> None:
    rows, columns = panel.rgb.shape[:2]
    shadow = [patheffects.withStroke(linewidth=2.5, foreground=_BACKGROUND)]
    style: dict[str, Any] = {
        "color": _TEXT,
        "fontsize": 13,
        "fontweight": "bold",
        "path_effects": shadow,
    }
    left, right, top, bottom = EDGES[panel.plane]
    axes.text(6, rows / 2, left, ha="left", va="center", **style)
    axes.text(columns - 7, rows / 2, right, ha="right", va="center", **style)
    axes.text(columns / 2, 5, top, ha="center", va="top", **style)
    axes.text(columns / 2, rows - 6, bottom, ha="center", va="bottom", **style)
    length = scale_bar_mm(columns / scale)
    y = rows - 12
    for width, colour in ((4.5, _BACKGROUND), (2.0, _TEXT)):
        axes.plot([12, 12 + length * scale], [y, y], color=colour, lw=width, solid_capstyle="butt")
    axes.text(
        12,
        y - 7,
        f"{length} mm",
        ha="left",
        va="bottom",
        color=_TEXT,
        fontsize=10,
        path_effects=shadow,
    )


def _colour(rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = rgb
    return red / 255, green / 255, blue / 255


def printable(words: str, length: int) -> str:
    """Return `words` in at most `length` characters that the font has (a name may hold any)."""
    glyphs = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    shown = "".join(letter if ord(letter) in glyphs else "?" for letter in words)
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def _name_vertebrae(
    axes: Axes, panel: _Panel, centroids: Mapping[int, np.ndarray], volume: Volume
) -> None:
    """Write names of vertebrae where their bodies are, in planes that show several."""
    if panel.plane == "axial":
        return
    array, affine = geometry.reorient(volume.array, volume.affine, CANONICAL)
    to_canonical = np.linalg.inv(affine) @ volume.affine
    rows, columns = panel.rgb.shape[:2]
    across = 1 if panel.plane == "sagittal" else 0
    shadow = [patheffects.withStroke(linewidth=2.5, foreground=_BACKGROUND)]
    for label, point in centroids.items():
        place = (geometry.voxel_to_world(to_canonical, point) + 0.5) / array.shape
        axes.text(
            place[across] * columns - 0.5,
            (1 - place[2]) * rows - 0.5,
            labels.name(label),
            ha="center",
            va="center",
            color=_TEXT,
            fontsize=9 if len(centroids) > 12 else 11,
            fontweight="bold",
            path_effects=shadow,
        )


def _figure(
    volume: Volume,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    title: str,
    window_hu: tuple[float, float],
    centroids: Mapping[int, np.ndarray],
) -> Figure:
    panels, scale = _panels(volume, prediction, reference, window_hu)
    total = sum(panel.rgb.shape[1] for panel in panels) + 2 * _GAP
    width = max(total, 640) + 2 * _MARGIN
    tallest = max(panel.rgb.shape[0] for panel in panels)
    height = _HEADER + tallest + _FOOTER + _MARGIN
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)

    def text(x: float, y: float, words: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, words, parse_math=False, **style)

    spacing = " × ".join(f"{mm:.3g}" for mm in volume.spacing_mm)
    shape = " × ".join(str(length) for length in volume.shape)
    text(
        _MARGIN,
        38,
        printable(title, (width - 460) // 12),
        color=_TEXT,
        fontsize=15,
        fontweight="bold",
        va="baseline",
    )
    text(
        _MARGIN,
        64,
        f"{shape} voxels of {spacing} mm, {volume.orientation}",
        color=_FAINT,
        fontsize=11,
        va="baseline",
    )
    found = "prediction" if centre(prediction) is not None else "prediction (empty)"
    entries = [(overlay.PREDICTION_RGB, found)]
    if reference is not None:
        entries += [(overlay.REFERENCE_RGB, "reference"), (overlay.BOTH_RGB, "both")]
    figure.legend(
        handles=[
            Line2D([], [], color=_colour(rgb), lw=3, label=name) for rgb, name in entries
        ],
        loc="upper right", bbox_to_anchor=(1 - (_MARGIN - 4) / width, 1 - 16 / height),
        ncols=len(entries), frameon=False, labelcolor=_TEXT, fontsize=12, handlelength=1.4,
        borderaxespad=0, borderpad=0, columnspacing=1.6,
    )  # fmt: skip
    left = _MARGIN + (width - 2 * _MARGIN - total) // 2
    for panel in panels:
        rows, columns = panel.rgb.shape[:2]
        # Exactly one picture pixel per screen pixel: outlines stay sharp.
        axes = figure.add_axes(
            (left / width, (height - _HEADER - rows) / height, columns / width, rows / height)
        )
        axes.imshow(panel.rgb, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        _annotate(axes, panel, scale)
        _name_vertebrae(axes, panel, centroids, volume)
        axes.set_xlim(-0.5, columns - 0.5)
        axes.set_ylim(rows - 0.5, -0.5)
        caption = f"{panel.plane.capitalize()}, slice {panel.index + 1} of {panel.count}"
        caption = f"{caption} {_FROM[panel.plane]}" if columns > 280 else caption
        text(left, _HEADER + rows + 25, caption, color=_FAINT, fontsize=11, va="baseline")
        left += columns + _GAP
    return figure


def quicklook_png(
    volume: Volume,
    prediction: np.ndarray,
    reference: np.ndarray | None = None,
    *,
    title: str = "",
    window_hu: tuple[float, float] = overlay.BONE_WINDOW_HU,
    centroids: Mapping[int, np.ndarray] = types.MappingProxyType({}),
) -> bytes:
    """Return the quick-look picture as the bytes of a PNG; see `quicklook`."""
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask is not None and mask.shape != volume.array.shape:
            raise ValueError(
                f"`{name}` of shape {mask.shape} is not on the volume's grid {volume.array.shape}"
            )
    figure = _figure(volume, prediction, reference, title, window_hu, centroids)
    stream = io.BytesIO()
    # No `Software` tag: the same picture gives the same bytes whatever made it.
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def quicklook(
    volume: Volume,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    path: str | os.PathLike[str],
    *,
    title: str = "",
    window_hu: tuple[float, float] = overlay.BONE_WINDOW_HU,
    centroids: Mapping[int, np.ndarray] = types.MappingProxyType({}),
) -> Path:
    """Write a picture of three planes through the spine with outlines of label maps.

    Sagittal (anterior on the left), coronal and axial (patient's right on the left), superior or
    anterior at the top, all at one scale in mm. The planes pass through the median voxel of the
    reference, else of the prediction, else through the middle of the scan; the axial one is the
    slice within 15 mm of it that shows most foreground.

    Args:
        volume: the scan, in any orientation.
        prediction: (x, y, z) bool or integer labels in the volume's own axes; 0 is background.
        reference: likewise, or None.
        path: the PNG to write; appears whole or not at all.
        title: printed on the picture; by default the file's name without `.png`.
        window_hu: (black, white) HU.
        centroids: VerSe id -> (3,) voxel index; names are written there.

    Returns:
        `path`.

    Raises:
        ValueError: a label map has another shape than the volume.
    """
    path = Path(path)
    png = quicklook_png(
        volume,
        prediction,
        reference,
        title=title or path.stem,
        window_hu=window_hu,
        centroids=centroids,
    )
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(png)
    return path
