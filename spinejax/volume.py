"""What a scan and a label map are in memory.

This is the one statement of array order, units and axis names; nothing else repeats it.

* Arrays of volumes are `(x, y, z)`: the three axes in the order of the file (NIfTI order, first
  axis fastest on disk). Nothing is reordered on reading.
* `affine` maps voxel indices `(i, j, k, 1)` to world millimetres in NIfTI's RAS+ world: x grows to
  the patient's right, y to anterior, z to superior. An orientation code such as `"LPS"` names the
  direction in which each array index *grows*.
* The canonical orientation of the project is `"LPS"` (what ITK calls RAI): index 0 grows to the
  patient's left, index 1 to posterior, index 2 to superior.
* Planes are named by what they cut: a *sagittal* slice fixes axis 0 of a canonical array and is
  `(y, z)`; a *coronal* one fixes axis 1, `(x, z)`; an *axial* one fixes axis 2, `(x, y)`.
* Intensities are Hounsfield units (HU); spacings are millimetres (`spacing_mm`, per array axis).
* Labels are VerSe ids (`labels.py`), uint8, 0 for background.
* Batches of slices are `(b, h, w)` or `(b, h, w, c)`; `h` and `w` are the two in-plane axes in the
  order above.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spinejax import geometry

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Plane -> the canonical array axis that a slice of it fixes."""

CANONICAL = "LPS"


@dataclass(frozen=True, eq=False)
class DiskGrid:
    """What a file said of its own grid, kept so that labels can be written back exactly on it."""

    path: Path
    shape: tuple[int, ...]
    sform: np.ndarray
    sform_code: int
    qform: np.ndarray
    qform_code: int
    units: str


@dataclass(frozen=True, eq=False)
class Volume:
    """A CT: `array` (x, y, z) int16 or float32 HU, all finite; `affine` (4, 4) float64."""

    array: np.ndarray
    affine: np.ndarray
    disk: DiskGrid | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each array axis."""
        x, y, z = self.array.shape
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size in mm along each array axis."""
        return geometry.spacing_mm(self.affine)

    @property
    def orientation(self) -> str:
        """Direction in which each index grows, as three letters of R/L, A/P, S/I."""
        return geometry.orientation(self.affine)


@dataclass(frozen=True, eq=False)
class LabelVolume(Volume):
    """A label map: `array` (x, y, z) uint8 VerSe ids."""
