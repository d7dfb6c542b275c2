"""The top of the sacrum, which networks take for a vertebra, so that every name shifts by one.

A network has no class for it. What looks like a second last lumbar vertebra, close below the first,
may be it: the sequence without it is then the more probable one.
"""

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from spinejax import labels
from spinejax.errors import InputError
from spinejax.inference.pieces import STEP_MM
from spinejax.inference.sequence import SPREAD, Costs, Sequence, decode_sequence

SACRUM = 0
"""Label of an instance that is no vertebra."""

# What masks hold of the sacrum is seldom all of S1. On two scans of patients its centre lay 0.65
# and 0.7 of the usual distance below that of L5, and its volume was 0.5 and 0.62 of what the
# vertebrae above it have.
_STEP = 0.7
_SIZE, _SIZE_SPREAD = 0.55, 0.2
_ABOVE = 3
_LAST = [labels.VERSE_IDS.index(labels.id_of(name)) for name in ("L4", "L5", "L6")]


def without_sacrum(
    scores: np.ndarray,
    distances_mm: np.ndarray,
    volumes_ml: np.ndarray,
    *,
    cut: np.ndarray,
    room_mm: tuple[float, float],
    anomalies: Collection[str],
    costs: Costs,
) -> Sequence | None:
    """Return the best sequence whose last instance is the sacrum, its label `SACRUM`.

    It costs `costs.sacrum`; minus the log of the score of the three classes that may be the last;
    0.5 (log(d / (0.7 usual)) / 0.15)^2 for its distance d to the vertebra above; and, with r its
    volume over the median of the three above it, 0.5 (log(r / 0.55) / 0.2)^2 minus what a vertebra
    of that size would cost, 0.5 (log(r) / 0.2)^2. None where no sequence ends so.

    Args:
        scores: (n, 26) of all instances; see `decode_sequence`, as for all arguments.
        distances_mm: (n - 1,).
        volumes_ml: (n,); of an instance that the scan's end cuts it says nothing.
        cut: (n,).
        room_mm: above the first and below the last instance.
        anomalies: that are allowed.
        costs: of deviations; an infinite `sacrum` forbids this one.
    """
    if len(scores) < 2 or not math.isfinite(costs.sacrum):
        return None
    only = np.array(scores[:-1])
    only[-1, np.setdiff1d(np.arange(only.shape[1]), _LAST)] = -math.inf
    try:
        found = decode_sequence(
            only,
            distances_mm=distances_mm[:-1],
            cut=cut[:-1],
            room_mm=(room_mm[0], math.inf),
            anomalies=anomalies,
            costs=costs,
        )
    except InputError:  # no legal sequence ends so
        return None
    usual = _STEP * STEP_MM[labels.VERSE_IDS.index(found.labels[-1])]
    misfit = 0.5 * (math.log(max(float(distances_mm[-1]), 1e-3) / usual) / SPREAD) ** 2
    misfit += _size_cost(volumes_ml, cut)
    own = -float(np.logaddexp.reduce(scores[-1, _LAST]))
    return replace(
        found,
        labels=(*found.labels, SACRUM),
        cost=found.cost + costs.sacrum + own + misfit,
        margins=(*found.margins, math.inf),
    )


def _size_cost(volumes_ml: np.ndarray, cut: np.ndarray) -> float:
    """How much worse the last volume fits the sacrum than a vertebra, in -log probability."""
    above = np.asarray(volumes_ml)[:-1][~np.asarray(cut)[:-1]][-_ABOVE:]
    if cut[-1] or not len(above) or min(above.min(), volumes_ml[-1]) <= 0:
        return 0.0
    size = math.log(float(volumes_ml[-1] / np.median(above)))
    return 0.5 * ((size - math.log(_SIZE)) ** 2 - size**2) / _SIZE_SPREAD**2


def nearer(one: Sequence, other: Sequence | None) -> Sequence:
    """Return the less costly of two sequences of the same instances; its margins know the other."""
    if other is None:
        return one
    best, rest = (one, other) if one.cost <= other.cost else (other, one)
    between = rest.cost - best.cost
    margins = tuple(
        margin if a == b else min(margin, between)
        for margin, a, b in zip(best.margins, best.labels, rest.labels, strict=True)
    )
    return replace(best, margins=margins, margin=min(best.margin, between))
