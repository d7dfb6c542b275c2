"""Subjects that one program draws for all commands and configs."""

import jax
import numpy as np
import pytest

from spinejax.phantom import anatomy, subjects
from spinejax.phantom.scanner import scan_plan

RARE = {"t13": 1.0, "l6": 0.0, "no_l5": 0.0}
LIMITS = {"min_extent_mm": 200.0, "max_extent_mm": 300.0, "max_voxels": 500_000.0}


def keys_of(count):
    keys = jax.random.split(jax.random.key(7), (count, 2))
    return keys, np.asarray(jax.random.key_data(keys))


def test_a_row_holds_what_anatomy_and_protocol_draw():
    keys, data = keys_of(3)
    how = subjects.options(RARE, LIMITS, "lumbar")
    limits = {**LIMITS, "region": "lumbar"}
    persons = jax.jit(jax.vmap(lambda key: anatomy(key, **RARE)))(keys[:, 0])
    protocols = jax.vmap(lambda key, one: scan_plan.protocol(key, one, **limits))
    expected = jax.device_get((persons, jax.jit(protocols)(keys[:, 1], persons)))
    for i, row in enumerate(subjects.rows(data, how)):
        found = subjects.read(row)
        wanted = jax.tree.map(lambda x, i=i: x[i], subjects.Subject(*expected))
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        for mine, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            assert mine.dtype == other.dtype
            np.testing.assert_allclose(mine, other, rtol=2e-4, atol=2e-3)
        assert 28 in found.person["spine"]["id"] and 25 not in found.person["spine"]["id"]
        on_device = jax.jit(subjects.read)(row)
        jax.tree.map(np.testing.assert_array_equal, on_device, found)


@pytest.mark.parametrize("count", [1, subjects.TURNS, subjects.TURNS + 3])
def test_a_subject_depends_on_its_keys_alone(count):
    _, data = keys_of(subjects.TURNS + 3)
    how = subjects.options({}, {}, "any")
    whole = subjects.rows(data, how)
    np.testing.assert_array_equal(subjects.rows(data[-count:], how), whole[-count:])
    assert len(np.unique(whole, axis=0)) == len(whole)


def test_other_rates_and_limits_do_not_compile_another_program():
    _, data = keys_of(2)
    subjects.rows(data, subjects.options({}, {}, "any"))
    before = subjects._rows._cache_size()
    for rates, limits, region in ((RARE, {}, "cervical"), ({"l6": 0.5}, LIMITS, "thoracic")):
        subjects.rows(data[:1], subjects.options(rates, limits, region))
    assert subjects._rows._cache_size() == before
