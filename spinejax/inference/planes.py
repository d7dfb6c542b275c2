"""The mask of the spine from networks of several planes, read only where the spine is.

The scan is resampled to one grid of cubic voxels with the spacing of the networks. Each network
reads the slices of its plane there, and the probabilities are averaged. A network of sagittal
slices may miss a body in one slice and find it in the next; a network of axial slices sees the body
between other neighbours and does not miss the same part of it.

A search comes first: one network reads slices 12 mm apart. All networks then read only the windows
that touch the surroundings of what it found. Windows have the same places as without a search. If
the mask comes near the border of what was read, the networks read further. So a voxel that is read
has the probability that it has without a search. What lies apart from the rest of the spine, beyond
`BESIDE_MM` and `BEYOND_MM`, can be missed.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from spinejax import geometry
from spinejax.data import normalise, preprocess
from spinejax.errors import InputError
from spinejax.inference import masks
from spinejax.inference.masks import ScanSettings, StackPredictor
from spinejax.progress import Progress, silent
from spinejax.volume import PLANES, Volume, slice_view, with_neighbours

logger = logging.getLogger("spinejax")

Box = tuple[slice, ...]

SEARCH_MM = 12.0
"""Distance between the slices that the search reads; a vertebra is at least 25 mm wide."""

BETWEEN_MM = 4.0
"""What lies so far beyond the slices of the search that show nothing is read, too."""

BESIDE_MM = 12.0
"""What lies so far beside the spine within these slices is read, too."""

BEYOND_MM = 80.0
"""What lies so far above or below is read, too: two vertebrae that the search missed."""

SMALL_MM2 = 180.0**2
"""A scan whose axial slices are smaller is read without a search, which would save little."""


@dataclass(frozen=True)
class PlaneNetwork:
    """A network of slices.

    Attributes:
        plane: of its slices, one of `volume.PLANES`.
        size: (rows, columns) of its windows.
        overlap: see `windows2d.predict_stack`.
        predict: the network.
        neighbours: slices on each side that it also sees, on the common grid.
    """

    plane: str
    size: tuple[int, int]
    overlap: float
    predict: StackPredictor
    neighbours: int = 0


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
    spacing_mm = _spacing_mm(volume, shape)
    band = np.ones(shape, bool)
    reach_mm = [BESIDE_MM, BESIDE_MM, BEYOND_MM]
    reach_mm[PLANES[networks[0].plane]] = BETWEEN_MM
    searched = search and _axial_mm2(shape, spacing_mm) > SMALL_MM2
    if searched:
        levels = _searched(shape, spacing_mm, networks[0].plane)
        with progress(f"{title}: search", len(levels), "slice") as bar:
            found = find_spine(networks[0], volume, settings, stats, bar.advance)
        if found.any():
            band = _around(found, reach_mm, spacing_mm)
        else:
            logger.info("%s: the search found no spine; reading the whole scan", title)
            searched = False
    how = _isotropic(settings, "sagittal")
    probability = np.zeros(shape, np.float32)
    new = band
    while (box := geometry.bounding_box(new)) is not None:
        image = np.full(shape, how.fill_hu, np.int16)
        read = _read(box, networks, shape)
        image[read] = preprocess.preprocess_box(volume, how, read)
        with progress(title, _slices(box, networks), "slice") as bar:
            mean = mean_probability(networks, image, box, new, stats, bar.advance)
        del image
        probability[box] = np.where(new[box], mean, probability[box])
        if not searched:
            break
        mask = masks.without_islands(probability >= settings.threshold, spacing_mm)
        new = _further(mask, band, reach_mm, spacing_mm)
        band |= new
    box = geometry.bounding_box(band) or ()
    mask = _on_scan(probability[box], box, shape, volume.shape, settings.threshold)
    return masks.finished(mask, volume, settings)


def find_spine(
    network: PlaneNetwork,
    volume: Volume,
    settings: ScanSettings,
    stats: np.ndarray,
    advance: Callable[[int], object] = lambda slices: None,
) -> np.ndarray:
    """Return where a network finds the spine in slices 12 mm apart.

    Args:
        network: reads the slices.
        volume: the scan.
        settings: see `predict_scan`.
        stats: (4,) of the scan.
        advance: called with the number of slices done since the last call.

    Returns:
        (x, y, z) bool on the common grid; what a slice shows holds up to the neighbouring ones.
    """
    shape, axis = grid_shape(volume, settings), PLANES[network.plane]
    spacing_mm = _spacing_mm(volume, shape)
    levels = _searched(shape, spacing_mm, network.plane)
    how = _isotropic(settings, network.plane)
    rows, columns = (slice(0, n) for i, n in enumerate(shape) if i != axis)
    n = network.neighbours
    stack = np.concatenate(
        [
            preprocess.preprocess_box(
                volume, how, (slice(level, level + 1), rows, columns), neighbours=n
            )
            for level in levels
        ]
    )
    no_air = (stack[..., n] if n else stack) > how.fill_hu
    seen = network.predict(stack, stats, advance, no_air) >= settings.threshold
    apart = list(spacing_mm)
    apart[axis] *= levels.step
    spine = masks.without_islands(np.moveaxis(seen, 0, axis), (apart[0], apart[1], apart[2]))
    found = np.zeros(shape, bool)
    slices = slice_view(found, network.plane)
    for level, seen_there in zip(levels, slice_view(spine, network.plane), strict=True):
        slices[max(0, level - levels.step + 1) : level + levels.step] |= seen_there
    return found


def mean_probability(
    networks: Sequence[PlaneNetwork],
    image: np.ndarray,
    box: Box,
    within: np.ndarray,
    stats: np.ndarray,
    advance: Callable[[int], object] = lambda slices: None,
) -> np.ndarray:
    """Return the mean foreground probability of several networks in a box, float32.

    Args:
        networks: of any planes.
        image: (x, y, z) int16 HU on the common grid.
        box: the part to return.
        within: (x, y, z) bool, the voxels that count, see `masks.StackPredictor`.
        stats: (4,) of the scan.
        advance: called with the number of slices done since the last call.
    """
    total = np.zeros(tuple(side.stop - side.start for side in box), np.float32)
    for network in networks:
        axis = PLANES[network.plane]
        slices = box[axis]
        stack = slice_view(image, network.plane)
        found = network.predict(
            with_neighbours(stack, slices.start, slices.stop, network.neighbours),
            stats,
            advance,
            slice_view(within, network.plane)[slices],
        )
        inner = tuple(side for i, side in enumerate(box) if i != axis)
        total += np.moveaxis(found[:, *inner], 0, axis)
    return total / np.float32(len(networks))


def _around(
    found: np.ndarray, reach_mm: Sequence[float], spacing_mm: Sequence[float]
) -> np.ndarray:
    """Return where something is within a reach along each axis, (x, y, z) bool."""
    near = np.zeros_like(found)
    box = geometry.bounding_box(found)
    if box is None:
        return near
    voxels = [math.ceil(reach / mm) for reach, mm in zip(reach_mm, spacing_mm, strict=True)]
    wide = tuple(
        slice(max(0, side.start - n), side.stop + n) for side, n in zip(box, voxels, strict=True)
    )
    part = found[wide].view(np.uint8)
    for axis, n in enumerate(voxels):
        part = ndimage.maximum_filter1d(part, 2 * n + 1, axis, mode="constant")
    near[wide] = part.view(bool)
    return near


def _further(
    mask: np.ndarray, band: np.ndarray, reach_mm: Sequence[float], spacing_mm: Sequence[float]
) -> np.ndarray:
    """Return what is still to read, (x, y, z) bool, because the mask comes near the band's border.

    The border is near at half the reach.
    """
    new = _around(mask, reach_mm, spacing_mm) & ~band
    close = _around(mask, [reach / 2 for reach in reach_mm], spacing_mm) & ~band
    parts, count = ndimage.label(new)
    wanted = np.zeros(count + 1, bool)
    wanted[parts[close]] = True
    wanted[0] = False
    return wanted[parts]


def _read(box: Box, networks: Sequence[PlaneNetwork], shape: tuple[int, ...]) -> Box:
    """Return the part of a grid that the networks read for a box: all windows that touch it.

    Neighbouring slices belong to the windows.
    """
    sides = []
    for axis, (side, n) in enumerate(zip(box, shape, strict=True)):
        first, last = side.start, side.stop
        for network in networks:
            if axis == PLANES[network.plane]:
                first = min(first, side.start - network.neighbours)
                last = max(last, side.stop + network.neighbours)
            else:
                inner = [i for i in range(3) if i != PLANES[network.plane]]
                length = network.size[inner.index(axis)]
                starts = geometry.window_starts(n, length, network.overlap)
                touching = [s for s in starts if s < side.stop and s + length > side.start]
                first, last = min(first, *touching), max(last, *(s + length for s in touching))
        sides.append(slice(max(first, 0), min(last, n)))
    return tuple(sides)


def grid_shape(volume: Volume, settings: ScanSettings) -> tuple[int, int, int]:
    """Return the voxels of the common grid along x, y and z."""
    grid = preprocess.slice_geometry(volume, _isotropic(settings, "sagittal"))
    return grid.n_slices, *grid.shape


def estimate_bytes(volume: Volume, settings: ScanSettings, *, network: int = 0) -> int:
    """Return about how many bytes `predict_scan` holds at most, without the networks.

    `network` is what a network that reads the whole grid at once holds for each voxel.

    A voxel of the common grid takes two bytes for HU, twelve for probabilities (all, the mean of a
    part, and those of one network) and three for what has to be read. With n neighbouring slices it
    takes 6 n bytes more, for the scan and its mirror image. The interpolation to the scan's grid
    takes slabs of 64 MB, and `masks.finished` what it says.
    """
    voxels = math.prod(grid_shape(volume, settings))
    held = 17 + 6 * settings.neighbours + network
    return held * voxels + 6 * 2**26 + masks.finished_bytes(volume, settings)


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


def _slices(box: Box, networks: Sequence[PlaneNetwork]) -> int:
    """Return how many slices the networks read in a box."""
    sides = (box[PLANES[network.plane]] for network in networks)
    return sum(side.stop - side.start for side in sides)


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
