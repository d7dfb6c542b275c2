"""Cleaning a predicted mask; sizes are in mm and ml, so that they mean the same on every grid."""

import numpy as np
from scipy import ndimage

from spinejax.geometry import bounding_box

# Spacings come from float32 affines: a voxel at exactly the radius must not drop out by rounding.
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
    """Return `mask` opened, then without small components, then with its cavities filled.

    Paper B, section II.E, applies "simple morphological operations" to the predicted image and
    names none. The order matters: opening cuts the bridges that tie specks to the spine, so that
    they are small components afterwards, and only what is kept is worth filling. Components and
    cavities are those of the volume: in axial slices the vertebral canal is an enclosed hole,
    which filling slice by slice would close.

    Args:
        mask: (x, y, z) bool.
        spacing_mm: voxel size along each axis.
        opening_mm: radius of `opening`; 0 for none.
        min_component_ml: volume of the smallest component to be kept; 0 keeps all.
        fill_holes: whether to fill cavities.
        slice_axis: see `opening`.
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
    """Return the morphological opening of `mask`: the union of the elements that fit into it.

    The element is made of the voxels whose centres lie within `radius_mm` of its middle. Beyond
    the border of the scan the mask is taken to go on as it ends there, so that what the border
    cuts is not eaten away from it. A square of 3 x 3 pixels is a radius of 1.5 pixels.

    Works slab by slab: beside the result it needs some 100 MB.

    Args:
        mask: (x, y, z) bool.
        spacing_mm: voxel size along each axis.
        radius_mm: of the element; below the spacing of every axis used, `mask` itself is returned.
        axis: axis along which slices are stacked, each opened by itself; None opens the volume.
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
    # Elements of a voxel's own and of its neighbours' erosion: nothing farther has a say in it.
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


def fill_cavities(mask: np.ndarray) -> np.ndarray:
    """Return `mask` (x, y, z) bool with its enclosed 3D cavities filled (scipy's definition)."""
    box = bounding_box(mask)
    if box is None:
        return mask
    result = mask.copy()
    result[box] = ndimage.binary_fill_holes(mask[box])
    return result
