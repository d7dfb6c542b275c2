"""Comparing label files: which files belong together, all metrics of each pair, and the summary.

Every pair is scored as *binary*: foreground is every voxel with a label above 0, whichever
vertebra. Where both masks number their vertebrae, each vertebra is scored too. The metrics and
their rules for empty masks are defined in `spinejax.metrics`; here an undefined value is None,
which JSON writes as null.

    {"cases": {id: {"binary": {metric: value or None}, "voxels": {"tp", "fp", "fn", "tn"},
                    "labelled_range": {"dice", "precision", "recall"}, "bf_tolerance_mm": value,
                    "vertebrae": see `vertebra_scores.case_block`}},
     "summary": {"binary": {metric: {"mean", "std", "median", "pooled", "n"}},
                 "labelled_range": {"dice", "precision", "recall": as above},
                 "vertebrae": see `vertebra_scores.summarise`},
     "missing": {"prediction": [ids], "reference": [ids]},
     "without_vertebrae": {id: why its "vertebrae" are left out}}

"vertebrae" are left out of cases that have none, and of the summary if none has them; so is
"without_vertebrae" where nothing is left out or vertebrae were not asked for.

`mean`, `std` (of the population: divided by n, as numpy does) and `median` are over the `n` cases
where the metric is defined. `pooled` is the metric of all cases taken as one: voxel counts, surface
distances and contour counts are joined first, so that a large scan weighs more than a small one.
Cases where a mask is empty have no distances and stay out of the pooled `hd95_mm` and `assd_mm`;
in the pooled `nsd_1mm` their surface counts as missed. Cases in `missing` are in no figure.

`labelled_range` counts the axial slices from the lowest to the highest with a label: masks leave
vertebrae out that the scan cuts, and beyond this range nobody says which bone is spine.
"""

import logging
import math
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from spinejax import geometry
from spinejax.datasets.plain_folders import centroid_files, label_files, read_reference_centroids
from spinejax.errors import InputError
from spinejax.io import file_names, scanfile
from spinejax.io.centroids import Points
from spinejax.io.grids import on_grid_of
from spinejax.metrics import aggregate, boundary, classification, identification, overlap, surface
from spinejax.metrics.boundary import BoundaryCounts
from spinejax.metrics.classification import Counts
from spinejax.metrics.identification import NSD_TOLERANCE_MM, ScanScore
from spinejax.metrics.surface import SurfaceDistances
from spinejax.volume import LabelVolume

_log = logging.getLogger("spinejax")

_OF_COUNTS = {
    "dice": overlap.dice,
    "iou": overlap.iou,
    "miou_with_background": overlap.miou_with_background,
    "precision": classification.precision,
    "recall": classification.recall,
    "specificity": classification.specificity,
    "accuracy": classification.accuracy,
    "f1_pre_sen": classification.f1_pre_sen,
}

RANGE_METRICS = ("dice", "precision", "recall")
"""Metrics that are also given of the labelled range."""

METRICS: tuple[str, ...] = (
    "dice",
    "iou",
    "miou_with_background",
    "precision",
    "recall",
    "specificity",
    "accuracy",
    "bf_score",
    "f1_pre_sen",
    "hd95_mm",
    "assd_mm",
    "nsd_1mm",
)
"""Names of the binary metrics, in the order in which they are written."""


@dataclass(frozen=True, eq=False)
class PairScore:
    """All that is measured on one pair of masks; small, whatever the size of the masks.

    `vertebrae` is None where it was not asked for, and a reason in words where it cannot be had.
    """

    counts: Counts
    in_range: Counts
    distances: SurfaceDistances
    contours: BoundaryCounts
    bf_tolerance_mm: float
    vertebrae: ScanScore | str | None = None

    @property
    def binary(self) -> dict[str, float | None]:
        """Every metric of `METRICS`, None where it is undefined."""
        return _metrics(self.counts, self.distances, self.distances, self.contours)


def score_arrays(
    prediction: np.ndarray,
    reference: np.ndarray,
    affine: np.ndarray,
    name: str = "",
    *,
    vertebrae: bool = False,
    centroids: Mapping[int, np.ndarray] | None = None,
) -> PairScore:
    """Measure one prediction against its reference.

    Args:
        prediction: (x, y, z) integer labels or bool; foreground is everything above 0.
        reference: the same shape, on the same grid.
        affine: (4, 4) of that grid. Gives the spacing in mm, and which axis runs from foot to head:
            `bf_score` compares axial slices.
        name: what to call the case in warnings.
        vertebrae: whether to score each vertebra too, where both arrays hold VerSe ids.
        centroids: VerSe id -> (3,) voxel index of the reference's centroids, where vertebrae are
            scored: of bodies, and compared with the centres of the prediction's bodies
            (`metrics.bodies`). None takes the centres of mass of both masks.

    Returns:
        The measurements. An empty reference is warned of on the logger "spinejax".

    Raises:
        ValueError: the shapes differ.
    """
    spacing = geometry.spacing_mm(affine)
    directions = geometry.orientation(affine)
    axial = next(axis for axis, letter in enumerate(directions) if letter in "IS")
    score = PairScore(
        counts=classification.count(prediction, reference),
        in_range=_count_in_range(prediction, reference, axial),
        distances=surface.surface_distances(prediction, reference, spacing),
        contours=boundary.count_boundary(prediction, reference, spacing, slice_axis=axial),
        bf_tolerance_mm=boundary.default_tolerance_mm(reference.shape, spacing, axial),
        vertebrae=(
            identification.of_scan(prediction, reference, affine, centroids) if vertebrae else None
        ),
    )
    if score.counts.tp + score.counts.fn == 0:
        _log.warning(
            "%s: the reference has no foreground; its distances are undefined, and the other "
            "metrics say only whether the prediction is empty too",
            name or "a case",
        )
    return score


def comparable_labels(labels: str) -> Collection[int] | None:
    """What `scanfile.read_labels` takes as `valid` where only foreground is compared.

    Raises:
        InputError: `labels` is neither "verse" nor "binary".
    """
    return None if scanfile.valid_labels(labels) is None else range(256)


def score_files(
    pairs: Mapping[str, tuple[str | os.PathLike[str], str | os.PathLike[str]]],
    *,
    missing: Mapping[str, Iterable[str]] | None = None,
    labels: str = "verse",
    reference_centroids: Mapping[str, Path] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Score pairs of label files, one after the other.

    Memory holds one pair at a time.

    Args:
        pairs: case id -> (prediction, reference); NIfTI or MetaImage files.
        labels: "verse", numbers from 0 to 255, or "binary", any whole numbers from 0, of which only
            the foreground is scored.
        reference_centroids: case id -> JSON of the reference's centroids, in any of the conventions
            of `data.centroids`; None takes those of the masks.
        missing: ids that lack their "prediction" or "reference", to be listed in the result.
        progress: whether to show a bar.

    Returns:
        What the module's docstring shows.

    Raises:
        InputError: a file cannot be read, the two of a pair are on different grids, or centroids do
            not belong to their reference.
    """
    scores = {}
    valid = comparable_labels(labels)
    bar = tqdm(pairs.items(), desc="scoring", unit="scan", disable=not progress)
    for name, (prediction, reference) in bar:
        found, true = (scanfile.read_labels(path, valid) for path in (prediction, reference))
        array = on_grid_of(true, found, Path(reference), Path(prediction))
        file = (reference_centroids or {}).get(name)
        scores[name] = score_arrays(
            array,
            true.array,
            true.affine,
            name,
            vertebrae=labels == "verse",
            centroids=None if file is None else _read_centroids(file, true),
        )
    return collect(scores, missing)


def score_paths(
    prediction: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    *,
    labels: str = "verse",
    reference_centroids: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Score a label file against another, or a folder of them against another.

    Two files are compared whatever their names; the case is called after the reference. In folders
    (searched through their subfolders) files of one case are those whose names agree after
    dropping what says "mask" (`_seg`, `_msk`, `_seg-vert_msk`, `_ct`, ...) and upper case. A folder
    that also holds scans is searched for its label files only.

    A case that only one folder has is not scored: it is listed under "missing" and warned of. A
    missing prediction is no empty prediction, and how to count it is up to the reader.

    Args:
        prediction: NIfTI or MetaImage label file, or a folder of them.
        reference: the same kind of path.
        labels: as for `score_files`.
        reference_centroids: JSON file of the reference's centroids, or a folder of them, see
            `data.case_files.centroid_files`; None takes those of the masks.
        progress: whether to show a bar.

    Returns:
        What the module's docstring shows, ready for `files.write_json`.

    Raises:
        InputError: a path does not exist, one is a file and the other a folder, a folder has no
            label file or two for one case, no case is in both, a case has no centroids, or as for
            `score_files`.
    """
    prediction, reference = Path(prediction), Path(reference)
    if reference_centroids is not None and labels != "verse":
        raise InputError(
            "centroids are of numbered vertebrae; leave out --reference_centroids or --labels"
        )
    for path in (prediction, reference):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; check the path")
    if prediction.is_dir() != reference.is_dir():
        folder, file = sorted((prediction, reference), key=lambda path: path.is_file())
        raise InputError(
            f"{folder} is a folder and {file} is a file; give two label files or two folders"
        )
    points = None if reference_centroids is None else Path(reference_centroids)
    if not prediction.is_dir():
        name = file_names.parse(reference, ()).id or reference.name
        return score_files(
            {name: (prediction, reference)},
            labels=labels,
            reference_centroids=None if points is None else centroid_files(points, [name]),
            progress=progress,
        )
    found, true = label_files(prediction), label_files(reference)
    names = {key: name for key, (name, _) in {**found, **true}.items()}
    both = [key for key in true if key in found]
    if not both:
        raise InputError(
            f"no case is in both folders: {prediction} has "
            f"{aggregate.some(name for name, _ in found.values())}, {reference} has "
            f"{aggregate.some(name for name, _ in true.values())}; name the files alike"
        )
    missing = {
        "prediction": [names[key] for key in true if key not in found],
        "reference": [names[key] for key in found if key not in true],
    }
    for kind, ids in missing.items():
        if ids:
            _log.warning(
                "%d cases have no %s and are not scored: %s", len(ids), kind, aggregate.some(ids)
            )
    pairs = {names[key]: (found[key][1], true[key][1]) for key in both}
    return score_files(
        pairs,
        missing=missing,
        labels=labels,
        reference_centroids=None if points is None else centroid_files(points, pairs),
        progress=progress,
    )


def collect(
    scores: Mapping[str, PairScore], missing: Mapping[str, Iterable[str]] | None = None
) -> dict[str, Any]:
    """The result of scored cases, as the module's docstring shows it."""
    everything = list(scores.values())
    defined = [score.distances for score in everything if score.distances.defined]
    pooled = _metrics(
        classification.pooled(score.counts for score in everything),
        surface.pool(defined),
        surface.pool(score.distances for score in everything),
        boundary.pool(score.contours for score in everything),
    )
    cases = {name: score.binary for name, score in scores.items()}
    ranges = {name: _of_counts(score.in_range, RANGE_METRICS) for name, score in scores.items()}
    pooled_range = _of_counts(
        classification.pooled(score.in_range for score in everything), RANGE_METRICS
    )
    vertebrae, without = identification.split(
        {name: score.vertebrae for name, score in scores.items() if score.vertebrae is not None}
    )
    result: dict[str, Any] = {
        "cases": {
            name: {
                "binary": cases[name],
                "labelled_range": ranges[name],
                "voxels": asdict(score.counts),
                "bf_tolerance_mm": score.bf_tolerance_mm,
            }
            for name, score in scores.items()
        },
        "summary": {
            "binary": aggregate.over_cases(cases, pooled),
            "labelled_range": aggregate.over_cases(ranges, pooled_range),
        },
        "missing": {
            kind: list((missing or {}).get(kind, ())) for kind in ("prediction", "reference")
        },
    }
    for name, scan in vertebrae.items():
        result["cases"][name]["vertebrae"] = identification.case_block(scan)
    if vertebrae:
        result["summary"]["vertebrae"] = identification.summarise(vertebrae)
    if without:
        result["without_vertebrae"] = without
    return result


def _read_centroids(path: Path, reference: LabelVolume) -> Points | None:
    """Centroids of a reference; None where it has no numbers that they could belong to."""
    boxes = identification.find_labels(reference.array)
    return read_reference_centroids(path, reference, boxes) if max(boxes, default=0) > 1 else None


def _count_in_range(prediction: np.ndarray, reference: np.ndarray, axial: int) -> Counts:
    """Counts of the slices along axis `axial` from the first to the last labelled one."""
    others = tuple(axis for axis in range(3) if axis != axial)
    labelled = np.flatnonzero((reference > 0).any(axis=others))
    if not labelled.size:
        return Counts(0, 0, 0, 0)
    kept = np.s_[labelled[0] : labelled[-1] + 1]
    return classification.count(*(np.moveaxis(a, axial, 0)[kept] for a in (prediction, reference)))


def _of_counts(counts: Counts, names: Iterable[str]) -> dict[str, float | None]:
    """Metrics of counts by name, None where undefined."""
    values = {name: _OF_COUNTS[name](counts) for name in names}
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _metrics(
    counts: Counts,
    distances: SurfaceDistances,
    distances_with_missed: SurfaceDistances,
    contours: BoundaryCounts,
) -> dict[str, float | None]:
    values = {name: metric(counts) for name, metric in _OF_COUNTS.items()}
    values["bf_score"] = boundary.bf_score(contours)
    values["hd95_mm"] = surface.hd95_mm(distances)
    values["assd_mm"] = surface.assd_mm(distances)
    values["nsd_1mm"] = surface.nsd(distances_with_missed, NSD_TOLERANCE_MM)
    return {name: None if math.isnan(values[name]) else values[name] for name in METRICS}
