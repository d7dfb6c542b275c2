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


def decoded(scores, distances, costs=Costs(), room=(0.0, 0.0)):  # noqa: B008 - frozen
    common = dict(
        distances_mm=np.asarray(distances, float),
        cut=np.zeros(len(scores), bool),
        room_mm=room,
        anomalies=ANOMALIES,
        costs=costs,
    )
    return nearer(decode_sequence(scores, **common), without_sacrum(scores, **common))


def names(sequence):
    return [labels.name(i) if i else "sacrum" for i in sequence.labels]


TORN = evidence({"L3": 1}, {"L4": 0.9, "L3": 0.1}, {"L5": 0.7, "L4": 0.3}, {"L5": 1})
"""What networks say where the sacrum is in the mask: names between the two possible ones."""


def test_a_second_l5_close_below_the_first_is_the_sacrum():
    close = decoded(TORN, [USUAL_MM, USUAL_MM, 0.7 * USUAL_MM])
    assert names(close) == ["L3", "L4", "L5", "sacrum"]
    # As far below as vertebrae are, and said to be one more: a sixth lumbar vertebra.
    six = evidence({"L3": 1}, {"L4": 1}, {"L5": 1}, {"L6": 0.8, "L5": 0.2})
    far = decoded(six, [USUAL_MM] * 3)
    assert names(far) == ["L3", "L4", "L5", "L6"]


def test_above_l4_there_is_no_sacrum():
    scores = evidence({"L1": 1}, {"L2": 0.6, "L1": 0.4}, {"L2": 1})
    assert SACRUM not in decoded(scores, [USUAL_MM, 0.7 * USUAL_MM]).labels
    thoracic = evidence({"T5": 1}, {"T6": 1})
    assert (
        without_sacrum(
            thoracic,
            np.array([25.0]),
            cut=np.zeros(2, bool),
            room_mm=(0.0, 0.0),
            anomalies=ANOMALIES,
            costs=Costs(),
        )
        is None
    )


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
    best = decoded(scores, distances, room=room)

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
