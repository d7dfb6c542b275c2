"""The most probable legal sequence of vertebrae, given how each of them looks.

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
"""

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from spinejax import labels
from spinejax.choices import check_choice
from spinejax.errors import InputError
from spinejax.inference.pieces import NUM_LABELS
from spinejax.inference.transitions import (
    ANOMALIES,
    ROOM,
    Costs,
    cheapest_step,
    first_costs,
    label_cost,
    last_costs,
    move_costs,
    step_mm,
)

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
