"""What it costs to go from one vertebra to the next, and where a spine begins and ends.

Costs are minus logs of probabilities; `sequence` says how they add up.
"""

import functools
import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from spinejax import labels
from spinejax.inference.pieces import NUM_LABELS, STEP_MM

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
