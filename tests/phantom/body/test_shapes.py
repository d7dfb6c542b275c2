"""Signed distances in closed form."""

import jax.numpy as jnp
import numpy as np

from spinejax.phantom.body import shapes


def test_ellipsoid_of_equal_radii_is_a_sphere():
    x, y, z = np.random.default_rng(0).normal(0, 10, (3, 200)).astype(np.float32)
    d = shapes.ellipsoid(x, y, z, (7.0, 7.0, 7.0))
    np.testing.assert_allclose(d, np.sqrt(x * x + y * y + z * z) - 7.0, atol=1e-4)


def test_capsule_distance_is_that_of_a_round_segment():
    rng = np.random.default_rng(1)
    p = rng.normal(0, 10, (200, 3)).astype(np.float32)
    a, b = np.array([1.0, 2.0, 3.0]), np.array([8.0, -4.0, 5.0])
    t = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    expected = np.linalg.norm(p - a - t[:, None] * (b - a), axis=1) - 2.5
    d = shapes.capsule(*p.T, shapes.brushes(jnp.array([*a, *b, 2.5, 2.5, 2.5, 1.0])))
    np.testing.assert_allclose(d, expected, atol=1e-3)
