"""Cleaning a predicted mask; sizes are in millilitres, so that they mean the same on every grid."""

import numpy as np
from scipy import ndimage


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Return the slices of the smallest box that holds every true voxel; None for an empty mask.

    Works axis by axis, so that it needs no index array of the size of the foreground.
    """
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        present = np.flatnonzero(mask.any(axis=others))
        if present.size == 0:
            return None
        box.append(slice(int(present[0]), int(present[-1]) + 1))
    return tuple(box)


def remove_small_components(
    mask: np.ndarray, *, spacing_mm: tuple[float, float, float], min_ml: float
) -> np.ndarray:
    """Return `mask` without the 26-connected components smaller than `min_ml`.

    Args:
        mask: (x, y, z) bool.
        spacing_mm: voxel size along each axis.
        min_ml: volume in millilitres; 0 returns the mask unchanged.
    """
    box = bounding_box(mask)
    if box is None or min_ml <= 0:
        return mask
    components, count = ndimage.label(mask[box], structure=np.ones((3, 3, 3), bool))
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    keep = np.bincount(components.ravel(), minlength=count + 1) * voxel_ml >= min_ml
    keep[0] = False
    result = np.zeros_like(mask)
    result[box] = keep[components]
    return result


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Return `mask` (x, y, z) bool with its enclosed 3D cavities filled (scipy's definition)."""
    box = bounding_box(mask)
    if box is None:
        return mask
    result = mask.copy()
    result[box] = ndimage.binary_fill_holes(mask[box])
    return result
