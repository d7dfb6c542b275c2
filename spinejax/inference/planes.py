"""The mask of the spine from networks of several planes, read only where the spine is.

The scan is resampled to one grid of cubic voxels with the spacing of the networks. Each network
reads the slices of its plane there, and the probabilities are averaged. A network of sagittal
slices may miss a body in one slice and find it in the next; a network of axial slices sees the body
between other neighbours and does not miss the same part of it.

A search comes first: one network reads slices 12 mm apart and gives the box of the spine. All
networks then read the box only.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from spinejax import geometry
from spinejax.data import normalise, preprocess
from spinejax.errors import InputError
from spinejax.inference import masks
from spinejax.inference.masks import ScanSettings, StackPredictor
from spinejax.progress import Progress, silent
from spinejax.volume import PLANES, Volume, slice_view

logger = logging.getLogger("spinejax")

Box = tuple[slice, slice, slice]

SEARCH_MM = 12.0
"""Distance between the slices that the search reads; a vertebra is at least 25 mm wide."""

BESIDE_MM = 24.0
"""Margin of the box to the left and right, front and back: processes between two slices, and the
bend of a spine beyond the part that the search found."""

BEYOND_MM = 80.0
"""Margin of the box at head and foot: two vertebrae that the search missed."""

SMALL_MM2 = 180.0**2
"""A scan whose axial slices are smaller is read without a search, which would save little."""


@dataclass(frozen=True)
class PlaneNetwork:
    """A network of slices.

    Attributes:
        plane: of its slices, one of `volume.PLANES`.
        size: (rows, columns) of its windows.
        predict: the network.
    """

    plane: str
    size: tuple[int, int]
    predict: StackPredictor


def check(settings: ScanSettings) -> None:
    """Refuse a preprocessing that has no common grid.

    Raises:
        InputError: the slices are not resampled to a spacing, or are filtered slice by slice.
    """
    how = settings.preprocess
    if how.mode != "resample" or how.intensity != "clamp":
        raise InputError(
            "only runs with data.preprocess.mode=resample and data.preprocess.intensity=clamp have "
            f"a grid that all planes share, and these have mode={how.mode} and "
            f"intensity={how.intensity}; give runs of one plane, with predict.search=full"
        )


def predict_scan(
    networks: Sequence[PlaneNetwork],
    volume: Volume,
    settings: ScanSettings,
    *,
    search: bool,
    title: str = "",
    progress: Progress = silent,
) -> np.ndarray:
    """Segment the spine of a scan.

    Args:
        networks: their probabilities are averaged; the first one searches.
        volume: the scan, of any spacing.
        settings: of the first network; its plane does not matter here, and its spacing is that of
            the common grid.
        search: whether to look for the spine first. Where the search finds nothing, the networks
            read the whole scan.
        title: what to call the scan.
        progress: shows the progress in slices.

    Returns:
        (x, y, z) uint8 on the grid of `volume.array`: 1 is spine, 0 background.

    Raises:
        InputError: see `check`.
    """
    check(settings)
    shape = grid_shape(volume, settings)
    stats = np.zeros(4, np.float32)
    if settings.normalise in normalise.NEED_STATS:
        slabs = preprocess.preprocess_slabs(volume, _isotropic(settings, "sagittal"))
        stats = normalise.scan_stats(image for _, image, _ in slabs)
    box: Box = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    spacing_mm = _spacing_mm(volume, shape)
    if search and _axial_mm2(shape, spacing_mm) > SMALL_MM2:
        count = len(_searched(shape, spacing_mm, networks[0].plane))
        with progress(f"{title}: search", count, "slice") as bar:
            found = find_box(networks[0], volume, settings, stats, bar.advance)
        if found is None:
            logger.info("%s: the search found no spine; reading the whole scan", title)
        box = found or box
    reads = [_windows(box, network, shape) for network in networks]
    x, y, z = (
        slice(min(a.start for a in s), max(a.stop for a in s)) for s in zip(*reads, strict=True)
    )
    image = preprocess.preprocess_box(volume, _isotropic(settings, "sagittal"), (x, y, z))
    inner = _within(box, (x, y, z))
    with progress(title, sum(_slices(box, one.plane) for one in networks), "slice") as bar:
        probability = mean_probability(networks, image, inner, stats, bar.advance)
    del image
    mask = _on_scan(probability, box, shape, volume.shape, settings.threshold)
    return masks.finished(mask, volume, settings)


def find_box(
    network: PlaneNetwork,
    volume: Volume,
    settings: ScanSettings,
    stats: np.ndarray,
    advance: Callable[[int], object] = lambda slices: None,
) -> Box | None:
    """Return the box of the spine that a network finds in slices 12 mm apart; None without any.

    Args:
        network: reads the slices.
        volume: the scan.
        settings: see `predict_scan`.
        stats: (4,) of the scan.
        advance: called with the number of slices done since the last call.

    Returns:
        The box on the common grid.
    """
    shape, axis = grid_shape(volume, settings), PLANES[network.plane]
    spacing_mm = _spacing_mm(volume, shape)
    levels = _searched(shape, spacing_mm, network.plane)
    how = _isotropic(settings, network.plane)
    rows, columns = (slice(0, n) for i, n in enumerate(shape) if i != axis)
    stack = np.concatenate(
        [
            preprocess.preprocess_box(volume, how, (slice(level, level + 1), rows, columns))
            for level in levels
        ]
    )
    seen = np.moveaxis(network.predict(stack, stats, advance) >= settings.threshold, 0, axis)
    apart = list(spacing_mm)
    apart[axis] *= levels.step
    tight = geometry.bounding_box(masks.without_islands(seen, (apart[0], apart[1], apart[2])))
    if tight is None:
        return None
    sides = []
    for i, (side, n, mm) in enumerate(zip(tight, shape, spacing_mm, strict=True)):
        start, stop = side.start, side.stop
        if i == axis:  # up to the neighbouring slices, which show nothing
            start = levels.start + (start - 1) * levels.step + 1
            stop = levels.start + stop * levels.step
        margin = math.ceil((BEYOND_MM if i == 2 else BESIDE_MM) / mm)
        sides.append(slice(max(0, start - margin), min(n, stop + margin)))
    return sides[0], sides[1], sides[2]


def mean_probability(
    networks: Sequence[PlaneNetwork],
    image: np.ndarray,
    box: Box,
    stats: np.ndarray,
    advance: Callable[[int], object] = lambda slices: None,
) -> np.ndarray:
    """Return the mean foreground probability of several networks within a box, float32.

    Args:
        networks: of any planes.
        image: (x, y, z) int16 HU on the common grid, or a part of it.
        box: the part of the image to read. A window that is larger than the box reads what lies
            around it.
        stats: (4,) of the scan.
        advance: called with the number of slices done since the last call.
    """
    total = np.zeros(tuple(side.stop - side.start for side in box), np.float32)
    for network in networks:
        wide = _windows(box, network, image.shape)
        part = slice_view(image[wide], network.plane)
        found = np.moveaxis(network.predict(part, stats, advance), 0, PLANES[network.plane])
        total += found[_within(box, wide)]
    return total / np.float32(len(networks))


def _windows(box: Box, network: PlaneNetwork, shape: tuple[int, ...]) -> Box:
    """Return the part of a grid that a network reads for a box: at least a window, if there is."""
    least = list(network.size)
    least.insert(PLANES[network.plane], 1)
    x, y, z = (_widened(side, size, n) for side, size, n in zip(box, least, shape, strict=True))
    return x, y, z


def _within(box: Box, outer: Box) -> Box:
    """Return the place of a box within another one."""
    x, y, z = (
        slice(side.start - other.start, side.stop - other.start)
        for side, other in zip(box, outer, strict=True)
    )
    return x, y, z


def grid_shape(volume: Volume, settings: ScanSettings) -> tuple[int, int, int]:
    """Return the voxels of the common grid along x, y and z."""
    grid = preprocess.slice_geometry(volume, _isotropic(settings, "sagittal"))
    return grid.n_slices, *grid.shape


def estimate_bytes(volume: Volume, settings: ScanSettings) -> int:
    """Return about how many bytes `predict_scan` holds at most, without the networks.

    A voxel of the common grid takes two bytes for HU and twelve for probabilities: the mean, those
    of one network, and its windows. The interpolation to the scan's grid takes slabs of 64 MB, and
    `masks.finished` what it says.
    """
    voxels = math.prod(grid_shape(volume, settings))
    return 14 * voxels + 6 * 2**26 + masks.finished_bytes(volume, settings)


def _isotropic(settings: ScanSettings, plane: str) -> preprocess.SlicePreprocess:
    return replace(settings.preprocess, plane=plane, mode="isotropic")


def _spacing_mm(volume: Volume, shape: tuple[int, ...]) -> tuple[float, float, float]:
    x, y, z = (mm * n / m for mm, n, m in zip(volume.spacing_mm, volume.shape, shape, strict=True))
    return x, y, z


def _axial_mm2(shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> float:
    return shape[0] * spacing_mm[0] * shape[1] * spacing_mm[1]


def _searched(shape: tuple[int, ...], spacing_mm: tuple[float, float, float], plane: str) -> range:
    """Return the slices of a plane that the search reads."""
    axis = PLANES[plane]
    step = max(1, round(SEARCH_MM / spacing_mm[axis]))
    return range(min(step // 2, shape[axis] - 1), shape[axis], step)


def _slices(box: Box, plane: str) -> int:
    side = box[PLANES[plane]]
    return int(side.stop - side.start)


def _widened(side: slice, least: int, n: int) -> slice:
    """Return a part of n voxels with `side` in its middle and, if n allows, `least` voxels."""
    own = side.stop - side.start
    length = max(own, min(least, n))
    start = min(max(0, side.start - (length - own) // 2), n - length)
    return slice(start, start + length)


_CHUNK_VOXELS = 2**24


def _on_scan(
    probability: np.ndarray,
    box: Box,
    grid: tuple[int, ...],
    shape: tuple[int, int, int],
    threshold: float,
) -> np.ndarray:
    """Return where the interpolated probability reaches the threshold, on the scan's grid.

    Args:
        probability: (box) float32 on the common grid.
        box: its place there; the probability is 0 elsewhere.
        grid: voxels of the common grid.
        shape: voxels of the scan.
        threshold: see `ScanSettings`.

    Returns:
        (x, y, z) bool.
    """
    mask = np.zeros(shape, bool)
    parts, centres = [], []
    for side, n, native in zip(box, grid, shape, strict=True):
        at = geometry.centres_of(n, native) - side.start
        length = side.stop - side.start
        inside = np.flatnonzero((at >= -0.5) & (at <= length - 0.5))
        if not len(inside):
            return mask
        parts.append(slice(int(inside[0]), int(inside[-1]) + 1))
        centres.append(np.clip(at[parts[-1]], 0, length - 1))
    target = mask[tuple(parts)]
    rows = max(1, _CHUNK_VOXELS // (target.shape[1] * target.shape[2]))
    for start in range(0, len(target), rows):
        some = slice(start, start + rows)
        values = geometry.at(probability, 0, centres[0][some])
        values = geometry.at(geometry.at(values, 1, centres[1]), 2, centres[2])
        target[some] = values >= threshold
    return mask
