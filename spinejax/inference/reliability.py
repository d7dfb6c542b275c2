"""How far stated probabilities of names agree with the share of right names, and their calibration.

`fit` finds the two numbers of `Calibration` on scans whose right names are known. `measure` says
how well they hold on other scans. Both count each scan once, however many vertebrae it shows: the
names of one scan are right or wrong together.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spinejax import labels
from spinejax.inference.pieces import NUM_LABELS
from spinejax.inference.sequence import (
    CERTAIN,
    Calibration,
    Evidence,
    by_level_error,
    decode,
    level_odds,
)

UNKNOWN = -1
"""Stands for the right name of an instance that has no known one."""

WEIGHTS = np.geomspace(0.05, 1.0, 25)
LEVEL_ERRORS = np.geomspace(0.001, 0.9, 69)
"""The values among which `fit` chooses; neighbours differ by about a tenth."""

BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, CERTAIN, 1.0)
"""Edges of the probabilities that a reliability diagram puts together."""


@dataclass(frozen=True, eq=False)
class Judged:
    """The evidence of a scan, and what its reference says."""

    evidence: Evidence
    anomalies: tuple[str, ...]
    """The variants that the decoder allows, see `sequence.ANOMALIES`."""
    right: tuple[int, ...]
    """The right name of each instance, a VerSe id; 0 for no vertebra, or `UNKNOWN`."""
    reference: frozenset[int]
    """VerSe ids of all vertebrae of the reference."""


@dataclass(frozen=True)
class Measured:
    """The names of a scan with a calibration."""

    view: str
    """The regions of the spine that the scan shows, see `labels.view`."""
    probabilities: tuple[float, ...]
    """Of each name whose right one is known."""
    right: tuple[bool, ...]
    """Whether the name is right, likewise."""
    log_loss: float
    """Minus the mean log probability of the right names."""
    variants: dict[str, float]
    """Variant -> its probability, if the reference shows its place, see `variants_seen`."""
    shown: frozenset[str]
    """The variants that the reference shows."""


def fit(scans: Sequence[Judged]) -> Calibration:
    """Return the calibration that makes the right names of some scans most probable.

    It maximises the sum over scans of the mean log probability of the right names. As few scans
    without a level error do not prove that there is none, half a scan with and half a scan without
    a level error are added (Krichevsky and Trofimov 1981).

    Args:
        scans: those without a known name do not count.

    Raises:
        ValueError: no scan has a known name.
    """
    losses = [_losses(one) for one in scans if _known(one).size]
    if not losses:
        raise ValueError("no scan has a vertebra whose right name is known")
    prior = 0.5 * np.log(LEVEL_ERRORS) + 0.5 * np.log1p(-LEVEL_ERRORS)
    total = np.sum(losses, axis=0) - prior
    weight, level_error = np.unravel_index(total.argmin(), total.shape)
    return Calibration(float(WEIGHTS[weight]), float(LEVEL_ERRORS[level_error]))


def _known(scan: Judged) -> np.ndarray:
    """Return the places of the instances whose right name is known."""
    return np.flatnonzero(np.array(scan.right) != UNKNOWN)


@functools.lru_cache(maxsize=2000)  # the parts of a cross-validation share scans
def _losses(scan: Judged) -> np.ndarray:
    """Return (weights, level errors), the log loss with every calibration."""
    likelihoods, probabilities = _of_right(scan, WEIGHTS)
    return np.stack(
        [_log_loss(likelihoods, probabilities, error) for error in LEVEL_ERRORS], axis=1
    )


def _of_right(scan: Judged, weights: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `by_level_error` does, with the probabilities (w, 8, m) of the m right names."""
    places = _known(scan)
    likelihoods, found = by_level_error(scan.evidence, weights, anomalies=scan.anomalies)
    right = [scan.right[i] for i in places]
    classes = [labels.VERSE_IDS.index(i) if i else NUM_LABELS for i in right]
    return likelihoods, found[:, :, places, classes]


def _log_loss(likelihoods: np.ndarray, probabilities: np.ndarray, level_error: float) -> np.ndarray:
    """Return (w,), the log loss of right names with a probability of level errors."""
    odds = np.log(np.maximum(level_odds(level_error), 1e-300)) + likelihoods
    odds = np.exp(odds - odds.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    mixed = (odds[:, :, None] * probabilities).sum(axis=1)
    loss: np.ndarray = -np.log(np.maximum(mixed, 1e-12)).mean(axis=1)
    return loss


def measure(scan: Judged, calibration: Calibration) -> Measured:
    """Name a scan, and compare names and probabilities with the right ones.

    A name that several instances share has the least of their probabilities, and is right if it is
    the right name of all of them.
    """
    found = decode(scan.evidence, anomalies=scan.anomalies, calibration=calibration)
    names: dict[int, tuple[float, bool]] = {}
    for name, probability, right in zip(found.labels, found.probabilities, scan.right, strict=True):
        if name and right != UNKNOWN:
            before = names.get(name, (1.0, True))
            names[name] = (min(before[0], probability), before[1] and right == name)
    loss = np.array([np.nan])
    if _known(scan).size:
        loss = _log_loss(*_of_right(scan, [calibration.weight]), calibration.level_error)
    seen = variants_seen(scan.reference)
    return Measured(
        view=labels.view(scan.reference),
        probabilities=tuple(probability for probability, _ in names.values()),
        right=tuple(right for _, right in names.values()),
        log_loss=float(loss[0]),
        variants={name: found.variants[name] for name in scan.anomalies if name in seen},
        shown=frozenset(labels.variants(scan.reference)),
    )


def variants_seen(ids: frozenset[int]) -> set[str]:
    """Return the variants of which a reference with these VerSe ids says whether they are there."""
    upper, lower = labels.id_of("T11"), labels.id_of("L1")
    found = {"T13", "no T12"} if {upper, lower} <= ids else set()
    return found | ({"L6"} if labels.id_of("L5") in ids else set())


def summarise(scans: Sequence[Measured]) -> dict[str, float | int | None]:
    """Return counts and shares of the names of some scans; undefined ones are None.

    Returns:
        {"scans", "names", "right": share of names, "certain": share of names of at least `CERTAIN`,
        "certain_right": share of these that are right, "scans_certain": share of scans whose names
        are all certain, "log_loss": mean of the scans, "brier": mean of the scans' mean squared
        difference of probability and truth}.
    """
    named = [one for one in scans if one.probabilities]
    probabilities = np.array([p for one in named for p in one.probabilities])
    right = np.array([r for one in named for r in one.right], bool)
    certain = probabilities >= CERTAIN
    losses = [one.log_loss for one in scans if np.isfinite(one.log_loss)]
    squares = [
        np.mean((np.array(one.probabilities) - np.array(one.right, float)) ** 2) for one in named
    ]
    return {
        "scans": len(scans),
        "names": len(probabilities),
        "right": _mean(right),
        "certain": _mean(certain),
        "certain_right": _mean(right[certain]),
        "scans_certain": _mean([min(one.probabilities) >= CERTAIN for one in named]),
        "log_loss": _mean(losses),
        "brier": _mean(squares),
    }


def by_view(scans: Sequence[Measured]) -> dict[str, dict[str, float | int | None]]:
    """Return `summarise` of all scans, and of those of each view."""
    views = sorted({one.view for one in scans})
    found = {"all": summarise(scans)}
    return found | {view: summarise([one for one in scans if one.view == view]) for view in views}


def by_variant(scans: Sequence[Measured]) -> dict[str, dict[str, float | int | None]]:
    """Return how well each variant of the spine is found.

    Returns:
        Variant -> {"shown": scans with it, "found": those of them with a probability of at least
        one half, "probability": mean in them, "not_shown": scans whose reference shows that it is
        absent, "false": those of them with at least one half, "false_probability": mean in them}.
    """
    result: dict[str, dict[str, float | int | None]] = {}
    for name in sorted({name for one in scans for name in one.variants}):
        there = np.array([one.variants[name] for one in scans if name in one.variants])
        shown = np.array([name in one.shown for one in scans if name in one.variants], bool)
        result[name] = {
            "shown": int(shown.sum()),
            "found": int((there[shown] >= 0.5).sum()),
            "probability": _mean(there[shown]),
            "not_shown": int((~shown).sum()),
            "false": int((there[~shown] >= 0.5).sum()),
            "false_probability": _mean(there[~shown]),
        }
    return result


def reliability(scans: Sequence[Measured]) -> list[Mapping[str, float | int]]:
    """Return the rows of a reliability diagram: the names between two of `BINS`; none is empty.

    Returns:
        [{"low", "high": the bin, "names", "probability": mean, "right": share}].
    """
    probabilities = np.array([p for one in scans for p in one.probabilities])
    right = np.array([r for one in scans for r in one.right], float)
    place = np.clip(np.searchsorted(BINS, probabilities, side="right") - 1, 0, len(BINS) - 2)
    return [
        {
            "low": BINS[k],
            "high": BINS[k + 1],
            "names": int((place == k).sum()),
            "probability": float(probabilities[place == k].mean()),
            "right": float(right[place == k].mean()),
        }
        for k in range(len(BINS) - 1)
        if (place == k).any()
    ]


def _mean(values: Sequence[float] | np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None
