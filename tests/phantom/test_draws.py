"""Random numbers by name: independent of one another and of what else is drawn."""

import zlib

import jax
import numpy as np
import pytest
from scipy import stats

from spinejax.phantom.draws import CLIP, LIMIT, Draws, draw

KEY = jax.random.key(7)
NAMES, MANY = 40, 4_000


def few(draws: Draws):
    return {
        "wear": draws.normal("wear", 3, 4),
        "age": draws.uniform("age"),
        "noise": draws.clipped("noise", 5),
        "seed": draws.seed("seed", 2),
        "rim": draws.of("rim").uniform("age", 6),
    }


def reordered(draws: Draws):
    rim = draws.of("rim")
    found = {"rim": rim.uniform("age", 9)[:6], "noise": draws.clipped("noise", 5)}
    draws.normal("another", 100), draws.uniform("one more"), rim.normal("size")
    found |= {"seed": draws.seed("seed", 2), "age": draws.uniform("age")}
    return found | {"wear": draws.normal("wear", 5, 4)[:3]}


def many(draws: Draws):
    kinds = {"normal": draws.normal, "clipped": draws.clipped, "uniform": draws.uniform}
    return {name: [kind(f"{name} {i}", MANY) for i in range(NAMES)] for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def numbers():
    """By kind: (NAMES, MANY)."""
    found = jax.jit(lambda key: draw(key, many))(KEY)
    return {name: np.asarray(values, np.float64) for name, values in found.items()}


def misfit(samples, distribution):
    """Of Kolmogorov and Smirnov, over the probabilities that each sample has by their test."""
    each = [stats.kstest(values, distribution.cdf).pvalue for values in samples]
    return stats.kstest(each, "uniform").pvalue


def test_more_draws_another_order_and_longer_arrays_change_no_other_number():
    before, after = draw(KEY, few), draw(KEY, reordered)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_numbers_are_those_of_the_key_alone_jitted_and_mapped():
    keys = jax.random.split(KEY, 3)
    mapped = jax.jit(jax.vmap(lambda key: draw(key, few)))(keys)
    for i in range(3):
        for name, value in draw(keys[i], few).items():
            np.testing.assert_allclose(mapped[name][i], value, atol=1e-6)
            assert (np.asarray(mapped[name][i]) != mapped[name][i - 1]).any()
    again = draw(KEY, few)
    jax.tree.map(np.testing.assert_array_equal, draw(KEY, few), again)


@pytest.mark.parametrize(
    ("kind", "distribution"),
    [("normal", stats.truncnorm(-LIMIT, LIMIT)), ("uniform", stats.uniform())],
)
def test_numbers_follow_their_distribution(numbers, kind, distribution):
    assert misfit(numbers[kind], distribution) > 0.01
    assert numbers["uniform"].min() >= 0 and numbers["uniform"].max() < 1
    assert np.abs(numbers["normal"]).max() <= LIMIT


def test_clipped_numbers_are_normal_and_pile_up_at_the_limits(numbers):
    inside = [values[np.abs(values) < CLIP] for values in numbers["clipped"]]
    assert misfit(inside, stats.truncnorm(-CLIP, CLIP)) > 0.01
    assert np.abs(numbers["clipped"]).max() == CLIP
    expected = 2 * stats.norm.sf(CLIP)
    assert abs((np.abs(numbers["clipped"]) == CLIP).mean() / expected - 1) < 0.1


def test_numbers_of_a_name_and_of_two_names_are_independent(numbers):
    flat = np.concatenate(list(numbers.values()))
    limit = 5 / MANY**0.5
    assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < limit
    assert max(abs(np.corrcoef(v[1:], v[:-1])[0, 1]) for v in flat) < limit


def test_a_name_may_be_used_once():
    with pytest.raises(ValueError, match="'rim: age' is drawn twice"):
        draw(KEY, lambda d: (d.of("rim").uniform("age"), d.normal("rim: age")))


def test_two_names_of_one_hash_are_an_error():
    twins = ("plumless", "buckeroo")
    assert zlib.crc32(twins[0].encode()) == zlib.crc32(twins[1].encode())
    with pytest.raises(ValueError, match="'plumless', 'buckeroo'. have one CRC-32"):
        draw(KEY, lambda d: [d.uniform(name) for name in twins])


def test_names_that_depend_on_an_argument_are_an_error():
    def build(draws, name):
        return draws.uniform(name)

    draw(KEY, build, "a")
    with pytest.raises(ValueError, match="'b' differs from the first call"):
        draw(KEY, build, "b")
