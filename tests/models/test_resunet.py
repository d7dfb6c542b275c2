"""SpineParseNet's 2D network: published counts, added skips, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinejax.errors import InputError
from spinejax.models import build_model
from spinejax.models.layer_table import count_parameters
from spinejax.models.layers import NORMS
from tests.support.cubes import gradients, shapes
from tests.support.networks import apply, init, normal, quick_jit

SMALL = dict(name="resunet", widths=(4, 8))


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize(
    ("channels", "classes", "published"), [(21, 20, 11_784_852), (3, 2, 11_779_074)]
)
def test_network_has_the_count_of_the_public_code(channels, classes, published, norm):
    model = build_model(dict(name="resunet", norm=norm), out_channels=classes)
    parameters = shapes(model, 16, 16, channels=channels)[0]["params"]
    assert count_parameters(parameters) == published


def test_skips_are_added():
    parameters = shapes(build_model(dict(name="resunet")), 16, 16)[0]["params"]
    for level, width in enumerate((32, 64, 128, 256), 1):
        kernel = parameters[f"decoder{level}"]["conv1"]["conv"]["kernel"]
        assert kernel.shape == (3, 3, width, width)


@pytest.mark.parametrize("norm", NORMS)
def test_shapes_are_those_of_the_slice_at_each_stride(norm):
    variables, out = shapes(build_model({**SMALL, "norm": norm}, out_channels=3), 8, 12, batch=2)
    assert out == {"encoder1": (8, 12, 4), "encoder2": (4, 6, 8), "decoder1": (8, 12, 4)}
    assert ("batch_stats" in variables) == (norm == "batch")


def test_gradients_are_finite_and_reach_every_parameter():
    found = gradients(build_model(SMALL, out_channels=2), normal(0, 2, 16, 16, 1))
    for path, gradient in jax.tree.leaves_with_path(found):
        assert jnp.isfinite(gradient).all(), path
        assert jnp.abs(gradient).max() > 0, path


def test_bfloat16_keeps_float32_parameters_and_logits_and_stays_close():
    x = normal(0, 1, 16, 16, 1)
    half = build_model(SMALL, dtype=jnp.bfloat16)
    variables = init(half, x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    logits, out = apply(half, variables, x)
    assert logits.dtype == jnp.float32 and out["decoder1"].dtype == jnp.bfloat16
    expected = apply(build_model(SMALL), variables, x)[0]
    assert jnp.abs(logits - expected).max() < 0.1 * jnp.abs(expected).max()


def test_remat_changes_neither_values_nor_gradients():
    x, weight = normal(0, 1, 8, 8, 1), normal(1, 1, 8, 8, 1)
    models = [build_model(SMALL, remat=remat) for remat in (False, True)]
    variables = init(models[0], x)
    values = [
        quick_jit(
            jax.value_and_grad(lambda v, m=model: jnp.sum(m.apply(v, x, train=True)[0] * weight))
        )(variables)
        for model in models
    ]
    for a, b in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("side", "words"), [(2, "smaller than"), (18, "multiples of")])
def test_image_sides_that_do_not_fit_the_stride_are_refused(side, words):
    model = build_model({**SMALL, "widths": (2, 2, 2)})
    with pytest.raises(InputError, match=words):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, side, 1)))
