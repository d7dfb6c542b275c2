"""A row of slices of one scan, with what was found, missed and found wrongly laid over the CT.

The scan is stored once per slice, as a JPEG; what lies over it is a picture of a few colours, so
that a second row, of another prediction on the same slices, costs little.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image
from scipy import ndimage

from spinejax import labels, overlay
from spinejax.reports import figures, markup, slices
from spinejax.volume import PLANES

COUNT = 7
"""Slices in a row."""

# Told apart with every common form of colour blindness, on any grey: the pale one is also the
# lightest and has no outline, the other two differ in blue against yellow.
FOUND_RGB, FALSE_RGB, MISSED_RGB = (120, 240, 170), (255, 64, 32), (64, 110, 255)

_FOUND, _FALSE, _MISSED = 1, 2, 3
_EDGE = 2  # added to the number of an error where it is outlined
_PALETTE = {  # number -> colour and opacity of 255
    _FOUND: (*FOUND_RGB, 84),
    _FALSE: (*FALSE_RGB, 128),
    _MISSED: (*MISSED_RGB, 128),
    _FALSE + _EDGE: (*FALSE_RGB, 240),
    _MISSED + _EDGE: (*MISSED_RGB, 240),
}
_MARGIN_MM = 8.0
_SIDE = 56  # width of the column of names, in the pixels of a slice
_HIGHEST = 720  # CSS pixels of a slice on the page
_LINE = 22  # least distance between two names
_STRAY = 0.005  # share of what is marked that may lie outside the pictures at either end
_PIXELS = (300, 900)  # largest width and height of a stored slice
_MAX_PIXELS_PER_MM = 5.0
_BYTES = 330_000  # of all JPEGs of a row
_QUALITIES = (88, 78, 65, 50, 35, 20)


@dataclass(frozen=True)
class View:
    """Which slices are shown, and which part of them.

    `indices` along the canonical axis of `plane`; `rows` and `columns` of the displayed slice;
    `size` of the stored picture, (rows, columns) in pixels.
    """

    plane: str
    indices: tuple[int, ...]
    rows: slice
    columns: slice
    size: tuple[int, int]
    pixels_per_mm: float

    def cut(self, array: np.ndarray, index: int) -> np.ndarray:
        """Return the shown part of slice `index` of a canonical array."""
        picture = figures.display(figures.take_slice(array, self.plane, index), self.plane)
        return picture[self.rows, self.columns]


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
        # A slice so heavy that it is wanted twice leaves a place to its neighbour.
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

    Two thirds of the slices go by the reference, one by what is found elsewhere. The view holds
    the reference whole, and nearly all of the predictions: a few stray voxels do not widen it.

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


def jpegs(image_hu: np.ndarray, shown: View) -> list[bytes]:
    """Return the slices of a canonical scan in a bone window, as JPEGs of bounded size."""
    pictures = [
        Image.fromarray(
            figures.resize(overlay.window(shown.cut(image_hu, index)), shown.size, smooth=True)
        )
        for index in shown.indices
    ]
    found: list[bytes] = []
    for quality in _QUALITIES:  # noise needs a lower one
        found = []
        for picture in pictures:
            stream = io.BytesIO()
            picture.save(stream, format="JPEG", quality=quality, optimize=True)
            found.append(stream.getvalue())
        if sum(map(len, found)) <= _BYTES:
            break
    return found


def layer(reference: np.ndarray, prediction: np.ndarray, shown: View, index: int) -> bytes:
    """Return what lies over a slice, as a PNG of few colours, clear where nothing is marked."""
    true, found = shown.cut(reference, index) > 0, shown.cut(prediction, index) > 0
    kinds = np.zeros(true.shape, np.uint8)
    kinds[true & found] = _FOUND
    kinds[~true & found] = _FALSE
    kinds[true & ~found] = _MISSED
    kinds = figures.resize(kinds, shown.size, smooth=False).copy()
    kinds[overlay.outline(np.where(kinds == _FOUND, 0, kinds))] += _EDGE
    picture = Image.fromarray(kinds, mode="P")
    colours = [_PALETTE.get(number, (0, 0, 0, 0)) for number in range(max(_PALETTE) + 1)]
    picture.putpalette([value for colour in colours for value in colour[:3]])
    stream = io.BytesIO()
    opacity = bytes(colour[3] for colour in colours)
    picture.save(stream, format="PNG", optimize=True, transparency=opacity)
    return stream.getvalue()


def sides(reference: np.ndarray | None, shown: View) -> str:
    """Return a column with the name of each vertebra at the height of its middle.

    Empty without a reference, and beside axial slices.
    """
    if reference is None or shown.plane == "axial":
        return "<i></i>"
    height, high = reference.shape[2], shown.size[0]
    scale = high / (shown.rows.stop - shown.rows.start)
    heights = []
    for label, box in enumerate(ndimage.find_objects(reference), 1):
        if box is None or label not in labels.NAMES:
            continue
        voxels = np.count_nonzero(reference[box] == label, axis=(0, 1))
        middle = box[2].start + float(np.average(np.arange(len(voxels)), weights=voxels))
        y = (height - 0.5 - middle - shown.rows.start) * scale
        heights.append((y, labels.name(label)))
    found, last = [], 0.0
    for y, name in sorted(heights):  # a part of a vertebra may be close to the next one
        last = max(y, last + _LINE)
        found.append(f'<text x="{_SIDE - 8}" y="{last:.0f}">{name}</text>')
    return f'<svg class="names" viewBox="0 0 {_SIDE} {high}">{"".join(found)}</svg>'


def captions(reference: np.ndarray | None, shown: View) -> list[str]:
    """Return what stands below each slice: its number, in axial ones with the vertebrae in it."""
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


def row(
    shown: View,
    scans: Sequence[bytes] | None,
    layers: Sequence[bytes],
    side: str,
    below: Sequence[str],
    key: str,
    words: str,
    count: int,
) -> str:
    """Return a row of slices.

    Args:
        shown: which slices.
        scans: JPEG of each; None: those of an earlier row with the same `key`.
        layers: PNG over each.
        side: HTML of the column on the left.
        below: plain text below each.
        key: what the names of the pictures begin with; unique in the page.
        words: what to call the row when it is read aloud.
        count: slices of the whole scan.
    """
    high, wide = shown.size
    size = f'width="{wide}" height="{high}"'
    tiles = []
    for number, (index, over) in enumerate(zip(shown.indices, layers, strict=True)):
        name = f"{key}-{number}"
        scan = f'<use href="#{name}"/>'
        if scans is not None:
            scan = f'<image id="{name}" {size} href="{markup.jpeg_uri(scans[number])}"/>'
        marks = slices.marks(shown.plane, high, wide, shown.pixels_per_mm) if number == 0 else ""
        spoken = escape(f"{words}, slice {index + 1} of {count}")
        tiles.append(
            f'<figure class="tile"><svg viewBox="0 0 {wide} {high}" role="img" '
            f'aria-label="{spoken}">{scan}<image class="layer" {size} '
            f'href="{markup.png_uri(over)}"/>{marks}</svg>'
            f"<figcaption>{escape(below[number])}</figcaption></figure>"
        )
    names = _SIDE if "<svg" in side else 0
    columns = f"{names}fr repeat({len(tiles)},{wide}fr)"
    # A whole spine is high and narrow; it shall not fill the width.
    widest = round((names + len(tiles) * wide) * _HIGHEST / high)
    return (
        f'<div class="montage" style="--widest:{widest}px;grid-template-columns:{columns}">'
        f"{side}{''.join(tiles)}</div>"
    )
