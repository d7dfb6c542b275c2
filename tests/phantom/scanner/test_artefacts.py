"""Streaks between pieces of metal."""

import jax.numpy as jnp
import numpy as np

from spinejax.phantom.scanner import artefacts
from tests.phantom.scanner.test_physics import grid


def test_two_pieces_at_one_height_are_joined_by_a_dark_band(still, quiet):
    chosen = {**quiet, "metal_gain": jnp.ones(()), "axial_mm": jnp.ones(())}
    centres = jnp.array([[-20.0, 30.0, 0.0], [20.0, 30.0, 0.0]])
    implant = {"centre": centres, "strength": jnp.ones(2)}
    points = grid((0.0, 30.0, 0.0), (21, 41, 1))
    means = []
    for angle in np.linspace(0, 6, 7):
        out = artefacts.metal(
            points, {**still, "metal": implant}, {**chosen, "metal_angle": jnp.asarray(angle)}
        )
        means.append([float(out[:, 20].mean()), float(out[:, :8].mean())])
    assert np.mean(means, 0)[0] < np.mean(means, 0)[1] - 30
