"""VerSe's scores: whether every vertebra has its own number, and how well it is outlined.

Masks hold VerSe ids (`spinejax.labels`); other numbers are ignored. Each vertebra of the reference
is compared with the voxels of the *same label* in the prediction, on the reference's own grid. (The
challenge resampled masks to 1 mm.)

*Identified*: among the labels in both prediction and reference, the reference centroid nearest to
the predicted centroid has the same label, and is at most 20 mm away. This is the rule of the
challenge's code (https://github.com/anjany/verse, `utils/eval_utilities.py`, `get_hits`); its pages
(https://verse2019.grand-challenge.org/Tasks) ask for less than 20 mm. Here a tie counts as nearest;
the code takes the lowest label. Results: Sekuboyina et al. 2021, Medical Image Analysis 73:102166.
If all labels are off by one, the last vertebra may still count as identified where neighbours are
closer than 20 mm, as in the neck: the label of its true neighbour is not in both masks.

Means over the vertebrae of a scan, of a region of the spine, and of a data set:

* `id_rate`: identified vertebrae / vertebrae of the reference. A missed vertebra is not identified;
  extra ones do not count. For one scan this is VerSe'19's recall.
* `id_precision`: identified vertebrae / predicted vertebrae, VerSe'19's precision. It is 0 if
  nothing was predicted although the reference has vertebrae.
* `d_mean_mm`: mean distance between the reference centroid and the predicted centroid of the same
  label, however large. Missed vertebrae are left out.
* `dice_mean`, `iou_mean`, `precision_mean`, `recall_mean`, `nsd_1mm_mean`: over all vertebrae of
  the reference; a missed one counts 0.
* `hd_mean_mm`, `hd95_mean_mm`, `assd_mean_mm`: over the vertebrae that were not missed.
* missed: only the reference has the label. Extra: only the prediction has the label.
* Vertebrae that a centroid file lacks do not count in the first three.

Undefined values are None. Data sets and regions are means over all their vertebrae, as VerSe's
id.rate is; "over_scans" gives every scan the same weight.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spinejax import geometry, labels
from spinejax.metrics import aggregate, classification, overlap, surface
from spinejax.metrics.body_centres import body_centres
from spinejax.metrics.classification import Counts, same_shape

REACH_MM = 20.0
"""A centroid further than this from its reference does not identify the vertebra."""

NSD_TOLERANCE_MM = 1.0

OF_VERTEBRA = ("dice", "hd_mm", "hd95_mm", "assd_mm", "nsd_1mm", "centroid_distance_mm")
"""The values of each vertebra in the results."""

OF_SCAN = (
    "dice_mean",
    "id_rate",
    "d_mean_mm",
    "n_reference",
    "n_predicted",
    "n_missed",
    "n_extra",
)
"""The values of each scan in the results, beside `all_correct`."""

BINARY = "the masks are binary"

BINARY_PREDICTION = "the prediction is binary"

BINARY_REFERENCE = "the reference is binary"

EMPTY_AMONG_BINARY = "the prediction is empty, and the others are binary"

NO_VERTEBRA = "no label is that of a vertebra (1 to 25, or 28)"
"""Why a pair has no scores per vertebra."""

_SLAB_VOXELS = 1 << 22


@dataclass(frozen=True)
class VertebraScore:
    """Scores of one vertebra of the reference.

    Distances are in mm, and None if the vertebra was missed. `centroid_distance_mm` and
    `identified` are also None if the reference's centroid is unknown.
    """

    label: int
    missed: bool
    identified: bool | None
    dice: float
    hd_mm: float | None
    hd95_mm: float | None
    assd_mm: float | None
    nsd_1mm: float
    centroid_distance_mm: float | None
    iou: float
    precision: float
    recall: float


@dataclass(frozen=True)
class ScanScore:
    """Scores of one scan.

    Attributes:
        vertebrae: of the reference, from head to foot.
        extra: labels that only the prediction has.
        centroids: the source of the reference's centroids, "masks" or "files".
    """

    vertebrae: tuple[VertebraScore, ...]
    extra: tuple[int, ...]
    centroids: str

    @property
    def n_predicted(self) -> int:
        """The number of vertebrae in the prediction."""
        return sum(not one.missed for one in self.vertebrae) + len(self.extra)

    @property
    def all_correct(self) -> bool:
        """Whether every vertebra is identified, and none is missed or extra."""
        right = all(one.identified is not False and not one.missed for one in self.vertebrae)
        return right and not self.extra


def of_scan(
    prediction: np.ndarray,
    reference: np.ndarray,
    affine: np.ndarray,
    centroids: Mapping[int, np.ndarray] | None,
) -> ScanScore | str:
    """Score the vertebrae of one scan.

    Args:
        prediction: (x, y, z) VerSe ids.
        reference: the same shape, on the same grid.
        affine: (4, 4) of that grid.
        centroids: VerSe id -> (3,) voxel index of the vertebral bodies of the reference, which are
            compared with the bodies in the prediction's mask; None compares the centres of mass of
            both masks.

    Returns:
        The scores, or why the masks cannot be compared vertebra by vertebra.
    """
    why = not_comparable(geometry.label_boxes(prediction), geometry.label_boxes(reference))
    if why is not None:
        return why
    predicted = None
    if centroids is not None:
        predicted = body_centres(prediction, geometry.steps_mm(affine))
    return score_scan(prediction, reference, affine, centroids, predicted)


def not_comparable(found: Iterable[int], true: Iterable[int]) -> str | None:
    """Return why two masks cannot be compared vertebra by vertebra; None if they can.

    A mask whose only label is 1 counts as binary, not as a scan of C1 alone. An empty mask may be
    of either kind.

    Args:
        found: labels of the prediction, without 0.
        true: labels of the reference, without 0.
    """
    found, true = set(found), set(true)
    if found <= {1} and true <= {1}:
        return BINARY
    if found == {1}:
        return BINARY_PREDICTION
    if true == {1}:
        return BINARY_REFERENCE
    return None if (found | true) & labels.NAMES.keys() else NO_VERTEBRA


def comparable_scans(
    scores: Mapping[str, ScanScore | str],
) -> tuple[dict[str, ScanScore], dict[str, str]]:
    """Separate the cases with scores per vertebra from those without.

    Args:
        scores: case -> what `of_scan` returns.

    Returns:
        The cases with scores, and the others with the reason, both in their order. An empty
        prediction among binary ones counts as binary, not as one that misses every vertebra.
    """
    scans = {name: one for name, one in scores.items() if not isinstance(one, str)}
    without = {name: one for name, one in scores.items() if isinstance(one, str)}
    if BINARY_PREDICTION in without.values() and not any(one.n_predicted for one in scans.values()):
        without |= dict.fromkeys(scans, EMPTY_AMONG_BINARY)
        scans = {}
    return scans, {name: without[name] for name in scores if name in without}


def score_scan(
    prediction: np.ndarray,
    reference: np.ndarray,
    affine: np.ndarray,
    centroids: Mapping[int, np.ndarray] | None = None,
    predicted: Mapping[int, np.ndarray] | None = None,
) -> ScanScore:
    """Measure each vertebra of a scan.

    Time and memory grow with the number of labelled voxels only: a vertebra that is scattered over
    the scan costs no more than a compact one.

    Args:
        prediction: (x, y, z) VerSe ids, uint8.
        reference: the same shape, on the same grid.
        affine: (4, 4) of that grid.
        centroids: VerSe id -> (3,) voxel index of the reference's centroid; labels that the mask
            lacks are ignored. None takes the centres of mass of the mask.
        predicted: the same for the prediction.

    Returns:
        The measurements.

    Raises:
        ValueError: the shapes differ or are empty.
    """
    same_shape(prediction, reference)
    found, true = _measure(prediction, reference), _measure(reference, prediction)
    points = (
        {label: one.centroid for label, one in true.items()} if centroids is None else centroids
    )
    own = {label: one.centroid for label, one in found.items()} if predicted is None else predicted
    apart = identify(
        {k: geometry.voxel_to_world(affine, point) for k, point in own.items() if k in found},
        {k: geometry.voxel_to_world(affine, point) for k, point in points.items() if k in true},
    )
    steps = geometry.steps_mm(affine)
    vertebrae = []
    for label in sorted(true, key=labels.order):
        distance, identified = apart.get(label, (None, None))
        vertebrae.append(
            VertebraScore(
                label=label,
                missed=label not in found,
                identified=identified,
                **_outline(found.get(label, _NOTHING), true[label], steps),
                centroid_distance_mm=distance,
            )
        )
    extra = tuple(sorted(found.keys() - true.keys(), key=labels.order))
    return ScanScore(tuple(vertebrae), extra, "masks" if centroids is None else "files")


def identify(
    predicted_mm: Mapping[int, np.ndarray], reference_mm: Mapping[int, np.ndarray]
) -> dict[int, tuple[float | None, bool]]:
    """Return which vertebrae of the reference are identified (see the module's docstring).

    Args:
        predicted_mm: label -> (3,) centroid in mm, in any frame.
        reference_mm: label -> (3,) centroid in mm, in the same frame.

    Returns:
        Label of the reference -> (distance in mm of the predicted centroid of that label, or None
        if there is none; whether the vertebra is identified).
    """
    both = [label for label in reference_mm if label in predicted_mm]
    result: dict[int, tuple[float | None, bool]] = dict.fromkeys(reference_mm, (None, False))
    for label in both:
        apart = [float(np.linalg.norm(predicted_mm[label] - reference_mm[one])) for one in both]
        own = apart[both.index(label)]
        # The slack absorbs rounding, so that a scan in another axis order gets the same score.
        nearest = own <= min(apart) + surface.ROUNDING_MM
        result[label] = (own, nearest and own <= REACH_MM + surface.ROUNDING_MM)
    return result


@dataclass(frozen=True, eq=False)
class _Voxels:
    """One label of a mask.

    Attributes:
        count: its voxels.
        shared: its voxels that have the same label in the other mask.
        centroid: (3,) voxel index of its centre of mass.
        surface: (n, 3) voxel indices of the voxels that `surface.surface` marks.
    """

    count: int
    shared: int
    centroid: np.ndarray
    surface: np.ndarray


_NOTHING = _Voxels(0, 0, np.full(3, np.nan), np.zeros((0, 3), np.int32))


def _measure(array: np.ndarray, other: np.ndarray) -> dict[int, _Voxels]:
    """Measure the voxels of each vertebra's label in `array`; `other` is the other mask."""
    order = geometry.axes_by_stride(array)
    array, other = array.transpose(order), other.transpose(order)
    counts, shared = np.zeros(256, np.int64), np.zeros(256, np.int64)
    sums = np.zeros((3, 256))
    shells = []
    step = max(1, _SLAB_VOXELS // max(1, array[0].size))
    for start in range(0, len(array), step):
        index = np.nonzero(array[start : start + step])
        index[0][:] += start
        label = array[index]
        counts += np.bincount(label, minlength=256)
        shared += np.bincount(label[other[index] == label], minlength=256)
        edge = np.zeros(len(label), bool)
        for axis, along in enumerate(index):
            sums[axis] += np.bincount(label, weights=along, minlength=256)
            for neighbour in (along - 1, along + 1):
                beside = (*index[:axis], neighbour % array.shape[axis], *index[axis + 1 :])
                edge |= (array[beside] != label) | (neighbour < 0)
                edge |= neighbour == array.shape[axis]
        shells.append(np.stack([label, *index], axis=1)[edge].astype(np.int32))
    shell = np.concatenate(shells)
    shell = shell[np.argsort(shell[:, 0], kind="stable")]
    ends = np.cumsum(np.bincount(shell[:, 0], minlength=256))
    back = np.argsort(order)
    return {
        label: _Voxels(
            count=int(counts[label]),
            shared=int(shared[label]),
            centroid=(sums[:, label] / counts[label])[back],
            surface=shell[ends[label - 1] : ends[label], 1:][:, back],
        )
        for label in labels.VERSE_IDS
        if counts[label]
    }


def _outline(found: _Voxels, true: _Voxels, steps_mm: np.ndarray) -> dict[str, Any]:
    """Return overlap and surface distances of one vertebra; undefined ones are None."""
    counts = Counts(true.shared, found.count - true.shared, true.count - true.shared, 0)
    there, back = found.surface @ steps_mm, true.surface @ steps_mm
    apart = surface.SurfaceDistances(
        from_prediction=surface.Distances.of(surface.nearest_mm(there, back)),
        from_reference=surface.Distances.of(surface.nearest_mm(back, there)),
    )
    return {
        "dice": overlap.dice(counts),
        "iou": overlap.iou(counts),
        "precision": classification.precision(counts),
        "recall": classification.recall(counts),
        "hd_mm": surface.hausdorff_mm(apart) if apart.defined else None,
        "hd95_mm": surface.hd95_mm(apart) if apart.defined else None,
        "assd_mm": surface.assd_mm(apart) if apart.defined else None,
        "nsd_1mm": surface.nsd(apart, NSD_TOLERANCE_MM),
    }


def case_block(scan: ScanScore) -> dict[str, Any]:
    """Return the results of one scan: the values of each vertebra, and their means.

    Returns:
        {"per_label": {"20": {"dice", "hd_mm", "hd95_mm", "assd_mm", "nsd_1mm",
        "centroid_distance_mm"}}, "dice_mean", "id_rate", "d_mean_mm", "n_reference", "n_predicted",
        "n_missed", "n_extra", "all_correct"}, for the labels of the reference. Undefined values are
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
    """Return the scores of a data set, of each region and of each label.

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
        "over_scans": aggregate.over_cases(by_scan, pooled),
    }


def _means(vertebrae: Sequence[VertebraScore], extra: Sequence[int]) -> dict[str, Any]:
    """Return the counts and means of some vertebrae (see the module's docstring)."""
    missed = sum(one.missed for one in vertebrae)
    # A vertebra whose centroid in the reference is unknown is neither right nor wrong.
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
