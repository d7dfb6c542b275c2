"""The most probable legal sequence against brute force, and the names of real vertebrae."""

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinejax import labels
from spinejax.errors import InputError
from spinejax.inference import sequence
from spinejax.inference.instances import Instance, Instances, find_instances
from spinejax.inference.pieces import STEP_MM, VOLUME_ML
from spinejax.inference.sequence import (
    ANOMALIES,
    Calibration,
    Costs,
    Evidence,
    class_scores,
    decode,
    decode_sequence,
    label_instances,
)
from tests.support.label_maps import FILES, dice, ids_of, labelled, repaired
from tests.support.nifti_files import one_line

PLACE = {verse_id: place for place, verse_id in enumerate(labels.VERSE_IDS)}


T11, T12, T13, L1, L4, L5, L6 = (labels.id_of(n) for n in "T11 T12 T13 L1 L4 L5 L6".split())


@functools.cache
def spines(anomalies):
    """Every whole spine, C1 to its last vertebra, written down by hand."""
    cervical_to_t11 = [*range(1, 19)]
    ends = [[20, 21, 22, 23, 24]]
    ends += [[20, 21, 22, 23, 24, 25]] if "L6" in anomalies else []
    middles = [[19]]
    middles += [[]] if "no T12" in anomalies else []
    middles += [[19, 28]] if "T13" in anomalies else []
    return [cervical_to_t11 + middle + end for middle in middles for end in ends]


def share_by_hand(size):
    return 1.0 if size >= 0.5 else max(0.5, 2 * size)


@functools.cache
def step_by_hand(upper, lower, distance, cut, size, anomalies, costs):
    """Least cost of a step, over all whole spines that have both, and the variants on the way."""
    if upper == lower:
        far = 0.0 if math.isnan(distance) else max(0, distance / STEP_MM[PLACE[upper]] - 0.3)
        return costs.repeat * share_by_hand(size) + 0.5 * (far / 0.15) ** 2, set()
    best, shown = math.inf, set()
    for spine in spines(anomalies):
        if upper not in spine or lower not in spine or spine.index(upper) >= spine.index(lower):
            continue
        way = spine[spine.index(upper) : spine.index(lower) + 1]
        cost = costs.gap + costs.wider * (len(way) - 3) if len(way) > 2 else 0.0
        cost += costs.t13 if T13 in way[1:-1] else 0.0
        cost += costs.no_t12 if (T11, L1) in itertools.pairwise(way) else 0.0
        if not math.isnan(distance):
            ratio = math.log(distance / sum(STEP_MM[PLACE[i]] for i in way[:-1]))
            misfit = 0.5 * (ratio / 0.15) ** 2
            if ratio < 0:
                misfit = 0 if cut else min(3.4, misfit)
            cost += misfit
        if cost < best:
            best = cost
            shown = {"T13"} if T13 in way[1:-1] else set()
            shown |= {"no T12"} if (T11, L1) in itertools.pairwise(way) else set()
    return best, shown


def cost_by_hand(*how):
    return found_by_hand(*how)[0]


def found_by_hand(ids, scores, centroids, cut, sizes, room, anomalies, costs):
    """Cost of a sequence, and the variants that it shows."""
    kept = [k for k, i in enumerate(ids) if i]
    if not kept:
        return math.inf, set()
    shown = {name for name in ("T13", "L6") if labels.id_of(name) in ids}
    total = sum(costs.false * share_by_hand(sizes[k]) for k, i in enumerate(ids) if not i)
    for k in kept:
        i = ids[k]
        if not any(i in spine for spine in spines(anomalies)):
            return math.inf, set()
        total += -scores[k][PLACE[i]] + costs.t13 * (i == T13) + costs.l6 * (i == L6)

    def apart(one, other):
        return math.nan if centroids is None else math.dist(centroids[one], centroids[other])

    for one, other in itertools.pairwise(kept):
        less = min(sizes[one], sizes[other])
        ends = cut[one] or cut[other] or less < 0.5
        how = (apart(one, other), bool(ends), less, anomalies, costs)
        step, variants = step_by_hand(ids[one], ids[other], *how)
        total, shown = total + step, shown | variants
    first, last = ids[kept[0]], ids[kept[-1]]
    above, below = room
    if centroids is not None:  # heights
        above += centroids[0][2] - centroids[kept[0]][2]
        below += centroids[kept[-1]][2] - centroids[-1][2]
    if first != 1 and above > 1.5 * STEP_MM[PLACE[first]]:
        total += costs.gap
    if last not in (L5, L6) and below > 1.5 * STEP_MM[PLACE[last]]:
        sacrum = last == L4 and "no L5" in anomalies
        total += min(costs.gap, costs.no_l5) if sacrum else costs.gap
        shown |= {"no L5"} if sacrum and costs.no_l5 <= costs.gap else set()
    return total, shown


def column(*distances):
    """Centroids one below the other."""
    return np.stack([np.zeros(len(distances) + 1)] * 2 + [-np.cumsum([0.0, *distances])], axis=1)


def drawn(seed, n, candidates):
    """Log probabilities of a few classes around the thoracolumbar junction; others impossible."""
    rng = np.random.default_rng(seed)
    scores = np.full((n, 26), -np.inf)
    start = rng.choice([0, 9, 15, 16, 18, 20])
    near = [labels.VERSE_IDS.index(i) for i in (18, 19, 28, 20)]
    pool = np.unique([*range(start, min(26, start + candidates - 2)), *near[:2], 25, near[2]])
    for row in scores:
        row[rng.choice(pool, min(candidates, len(pool)), replace=False)] = rng.normal(
            0, 4, min(candidates, len(pool))
        )
    return scores


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 4),
    anomalies=st.sets(st.sampled_from(ANOMALIES)),
    known=st.booleans(),
    room=st.tuples(st.sampled_from([0.0, 40.0, 100.0]), st.sampled_from([0.0, 40.0, 100.0])),
    forbidden=st.sampled_from(
        [{}, {"repeat": math.inf}, {"gap": math.inf}, {"gap": 0.0}, {"false": math.inf}]
    ),
)
def test_equals_brute_force(seed, n, anomalies, known, room, forbidden):
    rng = np.random.default_rng(seed + 1)
    scores = drawn(seed, n, 6)
    centroids = None
    if known:
        centroids = column(*rng.uniform(3, 80, n - 1))
        centroids[:, :2] = rng.uniform(-20, 20, (n, 2))
    cut = rng.random(n) < 0.3
    costs = replace(Costs(*rng.exponential(3, 8)), **forbidden)
    sizes = rng.uniform(0, 1.5, n)
    how = (scores, centroids, cut, sizes, room, frozenset(anomalies), costs)
    finite = [[0, *(i for i in labels.VERSE_IDS if row[PLACE[i]] > -np.inf)] for row in scores]
    all_costs = {ids: cost_by_hand(ids, *how) for ids in itertools.product(*finite)}
    ranked = sorted(all_costs.items(), key=lambda item: item[1])
    arguments = dict(
        centroids_mm=centroids,
        cut=cut,
        sizes=sizes,
        room_mm=room,
        anomalies=anomalies,
        costs=costs,
    )
    if ranked[0][1] == math.inf:
        with pytest.raises(InputError, match="no legal sequence"):
            decode_sequence(scores, **arguments)
        return
    found = decode_sequence(scores, **arguments)
    assert found.cost == pytest.approx(ranked[0][1], abs=1e-6)
    assert found.labels == ranked[0][0] or found.margin == pytest.approx(0, abs=1e-6)
    second = ranked[1][1] if len(ranked) > 1 else math.inf
    assert found.margin == pytest.approx(second - ranked[0][1], abs=1e-6)
    assert found.margin == min(found.margins)
    for k, (label, margin) in enumerate(zip(found.labels, found.margins, strict=True)):
        others = [cost for ids, cost in ranked if ids[k] != label]
        assert margin == pytest.approx(min(others, default=math.inf) - found.cost, abs=1e-6)
        if margin == math.inf:
            assert found.others[k] == 0
            continue
        assert found.others[k] != label
        named_so = [cost for ids, cost in ranked if ids[k] == found.others[k]]
        assert margin == pytest.approx(min(named_so) - found.cost, abs=1e-6)
    assert set(found.anomalies) <= anomalies
    whole = sum(math.exp(ranked[0][1] - cost) for _, cost in ranked)
    chance = {ids: math.exp(ranked[0][1] - cost) / whole for ids, cost in ranked}
    for k, (label, probability) in enumerate(zip(found.labels, found.probabilities, strict=True)):
        own = sum(p for ids, p in chance.items() if ids[k] == label)
        assert probability == pytest.approx(own, abs=1e-9)
    assert found.variants.keys() == anomalies
    for name, probability in found.variants.items():
        own = sum(p for ids, p in chance.items() if p and name in found_by_hand(ids, *how)[1])
        assert probability == pytest.approx(own, abs=1e-9)
    namings = named(chance)
    assert sum(one.probability for one in found.namings) <= 1 + 1e-9
    for one in found.namings:  # only the best sequences count
        assert one.probability <= namings[one.labels] + 1e-9
    best = found.namings[0]
    assert best.probability >= chance[found.labels] - 1e-9
    assert best.probability >= max(namings.values()) - 0.1


def named(chance):
    """Probabilities of namings, from those of sequences."""
    found = {}
    for ids, probability in chance.items():
        naming = tuple(dict.fromkeys(i for i in ids if i))
        found[naming] = found.get(naming, 0.0) + probability
    return found


@pytest.mark.parametrize("seen_ids", [(18, 19, 20), (1, 2, 3), (23, 24, 25), (19, 28, 20)])
def test_a_level_error_moves_all_names_together(seen_ids):
    """The probabilities equal a sum over every naming and every level error."""
    usual = [i for i in range(1, 26)]  # from C1 to L6
    scores, share = seen(*seen_ids), {1: 0.35, 2: 0.1, 3: 0.05}
    rest = [18, 19, 28, 20, 21, 1, 2, 3, 4, 22, 23, 24, 25]
    scores[:, [PLACE[i] for i in labels.VERSE_IDS if i not in rest]] = -np.inf

    def moved(levels):
        found = np.repeat(scores.min(axis=1, keepdims=True), 26, axis=1)
        for place, label in enumerate(usual):
            if 0 <= place + levels < 25:
                found[:, PLACE[label]] = scores[:, PLACE[usual[place + levels]]]
        # T13 lies between T12 and L1.
        other = usual[usual.index(20) + levels - 1] if levels > 0 else usual[18 + levels + 1]
        found[:, PLACE[28]] = scores[:, PLACE[other]]
        return found

    chance = {}
    where = (column(25.0, 25.0), [False] * 3, [1.0] * 3, (0.0, 0.0), frozenset(ANOMALIES), Costs())
    for levels in range(-3, 4):
        prior = 0.3 * share[abs(levels)] if levels else 0.7
        these = moved(levels) if levels else scores
        finite = [[0, *(i for i in labels.VERSE_IDS if row[PLACE[i]] > -np.inf)] for row in these]
        for ids in itertools.product(*finite):
            cost = cost_by_hand(ids, these, *where)
            chance[ids] = chance.get(ids, 0.0) + prior * math.exp(-cost)
    sacrum = scores.copy()  # a spine with L6 that is numbered from the sacrum
    sacrum[:, [PLACE[i] for i in range(21, 26)]] = scores[:, [PLACE[i] for i in range(20, 25)]]
    finite = [[0, *(i for i in labels.VERSE_IDS if row[PLACE[i]] > -np.inf)] for row in sacrum]
    for ids in itertools.product(*finite):
        cost = cost_by_hand(ids, sacrum, *where) + Costs().l6 * (1 - ids.count(25))
        end = max((k for k in range(3) if ids[k]), default=2)
        if ids[end] in (L4, L5) and 25.0 * (2 - end) > 1.5 * STEP_MM[PLACE[ids[end]]]:
            # The spine ends in view without L6, which was missed then.
            cost += Costs().gap - (min(Costs().gap, Costs().no_l5) if ids[end] == L4 else 0.0)
        chance[ids] = chance.get(ids, 0.0) + 0.7 * 0.5 * math.exp(-cost)
    whole = sum(chance.values())
    found = decode_sequence(scores, centroids_mm=where[0], level_error=0.3)
    assert found.labels == max(chance, key=chance.get)
    for k, (label, probability) in enumerate(zip(found.labels, found.probabilities, strict=True)):
        own = sum(p for ids, p in chance.items() if ids[k] == label) / whole
        assert probability == pytest.approx(own, abs=1e-9)
    for one in found.namings:
        assert one.probability == pytest.approx(named(chance)[one.labels] / whole, abs=0.02)
    assert found.probabilities < decode_sequence(scores, centroids_mm=where[0]).probabilities


def test_less_weight_and_more_level_errors_mean_less_certainty():
    """With the end of the spine in view, a level error costs little."""
    sums = np.eye(26)[[PLACE[i] for i in (21, 22, 23)]]
    evidence = Evidence(sums, column(31, 31), np.full(3, False), np.ones(3), (0.0, 0.0))

    def least(**how):
        found = decode(evidence, calibration=Calibration(**how))
        assert names(found) == "L2 L3 L4"
        return min(found.probabilities)

    for values in ([least(weight=w) for w in (1.0, 0.7, 0.4, 0.2)],
                   [least(level_error=e) for e in (0.0, 0.01, 0.1, 0.4)]):  # fmt: skip
        assert values == sorted(values, reverse=True) and len(set(values)) == 4
    assert least(level_error=0.4) == pytest.approx(0.6, abs=0.05)
    # A sacrum below the last vertebra, and nothing that could be L5.
    ends = replace(evidence, room_mm=(0.0, 90.0))
    sure, doubtful = (decode(ends, calibration=Calibration(level_error=e)) for e in (0.0, 0.2))
    assert names(sure) == "L2 L3 L4" and names(doubtful) == "L3 L4 L5"
    assert [str(one) for one in doubtful.namings[:2]] == ["L3-L5 (0.73)", "L2-L4 (0.21)"]


def test_without_ribs_the_last_vertebra_may_be_l6():
    """One spine in ten has L6 and is numbered from the sacrum; T12 in view contradicts that."""

    def found(*ids):
        sums, where = np.eye(26)[[PLACE[i] for i in ids]], column(*[32.0] * (len(ids) - 1))
        evidence = Evidence(sums, where, np.full(len(ids), False), np.ones(len(ids)), (0.0, 80.0))
        return decode(evidence, calibration=Calibration(1.0, 0.01))

    lumbar = found(21, 22, 23, 24)
    assert names(lumbar) == "L2 L3 L4 L5" and str(lumbar.namings[1]).startswith("L3-L6 (0.09")
    odds = 0.5 * 16 / 83  # of L6 and numbering from the sacrum to all the rest, L6 included
    assert lumbar.variants["L6"] == pytest.approx(odds / (1 + odds), abs=0.02)
    assert max(lumbar.probabilities) < sequence.CERTAIN
    assert min(found(19, 20, 21, 22, 23, 24).probabilities) > sequence.CERTAIN


def test_level_errors_are_probabilities():
    for wrong in (-0.1, 1.0, math.nan):
        with pytest.raises(InputError, match="level_error"):
            decode_sequence(seen(20), level_error=wrong)


def seen(*ids, belief=0.95):
    """Scores of instances that look like these VerSe ids."""
    return class_scores(np.eye(26)[[PLACE[i] for i in ids]], smoothing=1 - belief)


def names(found):
    return " ".join(labels.name(i) for i in found.labels)


def test_one_wrong_vertebra_is_overruled_by_its_neighbours():
    usual = [17, 18, 19, 20, 21, 22]
    right = decode_sequence(seen(*usual))
    assert right.labels == tuple(usual) and right.anomalies == () and right.skipped == ()
    assert right.cost == pytest.approx(-6 * 0.7 * math.log(0.95 + 0.05 / 26))
    for k, wrong in itertools.product(range(6), (1, 17, 20, 24, 28)):
        ids = [*usual[:k], wrong, *usual[k + 1 :]]
        assert decode_sequence(seen(*ids)).labels == tuple(usual)


def test_two_of_one_label_are_parted_by_the_rest():
    assert names(decode_sequence(seen(18, 19, 20, 20, 22, 23))) == "T11 T12 L1 L2 L3 L4"
    # Two alone could be either way: the margin says so.
    assert decode_sequence(seen(20, 20), costs=Costs(repeat=math.inf)).margin == pytest.approx(0)


@pytest.mark.parametrize(
    "ids, anomaly",
    [
        ((18, 19, 28, 20, 21), "T13"),
        ((22, 23, 24, 25), "L6"),
        ((17, 18, 20, 21, 22), "no T12"),
    ],
)
def test_variants_are_found_where_allowed(ids, anomaly):
    usual = [STEP_MM[PLACE[i]] for i in ids[:-1]]
    found = decode_sequence(seen(*ids), centroids_mm=column(*usual))
    assert found.labels == ids and found.anomalies == (anomaly,)
    rest = set(ANOMALIES) - {anomaly}
    other = decode_sequence(seen(*ids), centroids_mm=column(*usual), anomalies=rest)
    assert other.anomalies == () and other.labels != ids or other.skipped
    assert other.cost > found.cost


def test_l5_is_missed_where_the_scan_goes_on_below_l4():
    scores = seen(21, 22, 23)
    assert decode_sequence(scores, room_mm=(0, 20)).anomalies == ()
    found = decode_sequence(scores, room_mm=(0, 120))
    assert found.labels == (21, 22, 23) and found.anomalies == ("no L5",)
    without = decode_sequence(scores, room_mm=(0, 120), anomalies=("T13", "L6"))
    assert without.labels == (21, 22, 23) and without.anomalies == ()
    assert without.cost == pytest.approx(found.cost + Costs().gap - Costs().no_l5)
    # What is uncertain ends where a spine ends.
    vague = np.log(np.full((3, 26), 1 / 26))
    assert decode_sequence(vague, room_mm=(0, 120)).labels[-1] in (24, 25)


def test_distances_tell_a_gap_from_a_wrong_label():
    near, far = column(27, 29, 30, 31), column(27, 60, 30, 31)
    ids = (17, 18, 20, 21, 22)  # T12 is not there
    with_gap = decode_sequence(seen(*ids), centroids_mm=far)
    assert with_gap.labels == ids and with_gap.skipped == (19,) and with_gap.anomalies == ()
    without = decode_sequence(seen(*ids), centroids_mm=near)
    assert without.labels == ids and without.skipped == () and without.anomalies == ("no T12",)
    # A distance of one step, and labels two apart: no vertebra fits between.
    ids = (20, 21, 23)
    assert len(set(decode_sequence(seen(*ids), centroids_mm=column(30.0, 31)).skipped)) == 0
    assert decode_sequence(seen(*ids), centroids_mm=column(30.0, 62)).skipped == (22,)
    # A row of screws hides four.
    ids = (15, 16, 21, 22)
    many = decode_sequence(seen(*ids), centroids_mm=column(25.0, 140, 31))
    assert many.labels == ids and many.skipped == (17, 18, 19, 20)


def test_a_vertebra_in_two_parts_does_not_shift_the_others():
    ids = (16, 17, 18, 18, 19, 20)
    found = decode_sequence(seen(*ids), centroids_mm=column(25.0, 27, 8, 28, 30))
    assert found.labels == ids
    strict = Costs(repeat=math.inf)
    assert len(set(decode_sequence(seen(*ids), costs=strict).labels)) == 6


def test_what_is_no_vertebra_gets_no_label_and_shifts_no_other():
    ids, steps = (20, 21, 22, 23, 24), (30, 31, 31, 31)
    # A part of the sacrum, named L5 as the vertebra above it; a rib between two vertebrae.
    sizes = np.array([1, 1, 1, 1, 1, 0.4])
    below = decode_sequence(seen(*ids, 24), centroids_mm=column(*steps, 31), sizes=sizes)
    assert below.labels == (*ids, 0)
    beside = np.insert(column(*steps), 2, (60, 0, -45), axis=0)
    among = decode_sequence(seen(20, 21, 7, 22, 23, 24), centroids_mm=beside)
    assert among.labels == (20, 21, 0, 22, 23, 24) and among.skipped == ()
    # A scan may show nothing else: one vertebra is always named.
    assert decode_sequence(seen(5), costs=Costs(false=0.0)).labels == (5,)


def test_any_number_of_ribs_may_lie_before_a_spine():
    ids = (*[24, 2] * 15, 20, 21, 22, 23)
    places = np.concatenate([np.full((30, 3), (90.0, 90.0, 0.0)), column(30, 31, 31)])
    found = decode_sequence(seen(*ids), centroids_mm=places, costs=Costs(false=0.5))
    assert found.labels == (*[0] * 30, 20, 21, 22, 23)


@pytest.mark.parametrize(("between", "all_left_out"), [(20, True), (21, False)])
def test_twenty_at_most_are_no_vertebra_between_two(between, all_left_out):
    ids = (19, 20, *[3] * between, 21, 22)
    aside = np.full((between, 3), (90.0, 90.0, 0.0))
    places = np.insert(column(30, 30, 31), 2, aside, axis=0)
    found = decode_sequence(seen(*ids), centroids_mm=places, costs=Costs(false=0.5))
    if all_left_out:
        assert found.labels == (19, 20, *[0] * between, 21, 22)
    else:  # what is left out at an end of the spine has no limit
        assert found.labels.count(0) > 20 and len({*found.labels}) < 5


def test_to_overrule_what_a_vertebra_looks_like_costs_4_3():
    assert -np.diff(np.sort(seen(20)[0])[-2:]) == pytest.approx(-4.34, abs=0.01)


@pytest.mark.parametrize("scale", [0.6, 0.7, 0.85, 1.0, 1.25])
def test_children_and_tall_people_keep_all_vertebrae(scale):
    ids = range(14, 24)  # T7 to L4
    steps = [STEP_MM[PLACE[i]] * scale for i in ids[:-1]]
    found = decode_sequence(seen(*ids), centroids_mm=column(*steps))
    assert found.labels == tuple(ids) and found.skipped == () and found.margin > math.log(10)


@pytest.mark.parametrize("missing", [1, 2, 3, 5])
def test_a_vertebra_beyond_a_hole_keeps_its_name(missing):
    ids = (12, 13, 14, 14 + missing + 1)
    hole = sum(STEP_MM[PLACE[i]] for i in range(14, ids[-1]))
    found = decode_sequence(seen(*ids), centroids_mm=column(25, 24, hole))
    assert found.labels == ids and found.skipped == tuple(range(15, ids[-1]))


def test_what_lies_beside_a_spine_does_not_make_the_scan_longer():
    scores = class_scores(np.eye(26)[[PLACE[22]] * 2] * 0.6 + np.eye(26)[[PLACE[23]] * 2] * 0.4)
    scores[1] = class_scores(np.eye(26)[[PLACE[23]]] * 0.6 + np.eye(26)[[PLACE[24]]] * 0.4)[0]
    places = np.array([(0, 0, 0), (0, 0, -31), (90, 0, -31.0)])
    rib = np.concatenate([scores, seen(5)])
    assert decode_sequence(rib, centroids_mm=places, sizes=np.array([1, 1, 0.2])).labels == (
        22,
        23,
        0,
    )


def test_a_small_part_of_a_vertebra_keeps_its_name():
    sizes = np.array([1, 1, 0.25, 1, 1])
    found = decode_sequence(
        seen(20, 21, 21, 22, 23), centroids_mm=column(30, 8, 23, 31), sizes=sizes
    )
    assert found.labels == (20, 21, 21, 22, 23)


def test_no_instance_and_no_knowledge():
    none = decode_sequence(np.zeros((0, 26)))
    assert none.labels == () and none.cost == 0 and none.margin == math.inf
    vague = decode_sequence(class_scores(np.zeros((3, 26))))
    assert vague.margin == 0 and len(vague.labels) == 3


def test_thirty_instances_are_labelled_and_refused_without_repeats():
    scores = class_scores(np.random.default_rng(0).random((30, 26)))
    found = decode_sequence(scores, costs=Costs(false=math.inf))
    ranks = [labels.order(i) for i in found.labels]
    assert ranks == sorted(ranks)
    with pytest.raises(InputError, match="no legal sequence of 30"):
        decode_sequence(scores, costs=Costs(repeat=math.inf, false=math.inf))
    whole = decode_sequence(scores[:26], costs=Costs(repeat=math.inf, false=math.inf))
    assert whole.labels == tuple(sorted(labels.VERSE_IDS, key=labels.order))


def test_scores_are_smoothed_shares():
    counts = np.zeros((2, 26))
    counts[0, 19], counts[0, 20] = 3000, 1000
    scores = class_scores(counts, smoothing=0.1, weight=1.0)
    np.testing.assert_allclose(np.exp(scores).sum(1), 1)
    assert np.exp(scores[0, 19]) == pytest.approx(0.9 * 0.75 + 0.1 / 26)
    np.testing.assert_allclose(np.exp(scores[1]), 1 / 26)
    np.testing.assert_allclose(class_scores(counts * 50, smoothing=0.1, weight=0.5), scores / 2)


def test_rare_variants_are_like_what_they_look_like():
    counts = np.eye(26)[[PLACE[24], PLACE[19], PLACE[20]]]
    alone = np.exp(class_scores(counts, smoothing=0.1, weight=1.0))
    found = np.exp(class_scores(counts, smoothing=0.1, weight=1.0, likeness=[0.5, 0.2, 1.0]))
    more = found - alone
    assert more[0, PLACE[L6]] == pytest.approx(0.45) and more[1, PLACE[T13]] == pytest.approx(0.18)
    more[0, PLACE[L6]] = more[1, PLACE[T13]] = 0
    np.testing.assert_array_equal(more, 0)
    np.testing.assert_array_equal(class_scores(np.zeros((1, 26)), likeness=1.0)[0].std(), 0)
    with pytest.raises(InputError, match="likeness"):
        class_scores(counts, likeness=1.5)


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(anomalies=["T14"]), "T13"),
        (dict(costs=Costs(gap=-1)), "gap"),
        (dict(costs=Costs(l6=math.nan)), "l6"),
        (dict(centroids_mm=np.ones((2, 3))), "3 instances"),
        (dict(cut=np.ones(2, bool)), "cut"),
        (dict(sizes=np.ones(2)), "sizes"),
        (dict(sizes=-np.ones(3)), "negative"),
        (dict(centroids_mm=np.full((3, 3), np.nan)), "centroids_mm"),
        (dict(scores=np.zeros((3, 25))), "26"),
        (dict(scores=np.full((3, 26), np.nan)), "NaN"),
        (dict(scores=np.full((3, 26), -np.inf)), "no legal sequence"),
    ],
)
def test_bad_arguments_of_the_decoder_are_named(change, text):
    fields = {"scores": np.zeros((3, 26)), **change}
    with pytest.raises(InputError, match=text) as error:
        decode_sequence(fields.pop("scores"), **fields)
    one_line(error)


@pytest.mark.parametrize(
    "sums, smoothing, text",
    [
        (np.zeros(26), 0.1, "26"),
        (-np.ones((1, 26)), 0.1, "negative"),
        (np.full((1, 26), np.nan), 0.1, "finite"),
        (np.ones((1, 26)), 0.0, "smoothing"),
        (np.ones((1, 26)), (0.1, 2.0), "weight"),
    ],
)
def test_bad_class_sums_are_named(sums, smoothing, text):
    with pytest.raises(InputError, match=text) as error:
        class_scores(sums, *np.atleast_1d(smoothing))
    one_line(error)


def test_default_costs_are_the_counts_of_verse():
    costs = Costs()
    assert math.exp(-costs.t13) == pytest.approx(0.025)
    assert math.exp(-costs.l6) == pytest.approx(16 / 83)
    assert math.exp(-costs.no_t12) == pytest.approx(3 / 83)
    assert sequence.NUM_LABELS == labels.NUM_CLASSES - 1 == len(STEP_MM)


# Names of real vertebrae.


def test_cut_vertebrae_are_named_and_dropped_on_request(real):
    array, spacing = real("totalsegmentator")
    kept, dropped = labelled(array, spacing), labelled(array, spacing, drop_cut=True)
    assert kept.record.labels == dropped.record.labels and kept.record.dropped == ()
    assert dropped.record.dropped == (18, 19)
    assert ids_of(dropped.array) == tuple(dropped.centroids_mm) == tuple(range(20, 25))
    array, spacing = real("verse004")
    array = np.ascontiguousarray(array[:, :, 80:270])  # through L5 and L4, T9, T10 and T11
    result = repaired(array, array, spacing, 0.99)
    foot = ids_of(array[:, :, 0])
    head = ids_of(array[:, :, -1])
    assert foot and head
    assert labelled(array, spacing, drop_cut=True).record.dropped == (*head, *foot)
    assert result.record.dropped == ()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("shift", [-1, 1])
def test_one_vertebra_with_its_neighbours_label_is_corrected(real, name, shift):
    # It touches that neighbour: one connected piece of one label, twice as long as a vertebra.
    array, spacing = real(name)
    ids = ids_of(array)
    for wrong in ids[2:5:2]:
        broken = array.copy()
        broken[array == wrong] = wrong + shift
        result = repaired(broken, array, spacing, 0.6)
        assert np.mean(list(dice(result.array, array).values())) > 0.92


def test_a_vertebra_that_was_not_found_is_a_gap(real):
    array, spacing = real("verse004")
    for missing in (17, 20, 22):
        broken = np.where(array == missing, 0, array)
        record = repaired(broken, broken, spacing, 0.99).record
        assert record.skipped == (missing,) and record.anomalies == ()


@pytest.mark.parametrize("name", FILES)
def test_a_scan_upside_down_is_noticed_and_its_header_followed(real, name):
    array, spacing = real(name)
    result = labelled(np.ascontiguousarray(array[:, :, ::-1]), spacing)
    assert result.record.reversed
    heights = [point[2] for point in result.centroids_mm.values()]
    assert heights == sorted(heights, reverse=True)
    assert not labelled(np.ascontiguousarray(array[::-1]), spacing).record.reversed


def test_sums_of_probabilities_take_the_place_of_counts(real):
    array, spacing = real("verse014")
    found = find_instances(labels.to_contiguous(array), spacing)
    sums = np.zeros((5, 26))
    sums[np.arange(5), np.arange(17, 22)] = 1e4  # T11 to L3
    result = label_instances(found, class_sums=sums)
    assert result.record.labels == tuple(range(18, 23))
    assert ids_of(result.array) == tuple(range(18, 23))
    with pytest.raises(InputError, match="class_sums") as error:
        label_instances(found, class_sums=sums[:4])
    one_line(error)


@pytest.mark.parametrize("scale", [0.66, 1.0])
def test_six_lumbar_vertebrae_end_with_l6_even_of_a_small_person(scale):
    """The upper ones are known by their ribs, the lower ones by the sacrum; they do not agree."""
    ids = (18, 19, 20, 21, 22, 23, 24, 25)
    at = [labels.VERSE_IDS.index(i) for i in ids]
    one_up = [0.0, 0.0, 0.0, 0.0, 0.1, 0.6, 0.8, 1.0]  # how much of each looks as the one above it
    sums = np.zeros((8, 26))
    for row, (place, share) in enumerate(zip(at, one_up, strict=True)):
        sums[row, place] += 1 - share
        sums[row, labels.VERSE_IDS.index(ids[row - 1])] += share
    heights = -scale * np.cumsum([0.0, *STEP_MM[at[:-1]]])
    items = tuple(
        Instance(np.array([0.0, 0.0, z]), float(scale**3 * VOLUME_ML[place]), row, False, False)
        for z, place, row in zip(heights, at, sums, strict=True)
    )
    spine = Instances(np.zeros((1, 1, 1), np.uint8), items, (6.0,) * 3, (0.0, 45.0))
    record = label_instances(spine).record
    assert record.labels == ids and record.anomalies == ("L6",)
    assert label_instances(spine, anomalies=()).record.labels != ids


def test_a_piece_that_is_no_vertebra_is_left_out_and_counted(real):
    array, spacing = real("totalsegmentator")
    low = min(np.argwhere(array == 24)[:, 2])
    middle = np.argwhere(array == 24).mean(0).astype(int)
    sacrum = array.copy()
    sacrum[middle[0] - 6 : middle[0] + 6, middle[1] - 4 : middle[1] + 4, low - 8 : low - 1] = 24
    result = labelled(sacrum, spacing)
    assert result.record.labels == ids_of(array) and result.record.unnamed == 1
    assert len(result.record.margins) == len(result.record.labels)
    assert list(result.centroids_mm) == list(ids_of(array)) and result.record.anomalies == ()
    assert not result.array[(sacrum == 24) & (array == 0)].any()


@pytest.mark.parametrize("name, scale", [("verse014", 0.8), ("totalsegmentator", 0.7)])
def test_a_child_keeps_all_vertebrae(real, name, scale):
    array, spacing = real(name)
    result = labelled(array, tuple(scale * mm for mm in spacing))
    assert result.record.labels == ids_of(array) and result.record.unnamed == 0
