"""Calibration against scans drawn from a known model, and its scores against counts by hand."""

import itertools
import math

import numpy as np
import pytest

from spinejax import labels
from spinejax.inference import reliability
from spinejax.inference.pieces import STEP_MM
from spinejax.inference.reliability import UNKNOWN, Judged, Measured, fit, measure
from spinejax.inference.sequence import (
    ANOMALIES,
    CERTAIN,
    Calibration,
    Evidence,
    by_level_error,
    decode,
    level_odds,
)

PLACE = {verse_id: place for place, verse_id in enumerate(labels.VERSE_IDS)}
TRUE = Calibration(weight=0.5, level_error=0.15)
SHARES = {-3: 0.05, -2: 0.1, -1: 0.35, 1: 0.35, 2: 0.1, 3: 0.05}
N = 3
# Whole spines without variants that are longer than usual, written down by hand.
SPINES = [[*range(1, 26)], [*range(1, 20), 28, *range(20, 26)], [*range(1, 19), *range(20, 26)]]
RUNS = sorted({tuple(spine[i : i + N]) for spine in SPINES for i in range(len(spine) - N + 1)})
RARE = {28: 2 / 80, 25: 16 / 83}


def prior(run, step_mm):
    """Probability of a run of neighbours that lie `step_mm` apart, up to a factor."""
    missing = 3 / 83 if (18, 20) in itertools.pairwise(run) else 1.0
    misfits = []
    for upper in run[:-1]:
        ratio = math.log(step_mm / STEP_MM[PLACE[upper]]) / 0.15
        misfits.append(0.5 * ratio**2 if ratio > 0 else min(3.4, 0.5 * ratio**2))
    return missing * math.prod(RARE.get(i, 1.0) for i in run) * math.exp(-sum(misfits))


def log_share(row, label, levels):
    """Log share of a label where the network names all vertebrae `levels` too low."""
    if levels:
        rank = 19.5 if label == 28 else label
        label = math.floor(rank + levels) if levels > 0 else math.ceil(rank + levels)
        if not 1 <= label <= 25:
            return row.min()
    return row[PLACE[label]]


def drawn(seed):
    """Draw what a network sees of three neighbours, and then the truth as the model says.

    Sequences with gaps, repeats and false instances are left out. With usual distances they are
    improbable.
    """
    rng = np.random.default_rng(seed)
    seen = [run for run in RUNS if 28 not in run and 20 in run or 8 <= run[0] < 17]
    run = seen[rng.integers(len(seen))]
    sums = 0.3 * rng.dirichlet(np.ones(26), N)
    for k, label in enumerate(run):
        sums[k, PLACE[label]] += rng.uniform(0, 1)
    shares = sums / sums.sum(axis=1, keepdims=True)
    shares[:, PLACE[28]] += 0.5 * shares[:, PLACE[19]]
    shares[:, PLACE[25]] += 0.5 * shares[:, PLACE[24]]
    scores = np.log(0.95 * shares + 0.05 / 26)
    step = STEP_MM[PLACE[run[1]]]
    joint = {
        (levels, ids): odds
        * prior(ids, step)
        * math.exp(
            TRUE.weight * sum(log_share(row, i, levels) for row, i in zip(scores, ids, strict=True))
        )
        for levels, odds in {
            0: 1 - TRUE.level_error,
            **{d: TRUE.level_error * share for d, share in SHARES.items()},
        }.items()
        for ids in RUNS
    }
    # A spine with L6, numbered from the sacrum: L2 to L6 look like L1 to L5.
    for ids in RUNS:
        looks = [i - 1 if 21 <= i <= 25 else i for i in ids]
        odds = (1 - TRUE.level_error) * 0.5 * (RARE[25] if 25 not in ids else 1.0)
        same = math.exp(TRUE.weight * sum(r[PLACE[i]] for r, i in zip(scores, looks, strict=True)))
        joint["sacrum", ids] = odds * prior(ids, step) * same
    chances = np.array(list(joint.values()))
    _, right = list(joint)[rng.choice(len(joint), p=chances / chances.sum())]
    where = np.stack([np.zeros(N), np.zeros(N), -step * np.arange(N)], axis=1)
    evidence = Evidence(sums, where, np.full(N, False), np.ones(N), (0.0, 0.0))
    return Judged(evidence, ANOMALIES, right, frozenset(right))


@pytest.fixture(scope="module")
def scans():
    return [drawn(seed) for seed in range(160)]


def test_the_numbers_that_made_the_scans_are_found(scans):
    found = fit(scans)
    assert found.weight == pytest.approx(TRUE.weight, rel=0.25)
    assert found.level_error == pytest.approx(TRUE.level_error, abs=0.06)
    assert found.fitted


def test_calibrated_names_are_right_as_often_as_they_say(scans):
    trusting = [measure(one, Calibration(1.0, 0.0)) for one in scans[:80]]
    calibration = fit(scans[80:])
    measured = [measure(one, calibration) for one in scans[:80]]
    for row in reliability.reliability(measured):
        spread = math.sqrt(0.25 / (row["names"] / N))  # names of one scan are right together
        assert abs(row["probability"] - row["right"]) < 3 * spread
    before, after = reliability.summarise(trusting), reliability.summarise(measured)
    assert after["log_loss"] < before["log_loss"] and after["brier"] < before["brier"]
    assert before["certain"] > 0.05 and before["certain_right"] < CERTAIN


@pytest.mark.parametrize("level_error", [0.0, 0.2])
def test_the_mean_over_level_errors_is_what_the_decoder_says(scans, level_error):
    evidence = scans[0].evidence
    found = decode(evidence, calibration=Calibration(0.4, level_error))
    likelihoods, probabilities = by_level_error(evidence, [0.9, 0.4])
    assert likelihoods.shape == (2, 8) and probabilities.shape == (2, 8, N, 27)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0)
    odds = level_odds(level_error) * np.exp(likelihoods[1])
    mean = np.tensordot(odds / odds.sum(), probabilities[1], 1)
    own = [mean[k, PLACE[i] if i else 26] for k, i in enumerate(found.labels)]
    assert own == pytest.approx(found.probabilities)


def test_scans_without_errors_leave_half_a_scan_of_doubt():
    """The mean of Jeffreys' posterior for no error in n scans is 0.5 / (n + 1)."""
    sums = np.eye(26)[[PLACE[i] for i in (16, 17, 18)]]
    where = np.stack([np.zeros(3), np.zeros(3), -STEP_MM[15] * np.arange(3)], axis=1)
    evidence = Evidence(sums, where, np.full(3, False), np.ones(3), (0.0, 0.0))
    found = fit([Judged(evidence, ANOMALIES, (16, 17, 18), frozenset((16, 17, 18)))] * 20)
    assert found.weight > 0.8 and found.level_error == pytest.approx(0.5 / 21, rel=0.3)


def test_what_is_unknown_does_not_count(scans):
    unknown = [Judged(scans[0].evidence, ANOMALIES, (UNKNOWN,) * N, frozenset((20,)))]
    assert fit(scans[:8] + unknown * 50) == fit(scans[:8])
    assert measure(unknown[0], TRUE).probabilities == ()
    with pytest.raises(ValueError, match="known"):
        fit(unknown)


def one(view, *names, loss=0.1, variants=(), shown=()):
    chances, right = zip(*names, strict=True)
    return Measured(view, chances, right, loss, dict(variants), frozenset(shown))


SCANS = [
    one("lumbar", (0.99, True), (0.985, False), loss=0.3, variants=[("L6", 0.9)], shown=["L6"]),
    one("lumbar", (1.0, True), (0.98, True), loss=0.1, variants=[("L6", 0.2)]),
    one("thoracic", (0.6, True), (0.6, False), (0.9, True), loss=0.2),
]


def test_shares_of_names_and_of_scans():
    found = reliability.by_view(SCANS)
    assert list(found) == ["all", "lumbar", "thoracic"]
    assert found["all"] == {
        "scans": 3, "names": 7, "right": 5 / 7, "certain": 4 / 7, "certain_right": 3 / 4,
        "scans_certain": pytest.approx(2 / 3), "log_loss": pytest.approx(0.2),
        "brier": pytest.approx((((0.01**2 + 0.985**2) / 2) + 0.02**2 / 2
                                + (0.4**2 + 0.6**2 + 0.1**2) / 3) / 3),
    }  # fmt: skip
    assert found["thoracic"]["certain"] == 0 and found["thoracic"]["certain_right"] is None


def test_a_diagram_has_the_names_of_each_bin():
    rows = reliability.reliability(SCANS)
    assert [(row["low"], row["names"], row["right"]) for row in rows] == [
        (0.5, 2, 0.5), (0.9, 1, 1.0), (CERTAIN, 4, 0.75),
    ]  # fmt: skip


def test_variants_are_counted_where_the_reference_tells():
    assert reliability.by_variant(SCANS) == {
        "L6": {"shown": 1, "found": 1, "probability": 0.9,
               "not_shown": 1, "false": 0, "false_probability": 0.2}
    }  # fmt: skip
    assert reliability.variants_seen(frozenset(range(18, 25))) == {"T13", "no T12", "L6"}
    assert reliability.variants_seen(frozenset((20, 21))) == set()
