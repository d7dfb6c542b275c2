"""White noise by the index of a voxel."""

import jax.numpy as jnp
import numpy as np

from spinejax.white_noise import white


def correlation(x, lag, axis):
    x = x - x.mean()
    a = np.take(x, range(x.shape[axis] - lag), axis)
    b = np.take(x, range(lag, x.shape[axis]), axis)
    return float((a * b).mean() / (x * x).mean())


def test_white_noise_is_normal_and_independent():
    x = np.asarray(white(jnp.uint32(5), (300, 300), (0, 0)))
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
    assert abs((x**4).mean() - 3.0) < 0.4
    for lag, axis in ((1, 0), (1, 1), (2, 0), (16, 1)):
        assert abs(correlation(x, lag, axis)) < 0.015
    other = np.asarray(white(jnp.uint32(6), (300, 300), (0, 0)))
    assert abs((x * other).mean()) < 0.01


def test_noise_of_a_block_continues_its_neighbour():
    whole = np.asarray(white(jnp.uint32(9), (20, 30), (0, 0)))
    part = np.asarray(white(jnp.uint32(9), (6, 7), (3, 11)))
    np.testing.assert_array_equal(whole[3:9, 11:18], part)
    before = np.asarray(white(jnp.uint32(9), (6, 7), (-2, -1)))
    np.testing.assert_array_equal(whole[:4, :6], before[2:, 1:])
