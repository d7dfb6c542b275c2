"""MobileNetV2: published counts, its blocks against plain layers, options, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

from spinejax.errors import InputError
from spinejax.models import MODELS, build_model
from spinejax.models.layer_table import count_parameters, flops
from spinejax.models.layers import NORMS
from spinejax.models.mobilenet import (
    WIDTHS,
    DepthwiseConv,
    InvertedResidual,
    MobileNetV2,
    scale_width,
)
from tests.support.networks import init, normal, quick_jit

SMALL = dict(
    name="mobilenet",
    width_multiplier=0.25,
    widths=(16, 32),
    depths=(1, 2),
    expansions=(1, 3),
    strides=(1, 2),
    head_width=16,
)


def shapes(model, side=32, channels=3):
    """Return the shapes of parameters and of the intermediates."""
    x = jnp.zeros((1, side, side, channels))
    (logits, out), variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x), x
    )
    assert logits.shape == (1, model.out_channels)
    return variables["params"], {name: map_.shape for name, map_ in out.items()}


# Published counts

CUMULATIVE = (1_824, 15_792, 55_488, 239_360, 542_528, 1_337_792, 1_811_712)


def test_standard_network_has_its_published_parameters_stage_by_stage():
    parameters, out = shapes(MobileNetV2(1000, norm="batch"), side=224)
    encoder = parameters["encoder"]
    total = count_parameters(encoder["stem"])
    for stage, expected in enumerate(CUMULATIVE, 1):
        total += count_parameters(encoder[f"stage{stage}"])
        assert total == expected, stage
    total += count_parameters(parameters["head"])
    assert total == 2_223_872
    assert count_parameters(parameters) == total + 1280 * 1000 + 1000 == 3_504_872
    # Sides and channels of Sandler et al., Table 2.
    sides = (112, 56, 28, 14, 14, 7, 7)
    assert [out[f"stage{i}"] for i in range(1, 8)] == [
        (1, side, side, width) for side, width in zip(sides, WIDTHS, strict=True)
    ]


def test_batch_statistics_are_the_rest_of_the_count_with_them():
    model = MobileNetV2(1000, norm="batch")
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    statistics = count_parameters(variables["batch_stats"])
    assert 2_223_872 + statistics == 2_257_984


def test_group_norm_has_the_parameters_of_batch_norm():
    counts = {norm: count_parameters(shapes(MobileNetV2(norm=norm))[0]) for norm in NORMS}
    assert counts["group"] == counts["batch"] > counts["none"]


def test_residual_blocks_of_paper_a_add_two_convolutions_after_each_stage():
    plain, with_blocks = (
        count_parameters(shapes(MobileNetV2(residual=residual))[0]) for residual in (False, True)
    )
    assert with_blocks - plain == sum(2 * (9 * w * w + 2 * w) for w in WIDTHS)


@pytest.mark.parametrize(
    ("width", "multiplier", "expected"),
    [
        (32, 1.0, 32),
        (16, 0.35, 8),
        (24, 0.35, 8),  # 8.4
        (32, 0.35, 16),  # 11.2: 8 would be less than 90 %
        (64, 0.35, 24),  # 22.4
        (96, 0.35, 32),  # 33.6
        (24, 0.75, 24),  # 18: 16 would be less than 90 %
        (32, 1.4, 48),  # 44.8
    ],
)
def test_scaled_widths_are_multiples_of_8_and_never_below_90_percent(width, multiplier, expected):
    assert scale_width(width, multiplier) == expected
    assert expected % 8 == 0 and expected >= 0.9 * multiplier * width


def test_head_is_not_narrowed_by_a_multiplier_below_1():
    heads = [
        shapes(MobileNetV2(width_multiplier=multiplier))[0]["head"]["conv"]["kernel"].shape[-1]
        for multiplier in (0.5, 1.0, 1.4)
    ]
    assert heads == [1280, 1280, 1792]


# Layers against the plain ones


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(6, 8), (7, 5), (1, 2)])
@pytest.mark.usefixtures("form")
def test_depthwise_and_its_gradient_equal_a_grouped_convolution(sides, stride):
    x, kernel = normal(0, 2, *sides, 4), normal(1, 3, 3, 1, 4)

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )

    def with_gradients(function):
        out, pull = jax.vjp(function, x, kernel)
        return out, pull(normal(2, *out.shape))

    def layer(x, kernel):
        return DepthwiseConv(stride).apply({"params": {"kernel": kernel}}, x)

    ours, theirs = quick_jit(lambda: (with_gradients(layer), with_gradients(grouped)))()
    for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_depthwise_of_a_stack_is_that_of_each_slice():
    x = normal(0, 2, 3, 6, 5, 4)
    layer = DepthwiseConv(stride=2)
    variables = layer.init(jax.random.key(0), x)
    found = layer.apply(variables, x)
    assert found.shape == (2, 3, 3, 3, 4)
    np.testing.assert_array_equal(found[:, 1], layer.apply(variables, x[:, 1]))


def test_depthwise_counts_as_the_convolution_that_it_is():
    x, variables = jnp.zeros((2, 8, 6, 5)), {"params": {"kernel": jnp.zeros((3, 3, 1, 5))}}
    assert flops(DepthwiseConv(stride=2).apply, variables, x) == 2 * (2 * 4 * 3 * 5) * 9


@pytest.mark.parametrize(("width", "stride", "added"), [(4, 1, True), (4, 2, False), (6, 1, False)])
def test_input_is_added_where_stride_and_width_allow(width, stride, added):
    x = normal(0, 1, 6, 6, 4)
    block = InvertedResidual(width, stride, 2, norm="none")
    shapes = jax.eval_shape(lambda x: block.init(jax.random.key(0), x, False), x)["params"]
    assert shapes["depthwise"]["kernel"].shape == (3, 3, 1, 8)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    silent = {**params, "project": jax.tree.map(jnp.zeros_like, params["project"])}
    out = quick_jit(lambda x: block.apply({"params": silent}, x, False))(x)
    assert out.shape == (1, 6 // stride, 6 // stride, width)
    np.testing.assert_array_equal(out, x if added else jnp.zeros_like(out))


def test_block_without_expansion_has_no_first_convolution():
    block = InvertedResidual(4, 1, 1, norm="group")
    x = normal(0, 1, 6, 6, 4)
    variables = jax.eval_shape(lambda x: block.init(jax.random.key(0), x, False), x)
    assert set(variables["params"]) == {"depthwise", "norm", "project"}


# Options


@pytest.mark.parametrize("options", [{}, dict(norm="batch", residual=True, dropout=0.5)])
def test_gradients_are_finite_and_reach_every_parameter(options):
    model = build_model({**SMALL, **options}, out_channels=2)
    x = normal(0, 4, 16, 16, 1)
    variables = init(model, x)

    def loss(parameters):
        (logits, _), _ = model.apply(
            {**variables, "params": parameters},
            x,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        return -jax.nn.log_softmax(logits)[:, 0].mean()

    for path, gradient in jax.tree.leaves_with_path(quick_jit(jax.grad(loss))(variables["params"])):
        assert jnp.isfinite(gradient).all(), path
        assert jnp.abs(gradient).max() > 0, path


def test_remat_and_bfloat16_keep_the_parameters():
    x = jnp.zeros((1, 16, 16, 1))
    plain = jax.eval_shape(build_model(SMALL).init, jax.random.key(0), x)
    for options in (dict(remat=True), dict(dtype=jnp.bfloat16)):
        model = build_model(SMALL, **options)
        assert jax.eval_shape(model.init, jax.random.key(0), x) == plain
        assert jax.eval_shape(model.apply, plain, x)[0].dtype == jnp.float32


def test_dropout_needs_its_key_in_training_only():
    model = build_model({**SMALL, "dropout": 0.5})
    x = jnp.zeros((1, 16, 16, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    jax.eval_shape(model.apply, variables, x)
    with pytest.raises(InvalidRngError):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=True), variables, x)


# Errors


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(width_multiplier=0.0), ["model.width_multiplier", "above 0"]),
        (dict(width_multiplier=True), ["model.width_multiplier"]),
        (dict(width_multiplier="wide"), ["model.width_multiplier"]),
        (dict(depths=(1, 2, 3)), ["model.depths", "2 stages"]),
        (dict(norm="layer"), ["model.norm", "'batch'"]),
        (dict(residual="no"), ["model.residual", "true or false"]),
    ],
)
def test_bad_fields_are_refused_with_one_line(fields, words):
    with pytest.raises(InputError) as error:
        build_model({**SMALL, **fields})
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_strides_other_than_1_and_2_are_refused():
    with pytest.raises(InputError, match="model.strides"):
        build_model({**SMALL, "strides": (1, 3)})


def test_it_is_a_classifier():
    assert MODELS["mobilenet"].SEES == "patches"
    assert build_model(dict(name="mobilenet", width_multiplier=1)).width_multiplier == 1
