"""MultiResUNet: published count, blocks, batch norm, options, config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinejax import models, schema
from spinejax.cli import main
from spinejax.configs import multiresunet
from spinejax.errors import InputError
from spinejax.models import build_model
from spinejax.models.layer_table import count_parameters
from spinejax.models.multiresunet import MultiResBlock, ResPath, block_widths
from tests.support.cubes import gradients, shapes
from tests.support.networks import apply, init, normal, quick_jit, quick_key

SMALL = dict(name="multiresunet", widths=(4, 8))


@pytest.mark.parametrize(
    ("channels", "trainable", "published"), [(3, 7_238_228, 7_262_750), (1, 7_237_982, 7_262_504)]
)
def test_network_has_its_published_count(channels, trainable, published):
    variables, _ = shapes(build_model(dict(name="multiresunet")), 16, 16, channels=channels)
    assert count_parameters(variables["params"]) == trainable
    assert count_parameters(variables["batch_stats"]) == 24_522
    assert count_parameters(variables) == published


def test_config_repeats_the_grey_slice_to_three_channels():
    model = build_model(multiresunet.get_config().model)
    assert count_parameters(shapes(model, 16, 16)[0]) == 7_262_750


def test_blocks_have_the_published_widths_and_never_none():
    widths = [sum(block_widths(width)) for width in (32, 64, 128, 256, 512)]
    assert widths == [51, 105, 212, 426, 853]
    assert block_widths(32) == (8, 17, 26)
    assert min(block_widths(1)) == 1


def test_paths_are_as_long_as_published_and_lead_to_the_level_they_join():
    parameters = shapes(build_model(dict(name="multiresunet")), 16, 16)[0]["params"]
    for level, (width, length) in enumerate([(32, 4), (64, 3), (128, 2), (256, 1)], 1):
        path = parameters[f"path{level}"]
        steps = [path[f"step{index}_conv"]["kernel"].shape for index in range(1, length + 1)]
        assert sum(name.startswith("step") for name in path) == 2 * length
        assert [shape[-1] for shape in steps] == [width] * length
        up, skip = parameters[f"up{level}"]["kernel"].shape[-1], width
        first = parameters[f"decoder{level}"]["step1_conv"]["kernel"].shape
        assert first[2] == up + skip == 2 * width


def test_only_norms_after_sums_and_concatenations_have_a_scale():
    parameters = shapes(build_model(SMALL), 8, 8)[0]["params"]
    for path, _ in jax.tree.leaves_with_path(parameters):
        *_, module, leaf = (key.key for key in path)
        if leaf == "scale":
            assert module.startswith("norm")
        if leaf == "bias":
            assert module.startswith("up") or "norm" in module
    assert set(parameters["head"]["logits_norm"]) == {"bias"}
    assert set(parameters["encoder1"]["norm1"]) == {"bias", "scale"}


def normalised(x):
    return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)


def silent(variables, steps):
    """Return the variables with the kernels of 3x3 convolutions at zero."""
    params = {
        name: jax.tree.map(jnp.zeros_like, leaf) if name in steps else leaf
        for name, leaf in variables["params"].items()
    }
    return {**variables, "params": params}


def train_apply(block, variables, x):
    run = quick_jit(lambda v, x: block.apply(v, x, True, mutable=["batch_stats"])[0])
    return np.asarray(run(variables, x))


def test_a_step_of_a_path_adds_its_shortcut_before_the_relu():
    block, x = ResPath(3, 1), normal(0, 2, 4, 4, 2)
    variables = quick_jit(lambda x: block.init(quick_key(1), x, False))(x)
    found = train_apply(block, silent(variables, {"step1_conv"}), x)
    point = np.asarray(variables["params"]["shortcut1_conv"]["kernel"])[0, 0]
    expected = normalised(np.maximum(normalised(np.asarray(x) @ point), 0))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_block_adds_its_shortcut_to_the_concatenation():
    block, x = MultiResBlock(4), normal(0, 2, 4, 4, 2)
    variables = quick_jit(lambda x: block.init(quick_key(1), x, False))(x)
    found = train_apply(block, silent(variables, {f"step{i}_conv" for i in (1, 2, 3)}), x)
    point = np.asarray(variables["params"]["shortcut_conv"]["kernel"])[0, 0]
    expected = normalised(np.maximum(normalised(np.asarray(x) @ point), 0))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_batch_norm_standardises_the_logits_in_training_and_remembers_for_prediction():
    model, x = build_model(SMALL), normal(0, 4, 8, 8, 1)
    variables = init(model, x)
    run = quick_jit(lambda v: model.apply(v, x, train=True, mutable=["batch_stats"]))
    (logits, _), updated = run(variables)
    assert float(logits.mean()) == pytest.approx(0, abs=1e-4)
    assert float(logits.std()) == pytest.approx(1, abs=1e-2)
    for _ in range(150):  # 0.9^150 of the first statistics are left
        updated = run({**variables, **updated})[1]
    remembered = apply(model, {**variables, **updated}, x)[0]
    np.testing.assert_allclose(remembered, logits, atol=0.1)


def test_shapes_are_those_of_the_slice_at_each_stride():
    _, out = shapes(build_model(SMALL, out_channels=3), 8, 12, batch=2)
    wide, deep = (sum(block_widths(width)) for width in (4, 8))
    assert out == {
        "encoder1": (8, 12, wide),
        "path1": (8, 12, 4),
        "encoder2": (4, 6, deep),
        "decoder1": (8, 12, wide),
    }


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
    x, weight = normal(0, 2, 8, 8, 1), normal(1, 2, 8, 8, 1)
    plain, remat = build_model(SMALL), build_model(SMALL, remat=True)
    variables = init(plain, x)

    def loss(model):
        def run(v):
            (logits, _), updated = model.apply(v, x, train=True, mutable=["batch_stats"])
            return jnp.sum(logits * weight), updated

        return quick_jit(jax.value_and_grad(run, has_aux=True))(variables)

    for a, b in zip(*(jax.tree.leaves(loss(model)) for model in (plain, remat)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("side", "words"), [(2, "smaller than"), (18, "multiples of")])
def test_image_sides_that_do_not_fit_the_stride_are_refused(side, words):
    model = build_model({**SMALL, "widths": (2, 2, 2)})
    with pytest.raises(InputError, match=words):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, side, 1)))


def test_config_has_the_defaults_but_for_the_channels():
    config = multiresunet.get_config()
    schema.check(config)
    defaults = {name: f.default for name, f in models.fields("multiresunet").items()}
    assert dict(config.model) == {**defaults, "in_channels": 3}


def test_summarize_prints_the_published_count(capsys):
    assert main(["summarize", f"--config={multiresunet.__file__}"]) == 0
    printed = capsys.readouterr().out
    assert "\nparameters: 7,238,228\nwith running statistics: 7,262,750\nGFLOPs: " in printed
