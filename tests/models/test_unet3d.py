"""3D U-Net and the layers over cubes: published count, equality with plain layers, errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinejax import schema
from spinejax.cli import main
from spinejax.configs import unet, unet3d
from spinejax.errors import InputError
from spinejax.labels import NUM_CLASSES
from spinejax.models import MODELS, build_model
from spinejax.models.layer_table import count_parameters
from spinejax.models.layers import NORMS, Conv3D, Downsample3D, SpatialDropout, Upsample, max_pool
from spinejax.tasks import build_task
from tests.support.cubes import check_gradients, shapes
from tests.support.networks import apply, init, normal, quick_jit

CUBE_NETWORKS = [name for name, network in MODELS.items() if network.SEES == "cubes"]
SMALL = dict(name="unet3d", widths=(4, 8))

# Published count: biases of convolutions, none of the transposed ones, no norms.
LAYERS = {
    "encoder1": 2_624 + 55_360,
    "encoder2": 110_656 + 221_312,
    "encoder3": 442_496 + 884_992,
    "encoder4": 1_769_728 + 3_539_456,
    "decoder3": 2_097_152 + 5_308_672 + 1_769_728,
    "decoder2": 524_288 + 1_327_232 + 442_496,
    "decoder1": 131_072 + 331_840 + 110_656,
    "logits": 195,
}


def test_network_has_the_parameters_of_table_11_level_by_level():
    model = build_model(dict(name="unet3d", norm="none"), out_channels=3)
    parameters = shapes(model, 16, 16, 16, channels=3)[0]["params"]
    assert {name: count_parameters(layer) for name, layer in parameters.items()} == LAYERS
    assert count_parameters(parameters) == sum(LAYERS.values()) == 19_069_955


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_norm_has_scale_and_offset_in_place_of_the_bias(norm):
    model = build_model(dict(name="unet3d", norm=norm), out_channels=3)
    widths = 32 + 64 + 64 + 128 + 128 + 256 + 256 + 512 + 2 * (256 + 128 + 64)
    parameters = shapes(model, 16, 16, 16, channels=3)[0]["params"]
    assert count_parameters(parameters) == 19_069_955 + widths


# Layers against the plain ones


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.usefixtures("form")
def test_conv3d_and_its_gradient_equal_flax(kernel):
    x = normal(0, 2, 4, 5, 6, 3)
    layer = Conv3D(4, kernel)
    plain = nn.Conv(4, (kernel,) * 3)
    variables = {
        "params": {"kernel": normal(1, kernel, kernel, kernel, 3, 4), "bias": normal(2, 4)}
    }
    theirs = jax.eval_shape(plain.init, jax.random.key(0), x)
    assert jax.eval_shape(layer.init, jax.random.key(0), x) == theirs
    weight = normal(3, 2, 4, 5, 6, 4)

    def with_gradients(module):
        out, pull = jax.vjp(module.apply, variables, x)
        return out, pull(weight)

    ours, theirs = quick_jit(lambda: (with_gradients(layer), with_gradients(plain)))()
    for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-3)


def test_upsampling_of_a_cube_equals_a_transposed_convolution():
    x = normal(0, 2, 3, 2, 4, 3)
    kernel, bias = normal(1, 2, 2, 2, 3, 5), normal(2, 5)
    # Flax slides the kernel over the dilated input, which flips it.
    flipped = {"params": {"kernel": kernel[::-1, ::-1, ::-1], "bias": bias}}
    expected = nn.ConvTranspose(5, (2, 2, 2), strides=(2, 2, 2)).apply(flipped, x)
    found = Upsample(5).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    without = jax.eval_shape(Upsample(5, use_bias=False).init, jax.random.key(0), x)
    assert set(without["params"]) == {"kernel"}


def test_downsampling_equals_a_strided_convolution():
    x = normal(0, 2, 4, 6, 2, 3)
    kernel, bias = normal(1, 2, 2, 2, 3, 5), normal(2, 5)
    expected = nn.Conv(5, (2, 2, 2), (2, 2, 2), "VALID").apply(
        {"params": {"kernel": kernel, "bias": bias}}, x
    )
    variables = {"params": {"conv": {"kernel": kernel.reshape(24, 5), "bias": bias}}}
    np.testing.assert_allclose(Downsample3D(5).apply(variables, x), expected, atol=1e-5)


def test_pooling_of_a_cube_equals_flax():
    x = normal(0, 2, 4, 6, 2, 3)
    np.testing.assert_array_equal(max_pool(x), nn.max_pool(x, (2, 2, 2), (2, 2, 2)))


def test_dropout_drops_whole_channels_of_cubes():
    x = jnp.ones((2, 3, 4, 5, 16))
    out = SpatialDropout(0.5).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    kept = np.asarray(out[:, 0, 0, 0, :])
    np.testing.assert_array_equal(out, np.broadcast_to(kept[:, None, None, None], out.shape))
    assert set(kept.ravel().tolist()) == {0.0, 2.0}


# Options


@pytest.mark.parametrize("norm", NORMS)
def test_shapes_are_those_of_the_cube_at_each_stride(norm):
    model = build_model({**SMALL, "norm": norm, "widths": (4, 8, 16)}, out_channels=3)
    variables, out = shapes(model, 8, 16, 12, channels=2, batch=2)
    assert out == {
        "encoder1": (8, 16, 12, 4),
        "encoder2": (4, 8, 6, 8),
        "encoder3": (2, 4, 3, 16),
        "decoder2": (4, 8, 6, 8),
        "decoder1": (8, 16, 12, 4),
    }
    assert ("batch_stats" in variables) == (norm == "batch")


@pytest.mark.parametrize("options", [{}, dict(norm="batch", dropout=0.3)])
def test_gradients_are_finite_and_reach_every_parameter(options):
    check_gradients(build_model({**SMALL, **options}, out_channels=3), 8)


def test_remat_changes_no_value():
    x = normal(0, 1, 4, 4, 4, 1)
    plain, remat = build_model(SMALL), build_model(SMALL, remat=True)
    variables = init(plain, x)
    np.testing.assert_allclose(
        apply(plain, variables, x)[0], apply(remat, variables, x)[0], atol=1e-5
    )


# Errors


@pytest.mark.parametrize("name", CUBE_NETWORKS)
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 32, 24, 32, 1), r"\(32, 24, 32\) must be multiples .* 16; .*\(32, 32, 32\)"),
        ((1, 32, 32, 1), "needs arrays"),
    ],
)
def test_cubes_that_do_not_fit_are_refused(name, shape, words):
    fields = dict(name=name) if name == "mrunet" else dict(name=name, widths=(2,) * 5)
    model = build_model(fields)
    if name == "spineparsenet":  # it interpolates to any size
        assert model.stride == 1
        shape, words = (1, 32, 32, 1), "needs arrays"
    else:
        assert model.stride == 16
    with pytest.raises(InputError, match=words):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize("name", CUBE_NETWORKS)
def test_other_tasks_refuse_networks_of_cubes(name):
    config = unet.get_config("debug")
    config.model = dict(name=name)
    with pytest.raises(InputError, match="no network for task='slice_segmentation'"):
        build_task(config)


# Config


def test_config_is_accepted_and_its_debug_cube_fits():
    for argument in (None, "debug"):
        config = unet3d.get_config(argument)
        schema.check(config)
        model = build_model(config.model, out_channels=NUM_CLASSES)
        shapes(model, *config.data.cube.size)


def test_summarize_prints_the_count(capsys):
    assert main(["summarize", f"--config={unet3d.__file__}"]) == 0
    assert "parameters: 19,072,123\n" in capsys.readouterr().out


def test_summarize_refuses_a_network_of_slices_for_cubes(capsys):
    words = ["summarize", f"--config={unet3d.__file__}", "--config.model.name=unet"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "model.name='unet'" in error and "unet3d" in error
