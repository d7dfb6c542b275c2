"""A protocol that adds nothing, and a person without displacement."""

import jax
import jax.numpy as jnp
import pytest

from spinejax.phantom.scanner import scan_plan


@pytest.fixture
def quiet(person):
    """A protocol that adds nothing."""
    chosen = dict(jax.jit(scan_plan.protocol)(jax.random.key(0), person))
    off = (
        "noise", "sharpness", "offset", "cupping", "shading", "starvation", "metal_gain",
        "motion_mm", "tilt", "modulation", "highpass",
    )  # fmt: skip
    for name in off:
        chosen[name] = jnp.zeros_like(chosen[name])
    return {
        **chosen, "turn": jnp.zeros(3), "voltage": jnp.ones(()), "clip": jnp.asarray(3071.0),
        "circle_mm": jnp.asarray(1e5), "lower": jnp.full(3, -1e4), "upper": jnp.full(3, 1e4),
    }  # fmt: skip


@pytest.fixture
def still(person):
    """The person without displacement: metal stays where it is put."""
    return {**person, "warp": jax.tree.map(jnp.zeros_like, person["warp"])}
