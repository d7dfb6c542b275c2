"""The sequence decoder: which vertebra is which, for all vertebrae of a scan together.

A network that names every voxel by itself often names a whole vertebra wrongly, mostly by one
level, and then all vertebrae below it. Such an error harms a patient more than a ragged outline.
Here the vertebrae of a label map are first found (`instances`). Then all of them are named together
by the most probable legal sequence, which also leaves out instances that are no vertebrae.

Dynamic programming finds that sequence exactly. The cost of a sequence is minus the log of its
probability up to a constant. It is the sum of these costs:

* An instance costs minus the score of its class (`class_scores`). T13 and L6 have a further cost.
* An instance may be no vertebra (the top of the sacrum, a rib, a fragment). It then has no label
  and costs `false`. Below half of a vertebra's usual volume this cost falls, to one half of it at a
  quarter of the volume. At least one instance has a label.
* A step to the next label below (`labels.successors`) costs nothing, except the step from T11 to L1
  of a spine without T12. A step may skip labels of vertebrae that were not found. The first skipped
  label costs `gap`, and each further one `wider`, because what hides a vertebra often hides its
  neighbours, too.
* Two successive instances may be parts of one vertebra, at the cost `repeat`. Without this, one
  instance too many would shift all labels. The cost falls with the size of the smaller instance as
  `false` does.
* The distance d between two centroids tells how many vertebrae were skipped. It costs
  0.5 (log(d / usual) / 0.15)^2, with the usual distances of `pieces.STEP_MM`. A distance that is
  too short means a child, a fracture, or a vertebra in two parts rather than another level. It
  costs at most 3.4, so that two short distances are no reason to drop the vertebra between them. It
  costs nothing at a vertebra that an end of the scan cuts or that has less than half of the usual
  volume. For two parts of one vertebra the cost is 0.5 ((d / usual - 0.3) / 0.15)^2 if d is above
  0.3 usual, else 0.
* If the scan continues by more than 1.5 vertebrae above the first or below the last vertebra, the
  spine should end there: with C1; with L5 or L6, or with L4 at the cost `no_l5`. Any other end
  costs `gap`.

"Successive" skips instances without a label. The margin of a sequence is the cost of the best
sequence that differs in at least one label, minus the cost of the best.

The costs also give probabilities. The probability of a naming is exp(-cost), divided by the sum
over all legal namings, which the same dynamic programme finds ("forward-backward"). From it come
the probability of each vertebra's name, that of each variant of the spine, and the best namings.

Two numbers calibrate these probabilities (`Calibration`). The first is the weight of the network's
scores: neighbouring vertebrae err together, so their scores are not independent. The second is the
probability of a *level error*: the network names all vertebrae of a scan one to three levels too
high or too low. Then the scores of all vertebrae agree, and only landmarks, such as the end of the
spine in view, contradict them. With a level error the score of a label is that of the label so many
levels below or above, and a naming's probability is the sum over all level errors.

A network may also number the lumbar vertebrae from the sacrum upwards, as in a spine without L6.
Nobody can do better in a scan without ribs, so a calibrated decoder always allows for it: with the
probability of L6 times `_FROM_SACRUM`, L2 to L6 have the scores of L1 to L5.
"""

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from spinejax import labels
from spinejax.errors import InputError, check_choice
from spinejax.inference.instances import Instances
from spinejax.inference.pieces import NUM_LABELS, STEP_MM, VOLUME_ML

ANOMALIES = ("T13", "L6", "no T12", "no L5")
"""The variants of the spine that the decoder knows."""

CERTAIN = 0.98
"""A name of at least this probability is certain: at most 1 of 50 such names should be wrong."""

NAMINGS = 5
"""The most namings in a record."""

_LISTED = 0.01
"""Namings of a smaller probability are left out of the record, except the best one."""

_SEARCHED = 12
"""The number of best namings that are searched for each level error."""

_LEVEL_ERRORS = {-3: 0.05, -2: 0.1, -1: 0.35, 1: 0.35, 2: 0.1, 3: 0.05}
"""Levels -> the share of level errors by so many levels."""

_FROM_SACRUM = 0.5
"""The share of spines with L6 whose lumbar vertebrae a network numbers from the sacrum. It is an
assumption: as likely as not."""

_REVERSED_BY = math.log(1000)
"""A scan counts as reversed if its sequence is cheaper by this much from foot to head."""

_LIKENESS = 0.5
"""Likeness of T13 to T12 and of L6 to L5; 0.3 to 0.6 gave 130 phantoms about the same names."""

_SMALL = 0.85
"""Below this ratio of measured to usual distances, distances are rescaled (children)."""


@dataclass(frozen=True)
class Costs:
    """The cost of each deviation from the usual spine: minus the log of its probability.

    A cost of infinity forbids the deviation. The defaults of the variants are counts of the 113
    training scans of VerSe'20 (Sekuboyina et al. 2021; counted in the set-up files of Payer et al.
    2020), which collected variants; they are rarer in the population. T13 occurs in 2 of the 80
    scans that show T12, L6 in 16 of the 83 that show L5, and T12 is missing in 3 of the 83 that
    would show it. A missing L5 was not counted (86 scans show L4, and 83 L5: at most 3 of 86);
    0.025 is the rate of our phantoms. The others are assumptions about networks. `gap`: 2 of 100
    vertebrae are not found. `wider`: beside a vertebra that is not found, 1 of 5 is not found
    either. `repeat`: 2 of 100 are found in two parts. `false` was chosen on 114 phantoms; from
    0.001 to 0.005 about as many names were right.
    """

    t13: float = -math.log(2 / 80)
    l6: float = -math.log(16 / 83)
    no_t12: float = -math.log(3 / 83)
    no_l5: float = -math.log(0.025)
    gap: float = -math.log(0.02)
    wider: float = -math.log(0.2)
    repeat: float = -math.log(0.02)
    false: float = -math.log(0.001)


@dataclass(frozen=True)
class Calibration:
    """How far the names of a network can be trusted, see the module's docstring.

    `spinejax calibrate` finds both numbers. The defaults are not calibrated: the probabilities are
    then too high.
    """

    weight: float = 0.7
    """Weight of the network's log scores, above 0 and at most 1. The default was chosen on 114
    phantoms, by the names alone, and checked on 20 more."""
    level_error: float = 0.0
    """Probability of a level error, at least 0 and below 1."""

    @property
    def fitted(self) -> bool:
        """Whether the numbers can be those of `spinejax calibrate`: it allows for level errors."""
        return self.level_error > 0


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that the decoder knows of n instances, from head to foot."""

    class_sums: np.ndarray
    """(n, 26) probabilities of a network, summed over the voxels of each instance."""
    centroids_mm: np.ndarray
    """(n, 3) places, scaled to the distances of an adult."""
    cut: np.ndarray
    """(n,) bool, whether an end of the scan cuts the instance."""
    sizes: np.ndarray
    """(n,) volumes divided by the usual volume in this person."""
    room_mm: tuple[float, float]
    """Height that the scan shows above the first and below the last instance, scaled, too."""

    def upside_down(self) -> "Evidence":
        """Return the same instances from foot to head."""
        return Evidence(
            self.class_sums[::-1],
            self.centroids_mm[::-1],
            self.cut[::-1],
            self.sizes[::-1],
            (self.room_mm[1], self.room_mm[0]),
        )


@dataclass(frozen=True)
class Naming:
    """One naming of the vertebrae of a scan."""

    labels: tuple[int, ...]
    """VerSe ids from head to foot, each once."""
    probability: float

    def __str__(self) -> str:
        """Return names and probability, such as "T10-T12, T13, L1-L3 (0.55)"."""
        runs: list[list[int]] = []
        for label in self.labels:
            if runs and labels.successors(runs[-1][-1])[:1] == (label,) and runs[-1][-1] != _T13:
                runs[-1].append(label)
            else:
                runs.append([label])
        ends = [dict.fromkeys(labels.name(run[i]) for i in (0, -1)) for run in runs]
        return f"{', '.join(map('-'.join, ends))} ({self.probability:.2f})"


@dataclass(frozen=True)
class Record:
    """The decisions of the decoder about a scan."""

    labels: tuple[int, ...]
    """VerSe ids from head to foot, each once, with those that were dropped."""
    cost: float
    """Minus the log of the sequence's probability, up to a constant."""
    margin: float
    """The least of `margins`; infinite without labels."""
    margins: tuple[float, ...]
    """For each label, the extra cost of the best sequence that names the vertebra differently."""
    others: tuple[int, ...]
    """For each label, the VerSe id that this sequence gives to the vertebra; 0 for no vertebra, and
    where no other sequence is legal."""
    probabilities: tuple[float, ...]
    """For each label, the probability that it is the vertebra's name."""
    namings: tuple[Naming, ...]
    """The most probable namings, the best first; at most `NAMINGS`."""
    variants: dict[str, float]
    """Each allowed variant of `ANOMALIES` -> the probability that the spine shows it."""
    calibration: Calibration
    """With which the probabilities were computed."""
    anomalies: tuple[str, ...]
    """The variants of `ANOMALIES` that the labels show."""
    skipped: tuple[int, ...]
    """VerSe ids of vertebrae between the labelled ones that were not found."""
    cut: tuple[int, ...]
    """VerSe ids of vertebrae that an end of the scan cuts."""
    dropped: tuple[int, ...]
    """The ids of `cut` that were left out of the labels."""
    unnamed: int
    """The number of instances that are no vertebra and were left out."""
    reversed: bool
    """Whether the sequence is far more probable from foot to head (see `label_instances`)."""
    evidence: Evidence | None = field(default=None, compare=False, repr=False)
    """What the decisions rest on; `decode` repeats them with another calibration."""

    @property
    def calibrated(self) -> bool:
        """Whether the probabilities are calibrated."""
        return self.calibration.fitted

    @property
    def certain(self) -> bool:
        """Whether every name is certain (`CERTAIN`)."""
        return min(self.probabilities, default=1.0) >= CERTAIN


@dataclass(frozen=True, eq=False)
class Labelling:
    """The labelled vertebrae of a scan."""

    array: np.ndarray
    """(x, y, z) uint8 VerSe ids."""
    centroids_mm: dict[int, np.ndarray]
    """VerSe id -> (3,) voxel index x spacing, from head to foot."""
    record: Record


def label_instances(
    instances: Instances,
    *,
    class_sums: np.ndarray | None = None,
    anomalies: Collection[str] = ANOMALIES,
    costs: Costs = Costs(),  # noqa: B008 - frozen
    calibration: Calibration = Calibration(),  # noqa: B008 - frozen
    drop_cut: bool = False,
) -> Labelling:
    """Name instances.

    The record is `reversed` if the instances from foot to head have a legal sequence that is more
    than 1000 times as probable: the file's header may exchange head and foot. The labels still
    follow the header. Two vertebrae are rarely enough to detect this.

    Args:
        instances: from head to foot.
        class_sums: (n, 26) probabilities of a network summed over the voxels of each instance; None
            takes the numbers of voxels of each class.
        anomalies: see `decode_sequence`.
        costs: see `decode_sequence`.
        calibration: of the network.
        drop_cut: whether to leave out vertebrae that an end of the scan cuts, as VerSe does. They
            still help to name their neighbours.

    Returns:
        The labels on the grid of the instances, centroids and record.

    Raises:
        InputError: as for `class_scores` and `decode_sequence`.
    """
    items = instances.items
    if class_sums is None:
        class_sums = np.array([item.counts for item in items]).reshape(-1, NUM_LABELS)
    elif np.shape(class_sums) != (len(items), NUM_LABELS):
        raise InputError(
            f"class_sums has shape {np.shape(class_sums)}; give ({len(items)}, {NUM_LABELS}), a "
            "row for each instance and a column for each vertebra class"
        )
    class_sums = np.asarray(class_sums)
    centroids = np.array([item.centroid_mm for item in items]).reshape(-1, 3)
    cut = np.array([item.cut_head or item.cut_foot for item in items], bool)
    classes = class_sums.argmax(axis=1)
    sizes = np.array([item.volume_ml for item in items]) / VOLUME_ML[classes]
    if not cut.all():
        sizes /= min(1.0, np.median(sizes[~cut]))  # all vertebrae of a child are small
    sizes[cut] = 1.0  # a cut vertebra is small only because the scan ends
    scale = _scale(classes, centroids, cut)
    room = (instances.room_mm[0] / scale, instances.room_mm[1] / scale)
    evidence = Evidence(class_sums, centroids / scale, cut, sizes, room)
    best, upside_down = (
        decode(one, anomalies=anomalies, costs=costs, calibration=calibration)
        for one in (evidence, evidence.upside_down())
    )
    to = np.zeros(256, np.uint8)
    points, cut_labels, dropped = {}, [], []
    named = tuple(dict.fromkeys(label for label in best.labels if label))
    for label in named:
        own = np.flatnonzero(np.array(best.labels) == label)
        if cut[own].any():
            cut_labels.append(label)
            if drop_cut:
                dropped.append(label)
                continue
        to[own + 1] = label
        points[label] = np.average(
            centroids[own], axis=0, weights=[items[i].volume_ml for i in own]
        )
    record = Record(
        labels=named,
        cost=best.cost,
        margin=best.margin if named else math.inf,
        margins=_of_labels(best, best.margins),
        others=_others_of_labels(best),
        probabilities=_of_labels(best, best.probabilities),
        namings=best.namings,
        variants=best.variants,
        calibration=calibration,
        anomalies=best.anomalies,
        skipped=best.skipped,
        cut=tuple(cut_labels),
        dropped=tuple(dropped),
        unnamed=best.labels.count(0),
        reversed=best.cost - upside_down.cost > _REVERSED_BY,
        evidence=evidence,
    )
    return Labelling(to[instances.array], points, record)


def _of_labels(found: "Sequence", values: tuple[float, ...]) -> tuple[float, ...]:
    """Return for each label the least of the values of its instances."""
    least: dict[int, float] = {}
    for label, value in zip(found.labels, values, strict=True):
        if label:
            least[label] = min(value, least.get(label, math.inf))
    return tuple(least.values())


def _others_of_labels(found: "Sequence") -> tuple[int, ...]:
    """Return for each label the other name of the instance whose margin is the least."""
    least: dict[int, tuple[float, int]] = {}
    for label, margin, other in zip(found.labels, found.margins, found.others, strict=True):
        if label and (label not in least or margin < least[label][0]):
            least[label] = margin, other
    return tuple(other for _, other in least.values())


def decode(
    evidence: Evidence,
    *,
    anomalies: Collection[str] = ANOMALIES,
    costs: Costs = Costs(),  # noqa: B008 - frozen
    calibration: Calibration = Calibration(),  # noqa: B008 - frozen
) -> "Sequence":
    """Return the most probable naming of some instances; see `decode_sequence`."""
    return decode_sequence(
        _scores(evidence, calibration.weight),
        centroids_mm=evidence.centroids_mm,
        cut=evidence.cut,
        sizes=evidence.sizes,
        room_mm=evidence.room_mm,
        anomalies=anomalies,
        costs=costs,
        level_error=calibration.level_error,
    )


def _scores(evidence: Evidence, weight: float) -> np.ndarray:
    """Return log scores (n, 26) of the classes of some instances."""
    # A fragment below L5 is part of the sacrum rather than L6.
    likeness = np.where(evidence.sizes < 0.5, 0.0, _LIKENESS)
    return class_scores(evidence.class_sums, weight=weight, likeness=likeness)


def level_odds(level_error: float) -> np.ndarray:
    """Return (8,), the odds of each error of `by_level_error`; the first is none.

    Without level errors, there is no other error, either: the decoder is not calibrated.
    """
    shares = [level_error * share for share in _LEVEL_ERRORS.values()]
    sacrum = 1.0 - level_error if level_error > 0 else 0.0
    return np.array([1.0 - level_error, *shares, sacrum])


def by_level_error(
    evidence: Evidence,
    weights: Iterable[float],
    *,
    anomalies: Collection[str] = ANOMALIES,
    costs: Costs = Costs(),  # noqa: B008 - frozen
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of names if the error of the network were known, for w weights.

    The errors are none, six level errors, and numbering from the sacrum. With odds q
    (`level_odds`), the probabilities of the names are the mean of those of all errors, with the
    weights q x likelihood.

    Args:
        evidence: of n instances, at least one.
        weights: of the network's scores, see `Calibration`.
        anomalies: see `decode_sequence`.
        costs: see `decode_sequence`.

    Returns:
        (w, 8) log likelihood of each error, up to a constant of the weight, and (w, 8, n, 27)
        probabilities of the classes 1 to 26, and last of no vertebra.
    """
    frame = _frame(
        len(evidence.class_sums),
        evidence.centroids_mm,
        evidence.cut,
        evidence.sizes,
        evidence.room_mm,
        frozenset(anomalies),
        costs,
    )
    likelihoods, probabilities = [], []
    for weight in weights:
        own = _own_costs(_scores(evidence, weight), anomalies, costs, errors=True)
        chain = frame.chain(_error_costs(anomalies, costs), own)
        forward, backward = chain.forward(_sum), chain.backward(_sum)
        total = _sum((forward + chain.last).reshape(len(own), -1), 1)
        named = np.exp(total[:, None, None] - forward - backward)
        none = np.maximum(0.0, 1.0 - named.sum(axis=2, keepdims=True))
        likelihoods.append(-total)
        probabilities.append(np.concatenate([named, none], axis=2))
    return np.stack(likelihoods), np.stack(probabilities)


def _scale(classes: np.ndarray, centroids_mm: np.ndarray, cut: np.ndarray) -> float:
    """Return the scale of distances: 1, or less if most vertebrae lie closer together than usual.

    Otherwise each short distance, of a child or a worn disc, would favour dropping a vertebra.
    """
    apart = np.linalg.norm(np.diff(centroids_mm, axis=0), axis=1) / STEP_MM[classes[:-1]]
    whole = ~(cut[:-1] | cut[1:])
    if whole.sum() < 3:
        return 1.0
    return min(1.0, max(0.5, float(np.median(apart[whole])) / _SMALL))


@dataclass(frozen=True)
class Sequence:
    """The most probable legal sequence."""

    labels: tuple[int, ...]
    """VerSe ids from head to foot, one for each instance; parts of one vertebra have the same id,
    and an instance that is no vertebra has 0."""
    cost: float
    """Minus the log of its probability, up to a constant that all sequences share."""
    margin: float
    """The least of `margins`; infinite without instances."""
    margins: tuple[float, ...]
    """For each instance, the extra cost of the best sequence that names it differently."""
    others: tuple[int, ...]
    """For each instance, the VerSe id that this sequence gives it; 0 for no vertebra, and where no
    other sequence is legal."""
    probabilities: tuple[float, ...]
    """For each instance, the probability of its label."""
    namings: tuple[Naming, ...]
    """The most probable namings, the best first; at most `NAMINGS`. Sequences with the same labels
    on other instances count together."""
    variants: dict[str, float]
    """Each allowed variant of `ANOMALIES` -> the probability of all sequences with it."""
    anomalies: tuple[str, ...]
    """The variants of `ANOMALIES` in it."""
    skipped: tuple[int, ...]
    """VerSe ids of vertebrae between the labelled ones that were not found."""


def class_scores(
    class_sums: np.ndarray,
    smoothing: float = 0.05,
    weight: float = 0.7,
    likeness: float | np.ndarray = 0.0,
) -> np.ndarray:
    """Return log scores (n, 26) of the classes of instances.

    The score is `weight` x log p, with p = (1 - smoothing) x share + smoothing / 26 and the share
    of the class in the row. If all voxels of a vertebra have one class, the probability of another
    class is thus `smoothing`, whatever the size: voxels of one vertebra err together, so their
    number is no evidence. Neighbours also err together, mostly by one level in one direction;
    `weight` allows for this. Overruling an instance costs 4.3 by default. In a row of zeros all
    classes are equally probable.

    A network that has seen few T13 and L6 may call them T12 and L5, which look like them. The share
    of T13 and L6 therefore grows by `likeness` x the share of T12 and L5.

    Args:
        class_sums: (n, 26) numbers of voxels, or sums of a network's probabilities, at least 0.
        smoothing: in (0, 1].
        weight: in (0, 1]; with 1 the scores are log probabilities. The default was chosen on 114
            phantoms and checked on 20 more.
        likeness: in [0, 1], for all instances, or (n,) for each.

    Raises:
        InputError: an argument has another shape or range.
    """
    sums = np.asarray(class_sums, np.float64)
    if sums.ndim != 2 or sums.shape[1] != NUM_LABELS:
        raise InputError(f"class sums of shape {sums.shape}; they are (instances, {NUM_LABELS})")
    if not np.isfinite(sums).all() or (sums < 0).any():
        raise InputError("class sums must be finite and not negative; give counts or probabilities")
    if not 0 < smoothing <= 1:
        raise InputError(f"smoothing = {smoothing} must be above 0 and at most 1")
    if not 0 < weight <= 1:
        raise InputError(f"weight = {weight} must be above 0 and at most 1")
    if np.min(likeness, initial=0.0) < 0 or not np.max(likeness, initial=0.0) <= 1:
        raise InputError(f"likeness = {likeness} must be at least 0 and at most 1")
    total = sums.sum(axis=1, keepdims=True)
    shares = np.divide(sums, total, out=np.zeros_like(sums), where=total > 0)
    for variant, usual in (("T13", "T12"), ("L6", "L5")):
        place, like = (labels.VERSE_IDS.index(labels.id_of(name)) for name in (variant, usual))
        shares[:, place] += likeness * shares[:, like]
    shares[total[:, 0] == 0] = 1 / NUM_LABELS
    return weight * np.log((1 - smoothing) * shares + smoothing / NUM_LABELS)


_MOST_FALSE = 20
"""The most successive instances without a label between two vertebrae."""


def decode_sequence(
    scores: np.ndarray,
    *,
    centroids_mm: np.ndarray | None = None,
    cut: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
    room_mm: tuple[float, float] = (0.0, 0.0),
    anomalies: Collection[str] = ANOMALIES,
    costs: Costs = Costs(),  # noqa: B008 - frozen
    level_error: float = 0.0,
) -> Sequence:
    """Return the most probable legal sequence, see the module's docstring.

    Without level errors, it is the sequence of least cost.

    Args:
        scores: (n, 26) log scores of the classes 1 to 26, one row for each instance from head to
            foot.
        centroids_mm: (n, 3) places of the instances; None if unknown.
        cut: (n,) bool, the instances that an end of the scan cuts; None for none.
        sizes: (n,) volumes divided by the usual volume in this person; None if unknown.
        room_mm: height that the scan shows above the first and below the last instance.
        anomalies: the variants of `ANOMALIES` that are allowed.
        costs: of deviations.
        level_error: probability of a level error, at least 0 and below 1.

    Returns:
        The sequence with its cost, margins and probabilities.

    Raises:
        InputError: an argument has another shape or range, or no sequence is legal: all scores are
            minus infinity, or a spine has fewer vertebrae than there are instances and `costs`
            allow neither repeats nor false instances.
    """
    scores = np.asarray(scores, np.float64)
    n = len(scores)
    _check(scores, centroids_mm, cut, sizes, anomalies, costs)
    if not 0 <= level_error < 1:
        raise InputError(f"level_error = {level_error} must be at least 0 and below 1")
    if n == 0:
        return Sequence((), 0.0, math.inf, (), (), (), (), {}, (), ())
    allowed = frozenset(anomalies)
    frame = _frame(n, centroids_mm, cut, sizes, room_mm, allowed, costs)
    own = _own_costs(scores, anomalies, costs, errors=level_error > 0)
    errors = np.zeros(1)
    if level_error > 0:
        errors = _error_costs(anomalies, costs) - np.log(level_odds(level_error))
    chain = frame.chain(errors, own)
    forward, backward = chain.forward(_least), chain.backward(_least)
    through = np.concatenate(
        [(forward + backward).min(axis=0), chain.least_without(forward, backward)[:, None]], axis=1
    )
    if not np.isfinite(through[0].min()):
        raise InputError(
            f"no legal sequence of {n} vertebrae: scores and costs forbid all; smooth the scores, "
            "or let vertebrae repeat or instances be false"
        )
    total, ranked = chain.ranked(forward)
    path, _ = ranked[0]
    cost = float(chain.costs_of(path).min())
    # `through` is the least cost of all sequences that give a label to an instance. Every sequence
    # other than the best differs from it at some instance.
    through[np.arange(n), path] = np.inf
    margins = np.maximum(0.0, through.min(axis=1) - cost)
    probability = np.exp(total - _sum(chain.forward(_sum) + chain.backward(_sum), axis=0))
    probability = np.column_stack([probability, 1.0 - probability.sum(axis=1)])
    kept = [i for i in range(n) if path[i] < NUM_LABELS]
    ids = _ids(path)
    taken, skipped = _anomalies_of(ids, kept, allowed, frame, costs)
    variants = {}
    for name in (name for name in ANOMALIES if name in allowed):
        without = chain.without(
            name, {pair: ways[name] for pair, ways in frame.ways.items()}, frame.below, costs
        )
        variants[name] = max(0.0, 1.0 - math.exp(total - without.total()))
    return Sequence(
        labels=ids,
        cost=cost,
        margin=float(margins.min()),
        margins=tuple(map(float, margins)),
        others=_ids(np.where(np.isfinite(margins), through.argmin(axis=1), NUM_LABELS).tolist()),
        probabilities=tuple(
            float(np.clip(probability[i, label], 0.0, 1.0)) for i, label in enumerate(path)
        ),
        namings=_namings(ranked),
        variants=variants,
        anomalies=tuple(name for name in ANOMALIES if name in taken and name in anomalies),
        skipped=tuple(skipped),
    )


@dataclass(frozen=True, eq=False)
class _Frame:
    """What the places of n instances cost, whatever they look like."""

    apart: np.ndarray
    """(n, n) distances in mm; NaN for unknown ones."""
    away: np.ndarray
    """(n,) bool, whether the centroid may differ from that of the whole vertebra."""
    below: np.ndarray
    """(n,) height that the scan shows below, in mm."""
    first: np.ndarray
    """See `_Chain`."""
    last: np.ndarray
    """(n, 26), see `_Chain`."""
    last_of_l6: np.ndarray
    """The same for a spine with L6."""
    moves: dict[tuple[int, int], np.ndarray]
    """See `_Chain`."""
    ways: dict[tuple[int, int], dict[str, np.ndarray]]
    """The steps of `moves` with a variant, see `_move_costs`."""

    def chain(self, errors: np.ndarray, own: np.ndarray) -> "_Chain":
        """Return the sequences of instances with these costs, see `_Chain`."""
        last = [self.last] * (len(own) - 1) + [self.last if len(own) == 1 else self.last_of_l6]
        return _Chain(errors, own, self.first, np.stack(last), self.moves)


def _frame(
    n: int,
    centroids_mm: np.ndarray | None,
    cut: np.ndarray | None,
    sizes: np.ndarray | None,
    room_mm: tuple[float, float],
    allowed: frozenset[str],
    costs: Costs,
) -> _Frame:
    """Return what the places of n instances cost; see `decode_sequence`."""
    away = np.full(n, False) if cut is None else np.array(cut, bool)
    apart, heights = np.full((n, n), np.nan), np.zeros(n)
    if centroids_mm is not None:
        points = np.asarray(centroids_mm, np.float64)
        apart, heights = np.linalg.norm(points[:, None] - points, axis=-1), points[:, 2]
    scrap = np.ones(n) if sizes is None else np.clip(2.0 * np.asarray(sizes), 0.5, 1.0)
    false = costs.false * scrap
    # The centroid of a part differs from that of the whole vertebra.
    away |= scrap < 1.0
    above, below = room_mm[0] + heights[0] - heights, room_mm[1] + heights - heights[-1]
    most = _MOST_FALSE if math.isfinite(costs.false) else 0
    steps = {
        (i, k): _move_costs(
            allowed, costs, apart[i, k], bool(away[i] or away[k]), min(scrap[i], scrap[k])
        )
        for i in range(n)
        for k in range(i + 1, min(n, i + 2 + most))
    }
    last = np.stack(
        [false[i + 1 :].sum() + _last_costs(below[i], allowed, costs) for i in range(n)]
    )
    # Its end is in view, but L6 was not found.
    missed = below[:, None] > _ROOM * STEP_MM
    missed[:, labels.VERSE_IDS.index(labels.id_of("L6"))] = False
    after = np.array([false[i + 1 :].sum() for i in range(n)])[:, None]
    return _Frame(
        apart=apart,
        away=away,
        below=below,
        first=np.stack([false[:i].sum() + _first_costs(above[i], costs) for i in range(n)]),
        last=last,
        last_of_l6=np.where(missed, after + costs.gap, last),
        moves={(i, k): false[i + 1 : k].sum() + step for (i, k), (step, _) in steps.items()},
        ways={pair: ways for pair, (_, ways) in steps.items()},
    )


def _own_costs(
    scores: np.ndarray, anomalies: Collection[str], costs: Costs, *, errors: bool
) -> np.ndarray:
    """Return (e, n, 26), the cost of each class of each instance with each error.

    Args:
        scores: see `decode_sequence`.
        anomalies: see `decode_sequence`.
        costs: see `decode_sequence`.
        errors: whether to return the 8 of `by_level_error`, or only the first, which is none.
    """
    label_costs = np.array([_label_cost(i, anomalies, costs) for i in labels.VERSE_IDS])
    found = [-scores + label_costs]
    if not errors:
        return np.stack(found)
    rank = np.array([labels.order(i) for i in labels.VERSE_IDS])
    unseen = scores.min(axis=1, keepdims=True)  # there is no class above C1 or below L6
    for levels in _LEVEL_ERRORS:
        # T13 lies between T12 and L1.
        seen = np.floor(rank + levels) if levels > 0 else np.ceil(rank + levels)
        place = np.clip(seen.astype(int) - 1, 0, NUM_LABELS - 2)
        there = (seen >= 1) & (seen <= NUM_LABELS - 1)
        moved = np.where(there, scores[:, place], unseen)
        found.append(-moved + label_costs)
    first, last = (labels.VERSE_IDS.index(labels.id_of(name)) for name in ("L1", "L6"))
    moved = scores.copy()
    moved[:, first + 1 : last + 1] = scores[:, first:last]
    label_costs[last] = 0.0  # `_error_costs` has it
    found.append(-moved + label_costs)
    return np.stack(found)


def _error_costs(anomalies: Collection[str], costs: Costs) -> np.ndarray:
    """Return (8,), the costs of errors that do not depend on the network's calibration."""
    sacrum = _label_cost(labels.id_of("L6"), anomalies, costs) - math.log(_FROM_SACRUM)
    return np.array([0.0] * (1 + len(_LEVEL_ERRORS)) + [min(sacrum, _NEVER)])


_NEVER = 300.0
"""The cost of what is forbidden, where it must be finite."""


def _least(costs: np.ndarray, axis: int) -> np.ndarray:
    """Return the least cost along an axis."""
    return costs.min(axis=axis)


def _sum(costs: np.ndarray, axis: int) -> np.ndarray:
    """Return the cost of all alternatives along an axis together: -log(sum(exp(-cost)))."""
    least = costs.min(axis=axis, keepdims=True)
    least = np.where(np.isfinite(least), least, 0.0)
    with np.errstate(divide="ignore"):
        return least.squeeze(axis) - np.log(np.exp(least - costs).sum(axis=axis))


_Fold = Callable[[np.ndarray, int], np.ndarray]

_Path = list[int]
"""Class - 1 of every instance; `NUM_LABELS` for no vertebra."""


@dataclass(frozen=True, eq=False)
class _Chain:
    """The costs of all sequences of n instances with e level errors."""

    errors: np.ndarray
    """(e,) of each level error."""
    own: np.ndarray
    """(e, n, 26) of each class of each instance."""
    first: np.ndarray
    """(n, 26) of a class of the first instance with a label, at each place."""
    last: np.ndarray
    """(e, n, 26) of a class of the last instance with a label, at each place."""
    moves: dict[tuple[int, int], np.ndarray]
    """(place, next place with a label) -> (26, 26) of the step between two classes."""

    def forward(self, fold: _Fold) -> np.ndarray:
        """Return (e, n, 26), the folded costs of all beginnings that end with a class."""
        start = self.errors[:, None]
        reached = [[start + self.first[k] + self.own[:, k]] for k in range(len(self.first))]
        found = np.empty_like(self.own)
        for k, ways in enumerate(reached):
            found[:, k] = fold(np.stack(ways), 0)
            for after in range(k + 1, len(reached)):
                if (k, after) in self.moves:
                    step = found[:, k, :, None] + self.moves[k, after]
                    reached[after].append(fold(step, 1) + self.own[:, after])
        return found

    def backward(self, fold: _Fold) -> np.ndarray:
        """Return (e, n, 26), the folded costs of all ends after a class."""
        reached = [[self.last[:, i]] for i in range(len(self.first))]
        found = np.empty_like(self.own)
        for k in reversed(range(len(reached))):
            found[:, k] = fold(np.stack(reached[k]), 0)
            rest = self.own[:, k] + found[:, k]
            for before in range(k):
                if (before, k) in self.moves:
                    reached[before].append(fold(self.moves[before, k] + rest[:, None], 2))
        return found

    def total(self) -> float:
        """Return the cost of all sequences together."""
        return float(_sum((self.forward(_sum) + self.last).ravel(), 0))

    def least_without(self, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
        """Return (n,), the least cost of all sequences in which an instance is no vertebra."""
        n = len(self.first)
        least = np.full(n, np.inf)
        for i in range(n):
            starts = self.errors[:, None] + self.first[i] + self.own[:, i] + backward[:, i]
            least[:i] = np.minimum(least[:i], starts.min())
            least[i + 1 :] = np.minimum(least[i + 1 :], (forward[:, i] + self.last[:, i]).min())
        for (i, k), move in self.moves.items():
            if k > i + 1:
                rest = self.own[:, k] + backward[:, k]
                whole = (forward[:, i, :, None] + move + rest[:, None]).min()
                least[i + 1 : k] = np.minimum(least[i + 1 : k], whole)
        return least

    def ranked(self, forward: np.ndarray) -> tuple[float, list[tuple[_Path, float]]]:
        """Return the cost of all sequences together, and the best ones.

        Each comes with its probability, the most probable first.

        Args:
            forward: the least costs of `forward`.
        """
        total = self.total()
        least = (forward + self.last).min(axis=(1, 2))
        paths: dict[tuple[int, ...], None] = {}
        for error in np.flatnonzero(least <= least.min() - math.log(_LISTED)):
            paths |= dict.fromkeys(map(tuple, self._best(int(error))))
        found = [
            (path, math.exp(total - float(_sum(self.costs_of(path), 0))))
            for path in map(list, paths)
        ]
        return total, sorted(found, key=lambda item: -item[1])

    def costs_of(self, path: _Path) -> np.ndarray:
        """Return (e,), the cost of a sequence with each level error."""
        kept = [i for i, label in enumerate(path) if label < NUM_LABELS]
        cost = self.first[kept[0], path[kept[0]]] + self.last[:, kept[-1], path[kept[-1]]]
        cost += sum(self.moves[i, k][path[i], path[k]] for i, k in itertools.pairwise(kept))
        return self.errors + cost + sum(self.own[:, i, path[i]] for i in kept)

    def _best(self, error: int) -> list[_Path]:
        """Return the `_SEARCHED` sequences of least cost with one level error, in any order."""
        own, n = self.own[error], len(self.first)
        costs = np.full((n, NUM_LABELS, _SEARCHED), np.inf)
        # Where a way comes from: an index into `costs` of the place, class and way before it.
        before = np.full(costs.shape, -1)
        for k in range(n):
            ways, sources = [self.first[k][None]], [np.array([-1])]
            for i in range(k):
                if (i, k) in self.moves:
                    step = costs[i][:, :, None] + self.moves[i, k][:, None]
                    ways.append(step.reshape(-1, NUM_LABELS))
                    sources.append(np.arange(costs[i].size) + i * costs[i].size)
            all_ways, source = np.concatenate(ways), np.concatenate(sources)
            count = min(_SEARCHED, len(source))
            chosen = np.argpartition(all_ways, count - 1, axis=0)[:count]
            costs[k, :, :count] = np.take_along_axis(all_ways, chosen, axis=0).T + own[k][:, None]
            before[k, :, :count] = source[chosen].T
        whole = (costs + self.last[error, :, :, None]).ravel()
        found = []
        for way in np.argpartition(whole, _SEARCHED - 1)[:_SEARCHED]:
            if not np.isfinite(whole[way]):
                continue
            path = [NUM_LABELS] * n
            while way >= 0:
                place, label, _ = np.unravel_index(way, costs.shape)
                path[place] = int(label)
                way = before.flat[way]
            found.append(path)
        return found

    def without(
        self, name: str, ways: Mapping[tuple[int, int], np.ndarray], below: np.ndarray, costs: Costs
    ) -> "_Chain":
        """Return the sequences that do not show a variant of `ANOMALIES`.

        Args:
            name: of the variant.
            ways: (place, next place) -> (26, 26) bool, the steps that show it.
            below: (n,) height that the scan shows below each instance, in mm.
            costs: see `decode_sequence`.
        """
        own, last = self.own.copy(), self.last.copy()
        if name in _OF_LABEL:
            own[:, :, labels.VERSE_IDS.index(labels.id_of(name))] = np.inf
        if name == "no L5":
            last[:, _shows_no_l5(below, costs), labels.VERSE_IDS.index(_L4)] = np.inf
        moves = {pair: np.where(ways[pair], np.inf, move) for pair, move in self.moves.items()}
        return _Chain(self.errors, own, self.first, last, moves)


def _ids(path: _Path) -> tuple[int, ...]:
    """Return the VerSe ids of a sequence; 0 for no vertebra."""
    return tuple(labels.VERSE_IDS[label] if label < NUM_LABELS else 0 for label in path)


def _namings(ranked: Iterable[tuple[_Path, float]]) -> tuple[Naming, ...]:
    """Return the most probable namings of the best sequences."""
    found: dict[tuple[int, ...], float] = {}
    for path, probability in ranked:
        named = tuple(dict.fromkeys(i for i in _ids(path) if i))
        found[named] = found.get(named, 0.0) + probability
    best = sorted(found.items(), key=lambda item: -item[1])[:NAMINGS]
    kept = [one for one in best if one is best[0] or one[1] >= _LISTED]
    return tuple(Naming(named, min(1.0, probability)) for named, probability in kept)


def _check(
    scores: np.ndarray,
    centroids_mm: np.ndarray | None,
    cut: np.ndarray | None,
    sizes: np.ndarray | None,
    anomalies: Collection[str],
    costs: Costs,
) -> None:
    for name in anomalies:
        check_choice("anomalies", name, ANOMALIES)
    bad = [name for name, cost in vars(costs).items() if not cost >= 0]
    if bad:
        raise InputError(f"costs {bad} are negative or NaN; a cost is -log of a probability")
    if scores.ndim != 2 or scores.shape[1] != NUM_LABELS:
        raise InputError(f"scores of shape {scores.shape}; they are (instances, {NUM_LABELS})")
    if np.isnan(scores).any() or (scores == np.inf).any():
        raise InputError("scores hold NaN or infinity; they are log probabilities")
    n = len(scores)
    if sizes is not None and not (np.isfinite(sizes).all() and np.min(sizes, initial=0) >= 0):
        raise InputError("sizes must be finite and not negative; they are shares of usual volumes")
    if centroids_mm is not None and not np.isfinite(centroids_mm).all():
        raise InputError("centroids_mm holds NaN or infinity; give places in mm, or None")
    if centroids_mm is not None and np.shape(centroids_mm) != (n, 3):
        raise InputError(
            f"centroids_mm has shape {np.shape(centroids_mm)}; {n} instances have ({n}, 3)"
        )
    for name, values in (("cut", cut), ("sizes", sizes)):
        if values is not None and np.shape(values) != (n,):
            raise InputError(
                f"{name} has shape {np.shape(values)}; it has one value for each of {n} instances"
            )


def _anomalies_of(
    ids: tuple[int, ...],
    kept: list[int],
    allowed: frozenset[str],
    frame: _Frame,
    costs: Costs,
) -> tuple[set[str], list[int]]:
    """Return the variants on the cheapest way through a sequence, and the VerSe ids it skips."""
    taken = {name for name in _OF_LABEL if labels.id_of(name) in ids}
    skipped: list[int] = []
    for i, k in itertools.pairwise(kept):
        if ids[i] == ids[k]:
            continue
        free = bool(frame.away[i] or frame.away[k])
        step = _cheapest_step(allowed, costs, (ids[i], ids[k]), frame.apart[i, k], free)
        skipped += step.skipped
        taken |= {"no T12"} if step.no_t12 else set()
    taken |= {"T13"} if _T13 in skipped else set()
    if ids[kept[-1]] == _L4 and _shows_no_l5(frame.below[kept[-1]], costs):
        taken.add("no L5")
    return taken, skipped


def _shows_no_l5(room_foot_mm: np.ndarray, costs: Costs) -> np.ndarray:
    """Return whether a spine that ends with L4 above so much of the scan has no L5."""
    return (room_foot_mm > _ROOM * _step_mm(_L4)) & (costs.no_l5 <= costs.gap)


_T13 = labels.id_of("T13")

_OF_LABEL = ("T13", "L6")
"""The variants of `ANOMALIES` that are labels."""

_L4 = labels.id_of("L4")

_ROOM = 1.5
"""If the scan continues by more vertebrae than this, the spine should end."""

_SPREAD = 0.15

_SHORT_COST = 3.4


class _Step(NamedTuple):
    """One way from a label to a label below it."""

    skipped: tuple[int, ...]
    """VerSe ids between the two labels."""
    no_t12: bool
    cost: float
    usual_mm: float
    """The usual distance."""


def _label_cost(verse_id: int, anomalies: Collection[str], costs: Costs) -> float:
    """Return the cost of a label whatever the image shows; only T13 and L6 have one."""
    for name, cost in (("T13", costs.t13), ("L6", costs.l6)):
        if verse_id == labels.id_of(name):
            return cost if name in anomalies else math.inf
    return 0.0


@functools.lru_cache(maxsize=16)
def _steps_of(anomalies: frozenset[str], costs: Costs) -> dict[tuple[int, int], list[_Step]]:
    """Return all ways from each vertebra to each vertebra below it; keys are VerSe ids."""
    without = (labels.id_of("T11"), labels.id_of("L1"))

    @functools.cache
    def ways(upper: int, lower: int) -> list[tuple[int, ...]]:
        if upper == lower:
            return [(lower,)]
        follow = [
            i
            for i in labels.successors(upper)
            if labels.order(i) <= labels.order(lower)
            and (i == lower or math.isfinite(_label_cost(i, anomalies, costs)))
            and ((upper, i) != without or "no T12" in anomalies)
        ]
        return [(upper, *rest) for i in follow for rest in ways(i, lower)]

    result = {}
    for upper, lower in itertools.permutations(labels.VERSE_IDS, 2):
        result[upper, lower] = [
            _Step(
                way[1:-1],
                without in itertools.pairwise(way),
                (costs.gap + costs.wider * (len(way) - 3) if len(way) > 2 else 0.0)
                + sum(_label_cost(i, anomalies, costs) for i in way[1:-1])
                + (costs.no_t12 if without in itertools.pairwise(way) else 0.0),
                sum(_step_mm(i) for i in way[:-1]),
            )
            for way in (ways(upper, lower) if labels.order(upper) < labels.order(lower) else [])
        ]
    return result


def _step_mm(verse_id: int) -> float:
    """Return the usual distance to the next vertebra below, in mm."""
    return float(STEP_MM[labels.VERSE_IDS.index(verse_id)])


def _cheapest_step(
    anomalies: frozenset[str],
    costs: Costs,
    pair: tuple[int, int],
    distance_mm: float,
    short_is_free: bool,
) -> _Step:
    """Return the way of least cost between two vertebrae, given as VerSe ids."""
    ways = _steps_of(anomalies, costs)[pair]
    misfits = _misfit(distance_mm, np.array([way.usual_mm for way in ways]), short_is_free)
    return min(zip(ways, misfits, strict=True), key=lambda item: item[0].cost + item[1])[0]


@functools.lru_cache(maxsize=16)
def _flat_ways(anomalies: frozenset[str], costs: Costs) -> tuple[np.ndarray, ...]:
    """Return arrays over all ways: class - 1 of both ends, cost, usual distance in mm, variants.

    The variants are whether a way skips T13, and whether it has no T12.
    """
    place = {verse_id: k for k, verse_id in enumerate(labels.VERSE_IDS)}
    ways = [
        (place[upper], place[lower], step.cost, step.usual_mm, _T13 in step.skipped, step.no_t12)
        for (upper, lower), steps in _steps_of(anomalies, costs).items()
        for step in steps
    ]
    upper, lower, cost, usual, skips_t13, no_t12 = np.array(ways).T
    return upper.astype(int), lower.astype(int), cost, usual, skips_t13 > 0, no_t12 > 0


def _move_costs(
    anomalies: frozenset[str],
    costs: Costs,
    distance_mm: float,
    short_is_free: bool,
    scrap: float,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return (26, 26), the least cost of a step between classes, and the steps with a variant.

    `scrap` scales the cost of repeats. The variants are (26, 26) bool by the names of `ANOMALIES`.
    """
    upper, lower, cost, usual, skips_t13, no_t12 = _flat_ways(anomalies, costs)
    moves = np.full((NUM_LABELS, NUM_LABELS), np.inf)
    cost = cost + _misfit(distance_mm, usual, short_is_free)
    np.minimum.at(moves, (upper, lower), cost)
    variants = {name: np.zeros(moves.shape, bool) for name in ANOMALIES}
    for name, shown in (("T13", skips_t13), ("no T12", no_t12)):
        best = shown & (cost == moves[upper, lower])
        variants[name][upper[best], lower[best]] = True
    far = np.maximum(0.0, np.nan_to_num(distance_mm) / STEP_MM - 0.3)
    np.fill_diagonal(moves, costs.repeat * scrap + 0.5 * (far / _SPREAD) ** 2)
    return moves, variants


def _misfit(distance_mm: float, usual_mm: np.ndarray, short_is_free: bool) -> np.ndarray:
    """Return the cost of a distance that usually is `usual_mm`; 0 for an unknown one (NaN)."""
    if not math.isfinite(distance_mm):
        return np.zeros_like(usual_mm)
    ratio = np.log(max(distance_mm, 1e-3) / usual_mm)
    misfit = 0.5 * (ratio / _SPREAD) ** 2
    short = 0.0 if short_is_free else np.minimum(misfit, _SHORT_COST)
    return np.where(ratio < 0, short, misfit)


def _first_costs(room_mm: float, costs: Costs) -> np.ndarray:
    """Return (26,), the cost of a class as the first vertebra, below `room_mm` of scan."""
    return np.array(
        [
            costs.gap if i != labels.id_of("C1") and room_mm > _ROOM * _step_mm(i) else 0.0
            for i in labels.VERSE_IDS
        ]
    )


def _last_costs(room_mm: float, anomalies: Collection[str], costs: Costs) -> np.ndarray:
    """Return (26,), the cost of a class as the last vertebra, above `room_mm` of scan."""
    result = np.zeros(NUM_LABELS)
    for place, i in enumerate(labels.VERSE_IDS):
        if room_mm <= _ROOM * _step_mm(i) or (labels.can_end_lumbar(i) and i != labels.id_of("L4")):
            continue
        result[place] = costs.gap
        if i == labels.id_of("L4") and "no L5" in anomalies:
            result[place] = min(costs.gap, costs.no_l5)
    return result
