"""What looks like a second L5, close below the first: the top of the sacrum, and no vertebra."""

import itertools
import math

import numpy as np
import pytest

from spinejax import labels
from spinejax.errors import InputError
from spinejax.inference.sacrum import SACRUM, nearer, without_sacrum
from spinejax.inference.sequence import ANOMALIES, SPREAD, Costs, class_scores, decode_sequence

USUAL_MM = 31.0


def evidence(*shares):
    """Rows of class sums, from {name: share}."""
    sums = np.zeros((len(shares), 26))
    for row, named in zip(sums, shares, strict=True):
        for name, share in named.items():
            row[labels.VERSE_IDS.index(labels.id_of(name))] = share
    return class_scores(sums)


def decoded(scores, distances, costs=Costs(), room=(0.0, 0.0), size=0.55, cut=()):  # noqa: B008
    """With the last of `size` times the volume of the others."""
    volumes = np.full(len(scores), 50.0)
    volumes[-1] *= size
    common = dict(
        distances_mm=np.asarray(distances, float),
        cut=np.isin(np.arange(len(scores)), cut),
        room_mm=room,
        anomalies=ANOMALIES,
        costs=costs,
    )
    without = without_sacrum(scores, volumes_ml=volumes, **common)
    return nearer(decode_sequence(scores, **common), without)


def names(sequence):
    return [labels.name(i) if i else "sacrum" for i in sequence.labels]


TORN = evidence({"L3": 1}, {"L4": 0.9, "L3": 0.1}, {"L5": 0.7, "L4": 0.3}, {"L5": 1})
"""What networks say where the sacrum is in the mask: names between the two possible ones."""


def test_a_second_l5_close_below_the_first_is_the_sacrum():
    close = decoded(TORN, [USUAL_MM, USUAL_MM, 0.7 * USUAL_MM])
    assert names(close) == ["L3", "L4", "L5", "sacrum"]
    # As far below as vertebrae are, and said to be one more: a sixth lumbar vertebra.
    six = evidence({"L3": 1}, {"L4": 1}, {"L5": 1}, {"L6": 0.8, "L5": 0.2})
    far = decoded(six, [USUAL_MM] * 3, size=1.0)
    assert names(far) == ["L3", "L4", "L5", "L6"]


def test_what_is_as_large_as_the_vertebrae_above_is_one():
    either = [{f"L{i}": 0.5, f"L{i + 1}": 0.5} for i in (2, 3, 4)]
    scores = evidence(*either, {"L5": 1})
    distances = [USUAL_MM, USUAL_MM, 0.85 * USUAL_MM]
    small, large = decoded(scores, distances, size=0.5), decoded(scores, distances, size=1.0)
    assert SACRUM in small.labels and SACRUM not in large.labels
    # Of a cut piece, the size says nothing.
    one, other = (decoded(scores, distances, size=s, cut=(3,)) for s in (0.1, 1.0))
    assert one == other


def test_above_l4_there_is_no_sacrum():
    scores = evidence({"L1": 1}, {"L2": 0.6, "L1": 0.4}, {"L2": 1})
    assert SACRUM not in decoded(scores, [USUAL_MM, 0.7 * USUAL_MM]).labels
    thoracic = evidence({"T4": 1}, {"T5": 1}, {"T6": 1})
    assert SACRUM not in decoded(thoracic, [25.0, 17.0]).labels


def test_an_infinite_cost_forbids_it_and_one_instance_is_never_it():
    never = decoded(TORN, [USUAL_MM, USUAL_MM, 0.7 * USUAL_MM], Costs(sacrum=math.inf))
    assert SACRUM not in never.labels
    assert names(decoded(evidence({"L5": 1}), [])) == ["L5"]


@pytest.mark.parametrize("seed", range(20))
def test_cost_and_margin_are_those_of_all_sequences(seed):
    """By trying every labelling of three instances, the sacrum's among them."""
    rng = np.random.default_rng(seed)
    sums = np.zeros((3, 26))
    sums[:, 20:25] = rng.dirichlet(np.full(5, 0.5), 3)
    scores = class_scores(sums)
    distances = USUAL_MM * rng.uniform(0.5, 1.2, 2)
    room = (0.0, float(rng.choice([0.0, 100.0])))
    size = float(rng.uniform(0.4, 1.2))
    best = decoded(scores, distances, room=room, size=size)

    def cost(ids):
        """Of one labelling: all other classes are made impossible."""
        kept = ids if ids[-1] != SACRUM else ids[:-1]
        only = np.full((len(kept), 26), -math.inf)
        for row, i in enumerate(kept):
            place = labels.VERSE_IDS.index(i)
            only[row, place] = scores[row, place]
        foot = math.inf if SACRUM in ids else room[1]
        try:
            found = decode_sequence(
                only, distances_mm=distances[: len(kept) - 1], room_mm=(room[0], foot)
            )
        except InputError:
            return math.inf
        if SACRUM not in ids:
            return found.cost
        usual = 0.7 * USUAL_MM
        last = [labels.VERSE_IDS.index(i) for i in (23, 24, 25)]
        return (
            found.cost
            + Costs().sacrum
            - math.log(np.exp(scores[-1, last]).sum())
            + 0.5 * (math.log(distances[-1] / usual) / SPREAD) ** 2
            + 0.5 * ((math.log(size / 0.55) / 0.2) ** 2 - (math.log(size) / 0.2) ** 2)
        )

    near = range(19, 26)
    all_ids = [*itertools.product(near, repeat=3)]
    all_ids += [(*two, SACRUM) for two in itertools.product(near, repeat=2) if two[-1] >= 23]
    costs = {ids: cost(ids) for ids in all_ids}
    lowest = min(costs, key=lambda ids: costs[ids])
    assert best.labels == lowest
    assert best.cost == pytest.approx(costs[lowest])
    others = [c for ids, c in costs.items() if ids != lowest]
    assert best.margin == pytest.approx(min(others) - costs[lowest])
