"""SAU-Net: count by hand, shared weights, and an attention that alone sees the neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import ndimage

from spinejax import models, schema
from spinejax.configs import saunet
from spinejax.errors import InputError
from spinejax.losses import dice_ce
from spinejax.models import build_model
from spinejax.models.layer_table import count_parameters
from spinejax.models.layers import NORMS
from spinejax.models.saunet import InterSliceAttention
from spinejax.training import log, loop
from tests.support.networks import apply, init, normal, quick_jit
from tests.support.tiny_run import tiny_config, write_scans

SMALL = dict(name="saunet", depths=(2, 1, 1), growth=4)


def parameters(fields, channels):
    model = build_model(fields)
    x = jnp.zeros((1, 2 * model.stride, model.stride, channels))
    return jax.eval_shape(model.init, jax.random.key(0), x)["params"]


def test_count_is_that_of_its_layers_added_up_by_hand():
    def conv(side, before, after):
        return side**2 * before * after + 2 * after  # its norm has a scale and an offset

    growth, depth, slices = 16, 4, 3

    def block(c):
        return sum(conv(3, c + i * growth, growth) for i in range(depth))

    c, skips = 2 * growth, []
    total = conv(3, 1, c)
    for level in range(4):
        total += block(c)
        c += depth * growth
        if level < 3:
            skips.append(c)
            total += conv(1, (slices - 1) * c, c) + 9 * c + 1  # attention
            total += conv(1, c, c // 2)
            c //= 2
    for skip in reversed(skips):
        total += 4 * c * depth * growth + depth * growth + block(skip + depth * growth)
        c = skip + 2 * depth * growth
    total += c + 1
    assert count_parameters(parameters(dict(name="saunet"), 3)) == total


def test_the_encoder_has_the_same_weights_for_any_number_of_slices():
    three, seven = (parameters(dict(name="saunet"), channels) for channels in (3, 7))
    for name in three:
        sizes = [jax.tree.map(jnp.shape, tree[name]) for tree in (three, seven)]
        if name.startswith("attention"):
            kernels = [size["conv1"]["conv"]["kernel"] for size in sizes]
            assert kernels[1] == (1, 1, 3 * kernels[0][2], kernels[0][3])
            for size in sizes:
                del size["conv1"]["conv"]
        assert sizes[0] == sizes[1], name


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("channels", [3, 5])
def test_shapes_are_those_of_one_slice(norm, channels):
    model = build_model({**SMALL, "norm": norm}, out_channels=2)
    x = jax.ShapeDtypeStruct((2, 8, 12, channels), jnp.float32)
    (logits, out), variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x), x
    )
    assert logits.shape == (2, 8, 12, 2) and logits.dtype == jnp.float32
    assert {name: values.shape[1:] for name, values in out.items()} == {
        "encoder1": (8, 12, 16),
        "attention1": (8, 12, 1),
        "encoder2": (4, 6, 12),
        "attention2": (4, 6, 1),
        "encoder3": (2, 3, 10),
        "decoder2": (4, 6, 20),
        "decoder1": (8, 12, 32),
    }
    assert ("batch_stats" in variables) == (norm == "batch")


@pytest.fixture(scope="module")
def network():
    """A network, weights and a batch of slices between their neighbours."""
    model, x = build_model(SMALL), normal(0, 2, 8, 12, 3)
    return model, init(model, x), x


def test_features_are_those_of_the_slice_and_the_attention_those_of_its_neighbours(network):
    model, variables, x = network
    _, before = apply(model, variables, x)
    for channel, same, other in ((1, "attention", "encoder"), (2, "encoder", "attention")):
        _, after = apply(model, variables, x.at[..., channel].add(normal(1, 2, 8, 12)))
        for name in before:
            if name.startswith(same):
                np.testing.assert_allclose(after[name], before[name], atol=1e-5, err_msg=name)
            if name.startswith(other):
                assert jnp.abs(after[name] - before[name]).max() > 1e-4, name


def attention_kernels(variables, change):
    """Return variables whose attentions have changed: block of parameters -> block."""
    params = {
        name: change(block) if name.startswith("attention") else block
        for name, block in variables["params"].items()
    }
    return {**variables, "params": params}


def test_exchanging_the_neighbours_changes_the_attention_alone(network):
    model, variables, x = network
    there, back = (apply(model, variables, way) for way in (x, x[..., ::-1]))
    assert jnp.abs(there[0] - back[0]).max() > 1e-4
    for name in ("encoder1", "encoder2", "encoder3"):
        np.testing.assert_allclose(there[1][name], back[1][name], atol=1e-5)

    def fair(block):
        """Both neighbours have the same weights."""
        kernel = block["conv1"]["conv"]["kernel"]
        half = kernel[:, :, : kernel.shape[2] // 2]
        conv = {**block["conv1"]["conv"], "kernel": jnp.concatenate([half, half], axis=2)}
        return {**block, "conv1": {**block["conv1"], "conv": conv}}

    alike = attention_kernels(variables, fair)
    there, back = (apply(model, alike, way) for way in (x, x[..., ::-1]))
    np.testing.assert_allclose(there[0], back[0], atol=1e-4)


@pytest.mark.parametrize("bias", [-50.0, 0.0, 50.0])
def test_without_attention_a_skip_is_the_slice_and_with_all_of_it_twice_the_slice(network, bias):
    """A constant attention a hands (1 + a) times the slice's features on; neighbours do nothing."""
    model, variables, x = network

    def constant(block):
        conv2 = {"kernel": 0 * block["conv2"]["kernel"], "bias": jnp.full(1, bias)}
        return {**block, "conv2": conv2}

    logits, out = apply(model, attention_kernels(variables, constant), x)
    a = 1 / (1 + np.exp(-bias))
    for level, width in ((1, 16), (2, 12)):
        np.testing.assert_allclose(out[f"attention{level}"], a, atol=1e-6)
        # A dense block hands on its input: skip, upsampled map, then new channels.
        skip = out[f"decoder{level}"][..., :width]
        np.testing.assert_allclose(skip, (1 + a) * out[f"encoder{level}"], rtol=1e-5)
    other, _ = apply(model, attention_kernels(variables, constant), x.at[..., 0].multiply(-3))
    np.testing.assert_allclose(logits, other, atol=1e-5)


def test_the_attention_is_that_of_scipy():
    x = normal(0, 1, 6, 7, 4)
    module = InterSliceAttention(3, norm="none")
    variables = module.init(jax.random.key(1), x, train=False)
    found = module.apply(variables, x, train=False)
    first, second = (variables["params"][name] for name in ("conv1", "conv2"))
    hidden = np.maximum(x[0] @ first["conv"]["kernel"][0, 0] + first["conv"]["bias"], 0)
    total = second["bias"] + sum(
        ndimage.correlate(np.asarray(hidden[..., k]), second["kernel"][..., k, 0], mode="constant")
        for k in range(3)
    )
    np.testing.assert_allclose(found[0, ..., 0], 1 / (1 + np.exp(-total)), atol=1e-5)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_gradients_are_finite_and_reach_every_parameter(norm):
    model = build_model({**SMALL, "norm": norm}, remat=True)
    x, label = normal(0, 2, 8, 8, 3), normal(1, 2, 8, 8) > 0
    variables = init(model, x)

    def loss(parameters):
        (logits, _), _ = model.apply(
            {**variables, "params": parameters}, x, train=True, mutable=["batch_stats"]
        )
        return dice_ce(logits, label)

    for path, gradient in jax.tree.leaves_with_path(quick_jit(jax.grad(loss))(variables["params"])):
        assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0, path


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_slices_without_neighbours_on_both_sides_are_refused(channels):
    with pytest.raises(InputError, match=rf"gets {channels} channels; set config field data.n"):
        build_model(SMALL).check_input((1, 8, 8, channels))


def test_config_has_the_defaults_and_the_loss_that_was_chosen():
    config = saunet.get_config()
    schema.check(config)
    assert dict(config.model) == {name: f.default for name, f in models.fields("saunet").items()}
    assert config.data.neighbours == 1 and config.loss.name == "dice_ce"


def test_training_finds_what_a_scan_shows(tmp_path):
    scans = write_scans(tmp_path / "scans")
    changes = {"data.neighbours": 1, "optim.learning_rate": 0.02, "train.steps": 24}
    config = tiny_config(scans, **changes, **{"train.eval_every_epochs": 0.4})
    config.model = ConfigDict({**SMALL, "depths": (1, 1), "norm": "none"})
    loop.train(config, tmp_path / "run")
    dice = [line["dice"] for line in log.read_metrics(tmp_path / "run") if line["kind"] == "val"]
    assert dice[0] < 0.5 and dice[-1] > 0.9
