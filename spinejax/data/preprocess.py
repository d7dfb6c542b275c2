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
from scipy import ndimage

from spinejax import geometry, schema
from spinejax.errors import InputError
from spinejax.volume import PLANES, LabelVolume, Volume, slice_view

MOST_VOXELS = 2**31
"""A scan of more voxels, after resampling, is refused. A person of 2 m in a field of view of 500 mm
has 2**29 voxels of 1 mm."""

_TRUNCATE = 4.0  # the Gaussian is cut at this many sigma
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
    for start in range(0, grid.n_slices, slab_slices):
        stop = min(start + slab_slices, grid.n_slices)
        slab = _between(scan, start, stop, settings, grid, kernels)
        slab = geometry.linear(geometry.linear(slab, 1, grid.shape[0]), 2, grid.shape[1])
        image = np.rint(slab, out=slab).astype(np.int16)
        label = None
        if marks is not None:
            # Indices instead of strides, so that the result is a copy in its own memory.
            label = marks[slices[start:stop]][:, nearest[0][:, None], nearest[1]].astype(np.uint8)
        yield start, image, label


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
    return 0 if sigma_voxels < _LEAST_SIGMA_VOXELS else int(_TRUNCATE * sigma_voxels + 0.5)


def _kernels(grid: SliceGeometry, settings: SlicePreprocess) -> list[tuple[float, int]]:
    """Return sigma and radius of the Gaussian in voxels, along slices, rows and columns."""
    if settings.intensity == "op_window":
        sigma = settings.smoothing_sigma_px
        radius = settings.smoothing_kernel_px // 2 if sigma >= _LEAST_SIGMA_VOXELS else 0
        return [(0.0, 0), (sigma, radius), (sigma, radius)]
    spacings = (grid.native_slice_spacing_mm, *grid.native_spacing_mm)
    sigmas = [settings.smoothing_sigma_mm / spacing for spacing in spacings]
    return [(sigma, _radius(sigma)) for sigma in sigmas]


def _between(
    scan: np.ndarray,
    start: int,
    stop: int,
    settings: SlicePreprocess,
    grid: SliceGeometry,
    kernels: list[tuple[float, int]],
) -> np.ndarray:
    """Return slices [start, stop) of the preprocessed grid, in-plane still as scanned, float32."""
    if grid.n_slices == grid.native_slices:
        return _filtered(scan, start, stop, settings, kernels)
    centres = geometry.centres_of(grid.native_slices, grid.n_slices)[start:stop]
    centres = np.clip(centres, 0, grid.native_slices - 1)
    first, last = int(centres[0]), min(int(centres[-1]) + 2, grid.native_slices)
    return geometry.at(_filtered(scan, first, last, settings, kernels), 0, centres - first)


def _filtered(
    scan: np.ndarray,
    start: int,
    stop: int,
    settings: SlicePreprocess,
    kernels: list[tuple[float, int]],
) -> np.ndarray:
    """Return slices [start, stop) of `scan` (n, H, W) on its grid, within `range_hu`, float32."""
    halo = kernels[0][1]
    first, last = max(0, start - halo), min(len(scan), stop + halo)
    slab = np.array(scan[first:last], np.float32, order="C")
    low, high = settings.clamp_hu
    if settings.intensity == "op_window":
        slab[(slab < low) | (slab > high)] = 0
    for axis, (sigma, radius) in enumerate(kernels):
        if radius:
            # Edge values are repeated at the border of the scan; inside, the halo holds real data.
            slab = ndimage.gaussian_filter1d(slab, sigma, axis, mode="nearest", radius=radius)
        if axis == 0:
            slab = slab[start - first : stop - first]
    if settings.intensity == "clamp":
        np.clip(slab, low, high, out=slab)
    return slab
