"""V-Net: published count, residual stages, options, config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinejax import models, schema
from spinejax.cli import main
from spinejax.configs import vnet
from spinejax.errors import InputError
from spinejax.labels import NUM_CLASSES
from spinejax.models import build_model
from spinejax.models.layer_table import count_parameters
from spinejax.models.layers import NORMS
from spinejax.models.vnet import PReLU, Stage, VNet
from tests.support.cubes import check_gradients, shapes
from tests.support.networks import normal, quick_jit

SMALL = dict(name="vnet", widths=(4, 8), depths=(1, 2))


def slopes(parameters):
    """Return the number of slopes of PReLUs."""
    leaves = jax.tree.leaves_with_path(parameters)
    return sum(leaf.size for path, leaf in leaves if path[-1].key == "slope")


def test_network_has_its_published_parameters_beside_the_slopes():
    parameters = shapes(build_model(dict(name="vnet"), out_channels=2), 16, 16, 16)[0]["params"]
    down = 16 + 2 * 32 + 3 * 64 + 3 * 128 + 3 * 256 + (32 + 64 + 128 + 256)
    up = 3 * 256 + 3 * 128 + 2 * 64 + 1 * 32 + (128 + 64 + 32 + 16)
    assert slopes(parameters) == down + up
    assert count_parameters(parameters) - slopes(parameters) == 65_171_858


def test_first_convolutions_have_five_taps_and_the_depths_of_the_paper():
    parameters = shapes(VNet(), 16, 16, 16)[0]["params"]
    for level, (width, depth) in enumerate(
        zip((16, 32, 64, 128, 256), (1, 2, 3, 3, 3), strict=True), 1
    ):
        stage = parameters[f"encoder{level}"]
        assert sum(name.startswith("conv") for name in stage) == depth
        channels = 1 if level == 1 else width
        assert stage["conv1"]["kernel"].shape == (5, 5, 5, channels, width)


def test_prelu_scales_what_is_negative():
    x = jnp.array([[-2.0, 3.0], [4.0, -1.0]])
    out = PReLU().apply({"params": {"slope": jnp.array([0.5, 0.25])}}, x)
    np.testing.assert_array_equal(out, [[-1.0, 3.0], [4.0, -0.25]])


def test_a_stage_adds_its_input_whose_channels_are_repeated():
    stage = Stage(5, 2, norm="none")
    x = jnp.abs(normal(0, 1, 3, 3, 3, 2))
    shapes = jax.eval_shape(lambda x: stage.init(jax.random.key(0), x, False), x)
    silent = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    out = quick_jit(lambda x: stage.apply(silent, x, False))(x)
    np.testing.assert_array_equal(out, x[..., (0, 1, 0, 1, 0)])


@pytest.mark.parametrize("norm", NORMS)
def test_shapes_are_those_of_the_cube_at_each_stride(norm):
    model = build_model({**SMALL, "norm": norm}, out_channels=3)
    variables, out = shapes(model, 8, 4, 6, channels=2, batch=2)
    assert out == {
        "encoder1": (8, 4, 6, 4),
        "encoder2": (4, 2, 3, 8),
        "decoder1": (8, 4, 6, 8),
    }
    assert ("batch_stats" in variables) == (norm == "batch")


@pytest.mark.parametrize("options", [{}, dict(norm="batch", dropout=0.3)])
def test_gradients_are_finite_and_reach_every_parameter(options):
    check_gradients(build_model({**SMALL, **options}, out_channels=3), 8)


def test_depths_must_match_the_widths():
    with pytest.raises(InputError, match=r"model.depths .* 2 stages"):
        build_model({**SMALL, "depths": (1,)})


def test_config_has_the_defaults_and_its_debug_cube_fits():
    config = vnet.get_config()
    schema.check(config)
    assert dict(config.model) == {name: f.default for name, f in models.fields("vnet").items()}
    config = vnet.get_config("debug")
    schema.check(config)
    shapes(build_model(config.model, out_channels=NUM_CLASSES), *config.data.cube.size)


def test_summarize_prints_the_count(capsys):
    assert main(["summarize", f"--config={vnet.__file__}"]) == 0
    assert "parameters: 65,176,139\n" in capsys.readouterr().out
