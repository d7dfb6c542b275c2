"""D-TVNet: count, the way from the contour to the mask, its loss, options, config."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage

from spinejax import models, schema
from spinejax.configs import dtvnet, unet
from spinejax.errors import InputError
from spinejax.losses import dice_ce
from spinejax.models import build_model
from spinejax.models.layer_table import count_parameters
from spinejax.models.layers import NORMS
from spinejax.tasks import Keys, build_task
from tests.support.cubes import shapes
from tests.support.networks import apply, init, normal, quick_jit, quick_key

SMALL = dict(name="dtvnet", widths=(4, 8))


def test_count_is_that_of_its_layers_added_up_by_hand():
    widths = (32, 64, 128, 256, 512)

    def convolutions(c, w):  # two 3x3, each with scale and offset of a norm
        return 9 * c * w + 9 * w * w + 2 * 2 * w

    encoder = sum(convolutions(c, w) for c, w in zip((1, *widths), widths, strict=False))
    bottom, m = 2 * 512, 2 * 512 // 4
    pyramid = bottom * m + 3 * 9 * bottom * m + 4 * 2 * m + (bottom * m + m)  # rates, global mean
    pyramid += 5 * m * bottom + 2 * bottom
    total = 2 * encoder + pyramid + 2 * (32 + 1)
    for deep, w in zip(widths[1:], widths[:-1], strict=True):
        total += 4 * deep * w + w + convolutions(2 * w, w)  # auxiliary
        total += 4 * (bottom if deep == 512 else deep) * w + w + convolutions(3 * w, w)  # main
    variables, _ = shapes(build_model(dict(name="dtvnet")), 16, 16)
    assert count_parameters(variables) == total


@pytest.mark.parametrize("norm", NORMS)
def test_shapes_are_those_of_the_slice_at_each_stride(norm):
    variables, out = shapes(build_model({**SMALL, "norm": norm}, out_channels=3), 8, 12, batch=2)
    assert out.pop("auxiliary") == (8, 12, 1)
    assert out.pop("aspp") == (4, 6, 16)
    for stream in ("main", "auxiliary"):
        assert out.pop(f"{stream}_encoder1") == out.pop(f"{stream}_decoder1") == (8, 12, 4)
        assert out.pop(f"{stream}_encoder2") == (4, 6, 8)
    assert not out
    assert ("batch_stats" in variables) == (norm == "batch")


def test_the_contour_is_the_auxiliary_streams_alone_and_helps_to_find_the_mask():
    model, x = build_model(SMALL), normal(0, 1, 8, 8, 1)
    variables = init(model, x)

    def changed(stream):
        params = {
            name: jax.tree.map(lambda leaf: 1.5 * leaf + 0.1, leaf)
            if name.startswith(stream)
            else leaf
            for name, leaf in variables["params"].items()
        }
        logits, out = apply(model, {"params": params}, x)
        return logits, out["auxiliary"]

    mask, contour = apply(model, variables, x)[0], apply(model, variables, x)[1]["auxiliary"]
    other_mask, same_contour = changed("main")
    np.testing.assert_array_equal(same_contour, contour)
    assert jnp.abs(other_mask - mask).max() > 1e-3
    # The map of the decoder and the deepest map both reach the mask.
    for part in ("auxiliary_decoder", "auxiliary_encoder2"):
        other_mask, other_contour = changed(part)
        assert jnp.abs(other_mask - mask).max() > 1e-3, part
        assert jnp.abs(other_contour - contour).max() > 1e-3, part


def small(weight):
    config = dtvnet.get_config("debug")
    config.model.update(SMALL)
    config.data.size = (16, 16)
    config.loss.auxiliary_weight = weight
    return config


def batch():
    label = np.zeros((2, 16, 16), np.uint8)
    label[0, 4:9, 5:16], label[1, 3, 2] = 20, 1
    return {
        "image": 300 * normal(0, 2, 16, 16),
        "label": jnp.asarray(label),
        "stats": jnp.zeros((2, 4)),
        "weight": jnp.ones(2),
    }


def test_the_loss_has_the_cross_entropy_of_the_contour_that_scipy_finds():
    task, samples = build_task(small(0.5)), batch()
    variables = quick_jit(task.init)(quick_key(0))
    found, _ = quick_jit(lambda p: task.loss(p, {}, samples, None))(variables["params"])
    mask = np.asarray(samples["label"] > 0).astype(np.uint8)
    square = (1, 3, 3)
    edge = ndimage.grey_dilation(mask, square) != ndimage.grey_erosion(mask, square)
    image = samples["image"][..., None]
    logits, out = apply(task.model, variables, image)
    entropy = optax.sigmoid_binary_cross_entropy(out["auxiliary"][..., 0], edge.astype(np.float32))
    expected = dice_ce(logits, samples["label"]) + 0.5 * entropy.mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_gradients_of_the_loss_are_finite_and_reach_every_parameter():
    task, samples = build_task(small(0.5)), batch()
    variables = quick_jit(task.init)(quick_key(0))
    keys = Keys(jax.random.split(jax.random.key(1), 2), jax.random.key(2))
    gradients = quick_jit(jax.grad(lambda p: task.loss(p, {}, samples, keys)[0]))(
        variables["params"]
    )
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert jnp.isfinite(gradient).all(), path
        assert jnp.abs(gradient).max() > 0, path


def test_without_a_weight_the_contour_is_not_learnt():
    task, samples = build_task(small(0.0)), batch()
    variables = quick_jit(task.init)(quick_key(0))
    gradients = quick_jit(jax.grad(lambda p: task.loss(p, {}, samples, None)[0]))(
        variables["params"]
    )
    assert not jnp.any(gradients["auxiliary_logits"]["conv"]["kernel"])


def test_a_network_without_auxiliary_logits_is_refused_in_one_line():
    config = unet.get_config("debug")
    build_task(config)
    config.loss.auxiliary_weight = 0.5
    words = r"loss\.auxiliary_weight=0\.5 .*model\.name='unet' .*; set it to 0, or .* dtvnet$"
    with pytest.raises(InputError, match=words) as error:
        build_task(config)
    assert "\n" not in str(error.value)


def test_bfloat16_keeps_float32_parameters_and_logits_and_stays_close():
    x = normal(0, 1, 16, 16, 1)
    half = build_model(SMALL, dtype=jnp.bfloat16)
    variables = init(half, x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    logits, out = apply(half, variables, x)
    assert logits.dtype == out["auxiliary"].dtype == jnp.float32
    assert out["main_decoder1"].dtype == jnp.bfloat16
    expected, full = apply(build_model(SMALL), variables, x)
    for a, b in ((logits, expected), (out["auxiliary"], full["auxiliary"])):
        assert jnp.abs(a - b).max() < 0.1 * jnp.abs(b).max()


def test_remat_changes_neither_values_nor_gradients():
    x, weight = normal(0, 1, 8, 8, 1), normal(1, 1, 8, 8, 1)
    plain, remat = build_model(SMALL), build_model(SMALL, remat=True)
    variables = init(plain, x)

    def loss(model):
        def run(v):
            logits, out = model.apply(v, x, train=True)
            return jnp.sum(logits * weight) + jnp.sum(out["auxiliary"] * weight)

        return quick_jit(jax.value_and_grad(run))(variables)

    for a, b in zip(*(jax.tree.leaves(loss(model)) for model in (plain, remat)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3)


def test_dropout_drops_whole_channels_of_the_main_decoder():
    model, x = build_model({**SMALL, "dropout": 0.5}), normal(0, 1, 8, 8, 1)
    variables = init(model, x)
    step = quick_jit(lambda key: model.apply(variables, x, train=True, rngs={"dropout": key}))
    (one, out), (other, same) = step(jax.random.key(0)), step(jax.random.key(1))
    assert jnp.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(out["auxiliary"], same["auxiliary"])


@pytest.mark.parametrize(("side", "words"), [(2, "smaller than"), (18, "multiples of")])
def test_image_sides_that_do_not_fit_the_stride_are_refused(side, words):
    model = build_model({**SMALL, "widths": (2, 2, 2)})
    with pytest.raises(InputError, match=words):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, side, 1)))


def test_config_has_the_defaults():
    config = dtvnet.get_config()
    schema.check(config)
    assert dict(config.model) == {name: f.default for name, f in models.fields("dtvnet").items()}
