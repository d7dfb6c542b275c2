"""Means over vertebrae: of a scan, of a region of the spine, of a data set.

* `id_rate`: identified vertebrae (`spinejax.metrics.identification`) over vertebrae of the
  reference. A missed one is not identified; extra ones are not penalised. The same ratio of one
  scan is what VerSe'19 calls recall.
* `id_precision`: identified vertebrae over predicted ones, VerSe'19's precision. None predicted
  although there are some: 0, as for `classification.precision`.
* `d_mean_mm`: mean distance from the reference's centroid to the predicted one of the same label,
  however far it is. A missed vertebra has none and stays out.
* `dice_mean`, `iou_mean`, `precision_mean`, `recall_mean`, `nsd_1mm_mean`: over all vertebrae of
  the reference; a missed one counts 0.
* `hd_mean_mm`, `hd95_mean_mm`, `assd_mean_mm`: over the vertebrae that were not missed. No distance
  is made up for the others: see how many they are.
* missed: only the reference has the label. Extra: only the prediction has it; it has neither Dice
  nor distance.
* A vertebra whose centroid is not in a centroid file stays out of the first three.

What is undefined is None. Data sets and regions are the means over all their vertebrae, as VerSe's
id.rate is; "over_scans" gives every scan the same weight.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from spinejax import geometry, labels
from spinejax.metrics import identification, summary
from spinejax.metrics.bodies import body_centres
from spinejax.metrics.identification import BINARY_PREDICTION, ScanScore, Vertebra

EMPTY_AMONG_BINARY = "the prediction is empty, and the others are binary"

OF_VERTEBRA = ("dice", "hd_mm", "hd95_mm", "assd_mm", "nsd_1mm", "centroid_distance_mm")
"""What is written of each vertebra."""

OF_SCAN = (
    "dice_mean",
    "id_rate",
    "d_mean_mm",
    "n_reference",
    "n_predicted",
    "n_missed",
    "n_extra",
)
"""What is written of each scan, beside `all_correct`."""


def of_scan(
    prediction: np.ndarray,
    reference: np.ndarray,
    affine: np.ndarray,
    centroids: Mapping[int, np.ndarray] | None,
) -> ScanScore | str:
    """Scores per vertebra of one scan, or why there are none.

    Args:
        prediction: (x, y, z) VerSe ids.
        reference: the same shape, on the same grid.
        affine: (4, 4) of that grid.
        centroids: VerSe id -> (3,) voxel index of the bodies of the reference, compared with those
            of the prediction's mask; None compares the centres of mass of both masks.
    """
    why = identification.not_comparable(
        identification.find_labels(prediction), identification.find_labels(reference)
    )
    if why is not None:
        return why
    predicted = None
    if centroids is not None:
        predicted = body_centres(prediction, geometry.spacing_mm(affine))
    return identification.score_scan(prediction, reference, affine, centroids, predicted)


def split(
    scores: Mapping[str, ScanScore | str],
) -> tuple[dict[str, ScanScore], dict[str, str]]:
    """Part the cases that have scores per vertebra from those that have none.

    Args:
        scores: case -> its measurements, or why there are none.

    Returns:
        The cases of either kind, in their order. An empty prediction among binary ones is of their
        kind: it does not count as one that misses every vertebra.
    """
    scans = {name: one for name, one in scores.items() if not isinstance(one, str)}
    without = {name: one for name, one in scores.items() if isinstance(one, str)}
    if BINARY_PREDICTION in without.values() and not any(one.n_predicted for one in scans.values()):
        without |= dict.fromkeys(scans, EMPTY_AMONG_BINARY)
        scans = {}
    return scans, {name: without[name] for name in scores if name in without}


def case_block(scan: ScanScore) -> dict[str, Any]:
    """What is written of one scan: the values of each vertebra, and their means.

    Returns:
        {"per_label": {"20": {"dice", "hd_mm", "hd95_mm", "assd_mm", "nsd_1mm",
        "centroid_distance_mm"}}, "dice_mean", "id_rate", "d_mean_mm", "n_reference", "n_predicted",
        "n_missed", "n_extra", "all_correct"}; the reference's labels only. What is undefined is
        None.
    """
    rows = {}
    for one in scan.vertebrae:
        values = asdict(one)
        rows[str(one.label)] = {name: values[name] for name in OF_VERTEBRA}
    means = _means(scan.vertebrae, scan.extra)
    return {
        "per_label": rows,
        **{name: means[name] for name in OF_SCAN},
        "all_correct": scan.all_correct,
    }


def summarise(scans: Mapping[str, ScanScore]) -> dict[str, Any]:
    """The scores of a data set, of each region and of each label.

    Args:
        scans: case -> its measurements; at least one.

    Returns:
        {"reference_centroids": "masks" or "files", "n_scans", the counts and means that the
        module's docstring defines, "all_correct": share of scans, "per_region": {"C", "T", "L": the
        same counts and means}, "per_label": {"20": the same}, "over_scans": {mean: {"mean", "std",
        "median", "pooled", "n"}}}.
    """
    vertebrae = [one for scan in scans.values() for one in scan.vertebrae]
    extra = [label for scan in scans.values() for label in scan.extra]
    seen = sorted({one.label for one in vertebrae} | set(extra), key=labels.order)

    def of(chosen: Iterable[int]) -> dict[str, Any]:
        kept = set(chosen)
        return _means(
            [one for one in vertebrae if one.label in kept], [one for one in extra if one in kept]
        )

    everything = of(seen)
    by_scan = {name: _means(scan.vertebrae, scan.extra) for name, scan in scans.items()}
    pooled = {name: value for name, value in everything.items() if not name.startswith("n_")}
    return {
        "reference_centroids": " and ".join(sorted({scan.centroids for scan in scans.values()})),
        "n_scans": len(scans),
        **everything,
        "all_correct": sum(scan.all_correct for scan in scans.values()) / len(scans),
        "per_region": {
            region: of(label for label in seen if labels.region(label) == region)
            for region in labels.REGIONS
        },
        "per_label": {str(label): of([label]) for label in seen},
        "over_scans": summary.over_cases(by_scan, pooled),
    }


def _means(vertebrae: Sequence[Vertebra], extra: Sequence[int]) -> dict[str, Any]:
    """Counts and means of some vertebrae, as the module's docstring defines them."""
    missed = sum(one.missed for one in vertebrae)
    # A vertebra whose centroid in the reference is unknown can be neither right nor wrong.
    judged = [one for one in vertebrae if one.identified is not None]
    hits = sum(bool(one.identified) for one in judged)
    answers = sum(not one.missed for one in judged) + len(extra)
    return {
        "n_reference": len(vertebrae),
        "n_predicted": len(vertebrae) - missed + len(extra),
        "n_missed": missed,
        "n_extra": len(extra),
        "dice_mean": _mean(one.dice for one in vertebrae),
        "iou_mean": _mean(one.iou for one in vertebrae),
        "precision_mean": _mean(one.precision for one in vertebrae),
        "recall_mean": _mean(one.recall for one in vertebrae),
        "hd_mean_mm": _mean(one.hd_mm for one in vertebrae),
        "hd95_mean_mm": _mean(one.hd95_mm for one in vertebrae),
        "assd_mean_mm": _mean(one.assd_mm for one in vertebrae),
        "nsd_1mm_mean": _mean(one.nsd_1mm for one in vertebrae),
        "id_rate": hits / len(judged) if judged else None,
        "id_precision": hits / answers if answers else (0.0 if judged else None),
        "d_mean_mm": _mean(one.centroid_distance_mm for one in judged),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
