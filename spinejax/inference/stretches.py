"""A label map made consistent: one stretch of the spine for each vertebra, from head to foot.

A network in doubt gives the halves of a vertebra two names, or two vertebrae one, and pieces of one
class are then no vertebrae. Here the spine as a whole is cut along its curve into successive
stretches of one vertebra each, by the most probable legal sequence of names and lengths: a
segmental hidden Markov model (Ostendorf et al., IEEE Trans. Speech Audio Process. 4(5), 1996),
solved by dynamic programming. Every voxel then chooses among the vertebrae near it.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from spinejax import labels
from spinejax.inference.pieces import NUM_LABELS, STEP_MM, Axis
from spinejax.inference.sequence import Costs
from spinejax.inference.volumes import Classes

_BIN_MM = 3.0
_LEAST_SHARE = 0.02  # of a class that is not among a voxel's two best
_DEEP_MM = 10.0  # bodies are deeper than processes, which reach below their own vertebra
_EVIDENCE = 6.0  # nats of a vertebra: its voxels err together, their number is no evidence
_USUAL_MM = 25.0
_SPREAD = 0.22  # of the log of a vertebra's length
_END_COST = 3.0  # at most, of a first or last vertebra that is too short: it may be cut
_LONGEST = 1.8  # usual lengths
_REACH_MM = 8.0  # standard deviation of how far voxels lie beyond their stretch
_REVERSED_BY = 20.0


class Stretch(NamedTuple):
    """Part of the spine's curve, from `low` to `high` mm towards the head, with a class."""

    low: float
    high: float
    label: int  # contiguous class, 1 to 26


def consistent(
    classes: Classes,
    spacing_mm: tuple[float, float, float],
    *,
    spine: np.ndarray | None = None,
    anomalies: Collection[str],
) -> np.ndarray:
    """Return a map of classes in which every vertebra has one stretch of the spine.

    Args:
        classes: of a network, (x, y, z), z towards the head.
        spacing_mm: voxel size.
        spine: (x, y, z) bool, what stage 1 takes for vertebrae; classes outside are left as they
            are and not looked at.
        anomalies: those that the spine may show, of `sequence.ANOMALIES`.

    Returns:
        (x, y, z) uint8. The network's first choices where they make far more sense from foot to
        head: then not they are wrong but the header.
    """
    seen = classes.first > 0
    if spine is not None:
        seen &= spine
    where = np.nonzero(seen)
    if len(where[0]) < 2:
        return classes.first
    spacing = np.asarray(spacing_mm, float)
    axis = Axis(seen, spacing)
    arc = axis.along(np.stack(where, -1) * spacing)
    first, second, share = (part[where] for part in classes)
    logs = _logs(share)
    depth = ndimage.distance_transform_edt(seen, sampling=spacing)[where]
    weight = np.minimum(depth, _DEEP_MM) ** 2
    start = float(arc.min())
    evidence = _evidence(arc - start, weight, (first, second, logs), max(spacing))
    found, score = _decode(evidence[::-1], anomalies)  # from head to foot
    if _decode(evidence, anomalies)[1] > score + _REVERSED_BY:
        return classes.first
    top = start + len(evidence) * _BIN_MM
    stretches = [Stretch(top - b * _BIN_MM, top - a * _BIN_MM, k + 1) for a, b, k in found]
    result = classes.first.copy()
    result[where] = _chosen(arc, stretches, (first, second, logs))
    return result


def _logs(share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities of the first and the second class, above that of any other."""
    p = share.astype(np.float32) / 255.0
    floor = np.log(_LEAST_SHARE)
    one, two = (np.log(np.maximum(q, _LEAST_SHARE)) - floor for q in (p, 1.0 - p))
    return one, two


def _evidence(
    arc: np.ndarray,
    weight: np.ndarray,
    voxels: tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]],
    coarsest_mm: float,
) -> np.ndarray:
    """Log evidence (bins, 26) of each part of the curve for each class, from foot to head."""
    first, second, logs = voxels
    at = (arc / _BIN_MM).astype(int)
    sums = np.zeros((at.max() + 1, NUM_LABELS + 1))
    np.add.at(sums, (at, first), weight * logs[0])
    np.add.at(sums, (at, second), weight * logs[1])
    total = np.bincount(at, weight, minlength=len(sums))
    # Bins finer than voxels would be empty in turn.
    width = 2 * max(1, round(coarsest_mm / _BIN_MM)) - 1
    sums = ndimage.uniform_filter1d(sums[:, 1:], width, axis=0, mode="constant")
    total = ndimage.uniform_filter1d(total, width, mode="constant")
    mean = np.divide(sums, total[:, None], out=np.zeros_like(sums), where=total[:, None] > 1e-9)
    return _EVIDENCE * _BIN_MM / _USUAL_MM * mean


def _steps(anomalies: Collection[str]) -> np.ndarray:
    """Log probability (26, 26) of a vertebra's successor below it, by contiguous class - 1."""
    costs = Costs()
    special = {
        ("T12", "T13"): ("T13", costs.t13),
        ("T11", "L1"): ("no T12", costs.no_t12),
        ("L5", "L6"): ("L6", costs.l6),
    }
    steps = np.full((NUM_LABELS, NUM_LABELS), -np.inf)
    for upper in labels.VERSE_IDS:
        for lower in labels.successors(upper):
            named = special.get((labels.name(upper), labels.name(lower)))
            if named is None or named[0] in anomalies:
                pair = labels.to_contiguous(np.array([upper, lower])) - 1
                steps[tuple(pair)] = 0.0 if named is None else -named[1]
    return steps


def _decode(
    evidence: np.ndarray, anomalies: Collection[str]
) -> tuple[list[tuple[int, int, int]], float]:
    """Most probable stretches (first bin, last bin + 1, class - 1) in order, and their score."""
    bins = len(evidence)
    sums = np.concatenate([np.zeros((1, NUM_LABELS)), np.cumsum(evidence, 0)])
    steps = _steps(anomalies)
    longest = max(1, int(_LONGEST * STEP_MM.max() / _BIN_MM))
    lengths = np.arange(1, longest + 1)[:, None] * _BIN_MM / STEP_MM
    usual = -0.5 * (np.log(lengths) / _SPREAD) ** 2
    end = np.where(lengths < 1, np.maximum(usual, -_END_COST), usual)
    usual[lengths > _LONGEST] = -1e3
    end[lengths > _LONGEST] = -1e3
    before = np.full((bins + 1, NUM_LABELS), -np.inf)  # best way to a class that begins here
    before[0] = 0.0
    best = np.full((bins + 1, NUM_LABELS), -np.inf)  # and to one that ends here
    came = np.zeros((bins + 1, NUM_LABELS), int)  # its length
    above = np.zeros((bins + 1, NUM_LABELS), int)  # the class before one that begins here
    for t in range(1, bins + 1):
        d = np.arange(1, min(t, longest) + 1)
        s = t - d
        at_end = (s == 0) | (t == bins)
        length = np.where(at_end[:, None], end[d - 1], usual[d - 1])
        score = before[s] + sums[t] - sums[s] + length
        came[t] = d[score.argmax(0)]
        best[t] = score.max(0)
        ways = best[t][:, None] + steps
        above[t] = ways.argmax(0)
        before[t] = ways.max(0)
    label = int(best[bins].argmax())
    found, t = [], bins
    while t > 0:
        begin = t - int(came[t, label])
        found.append((begin, t, label))
        label, t = int(above[begin, label]), begin
    return found[::-1], float(best[bins].max())


def _chosen(
    arc: np.ndarray,
    stretches: list[Stretch],
    voxels: tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Class of each voxel: of the stretch at its place or of one beside it."""
    first, second, logs = voxels
    low = np.array([s.low for s in stretches])
    high = np.array([s.high for s in stretches])
    names = np.array([s.label for s in stretches], np.uint8)
    own = np.clip(np.searchsorted(-low, -arc), 0, len(names) - 1)
    best, result = np.full(len(arc), -np.inf), np.zeros(len(arc), np.uint8)
    for other in (own, own - 1, own + 1):
        place = np.clip(other, 0, len(names) - 1)
        name = names[place]
        off = np.maximum(0.0, np.maximum(low[place] - arc, arc - high[place]))
        score = np.where(first == name, logs[0], 0.0) + np.where(second == name, logs[1], 0.0)
        score -= 0.5 * (off / _REACH_MM) ** 2
        better = score > best
        result[better], best[better] = name[better], score[better]
    return result
