"""Scores of predicted labels against reference labels: of files, of folders, of a `Segmentation`.

Every pair is scored as *binary*: foreground is every voxel with a label above 0, whichever
vertebra. The sacrum (26) and the coccyx (27) are none (`labels.drop_reserved`). If both masks
number their vertebrae, each vertebra is scored, too. `spinejax.metrics` defines the metrics and
their rules for empty masks. Here an undefined value is None (null in JSON). `Scores` is what
`score` returns and what `scores.json` holds.

`mean`, `std` (of the population: divided by n, as numpy does) and `median` are over the `n` cases
in which the metric is defined. `pooled` is the metric of all cases taken as one: voxel counts,
surface distances and contour counts are added first, so a large scan weighs more than a small one.
A case with an empty mask has no distances. It does not enter the pooled `hd95_mm` and `assd_mm`; in
the pooled `nsd_1mm` its surface counts as missed. Cases in `missing` enter no figure.

`labelled_range` counts the axial slices from the lowest to the highest labelled one. Reference
masks leave out the vertebrae that the scan cuts, so beyond this range the truth is unknown.
"""

import logging
import math
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

import numpy as np

from spinejax import failures, geometry
from spinejax.datasets.plain_folders import centroid_files, label_files, read_reference_centroids
from spinejax.errors import InputError
from spinejax.files import StrPath, check_output, expanded, write_json
from spinejax.io import file_names, scanfile
from spinejax.io.centroid_json import Points
from spinejax.io.grids import on_grid_of
from spinejax.label_schemes import BINARY
from spinejax.labels import MAX_ID, foreign_note, likely_schemes, likely_words, reserved_note
from spinejax.metrics import aggregate, boundary, classification, identification, overlap, surface
from spinejax.metrics.boundary import BoundaryCounts
from spinejax.metrics.classification import Counts
from spinejax.metrics.identification import NSD_TOLERANCE_MM, ScanScore
from spinejax.metrics.surface import SurfaceDistances
from spinejax.progress import Progress, silent
from spinejax.volume import LabelVolume

if TYPE_CHECKING:  # scoring files needs no jax
    from spinejax.predictor import Segmentation

logger = logging.getLogger("spinejax")

Values = dict[str, float | None]
"""Metric -> its value, None where it is undefined."""


class Statistics(TypedDict):
    """A metric over cases."""

    mean: float | None
    std: float | None
    median: float | None
    pooled: float | None
    n: int


class _Vertebrae(TypedDict):
    dice_mean: float | None
    id_rate: float | None
    d_mean_mm: float | None
    n_reference: int
    n_predicted: int
    n_missed: int
    n_extra: int


class VertebraScores(_Vertebrae):
    """Vertebrae of one scan, see `metrics.identification.case_block`."""

    per_label: dict[str, Values]
    all_correct: bool


class CaseScores(TypedDict):
    """One case; "vertebrae" is left out if it has none."""

    binary: Values
    labelled_range: Values
    voxels: dict[str, int]
    bf_tolerance_mm: float
    vertebrae: NotRequired[VertebraScores]


class VertebraSummary(_Vertebrae):
    """Vertebrae of all scans, see `metrics.identification.summarise`."""

    reference_centroids: str
    n_scans: int
    iou_mean: float | None
    precision_mean: float | None
    recall_mean: float | None
    hd_mean_mm: float | None
    hd95_mean_mm: float | None
    assd_mean_mm: float | None
    nsd_1mm_mean: float | None
    id_precision: float | None
    all_correct: float
    per_region: dict[str, Values]
    per_label: dict[str, Values]
    over_scans: dict[str, Statistics]


class Summary(TypedDict):
    """All cases; "vertebrae" is left out if no case has them."""

    binary: dict[str, Statistics]
    labelled_range: dict[str, Statistics]
    vertebrae: NotRequired[VertebraSummary]


class Scores(TypedDict):
    """Scores of cases.

    Attributes:
        cases: by case id.
        summary: over the cases.
        missing: "prediction" and "reference" -> ids of the cases that lack it.
        without_vertebrae: case id -> why it has no "vertebrae"; left out if there is no such case.
        failed: case id, or folder, -> why it is not scored; left out if nothing failed.
    """

    cases: dict[str, CaseScores]
    summary: Summary
    missing: dict[str, list[str]]
    without_vertebrae: NotRequired[dict[str, str]]
    failed: NotRequired[dict[str, str]]


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
"""Metrics that are also given for the labelled range."""

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
    """The measurements of one pair of masks; small, whatever the size of the masks.

    `vertebrae` is None if vertebrae are not scored, and text with the reason if they cannot be.
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
        prediction: (x, y, z) integer labels or bool; foreground is every value above 0.
        reference: the same shape, on the same grid.
        affine: (4, 4) of that grid. Gives distances in mm, and which axis runs from foot to
            head: `bf_score` compares axial slices.
        name: what to call the case in warnings.
        vertebrae: whether to score each vertebra too, where both arrays hold VerSe ids.
        centroids: VerSe id -> (3,) voxel index of the reference's body centroids. They are compared
            with the prediction's `metrics.body_centres`. None compares the masks' centres of mass.

    Returns:
        The measurements. An empty reference is warned of on the logger "spinejax".

    Raises:
        ValueError: the shapes differ.
    """
    steps = geometry.steps_mm(affine)
    directions = geometry.orientation(affine)
    axial = next(axis for axis, letter in enumerate(directions) if letter in "IS")
    score = PairScore(
        counts=classification.count(prediction, reference),
        in_range=_count_in_range(prediction, reference, axial),
        distances=surface.surface_distances(prediction, reference, steps),
        contours=boundary.count_boundary(prediction, reference, steps, slice_axis=axial),
        bf_tolerance_mm=boundary.default_tolerance_mm(reference.shape, steps, axial),
        vertebrae=(
            identification.of_scan(prediction, reference, affine, centroids) if vertebrae else None
        ),
    )
    if score.counts.tp + score.counts.fn == 0:
        logger.warning(
            "%s: the reference has no foreground; its distances are undefined, and the other "
            "metrics say only whether the prediction is empty, too",
            name or "a case",
        )
    return score


class _Notes:
    """What is to be said about the numbers in masks, once for all of them.

    `kinds` are the schemes that the user gave: "prediction" and "reference" -> name.
    """

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self._kinds = kinds
        self._reserved: dict[str, tuple[int, ...]] = {}
        self._foreign: dict[str, tuple[int, ...]] = {}
        self._likely: dict[str, tuple[str, ...]] = {}
        self._instead: dict[str, str] = {}

    def add(self, side: str, path: str, mask: LabelVolume) -> None:
        """Look at a mask of the prediction or the reference."""
        if BINARY in self._kinds.values():
            return
        self._reserved[path] = mask.reserved
        likely = likely_schemes(mask.found, self._kinds[side])
        if likely:
            self._likely[path] = likely
            self._instead.setdefault(side, likely[0])
        elif self._kinds[side] == "verse":
            self._foreign[path] = tuple(i for i in sorted(mask.found) if i > MAX_ID)

    def lines(self) -> list[str]:
        """Return the warnings."""
        found = [reserved_note(self._reserved), foreign_note(self._foreign)]
        if self._likely:
            first, likely = next(iter(self._likely.items()))
            what = f"the numbers of {first} look"
            if len(self._likely) > 1:
                what = f"the numbers of {len(self._likely)} masks (first: {first}) look"
            right = {**self._kinds, **self._instead}
            flags = f"labels={right['prediction']}"
            if right["reference"] != right["prediction"]:
                flags += f" and reference_labels={right['reference']}"
            found.append(f"{what} like {likely_words(likely)}; score with {flags}")
        return [note for note in found if note is not None]


def score(
    prediction: "StrPath | Segmentation",
    reference: StrPath,
    *,
    labels: str = "verse",
    reference_labels: str | None = None,
    reference_centroids: StrPath | None = None,
    output: StrPath | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Scores:
    """Score a label file against another, a folder of them against another, or a segmentation.

    Two files are compared whatever their names; the case is called after the reference. Folders are
    searched with their subfolders. Two files belong to one case if their names agree after dropping
    upper case and the words for "mask" (`_seg`, `_msk`, `_seg-vert_msk`, `_ct`, ...). Scans among
    the label files are ignored.

    A case that only one folder has is not scored: it is listed under "missing" and a warning names
    it. A missing prediction is no empty prediction; the reader decides how to count it.

    A pair that cannot be scored is logged and listed under "failed".

    Memory holds one pair at a time.

    Args:
        prediction: NIfTI, NRRD or MetaImage label file, a folder of them, or a `Segmentation`.
        reference: such a label file; a folder of them if `prediction` is a folder.
        labels: the numbers in the files, one of `label_schemes.NAMES`. Those of other programs
            become VerSe ids, and what is no vertebra becomes background. "verse" takes any numbers
            from 0 to 255. "binary" takes any whole numbers from 0; then only the foreground is
            scored. Of VerSe's numbers, sacrum and coccyx count as background in both masks
            (`labels.drop_reserved`), with one warning. Masks that seem to have other numbers than
            these cause a warning that names the likely ones (`labels.likely_schemes`). A
            `Segmentation` always has VerSe's.
        reference_labels: the numbers in the reference, where they differ from `labels`.
        reference_centroids: JSON file of the reference's centroids, or a folder of them, in any of
            the conventions of `io.centroids`; None takes the centroids of the masks.
        output: JSON file to write the scores to.
        overwrite: write it even over a file that this program did not write, unless it is scored.
        progress: shows the progress in scans.

    Raises:
        InputError: a path cannot be read, a file is given with a folder, a folder has no label file
            or two for one case, no case is in both, a pair is on different grids, or centroids are
            missing or belong to another reference; `output` may not be written.
    """
    kinds = {"prediction": labels, "reference": reference_labels or labels}
    if reference_centroids is not None and BINARY in kinds.values():
        raise InputError(
            "centroids are of numbered vertebrae; leave out --reference_centroids or --labels"
        )
    valid = {side: scanfile.valid_labels(kind, strict=False) for side, kind in kinds.items()}
    failed: dict[str, str] = {}
    pairs, missing = _pairs(prediction, expanded(reference), failed)
    points: dict[str, Path] = {}
    if reference_centroids is not None:
        points = centroid_files(expanded(reference_centroids), pairs)
    if output is not None:
        output = expanded(output)
        read = [path for pair in pairs.values() for path in pair if isinstance(path, Path)]
        read = [part for path in read for part in _parts(path)]
        check_output(output, "scores", inputs=[*read, *points.values()], overwrite=overwrite)
    notes = _Notes(kinds)
    with progress("scoring", len(pairs), "scan") as bar:

        def score_pair(name: str, pair: "tuple[Path | Segmentation, Path]") -> PairScore:
            try:
                centroids = points.get(name)
                return _score_files(
                    *pair,
                    name,
                    valid,
                    centroids,
                    vertebrae=BINARY not in kinds.values(),
                    notes=notes,
                )
            finally:
                bar.advance()

        scores, wrong = failures.each(pairs, score_pair)
    failed |= wrong
    if not scores:
        raise failures.summary(failed, len(failed), "nothing is scored")
    for note in notes.lines():
        logger.warning("%s", note)
    collected = collect(scores, missing, failed)
    if output is not None:
        write_json(output, collected, "scores", overwrite=overwrite)
    return collected


def _parts(path: Path) -> tuple[Path, ...]:
    """Return the files of a label map; a damaged header is for the scoring to name."""
    try:
        return scanfile.parts(path)
    except InputError:
        return (path,)


def _score_files(
    prediction: "Path | Segmentation",
    reference: Path,
    name: str,
    valid: Mapping[str, Collection[int] | None],
    centroids: Path | None,
    *,
    vertebrae: bool,
    notes: _Notes,
) -> PairScore:
    """Score two files; `notes` gets what is to be said about their numbers."""
    true = scanfile.read_labels(reference, valid["reference"])
    if isinstance(prediction, Path):
        found, where = scanfile.read_labels(prediction, valid["prediction"]), prediction
    else:
        scan = prediction.scan
        found = LabelVolume(prediction.labels, scan.native_affine, scan.disk)
        where = Path(prediction.name)
    notes.add("prediction", str(where), found)
    notes.add("reference", str(reference), true)
    return score_arrays(
        on_grid_of(true, found, reference, where),
        true.array,
        true.affine,
        name,
        vertebrae=vertebrae,
        centroids=None if centroids is None else _read_centroids(centroids, true),
    )


def _pairs(
    prediction: "StrPath | Segmentation", reference: Path, failed: dict[str, str]
) -> tuple[dict[str, tuple["Path | Segmentation", Path]], dict[str, list[str]]]:
    """Return case id -> (prediction, reference), and the ids that lack either.

    `failed` gets the folders that cannot be listed and the cases that have several files.
    """
    one = expanded(prediction) if isinstance(prediction, str | os.PathLike) else prediction
    if not isinstance(one, Path) and not hasattr(one, "mask"):  # a Segmentation would need jax
        raise InputError(
            f"{type(one).__name__} is no prediction; give the path of a label file, a folder of "
            "them, or a Segmentation"
        )
    for path in (one, reference):
        if isinstance(path, Path) and not path.exists():
            raise InputError(f"{path}: no such file or folder; check the path")
    if not isinstance(one, Path) or not one.is_dir():
        if reference.is_dir():
            given = f"{one} is a file" if isinstance(one, Path) else "the prediction is one scan"
            raise InputError(
                f"{reference} is a folder and {given}; give two label files or two folders"
            )
        return {file_names.parse(reference, ()).id or reference.name: (one, reference)}, {}
    if not reference.is_dir():
        raise InputError(
            f"{one} is a folder and {reference} is a file; give two label files or two folders"
        )
    found, true = label_files(one, failed), label_files(reference, failed)
    names = {key: name for key, (name, _) in {**found, **true}.items()}
    both = [key for key in true if key in found]
    if not both and failed:
        raise InputError(next(iter(failed.values())))
    if not both:
        raise InputError(
            f"no case is in both folders: {one} has "
            f"{aggregate.some(name for name, _ in found.values())}, {reference} has "
            f"{aggregate.some(name for name, _ in true.values())}; name the files alike"
        )
    several = {case.lower() for case in failed}  # files, of which none was taken
    missing = {
        "prediction": [names[key] for key in true if key not in found and key not in several],
        "reference": [names[key] for key in found if key not in true and key not in several],
    }
    for kind, ids in missing.items():
        if ids:
            logger.warning(
                "%d cases have no %s and are not scored: %s", len(ids), kind, aggregate.some(ids)
            )
    return {names[key]: (found[key][1], true[key][1]) for key in both}, missing


def collect(
    scores: Mapping[str, PairScore],
    missing: Mapping[str, Iterable[str]] | None = None,
    failed: Mapping[str, str] | None = None,
) -> Scores:
    """Return the scores of cases from their measurements; `missing` and `failed` as in `Scores`."""
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
    vertebrae, without = identification.comparable_scans(
        {name: score.vertebrae for name, score in scores.items() if score.vertebrae is not None}
    )
    by_case: dict[str, CaseScores] = {
        name: {
            "binary": cases[name],
            "labelled_range": ranges[name],
            "voxels": asdict(score.counts),
            "bf_tolerance_mm": score.bf_tolerance_mm,
        }
        for name, score in scores.items()
    }
    summary: Summary = {
        "binary": _over_cases(cases, pooled),
        "labelled_range": _over_cases(ranges, pooled_range),
    }
    for name, scan in vertebrae.items():
        by_case[name]["vertebrae"] = cast(VertebraScores, identification.case_block(scan))
    if vertebrae:
        summary["vertebrae"] = cast(VertebraSummary, identification.summarise(vertebrae))
    result: Scores = {
        "cases": by_case,
        "summary": summary,
        "missing": {
            kind: list((missing or {}).get(kind, ())) for kind in ("prediction", "reference")
        },
    }
    if without:
        result["without_vertebrae"] = without
    if failed:
        result["failed"] = dict(failed)
    return result


def _over_cases(cases: Mapping[str, Values], pooled: Values) -> dict[str, Statistics]:
    return cast(dict[str, Statistics], aggregate.over_cases(cases, pooled))


def _read_centroids(path: Path, reference: LabelVolume) -> Points | None:
    """Return the centroids of a reference; None if the reference is binary."""
    boxes = geometry.label_boxes(reference.array)
    return read_reference_centroids(path, reference, boxes) if max(boxes, default=0) > 1 else None


def _count_in_range(prediction: np.ndarray, reference: np.ndarray, axial: int) -> Counts:
    """Return the counts of the slices along axis `axial` from the first to the last labelled."""
    others = tuple(axis for axis in range(3) if axis != axial)
    labelled = np.flatnonzero((reference > 0).any(axis=others))
    if not labelled.size:
        return Counts(0, 0, 0, 0)
    kept = np.s_[labelled[0] : labelled[-1] + 1]
    return classification.count(*(np.moveaxis(a, axial, 0)[kept] for a in (prediction, reference)))


def _of_counts(counts: Counts, names: Iterable[str]) -> dict[str, float | None]:
    """Return metrics of counts by name, None where undefined."""
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
