"""Cleaning a predicted mask; sizes are in mm and ml, so that they mean the same on every grid.

Islands: parts of a mask that lie away from the line of the spine, as hips and ribs do.

Networks that segment slices take joints and the wings of the pelvis for vertebrae where a slice
shows nothing else. Such pieces are as large as a vertebra, so that their volume does not give them
away, but the spine is the largest of all, and they lie beside where it goes on.

Segmenting a whole scan slice by slice, in bounded memory, onto its own grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from spinejax.data import normalise, preprocess
from spinejax.geometry import bounding_box
from spinejax.volume import PLANES, Volume, slice_view

# Spacings come from float32 affines: a voxel at exactly the radius must not drop out by rounding.
_ROUNDING_MM = 1e-5
_SLAB_VOXELS = 2**24


def clean(
    mask: np.ndarray,
    *,
    spacing_mm: tuple[float, float, float],
    opening_mm: float,
    min_component_ml: float,
    fill_holes: bool,
    slice_axis: int | None,
) -> np.ndarray:
    """Return `mask` opened, then without small components, then with its cavities filled.

    Paper B, section II.E, applies "simple morphological operations" to the predicted image and
    names none. The order matters: opening cuts the bridges that tie specks to the spine, so that
    they are small components afterwards, and only what is kept is worth filling. Components and
    cavities are those of the volume: in axial slices the vertebral canal is an enclosed hole,
    which filling slice by slice would close.

    Args:
        mask: (x, y, z) bool.
        spacing_mm: voxel size along each axis.
        opening_mm: radius of `opening`; 0 for none.
        min_component_ml: volume of the smallest component to be kept; 0 keeps all.
        fill_holes: whether to fill cavities.
        slice_axis: see `opening`.
    """
    mask = opening(mask, spacing_mm=spacing_mm, radius_mm=opening_mm, axis=slice_axis)
    mask = remove_small_components(mask, spacing_mm=spacing_mm, min_ml=min_component_ml)
    return fill_cavities(mask) if fill_holes else mask


def opening(
    mask: np.ndarray,
    *,
    spacing_mm: tuple[float, float, float],
    radius_mm: float,
    axis: int | None,
) -> np.ndarray:
    """Return the morphological opening of `mask`: the union of the elements that fit into it.

    The element is made of the voxels whose centres lie within `radius_mm` of its middle. Beyond
    the border of the scan the mask is taken to go on as it ends there, so that what the border
    cuts is not eaten away from it. A square of 3 x 3 pixels is a radius of 1.5 pixels.

    Works slab by slab: beside the result it needs some 100 MB.

    Args:
        mask: (x, y, z) bool.
        spacing_mm: voxel size along each axis.
        radius_mm: of the element; below the spacing of every axis used, `mask` itself is returned.
        axis: axis along which slices are stacked, each opened by itself; None opens the volume.
    """
    reach = [int((radius_mm + _ROUNDING_MM) / spacing) for spacing in spacing_mm]
    if axis is not None:
        reach[axis] = 0
    box = bounding_box(mask)
    if box is None or not any(reach):
        return mask
    offsets = np.ogrid[tuple(slice(-r, r + 1) for r in reach)]
    squares = [(offset * s) ** 2 for offset, s in zip(offsets, spacing_mm, strict=True)]
    element = squares[0] + squares[1] + squares[2] <= (radius_mm + _ROUNDING_MM) ** 2
    # Elements of a voxel's own and of its neighbours' erosion: nothing farther has a say in it.
    halo = [2 * r for r in reach]
    along = 2 if axis is None else axis
    sides = [side.stop - side.start + 2 * h for side, h in zip(box, halo, strict=True)]
    step = max(1, 2 * halo[along], _SLAB_VOXELS * sides[along] // int(np.prod(sides)))
    result = np.zeros_like(mask)
    for start in range(box[along].start, box[along].stop, step):
        target = list(box)
        target[along] = slice(start, min(start + step, box[along].stop))
        # Indices beyond the border repeat the outermost voxels.
        wide = [
            np.clip(np.arange(side.start - h, side.stop + h), 0, n - 1)
            for side, h, n in zip(target, halo, mask.shape, strict=True)
        ]
        opened = ndimage.binary_opening(mask[np.ix_(*wide)], element)
        inner = [slice(h, n - h) for h, n in zip(halo, opened.shape, strict=True)]
        result[tuple(target)] = opened[tuple(inner)]
    return result


def remove_small_components(
    mask: np.ndarray, *, spacing_mm: tuple[float, float, float], min_ml: float
) -> np.ndarray:
    """Return `mask` without the 26-connected components smaller than `min_ml`.

    Needs four bytes for each voxel of the box around the foreground, and one for each of the mask.

    Args:
        mask: (x, y, z) bool.
        spacing_mm: voxel size along each axis.
        min_ml: volume in millilitres; 0 returns the mask unchanged.
    """
    box = bounding_box(mask)
    if box is None or min_ml <= 0:
        return mask
    components, count = ndimage.label(mask[box], structure=np.ones((3, 3, 3), bool))
    sizes = np.zeros(count + 1, np.int64)
    for part in components:  # at once, counting would copy all of them to eight bytes each
        sizes += np.bincount(part.ravel(), minlength=count + 1)
    keep = sizes * (float(np.prod(spacing_mm)) / 1000.0) >= min_ml
    keep[0] = False
    result = np.zeros_like(mask)
    for target, part in zip(result[box], components, strict=True):
        target[...] = keep[part]
    return result


def fill_cavities(mask: np.ndarray) -> np.ndarray:
    """Return `mask` (x, y, z) bool with its enclosed 3D cavities filled (scipy's definition)."""
    box = bounding_box(mask)
    if box is None:
        return mask
    result = mask.copy()
    result[box] = ndimage.binary_fill_holes(mask[box])
    return result


_BESIDE_MM = 40.0  # processes reach this far from the line, which leads through bodies and arches
_BEYOND_MM = 30.0  # where the spine goes on after a gap,
_PER_MM = 0.35  # and how much farther it may curve away for every mm of height
_SMOOTH_MM = 12.0  # of the line
_END_MM = 80.0  # of the line, from which it goes on straight, no farther than this


def without_islands(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Return `mask` without the connected pieces that lie away from the line of the spine.

    The largest 26-connected component is spine; its line leads through its centres of mass from
    slice to slice, and straight on beyond its ends. Of the others, the nearest in height first,
    those stay whose centre of mass is at most 40 mm from that line, or, above or below it, at most
    30 mm and 0.35 mm more for each mm of distance, and the line then leads through them, too.

    Needs four bytes for each voxel of the box around the foreground, and one for each of the mask.

    Args:
        mask: (x, y, z) bool, canonical (volume.py): z runs along the body.
        spacing_mm: voxel size along each axis.
    """
    box = bounding_box(mask)
    if box is None:
        return mask
    components, count = ndimage.label(mask[box], structure=np.ones((3, 3, 3), bool))
    if count < 2:
        return mask
    profiles = [
        _profile(components[place] == i, place, spacing_mm)
        for i, place in enumerate(ndimage.find_objects(components), start=1)
    ]
    sizes = np.array([profile[2].sum() for profile in profiles])
    centres = np.array([np.average(p, axis=0, weights=w) for _, p, w in profiles])
    spine = [int(sizes.argmax())]
    left = set(range(count)) - set(spine)
    while left:
        line = _Line([profiles[i] for i in spine], spacing_mm[2])
        # All that lie between the ends at once, those beyond one by one, each from the new end.
        beyond = {i: line.beyond(centres[i, 2]) for i in left}
        least = min(beyond.values())
        near = [i for i in left if beyond[i] == least]
        spine += [i for i in near if line.holds(centres[i])]
        left -= set(near)
    keep = np.zeros(count + 1, bool)
    keep[np.add(spine, 1)] = True
    result = np.zeros_like(mask)
    for target, part in zip(result[box], components, strict=True):
        target[...] = keep[part]
    return result


_Profile = tuple[np.ndarray, np.ndarray, np.ndarray]


def _profile(
    own: np.ndarray, place: tuple[slice, ...], spacing_mm: tuple[float, float, float]
) -> _Profile:
    """Slices (n,) of a piece, its centres of mass there (n, 3) in mm, and voxels (n,)."""
    beside = own.sum(1), own.sum(0)  # (x, z), (y, z)
    voxels = beside[0].sum(0)
    found = np.flatnonzero(voxels)
    points = [
        (np.arange(side.start, side.stop) @ counts)[found] / voxels[found] * mm
        for side, counts, mm in zip(place, beside, spacing_mm, strict=False)
    ]
    level = found + place[2].start
    return level, np.stack([*points, level * spacing_mm[2]], 1), voxels[found]


class _Line:
    """Where the spine is at each height, mm."""

    def __init__(self, profiles: list[_Profile], spacing_mm: float) -> None:
        level, points, voxels = (np.concatenate(part) for part in zip(*profiles, strict=True))
        found = np.unique(level)
        sums = [
            np.bincount(level - found[0], voxels * values)
            for values in (np.ones(len(level)), points[:, 0], points[:, 1])
        ]
        # Single slices may show nothing but a process.
        smooth = ndimage.gaussian_filter1d(sums, _SMOOTH_MM / spacing_mm, mode="constant")
        total, *sums = smooth[:, found - found[0]]
        self._heights = found * spacing_mm
        self._places = [axis / total for axis in sums]
        self._weight = np.sqrt(total)

    def beyond(self, z: float) -> float:
        """How far a height lies beyond the ends, 0 between them."""
        return float(max(self._heights[0] - z, z - self._heights[-1], 0.0))

    def holds(self, centre: np.ndarray) -> bool:
        """Whether a piece with this centre lies where the spine is, or goes on."""
        heights, beyond = self._heights, self.beyond(centre[2])
        if beyond == 0.0:
            at = [np.interp(centre[2], heights, axis) for axis in self._places]
            limit = _BESIDE_MM
        else:
            end = heights[0] if centre[2] < heights[0] else heights[-1]
            near = np.abs(heights - end) <= _END_MM
            degree = 1 if np.count_nonzero(near) > 2 else 0
            away = float(np.clip(centre[2] - end, -_END_MM, _END_MM))
            at = [
                np.polyval(
                    np.polyfit(heights[near] - end, axis[near], degree, w=self._weight[near]), away
                )
                for axis in self._places
            ]
            limit = _BEYOND_MM + _PER_MM * beyond
        return bool(np.hypot(*(centre[:2] - at)) <= limit)


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
    """Return the binary spine mask of a scan.

    Slices are preprocessed, predicted and brought back to the scan's in-plane grid slab by slab;
    the probabilities are interpolated and then thresholded, so that a coarser network grid does not
    leave steps. What is kept is one byte a voxel.

    Args:
        predict_stack: probabilities of a stack of slices.
        volume: the scan, of any spacing.
        settings: as in training.
        advance: called with the number of slices done, for a progress bar.

    Returns:
        (x, y, z) uint8 on the grid of `volume.array`: 1 is spine, 0 background.
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
    slices = slice_view(labels, how.plane)
    for start, image, _ in preprocess.preprocess_slabs(volume, how, slab_slices=step):
        probability = predict_stack(image, stats, advance)
        restored = preprocess.restore_slices(probability, grid)
        slices[start : start + len(image)] = restored >= settings.threshold
        del probability, restored  # before the next slab needs as much
    mask = clean(
        labels.view(bool),
        spacing_mm=volume.spacing_mm,
        opening_mm=settings.opening_mm,
        min_component_ml=settings.min_component_ml,
        fill_holes=settings.fill_holes,
        slice_axis=PLANES[how.plane],
    )
    if settings.drop_islands:
        mask = without_islands(mask, volume.spacing_mm)
    return mask.view(np.uint8) * np.uint8(FOREGROUND)
