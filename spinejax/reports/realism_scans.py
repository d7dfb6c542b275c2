"""Real scans and phantoms, measured alike and cut into slices for a figure."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from spinejax import geometry, labels, overlay
from spinejax.data import centroids as centroid_files
from spinejax.data import scanfile
from spinejax.data.found_scans import Files
from spinejax.data.pairs import match_labels
from spinejax.data.phantom import statistics
from spinejax.errors import InputError
from spinejax.reports import figures
from spinejax.volume import CANONICAL, PLANES, LabelVolume, Volume

logger = logging.getLogger("spinejax")

PIXELS_PER_MM = 2.0
WINDOW_MM = {"sagittal": (120.0, 190.0), "axial": (120.0, 120.0)}
"""Width and height that a picture of a plane shows, the same for every scan."""

_ASIDE_MM = 15.0
"""Of the second sagittal slice from the first: through pedicles and joints."""


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
        case: its name.
        values: statistic -> number, the names being `group/name`, e.g. "volume_ml/L1".
        histograms: layer -> shares over `statistics.BINS_HU`; empty without a CT.
        panels: slices for the figure; empty without a CT or without vertebrae.
        words: voxels and levels.
    """

    case: str
    values: dict[str, float]
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    panels: list[Panel] = field(default_factory=list)
    words: str = ""


def tally(scans: Sequence[Measured]) -> str:
    """How many real scans there are of each kind, e.g. "3 CTs with masks, 2 masks, 1 CT"."""
    pairs = sum(bool(scan.histograms) for scan in scans)
    masks = sum("scan/cut_share" in scan.values for scan in scans) - pairs
    counted = {"CT{} with mask{}": pairs, "mask{}": masks, "CT{}": len(scans) - pairs - masks}
    return ", ".join(
        f"{count} {words.replace('{}', 's' if count > 1 else '')}"
        for words, count in counted.items()
        if count
    )


def measure_files(files: Files) -> Measured | None:
    """Read and measure a real scan; None, with a warning, for one that cannot be read."""
    try:
        mask = None if files.labels is None else scanfile.read_labels(files.labels)
        points = None
        if mask is not None and files.centroids is not None:
            points = centroid_files.read_centroids(
                files.centroids, mask, edition=files.edition, mask=mask
            )
        if files.image is None:
            if mask is None:
                return None
            found = statistics.measure_labels(mask.array, mask.affine, points)
            return Measured(files.id, _flat(found))
        if mask is None:
            volume = scanfile.read_volume(files.image)
            nothing = np.zeros(volume.shape, np.uint8)
            return Measured(
                files.id, _flat(statistics.measure_hu(volume.array, nothing, volume.affine)[0])
            )
        volume = scanfile.read_volume(files.image)
        return measure(files.id, volume, match_labels(volume, mask).array, points, mask)
    except InputError as error:
        logger.warning("%s: left out: %s", files.id, error)
        return None


def measure(
    case: str,
    volume: Volume,
    mask: np.ndarray,
    points: Mapping[int, np.ndarray] | None,
    own_grid: LabelVolume | None = None,
) -> Measured:
    """Measure a scan and its mask; `points` are voxels of `own_grid`, else of the scan."""
    shape = LabelVolume(mask, volume.affine) if own_grid is None else own_grid
    sizes = statistics.measure_labels(shape.array, shape.affine, points)
    greys, histograms = statistics.measure_hu(volume.array, mask, volume.affine)
    values = _flat(sizes) | _flat(greys)
    words = " × ".join(f"{side:.2g}" for side in volume.spacing_mm) + " mm"
    names = [labels.name(i) for i in sorted(np.unique(mask[mask > 0]), key=labels.order)]
    if names:
        words += f", {names[0]}–{names[-1]}" if len(names) > 1 else f", {names[0]}"
    return Measured(case, values, histograms, panels(volume, mask), words)


def _flat(found: statistics.Statistics) -> dict[str, float]:
    return {
        f"{group}/{name}": round(float(value), 4)
        for group, values in found.items()
        for name, value in values.items()
    }


def panels(volume: Volume, mask: np.ndarray) -> list[Panel]:
    """Cut a scan in the middle of its labelled spine.

    Returns:
        A sagittal slice through the middle, one `_ASIDE_MM` to the left of it, and the axial one
        near the middle that shows most of a vertebra, each `WINDOW_MM` large; nothing without
        vertebrae.
    """
    middle = figures.centre(mask)
    if middle is None:
        return []
    hu, affine = geometry.reorient(volume.array, volume.affine, CANONICAL)
    mask, _ = geometry.reorient(mask, volume.affine, CANONICAL)
    spacing = geometry.spacing_mm(affine)
    x, y, z = figures.centre(mask) or middle
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
    """A window of one slice about `middle`, on square pixels; black outside of the scan."""
    across, down = (axis for axis in range(3) if axis != PLANES[plane])
    wide, high = WINDOW_MM[plane]
    columns, rows = (round(side * PIXELS_PER_MM) for side in (wide, high))
    u = (np.arange(columns) - (columns - 1) / 2) / PIXELS_PER_MM / spacing[across]
    v = (np.arange(rows) - (rows - 1) / 2) / PIXELS_PER_MM / spacing[down]
    # Slices show superior at the top, axial ones anterior, where their index starts.
    v = v if plane == "axial" else -v
    where = np.meshgrid(v + middle[down], u + middle[across], indexing="ij")[::-1]
    image = figures.take_slice(hu, plane, index).astype(np.float32)
    ids = figures.take_slice(mask, plane, index)
    drawn = ndimage.map_coordinates(image, where, order=1, cval=-1024.0)
    return Panel(
        plane,
        overlay.window(drawn),
        ndimage.map_coordinates(ids, where, order=0, cval=0),
    )
