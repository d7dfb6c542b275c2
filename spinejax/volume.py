"""Scans and label maps in memory: the only statement of array order, units and axis names.

* Arrays of volumes are `(x, y, z)` and canonical: index 0 grows to the patient's left, index 1 to
  posterior, index 2 to superior (`"LPS"`, what ITK calls RAI). A new `Volume` turns its array
  without copying; `Volume.to_native` undoes it. Files and users see the file's native order; all
  other code sees the canonical one.
* `affine` maps voxel indices `(i, j, k, 1)` to world millimetres in NIfTI's RAS+ world: x grows to
  the patient's right, y to anterior, z to superior. An orientation code such as `"LPS"` names the
  direction in which each array index *grows*.
* Planes are named by what they cut: a *sagittal* slice fixes axis 0 of a canonical array and is
  `(y, z)`; a *coronal* one fixes axis 1, `(x, z)`; an *axial* one fixes axis 2, `(x, y)`.
* Intensities are Hounsfield units (HU); spacings are millimetres (`spacing_mm`, per array axis).
* Labels are VerSe ids (`labels.py`), uint8, 0 for background.
* Batches of slices are `(b, h, w)` or `(b, h, w, c)`; `h` and `w` are the two in-plane axes in the
  order above.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from spinejax import geometry
from spinejax.errors import InputError

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Plane -> the canonical array axis that its slices fix."""

CANONICAL = "LPS"


def slice_view(array: np.ndarray, plane: str) -> np.ndarray:
    """Return a canonical array (x, y, z) as slices (n, h, w) of `plane`, without copying."""
    return np.moveaxis(array, PLANES[plane], 0)


def with_neighbours(slices: np.ndarray, start: int, stop: int, neighbours: int) -> np.ndarray:
    """Return slices, each with its neighbours as channels.

    Args:
        slices: (N, h, w), all slices of a scan.
        start: first slice to return.
        stop: the slice after the last one.
        neighbours: n, slices on each side. Beyond the scan's end its last slice is repeated.

    Returns:
        (stop - start, h, w, 2n + 1), the slice itself in the middle; without neighbours
        (stop - start, h, w), not copied.
    """
    if not neighbours:
        return slices[start:stop]
    places = np.clip(np.arange(start - neighbours, stop + neighbours), 0, len(slices) - 1)
    return sliding_window_view(slices[places], 2 * neighbours + 1, axis=0)


def check_neighbours(where: str, count: int, plane: str, neighbours: int) -> None:
    """Refuse a scan of a single slice where the network sees neighbours.

    Args:
        where: name of the scan.
        count: its slices in `plane`.
        plane: of the slices.
        neighbours: slices on each side that the network sees.

    Raises:
        InputError: there is a single slice.
    """
    if neighbours and count < 2:
        raise InputError(
            f"{where}: a scan of a single {plane} slice has no neighbours, and the network sees "
            f"{neighbours} on each side (data.neighbours); give a scan of several slices, or a "
            "network with data.neighbours=0"
        )


@dataclass(frozen=True, eq=False)
class DiskGrid:
    """The grid that a file's header gives, so that labels can be written exactly on it.

    `series` is the number of the DICOM series, None for other files.
    """

    path: Path
    shape: tuple[int, ...]
    sform: np.ndarray
    sform_code: int
    qform: np.ndarray
    qform_code: int
    units: str
    series: int | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class Volume:
    """A CT.

    A `Volume` takes an array in any orientation and its affine, for example from a file.

    Attributes:
        array: (x, y, z) int16 or float32 HU, all finite: the canonical view of what was given.
        affine: (4, 4) float64, of `array`.
        disk: the grid of the file that the volume was read from, if any.
        native_affine: (4, 4) float64, of what was given.

    Raises:
        InputError: the array has fewer than three axes, or the affine is not 4 x 4 finite numbers
            or cannot be inverted.
    """

    array: np.ndarray
    affine: np.ndarray
    disk: DiskGrid | None = None
    native_affine: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        if np.ndim(self.array) < 3:
            raise InputError(f"a Volume of shape {np.shape(self.array)} is no scan; give (x, y, z)")
        native = geometry.as_affine(self.affine, "a Volume")
        array, affine = geometry.reorient(self.array, native, CANONICAL)
        object.__setattr__(self, "native_affine", native)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", affine)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.shape))
        spacing = " x ".join(f"{side:.3g}" for side in self.spacing_mm)
        return f"<Volume of {size} voxels, {spacing} mm>"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each canonical axis."""
        x, y, z = self.array.shape
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size in mm along each canonical axis."""
        return geometry.spacing_mm(self.affine)

    @property
    def steps_mm(self) -> np.ndarray:
        """Steps of one voxel in mm, (3, 3); see `geometry.steps_mm`."""
        return geometry.steps_mm(self.affine)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return geometry.voxel_ml(self.affine)

    @property
    def native(self) -> np.ndarray:
        """The array as it was given: (x, y, z) in the order of the file."""
        return self.to_native(self.array)

    @property
    def orientation(self) -> str:
        """Direction in which each native index grows, as three letters of R/L, A/P, S/I."""
        return geometry.orientation(self.native_affine)

    def to_native(self, array: np.ndarray) -> np.ndarray:
        """Turn an array on the grid of `array` to the grid of `native`, without copying."""
        return geometry.reorient(array, self.affine, self.orientation)[0]

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """Turn an array on the grid of `native` to the grid of `array`, without copying."""
        return geometry.reorient(array, self.native_affine, CANONICAL)[0]

    def native_index(self, points: np.ndarray) -> np.ndarray:
        """Return voxel indices (..., 3) of `native` for voxel indices (..., 3) of `array`."""
        to_native = np.linalg.inv(self.native_affine) @ self.affine
        return geometry.voxel_to_world(to_native, points)


@dataclass(frozen=True, eq=False)
class LabelVolume(Volume):
    """A label map.

    Attributes:
        array: (x, y, z) uint8 VerSe ids.
        reserved: labels of the file that are no vertebrae, and are background in `array`; see
            `labels.drop_reserved`.
        found: all labels of the file before any was translated, from head to foot; empty if any
            number was allowed, or without a file.
    """

    reserved: tuple[int, ...] = ()
    found: tuple[int, ...] = ()
