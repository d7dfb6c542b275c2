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
sequence that differs in at least one label, minus the cost of the best. Near zero, the labels are a
guess, and the reader should be told.
"""

import functools
import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from spinejax import labels
from spinejax.errors import InputError, check_choice
from spinejax.inference.instances import Instances
from spinejax.inference.pieces import NUM_LABELS, STEP_MM, VOLUME_ML

ANOMALIES = ("T13", "L6", "no T12", "no L5")
"""The variants of the spine that the decoder knows."""

UNCERTAIN_MARGIN = math.log(10)
"""Below this margin the second best sequence is more than a tenth as probable as the best.

On 134 phantoms, 8 of the 24 below it had a wrong name, and 12 of the 110 above it.
"""

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
    anomalies: tuple[str, ...]
    """The variants of `ANOMALIES` that the spine shows."""
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
    # A fragment below L5 is part of the sacrum rather than L6.
    scores = class_scores(class_sums, likeness=np.where(sizes < 0.5, 0.0, _LIKENESS))
    scale = _scale(classes, centroids, cut)
    room = (instances.room_mm[0] / scale, instances.room_mm[1] / scale)

    def decode(way: int, room_mm: tuple[float, float]) -> Sequence:
        return decode_sequence(
            scores[::way],
            centroids_mm=centroids[::way] / scale,
            cut=cut[::way],
            sizes=sizes[::way],
            room_mm=room_mm,
            anomalies=anomalies,
            costs=costs,
        )

    best = decode(1, room)
    upside_down = decode(-1, (room[1], room[0]))
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
    margins = tuple(
        min(m for m, other in zip(best.margins, best.labels, strict=True) if other == label)
        for label in named
    )
    record = Record(
        labels=named,
        cost=best.cost,
        margin=min(margins, default=math.inf),
        margins=margins,
        anomalies=best.anomalies,
        skipped=best.skipped,
        cut=tuple(cut_labels),
        dropped=tuple(dropped),
        unnamed=best.labels.count(0),
        reversed=best.cost - upside_down.cost > _REVERSED_BY,
    )
    return Labelling(to[instances.array], points, record)


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
    """Extra cost of the best sequence that differs in a label; infinite if there is none."""
    margins: tuple[float, ...]
    """For each instance, the extra cost of the best sequence that names it differently."""
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
) -> Sequence:
    """Return the legal sequence of least cost, see the module's docstring.

    Args:
        scores: (n, 26) log scores of the classes 1 to 26, one row for each instance from head to
            foot.
        centroids_mm: (n, 3) places of the instances; None if unknown.
        cut: (n,) bool, the instances that an end of the scan cuts; None for none.
        sizes: (n,) volumes divided by the usual volume in this person; None if unknown.
        room_mm: height that the scan shows above the first and below the last instance.
        anomalies: the variants of `ANOMALIES` that are allowed.
        costs: of deviations.

    Returns:
        The sequence with its cost and margins.

    Raises:
        InputError: an argument has another shape or range, or no sequence is legal: all scores are
            minus infinity, or a spine has fewer vertebrae than there are instances and `costs`
            allow neither repeats nor false instances.
    """
    scores = np.asarray(scores, np.float64)
    n = len(scores)
    _check(scores, centroids_mm, cut, sizes, anomalies, costs)
    if n == 0:
        return Sequence((), 0.0, math.inf, (), (), ())
    allowed = frozenset(anomalies)
    away = np.full(n, False) if cut is None else np.array(cut, bool)
    apart, heights = np.full((n, n), np.nan), np.zeros(n)
    if centroids_mm is not None:
        points = np.asarray(centroids_mm, np.float64)
        apart, heights = np.linalg.norm(points[:, None] - points, axis=-1), points[:, 2]
    own = -scores + np.array([_label_cost(i, anomalies, costs) for i in labels.VERSE_IDS])
    scrap = np.ones(n) if sizes is None else np.clip(2.0 * np.asarray(sizes), 0.5, 1.0)
    false = costs.false * scrap
    # The centroid of a part differs from that of the whole vertebra.
    away |= scrap < 1.0
    above, below = room_mm[0] + heights[0] - heights, room_mm[1] + heights - heights[-1]
    first = [false[:i].sum() + _first_costs(above[i], costs) for i in range(n)]
    last = [false[i + 1 :].sum() + _last_costs(below[i], anomalies, costs) for i in range(n)]
    most = _MOST_FALSE if math.isfinite(costs.false) else 0
    moves = {
        (i, k): false[i + 1 : k].sum()
        + _move_costs(
            allowed, costs, apart[i, k], bool(away[i] or away[k]), min(scrap[i], scrap[k])
        )
        for i in range(n)
        for k in range(i + 1, min(n, i + 2 + most))
    }

    forward = np.stack(first) + own
    for i, k in sorted(moves, key=lambda pair: pair[1]):
        reached = (forward[i][:, None] + moves[i, k]).min(axis=0)
        forward[k] = np.minimum(forward[k], reached + own[k])
    backward = np.stack(last)
    for i, k in sorted(moves, key=lambda pair: -pair[0]):
        backward[i] = np.minimum(backward[i], (moves[i, k] + own[k] + backward[k]).min(axis=1))
    through = np.concatenate(
        [forward + backward, _least_without(forward, backward, own, moves, first, last)[:, None]], 1
    )
    cost = float(through[0].min())
    if not np.isfinite(cost):
        raise InputError(
            f"no legal sequence of {n} vertebrae: scores and costs forbid all; smooth the scores, "
            "or let vertebrae repeat or instances be false"
        )
    path = _path(forward, own, moves, first, last)
    # `through` is the least cost of all sequences that give a label to an instance. Every sequence
    # other than the best differs from it at some instance.
    through[np.arange(n), path] = np.inf
    margins = np.maximum(0.0, through.min(axis=1) - cost)
    kept = [i for i in range(n) if path[i] < NUM_LABELS]
    ids = tuple(labels.VERSE_IDS[k] if k < NUM_LABELS else 0 for k in path)
    taken, skipped = _anomalies_of(ids, kept, allowed, apart, away, below[kept[-1]], costs)
    shown = tuple(name for name in ANOMALIES if name in taken and name in anomalies)
    return Sequence(
        ids, cost, float(margins.min()), tuple(map(float, margins)), shown, tuple(skipped)
    )


_Moves = dict[tuple[int, int], np.ndarray]


def _least_without(
    forward: np.ndarray,
    backward: np.ndarray,
    own: np.ndarray,
    moves: _Moves,
    first: list[np.ndarray],
    last: list[np.ndarray],
) -> np.ndarray:
    """Return (n,), the least cost of all sequences in which an instance is no vertebra."""
    n = len(own)
    least = np.full(n, np.inf)
    for i in range(n):
        least[:i] = np.minimum(least[:i], (first[i] + own[i] + backward[i]).min())
        least[i + 1 :] = np.minimum(least[i + 1 :], (forward[i] + last[i]).min())
    for (i, k), move in moves.items():
        if k > i + 1:
            whole = (forward[i][:, None] + move + own[k] + backward[k]).min()
            least[i + 1 : k] = np.minimum(least[i + 1 : k], whole)
    return least


def _path(
    forward: np.ndarray,
    own: np.ndarray,
    moves: _Moves,
    first: list[np.ndarray],
    last: list[np.ndarray],
) -> list[int]:
    """Return class - 1 of every instance in the best sequence; `NUM_LABELS` for no vertebra."""
    path = [NUM_LABELS] * len(own)
    place, label = divmod(int(np.argmin(forward + np.stack(last))), NUM_LABELS)
    while True:
        path[place] = label
        ways = {i: forward[i] + moves[i, k][:, label] for i, k in moves if k == place}
        before = min(ways, key=lambda i: ways[i].min(), default=None)
        if before is None or first[place][label] <= ways[before].min():
            return path
        place, label = before, int(np.argmin(ways[before]))


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
    apart: np.ndarray,
    cut: np.ndarray,
    room_foot_mm: float,
    costs: Costs,
) -> tuple[set[str], list[int]]:
    """Return the variants on the cheapest way through a sequence, and the VerSe ids it skips."""
    taken = {name for name in ("T13", "L6") if labels.id_of(name) in ids}
    skipped: list[int] = []
    for i, k in itertools.pairwise(kept):
        if ids[i] == ids[k]:
            continue
        free = bool(cut[i] or cut[k])
        step = _cheapest_step(allowed, costs, (ids[i], ids[k]), apart[i, k], free)
        skipped += step.skipped
        taken |= {"no T12"} if step.no_t12 else set()
    taken |= {"T13"} if labels.id_of("T13") in skipped else set()
    last = labels.id_of("L4")
    if ids[kept[-1]] == last and room_foot_mm > _ROOM * _step_mm(last) and costs.no_l5 <= costs.gap:
        taken.add("no L5")
    return taken, skipped


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
    """Return arrays over all ways: class - 1 of both ends, cost, and usual distance in mm."""
    place = {verse_id: k for k, verse_id in enumerate(labels.VERSE_IDS)}
    ways = [
        (place[upper], place[lower], step.cost, step.usual_mm)
        for (upper, lower), steps in _steps_of(anomalies, costs).items()
        for step in steps
    ]
    upper, lower, cost, usual = np.array(ways).T
    return upper.astype(np.intp), lower.astype(np.intp), cost, usual


def _move_costs(
    anomalies: frozenset[str],
    costs: Costs,
    distance_mm: float,
    short_is_free: bool,
    scrap: float,
) -> np.ndarray:
    """Return (26, 26), the least cost of a step between classes; `scrap` scales that of repeats."""
    upper, lower, cost, usual = _flat_ways(anomalies, costs)
    moves = np.full((NUM_LABELS, NUM_LABELS), np.inf)
    np.minimum.at(moves, (upper, lower), cost + _misfit(distance_mm, usual, short_is_free))
    far = np.maximum(0.0, np.nan_to_num(distance_mm) / STEP_MM - 0.3)
    np.fill_diagonal(moves, costs.repeat * scrap + 0.5 * (far / _SPREAD) ** 2)
    return moves


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
