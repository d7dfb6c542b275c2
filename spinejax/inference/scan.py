"""Segmenting a whole scan slice by slice, in bounded memory, onto its own grid."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spinejax.data import normalise, preprocess
from spinejax.inference import postprocess, sliding_window
from spinejax.volume import Volume

Network = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(image (b, h, w) int16 HU preprocessed, stats (b, 4)) -> (b, h, w) float32 probability."""

FOREGROUND = 1


@dataclass(frozen=True)
class ScanSettings:
    """How a scan is predicted.

    Attributes:
        preprocess: the preprocessing that the network was trained with.
        size: (rows, columns) of the network's input.
        normalise: intensity mode of training; some need the statistics of the whole scan.
        batch_size: windows in one call of the network.
        overlap: share of a window that neighbours have in common.
        threshold: probability from which a voxel is foreground.
        min_component_ml: connected pieces below this volume are dropped; 0 keeps all.
        fill_holes: fill enclosed cavities.
    """

    preprocess: preprocess.SlicePreprocess
    size: tuple[int, int]
    normalise: str
    batch_size: int
    overlap: float
    threshold: float
    min_component_ml: float
    fill_holes: bool


def estimate_bytes(volume: Volume, settings: ScanSettings) -> int:
    """Return about how much memory `predict_scan` holds at most beside the network.

    The scan; one byte a voxel for the labels, twice (components are found on a copy), and four for
    the numbers of the components, should predicted voxels lie in every corner; the slices of one
    slab as int16 and float32 on both grids. Classes x volume is never held.
    """
    grid = preprocess.slice_geometry(volume, settings.preprocess)
    native, padded = _pixels(grid, settings.size)
    slab = _slab_slices(grid, settings.size) * (8 * native + 16 * padded)
    voxels = int(np.prod(volume.shape))
    components = 4 if settings.min_component_ml > 0 or settings.fill_holes else 0
    return voxels * (volume.array.itemsize + 2 + components) + slab + 6 * 2**26


def _pixels(grid: preprocess.SliceGeometry, size: tuple[int, int]) -> tuple[int, int]:
    """Return the pixels of a slice on the scan's grid and, padded to the window, the network's."""
    padded = (max(grid.shape[0], size[0]), max(grid.shape[1], size[1]))
    return grid.native_shape[0] * grid.native_shape[1], padded[0] * padded[1]


def _slab_slices(grid: preprocess.SliceGeometry, size: tuple[int, int]) -> int:
    """Return how many slices fit into about 64 MB of float32 on the larger of both grids."""
    return max(1, min(grid.n_slices, 2**24 // max(_pixels(grid, size))))


def predict_scan(
    network: Network,
    volume: Volume,
    settings: ScanSettings,
    *,
    advance: Callable[[int], object] = lambda slices: None,
) -> np.ndarray:
    """Return the binary spine mask of a scan on its own grid.

    Slices are preprocessed, predicted and brought back to the scan's in-plane grid slab by slab;
    the probabilities are interpolated and then thresholded, so that a coarser network grid does not
    leave steps. What is kept is one byte a voxel.

    Args:
        network: probabilities of a batch of windows.
        volume: the scan, any orientation and spacing.
        settings: as in training.
        advance: called with the number of slices done, for a progress bar.

    Returns:
        (x, y, z) uint8 in the order of `volume.array`: 1 is spine, 0 background.
    """
    how = settings.preprocess
    grid = preprocess.slice_geometry(volume, how)
    step = _slab_slices(grid, settings.size)
    stats = np.zeros(4, np.float32)
    if settings.normalise in normalise.NEED_STATS:
        stats = normalise.scan_stats(
            image for _, image, _ in preprocess.preprocess_slabs(volume, how, slab_slices=step)
        )
    batch_stats = np.tile(stats, (settings.batch_size, 1))
    labels = np.zeros(volume.shape, np.uint8)
    slices = preprocess.slice_view(labels, volume.affine, how.plane)
    for start, image, _ in preprocess.preprocess_slabs(volume, how, slab_slices=step):
        probability = sliding_window.predict_stack(
            lambda batch: network(batch, batch_stats),
            image,
            window=settings.size,
            overlap=settings.overlap,
            batch_size=settings.batch_size,
            fill=int(how.clamp_hu[0]),
            advance=advance,
        )
        restored = preprocess.restore_slices(probability, grid)
        slices[start : start + len(image)] = restored >= settings.threshold
        del probability, restored  # before the next slab needs as much
    mask = labels.view(bool)
    mask = postprocess.remove_small_components(
        mask, spacing_mm=volume.spacing_mm, min_ml=settings.min_component_ml
    )
    if settings.fill_holes:
        mask = postprocess.fill_holes(mask)
    return mask.view(np.uint8) * np.uint8(FOREGROUND)
