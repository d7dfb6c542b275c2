"""Turns a scan into smoothed, clamped, resampled slices, and predicted slices back into a scan.

Paper A, section 4.2 (`intensity="clamp"`): the scan is reoriented, smoothed by a Gaussian and
clamped to [-1000, 800] "as used by Payer et al." (there: recursive Gaussian of 0.75 mm in physical
units, then the clamp, in this order), and the slices are resized to 256x256. Smoothing comes before
resampling and keeps the linear interpolation from aliasing: the default of 0.75 mm fits steps up to
about 2 mm; for much coarser steps (`"resize"` of a large field of view to few pixels) raise
`smoothing_sigma_mm`.

Paper B, section II.A (`intensity="op_window"`): values outside 100 to 1500 HU become 0, including
metal, and then each slice by itself is smoothed by a Gaussian "with a fixed kernel size". The paper
gives neither size nor sigma; 3x3 pixels and 0.7 pixels are this project's choice. Its patches are
cut from the scan's own pixels (`mode="native"`). Three pixels of smoothing do not keep a coarser
grid from aliasing: to resample by two or more, raise `smoothing_sigma_px` to about half the step
and the kernel to about six sigma.

Grids are aligned by pixel edges: the slice keeps its extent, and the centre of output pixel `i`
lies at `(i + 0.5) * step - 0.5` in input pixels, `step` being input pixels per output pixel. If
input and output have the same number of pixels, nothing is interpolated. The slice axis keeps its
spacing, except for cubes (`"isotropic"`), which are interpolated along all three axes.

Scans are processed in slabs of slices with enough neighbours on both sides for the smoothing. Only
a slab is held in floating point, and the numbers do not depend on the size of the slab.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from spinejax import geometry, schema
from spinejax.errors import InputError
from spinejax.volume import PLANES, LabelVolume, Volume, slice_view, with_neighbours

MOST_VOXELS = 2**31
"""A scan of more voxels, after resampling, is refused. A person of 2 m in a field of view of 500 mm
has 2**29 voxels of 1 mm."""

TRUNCATE = 4.0
"""The Gaussian in mm is cut at this many sigma."""

_LEAST_SIGMA_VOXELS = 0.1  # a sigma below it puts under 1e-20 on the neighbours
_SLAB_BYTES = 64 * 2**20  # of one float32 slab

_UNUSED = {
    "clamp": ("intensity", "smoothing_sigma_px", "smoothing_kernel_px"),
    "op_window": ("smoothing_sigma_mm",),
    "resample": ("size",),
    "resize": ("spacing_mm",),
    "native": ("size", "spacing_mm"),
    "isotropic": ("size",),
}
"""Intensity or mode -> the fields that it does not read, or that have its default."""


@dataclass(frozen=True)
class SlicePreprocess:
    """Settings with which scans become slices.

    Attributes:
        plane: `"sagittal"`, `"coronal"` or `"axial"` (`volume.PLANES`).
        smoothing_sigma_mm: of `"clamp"`: standard deviation of the Gaussian in mm along every
            axis; 0 for none. An axis on which it is below a tenth of a voxel is left alone.
        clamp_hu: (low, high), whole numbers because slices are int16.
        mode: `"resample"` to `spacing_mm` along both in-plane axes, `"resize"` each slice to
            `size`, or keep the scan's `"native"` in-plane grid; `"isotropic"`: to `spacing_mm`
            along all three axes, as cubes need it.
        spacing_mm: of `"resample"` and `"isotropic"`.
        size: (rows, columns) of `"resize"`.
        intensity: `"clamp"` smooths and then clamps to `clamp_hu`; `"op_window"` sets values
            outside `clamp_hu` (both bounds are inside) to 0 and then smooths within the slice.
        smoothing_sigma_px: of `"op_window"`: standard deviation of the Gaussian in pixels of the
            scan's own grid; below a tenth for none.
        smoothing_kernel_px: of `"op_window"`: side of its square kernel, odd.

    Raises:
        InputError: a value cannot be used.
    """

    plane: str = "sagittal"
    smoothing_sigma_mm: float = 0.75
    clamp_hu: tuple[float, float] = (-1000.0, 800.0)
    mode: str = "resample"
    spacing_mm: float = 1.0
    size: tuple[int, int] = (256, 256)
    intensity: str = "clamp"
    smoothing_sigma_px: float = 0.7
    smoothing_kernel_px: int = 3

    def __post_init__(self) -> None:
        for field in fields(self):
            block = "data" if field.name in ("plane", "size") else "data.preprocess"
            schema.check_value(f"{block}.{field.name}", getattr(self, field.name))
        # Lists from a config become tuples: the settings are hashed and compared.
        object.__setattr__(self, "clamp_hu", tuple(map(float, self.clamp_hu)))
        object.__setattr__(self, "size", tuple(self.size))

    def identity(self) -> dict[str, Any]:
        """Return the fields that the result depends on, as JSON values; they key the cache."""
        unused = _UNUSED[self.intensity] + _UNUSED[self.mode]
        return {name: value for name, value in asdict(self).items() if name not in unused}

    @property
    def range_hu(self) -> tuple[float, float]:
        """(low, high) that the preprocessed values lie in."""
        low, high = self.clamp_hu
        return (low, high) if self.intensity == "clamp" else (min(0.0, low), max(0.0, high))

    @property
    def kernel_px(self) -> tuple[float, int]:
        """Sigma and radius in pixels of the Gaussian of `"op_window"`; (0, 0) for none."""
        if self.intensity != "op_window" or self.smoothing_sigma_px < _LEAST_SIGMA_VOXELS:
            return 0.0, 0
        return self.smoothing_sigma_px, self.smoothing_kernel_px // 2

    @property
    def fill_hu(self) -> int:
        """Value outside a slice: that of air."""
        return int(self.clamp_hu[0]) if self.intensity == "clamp" else 0


@dataclass(frozen=True)
class SliceGeometry:
    """The grids of the slices of one scan.

    `h w` are the two in-plane axes in canonical order (volume.py); native is the scan's own
    in-plane grid, output the grid of the preprocessed slices.
    """

    plane: str
    native_slices: int
    native_slice_spacing_mm: float
    n_slices: int
    slice_spacing_mm: float
    native_shape: tuple[int, int]
    native_spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    spacing_mm: tuple[float, float]

    @property
    def zooms(self) -> tuple[float, float]:
        """Output pixels per native pixel, along h and w."""
        return (
            self.shape[0] / self.native_shape[0],
            self.shape[1] / self.native_shape[1],
        )


def slice_geometry(volume: Volume, settings: SlicePreprocess) -> SliceGeometry:
    """Return the grids of the slices that `preprocess_slabs` makes of `volume`.

    The output has `round(pixels * native / wanted spacing)` pixels, at least one. Its spacing
    differs from the wanted one by at most half a pixel in the whole width.

    Raises:
        InputError: the output would have more than `MOST_VOXELS` voxels.
    """
    axis = PLANES[settings.plane]
    spacing = volume.spacing_mm
    rows, columns = (i for i in range(3) if i != axis)
    native_shape = (volume.shape[rows], volume.shape[columns])
    native_spacing = (spacing[rows], spacing[columns])
    slices = volume.shape[axis]
    if settings.mode == "isotropic":
        slices = _resampled_length(slices, spacing[axis], settings.spacing_mm)
    if settings.mode == "resize":
        shape = settings.size
    elif settings.mode == "native":
        shape = native_shape
    else:
        shape = (
            _resampled_length(native_shape[0], native_spacing[0], settings.spacing_mm),
            _resampled_length(native_shape[1], native_spacing[1], settings.spacing_mm),
        )
    if slices * math.prod(shape) > MOST_VOXELS:
        where = "the scan" if volume.disk is None else str(volume.disk.path)
        raise InputError(
            f"{where}: preprocessed, it would have {slices} x {shape[0]} x {shape[1]} voxels, more "
            f"than the limit of {MOST_VOXELS:.2g}; check its voxel size "
            f"({' x '.join(f'{side:.3g}' for side in spacing)} mm), crop it, or choose a larger "
            "data.preprocess.spacing_mm"
        )
    return SliceGeometry(
        plane=settings.plane,
        native_slices=volume.shape[axis],
        native_slice_spacing_mm=float(spacing[axis]),
        n_slices=slices,
        slice_spacing_mm=float(spacing[axis] * volume.shape[axis] / slices),
        native_shape=native_shape,
        native_spacing_mm=(float(native_spacing[0]), float(native_spacing[1])),
        shape=shape,
        spacing_mm=(
            float(native_spacing[0] * native_shape[0] / shape[0]),
            float(native_spacing[1] * native_shape[1] / shape[1]),
        ),
    )


def preprocess_slabs(
    volume: Volume,
    settings: SlicePreprocess,
    labels: LabelVolume | None = None,
    *,
    slab_slices: int | None = None,
) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    """Yield the preprocessed slices of a scan, a slab at a time, in slice order.

    Args:
        volume: the scan, int16 or float32 HU.
        settings: the preprocessing.
        labels: label map on the same array grid (as from `scanfile.read_pair`), or None.
        slab_slices: slices per slab; None chooses by memory (about 64 MB in float32). It changes
            memory and speed, but no result.

    Yields:
        (start, image, label): index of the slab's first slice, image (n, h, w) int16 HU, label
        (n, h, w) uint8 or None. Labels are taken from the nearest pixel.

    Raises:
        ValueError: the labels have another shape.
    """
    if labels is not None and labels.shape != volume.shape:
        raise ValueError(
            f"`labels` (shape={labels.shape}) must have the shape of `volume` ({volume.shape})"
        )
    grid = slice_geometry(volume, settings)
    scan = slice_view(volume.array, settings.plane)
    marks = None if labels is None else slice_view(labels.array, settings.plane)
    kernels = _kernels(grid, settings)
    halo = kernels[0][1]
    if slab_slices is None:
        slice_bytes = 4 * grid.native_shape[0] * grid.native_shape[1]
        # Thick enough that the halo is not most of the work.
        held = max(1, halo, _SLAB_BYTES // max(1, slice_bytes) - 2 * halo)
        slab_slices = max(1, held * grid.n_slices // grid.native_slices)
    if slab_slices < 1:
        raise ValueError(f"`slab_slices` (={slab_slices}) must be positive")
    nearest = [geometry.nearest(n, m) for n, m in zip(grid.native_shape, grid.shape, strict=True)]
    slices = geometry.nearest(grid.native_slices, grid.n_slices)
    rows, columns = (slice(0, side) for side in grid.shape)
    for start in range(0, grid.n_slices, slab_slices):
        stop = min(start + slab_slices, grid.n_slices)
        image = _box(scan, (slice(start, stop), rows, columns), settings, grid, kernels)
        label = None
        if marks is not None:
            # Indices instead of strides, so that the result is a copy in its own memory.
            label = marks[slices[start:stop]][:, nearest[0][:, None], nearest[1]].astype(np.uint8)
        yield start, image, label


def preprocess_box(
    volume: Volume, settings: SlicePreprocess, box: tuple[slice, ...], *, neighbours: int = 0
) -> np.ndarray:
    """Return a box of the preprocessed slices of a scan, with the same numbers as in all of them.

    Only the voxels that the box depends on are read.

    Args:
        volume: the scan, int16 or float32 HU.
        settings: the preprocessing.
        box: of the preprocessed grid: ranges of slices, rows and columns, with whole bounds.
        neighbours: slices on each side that come as channels, see `volume.with_neighbours`.

    Returns:
        (n, h, w) int16 HU, with neighbours (n, h, w, channels).
    """
    grid = slice_geometry(volume, settings)
    scan = slice_view(volume.array, settings.plane)
    kernels = _kernels(grid, settings)
    first, last = max(0, box[0].start - neighbours), min(grid.n_slices, box[0].stop + neighbours)
    image = np.empty([last - first, *(side.stop - side.start for side in box[1:])], np.int16)
    sides = zip(box[1:], grid.shape, grid.native_shape, strict=True)
    pixels = math.prod((side.stop - side.start) * native // n + 1 for side, n, native in sides)
    held = max(1, kernels[0][1], _SLAB_BYTES // (4 * pixels) - 2 * kernels[0][1])
    step = max(1, held * grid.n_slices // grid.native_slices)
    for start in range(first, last, step):
        some = slice(start, min(start + step, last))
        part = _box(scan, (some, *box[1:]), settings, grid, kernels)
        image[start - first : some.stop - first] = part
    return with_neighbours(image, box[0].start - first, box[0].stop - first, neighbours)


def restore_slices(foreground: np.ndarray, grid: SliceGeometry) -> np.ndarray:
    """Return values on the preprocessed grid, interpolated to the scan's own in-plane grid.

    Args:
        foreground: (n, h, w) floating point, any slab of slices; for example probabilities.
        grid: of `slice_geometry`.

    Returns:
        (n, H, W) float32 by linear interpolation between pixel centres, constant beyond the last.

    Raises:
        ValueError: the slices have another shape than `grid.shape`.
    """
    if tuple(foreground.shape[1:]) != grid.shape:
        raise ValueError(f"`foreground` (shape={foreground.shape}) must be (n, *{grid.shape})")
    values = np.asarray(foreground, np.float32)
    return geometry.linear(
        geometry.linear(values, 1, grid.native_shape[0]), 2, grid.native_shape[1]
    )


def from_config(data: Any) -> SlicePreprocess:
    """Return the preprocessing that the `data` block of a config describes.

    Raises:
        InputError: a value cannot be used.
    """
    size = data.get("size", SlicePreprocess.size)  # cubes have none
    return SlicePreprocess(plane=data.plane, size=tuple(size), **data.preprocess)


def _resampled_length(pixels: int, spacing_mm: float, wanted_mm: float) -> int:
    return max(1, round(pixels * spacing_mm / wanted_mm))


def _radius(sigma_voxels: float) -> int:
    """Return the number of neighbours on each side that smoothing reads."""
    return 0 if sigma_voxels < _LEAST_SIGMA_VOXELS else int(TRUNCATE * sigma_voxels + 0.5)


def _kernels(grid: SliceGeometry, settings: SlicePreprocess) -> list[tuple[float, int]]:
    """Return sigma and radius of the Gaussian in voxels, along slices, rows and columns."""
    if settings.intensity == "op_window":
        return [(0.0, 0), settings.kernel_px, settings.kernel_px]
    spacings = (grid.native_slice_spacing_mm, *grid.native_spacing_mm)
    sigmas = [settings.smoothing_sigma_mm / spacing for spacing in spacings]
    return [(sigma, _radius(sigma)) for sigma in sigmas]


def _box(
    scan: np.ndarray,
    box: tuple[slice, ...],
    settings: SlicePreprocess,
    grid: SliceGeometry,
    kernels: list[tuple[float, int]],
) -> np.ndarray:
    """Return a box of the preprocessed grid, (n, h, w) int16, from `scan` (N, H, W)."""
    needed: list[np.ndarray] = []
    centres: list[np.ndarray | None] = []
    for side, native, n in zip(box, scan.shape, (grid.n_slices, *grid.shape), strict=True):
        if native == n:
            needed.append(np.arange(side.start, side.stop))
            centres.append(None)
            continue
        at = np.clip(geometry.centres_of(native, n)[side], 0, native - 1)
        below = np.minimum(at.astype(np.intp), max(native - 2, 0))
        needed.append(np.unique([below, np.minimum(below + 1, native - 1)]))
        centres.append(np.searchsorted(needed[-1], below) + (at - below))
    slab = _filtered(scan, needed, settings, kernels)
    for axis, places in enumerate(centres):
        if places is not None:
            slab = geometry.at(slab, axis, places)
    return np.rint(slab, out=slab).astype(np.int16)


def _filtered(
    scan: np.ndarray,
    needed: list[np.ndarray],
    settings: SlicePreprocess,
    kernels: list[tuple[float, int]],
) -> np.ndarray:
    """Return `scan` (N, H, W) smoothed on its own grid, within `range_hu`, float32.

    Args:
        scan: HU.
        needed: the voxels to return, increasing indices along each axis.
        settings: the preprocessing.
        kernels: of `_kernels`.
    """
    # Edge values are repeated at the border of the scan; inside, the halo holds real data.
    wide = [
        slice(max(0, places[0] - radius), min(n, places[-1] + 1 + radius))
        for places, n, (_, radius) in zip(needed, scan.shape, kernels, strict=True)
    ]
    slab = np.array(scan[tuple(wide)], np.float32, order="C")
    low, high = settings.clamp_hu
    if settings.intensity == "op_window":
        slab[(slab < low) | (slab > high)] = 0
    for axis, (places, side, kernel) in enumerate(zip(needed, wide, kernels, strict=True)):
        slab = _smoothed(slab, axis, places - side.start, *kernel)
    if settings.intensity == "clamp":
        np.clip(slab, low, high, out=slab)
    return slab


def gaussian_kernel(sigma: float, radius: int) -> np.ndarray:
    """Return the weights (2 radius + 1,) of a Gaussian of `sigma` voxels; their sum is 1."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return weights / weights.sum()


_ROWS = 32
_BLOCK = 2**18


def _smoothed(
    values: np.ndarray, axis: int, places: np.ndarray, sigma: float, radius: int
) -> np.ndarray:
    """Return (n, h, w) smoothed by a Gaussian along an axis, at the indices `places`, float32.

    The values are those of `scipy.ndimage.gaussian_filter1d` with mode "nearest", up to rounding in
    float64. Products with matrices of `_ROWS` rows, on blocks of about `_BLOCK` voxels, are several
    times as fast.
    """
    if not radius:
        return values if len(places) == values.shape[axis] else np.take(values, places, axis)
    offsets = np.arange(-radius, radius + 1)
    weights = gaussian_kernel(sigma, radius)
    shape = list(values.shape)
    shape[axis] = len(places)
    result = np.empty(shape, np.float32)
    across = 1 if axis == 0 else 0  # blocks follow each other along this axis
    for first_row in range(0, len(places), _ROWS):
        rows = slice(first_row, first_row + _ROWS)
        read = np.clip(places[rows, None] + offsets, 0, values.shape[axis] - 1)
        first, last = read[0, 0], read[-1, -1] + 1
        matrix = np.zeros((len(read), last - first))
        np.add.at(matrix, (np.arange(len(read))[:, None], read - first), weights)
        source = values[_along(axis, slice(first, last))]
        target = result[_along(axis, rows)]
        step = max(1, _BLOCK * source.shape[across] // source.size)
        for start in range(0, source.shape[across], step):
            some = _along(across, slice(start, start + step))
            block = source[some].astype(np.float64)
            if axis == 2:
                flat = block.reshape(-1, matrix.shape[1]) @ matrix.T
                target[some] = flat.reshape(*block.shape[:2], -1)
            else:
                target[some] = matrix @ block if axis else np.tensordot(matrix, block, 1)
    return result


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, part)
