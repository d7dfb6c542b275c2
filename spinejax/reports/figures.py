"""Pictures of scans: how slices are hung and coloured, and the quick-look picture of three planes.

Pictures follow the radiological convention: superior, in axial slices anterior, is at the top; the
patient's right, in sagittal slices anterior, is on the left. Every level of the spine has one
colour, the same in all pictures.

The overlay of a scan is an array of numbers of `PALETTE`. The page stores it as a PNG with clear
pixels over a JPEG of the scan; `quicklook` blends the two into one PNG.
"""

import base64
import io
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy import ndimage
from scipy.interpolate import PchipInterpolator

from spinejax import files, geometry, labels, overlay
from spinejax.metrics.body_centres import body_centres
from spinejax.volume import PLANES, Volume, slice_view

REFERENCE_LINE_RGB = (255, 255, 255)
"""White: the outline of the reference where the prediction has one colour a level."""

# Told apart with every common form of colour blindness, on any grey: the pale one is also the
# lightest and has no outline, the other two differ in blue against yellow.
FOUND_RGB, FALSE_RGB, MISSED_RGB = (120, 240, 170), (255, 64, 32), (64, 110, 255)

# Numbers of the palette. Levels have their VerSe id, other labels `_OTHER`.
_OTHER, OUTLINE = 60, 100  # `OUTLINE` is added to a fill's number where it is outlined
PREDICTION, REFERENCE, FOUND, FALSE, MISSED = 61, 62, 63, 64, 65
BOTH_OUTLINE, REFERENCE_LINE = 201, 202


def _palette() -> np.ndarray:
    table = np.zeros((256, 4), np.uint8)
    fills = {label: (rgb, 96) for label, rgb in labels.RGB.items()} | {
        _OTHER: ((200, 200, 200), 96),
        PREDICTION: (overlay.PREDICTION_RGB, 96),
        REFERENCE: (overlay.REFERENCE_RGB, 96),
        FOUND: (FOUND_RGB, 84),
        FALSE: (FALSE_RGB, 128),
        MISSED: (MISSED_RGB, 128),
    }
    for number, (rgb, opacity) in fills.items():
        table[number], table[number + OUTLINE] = (*rgb, opacity), (*rgb, 255)
    table[BOTH_OUTLINE] = (*overlay.BOTH_RGB, 255)
    table[REFERENCE_LINE] = (*REFERENCE_LINE_RGB, 255)
    return table


PALETTE = _palette()
"""(256, 4) uint8 RGBA of every number in a layer; 0 is clear."""

EDGES = {
    "sagittal": ("A", "P", "S", "I"),
    "coronal": ("R", "L", "S", "I"),
    "axial": ("R", "L", "A", "P"),
}
"""Plane -> (left, right, top, bottom) of its picture as directions of the patient."""

_FROM = {"sagittal": "the right", "coronal": "the front", "axial": "below"}

_PIXELS = (1560, 980)
"""Largest width of the three panels together and largest height of one, in pixels."""

_MAX_PIXELS_PER_MM = 6.0
_NEAR_AXIAL_MM = 15.0
_SLAB = 32
_APART_MM = 5.0
"""Body centres that lie closer along the spine than this are one point of its curve."""

_OFF_MM = 15.0
"""A body whose centre is farther from the curve is not in the straightened picture."""

_STEEPEST = 1.5
"""Largest tangent of the angle between the curve's ends and the scan's long axis."""

_NAME_MM, _NAME_SHARE = 13.0, 0.03
"""Height of a name: at most this length, and at most this share of the picture's height."""


class Name(NamedTuple):
    """Words at a place of a picture, in its pixels."""

    x: float
    y: float
    words: str


@dataclass(frozen=True, eq=False)
class ScanPlane:
    """One plane of a scan, ready to show.

    Attributes:
        plane: one of `volume.PLANES`.
        caption: what the picture shows, in words.
        grey: (rows, columns) uint8, the scan at `pixels_per_mm`.
        layer: (rows, columns) uint8 numbers of `PALETTE`.
        names: of vertebrae, where their bodies are.
        pixels_per_mm: scale, the same for all panels of a scan.
    """

    plane: str
    caption: str
    grey: np.ndarray
    layer: np.ndarray
    names: tuple[Name, ...]
    pixels_per_mm: float


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of the page: a scan, what lies over it, and what is written on it.

    Attributes:
        size: (rows, columns) in pixels.
        scan: a data URI, or "#name" of a picture of the page that has the same scan.
        layer: (rows, columns) numbers of `PALETTE`, or None.
        names: of vertebrae.
        spoken: the picture in words.
        plane: one of `volume.PLANES`.
        pixels_per_mm: scale; None for a picture without direction and scale bar.
        caption: the words below.
    """

    size: tuple[int, int]
    scan: str
    layer: np.ndarray | None
    names: tuple[Name, ...]
    spoken: str
    plane: str
    pixels_per_mm: float | None
    caption: str = ""

    @property
    def layer_uri(self) -> str:
        """The layer as the data URI of a PNG of few colours; "" without a layer."""
        if self.layer is None:
            return ""
        used, numbers = np.unique(self.layer, return_inverse=True)
        picture = Image.fromarray(numbers.reshape(self.size).astype(np.uint8), mode="P")
        picture.putpalette(PALETTE[used, :3].tobytes())
        stream = io.BytesIO()
        opacity = PALETTE[used, 3].tobytes()
        picture.save(stream, format="PNG", optimize=True, transparency=opacity)
        return data_uri(stream.getvalue(), "png")

    @property
    def left(self) -> str:
        """The direction of the patient on the left."""
        return EDGES[self.plane][0]

    @property
    def bar(self) -> tuple[int, float]:
        """Length of the scale bar in mm and in pixels."""
        scale = self.pixels_per_mm or 1.0
        length = scale_bar_mm(self.size[1] / scale)
        return length, length * scale

    @property
    def name_size(self) -> float:
        """Height of names in pixels."""
        return name_size(self.size[0], self.pixels_per_mm or 1.0)


def display(slice_2d: np.ndarray, plane: str) -> np.ndarray:
    """Turn a canonical slice into rows and columns of a picture (radiological convention).

    Args:
        slice_2d: (h, w), the in-plane axes in canonical order.
        plane: one of `volume.PLANES`.

    Returns:
        A view (rows, columns).
    """
    # (first axis, second axis) -> (row, column): sagittal (y, z) and coronal (x, z) show superior
    # at the top, so z runs upwards; axial (x, y) shows anterior at the top, where y starts.
    rows = slice_2d.T
    return rows if plane == "axial" else rows[::-1]


def take_slice(array: np.ndarray, plane: str, index: int) -> np.ndarray:
    """Return one slice of a canonical (x, y, z) array as (h, w), without copying."""
    return slice_view(array, plane)[index]


def hung(array: np.ndarray, plane: str, index: int) -> np.ndarray:
    """Return one slice of a canonical (x, y, z) array as rows and columns of a picture."""
    return display(take_slice(array, plane, index), plane)


def resize(picture: np.ndarray, size: tuple[int, int], smooth: bool) -> np.ndarray:
    """Resize (rows, columns) to `size` (rows, columns); labels (smooth=False) stay labels."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(image.resize((size[1], size[0]), how))


def hanging(plane: str) -> str:
    """Return how slices of a plane are hung, in words."""
    left, _, top, _ = EDGES[plane]
    sides = {"R": "the patient’s right is on the left", "A": "anterior is on the left"}[left]
    up = {"A": "anterior", "S": "superior"}[top]
    return f"{sides}, {up} at the top"


def window_words() -> str:
    """Return the grey levels of all pictures, in words."""
    low, high = (f"{hu:.0f}".replace("-", "−") for hu in overlay.BONE_WINDOW_HU)
    return f"{low} to {high} HU"


def scale_bar_mm(width_mm: float) -> int:
    """Return a round length of at most a quarter of a picture's width."""
    lengths = [1, 2, 5, 10, 20, 50, 100]
    return max((mm for mm in lengths if mm <= max(1.0, width_mm / 4)), default=1)


def fill(mask: np.ndarray, number: int | np.ndarray) -> np.ndarray:
    """Return a layer with a filled and outlined mask.

    Args:
        mask: (rows, columns) bool or labels; each label gets its own outline.
        number: of the palette, or (rows, columns) numbers.
    """
    layer = np.where(mask > 0, number, 0).astype(np.uint8)
    edge = overlay.outline(mask)
    edge = ndimage.binary_dilation(edge) & (mask > 0)
    layer[edge] += OUTLINE
    return layer


def level_numbers(mask: np.ndarray) -> np.ndarray:
    """Return the palette's numbers for VerSe ids; labels that are no vertebra share one."""
    known = np.full(256, _OTHER, np.uint8)
    known[[0, *labels.NAMES]] = [0, *labels.NAMES]
    return known[np.clip(mask, 0, 255)]


def compare_layer(prediction: np.ndarray, reference: np.ndarray | None, named: bool) -> np.ndarray:
    """Return the overlay of a slice: the prediction, and the outline of the reference.

    Args:
        prediction: (rows, columns) labels at the picture's resolution.
        reference: likewise, or None.
        named: whether the labels are VerSe ids. Then each level is filled in its colour and the
            reference is a white line. Else there are outlines only: orange for the prediction, cyan
            for the reference, yellow for both.
    """
    if named:
        layer = fill(prediction, level_numbers(prediction))
        if reference is not None:
            layer[overlay.outline(reference)] = REFERENCE_LINE
        return layer
    layer = np.zeros(prediction.shape, np.uint8)
    found = _thick(prediction)
    layer[found] = PREDICTION + OUTLINE
    if reference is not None:
        given = _thick(reference)
        layer[given] = REFERENCE + OUTLINE
        layer[found & given] = BOTH_OUTLINE
    return layer


def _thick(mask: np.ndarray) -> np.ndarray:
    return ndimage.binary_dilation(overlay.outline(mask)) & (mask != 0)


def blend(grey: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """Return a scan (rows, columns) with a layer over it as (rows, columns, 3) uint8."""
    rgba = PALETTE[layer].astype(np.float32)
    opacity = rgba[..., 3:] / 255
    return np.rint(grey[..., None] * (1 - opacity) + rgba[..., :3] * opacity).astype(np.uint8)


def data_uri(data: bytes, kind: str) -> str:
    """Return the bytes of a picture ("png" or "jpeg") as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def pixels_uri(pixels: np.ndarray) -> str:
    """Return pixels as the data URI of a PNG.

    Args:
        pixels: uint8 (h, w) grey, (h, w, 2) grey and opacity, (h, w, 3) RGB or (h, w, 4) RGBA.
    """
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="PNG", optimize=True)
    return data_uri(stream.getvalue(), "png")


def jpegs(pictures: Sequence[np.ndarray], most_bytes: int) -> list[bytes]:
    """Return grey pictures as JPEGs of `most_bytes` together, if a low quality reaches that."""
    found: list[bytes] = []
    for quality in (88, 78, 65, 50, 35, 20):  # noise needs a lower one
        found = []
        for picture in pictures:
            stream = io.BytesIO()
            Image.fromarray(picture).save(stream, format="JPEG", quality=quality, optimize=True)
            found.append(stream.getvalue())
        if sum(map(len, found)) <= most_bytes:
            break
    return found


_THUMBNAIL, _THUMBNAIL_BYTES = (150, 220), 12_000


def thumbnail(pixels: np.ndarray) -> str:
    """Return a picture, made small, as the data URI of a JPEG.

    Args:
        pixels: (h, w, 3) uint8 RGB.
    """
    image = ImageOps.contain(Image.fromarray(pixels), _THUMBNAIL)
    (jpeg,) = jpegs([np.asarray(image)], _THUMBNAIL_BYTES)
    return data_uri(jpeg, "jpeg")


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


def spine_curve(
    centres: np.ndarray, shape: tuple[int, ...], spacing_mm: Sequence[float], step_mm: float
) -> np.ndarray:
    """Return the curve of the vertebral bodies seen from the side, at equal steps along it.

    The coronal surface through this curve, straight from left to right, is flattened without
    stretching: lengths along the spine and from left to right stay true.

    Args:
        centres: (n, 3) voxel indices of body centres, canonical, at least one.
        shape: of the scan.
        spacing_mm: of the scan.
        step_mm: distance of two points along the curve.

    Returns:
        (m, 2) voxel indices (y, z) from the top of the scan to its bottom.
    """
    points = centres[np.argsort(centres[:, 2])][:, 1:] * np.asarray(spacing_mm)[1:]
    kept = [points[0]]
    for point in points[1:]:
        if point[1] - kept[-1][1] >= _APART_MM:
            kept.append(point)
    # The centre of a vertebra that the scan cuts may lie in its processes, far behind the bodies.
    for end, beside in ((0, 1), (-1, -2)):
        y, z = kept[end] - kept[beside] if len(kept) > 2 else (0.0, 1.0)
        if abs(y) > _STEEPEST * abs(z):
            kept.pop(end)
    (y, z), top = np.array(kept).T, (shape[2] - 1) * spacing_mm[2]
    fine = np.linspace(0, top, 2 + int(2 * top / min(step_mm, spacing_mm[2])))
    if len(z) == 1:
        along = np.full(len(fine), y[0])
    else:
        curve = PchipInterpolator(z, y)
        along = curve(np.clip(fine, z[0], z[-1]))
        for end, side in ((0, np.minimum(fine - z[0], 0)), (-1, np.maximum(fine - z[-1], 0))):
            along += float(curve(z[end], 1)) * side
    along = np.clip(along, 0, (shape[1] - 1) * spacing_mm[1])
    length = np.r_[0, np.cumsum(np.hypot(np.diff(along), np.diff(fine)))]
    equal = np.arange(length[-1], -step_mm / 2, -step_mm).clip(0)
    return np.stack(
        [
            np.interp(equal, length, along) / spacing_mm[1],
            np.interp(equal, length, fine) / spacing_mm[2],
        ],
        axis=1,
    )


def straightened(array: np.ndarray, curve: np.ndarray, columns: int, order: int) -> np.ndarray:
    """Sample the coronal surface through a curve.

    Args:
        array: (x, y, z) canonical scan or labels.
        curve: (rows, 2) voxel indices, as `spine_curve` returns.
        columns: of the picture.
        order: 1 for a scan (linear), 0 for labels (nearest).

    Returns:
        (rows, columns) of the array's kind; the patient's right is on the left.
    """
    x = (np.arange(columns) + 0.5) * array.shape[0] / columns - 0.5
    places = np.broadcast_arrays(x[None], curve[:, :1], curve[:, 1:])
    return ndimage.map_coordinates(array, places, order=order, mode="nearest")


def _words(
    prediction: np.ndarray, reference: np.ndarray | None, named: Sequence[int]
) -> dict[int, str]:
    """Return the name of each vertebra, and what the reference says if it does not agree."""
    words = {label: labels.name(label) for label in named}
    if reference is None or reference.max() <= 1:
        return words
    given = geometry.label_boxes(reference)
    for label, box in geometry.label_boxes(prediction).items():
        if label not in words:
            continue
        there = np.bincount(reference[box][prediction[box] == label], minlength=256)
        real = int(there[1:].argmax()) + 1
        if there[real] and real != label and there[0] < there.sum() / 2:
            known = labels.name(real) if real in labels.NAMES else str(real)
            words[label] += f" not {known}"
        elif label not in given:
            words[label] += " extra"
    return words


def planes(
    volume: Volume,
    prediction: np.ndarray,
    reference: np.ndarray | None = None,
    centroids: Mapping[int, np.ndarray] = types.MappingProxyType({}),
) -> list[ScanPlane]:
    """Return a sagittal, a coronal and an axial picture of a scan, all at one scale in mm.

    The planes pass through the median voxel of the reference, else of the prediction, else through
    the middle of the scan; the axial one is the slice within 15 mm of it that shows most
    foreground. With named vertebrae the coronal picture is straightened along the spine.

    Args:
        volume: the scan.
        prediction: (x, y, z) bool or integer labels on the grid of `volume.array`; 0 is background.
        reference: likewise, or None.
        centroids: VerSe id -> (3,) voxel index of a vertebral body; empty if labels are not VerSe
            ids.

    Raises:
        ValueError: a label map has another shape than the volume.
    """
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask is not None and mask.shape != volume.shape:
            raise ValueError(
                f"`{name}` of shape {mask.shape} is not on the volume's grid {volume.shape}"
            )
    spacing, image = volume.spacing_mm, volume.array
    extent = [length * mm for length, mm in zip(image.shape, spacing, strict=True)]
    # The reference says better where the spine is.
    guides = [mask for mask in (reference, prediction) if mask is not None and mask.any()]
    where = _middle(guides[0] if guides else None, image.shape, spacing)
    curve, high_mm = None, extent[2]
    if centroids:
        centres = np.array(list(centroids.values()))
        if guides and guides[0] is reference and reference.max() > 1:
            centres = np.array(list(body_centres(reference, spacing).values()))
        where = (round(np.median(centres[:, 0])), *where[1:])
        curve = spine_curve(centres, image.shape, spacing, 1 / _MAX_PIXELS_PER_MM)
        high_mm = len(curve) / _MAX_PIXELS_PER_MM
    across = extent[1] + extent[0] + extent[0]
    tallest = max(extent[2], extent[1], high_mm)
    scale = min(_PIXELS[0] / across, _PIXELS[1] / tallest, _MAX_PIXELS_PER_MM)
    words = _words(prediction, reference, list(centroids))
    found = []
    for plane, axis in PLANES.items():
        column_axis, row_axis = (other for other in range(3) if other != axis)
        wide = max(8, round(extent[column_axis] * scale))
        size = (max(8, round(extent[row_axis] * scale)), wide)
        slice_words = f"slice {where[axis] + 1} of {image.shape[axis]}"
        caption = f"{plane.capitalize()}, {slice_words} from {_FROM[plane]}"
        path = None
        if plane == "coronal" and curve is not None:
            caption = "Coronal, along the vertebral bodies"
            rows = np.linspace(0, len(curve) - 1, max(8, round(high_mm * scale)))
            path = np.stack([np.interp(rows, range(len(curve)), side) for side in curve.T], 1)
            grey = overlay.window(straightened(image, path, wide, order=1))
        else:
            grey = resize(overlay.window(hung(image, plane, where[axis])), size, smooth=True)

        def cut(
            mask: np.ndarray,
            plane: str = plane,
            index: int = where[axis],
            path: np.ndarray | None = path,
            size: tuple[int, int] = size,
        ) -> np.ndarray:
            if path is not None:
                return straightened(mask, path, size[1], order=0)
            return resize(hung(mask, plane, index).astype(np.int32), size, smooth=False)

        given = None if reference is None else cut(reference)
        layer = compare_layer(cut(prediction), given, named=bool(centroids))
        names = []
        for label, point in centroids.items() if plane != "axial" else ():
            place = _place(point, image.shape, spacing, grey.shape, plane, path)
            if place is not None:
                # Long words stay inside the picture.
                half = 0.33 * len(words[label]) * name_size(grey.shape[0], scale)
                x = max(min(place[0], wide - half), min(half, wide / 2))
                names.append(Name(x, place[1], words[label]))
        found.append(ScanPlane(plane, caption, grey, layer, tuple(names), scale))
    return found


def _middle(
    guide: np.ndarray | None, shape: tuple[int, ...], spacing_mm: Sequence[float]
) -> tuple[int, ...]:
    """Return the voxel whose planes show the spine of `guide`, else the scan's middle."""
    where = None if guide is None else centre(guide)
    if guide is None or where is None:
        return tuple((length - 1) // 2 for length in shape)
    # The median level may be a disc; take the slice nearby that shows most of a vertebra.
    reach = int(_NEAR_AXIAL_MM / spacing_mm[2])
    low = max(0, where[2] - reach)
    near = range(low, min(where[2] + reach + 1, shape[2]))
    areas = [np.count_nonzero(guide[:, :, k]) for k in near]
    return where[0], where[1], low + int(np.argmax(areas))


def _place(
    point: np.ndarray,
    shape: tuple[int, ...],
    spacing_mm: Sequence[float],
    size: tuple[int, ...],
    plane: str,
    path: np.ndarray | None,
) -> tuple[float, float] | None:
    """Return (x, y) of a vertebral body on a sagittal or coronal picture of `size`.

    None if the path of a straightened picture leaves the body out.
    """
    across = 1 if plane == "sagittal" else 0
    x = (point[across] + 0.5) / shape[across] * size[1]
    if path is None:
        return x, (1 - (point[2] + 0.5) / shape[2]) * size[0]
    apart_mm = np.hypot(*((path - np.asarray(point)[1:]) * np.asarray(spacing_mm)[1:]).T)
    nearest = int(apart_mm.argmin())
    return (x, float(nearest)) if apart_mm[nearest] <= _OFF_MM else None


def name_size(panel_height: int, pixels_per_mm: float) -> float:
    """Return the height of names on a picture, in its pixels."""
    return max(9.0, min(_NAME_MM * pixels_per_mm, _NAME_SHARE * panel_height))


# The quick-look picture as one file.

_GAP, _MARGIN, _HEADER, _FOOTER = 22, 26, 84, 40
_BACKGROUND, _TEXT, _FAINT = "#0c0e11", "#eef1f4", "#9aa4af"


def matplotlib_data() -> Path:
    """Return matplotlib's folder of fonts and settings.

    matplotlib is not imported, because that reads settings of the user, which may be damaged.
    """
    found = find_spec("matplotlib")
    if found is None or found.origin is None:
        raise ImportError("matplotlib is not installed")
    return Path(found.origin).parent / "mpl-data"


_FONTS = matplotlib_data() / "fonts" / "ttf"


@cache
def _font(size: int, name: str = "DejaVuSans.ttf") -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_FONTS / name, size)


def _bold(size: float) -> ImageFont.FreeTypeFont:
    return _font(round(size), "DejaVuSans-Bold.ttf")


def printable(words: str, length: int) -> str:
    """Return `words` in at most `length` characters that the font has (a name may hold any)."""
    # The basic layout draws one sign for every character that the font lacks.
    basic = ImageFont.Layout.BASIC
    font = ImageFont.truetype(_FONTS / "DejaVuSans.ttf", 20, layout_engine=basic)
    missing = bytes(font.getmask("\U0010ffff"))

    def has(letter: str) -> bool:
        return letter.isprintable() and bytes(font.getmask(letter)) != missing

    shown = "".join(letter if has(letter) else "?" for letter in words)
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def _annotated(panel: ScanPlane) -> Image.Image:
    """Return a panel with directions, a scale bar and names."""
    picture = Image.fromarray(blend(panel.grey, panel.layer))
    draw = ImageDraw.Draw(picture)
    rows, columns = panel.grey.shape

    def write(x: float, y: float, words: str, anchor: str, size: float) -> None:
        where, font = (x, y), _bold(size)
        draw.text(where, words, _TEXT, font, anchor, stroke_width=3, stroke_fill=_BACKGROUND)

    left, right, top, bottom = EDGES[panel.plane]
    write(6, rows / 2, left, "lm", 18)
    write(columns - 7, rows / 2, right, "rm", 18)
    write(columns - 7, 5, top, "ra", 18)  # in the middle would be the spine
    write(columns - 7, rows - 6, bottom, "rd", 18)
    length = scale_bar_mm(columns / panel.pixels_per_mm)
    bar = [12, rows - 12, 12 + length * panel.pixels_per_mm, rows - 12]
    draw.line(bar, _BACKGROUND, 7)
    draw.line(bar, _TEXT, 3)
    write(12, rows - 19, f"{length} mm", "ld", 14)
    for x, y, words in panel.names:
        write(x, y, words, "mm", name_size(rows, panel.pixels_per_mm))
    return picture


def quicklook_png(
    volume: Volume,
    prediction: np.ndarray,
    reference: np.ndarray | None = None,
    *,
    title: str = "",
    centroids: Mapping[int, np.ndarray] = types.MappingProxyType({}),
) -> bytes:
    """Return the quick-look picture as the bytes of a PNG; see `quicklook`."""
    shown = planes(volume, prediction, reference, centroids)
    total = sum(panel.grey.shape[1] for panel in shown) + 2 * _GAP
    width = max(total, 640) + 2 * _MARGIN
    height = _HEADER + max(panel.grey.shape[0] for panel in shown) + _FOOTER + _MARGIN
    canvas = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    heading = printable(title, (width - 460) // 12)
    draw.text((_MARGIN, 38), heading, _TEXT, _bold(21), "ls")
    spacing = " × ".join(f"{mm:.3g}" for mm in geometry.spacing_mm(volume.native_affine))
    voxels = f"{' × '.join(map(str, volume.native.shape))} voxels of {spacing} mm"
    draw.text((_MARGIN, 64), f"{voxels}, {volume.orientation}", _FAINT, _font(15), "ls")
    found = "prediction" if prediction.any() else "prediction (empty)"
    if centroids:
        entries = [(f"{found}, one colour a level", labels.RGB[20])]
        entries += [("reference", REFERENCE_LINE_RGB)] if reference is not None else []
    else:
        entries = [(found, overlay.PREDICTION_RGB)]
        if reference is not None:
            entries += [("reference", overlay.REFERENCE_RGB), ("both", overlay.BOTH_RGB)]
    x = width - _MARGIN
    for words, rgb in reversed(entries):
        draw.text((x, 24), words, _TEXT, _font(16), "rm")
        x -= round(draw.textlength(words, _font(16))) + 10
        draw.line([x - 22, 24, x, 24], rgb, 4)
        x -= 22 + 24
    left = _MARGIN + (width - 2 * _MARGIN - total) // 2
    for panel in shown:
        rows, columns = panel.grey.shape
        canvas.paste(_annotated(panel), (left, _HEADER))
        caption = panel.caption if columns > 280 else panel.caption.partition(" from ")[0]
        draw.text((left, _HEADER + rows + 25), caption, _FAINT, _font(15), "ls")
        left += columns + _GAP
    stream = io.BytesIO()
    canvas.save(stream, format="PNG")
    return stream.getvalue()


def quicklook(
    volume: Volume,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    path: str | os.PathLike[str],
    *,
    title: str = "",
    centroids: Mapping[int, np.ndarray] = types.MappingProxyType({}),
    overwrite: bool = False,
) -> Path:
    """Write a picture of three planes through the spine with a prediction on it; see `planes`.

    Args:
        volume: the scan.
        prediction: (x, y, z) bool or integer labels on the grid of `volume.array`; 0 is background.
        reference: likewise, or None.
        path: the PNG to write; appears whole or not at all.
        title: printed on the picture; by default the file's name without `.png`.
        centroids: VerSe id -> (3,) voxel index of a vertebral body; names are written there. Empty
            if labels are not VerSe ids.
        overwrite: replace a file that this program did not write, too.

    Returns:
        `path`.

    Raises:
        InputError: the file may not be replaced.
        ValueError: a label map has another shape than the volume.
    """
    path = Path(path)
    png = quicklook_png(
        volume, prediction, reference, title=title or path.stem, centroids=centroids
    )
    with files.atomic_path(path, "picture", overwrite=overwrite) as temporary:
        temporary.write_bytes(png)
    return path
