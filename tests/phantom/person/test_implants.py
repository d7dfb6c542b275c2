"""Metal: how frequent it is, and where it lies."""

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom import render
from spinejax.phantom.body import warp
from spinejax.phantom.person import implants


def test_metal_is_bright_where_it_is_said_to_be(crowd):
    """Every sixteenth person or so has screws; each place named as metal is bright."""
    strength = np.asarray(crowd["metal"]["strength"])
    centre = np.asarray(jax.vmap(warp.unwarp)(crowd["metal"]["centre"], crowd))
    assert strength.shape == (64, implants.METALS)
    screws = (strength[:, : 2 * implants.LEVELS] > 0).any(1)
    assert 0 < screws.mean() < 0.3
    paint = jax.jit(lambda p, q: render(p, q, edge_mm=0.6)[0])
    for i in np.flatnonzero(screws)[:3]:
        one = jax.tree.map(lambda a, i=i: a[i], crowd)
        on = strength[i, : 2 * implants.LEVELS] > 0
        hu = np.asarray(paint(one, jnp.asarray(centre[i, : 2 * implants.LEVELS])))
        assert np.all(hu[on] > 1500)


def test_displacement_moves_metal_a_little(crowd):
    """Places are given before displacement, which moves them a little."""
    one = jax.tree.map(lambda a: a[0], crowd)
    centre = one["metal"]["centre"]
    assert centre.shape == (implants.METALS, 3)
    moved = warp.unwarp(centre, one)
    assert float(jnp.abs(moved - centre).max()) < 30.0
