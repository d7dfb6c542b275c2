"""What it costs to go from one vertebra to the next, and where a spine begins and ends.

Costs are minus logs of probabilities; `sequence` says how they add up.

The most probable legal sequence of vertebrae, given how each of them looks.

Dynamic programming finds it exactly: cost = -log probability up to a constant, and the least sum
over instances, steps between them and both ends wins.

* An instance costs minus its class's score (`class_scores`). T13 and L6 cost besides.
* An instance may be no vertebra (the top of the sacrum, a rib, a scrap) and has no label then, at
  the cost `false`; below half of a vertebra's usual volume that falls, to a half of it at a quarter
  of the volume. At least one instance has a label.
* A step to the next label below (`labels.successors`) costs nothing; without T12, from T11 to L1,
  it costs. A step may skip labels, vertebrae that were not found: one `gap`, and `wider` for each
  more of them, since what hides one hides its neighbours.
* Two successive instances may be one vertebra, at the cost `repeat`, since instances are not found
  without fail, and one too many must not shift all labels. It falls with the size of the smaller
  one as `false` does.
* The distance d between two centroids tells how much was skipped: it costs
  0.5 (log(d / usual) / 0.15)^2, with the usual distances of `pieces.STEP_MM`. One that is too small
  means a child, a fracture, or a vertebra in two parts, rather than another part of the spine: it
  costs 3.4 at most, so that what two of them cost is no reason to drop the vertebra between, and
  nothing at a vertebra that the scan's end cuts, or at one below half of the usual volume.
  For parts of one vertebra it is 0.5 ((d / usual - 0.3) / 0.15)^2 where d is more than 0.3 usual.
* Where the scan goes on by more than 1.5 vertebrae above the first or below the last vertebra, the
  spine should have ended: with C1, with L5 or L6 (or L4, which costs `no_l5`); else one `gap`.

Successive instances are those that have a label, whatever lies between.
The margin is the cost of the best sequence that differs in at least one label, minus that of the
best. Near zero, the labels are a guess; the reader should be told.

The sequence decoder: which vertebra is which, from the label map of a network.

A network that names every voxel by itself names whole vertebrae wrongly, most often by one, and
then all below it: an error that hurts a patient more than a ragged outline. Here the vertebrae of a
label map are first found (`instances`), and then named all together, by the most probable legal
sequence (`sequence`), which also leaves out what is no vertebra.
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
"""Variants of the spine that can be allowed, as results name them."""

_SPREAD = 0.15
_SHORT_COST = 3.4
ROOM = 1.5
"""Of the scan beyond the first or last vertebra, in vertebrae: with more, the spine ends there."""


@dataclass(frozen=True)
class Costs:
    """What each deviation from the usual spine costs: minus the log of its probability.

    The defaults are counts of VerSe'20's training set (113 scans; Sekuboyina et al. 2021, counted
    in the set-up files of Payer et al. 2020), where variants were collected, so that they are rarer
    in the population: T13 in 2 of the 80 scans that show T12, L6 in 16 of 83 that show L5, no T12
    in 3 of 83 that would show it. A missing L5 was not counted there (86 scans show L4, 83 L5:
    3 in 86 at most): 0.025, as in our phantoms. `gap` is an assumption about networks: of 100
    vertebrae that a scan shows, 2 are not found. So are `wider`, of 5 vertebrae beside one that is
    not found, 1 is not found either, and `repeat`: of 100, 2 are found in two parts.
    `false` was chosen on 114 phantoms; from 0.001 to 0.005 it named about equally many rightly.
    Infinity forbids any of them.
    """

    t13: float = -math.log(2 / 80)
    l6: float = -math.log(16 / 83)
    no_t12: float = -math.log(3 / 83)
    no_l5: float = -math.log(0.025)
    gap: float = -math.log(0.02)
    wider: float = -math.log(0.2)
    repeat: float = -math.log(0.02)
    false: float = -math.log(0.001)


class Step(NamedTuple):
    """One way from a label to one below it: what it skips, its cost, and the usual distance."""

    skipped: tuple[int, ...]  # VerSe ids
    no_t12: bool
    cost: float
    usual_mm: float


def label_cost(verse_id: int, anomalies: Collection[str], costs: Costs) -> float:
    """Cost of having a vertebra at all."""
    for name, cost in (("T13", costs.t13), ("L6", costs.l6)):
        if verse_id == labels.id_of(name):
            return cost if name in anomalies else math.inf
    return 0.0


@functools.lru_cache(maxsize=16)
def steps_of(anomalies: frozenset[str], costs: Costs) -> dict[tuple[int, int], list[Step]]:
    """All ways from each vertebra to each below it, as VerSe ids."""
    without = (labels.id_of("T11"), labels.id_of("L1"))

    @functools.cache
    def ways(upper: int, lower: int) -> list[tuple[int, ...]]:
        if upper == lower:
            return [(lower,)]
        follow = [
            i
            for i in labels.successors(upper)
            if labels.order(i) <= labels.order(lower)
            and (i == lower or math.isfinite(label_cost(i, anomalies, costs)))
            and ((upper, i) != without or "no T12" in anomalies)
        ]
        return [(upper, *rest) for i in follow for rest in ways(i, lower)]

    result = {}
    for upper, lower in itertools.permutations(labels.VERSE_IDS, 2):
        result[upper, lower] = [
            Step(
                way[1:-1],
                without in itertools.pairwise(way),
                (costs.gap + costs.wider * (len(way) - 3) if len(way) > 2 else 0.0)
                + sum(label_cost(i, anomalies, costs) for i in way[1:-1])
                + (costs.no_t12 if without in itertools.pairwise(way) else 0.0),
                sum(step_mm(i) for i in way[:-1]),
            )
            for way in (ways(upper, lower) if labels.order(upper) < labels.order(lower) else [])
        ]
    return result


def step_mm(verse_id: int) -> float:
    """Return the usual distance to the next vertebra below, in mm."""
    return float(STEP_MM[labels.VERSE_IDS.index(verse_id)])


def cheapest_step(
    anomalies: frozenset[str],
    costs: Costs,
    pair: tuple[int, int],
    distance_mm: float,
    short_is_free: bool,
) -> Step:
    """Return the way between two vertebrae, as VerSe ids, that costs least."""
    ways = steps_of(anomalies, costs)[pair]
    misfits = _misfit(distance_mm, np.array([way.usual_mm for way in ways]), short_is_free)
    return min(zip(ways, misfits, strict=True), key=lambda item: item[0].cost + item[1])[0]


@functools.lru_cache(maxsize=16)
def _flat(anomalies: frozenset[str], costs: Costs) -> tuple[np.ndarray, ...]:
    """Of each way between two vertebrae: the places of both, its cost, its usual distance in mm."""
    place = {verse_id: k for k, verse_id in enumerate(labels.VERSE_IDS)}
    ways = [
        (place[upper], place[lower], step.cost, step.usual_mm)
        for (upper, lower), steps in steps_of(anomalies, costs).items()
        for step in steps
    ]
    upper, lower, cost, usual = np.array(ways).T
    return upper.astype(np.intp), lower.astype(np.intp), cost, usual


def move_costs(
    anomalies: frozenset[str],
    costs: Costs,
    distance_mm: float,
    short_is_free: bool,
    scrap: float,
) -> np.ndarray:
    """(26, 26) least cost from each class to each; a repeat costs `scrap` of what it costs else."""
    upper, lower, cost, usual = _flat(anomalies, costs)
    moves = np.full((NUM_LABELS, NUM_LABELS), np.inf)
    np.minimum.at(moves, (upper, lower), cost + _misfit(distance_mm, usual, short_is_free))
    far = np.maximum(0.0, np.nan_to_num(distance_mm) / STEP_MM - 0.3)
    np.fill_diagonal(moves, costs.repeat * scrap + 0.5 * (far / _SPREAD) ** 2)
    return moves


def _misfit(distance_mm: float, usual_mm: np.ndarray, short_is_free: bool) -> np.ndarray:
    """Cost of a distance between two centroids, or NaN, that should be `usual_mm`."""
    if not math.isfinite(distance_mm):
        return np.zeros_like(usual_mm)
    ratio = np.log(max(distance_mm, 1e-3) / usual_mm)
    misfit = 0.5 * (ratio / _SPREAD) ** 2
    short = 0.0 if short_is_free else np.minimum(misfit, _SHORT_COST)
    return np.where(ratio < 0, short, misfit)


def first_costs(room_mm: float, costs: Costs) -> np.ndarray:
    """(26,) cost of being the first vertebra below `room_mm` of scan."""
    return np.array(
        [
            costs.gap if i != labels.id_of("C1") and room_mm > ROOM * step_mm(i) else 0.0
            for i in labels.VERSE_IDS
        ]
    )


def last_costs(room_mm: float, anomalies: Collection[str], costs: Costs) -> np.ndarray:
    """(26,) cost of being the last vertebra above `room_mm` of scan."""
    result = np.zeros(NUM_LABELS)
    for place, i in enumerate(labels.VERSE_IDS):
        if room_mm <= ROOM * step_mm(i) or (labels.can_end_lumbar(i) and i != labels.id_of("L4")):
            continue
        result[place] = costs.gap
        if i == labels.id_of("L4") and "no L5" in anomalies:
            result[place] = min(costs.gap, costs.no_l5)
    return result


_MOST_FALSE = 20
"""In succession, between two vertebrae."""


@dataclass(frozen=True)
class Sequence:
    """The most probable legal sequence."""

    labels: tuple[int, ...]
    """VerSe ids from head to foot, one for each instance; those of parts of one vertebra repeat.
    0 for an instance that is no vertebra."""
    cost: float
    """Minus the log of its probability, up to a constant that all sequences share."""
    margin: float
    """How much more the best sequence that differs in at least one label costs; inf if none."""
    margins: tuple[float, ...]
    """For each instance, how much more the best sequence costs that names it differently."""
    anomalies: tuple[str, ...]
    """Those of `ANOMALIES` that it takes."""
    skipped: tuple[int, ...]
    """VerSe ids of vertebrae between the labelled ones that were not found."""


def class_scores(
    class_sums: np.ndarray,
    smoothing: float = 0.05,
    weight: float = 0.7,
    likeness: float | np.ndarray = 0.0,
) -> np.ndarray:
    """Return log scores (n, 26) of the classes of instances.

    Shares p = (1 - smoothing) x (own share of the row's sum) + smoothing / 26. A vertebra whose
    voxels all have one class is thus believed to be another with probability `smoothing`, whatever
    its size: voxels of one vertebra err together, and their number is no evidence. Neighbours err
    together, too, mostly all by one in the same direction: all say less than if each were asked
    alone, log p x `weight`. To overrule one costs 4.3 by default. A row of zeros says nothing.

    A network that has seen few T13 and L6 may call them T12 and L5, which they look like: their p
    grow by `likeness` x that of these.

    Args:
        class_sums: (n, 26) numbers of voxels, or sums of a network's probabilities, at least 0.
        smoothing: above 0, at most 1.
        weight: above 0, at most 1; with 1 the scores are log probabilities. The default was chosen
            on 114 phantoms, with a look at 20 more.
        likeness: at least 0, at most 1, of all instances or (n,) of each.

    Raises:
        InputError: anything else.
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
    """Return the legal sequence of least cost (see the module), its cost and margin.

    Args:
        scores: (n, 26) log scores, from head to foot, by contiguous class - 1.
        centroids_mm: (n, 3) places of the instances; None where nothing is known.
        cut: (n,) bool, instances that an end of the scan cuts: a distance to these may be short.
        sizes: (n,) volumes over what is usual in this person; None where nothing is known.
        room_mm: what the scan shows above the first and below the last instance.
        anomalies: those of `ANOMALIES` that are allowed.
        costs: of deviations.

    Raises:
        InputError: unknown anomalies, scores that are NaN, costs below 0, or no legal sequence at
            all: scores of minus infinity, or no repeats, nothing false and more instances than a
            spine has. Sizes and centroids that are not finite, too.
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
    own = -scores + np.array([label_cost(i, anomalies, costs) for i in labels.VERSE_IDS])
    scrap = np.ones(n) if sizes is None else np.clip(2.0 * np.asarray(sizes), 0.5, 1.0)
    false = costs.false * scrap
    # The centroid of a part is not that of its vertebra.
    away |= scrap < 1.0
    above, below = room_mm[0] + heights[0] - heights, room_mm[1] + heights - heights[-1]
    first = [false[:i].sum() + first_costs(above[i], costs) for i in range(n)]
    last = [false[i + 1 :].sum() + last_costs(below[i], anomalies, costs) for i in range(n)]
    most = _MOST_FALSE if math.isfinite(costs.false) else 0
    moves = {
        (i, k): false[i + 1 : k].sum()
        + move_costs(allowed, costs, apart[i, k], bool(away[i] or away[k]), min(scrap[i], scrap[k]))
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
    # Least cost of all sequences that give a label to an instance; any other sequence differs from
    # the best at some instance.
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
    """(n,) least cost of all sequences in which an instance is no vertebra."""
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
    """Best class - 1 of every instance, or `NUM_LABELS` where it is no vertebra."""
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
    """Return the anomalies of the cheapest way through a sequence, and what it skips."""
    taken = {name for name in ("T13", "L6") if labels.id_of(name) in ids}
    skipped: list[int] = []
    for i, k in itertools.pairwise(kept):
        if ids[i] == ids[k]:
            continue
        free = bool(cut[i] or cut[k])
        step = cheapest_step(allowed, costs, (ids[i], ids[k]), apart[i, k], free)
        skipped += step.skipped
        taken |= {"no T12"} if step.no_t12 else set()
    taken |= {"T13"} if labels.id_of("T13") in skipped else set()
    last = labels.id_of("L4")
    if ids[kept[-1]] == last and room_foot_mm > ROOM * step_mm(last) and costs.no_l5 <= costs.gap:
        taken.add("no L5")
    return taken, skipped


UNCERTAIN_MARGIN = math.log(10)
"""Below this margin another sequence is more than a tenth as probable: say so to the reader.

Of 134 phantoms, 24 lay below it, 8 of them with a wrong name; 12 of the 110 above it had one.
"""

_LIKENESS = 0.5
"""Of T13 to T12 and of L6 to L5; from 0.3 to 0.6, about 130 phantoms were named alike."""

_SMALL = 0.85
"""Share of usual distances between vertebrae below which a person is measured by a smaller rule."""

REVERSED_BY = math.log(1000)
"""How much cheaper the sequence must be from foot to head for the scan to be called reversed."""


@dataclass(frozen=True)
class Record:
    """What there is to say about the labels of a scan."""

    labels: tuple[int, ...]
    """VerSe ids from head to foot, those dropped included, each once."""
    cost: float
    """Minus the log of the sequence's probability, up to a constant."""
    margin: float
    """The least of `margins`; inf if there is none."""
    margins: tuple[float, ...]
    """For each label, how much more the best sequence costs that names the vertebra differently."""
    anomalies: tuple[str, ...]
    """Those of `ANOMALIES` that the spine shows."""
    skipped: tuple[int, ...]
    """VerSe ids of vertebrae between the labelled ones that were not found."""
    cut: tuple[int, ...]
    """VerSe ids of vertebrae that an end of the scan cuts."""
    dropped: tuple[int, ...]
    """Those of them that were dropped."""
    unnamed: int
    """How many instances are no vertebra and were left out."""
    reversed: bool
    """Whether the sequence would be far more probable from foot to head (see `label_instances`)."""


@dataclass(frozen=True, eq=False)
class Labelling:
    """Labelled vertebrae of a scan."""

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

    The record's `reversed` is set where the instances in the opposite order, foot to head, have a
    legal sequence that is more than 1000 times as probable: then head and foot may be exchanged in
    the file's header. The labels follow the header all the same. Two vertebrae can hardly show it.

    Args:
        instances: from head to foot.
        class_sums: (n, 26) probabilities of a network summed over the voxels of each instance, in
            place of the numbers of voxels of each class.
        anomalies: see `decode_sequence`, as for `costs`.
        costs: of deviations.
        drop_cut: whether vertebrae cut by an end of the scan, which have a name and say what their
            neighbours are, are left out of the result, as in VerSe's annotation.

    Raises:
        InputError: as `class_scores` and `decode_sequence`.
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
        sizes /= min(1.0, np.median(sizes[~cut]))  # of a child, all vertebrae are small
    sizes[cut] = 1.0  # that the scan shows less of a vertebra does not make it less of one
    # A scrap below L5 is rather a part of the sacrum than an L6.
    scores = class_scores(class_sums, likeness=np.where(sizes < 0.5, 0.0, _LIKENESS))
    rule = _rule(classes, centroids, cut)
    room = (instances.room_mm[0] / rule, instances.room_mm[1] / rule)

    def decode(way: int, room_mm: tuple[float, float]) -> Sequence:
        return decode_sequence(
            scores[::way],
            centroids_mm=centroids[::way] / rule,
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
        reversed=best.cost - upside_down.cost > REVERSED_BY,
    )
    return Labelling(to[instances.array], points, record)


def _rule(classes: np.ndarray, centroids_mm: np.ndarray, cut: np.ndarray) -> float:
    """Return 1, or less for a person whose vertebrae mostly lie nearer to each other than usual.

    Of a child, or of discs that are all worn, every distance would else be a reason to leave a
    vertebra out.
    """
    apart = np.linalg.norm(np.diff(centroids_mm, axis=0), axis=1) / STEP_MM[classes[:-1]]
    whole = ~(cut[:-1] | cut[1:])
    if whole.sum() < 3:
        return 1.0
    return min(1.0, max(0.5, float(np.median(apart[whole])) / _SMALL))
