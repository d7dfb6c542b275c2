"""One slice under the normalisations of paper A, as a network sees it: its figure 8.

The slice comes from the scan with the highest Dice, from where most of the spine is, and is
preprocessed as the run does it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from spinejax import overlay, schema
from spinejax.data import normalise, preprocess
from spinejax.errors import InputError
from spinejax.reports import figures, tables
from spinejax.reports.run import Run
from spinejax.reports.tables import item
from spinejax.volume import slice_view

MODES = ("hu", "zscore", "unit", "sym")
"""The modes of `data.normalise` that the paper compares, in the order of its tables."""

GREY = (-1.0, 2.0)
"""Input of the network that is black, and that is white, in all pictures."""

_WORDS = {
    "hu": "−1000 to 800",
    "zscore": "zero mean",
    "unit": "0 to 1",
    "sym": "−1 to 1",
    "minmax_to_hu": "lowest and highest value to −1000 and 800",
}
_WIDEST, _HIGHEST = 360, 480  # pixels of a picture
_BYTES = 160_000  # of all pictures together


@dataclass(frozen=True, eq=False)
class PreparedSlice:
    """A preprocessed slice: (h, w) int16 HU, its spacing in mm, number, and (4,) of its scan."""

    image_hu: np.ndarray
    spacing_mm: tuple[float, float]
    index: int
    count: int
    stats: np.ndarray


def inputs(
    image_hu: np.ndarray, modes: tuple[str, ...], range_hu: tuple[float, float], stats: np.ndarray
) -> list[np.ndarray]:
    """Return the network's input for a slice in HU (h, w), for each mode, (h, w) float32.

    Args:
        image_hu: the preprocessed slice.
        modes: of `data.normalise`.
        range_hu: of preprocessed values.
        stats: (4,) mean, std, min and max of the preprocessed scan.
    """
    return [normalise.network_input(image_hu, mode, range_hu, stats) for mode in modes]


def section(run: Run) -> dict[str, Any] | None:
    """Return the pictures; None for a run without slices, or without a scored scan."""
    ranked = tables.ranked(run.scores)
    if run.config.get("task") != schema.SLICES or not ranked:
        return None
    case = ranked[-1][0]
    own = str(item(run.config, "data", "normalise"))
    try:
        settings = preprocess.from_config(ConfigDict(run.config["data"]))
        found = _prepare(run, case, settings)
    except InputError as error:
        return {"problem": f"{case} cannot be drawn: {error}."}
    modes = MODES if own in MODES else (*MODES, own)
    arrays = inputs(found.image_hu, modes, settings.range_hu, found.stats)
    water = inputs(np.zeros((1, 1), np.int16), modes, settings.range_hu, found.stats)
    size, pixels_per_mm = _size(found, settings.plane)
    greys = []
    for array in arrays:
        grey = overlay.window(array, GREY)
        greys.append(figures.resize(figures.display(grey, settings.plane), size, smooth=True))
    parts = []
    for mode, array, zero, jpeg in zip(
        modes, arrays, water, figures.jpegs(greys, _BYTES), strict=True
    ):
        title = f"{mode}: {_WORDS[mode]}"
        lines = (
            f"values {_number(float(array.min()))} to {_number(float(array.max()))}",
            f"water (0 HU) at {_number(float(zero[0, 0]))}",
        )
        spoken = f"{case}, slice {found.index + 1}, {title}, {', '.join(lines)}"
        uri = figures.data_uri(jpeg, "jpeg")
        picture = figures.Picture(size, uri, None, (), spoken, settings.plane, pixels_per_mm)
        parts.append({"title": title, "own": mode == own, "lines": lines, "picture": picture})
    return {
        "problem": "",
        "case": case,
        "slice": f"{found.index + 1} of {found.count}",
        "plane": settings.plane,
        "grey": [_number(end) for end in GREY],
        "parts": parts,
    }


def _prepare(run: Run, case: str, settings: preprocess.SlicePreprocess) -> PreparedSlice:
    """Preprocess a scan and return its slice with most of the spine.

    Raises:
        InputError: the scan cannot be read.
    """
    volume, masks = run.read_case(case)
    grid = preprocess.slice_geometry(volume, settings)
    marked = slice_view(masks.get("labels", masks["prediction"]) > 0, settings.plane)
    marks = np.count_nonzero(marked, axis=(1, 2))
    middle = grid.n_slices // 2
    index = int(marks.argmax()) * grid.n_slices // len(marks) if marks.any() else middle
    stats = normalise.ScanStats()
    for start, image, _ in preprocess.preprocess_slabs(volume, settings):
        stats.update(image)
        if start <= index < start + len(image):
            chosen = image[index - start].copy()
    return PreparedSlice(chosen, grid.spacing_mm, index, grid.n_slices, stats.result())


def _size(found: PreparedSlice, plane: str) -> tuple[tuple[int, int], float]:
    """Return (rows, columns) of the pictures, and their pixels per mm."""
    # `display` shows the first in-plane axis as columns.
    wide, high = (n * mm for n, mm in zip(found.image_hu.shape, found.spacing_mm, strict=True))
    pixels_per_mm = min(_WIDEST / wide, _HIGHEST / high)
    return (max(8, round(high * pixels_per_mm)), max(8, round(wide * pixels_per_mm))), pixels_per_mm


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
