"""Successive halving: which units of a sweep are not worth training on.

Units are compared at rungs, which are shares of their training. Each rung keeps the best 1/eta of
the units that have reached it. This is ASHA (Li et al., MLSys 2020, section 3.2, algorithm 2),
which waits for no unit. Rungs lie as in synchronous halving of n units (algorithm 1 there): at
eta**-k of the training, for k from 1 to the largest with eta**k <= n, so that about one unit is
trained to its end.

Chosen here: a unit that is not among the best is stopped; the paper's waits and may be promoted
later, which needs workers without work. The best unit of a rung is never stopped. A unit is
compared at the highest rung that it has reached, and again whenever another unit reaches that rung.
The decision depends on the scores alone, so a launcher that was killed needs no record.
"""

from collections.abc import Mapping

from spinejax.sweep_state import LearningCurve


def rungs(units: int, eta: int) -> list[float]:
    """Return the shares of the training at which units are compared, from the lowest on."""
    shares: list[float] = []
    while eta ** (len(shares) + 1) <= units:
        shares.insert(0, eta ** -(len(shares) + 1.0))
    return shares


def worst(curves: Mapping[str, LearningCurve], eta: int) -> dict[str, str]:
    """Return the units to stop, by name, and why.

    Args:
        curves: of all units of the sweep, by name. A higher score is better. A unit's score at a
            rung is that of its first validation there or later.
        eta: at least 2; each rung keeps the best 1/eta of those that have reached it, at least one.
            Units with the score of the last that is kept are kept, too.

    Returns:
        Name -> reason. A unit whose training is at its end is not among them.
    """
    found: dict[str, str] = {}
    higher: set[str] = set()  # units that have reached a higher rung
    for share in reversed(rungs(len(curves), eta)):
        reached = {}  # name -> (step, score)
        for name, curve in curves.items():
            at = next((one for one in curve.scores if one[0] >= share * curve.steps), None)
            if at is not None:
                reached[name] = at
        kept = max(1, len(reached) // eta)
        best = sorted((score for _, score in reached.values()), reverse=True)[:kept]
        for name, (step, score) in reached.items():
            ended = curves[name].scores[-1][0] >= curves[name].steps
            if name not in higher and not ended and score < best[-1]:
                found[name] = (
                    f"Dice {score:.4f} at step {step} is not among the best {kept} of "
                    f"{len(reached)} units there"
                )
        higher |= reached.keys()
    return found
