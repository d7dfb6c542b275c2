"""A slice of CT with the outlines of label maps drawn on it (numpy and scipy only).

The outline is one pixel wide and lies *inside* the region, so that a region of a single pixel is
still seen and nothing of its surroundings is covered.
"""

import numpy as np
from scipy import ndimage

PREDICTION_RGB = (255, 106, 0)
"""Orange: the outline of what was predicted."""

REFERENCE_RGB = (0, 210, 255)
"""Cyan: the outline of the reference; told from orange by every common form of colour blindness."""

BOTH_RGB = (255, 236, 64)
"""Yellow: pixels where the two outlines coincide; much lighter than the orange."""

BONE_WINDOW_HU = (-200.0, 800.0)
"""Grey levels of a CT picture: black at or below the first value, white at or above the second."""


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
    """Return the pixels of every labelled region that touch another label or background.

    Args:
        labels: (h, w) bool or integer; 0 is background. Regions with different labels that touch
            each keep their own outline, so neighbouring vertebrae stay apart.

    Returns:
        (h, w) bool. A pixel counts when one of its four neighbours inside the picture carries a
        different label; the edge of the picture is no border.
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
        reference: likewise.
        width: thickness of the outlines in pixels, grown inwards.

    Returns:
        (h, w, 3) uint8: prediction orange, reference cyan, yellow where both run.
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
        prediction: (h, w) bool or integer labels (0 background), or None for none.
        reference: likewise.
        window_hu: see `window`.

    Returns:
        (h, w, 3) uint8.
    """
    image_hu = np.asarray(image_hu)
    if image_hu.ndim != 2:
        raise ValueError(f"`image_hu` must be (h, w), got shape {image_hu.shape}")
    return paint(window(image_hu, window_hu), prediction, reference)
