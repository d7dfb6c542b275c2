"""Naming the vertebrae of a scan: a network of cubes in windows, and the sequence decoder.

This is the second step of paper A (Saeed et al. 2023, sections 3.1 and 3.8). The first step
segments the spine. Its mask may restrict the second step to a box ("crop") or be an input of the
network beside the image ("channel"). The mask then also gives the outlines, and the second step
gives them names. If the network predicts the centres of vertebrae, the second step also completes
vertebrae that the mask covers only partly.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy import ndimage

from spinejax import geometry, labels
from spinejax.data import normalise, preprocess
from spinejax.data.preprocess import SlicePreprocess
from spinejax.inference import windows3d
from spinejax.inference.instances import Instances, find_instances
from spinejax.inference.sequence import Calibration, Record, label_instances
from spinejax.inference.windows3d import Classes, CubePredictor, Size, predict_moved
from spinejax.metrics.body_centres import body_centres
from spinejax.volume import LabelVolume, Volume


@dataclass(frozen=True)
class CubeSettings:
    """Settings for naming the vertebrae of a scan.

    Attributes:
        preprocess: the preprocessing that the network was trained with, mode "isotropic".
        normalise: the intensity mode of training; some modes need statistics of the whole scan.
        window: (x, y, z) voxels of a cube.
        overlap: least share of a window that the next window covers again, in [0, 1).
        batch_size: windows in one call.
        shifts: number of grids along each axis. The network reads the scan once on every grid; the
            grids are shifted by equal parts of a voxel and together make a finer grid, on which
            the vertebrae are found.
        prior: how the mask of the spine is used: "none", "crop" or "channel".
        offsets: whether the network also predicts the offset to each voxel's vertebral centre.
        margin_mm: margin around the box of the mask.
        anomalies: the variants that the decoder allows, of `sequence.ANOMALIES`.
        calibration: how far the network's names can be trusted.
        drop_cut: whether to leave out vertebrae that an end of the scan cuts, as VerSe does.
    """

    preprocess: SlicePreprocess
    normalise: str
    window: Size
    overlap: float
    batch_size: int
    shifts: int
    prior: str
    offsets: bool
    margin_mm: float
    anomalies: Collection[str]
    calibration: Calibration
    drop_cut: bool

    @property
    def sampling(self) -> SlicePreprocess:
        """The preprocessing onto the fine grid of all shifts."""
        return replace(self.preprocess, spacing_mm=self.preprocess.spacing_mm / self.shifts)


@dataclass(frozen=True, eq=False)
class Vertebrae:
    """Named vertebrae of a scan.

    Attributes:
        labels: (x, y, z) uint8 VerSe ids on the grid of the scan's `array`.
        centroids: VerSe id -> (3,) voxel index there of the body's centre.
        record: the decisions of the decoder; None where no vertebra was found.
    """

    labels: np.ndarray
    centroids: dict[int, np.ndarray]
    record: Record | None


@dataclass(frozen=True, eq=False)
class _Part:
    """The box of a scan that is read.

    Attributes:
        volume: a view of the box.
        start: index of its first voxel in the scan.
        whole: voxels of the scan along each axis.
        grid: of its slices on the fine grid of all shifts.
    """

    volume: Volume
    start: tuple[int, int, int]
    whole: tuple[int, int, int]
    grid: preprocess.SliceGeometry

    @property
    def shape(self) -> Size:
        """Voxels of the fine grid along each axis."""
        return (self.grid.n_slices, *self.grid.shape)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size of the fine grid along each axis."""
        return (self.grid.slice_spacing_mm, *self.grid.spacing_mm)


def label_scan(
    predict: CubePredictor,
    volume: Volume,
    spine: np.ndarray | None,
    settings: CubeSettings,
    *,
    advance: Callable[[int], object] = lambda windows: None,
) -> Vertebrae:
    """Name the vertebrae of a scan.

    Args:
        predict: the network.
        volume: the scan, of any spacing.
        spine: (x, y, z) mask of the first step on the grid of `volume.array`, or None without one.
        settings: see `CubeSettings`.
        advance: called with the number of windows done since the last call.

    Returns:
        Labels, centroids and record; empty labels where there is no spine.
    """
    used = None if settings.prior == "none" else spine
    array = np.zeros(volume.shape, np.uint8)
    part = _part(volume, used, settings)
    if part is None:
        return Vertebrae(array, {}, None)
    stats = np.zeros(4, np.float32)
    if settings.normalise in normalise.NEED_STATS:
        slabs = preprocess.preprocess_slabs(volume, settings.preprocess)
        stats = normalise.scan_stats(image for _, image, _ in slabs)
    image, mask = _stack(part, used, settings)
    classes = predict_moved(
        predict,
        image,
        mask,
        stats,
        shifts=settings.shifts,
        window=settings.window,
        overlap=settings.overlap,
        batch_size=settings.batch_size,
        fill=settings.preprocess.fill_hu,
        offsets=settings.offsets,
        advance=advance,
    )
    del image
    height_mm = part.volume.spacing_mm[2]
    top = part.whole[2] - part.start[2] - part.volume.shape[2]
    find = partial(
        find_instances,
        classes.first,
        part.spacing_mm,
        offsets_mm=classes.offsets_mm,
        beyond_mm=(top * height_mm, part.start[2] * height_mm),
    )
    within = None if mask is None else mask > 0
    added = None
    if within is not None and classes.offsets_mm is not None:
        added = _missed_parts(find(), within)
        within |= added
    instances = find(spine=within)
    named = label_instances(
        instances,
        class_sums=_evidence(classes, instances),
        anomalies=settings.anomalies,
        calibration=settings.calibration,
        drop_cut=settings.drop_cut,
    )
    if not named.record.labels:
        return Vertebrae(array, {}, None)
    inner = _inner(array, part)
    outline = None if used is None else _inner(used, part)
    reach_mm = 2.0 * settings.shifts * max(part.spacing_mm)
    _restore(named.array, instances.array > 0, part, outline, added, inner, reach_mm)
    found = body_centres(inner, part.volume.spacing_mm)
    centroids = {
        label: found[label] + part.start for label in named.record.labels if label in found
    }
    return Vertebrae(array, centroids, named.record)


def count_windows(volume: Volume, spine: np.ndarray | None, settings: CubeSettings) -> int:
    """Return how many windows `label_scan` classifies."""
    used = None if settings.prior == "none" else spine
    part = _part(volume, used, settings)
    if part is None:
        return 0
    mask = None
    if used is not None:
        mask = _inner(used, part)
        for axis, n in enumerate(part.shape):
            mask = np.take(mask, geometry.nearest(mask.shape[axis], n), axis)
    return windows3d.count_windows(
        part.shape,
        mask,
        shifts=settings.shifts,
        window=settings.window,
        overlap=settings.overlap,
    )


def estimate_bytes(volume: Volume, settings: CubeSettings, classes: int) -> int:
    """Return about how many bytes `label_scan` holds at most, without scan, mask and network.

    The labels take one byte a voxel of the scan, the outline two float32 arrays with the rows of
    the fine grid and the slices of the scan. A voxel of the fine grid takes two bytes for HU, three
    for classes, six for offsets, a few for instances, and 48 for the search of the nearest label.
    All channels of one layer of windows count, too; slabs of the preprocessing do not.
    """
    grid = preprocess.slice_geometry(volume, settings.sampling)
    fine = (grid.n_slices, *grid.shape)
    of_grid, channels = (72, classes + 3) if settings.offsets else (66, classes)
    x, y, z = (
        max(-(-n // settings.shifts), side) for n, side in zip(fine, settings.window, strict=True)
    )
    layer = 4 * channels * x * y * settings.window[2]
    moved = 5 * x * y * z  # of the grid that the network reads
    outline = 8 * grid.n_slices * volume.shape[1] * volume.shape[2]
    return int(np.prod(volume.shape)) + outline + of_grid * math.prod(fine) + moved + layer


def _part(volume: Volume, spine: np.ndarray | None, settings: CubeSettings) -> _Part | None:
    """Return the box of the spine with a margin; without a mask, all; None for an empty mask."""
    x, y, z = volume.shape
    box: tuple[slice, ...] = (slice(0, x), slice(0, y), slice(0, z))
    if spine is not None:
        tight = geometry.bounding_box(spine)
        if tight is None:
            return None
        margins = [math.ceil(settings.margin_mm / mm) for mm in volume.spacing_mm]
        box = tuple(
            slice(max(0, side.start - margin), min(n, side.stop + margin))
            for side, margin, n in zip(tight, margins, volume.shape, strict=True)
        )
    corner = np.array([side.start for side in box])
    moved = volume.affine.copy()
    moved[:3, 3] += moved[:3, :3] @ corner
    inner = Volume(volume.array[box], moved)
    a, b, c = (int(side.start) for side in box)
    grid = preprocess.slice_geometry(inner, settings.sampling)
    return _Part(inner, (a, b, c), (x, y, z), grid)


def _inner(array: np.ndarray, part: _Part) -> np.ndarray:
    """Return a view of the part of an array on the scan's grid."""
    box = (slice(s, s + n) for s, n in zip(part.start, part.volume.shape, strict=True))
    return array[tuple(box)]


def _stack(
    part: _Part, spine: np.ndarray | None, settings: CubeSettings
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return image int16 and mask uint8 of the part on the fine grid."""
    image = np.empty(part.shape, np.int16)
    mask = None if spine is None else np.empty(part.shape, np.uint8)
    marks = None
    if spine is not None:
        marks = LabelVolume(_inner(spine, part).view(np.uint8), part.volume.affine)
    for start, hu, label in preprocess.preprocess_slabs(part.volume, settings.sampling, marks):
        image[start : start + len(hu)] = hu
        if mask is not None and label is not None:
            mask[start : start + len(hu)] = label > 0
    return image, mask


def _evidence(classes: Classes, instances: Instances) -> np.ndarray:
    """Return the probabilities of vertebra classes summed over each instance, (n, 26).

    Each voxel gives the probabilities of its two best classes.
    """
    where = instances.array > 0
    place = instances.array[where].astype(np.intp) - 1
    share = classes.share[where] / 255.0
    sums = np.zeros((len(instances.items), labels.NUM_CLASSES))
    np.add.at(sums, (place, classes.first[where]), share)
    np.add.at(sums, (place, classes.second[where]), 1.0 - share)
    return sums[:, 1:]


_TRUSTED_SHARE = 0.8
"""A mask that covers this share of a vertebra is not completed: its voxels are finer. On 20
phantoms, good masks covered at least 0.8 of every vertebra, bad masks at most 0.7 of most."""

_TOUCHED_SHARE = 0.1
"""Below this share a vertebra is not added: the first step decides where the spine is."""


def _missed_parts(instances: Instances, mask: np.ndarray) -> np.ndarray:
    """Return the voxels of the vertebrae that the mask covers in part only, (x, y, z) bool.

    Where marrow is as dark as muscle, a network of slices follows the bright rim of a body and
    misses the rest. A network of cubes sees the whole vertebra, but coarsely.

    Args:
        instances: of the second step, found without the mask.
        mask: (x, y, z) bool of the first step on the same grid.
    """
    count = len(instances.items) + 1
    whole = np.bincount(instances.array.ravel(), minlength=count)
    held = np.bincount(instances.array[mask], minlength=count)
    share = held / np.maximum(whole, 1)
    wanted = (share >= _TOUCHED_SHARE) & (share < _TRUSTED_SHARE)
    wanted[0] = False
    return wanted[instances.array]


_CHUNK = 16  # slices


def _restore(
    named: np.ndarray,
    found: np.ndarray,
    part: _Part,
    spine: np.ndarray | None,
    added: np.ndarray | None,
    out: np.ndarray,
    reach_mm: float,
) -> None:
    """Write the labels of the fine grid into `out`, on the scan's grid.

    Outlines are those of `spine` and `added`; without a mask, the interpolated foreground is cut at
    one half. A voxel inside an outline takes the label of the nearest voxel of an instance within
    `reach_mm`. It stays 0 if that instance was left out.

    Args:
        named: (x, y, z) uint8 labels on the fine grid.
        found: (x, y, z) bool, all instances on the fine grid, those without a label included.
        part: the part of the scan.
        spine: mask of the first step on the scan's grid, or None.
        added: (x, y, z) bool on the fine grid, or None.
        out: the part of the labels of the scan.
        reach_mm: see above.
    """
    box = geometry.bounding_box(found)
    if box is None:
        return
    margin = math.ceil(reach_mm / min(part.spacing_mm)) + 1
    wide = tuple(
        slice(max(0, s.start - margin), min(n, s.stop + margin))
        for s, n in zip(box, named.shape, strict=True)
    )
    inner = named[wide]
    distance, nearest = ndimage.distance_transform_edt(
        ~found[wide], sampling=part.spacing_mm, return_indices=True
    )
    filled = named.copy()
    filled[wide] = np.where(distance <= reach_mm, inner[tuple(nearest)], 0)
    del distance, nearest
    index = [
        geometry.nearest(net, native) for native, net in zip(out.shape, part.shape, strict=True)
    ]
    outlines: list[Callable[[slice], np.ndarray]] = []
    if spine is not None:
        outlines.append(lambda rows: spine[rows] > 0)
    if spine is None or added is not None:
        outlines.append(_outline(named > 0 if added is None else added, part, out.shape[1:]))
    for start in range(0, out.shape[0], _CHUNK):
        rows = slice(start, start + _CHUNK)
        inside = np.logical_or.reduce([outline(rows) for outline in outlines])
        out[rows] = filled[index[0][rows]][:, index[1][:, None], index[2]] * inside


def _outline(
    mask: np.ndarray, part: _Part, shape: tuple[int, ...]
) -> Callable[[slice], np.ndarray]:
    """Return a function of rows of the scan's grid: where the interpolated mask exceeds 1/2."""
    inside = mask.astype(np.float32)
    for axis, length in enumerate(shape, start=1):
        inside = geometry.linear(inside, axis, length)
    rows = part.volume.shape[0]
    centres = np.clip(geometry.centres_of(part.shape[0], rows), 0, part.shape[0] - 1)
    return lambda wanted: geometry.at(inside, 0, centres[wanted]) > 0.5
