"""What the first step missed of vertebrae that the second step sees.

Where marrow is as dark as muscle, a network of slices follows the bright rim of a body and leaves
out the rest. A network of cubes sees the whole vertebra, if only coarsely.

Naming the vertebrae of a whole scan: windows of a network of cubes, decoder, the scan's grid.

The second step of paper A (Saeed et al. 2023, sections 3.1 and 3.8). Its first step, the mask of
the spine, may narrow the scan to a box ("crop") and be what the network sees besides the image
("channel"); it then also draws the outlines, and the second step gives them names. Where the
second step says where vertebrae have their centres, it also completes what the first one missed.
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
from spinejax.inference.instances import Instances, find_instances
from spinejax.inference.sequence import Record, label_instances
from spinejax.inference.windows3d import (
    Classes,
    CubePredictor,
    Size,
    layers,
    moved_grids,
    predict_moved,
)
from spinejax.metrics.body_centres import body_centres
from spinejax.volume import LabelVolume, Volume

ENOUGH = 0.8
"""A mask that covers this share of a vertebra is trusted: it has finer voxels. On 20 phantoms a
good mask covered 0.8 or more of all vertebrae, a bad one 0.7 or less of most."""

LEAST = 0.1
"""What the mask does not touch at all stays out: the first step is to find the spine."""


def missed_parts(instances: Instances, mask: np.ndarray) -> np.ndarray:
    """Return whole vertebrae of which the mask holds a part that is too small.

    Args:
        instances: of the second step, found without the mask.
        mask: (x, y, z) bool of the first step on the same grid.

    Returns:
        (x, y, z) bool, to be added to the mask.
    """
    count = len(instances.items) + 1
    whole = np.bincount(instances.array.ravel(), minlength=count)
    held = np.bincount(instances.array[mask], minlength=count)
    share = held / np.maximum(whole, 1)
    wanted = (share >= LEAST) & (share < ENOUGH)
    wanted[0] = False
    return wanted[instances.array]


PRIORS = ("none", "crop", "channel")
"""What the second step takes of the first one's mask of the spine."""

_CHUNK = 16  # slices


@dataclass(frozen=True)
class CubeSettings:
    """How a scan's vertebrae are named.

    Attributes:
        preprocess: the preprocessing that the network was trained with, "isotropic".
        normalise: its intensity mode; some need the statistics of the whole scan.
        window: (x, y, z) voxels of its cubes.
        overlap: least share of a window that its neighbour covers again.
        batch_size: windows in one call.
        shifts: grids along each axis that the network reads the scan on, moved against each other
            by equal parts of a voxel; vertebrae are found on the grid of all of them.
        prior: one of `PRIORS`.
        offsets: whether the network says where the vertebra's centre is, besides its name.
        margin_mm: around the box of the mask.
        anomalies: those that the decoder allows, of `transitions.ANOMALIES`.
        drop_cut: leave vertebrae out that an end of the scan cuts, as VerSe's annotation does.
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
    drop_cut: bool

    @property
    def sampling(self) -> SlicePreprocess:
        """The preprocessing for the grid of all shifts."""
        return replace(self.preprocess, spacing_mm=self.preprocess.spacing_mm / self.shifts)


@dataclass(frozen=True, eq=False)
class Vertebrae:
    """Named vertebrae of a scan.

    Attributes:
        labels: (x, y, z) uint8 VerSe ids on the grid of the scan's `array`.
        centroids: VerSe id -> (3,) voxel index there of the body's centre.
        record: what the decoder says.
    """

    labels: np.ndarray
    centroids: dict[int, np.ndarray]
    record: Record | None


@dataclass(frozen=True, eq=False)
class _Part:
    """The part of a scan that is looked at: a canonical view, where it begins, its grids."""

    volume: Volume
    start: tuple[int, int, int]
    whole: tuple[int, int, int]
    grid: preprocess.SliceGeometry

    @property
    def shape(self) -> Size:
        """Voxels of the grid of all shifts."""
        return (self.grid.n_slices, *self.grid.shape)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Of that grid."""
        return (self.grid.slice_spacing_mm, *self.grid.spacing_mm)


def _part(volume: Volume, spine: np.ndarray | None, settings: CubeSettings) -> _Part | None:
    """Return the box of the spine with a margin, or all; None if there is no spine."""
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


def count_windows(volume: Volume, spine: np.ndarray | None, settings: CubeSettings) -> int:
    """Return about how many windows `label_scan` classifies, for a progress bar."""
    used = None if settings.prior == "none" else spine
    part = _part(volume, used, settings)
    if part is None:
        return 0
    count = 0
    for grid in moved_grids(part.shape, settings.shifts):
        lengths = (len(range(n)[s]) for n, s in zip(part.shape, grid, strict=True))
        x, y, z = (max(n, side) for n, side in zip(lengths, settings.window, strict=True))
        at = layers((x, y, z), settings.window, settings.overlap, None)
        count += sum(len(corners) for _, corners in at)
    return count


def estimate_bytes(volume: Volume, settings: CubeSettings, classes: int) -> int:
    """Return about how much memory `label_scan` holds at most beside scan, mask and network.

    One byte a voxel of the scan for the labels; for the outline, rows of the grid of all shifts in
    slices of the scan's, twice in float32. On that grid, for the whole scan, two bytes for HU,
    three for classes, six for offsets, a few for instances and their finding, 48 while the nearest
    label is looked for. All channels of one layer of windows. Slabs of the preprocessing are apart.
    """
    grid = preprocess.slice_geometry(volume, settings.sampling)
    fine = (grid.n_slices, *grid.shape)
    of_grid, channels = (72, classes + 3) if settings.offsets else (66, classes)
    x, y, z = (
        max(-(-n // settings.shifts), side) for n, side in zip(fine, settings.window, strict=True)
    )
    layer = 4 * channels * x * y * settings.window[2]
    moved = 5 * x * y * z  # of the grid that is being read
    outline = 8 * grid.n_slices * volume.shape[1] * volume.shape[2]
    return int(np.prod(volume.shape)) + outline + of_grid * math.prod(fine) + moved + layer


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
        settings: how.
        advance: called with the number of windows done, for a progress bar.

    Returns:
        Labels and centroids; none of them and no record without a spine.
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
        added = missed_parts(find(), within)
        within |= added
    instances = find(spine=within)
    named = label_instances(
        instances,
        class_sums=_evidence(classes, instances),
        anomalies=settings.anomalies,
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


def _evidence(classes: Classes, instances: Instances) -> np.ndarray:
    """Probabilities of vertebra classes summed over instances, (n, 26), of the two best classes."""
    where = instances.array > 0
    place = instances.array[where].astype(np.intp) - 1
    share = classes.share[where] / 255.0
    sums = np.zeros((len(instances.items), labels.NUM_CLASSES))
    np.add.at(sums, (place, classes.first[where]), share)
    np.add.at(sums, (place, classes.second[where]), 1.0 - share)
    return sums[:, 1:]


def _inner(array: np.ndarray, part: _Part) -> np.ndarray:
    """View of the part of an array on the scan's grid."""
    box = (slice(s, s + n) for s, n in zip(part.start, part.volume.shape, strict=True))
    return array[tuple(box)]


def _stack(
    part: _Part, spine: np.ndarray | None, settings: CubeSettings
) -> tuple[np.ndarray, np.ndarray | None]:
    """Image int16 and mask uint8 of the part on its grid."""
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


def _restore(
    named: np.ndarray,
    found: np.ndarray,
    part: _Part,
    spine: np.ndarray | None,
    added: np.ndarray | None,
    out: np.ndarray,
    reach_mm: float,
) -> None:
    """Write labels of the part's grid into `out` on the scan's.

    Outlines are those of `spine` and, on the part's grid, of what is `added` to it; without, where
    the interpolated foreground exceeds one half. A voxel within takes the label of the nearest one
    that is `found`, if there is one within `reach_mm`; none where that was left out.
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
    """Rows of the scan's grid -> where the interpolated mask exceeds one half."""
    inside = mask.astype(np.float32)
    for axis, length in enumerate(shape, start=1):
        inside = geometry.linear(inside, axis, length)
    rows = part.volume.shape[0]
    centres = np.clip(geometry.centres_of(part.shape[0], rows), 0, part.shape[0] - 1)
    return lambda wanted: geometry.at(inside, 0, centres[wanted]) > 0.5
