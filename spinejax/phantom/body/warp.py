"""A smooth random displacement of everything, so that no surface is a perfect ellipse.

Bodies of revolution and straight capsules are seen in no scan. Long waves bend whole vertebrae,
short ones make their surfaces uneven. Both act on points, at the start of rendering: HU and label
move together.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spinejax.phantom.body.tissues import sine
from spinejax.phantom.person.draws import Draws

Array = jax.Array

LONG, SHORT = 5, 7
"""How many plane waves of each kind."""

# Shortest and longest wavelength in mm, and amplitude as a share of the wavelength. With that share
# each wave stretches space by at most 2 pi times as much, so that waves of all lengths fold it
# equally rarely (the sum of all would have to exceed 1).
_LONG_MM, _SHORT_MM = (60.0, 200.0), (10.0, 25.0)
_SHARE = np.repeat([0.016, 0.018], [LONG, SHORT]).astype(np.float32)
_ROUNDS = 8  # of the inverse: each shrinks the error, at most some mm, by about 0.3


def draw(draws: Draws) -> dict[str, Array]:
    """Waves of a person: `wave` (n, 3) in radians per mm, `phase` (n,), `push` (n, 3) in mm."""
    n = LONG + SHORT
    low, high = (
        np.repeat([a, b], [LONG, SHORT])
        for a, b in zip(_LONG_MM, _SHORT_MM, strict=True)
    )  # fmt: skip
    length = low * (high / low) ** draws.uniform(n)
    direction, push = draws.normal(n, 3), draws.normal(n, 3)
    direction /= jnp.linalg.norm(direction, axis=1, keepdims=True) + 1e-6
    push /= jnp.linalg.norm(push, axis=1, keepdims=True) + 1e-6
    strength = _SHARE * jnp.repeat(0.3 + 1.0 * draws.uniform(2), np.array([LONG, SHORT]))
    return {
        "wave": 2 * jnp.pi * direction / length[:, None],
        "phase": 2 * jnp.pi * draws.uniform(n),
        "push": push * (strength * length)[:, None],
    }


def displacement(p: Array, waves: dict[str, Array]) -> Array:
    """What `warp` adds to points (..., 3), mm."""
    # Wave by wave, all points at once: on CPUs five times as fast as two products of matrices.
    x, y, z = p[..., 0], p[..., 1], p[..., 2]
    total = [jnp.zeros_like(x)] * 3
    for wave, phase, push in zip(waves["wave"], waves["phase"], waves["push"], strict=True):
        height = sine(x * wave[0] + y * wave[1] + z * wave[2] + phase)
        total = [total[i] + height * push[i] for i in range(3)]
    return jnp.stack(total, -1)


def warp(p: Array, parameters: dict[str, Any]) -> Array:
    """Where in the undisplaced anatomy a point of the scan lies.

    Args:
        p: Points (..., 3), canonical LPS mm.
        parameters: From `anatomy`.
    """
    return p + displacement(p, parameters["warp"])


def unwarp(p: Array, parameters: dict[str, Any]) -> Array:
    """Where in the scan a point of the undisplaced anatomy lies: the inverse of `warp`."""
    waves = parameters["warp"]
    # Empty places lie at 1e5 mm, where single precision leaves no digits for a wave.
    q = lax.fori_loop(0, _ROUNDS, lambda _, q: p - displacement(q, waves), p)
    return jnp.where(jnp.abs(p) > 1e4, p, q)
