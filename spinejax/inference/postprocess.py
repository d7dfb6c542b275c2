"""Cleaning a predicted mask; sizes are in millilitres, so that they mean the same on every grid."""

import numpy as np
from scipy import ndimage

from spinejax.geometry import bounding_box


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


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Return `mask` (x, y, z) bool with its enclosed 3D cavities filled (scipy's definition)."""
    box = bounding_box(mask)
    if box is None:
        return mask
    result = mask.copy()
    result[box] = ndimage.binary_fill_holes(mask[box])
    return result
