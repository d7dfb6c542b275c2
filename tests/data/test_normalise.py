"""Intensity normalisations against their formulas, on NumPy and under jax.jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinejax import schema
from spinejax.data import normalise
from spinejax.errors import InputError

CLAMP = (-1000.0, 800.0)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    images = rng.integers(-1000, 801, (3, 6, 5)).astype(np.int16)
    images[1] //= 2
    return images


def stats_of(images):
    return np.stack([normalise.scan_stats([image]) for image in images])


EXPECTED = {
    "hu": lambda x: x,
    "zscore": lambda x: (x - x.mean()) / x.std(),
    "unit": lambda x: (x + 1000) / 1800,
    "sym": lambda x: (x + 1000) / 900 - 1,
    "minmax_to_hu": lambda x: (x - x.min()) / (x.max() - x.min()) * 1800 - 1000,
}


@pytest.mark.parametrize("mode", schema.choices("data.normalise"))
def test_each_mode_is_its_formula_per_scan(mode, images):
    result = normalise.normalise(images, mode, CLAMP, stats_of(images))
    assert result.dtype == np.float32 and result.shape == images.shape
    for image, got in zip(images, result, strict=True):
        np.testing.assert_allclose(got, EXPECTED[mode](image.astype(float)), rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("mode", schema.choices("data.normalise"))
def test_jit_agrees_with_numpy(mode, images):
    stats = stats_of(images)
    expected = normalise.network_input(images, mode, CLAMP, stats)
    got = jax.jit(lambda x, s: normalise.network_input(x, mode, CLAMP, s))(images, stats)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", schema.choices("data.normalise"))
def test_network_inputs_are_of_order_one(mode, images):
    """One learning rate serves every mode only if no mode's inputs are a thousand times larger."""
    values = normalise.network_input(images, mode, CLAMP, stats_of(images))
    assert 0.1 < np.abs(values).max() < 10


@pytest.mark.parametrize("mode", schema.choices("data.normalise"))
def test_one_scan_with_its_own_statistics_broadcasts(mode, images):
    together = normalise.normalise(images, mode, CLAMP, normalise.scan_stats(images))
    assert together.shape == images.shape
    one = normalise.normalise(images[0], mode, CLAMP, normalise.scan_stats(images))
    np.testing.assert_array_equal(one, together[0])


def test_constant_scan_gives_finite_values():
    image = np.full((2, 4, 4), 40, np.int16)
    stats = stats_of(image)
    assert (normalise.normalise(image, "zscore", CLAMP, stats) == 0).all()
    assert (normalise.normalise(image, "minmax_to_hu", CLAMP, stats) == -1000).all()


def test_values_that_augmentation_pushed_out_are_clamped():
    image = np.array([[-1300.0, 0.0, 2000.0]], np.float32)
    stats = np.zeros(4, np.float32)
    assert normalise.normalise(image, "unit", CLAMP, stats).tolist() == [[0, np.float32(5 / 9), 1]]


def test_the_window_of_paper_b_is_divided_by_its_upper_bound():
    image = np.array([[0, 100, 750, 1500]], np.int16)
    got = normalise.normalise(image, "unit", (0.0, 1500.0), np.zeros(4, np.float32))
    np.testing.assert_array_equal(got, image.astype(np.float32) / np.float32(1500))


def test_modes_that_need_no_statistics_ignore_them(images):
    for mode in set(schema.choices("data.normalise")) - set(normalise.NEED_STATS):
        a, b = (normalise.normalise(images, mode, CLAMP, np.full(4, v)) for v in (1.0, np.nan))
        np.testing.assert_array_equal(a, b)


def test_unknown_mode_lists_the_choices(images):
    with pytest.raises(InputError, match="'zscor'.*minmax_to_hu.*did you mean 'zscore'"):
        normalise.normalise(images, "zscor", CLAMP, stats_of(images))


def test_scan_statistics_do_not_depend_on_the_cut():
    scan = np.random.default_rng(1).integers(-1000, 801, (17, 30, 20)).astype(np.int16)
    whole = normalise.scan_stats([scan])
    np.testing.assert_array_equal(whole, normalise.scan_stats(np.array_split(scan, 5)))
    expected = [scan.mean(), scan.std(), scan.min(), scan.max()]
    np.testing.assert_allclose(whole, expected, rtol=1e-6)


def test_scan_statistics_refuse_floats_and_nothing():
    with pytest.raises(TypeError, match="integer"):
        normalise.scan_stats([np.zeros((1, 2, 2), np.float32)])
    with pytest.raises(ValueError, match="no image"):
        normalise.scan_stats([])
