"""Where the bodies of labelled vertebrae lie, from masks of whole vertebrae."""

import numpy as np
from scipy import ndimage

_THICK = 0.55
_SPACING_MM = 1.0
_ATLAS = 1


def body_centres(
    array: np.ndarray, spacing_mm: tuple[float, float, float]
) -> dict[int, np.ndarray]:
    """Return the centre of the thickest part of each label (VerSe ids): of its body.

    VerSe marks the centroid of the vertebral body, which lies about a centimetre in front of the
    centroid of the whole vertebra. A body is what is thickest: the largest piece of the voxels that
    are deeper than 0.55 of the greatest depth below the surface, of a map with voxels of a
    millimetre or so. C1 has no body; it has its centroid.

    Args:
        array: (x, y, z) labels, 0 for background.
        spacing_mm: voxel size along each axis.

    Returns:
        Label -> (3,) voxel index.
    """
    spacing = np.asarray(spacing_mm, np.float64)
    centres = {}
    for label, box in enumerate(ndimage.find_objects(array), start=1):
        if box is None:
            continue
        steps = np.maximum(1, np.floor(_SPACING_MM / spacing + 0.5)).astype(int)
        own = array[box][:: steps[0], :: steps[1], :: steps[2]] == label
        if not own.any():  # thinner than a step
            steps, own = np.ones(3, int), array[box] == label
        if label == _ATLAS:
            middle = np.argwhere(own).mean(0)
        else:
            depth = ndimage.distance_transform_edt(np.pad(own, 1), sampling=spacing * steps)
            parts, _ = ndimage.label(depth >= _THICK * depth.max())
            largest = np.bincount(parts.ravel())[1:].argmax() + 1
            middle = np.argwhere(parts == largest).mean(0) - 1
        centres[label] = middle * steps + [s.start for s in box]
    return centres
