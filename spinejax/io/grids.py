"""Label maps on the grid of their scan, or of another label map; scans with sheared grids."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from spinejax import geometry
from spinejax.errors import InputError
from spinejax.io.voxels import AIR_HU
from spinejax.volume import DiskGrid, LabelVolume, Volume

logger = logging.getLogger("spinejax")

V = TypeVar("V", bound=Volume)

TOLERANCE_MM = 0.5
"""Two grids whose corners are at most this far apart are the same grid."""


def disk_grid(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> DiskGrid:
    """Return the grid of a file that is no NIfTI, in the terms of NIfTI.

    Args:
        path: the file.
        shape: of its voxels.
        affine: (4, 4) to RAS mm.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    # A qform of NIfTI holds rotations only, so a sheared grid is written as sform alone.
    rigid = np.allclose(directions.T @ directions, np.eye(3), atol=1e-4)
    return DiskGrid(path, shape, affine, 1, affine, int(rigid), "mm")


def check_native(array: np.ndarray, like: Volume) -> None:
    """Raise ValueError unless an array is a label map, uint8, on the grid of `like.native`."""
    shape = like.native.shape
    if array.dtype != np.uint8 or array.shape != shape:
        raise ValueError(
            f"`array` must be uint8 {shape}, is {array.dtype} {array.shape}; convert it first"
        )


def match_labels(
    image: Volume, labels: LabelVolume, tolerance_mm: float = TOLERANCE_MM
) -> LabelVolume:
    """Return a label map on the grid of an image, see `relation`.

    Returns:
        LabelVolume on the canonical and native grid of `image`, with the `disk` of `labels`.

    Raises:
        InputError: as for `relation`, or no label lies on the grid of `image`.
    """
    name, image_name = _name(labels), _name(image)
    how, why = relation(image, labels, tolerance_mm)
    if how == "same":
        # The image's way to the native grid holds for both.
        array = image.to_native(labels.array)
    elif how == "assumed":
        logger.warning("%s: assumed to be on the grid of %s, although %s", name, image_name, why)
        array = labels.native
    else:
        inside = geometry.overlap_fraction(labels.shape, labels.affine, image.shape, image.affine)
        logger.warning(
            "%s: resampling the mask onto the grid of %s: %s; %.0f %% of the mask's grid is inside",
            name,
            image_name,
            why,
            100 * inside,
        )
        array = geometry.resample(
            labels.native,
            labels.native_affine,
            image.native.shape,
            image.native_affine,
            order=0,
            fill=0,
        )
        if labels.array.any() and not array.any():
            raise InputError(
                f"{name}: no labelled voxel of the mask lies inside {image_name} ({why}); check "
                "that the two belong together, and both headers' voxel sizes (mm, not m or cm)"
            )
    return LabelVolume(array, image.native_affine, labels.disk, labels.reserved, labels.found)


def relation(
    image: Volume, labels: LabelVolume, tolerance_mm: float = TOLERANCE_MM
) -> tuple[str, str]:
    """Return how the grid of a label map relates to that of its image.

    * "same": corners are within `tolerance_mm`; the axis order may differ. Voxels are paired.
    * "assumed": the shapes are equal, and one file has no orientation, or its unused sform or qform
      agrees with the other file. Voxels are paired, with a warning.
    * "resampled": any other grid that overlaps the image: another resolution, a crop, a shift by
      less than a voxel or by whole voxels.

    Two grids of one shape are made for one another. If they differ in voxel size or directions, or
    by another shift, the header of one of them was lost or damaged, and resampling would put the
    labels beside their vertebrae.

    Returns:
        One of the three, and what differs, for messages.

    Raises:
        InputError: the two grids cannot both be right, or they do not overlap in space.
    """
    theirs, ours = labels.native, image.native
    why = f"its shape {_sides(theirs.shape)} is not {_sides(ours.shape)}"
    if labels.shape == image.shape:
        distance = geometry.max_corner_distance_mm(labels.affine, image.affine, image.shape)
        if distance <= tolerance_mm:
            return "same", ""
        why = f"its corners are up to {distance:.3g} mm away"
    if theirs.shape == ours.shape and _same_grid_by_header(image, labels, tolerance_mm):
        return "assumed", why
    inside = geometry.overlap_fraction(labels.shape, labels.affine, image.shape, image.affine)
    covered = geometry.overlap_fraction(image.shape, image.affine, labels.shape, labels.affine)
    apart = not max(inside, covered)
    if sorted(theirs.shape) == sorted(ours.shape) and not _shifted(image, labels, tolerance_mm):
        different = _difference(labels, image) + ", so it does not overlap" * apart
        raise InputError(
            f"{_name(labels)}: one header is wrong, its own or that of {_name(image)}: "
            f"{different}; if the mask's is, save the mask with the CT's affine: "
            "nibabel.Nifti1Image(mask.get_fdata(), ct.affine)"
        )
    if apart:
        raise InputError(
            f"{_name(labels)}: the mask does not overlap {_name(image)} in space ({why}); check "
            "that the two belong together, and both headers' voxel sizes (mm, not m or cm)"
        )
    return "resampled", why


def _shifted(image: Volume, labels: LabelVolume, tolerance_mm: float) -> bool:
    """Return whether two grids of one shape may be right although one lies beside the other."""
    if labels.shape != image.shape:
        return False
    moved = labels.affine.copy()
    moved[:3, 3] = image.affine[:3, 3]
    if geometry.max_corner_distance_mm(moved, image.affine, image.shape) > tolerance_mm:
        return False
    voxels = np.abs(geometry.world_to_voxel(image.affine, labels.affine[:3, 3]))
    if voxels.max() <= 1:
        return True
    # Origins that were never set are 0; x and y change sign between the worlds of ITK and NIfTI.
    at, right = labels.native_affine[:3, 3], image.native_affine[:3, 3]
    lost = not at.any() or np.allclose(np.abs(at), np.abs(right), atol=tolerance_mm)
    return not lost and bool((np.abs(voxels - np.rint(voxels)) < 0.05).all())


def _difference(labels: LabelVolume, image: Volume) -> str:
    """Return what differs between two grids that were made for one another, the mask's first."""
    if labels.native.shape != image.native.shape:
        return f"{_sides(labels.native.shape)} instead of {_sides(image.native.shape)} voxels"
    theirs, ours = labels.native_affine, image.native_affine
    sides = [np.array(geometry.spacing_mm(affine)) for affine in (theirs, ours)]
    if not np.allclose(sides[0], sides[1], rtol=0.01):
        shown = [" x ".join(f"{side:.3g}" for side in one) for one in sides]
        return f"voxels of {shown[0]} instead of {shown[1]} mm"
    if labels.orientation != image.orientation:
        return f"orientation {labels.orientation} instead of {image.orientation}"
    cosines = (theirs[:3, :3] * ours[:3, :3]).sum(0) / (sides[0] * sides[1])
    degrees = np.rad2deg(np.arccos(cosines.min().clip(-1, 1)))
    if degrees > 0.05:
        return f"axes turned or sheared by {degrees:.2g} degrees"
    origins = ["({:.4g}, {:.4g}, {:.4g})".format(*affine[:3, 3]) for affine in (theirs, ours)]
    return f"origin {origins[0]} instead of {origins[1]} mm"


def straight(volume: V) -> V:
    """Return a scan or a label map with axes at right angles.

    A scan with gantry tilt has a sheared grid. Networks and measurements along axes need a straight
    one, see `geometry.straight_grid`.

    Returns:
        `volume` itself if it is not sheared; else it resampled, linearly for a scan, to the nearest
        neighbour for labels. Outside of `volume` there is air, or background.
    """
    grid = geometry.straight_grid(volume.shape, volume.affine)
    if grid is None:
        return volume
    return resampled(volume, *grid)


def resampled(volume: V, shape: Sequence[int], affine: np.ndarray) -> V:
    """Return a scan, interpolated linearly, or a label map, to the nearest neighbour, on a grid.

    Args:
        volume: keeps its dtype. Outside of it there is air, or background.
        shape: the three sides of the grid.
        affine: (4, 4) of the grid.
    """
    is_map = isinstance(volume, LabelVolume)
    order, fill = (0, 0) if is_map else (1, AIR_HU)
    array = geometry.resample(volume.array, volume.affine, shape, affine, order=order, fill=fill)
    if volume.array.dtype.kind == "i":
        array = np.rint(array, out=array).astype(volume.array.dtype)
    return type(volume)(array, affine, volume.disk)


def on_grid_of(
    reference: LabelVolume, prediction: LabelVolume, reference_path: Path, prediction_path: Path
) -> np.ndarray:
    """Return the array of a prediction on the grid of its reference.

    Nothing is resampled, because that would change the prediction that is scored.

    Raises:
        InputError: the grids differ; the message names the two paths.
    """
    distance = math.inf
    if prediction.native.shape == reference.native.shape:
        # Grids that are turned by 45 degrees may have two canonical views.
        distance = geometry.max_corner_distance_mm(
            prediction.native_affine, reference.native_affine, reference.native.shape
        )
        if distance <= TOLERANCE_MM:
            return reference.to_canonical(prediction.native)
    if prediction.shape == reference.shape:
        apart = geometry.max_corner_distance_mm(
            prediction.affine, reference.affine, reference.shape
        )
        if apart <= TOLERANCE_MM:
            return prediction.array
        distance = min(distance, apart)
    why = (
        f"shapes {_grid(prediction)} and {_grid(reference)}"
        if math.isinf(distance)
        else f"corners up to {distance:.3g} mm apart"
    )
    raise InputError(
        f"{prediction_path} and {reference_path} are not on one grid ({why}); resample the "
        "prediction onto the reference's grid, or score against the reference it was made for"
    )


def _grid(volume: LabelVolume) -> str:
    return f"{'x'.join(map(str, volume.native.shape))} {volume.orientation}"


def _same_grid_by_header(image: Volume, labels: LabelVolume, tolerance_mm: float) -> bool:
    """Return whether the headers allow that two grids of the same shape are the same."""
    ours, theirs = _coded_affines(image), _coded_affines(labels)
    if ours is None or theirs is None:
        return False
    if not ours or not theirs:
        return True
    return any(
        geometry.max_corner_distance_mm(a, b, image.native.shape) <= tolerance_mm
        for a in ours
        for b in theirs
    )


def _coded_affines(volume: Volume) -> list[np.ndarray] | None:
    """Return the usable affines with a code in the header; None for a volume without a file."""
    disk = volume.disk
    if disk is None:
        return None
    forms = ((disk.sform, disk.sform_code), (disk.qform, disk.qform_code))
    return [affine for affine, code in forms if code > 0 and geometry.is_usable_affine(affine)]


def _name(volume: Volume) -> str:
    return str(volume.disk.path) if volume.disk is not None else "the volume in memory"


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
