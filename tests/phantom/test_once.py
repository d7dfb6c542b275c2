"""Loops over a choice of things, in both forms."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinejax.phantom import once


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@settings(max_examples=20, deadline=None)
@given(hit=st.lists(st.booleans(), min_size=7, max_size=7))
def test_each_visits_what_is_hit_in_ascending_order(backend, hit):
    @jax.jit
    def visited(hit):
        add = lambda i, at: (at[0].at[at[1]].set(i), at[1] + 1)  # noqa: E731
        return once.each(hit, add, (jnp.full(7, -1), 0))

    with once.drawn_for(backend):
        found, count = visited(jnp.array(hit))
    assert found[:count].tolist() == [i for i, wanted in enumerate(hit) if wanted]
    assert (found[count:] == -1).all()
