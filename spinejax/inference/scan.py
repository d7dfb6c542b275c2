"""Segmenting a whole scan slice by slice, in bounded memory, onto its own grid."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spinejax import geometry
from spinejax.data import normalise, preprocess
from spinejax.inference import postprocess
from spinejax.inference.islands import without_islands
from spinejax.volume import CANONICAL, PLANES, Volume

StackPredictor = Callable[[np.ndarray, np.ndarray, Callable[[int], object]], np.ndarray]
"""(stack (n, h, w) int16 HU preprocessed, stats (4,) of the scan, advance) -> (n, h, w) float32
foreground probability; `advance` is called with the number of slices done since its last call."""

FOREGROUND = 1


@dataclass(frozen=True)
class ScanSettings:
    """How a scan is predicted.

    Attributes:
        preprocess: the preprocessing that the network was trained with.
        size: (rows, columns) to which smaller slices are padded.
        normalise: intensity mode of training; some need the statistics of the whole scan.
        threshold: probability from which a voxel is foreground.
        opening_mm: radius of the opening within each slice, before anything else; 0 for none.
        min_component_ml: connected pieces below this volume are dropped; 0 keeps all.
        fill_holes: fill enclosed cavities.
        drop_islands: drop pieces away from the line of the spine, see `islands`.
    """

    preprocess: preprocess.SlicePreprocess
    size: tuple[int, int]
    normalise: str
    threshold: float
    opening_mm: float
    min_component_ml: float
    fill_holes: bool
    drop_islands: bool


def estimate_bytes(volume: Volume, settings: ScanSettings) -> int:
    """Return about how much memory `predict_scan` holds at most beside the network.

    The scan; one byte a voxel for the labels, twice (components are found on a copy; once more for
    an opened copy), and four for the numbers of the components, should predicted voxels lie in
    every corner; the slices of one slab as int16 and float32 on both grids. Classes x volume is
    never held.
    """
    grid = preprocess.slice_geometry(volume, settings.preprocess)
    native, padded = _pixels(grid, settings.size)
    slab = _slab_slices(grid, settings.size) * (8 * native + 16 * padded)
    voxels = int(np.prod(volume.shape))
    searched = settings.min_component_ml > 0 or settings.fill_holes or settings.drop_islands
    components = 4 if searched else 0
    opened = 1 if settings.opening_mm > 0 else 0
    held = volume.array.itemsize + 2 + opened + components
    return voxels * held + slab + (6 + opened) * 2**26


def _pixels(grid: preprocess.SliceGeometry, size: tuple[int, int]) -> tuple[int, int]:
    """Return the pixels of a slice on the scan's grid and, padded to the window, the network's."""
    padded = (max(grid.shape[0], size[0]), max(grid.shape[1], size[1]))
    return grid.native_shape[0] * grid.native_shape[1], padded[0] * padded[1]


def _slab_slices(grid: preprocess.SliceGeometry, size: tuple[int, int]) -> int:
    """Return how many slices fit into about 64 MB of float32 on the larger of both grids."""
    return max(1, min(grid.n_slices, 2**24 // max(_pixels(grid, size))))


def predict_scan(
    predict_stack: StackPredictor,
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
        predict_stack: probabilities of a stack of slices.
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
    labels = np.zeros(volume.shape, np.uint8)
    slices = preprocess.slice_view(labels, volume.affine, how.plane)
    for start, image, _ in preprocess.preprocess_slabs(volume, how, slab_slices=step):
        probability = predict_stack(image, stats, advance)
        restored = preprocess.restore_slices(probability, grid)
        slices[start : start + len(image)] = restored >= settings.threshold
        del probability, restored  # before the next slab needs as much
    mask = postprocess.clean(
        labels.view(bool),
        spacing_mm=volume.spacing_mm,
        opening_mm=settings.opening_mm,
        min_component_ml=settings.min_component_ml,
        fill_holes=settings.fill_holes,
        slice_axis=_slice_axis(volume, how.plane),
    )
    if settings.drop_islands:
        canonical, affine = geometry.reorient(mask, volume.affine, CANONICAL)
        kept = without_islands(canonical, geometry.spacing_mm(affine))
        mask = geometry.reorient(kept, affine, volume.orientation)[0]
    return mask.view(np.uint8) * np.uint8(FOREGROUND)


def _slice_axis(volume: Volume, plane: str) -> int:
    """Axis of `volume.array` along which slices of `plane` are stacked."""
    letters = {"L": "LR", "P": "PA", "S": "IS"}[CANONICAL[PLANES[plane]]]
    return next(axis for axis, letter in enumerate(volume.orientation) if letter in letters)
