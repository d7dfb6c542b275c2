"""One stretch of the spine per vertebra: against brute force, and on maps in doubt."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinejax import labels
from spinejax.inference import stretches
from spinejax.inference.pieces import STEP_MM
from spinejax.inference.sequence import ANOMALIES, Costs
from spinejax.inference.volumes import Classes

MM = (2.0, 2.0, 2.0)


def score_of(cuts, names, evidence):
    """Score of stretches between `cuts` with class - 1 `names`, written out."""
    costs, total, bins = Costs(), 0.0, len(evidence)
    for i, (low, high) in enumerate(itertools.pairwise(cuts)):
        k = names[i]
        total += evidence[low:high, k].sum()
        length = (high - low) * stretches._BIN_MM / STEP_MM[k]
        if length > stretches._LONGEST:
            return -np.inf
        usual = -0.5 * (np.log(length) / stretches._SPREAD) ** 2
        if (low == 0 or high == bins) and length < 1:
            usual = max(usual, -stretches._END_COST)
        total += usual
    for upper, lower in itertools.pairwise(names):
        pair = tuple(labels.name(labels.VERSE_IDS[k]) for k in (upper, lower))
        total -= {
            ("T12", "T13"): costs.t13, ("T11", "L1"): costs.no_t12, ("L5", "L6"): costs.l6
        }.get(pair, 0.0)  # fmt: skip
    return total


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), bins=st.integers(2, 14))
def test_decoding_is_the_best_of_all(seed, bins):
    evidence = np.random.default_rng(seed).normal(0, 1.5, (bins, 26))
    chains = []
    for first in range(26):
        todo = [[first]]
        while todo:
            chain = todo.pop()
            chains.append(chain)
            below = labels.successors(labels.VERSE_IDS[chain[-1]]) if len(chain) < 3 else ()
            todo += [[*chain, labels.VERSE_IDS.index(i)] for i in below]
    best = max(
        score_of((0, *inner, bins), chain, evidence)
        for chain in chains
        for inner in itertools.combinations(range(1, bins), len(chain) - 1)
    )
    found, score = stretches._decode(evidence, ANOMALIES)
    assert found[0][0] == 0 and found[-1][1] == bins
    cuts = [0, *(high for _, high, _ in found)]
    assert score == pytest.approx(score_of(cuts, [k for *_, k in found], evidence))
    if len(found) <= 3:
        assert score == pytest.approx(best)
    assert score >= best - 1e-9


def column(ids=(18, 19, 20, 21, 22), shape=(30, 34)):
    """Contiguous classes (x, y, z) of blocks of the usual height, the first id at the head."""
    classes = labels.to_contiguous(np.array(ids))
    heights = [round(STEP_MM[k - 1] / MM[2]) for k in classes]
    array = np.zeros((*shape, sum(heights) + 20), np.uint8)
    top = array.shape[2] - 10
    for k, height in zip(classes, heights, strict=True):
        array[5:-5, 5:-5, top - height : top] = k
        top -= height
    return array


def sure(array):
    return Classes(array, np.zeros_like(array), np.full_like(array, 255))


def test_a_map_without_doubt_stays():
    array = column()
    found = stretches.consistent(sure(array), MM, anomalies=ANOMALIES)
    np.testing.assert_array_equal(found, array)


def test_halves_with_two_names_become_one_vertebra():
    """Voxels waver between a vertebra and the next; in front, all say the one below."""
    true = column()
    rng = np.random.default_rng(0)
    below = np.where(true > 0, true + 1, 0).astype(np.uint8)
    wrong = rng.random(true.shape) < 0.3
    wrong[:, :15] = rng.random(wrong[:, :15].shape) < 0.6
    first, second = np.where(wrong, below, true), np.where(wrong, true, below)
    share = np.where(true > 0, np.where(wrong, 0.55, 0.6) * 255, 255).astype(np.uint8)
    found = stretches.consistent(Classes(first, second, share), MM, anomalies=())
    assert (first == true)[true > 0].mean() < 0.65
    assert (found == true)[true > 0].mean() > 0.9  # the rest lie at borders
    assert not found[true == 0].any()


def test_a_map_that_runs_from_foot_to_head_is_left_alone():
    array = np.ascontiguousarray(column()[:, :, ::-1])
    found = stretches.consistent(sure(array), MM, anomalies=ANOMALIES)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("allowed", [ANOMALIES, ()])
def test_anomalies_on_request(allowed):
    names = [18, 20, 21, 22]  # no T12
    evidence = np.zeros((36, 26))
    for place, label in enumerate(names):
        evidence[9 * place : 9 * place + 9, label - 1] = 1.0
    found = [labels.VERSE_IDS[k] for *_, k in stretches._decode(evidence, allowed)[0]]
    assert found == (names if allowed else list(range(found[0], found[0] + len(found))))


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 4, 1), (1, 5, 9)])
def test_empty_and_tiny_maps(shape):
    empty = np.zeros(shape, np.uint8)
    assert not stretches.consistent(sure(empty), MM, anomalies=ANOMALIES).any()
    full = np.full(shape, 20, np.uint8)
    spine = np.ones(shape, bool)
    found = stretches.consistent(sure(full), MM, spine=spine, anomalies=ANOMALIES)
    assert (found == 20).all()
