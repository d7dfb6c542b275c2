"""The displacement and its inverse."""

import jax
import numpy as np

from spinejax.phantom import anatomy
from spinejax.phantom.body.warp import unwarp, warp


def test_warp_and_its_inverse_agree():
    p = jax.jit(anatomy)(jax.random.key(7))
    points = np.random.default_rng(0).uniform(-300, 300, (2000, 3)).astype(np.float32)
    back = unwarp(warp(points, p), p)
    np.testing.assert_allclose(back, points, atol=0.05)
    moved = np.linalg.norm(np.asarray(warp(points, p)) - points, axis=1)
    assert 0.5 < moved.mean() < 8
