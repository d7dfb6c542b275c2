"""Centres of vertebral bodies, from masks of whole vertebrae."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from spinejax import geometry
from spinejax.metrics.surface import depth_mm, steps_of

_THICK = 0.55  # of the greatest depth
_SPACING_MM = 1.0  # of the grid on which depth is measured
_ATLAS = 1


def body_centres(
    array: np.ndarray, spacing_mm: Sequence[float] | np.ndarray
) -> dict[int, np.ndarray]:
    """Return the centre of the body of each vertebra.

    VerSe marks the centroid of the vertebral body, which lies about a centimetre in front of the
    centroid of the whole vertebra. The body is the thickest part: the largest component of the
    voxels whose depth below the surface exceeds 0.55 of the greatest depth, on a grid of about one
    millimetre. C1 has no body; its centroid is returned.

    Args:
        array: (x, y, z) VerSe ids, 0 for background.
        spacing_mm: voxel size along each axis, or `geometry.steps_mm`.

    Returns:
        VerSe id -> (3,) voxel index.
    """
    steps_mm = steps_of(spacing_mm, 3)
    sizes = np.linalg.norm(steps_mm, axis=1)
    centres = {}
    for label, box in geometry.label_boxes(array).items():
        steps = np.maximum(1, np.floor(_SPACING_MM / sizes + 0.5)).astype(int)
        own = array[box][:: steps[0], :: steps[1], :: steps[2]] == label
        if not own.any():  # thinner than a step
            steps, own = np.ones(3, int), array[box] == label
        if label == _ATLAS:
            middle = np.argwhere(own).mean(0)
        else:
            depth = depth_mm(np.pad(own, 1), steps_mm * steps[:, None])
            parts, _ = ndimage.label(depth >= _THICK * depth.max())
            largest = np.bincount(parts.ravel())[1:].argmax() + 1
            middle = np.argwhere(parts == largest).mean(0) - 1
        centres[label] = middle * steps + [s.start for s in box]
    return centres
