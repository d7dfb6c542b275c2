"""Plane waves of random direction, length and phase: textures, and a displacement of everything.

No scan shows bodies of revolution and straight capsules. Long waves of the displacement bend whole
vertebrae; short ones make their surfaces uneven.
"""

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom.draws import Draws

Array = jax.Array

WAVES = 8
"""Plane waves of one texture."""
LONG, SHORT = 5, 7
"""Plane waves of each kind that displace."""

# Shortest and longest wavelength in mm, and amplitude as a share of the wavelength. A wave
# stretches space by at most 2 pi times that share, so waves of all lengths fold it equally rarely
# (only if their sum exceeds 1).
_LONG_MM, _SHORT_MM = (60.0, 200.0), (10.0, 25.0)
_SHARE = np.repeat([0.016, 0.018], [LONG, SHORT]).astype(np.float32)


def texture(
    draws: Draws, shortest_mm: float, longest_mm: float, rise: float = 1.0
) -> dict[str, Array]:
    """Waves of a texture: `wave` (WAVES, 3) in radians per mm and `phase` (WAVES,).

    Structures of the texture are `rise` times as long up and down as across.
    """
    direction = draws.normal("direction", WAVES, 3)
    direction /= jnp.linalg.norm(direction, axis=1, keepdims=True) + 1e-6
    ratio = longest_mm / shortest_mm
    length = shortest_mm * ratio ** draws.uniform("length", WAVES, 1)
    phase = 2 * jnp.pi * draws.uniform("phase", WAVES)
    stretch = jnp.array([1.0, 1.0, 1.0 / rise])
    return {"wave": 2 * jnp.pi * direction * stretch / length, "phase": phase}


def displacement(draws: Draws) -> dict[str, Array]:
    """Waves that displace: `wave` (n, 3) in radians per mm, `phase` (n,), `push` (n, 3) in mm."""
    n, each = LONG + SHORT, np.array([LONG, SHORT])
    low, high = (np.repeat(ends, each) for ends in zip(_LONG_MM, _SHORT_MM, strict=True))
    length = low * (high / low) ** draws.uniform("length", n)
    direction, push = draws.normal("direction", n, 3), draws.normal("push", n, 3)
    direction /= jnp.linalg.norm(direction, axis=1, keepdims=True) + 1e-6
    push /= jnp.linalg.norm(push, axis=1, keepdims=True) + 1e-6
    strength = _SHARE * jnp.repeat(0.3 + 1.0 * draws.uniform("strength", 2), each)
    return {
        "wave": 2 * jnp.pi * direction / length[:, None],
        "phase": 2 * jnp.pi * draws.uniform("phase", n),
        "push": push * (strength * length)[:, None],
    }
