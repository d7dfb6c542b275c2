"""Outlines of named vertebrae: a network sees each vertebra in a cube of its own.

This is the third step of Payer et al. (VISAPP 2020). Earlier networks have named the vertebrae and
found their centres; names and the set of vertebrae stay as they are. The network gives for each
voxel of a cube the probability that it belongs to the vertebra whose centre is marked. The
probabilities are interpolated to the scan's own grid, where each voxel takes the vertebra of the
highest one.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from spinejax import geometry
from spinejax.data import feeds, normalise, preprocess
from spinejax.data.preprocess import SliceGeometry, SlicePreprocess
from spinejax.inference.devices import behind, fetch, over_local_devices
from spinejax.inference.windows3d import Size
from spinejax.metrics.body_centres import body_centres
from spinejax.volume import Volume

Outliner = Callable[[np.ndarray, np.ndarray], Any]
"""(image (b, x, y, z) int16 HU preprocessed, stats (4,) of the scan) -> (b, x, y, z) float32
probability, of numpy or jax, that a voxel belongs to the vertebra that the cube is about."""


@dataclass(frozen=True)
class OutlineSettings:
    """Settings for outlining vertebrae.

    Attributes:
        preprocess: the preprocessing that the network was trained with, mode "isotropic".
        normalise: the intensity mode of training; some modes need statistics of the whole scan.
        size: (x, y, z) voxels of a cube.
        shift_mm: (back, up) from the centre of a vertebral body to the centre of its cube.
        batch_size: cubes in one call.
        threshold: probability from which a voxel belongs to a vertebra.
    """

    preprocess: SlicePreprocess
    normalise: str
    size: Size
    shift_mm: tuple[float, float]
    batch_size: int
    threshold: float


LEAST_SHARE = 0.2
"""A vertebra of which the network finds less than this share of the earlier outline's volume keeps
the earlier outline."""

_CHUNK = 16  # slices that are interpolated together


def outline(
    predict: Outliner,
    volume: Volume,
    labels: np.ndarray,
    centroids: Mapping[int, np.ndarray],
    settings: OutlineSettings,
    *,
    advance: Callable[[int], object] = lambda cubes: None,
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Outline the named vertebrae of a scan anew.

    Where the network finds (almost) nothing of a vertebra, and outside its cube, the earlier
    outline stays. Beside the scan, the function holds five bytes for each voxel of the box around
    all cubes.

    Args:
        predict: the network.
        volume: the scan, of any spacing.
        labels: (x, y, z) uint8 VerSe ids of the earlier networks on the grid of `volume.array`.
        centroids: VerSe id -> (3,) voxel index there of the centre of the vertebra's body.
        settings: see `OutlineSettings`.
        advance: called with the number of cubes done since the last call.

    Returns:
        New labels and centroids of the same vertebrae.
    """
    if not centroids:
        return labels, dict(centroids)
    box = _box(volume, np.array(list(centroids.values())), settings)
    corner = np.array([side.start for side in box])
    moved = volume.affine.copy()
    moved[:3, 3] += moved[:3, :3] @ corner
    part = Volume(volume.array[box], moved)
    grid = preprocess.slice_geometry(part, settings.preprocess)
    slabs = preprocess.preprocess_slabs(part, settings.preprocess)
    image = np.concatenate([hu for _, hu, _ in slabs])
    stats = np.zeros(4, np.float32)
    if settings.normalise in normalise.NEED_STATS:
        whole = preprocess.preprocess_slabs(volume, settings.preprocess)
        stats = normalise.scan_stats(hu for _, hu, _ in whole)
    starts = {
        verse_id: _start(centroids[verse_id] - corner, part, grid, settings)
        for verse_id in sorted(centroids)
    }
    old = labels[box]
    kept = old.copy()
    new = np.zeros_like(old)
    below = np.nextafter(np.float16(settings.threshold), np.float16(-1))
    best = np.full(old.shape, below)
    ids = list(starts)

    def calls(image: np.ndarray) -> Iterator[tuple[list[int], Any]]:
        for at in range(0, len(ids), settings.batch_size):
            chunk = ids[at : at + settings.batch_size]
            # A short last batch is filled up with its first cube.
            full = chunk + chunk[:1] * (settings.batch_size - len(chunk))
            fill = settings.preprocess.fill_hu
            cubes = [feeds.window(image, starts[i], settings.size, fill) for i in full]
            yield chunk, predict(np.stack(cubes), stats)

    for chunk, batch in behind(calls(image)):
        for verse_id, found in zip(chunk, fetch(batch), strict=False):
            least = LEAST_SHARE * np.count_nonzero(old == verse_id) * part.voxel_ml
            if np.count_nonzero(found >= settings.threshold) * _voxel_ml(grid) >= least:
                _add(verse_id, found, starts[verse_id], image.shape, (best, new, kept))
        advance(len(chunk))
    del image, best
    merged = np.where(new > 0, new, kept)
    # A vertebra that lost every voxel to its neighbours gets its earlier outline back.
    while lost := set(ids) - set(np.unique(merged).tolist()):
        again = np.isin(old, list(lost))
        merged[again] = old[again]
    result = labels.copy()
    result[box] = merged
    places = body_centres(merged, part.spacing_mm)
    return result, {i: places[i] + corner for i in centroids if i in places}


def _box(
    volume: Volume, centres: np.ndarray, settings: OutlineSettings
) -> tuple[slice, slice, slice]:
    """Return the part of the scan that holds the cubes about `centres` (n, 3)."""
    how = settings.preprocess
    margin_mm = 4 * how.smoothing_sigma_mm + 2 * how.spacing_mm
    sides = []
    for axis, shift_mm in enumerate((0.0, *settings.shift_mm)):
        mm = volume.spacing_mm[axis]
        half_mm = settings.size[axis] * how.spacing_mm / 2 + margin_mm
        first = math.floor(centres[:, axis].min() + (shift_mm - half_mm) / mm)
        last = math.ceil(centres[:, axis].max() + (shift_mm + half_mm) / mm)
        n = volume.shape[axis]
        sides.append(slice(min(max(0, first), n - 1), max(1, min(n, last + 1))))
    x, y, z = sides
    return x, y, z


def _start(
    centre: np.ndarray, part: Volume, grid: SliceGeometry, settings: OutlineSettings
) -> tuple[int, int, int]:
    """Return the first voxel of a cube on the preprocessed grid; `centre` (3,) in voxels."""
    shape = np.array([grid.n_slices, *grid.shape])
    there = (centre + 0.5) * (shape / part.shape) - 0.5
    spacing_mm = np.array([grid.slice_spacing_mm, *grid.spacing_mm])
    middle = there + np.array([0.0, *settings.shift_mm]) / spacing_mm
    x, y, z = np.rint(middle - (np.array(settings.size) - 1) / 2).astype(int).tolist()
    return x, y, z


def _voxel_ml(grid: SliceGeometry) -> float:
    return grid.slice_spacing_mm * math.prod(grid.spacing_mm) / 1000.0


def _add(
    verse_id: int,
    found: np.ndarray,
    start: tuple[int, int, int],
    shape: tuple[int, ...],
    into: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Write a vertebra where it is more probable than those before it.

    Args:
        verse_id: of the vertebra.
        found: (x, y, z) float32 probabilities in its cube.
        start: first voxel of the cube on the preprocessed grid.
        shape: of that grid.
        into: best probability, its vertebra, and the earlier labels that stay, all on the scan's
            grid.
    """
    rows, columns, levels = (
        _inside(native, wanted, first, side)
        for native, wanted, first, side in zip(
            into[0].shape, shape, start, found.shape, strict=True
        )
    )
    values = geometry.at(geometry.at(found, 1, columns[1]), 2, levels[1])
    for at in range(0, len(rows[1]), _CHUNK):
        first = rows[0].start + at
        centres = rows[1][at : at + _CHUNK]
        place = slice(first, first + len(centres)), columns[0], levels[0]
        best, new, kept = (array[place] for array in into)
        probability = geometry.at(values, 0, centres).astype(np.float16)
        wins = probability > best
        best[wins] = probability[wins]
        new[wins] = verse_id
        kept[kept == verse_id] = 0


def _inside(native: int, wanted: int, start: int, side: int) -> tuple[slice, np.ndarray]:
    """Return the voxels of the scan within a cube along one axis, and their indices in the cube."""
    centres = geometry.centres_of(wanted, native) - start
    within = np.flatnonzero((centres > -0.5) & (centres < side - 0.5))
    if not within.size:
        return slice(0, 0), centres[:0]
    chosen = slice(int(within[0]), int(within[-1]) + 1)
    return chosen, np.clip(centres[chosen], 0, side - 1)


def make_outliner(
    probability: Callable[[Mapping[str, Any], jax.Array, jax.Array], jax.Array],
    variables: Mapping[str, Any],
    *,
    batch_size: int,
) -> tuple[Outliner, int]:
    """Compile a network that outlines, each batch divided among all local devices.

    Args:
        probability: (variables, image (b, x, y, z) HU, stats (b, 4)) -> (b, x, y, z).
        variables: of the network.
        batch_size: cubes in a call, rounded up to a multiple of the number of devices.

    Returns:
        The outliner, and the number of cubes in a call.
    """
    compiled, rows = over_local_devices(probability, variables, batch_size)

    def predict(image: np.ndarray, stats: np.ndarray) -> jax.Array:
        return compiled(image, np.tile(stats, (rows, 1)))

    return predict, rows
