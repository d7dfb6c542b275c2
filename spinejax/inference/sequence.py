"""The most probable legal sequence of vertebrae, given how each of them looks.

Dynamic programming finds it exactly: cost = -log probability, and the least sum over instances,
steps between them and both ends wins.

* An instance costs minus the log of its class's score (`class_scores`). T13 and L6 cost besides.
* A step to the next label below (`labels.successors`) costs nothing; without T12, from T11 to L1,
  it costs. A step may skip labels, one `gap` for each: vertebrae that were not found.
* Two successive instances may be one vertebra, at the cost `repeat`, since instances are not found
  without fail, and one too many must not shift all labels.
* The distance d between two centroids tells how much was skipped: it costs
  0.5 (log(d / usual) / 0.15)^2, with the usual distances of `pieces.STEP_MM`. One that is too small
  means a fracture, or a vertebra in two parts, rather than another part of the spine: it costs 8 at
  most, and nothing at a vertebra that the scan's end cuts.
  For parts of one vertebra it is 0.5 ((d / usual - 0.3) / 0.15)^2 where d is more than 0.3 usual.
* Where the scan goes on by more than 1.5 vertebrae above the first or below the last instance, the
  spine should have ended: with C1, with L5 or L6 (or L4, which costs `no_l5`); else one `gap`.

The margin is the cost of the best sequence that differs in at least one label, minus that of the
best. Near zero, the labels are a guess; the reader should be told.
"""

import functools
import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from spinejax import labels
from spinejax.choices import check_choice
from spinejax.errors import InputError
from spinejax.inference.pieces import NUM_LABELS, STEP_MM

ANOMALIES = ("T13", "L6", "no T12", "no L5")
"""Variants of the spine that can be allowed, as results name them."""

_SPREAD = 0.15
_SHORT_COST = 8.0
_ROOM = 1.5


@dataclass(frozen=True)
class Costs:
    """What each deviation from the usual spine costs: minus the log of its probability.

    The defaults are counts of VerSe'20's training set (113 scans; Sekuboyina et al. 2021, counted
    in the set-up files of Payer et al. 2020), where variants were collected, so that they are rarer
    in the population: T13 in 2 of the 80 scans that show T12, L6 in 16 of 83 that show L5, no T12
    in 3 of 83 that would show it. A missing L5 was not counted there (86 scans show L4, 83 L5:
    3 in 86 at most): 0.025, as in our phantoms. `gap` is an assumption about networks: of 100
    vertebrae that a scan shows, 2 are not found. So is `repeat`: of 100, 2 are found in two parts.
    Infinity forbids any of them.
    """

    t13: float = -math.log(2 / 80)
    l6: float = -math.log(16 / 83)
    no_t12: float = -math.log(3 / 83)
    no_l5: float = -math.log(0.025)
    gap: float = -math.log(0.02)
    repeat: float = -math.log(0.02)


@dataclass(frozen=True)
class Sequence:
    """The most probable legal sequence."""

    labels: tuple[int, ...]
    """VerSe ids from head to foot, one for each instance; those of parts of one vertebra repeat."""
    cost: float
    """Minus the log of its probability, up to a constant that all sequences share."""
    margin: float
    """How much more the best sequence that differs in at least one label costs; inf if none."""
    margins: tuple[float, ...]
    """For each instance, how much more the best sequence costs that names it differently."""
    anomalies: tuple[str, ...]
    """Those of `ANOMALIES` that it takes."""
    skipped: tuple[int, ...]
    """VerSe ids of vertebrae between the instances that were not found."""


def class_scores(class_sums: np.ndarray, smoothing: float = 0.05) -> np.ndarray:
    """Return log probabilities (n, 26) of the classes of instances.

    Shares p = (1 - smoothing) x (own share of the row's sum) + smoothing / 26. A vertebra whose
    voxels all have one class is thus believed to be another with probability `smoothing`, whatever
    its size: voxels of one vertebra err together, and their number is no evidence. To overrule it
    costs 6.2 by default. A row of zeros says nothing.

    Args:
        class_sums: (n, 26) numbers of voxels, or sums of a network's probabilities, at least 0.
        smoothing: above 0, at most 1.

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
    total = sums.sum(axis=1, keepdims=True)
    shares = np.divide(sums, total, out=np.full_like(sums, 1 / NUM_LABELS), where=total > 0)
    return np.log((1 - smoothing) * shares + smoothing / NUM_LABELS)


class _Step(NamedTuple):
    """One way from a label to one below it: what it skips, its cost, and the usual distance."""

    skipped: tuple[int, ...]  # VerSe ids
    no_t12: bool
    cost: float
    usual_mm: float


def decode_sequence(
    scores: np.ndarray,
    *,
    distances_mm: np.ndarray | None = None,
    cut: np.ndarray | None = None,
    room_mm: tuple[float, float] = (0.0, 0.0),
    anomalies: Collection[str] = ANOMALIES,
    costs: Costs = Costs(),  # noqa: B008 - frozen
) -> Sequence:
    """Return the legal sequence of least cost (see the module), its cost and margin.

    Args:
        scores: (n, 26) log probabilities, from head to foot, by contiguous class - 1.
        distances_mm: (n - 1,) between successive centroids; None or NaN where nothing is known.
        cut: (n,) bool, instances that an end of the scan cuts: a distance to these may be short.
        room_mm: what the scan shows above the first and below the last instance.
        anomalies: those of `ANOMALIES` that are allowed.
        costs: of deviations.

    Raises:
        InputError: unknown anomalies, scores that are NaN, costs below 0, or no legal sequence at
            all: scores of minus infinity, or no repeats and more instances than a spine has.
    """
    scores = np.asarray(scores, np.float64)
    n = len(scores)
    _check(scores, distances_mm, cut, anomalies, costs)
    steps = _steps(frozenset(anomalies), costs)
    away = np.full(n, False) if cut is None else np.asarray(cut, bool)
    gaps = np.full(max(0, n - 1), np.nan) if distances_mm is None else np.asarray(distances_mm)
    own = -scores + np.array([_label_cost(i, anomalies, costs) for i in labels.VERSE_IDS])
    if n == 0:
        return Sequence((), 0.0, math.inf, (), (), ())
    own[0] += _first_costs(room_mm[0], costs)
    own[-1] += _last_costs(room_mm[1], anomalies, costs)

    moves = [_move_costs(steps, gaps[i], bool(away[i] or away[i + 1]), costs) for i in range(n - 1)]
    forward, backward = own.copy(), own.copy()
    for i in range(1, n):
        forward[i] += (forward[i - 1][:, None] + moves[i - 1]).min(axis=0)
    for i in range(n - 2, -1, -1):
        backward[i] += (backward[i + 1][None, :] + moves[i]).min(axis=1)
    if not np.isfinite(forward[-1].min()):
        raise InputError(
            f"no legal sequence of {n} vertebrae: scores and costs forbid all; smooth the scores, "
            "or let vertebrae repeat"
        )
    path = [int(np.argmin(forward[-1]))]
    for i in range(n - 2, -1, -1):
        path.insert(0, int(np.argmin(forward[i] + moves[i][:, path[0]])))
    cost = float(forward[-1].min())
    # Least cost of all sequences that give a label to an instance; any other sequence differs from
    # the best at some instance.
    with np.errstate(invalid="ignore"):
        through = np.where(np.isinf(own), np.inf, forward + backward - own)
    through[np.arange(n), path] = np.inf
    margins = np.maximum(0.0, through.min(axis=1) - cost)
    ids = tuple(labels.VERSE_IDS[k] for k in path)
    taken, skipped = _anomalies_of(ids, steps, gaps, away, room_mm[1], costs)
    allowed = tuple(name for name in ANOMALIES if name in taken and name in anomalies)
    return Sequence(
        ids, cost, float(margins.min()), tuple(map(float, margins)), allowed, tuple(skipped)
    )


def _check(
    scores: np.ndarray,
    distances_mm: np.ndarray | None,
    cut: np.ndarray | None,
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
    if distances_mm is not None and np.shape(distances_mm) != (max(0, n - 1),):
        raise InputError(
            f"{n} instances have {max(0, n - 1)} distances, not {np.shape(distances_mm)}"
        )
    if cut is not None and np.shape(cut) != (n,):
        raise InputError(f"cut has shape {np.shape(cut)}; it is one truth value for each instance")


def _label_cost(verse_id: int, anomalies: Collection[str], costs: Costs) -> float:
    """Cost of having a vertebra at all."""
    for name, cost in (("T13", costs.t13), ("L6", costs.l6)):
        if verse_id == labels.id_of(name):
            return cost if name in anomalies else math.inf
    return 0.0


def _steps(anomalies: frozenset[str], costs: Costs) -> dict[tuple[int, int], list[_Step]]:
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
                sum(costs.gap + _label_cost(i, anomalies, costs) for i in way[1:-1])
                + (costs.no_t12 if without in itertools.pairwise(way) else 0.0),
                sum(_step_mm(i) for i in way[:-1]),
            )
            for way in (ways(upper, lower) if labels.order(upper) < labels.order(lower) else [])
        ]
    return result


def _step_mm(verse_id: int) -> float:
    return float(STEP_MM[labels.VERSE_IDS.index(verse_id)])


def _step_cost(step: _Step, distance_mm: float, short_is_free: bool) -> float:
    """Cost of a step, given the distance between the centroids, or NaN."""
    if not math.isfinite(distance_mm):
        return step.cost
    ratio = math.log(max(distance_mm, 1e-3) / step.usual_mm)
    misfit = 0.5 * (ratio / _SPREAD) ** 2
    if ratio < 0:
        misfit = 0.0 if short_is_free else min(misfit, _SHORT_COST)
    return step.cost + misfit


def _move_costs(
    steps: dict[tuple[int, int], list[_Step]],
    distance_mm: float,
    short_is_free: bool,
    costs: Costs,
) -> np.ndarray:
    """(26, 26) least cost from each class to each."""
    moves = np.full((NUM_LABELS, NUM_LABELS), np.inf)
    for (i, upper), (j, lower) in itertools.product(enumerate(labels.VERSE_IDS), repeat=2):
        if upper == lower:
            far = distance_mm / _step_mm(upper) - 0.3
            misfit = 0.5 * (far / _SPREAD) ** 2 if far > 0 else 0.0  # 0 where NaN, too
            moves[i, j] = costs.repeat + misfit
        elif steps[upper, lower]:
            moves[i, j] = min(
                _step_cost(s, distance_mm, short_is_free) for s in steps[upper, lower]
            )
    return moves


def _first_costs(room_mm: float, costs: Costs) -> np.ndarray:
    """(26,) cost of being the first vertebra below `room_mm` of scan."""
    return np.array(
        [
            costs.gap if i != labels.id_of("C1") and room_mm > _ROOM * _step_mm(i) else 0.0
            for i in labels.VERSE_IDS
        ]
    )


def _last_costs(room_mm: float, anomalies: Collection[str], costs: Costs) -> np.ndarray:
    """(26,) cost of being the last vertebra above `room_mm` of scan."""
    result = np.zeros(NUM_LABELS)
    for place, i in enumerate(labels.VERSE_IDS):
        if room_mm <= _ROOM * _step_mm(i) or (labels.can_end_lumbar(i) and i != labels.id_of("L4")):
            continue
        result[place] = costs.gap
        if i == labels.id_of("L4") and "no L5" in anomalies:
            result[place] = min(costs.gap, costs.no_l5)
    return result


def _anomalies_of(
    ids: tuple[int, ...],
    steps: dict[tuple[int, int], list[_Step]],
    gaps: np.ndarray,
    cut: np.ndarray,
    room_foot_mm: float,
    costs: Costs,
) -> tuple[set[str], list[int]]:
    """Return the anomalies of the cheapest way through a sequence, and what it skips."""
    taken = {name for name in ("T13", "L6") if labels.id_of(name) in ids}
    skipped: list[int] = []
    for k, pair in enumerate(itertools.pairwise(ids)):
        if pair[0] == pair[1]:
            continue
        free = bool(cut[k] or cut[k + 1])
        step = min(steps[pair], key=lambda s: _step_cost(s, gaps[k], free))
        skipped += step.skipped
        taken |= {"no T12"} if step.no_t12 else set()
    taken |= {"T13"} if labels.id_of("T13") in skipped else set()
    last = labels.id_of("L4")
    if ids[-1] == last and room_foot_mm > _ROOM * _step_mm(last) and costs.no_l5 <= costs.gap:
        taken.add("no L5")
    return taken, skipped
