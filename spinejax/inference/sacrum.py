"""The top of the sacrum, which networks take for a vertebra, so that every name shifts by one.

A network has no class for it. What looks like a second last lumbar vertebra, close below the first,
may be it: the sequence without it is then the more probable one.
"""

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from spinejax import labels
from spinejax.inference.pieces import STEP_MM
from spinejax.inference.sequence import SPREAD, Costs, Sequence, decode_sequence

SACRUM = 0
"""Label of an instance that is no vertebra."""

# From the centre of the last vertebra to that of what masks hold of the sacrum, which is seldom all
# of S1: on two scans of patients 0.65 and 0.7 of what is usual between lumbar vertebrae.
_STEP = 0.7
_LAST = [labels.VERSE_IDS.index(labels.id_of(name)) for name in ("L4", "L5", "L6")]


def without_sacrum(
    scores: np.ndarray,
    distances_mm: np.ndarray,
    *,
    cut: np.ndarray,
    room_mm: tuple[float, float],
    anomalies: Collection[str],
    costs: Costs,
) -> Sequence | None:
    """Return the best sequence whose last instance is the sacrum, its label `SACRUM`.

    It costs `costs.sacrum`, minus the log of the score of the three classes that may be the last,
    and 0.5 (log(d / (0.7 usual)) / 0.15)^2 for its distance d to the vertebra above. None where
    that vertebra cannot be the last one, and where there is none.

    Args:
        scores: (n, 26) of all instances; see `decode_sequence`, as for all arguments.
        distances_mm: (n - 1,).
        cut: (n,).
        room_mm: above the first and below the last instance.
        anomalies: that are allowed.
        costs: of deviations; an infinite `sacrum` forbids this one.
    """
    if len(scores) < 2 or not math.isfinite(costs.sacrum):
        return None
    found = decode_sequence(
        scores[:-1],
        distances_mm=distances_mm[:-1],
        cut=cut[:-1],
        room_mm=(room_mm[0], math.inf),
        anomalies=anomalies,
        costs=costs,
    )
    last = found.labels[-1]
    if not labels.can_end_lumbar(last):
        return None
    usual = _STEP * STEP_MM[labels.VERSE_IDS.index(last)]
    misfit = 0.5 * (math.log(max(float(distances_mm[-1]), 1e-3) / usual) / SPREAD) ** 2
    own = -float(np.logaddexp.reduce(scores[-1, _LAST]))
    return replace(
        found,
        labels=(*found.labels, SACRUM),
        cost=found.cost + costs.sacrum + own + misfit,
        margins=(*found.margins, math.inf),
    )


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
