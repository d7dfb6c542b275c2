"""The mask of the spine in a scan: slices predicted in bounded memory, then cleaned.

Sizes are in mm and ml, so that they mean the same on every grid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import ndimage

from spinejax.data import normalise, preprocess
from spinejax.geometry import bounding_box
from spinejax.volume import PLANES, Volume, slice_view


class StackPredictor(Protocol):
    """A network that reads stacks of slices."""

    def __call__(
        self,
        stack: np.ndarray,
        stats: np.ndarray,
        advance: Callable[[int], object],
        within: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the foreground probability of each pixel, (n, h, w) float32.

        Args:
            stack: (n, h, w) int16 HU, preprocessed; (n, h, w, c) for a network that sees
                neighbouring slices (`volume.with_neighbours`).
            stats: (4,) of the scan.
            advance: called with the number of slices done since the last call.
            within: (n, h, w) bool. Only its pixels count: the network need not read the others,
                whose probability may be anything, but its pixels are as if it read all.
        """
        ...


FOREGROUND = 1


@dataclass(frozen=True)
class ScanSettings:
    """Settings for the prediction of a scan.

    Attributes:
        preprocess: the preprocessing that the network was trained with.
        size: (rows, columns); smaller slices are padded to it.
        normalise: the intensity mode of training; some modes need statistics of the whole scan.
        threshold: probability from which a voxel is foreground.
        opening_mm: radius of the `opening` within each slice; 0 for none.
        min_component_ml: smaller connected components are dropped; 0 keeps all.
        fill_holes: whether to fill enclosed cavities.
        drop_islands: whether to drop components away from the spine, see `without_islands`.
        neighbours: slices on each side that the network also sees.
    """

    preprocess: preprocess.SlicePreprocess
    size: tuple[int, int]
    normalise: str
    threshold: float
    opening_mm: float
    min_component_ml: float
    fill_holes: bool
    drop_islands: bool
    neighbours: int = 0


def predict_scan(
    predict_stack: StackPredictor,
    volume: Volume,
    settings: ScanSettings,
    *,
    advance: Callable[[int], object] = lambda slices: None,
) -> np.ndarray:
    """Segment the spine of a scan.

    The scan is preprocessed, predicted and brought back to its own in-plane grid slab by slab.
    Probabilities are interpolated before they are thresholded, so that a coarse network grid leaves
    no steps. Between slabs one byte a voxel is held.

    Args:
        predict_stack: the network.
        volume: the scan, of any spacing.
        settings: see `ScanSettings`.
        advance: called with the number of slices done since the last call.

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
    rows, columns = (slice(0, side) for side in grid.shape)
    for start in range(0, grid.n_slices, step):
        box = slice(start, min(start + step, grid.n_slices)), rows, columns
        image = preprocess.preprocess_box(volume, how, box, neighbours=settings.neighbours)
        probability = predict_stack(image, stats, advance)
        restored = preprocess.restore_slices(probability, grid)
        slices[start : start + len(image)] = restored >= settings.threshold
        del probability, restored  # free the memory before the next slab needs it
    return finished(labels.view(bool), volume, settings)


def finished(mask: np.ndarray, volume: Volume, settings: ScanSettings) -> np.ndarray:
    """Return a thresholded mask (x, y, z) bool cleaned as the settings say, as uint8 labels."""
    mask = clean(
        mask,
        spacing_mm=volume.spacing_mm,
        opening_mm=settings.opening_mm,
        min_component_ml=settings.min_component_ml,
        fill_holes=settings.fill_holes,
        slice_axis=PLANES[settings.preprocess.plane],
    )
    if settings.drop_islands:
        mask = without_islands(mask, volume.spacing_mm)
    return mask.view(np.uint8) * np.uint8(FOREGROUND)


def estimate_bytes(volume: Volume, settings: ScanSettings) -> int:
    """Return about how many bytes `predict_scan` holds at most, without the network.

    They hold one slab of slices as int16 and float32 on both grids, its neighbours as int16 for the
    scan and its mirror image, and what `finished` needs.
    """
    grid = preprocess.slice_geometry(volume, settings.preprocess)
    native, padded = _pixels(grid, settings.size)
    slices = _slab_slices(grid, settings.size) + 2 * settings.neighbours
    slab = slices * (8 * native + (16 + 6 * settings.neighbours) * padded)
    return slab + 6 * 2**26 + finished_bytes(volume, settings)


def finished_bytes(volume: Volume, settings: ScanSettings) -> int:
    """Return about how many bytes the scan and `finished` hold at most.

    They are the scan, two labels of one byte a voxel (three with an opening, and its slabs), and
    the numbers of the connected components (at most four bytes a voxel).
    """
    searched = settings.min_component_ml > 0 or settings.fill_holes or settings.drop_islands
    components = 4 if searched else 0
    opened = 1 if settings.opening_mm > 0 else 0
    held = volume.array.itemsize + 2 + opened + components
    return int(np.prod(volume.shape)) * held + opened * 2**26


def _pixels(grid: preprocess.SliceGeometry, size: tuple[int, int]) -> tuple[int, int]:
    """Return the pixels of a slice on the scan's grid, and on the network's padded grid."""
    padded = (max(grid.shape[0], size[0]), max(grid.shape[1], size[1]))
    return grid.native_shape[0] * grid.native_shape[1], padded[0] * padded[1]


def _slab_slices(grid: preprocess.SliceGeometry, size: tuple[int, int]) -> int:
    """Return how many slices fit into 64 MB of float32 on the larger of the two grids."""
    return max(1, min(grid.n_slices, 2**24 // max(_pixels(grid, size))))


# Spacings come from float32 affines; a voxel at exactly the radius must stay despite rounding.
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
    """Open a mask, drop its small components, and fill its cavities, in this order.

    Paper B, section II.E, applies "simple morphological operations" and does not name them. The
    order matters: the opening cuts the bridges between specks and spine, so that the specks become
    small components. Components and cavities are 3D: in an axial slice the vertebral canal is an
    enclosed hole, which must stay open.

    Args:
        mask: (x, y, z) bool.
        spacing_mm: voxel size along each axis.
        opening_mm: radius of `opening`; 0 for none.
        min_component_ml: smaller connected components are dropped; 0 keeps all.
        fill_holes: whether to fill enclosed cavities.
        slice_axis: the `axis` of `opening`.

    Returns:
        (x, y, z) bool; `mask` itself where nothing changes.
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
    """Return the morphological opening of a mask by a ball: the union of all balls inside it.

    A ball holds the voxels whose centres lie within `radius_mm` of its centre; 1.5 pixels make a
    square of 3 x 3. Beyond the border of the scan the mask continues as it ends there, so that the
    opening removes nothing at the border. The function works slab by slab and needs some 100 MB
    beside the result.

    Args:
        mask: (x, y, z) bool.
        spacing_mm: voxel size along each axis.
        radius_mm: of the ball; if it is below the spacing of every axis, `mask` itself is returned.
        axis: the axis along which slices are stacked, to open each slice by itself (the ball is a
            disc); None opens the volume.
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
    # An opening looks at no voxel further away than the diameter of the ball.
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
    """Return a mask without its 26-connected components smaller than `min_ml`.

    The function needs four bytes for each voxel of the box around the foreground, and one for each
    voxel of the mask.

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
    for part in components:  # slice by slice, because bincount copies its input to 8 bytes each
        sizes += np.bincount(part.ravel(), minlength=count + 1)
    keep = sizes * (float(np.prod(spacing_mm)) / 1000.0) >= min_ml
    keep[0] = False
    result = np.zeros_like(mask)
    for target, part in zip(result[box], components, strict=True):
        target[...] = keep[part]
    return result


def fill_cavities(mask: np.ndarray) -> np.ndarray:
    """Return a mask (x, y, z) bool with its enclosed 3D cavities filled.

    The result is that of `scipy.ndimage.binary_fill_holes`, which is slow in large scans: it grows
    the outside voxel by voxel. The function needs four bytes for each voxel of the box around the
    foreground, and one for each voxel of the mask.
    """
    box = bounding_box(mask)
    if box is None:
        return mask
    outside, count = ndimage.label(~mask[box])
    cavity = np.ones(count + 1, bool)
    cavity[0] = False
    for axis in range(3):
        for end in (0, -1):
            cavity[outside.take(end, axis)] = False
    if not cavity.any():
        return mask
    result = mask.copy()
    for target, part in zip(result[box], outside, strict=True):
        target |= cavity[part]
    return result


# Limits of the distance between a component and the line of the spine.
_BESIDE_MM = 40.0  # beside the line, which runs through bodies and arches
_BEYOND_MM = 30.0  # above or below the line, where the spine may continue after a gap,
_PER_MM = 0.35  # and so much more for each mm of height, because the spine may curve
_SMOOTH_MM = 12.0  # the line is smoothed along the body
_END_MM = 80.0  # this much of each end tells where the line continues, and at most this far


def without_islands(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Return a mask without the components that lie away from the spine.

    A network of slices mistakes hips and the wings of the pelvis for vertebrae where a slice shows
    no spine. Such an island may be as large as a vertebra, so its place decides. The largest
    26-connected component is spine. Its line runs through its centres of mass from slice to slice
    and continues straight beyond its ends. The other components follow, the nearest in height
    first. One stays if its centre of mass is at most 40 mm from the line, or, above or below the
    line, at most 30 mm plus 0.35 mm for each mm of height; the line then runs through it, too.

    The function needs four bytes for each voxel of the box around the foreground, and one for each
    voxel of the mask.

    Args:
        mask: (x, y, z) bool, canonical: z grows towards the head.
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
        # Components between the ends are taken together, those beyond one by one, each measured
        # from the new end.
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
    """Return the slices (n,) of a component, its centre of mass (n, 3) in mm and voxels there."""
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
    """The place of the spine at each height, in mm."""

    def __init__(self, profiles: list[_Profile], spacing_mm: float) -> None:
        level, points, voxels = (np.concatenate(part) for part in zip(*profiles, strict=True))
        found = np.unique(level)
        sums = [
            np.bincount(level - found[0], voxels * values)
            for values in (np.ones(len(level)), points[:, 0], points[:, 1])
        ]
        # A single slice may show only a process, so smooth over several.
        smooth = ndimage.gaussian_filter1d(sums, _SMOOTH_MM / spacing_mm, mode="constant")
        total, *sums = smooth[:, found - found[0]]
        self._heights = found * spacing_mm
        self._places = [axis / total for axis in sums]
        self._weight = np.sqrt(total)

    def beyond(self, z: float) -> float:
        """Return how far a height lies beyond the ends; 0 between them."""
        return float(max(self._heights[0] - z, z - self._heights[-1], 0.0))

    def holds(self, centre: np.ndarray) -> bool:
        """Return whether a component with this centre (3,) is near enough to be spine."""
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
