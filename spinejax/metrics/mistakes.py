"""Mistakes of a prediction: the vertebrae that it misses, and its false positives.

The reference numbers its vertebrae, even if the prediction does not: each vertebra gets the share
of its voxels that was found. False positives belong to no vertebra and are sorted by place. Above
and below the labelled range (`spinejax.scoring`) the reference says nothing, because masks leave
out vertebrae that the scan cuts. Within the range, a false positive near the reference is a border
that was drawn too wide. One further away is another structure, or, at the ends of the range, part
of a neighbour without a label.

The HU tell whether mistakes depend on density: a dim vertebra, a bright rib.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from spinejax.geometry import bounding_box, label_boxes
from spinejax.metrics.classification import same_shape
from spinejax.metrics.surface import ROUNDING_MM, nearest_mm, steps_of, surface_voxels

NEAR_MM = 3.0
"""A false positive within this distance of the reference is `near`."""

PLACES = ("above", "near", "far", "below")
"""The places of false positives; `near` and `far` are within the labelled range."""


def analyse(
    image_hu: np.ndarray,
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
) -> dict[str, Any]:
    """Measure the mistakes of one prediction.

    Args:
        image_hu: (x, y, z) the scan in HU, canonical.
        reference: the same shape, uint8 labels; 0 is background.
        prediction: the same shape, bool or number; foreground is everything above 0.
        spacing_mm: voxel size along each axis, or `geometry.steps_mm`.

    Returns:
        {"vertebrae": [as `vertebrae` returns], "false_positives": as `false_positives` returns}.

    Raises:
        ValueError: shapes differ or are empty, or `spacing_mm` does not fit.
    """
    same_shape(image_hu, reference)
    same_shape(prediction, reference)
    return {
        "vertebrae": vertebrae(image_hu, reference, prediction, spacing_mm),
        "false_positives": false_positives(image_hu, reference, prediction, spacing_mm),
    }


def vertebrae(
    image_hu: np.ndarray,
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
) -> list[dict[str, Any]]:
    """Measure how much of each label was found.

    Args:
        image_hu: (x, y, z) the scan in HU, canonical.
        reference: the same shape, uint8 labels; 0 is background.
        prediction: the same shape; foreground is everything above 0.
        spacing_mm: voxel size along each axis, or `geometry.steps_mm`.

    Returns:
        One dict for each label, in ascending order: "label"; "ml"; "recall" in [0, 1]; "found_hu"
        and "missed_hu", the median HU of the found and of the missed voxels, None without any;
        "at_border", whether it touches a side of the scan; "at_end", whether it touches the head or
        the foot end. (A narrow field of view cuts the processes of every vertebra at its sides.)
    """
    voxel_ml = _voxel_ml(spacing_mm, reference.ndim)
    rows = []
    for label, box in label_boxes(reference).items():
        inside = reference[box] == label
        found = inside & (prediction[box] > 0)
        total, hits = int(np.count_nonzero(inside)), int(np.count_nonzero(found))
        hu = image_hu[box]
        touches = [
            side.start == 0 or side.stop == length
            for side, length in zip(box, reference.shape, strict=True)
        ]
        rows.append(
            {
                "label": label,
                "ml": total * voxel_ml,
                "recall": hits / total,
                "found_hu": _median(hu[found]),
                "missed_hu": _median(hu[inside & ~found]),
                "at_border": any(touches),
                "at_end": touches[2],
            }
        )
    return rows


def false_positives(
    image_hu: np.ndarray,
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
) -> dict[str, dict[str, float | None]]:
    """Measure the false positives by place.

    Distances are between voxel centres, to the surface of the reference. If the reference is empty,
    there is no labelled range, and the values of every place are None.

    Args:
        image_hu: (x, y, z) the scan in HU, canonical.
        reference: the same shape; everything above 0 is labelled.
        prediction: the same shape; foreground is everything above 0.
        spacing_mm: voxel size along each axis, or `geometry.steps_mm`.

    Returns:
        Place -> {"ml", "hu"}, with the median HU, None without false positives. The places are
        "total", those of `PLACES`, and "within", which is "near" and "far" together.
    """
    steps = steps_of(spacing_mm, reference.ndim)
    voxel_ml = _voxel_ml(spacing_mm, reference.ndim)
    voxels = _false_voxels(reference, prediction)
    hu = image_hu[tuple(voxels.T)]

    def measured(chosen: np.ndarray) -> dict[str, float | None]:
        return {"ml": int(np.count_nonzero(chosen)) * voxel_ml, "hu": _median(hu[chosen])}

    result = {"total": measured(np.ones(len(voxels), bool))}
    # The labelled range: the slices from the first to the last with a label.
    box = bounding_box(reference)
    if box is None:
        unknown: dict[str, float | None] = {"ml": None, "hu": None}
        return result | {place: dict(unknown) for place in (*PLACES, "within")}
    height, labelled = voxels[:, 2], box[2]
    below, above = height < labelled.start, height >= labelled.stop
    within = ~(below | above)
    near = np.zeros(len(voxels), bool)
    near[within] = (
        nearest_mm(
            voxels[within] @ steps,
            surface_voxels(reference) @ steps,
            NEAR_MM + 2 * ROUNDING_MM,  # the limit of the search is exclusive
        )
        <= NEAR_MM + ROUNDING_MM
    )
    chosen = {"above": above, "near": near, "far": within & ~near, "below": below, "within": within}
    return result | {place: measured(which) for place, which in chosen.items()}


def _false_voxels(reference: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Return the indices (n, 3) of the false positives."""
    box = bounding_box(prediction)
    if box is None:
        return np.zeros((0, prediction.ndim), np.int64)
    false = (prediction[box] > 0) & (reference[box] == 0)
    return np.argwhere(false) + [side.start for side in box]


def _voxel_ml(spacing_mm: Sequence[float] | np.ndarray, ndim: int) -> float:
    return float(np.prod(np.diag(steps_of(spacing_mm, ndim)))) / 1000


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if values.size else None
