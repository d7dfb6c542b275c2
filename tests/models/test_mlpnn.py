"""The perceptron on features of pixels: parameters, features against scipy, config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from spinejax.configs import mlpnn
from spinejax.models import build_model, fields
from spinejax.models.layer_table import count_parameters
from spinejax.models.mlpnn import FEATURES, MLPNN
from tests.support.networks import init, normal, quick_jit


def of_scipy(name, image):
    """A feature of one slice; beyond the border the outermost pixels are repeated."""
    how = dict(size=3, mode="nearest")
    if name == "mean":
        return ndimage.uniform_filter(image, **how)
    if name == "deviation":
        return ndimage.generic_filter(image, np.std, **how)
    if name == "gradient":
        return np.hypot(*(ndimage.sobel(image, axis, mode="nearest") / 8 for axis in (0, 1)))
    filters = {"median": "median", "minimum": "minimum", "maximum": "maximum"}
    return getattr(ndimage, f"{filters[name]}_filter")(image, **how) if name != "value" else image


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_those_of_scipy(name):
    slices = normal(0, 2, 7, 9) + 3
    found = quick_jit(FEATURES[name])(slices)
    for ours, image in zip(found, slices, strict=True):
        np.testing.assert_allclose(ours, of_scipy(name, np.asarray(image, np.float64)), atol=1e-5)


def test_the_deviation_of_large_values_keeps_its_digits():
    image = 1000 + normal(1, 1, 6, 6)
    expected = of_scipy("deviation", np.asarray(image[0], np.float64))
    np.testing.assert_allclose(FEATURES["deviation"](image)[0], expected, rtol=1e-3)


def test_a_ramp_has_its_slope_as_gradient():
    x = 2.0 * np.arange(6)[:, None] + 1.5 * np.arange(7)
    found = FEATURES["gradient"](jnp.asarray(x, jnp.float32)[None])[0]
    np.testing.assert_allclose(found[1:-1, 1:-1], np.hypot(2.0, 1.5), rtol=1e-6)


@pytest.mark.parametrize(("features", "expected"), [(7, 7 * 20 + 20 + 21), (1, 20 + 20 + 21)])
def test_parameters_are_those_of_one_hidden_layer(features, expected):
    config = mlpnn.get_config(f"features={features}")
    model = build_model(config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    assert count_parameters(shapes["params"]) == expected


def test_a_pixel_is_classified_by_its_neighbourhood_alone():
    model, x = MLPNN(), normal(0, 1, 9, 9, 1)
    variables = init(model, x)
    before = model.apply(variables, x)[0]
    after = model.apply(variables, x.at[0, 4, 4].add(1.0))[0]
    changed = np.asarray(before != after)[0, ..., 0]
    rows, columns = np.nonzero(changed)
    assert changed[4, 4] and rows.min() == columns.min() == 3 and rows.max() == columns.max() == 5


def test_the_config_has_the_defaults_and_another_number_of_features_is_refused():
    config = mlpnn.get_config()
    assert dict(config.model) == {name: f.default for name, f in fields("mlpnn").items()}
    assert mlpnn.get_config("features=1").model.features == ("value",)
    with pytest.raises(ValueError, match="choose 7 or 1"):
        mlpnn.get_config("features=3")
