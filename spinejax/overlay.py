"""A CT slice with the outlines of label maps, drawn with NumPy and SciPy only.

An outline is one pixel wide and lies *inside* its region, so that a region of one pixel is visible
and the surroundings stay uncovered.
"""

import numpy as np
from scipy import ndimage

PREDICTION_RGB = (255, 106, 0)
"""Orange: the outline of the prediction."""

REFERENCE_RGB = (0, 210, 255)
"""Cyan: the outline of the reference. All common forms of colour blindness tell it from orange."""

BOTH_RGB = (255, 236, 64)
"""Yellow: pixels where the two outlines coincide; much lighter than the orange."""

BONE_WINDOW_HU = (-200.0, 800.0)
"""Grey levels of a CT picture: black up to the first value, white from the second on."""


def window(image_hu: np.ndarray, window_hu: tuple[float, float] = BONE_WINDOW_HU) -> np.ndarray:
    """Map Hounsfield units to grey levels.

    Args:
        image_hu: any shape, HU.
        window_hu: (low, high), HU; values at or below `low` become 0, at or above `high` 255.

    Returns:
        uint8 of the same shape. NaN becomes 0.

    Raises:
        ValueError: `low` is not below `high`.
    """
    low, high = window_hu
    if not low < high:
        raise ValueError(f"`window_hu` (={window_hu}) must be (low, high) with low < high")
    scaled = (np.asarray(image_hu, np.float32) - low) * np.float32(255.0 / (high - low))
    return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0.0, 255.0)).astype(np.uint8)


def outline(labels: np.ndarray) -> np.ndarray:
    """Return the labelled pixels with another label or background among their four neighbours.

    Touching regions with different labels thus have separate outlines. The edge of the picture is
    no border.

    Args:
        labels: (h, w) bool or integer; 0 is background.

    Returns:
        (h, w) bool.

    Raises:
        ValueError: `labels` is not 2D.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2:
        raise ValueError(f"`labels` must be (h, w), got shape {labels.shape}")
    edge = np.zeros(labels.shape, bool)
    vertical = labels[1:] != labels[:-1]
    horizontal = labels[:, 1:] != labels[:, :-1]
    edge[1:] |= vertical
    edge[:-1] |= vertical
    edge[:, 1:] |= horizontal
    edge[:, :-1] |= horizontal
    return edge & (labels != 0)


def paint(
    grey: np.ndarray, prediction: np.ndarray | None, reference: np.ndarray | None, width: int = 1
) -> np.ndarray:
    """Draw outlines on a grey picture.

    Args:
        grey: (h, w) uint8.
        prediction: (h, w) bool or integer labels, or None.
        reference: the same.
        width: thickness of the outlines in pixels; they grow inwards.

    Returns:
        (h, w, 3) uint8: prediction orange, reference cyan, yellow where both coincide.

    Raises:
        ValueError: the labels have another shape than the picture.
    """
    rgb = np.repeat(np.asarray(grey, np.uint8)[..., None], 3, axis=-1)
    edges = []
    for labels in (prediction, reference):
        if labels is None:
            edges.append(np.zeros(rgb.shape[:2], bool))
            continue
        labels = np.asarray(labels)
        if labels.shape != rgb.shape[:2]:
            raise ValueError(f"labels of shape {labels.shape} do not fit a {rgb.shape[:2]} image")
        edge = outline(labels)
        if width > 1:
            edge = ndimage.binary_dilation(edge, iterations=width - 1) & (labels != 0)
        edges.append(edge)
    predicted, given = edges
    rgb[given] = REFERENCE_RGB
    rgb[predicted] = PREDICTION_RGB
    rgb[given & predicted] = BOTH_RGB
    return rgb


def overlay(
    image_hu: np.ndarray,
    prediction: np.ndarray | None,
    reference: np.ndarray | None = None,
    window_hu: tuple[float, float] = BONE_WINDOW_HU,
) -> np.ndarray:
    """Return a slice in a bone window with the outlines of prediction and reference.

    Args:
        image_hu: (h, w) HU.
        prediction: (h, w) bool or integer labels, or None.
        reference: the same.
        window_hu: see `window`.

    Returns:
        (h, w, 3) uint8, see `paint`.

    Raises:
        ValueError: the image is not 2D, or as for `window` and `paint`.
    """
    image_hu = np.asarray(image_hu)
    if image_hu.ndim != 2:
        raise ValueError(f"`image_hu` must be (h, w), got shape {image_hu.shape}")
    return paint(window(image_hu, window_hu), prediction, reference)
