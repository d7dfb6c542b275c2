"""Networks: published counts, equality with the plain layers, options, precision, errors."""

import itertools
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinejax.configs import chasppraunet, unet
from spinejax.errors import InputError
from spinejax.losses import dice_ce
from spinejax.models import build_model
from spinejax.models.attention import (
    ATTENTIONS,
    Attention,
    attend,
    attend_at_once,
    attend_in_chunks,
)
from spinejax.models.layer_table import count_parameters
from spinejax.models.layers import (
    NORMS,
    ConvNorm,
    GroupNorm,
    SpatialDropout,
    Upsample,
    average_pool_to,
    convolve,
    convolve_narrow,
    max_pool,
)
from spinejax.models.pyramid import PYRAMIDS
from tests.support.networks import apply, init, normal, quick_jit

SLICE_NETWORKS = ("chasppraunet", "unet")
SMALL = dict(name="chasppraunet", widths=(4, 8), attention_key_size=4, dropout=0.0)


def count(fields, channels, out_channels=1):
    model = build_model(fields, out_channels=out_channels)
    side = model.stride
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, channels)))
    return variables["params"]


# Published counts


# 3x3 convolutions and 2x2 transposed convolutions with bias.
UNET_LAYERS = {
    "encoder1/conv1": 448,
    "encoder1/conv2": 2_320,
    "encoder2/conv1": 4_640,
    "encoder2/conv2": 9_248,
    "encoder3/conv1": 18_496,
    "encoder3/conv2": 36_928,
    "encoder4/conv1": 73_856,
    "encoder4/conv2": 147_584,
    "encoder5/conv1": 295_168,
    "encoder5/conv2": 590_080,
    "up4": 131_200,
    "decoder4/conv1": 295_040,
    "decoder4/conv2": 147_584,
    "up3": 32_832,
    "decoder3/conv1": 73_792,
    "decoder3/conv2": 36_928,
    "up2": 8_224,
    "decoder2/conv1": 18_464,
    "decoder2/conv2": 9_248,
    "up1": 2_064,
    "decoder1/conv1": 4_624,
    "decoder1/conv2": 2_320,
    "logits": 17,
}


def test_unet_has_the_parameters_of_table_11_layer_by_layer():
    parameters = count(dict(name="unet"), channels=3)
    for path, expected in UNET_LAYERS.items():
        layer = parameters
        for name in path.split("/"):
            layer = layer[name]
        assert count_parameters(layer) == expected, path
    assert count_parameters(parameters) == sum(UNET_LAYERS.values()) == 1_941_105


def test_unet_config_repeats_the_grey_slice_to_three_channels():
    assert count_parameters(count(unet.get_config().model, channels=1)) == 1_941_105


@pytest.mark.parametrize(("channels", "expected"), [(1, 7_759_521), (3, 7_760_097)])
def test_unet_of_base_32_has_its_published_count(channels, expected):
    fields = dict(name="unet", widths=(32, 64, 128, 256, 512))
    assert count_parameters(count(fields, channels)) == expected


def test_chasppraunet_count_is_that_of_its_layers_added_up_by_hand():
    widths, total = (24, 48, 96, 192), 0
    for level, (c, w) in enumerate(zip((1, *widths), widths, strict=False)):
        total += 9 * c * w + 9 * w * w + c * w + 3 * 2 * w  # two 3x3, the 1x1 shortcut, norms
        if level:  # CHASPP: two stages of a root, three branches and a 1x1 over all
            m = c // 4
            total += 2 * (9 * c * m + 3 * 9 * m * m + (c + 3 * m) * c + 2 * (4 * m + c))
    for c, w in zip(widths[1:], widths[:-1], strict=True):
        total += 4 * c * w + w  # up
        total += 4 * w * (w // 2)  # query, key, value, out
        total += 9 * 2 * w * w + 9 * w * w + 2 * 2 * w
    total += widths[0] + 1
    found = count_parameters(count(chasppraunet.get_config().model, channels=1))
    assert found == total == 1_272_313
    assert 1_180_000 <= found <= 1_310_000


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_chasppraunet_stays_at_the_papers_size_whatever_the_attention(attention):
    fields = {**chasppraunet.model(), "attention": attention}
    # Paper A prints 1,245,155, without saying for which of its two networks: within 5 %.
    assert abs(count_parameters(count(fields, channels=1)) / 1_245_155 - 1) < 0.05


# Layers against the plain ones


def test_upsample_equals_a_transposed_convolution():
    x = normal(0, 2, 3, 5, 4)
    kernel, bias = normal(1, 2, 2, 4, 6), normal(2, 6)
    # Flax slides the kernel over the dilated input, which flips it.
    flipped = {"params": {"kernel": kernel[::-1, ::-1], "bias": bias}}
    expected = nn.ConvTranspose(6, (2, 2), strides=(2, 2)).apply(flipped, x)
    found = Upsample(6).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def assert_equal_functions(found, plain, x, **how):
    """Both modules have the same parameters, and for them the same values and gradients."""
    params = init(plain, x)["params"]
    shapes = jax.tree.map(jnp.shape, params)
    same = jax.eval_shape(lambda: found.init(jax.random.key(1), x, **how)["params"])
    assert jax.tree.map(jnp.shape, same) == shapes
    params = jax.tree.map(lambda p: p + 0.1 * normal(2, *p.shape), params)
    weight = normal(3, *jax.eval_shape(plain.apply, {"params": params}, x).shape)

    def run(module, **how):
        def total(params, x):
            y = module.apply({"params": params}, x, **how)
            return jnp.sum(y * weight), y

        return quick_jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(params, x)

    def close(a, b):
        np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-4)

    jax.tree.map(close, run(found, **how), run(plain))


@pytest.mark.parametrize("shape", [(2, 6, 5, 12), (1, 3, 4, 5, 16), (3, 7, 8)])
def test_group_norm_equals_flax(shape):
    groups = math.gcd(8, shape[-1])
    assert_equal_functions(GroupNorm(groups), nn.GroupNorm(groups), 3 + 2 * normal(0, *shape))


@pytest.mark.parametrize(
    ("channels", "width", "kernel", "rate"),
    [
        (2, 3, 3, 1),
        (4, 2, 3, 6),
        (2, 1, 5, 2),
        (1, 12, 3, 1),
        (3, 5, 3, 1),
        (1, 4, 3, 3),
        (4, 3, 1, 1),
        (12, 12, 3, 1),
        (16, 5, 5, 2),
        (8, 16, 3, 6),
        (20, 16, 3, 1),
        (17, 4, 3, 3),
    ],
)
@pytest.mark.usefixtures("form")
def test_convolutions_of_few_channels_equal_flax(channels, width, kernel, rate):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            padding = rate * (kernel // 2)
            side = (kernel, kernel)
            return nn.Conv(width, side, padding=padding, kernel_dilation=rate, name="conv")(x)

    found = ConvNorm(width, kernel, rate, activate=False, norm="none")
    assert_equal_functions(found, Plain(), normal(0, 2, 9, 8, channels), train=False)


def test_narrow_convolutions_keep_their_gradients_under_vmap_and_remat():
    x, kernel = normal(0, 2, 2, 8, 6, 20), normal(1, 2, 3, 3, 20, 12)

    def gradients(form):
        back = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(form(x, kernel))), (0, 1))
        return quick_jit(jax.vmap(back))(x, kernel)

    plain = gradients(partial(convolve, strides=(1, 1), padding=[(1, 1), (1, 1)]))
    for form in (convolve_narrow, jax.checkpoint(convolve_narrow)):
        for found, expected in zip(gradients(form), plain, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_max_pool_and_its_gradient_equal_flax():
    x = normal(0, 2, 6, 4, 3)
    weight = normal(1, 2, 3, 2, 3)

    def total(pool):
        return lambda x: jnp.sum(pool(x) * weight)

    def reference(x):
        return nn.max_pool(x, (2, 2), (2, 2))

    np.testing.assert_array_equal(max_pool(x), reference(x))
    np.testing.assert_array_equal(jax.grad(total(max_pool))(x), jax.grad(total(reference))(x))


@pytest.mark.parametrize(("side", "size", "expected"), [(64, 32, 32), (48, 32, 24), (8, 32, 8)])
def test_average_pool_goes_to_the_largest_even_grid_within_the_size(side, size, expected):
    x = normal(0, 1, side, side, 2)
    pooled = average_pool_to(x, size)
    assert pooled.shape == (1, expected, expected, 2)
    block = side // expected
    np.testing.assert_allclose(pooled[0, 0, 0], x[0, :block, :block].mean((0, 1)), atol=1e-5)


def softmax_attention(query, key, value):
    scores = np.einsum("bnd,bmd->bnm", query, key) / math.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnm,bme->bne", weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.parametrize("queries", [12, 1000, 1536])
@pytest.mark.usefixtures("form")
def test_attention_equals_the_papers_equations_in_one_chunk_or_several(queries):
    query, key, value = normal(0, 2, queries, 5), normal(1, 2, 9, 5), normal(2, 2, 9, 5)
    expected = softmax_attention(*(np.asarray(x, np.float64) for x in (query, key, value)))
    np.testing.assert_allclose(attend(query, key, value), expected, atol=1e-5)


@pytest.mark.usefixtures("form")
def test_attention_gradient_equals_that_of_the_plain_formula():
    query, key, value = normal(0, 2, 1536, 5), normal(1, 2, 9, 5), normal(2, 2, 9, 5)
    weight = normal(3, 2, 1536, 5)

    def plain(query, key, value):
        scores = jnp.einsum("bnd,bmd->bnm", query, key) / math.sqrt(5)
        return jax.nn.softmax(scores) @ value

    def gradients(function):
        total = jax.grad(lambda *args: jnp.sum(function(*args) * weight), (0, 1, 2))
        return quick_jit(total)(query, key, value)

    for found, expected in zip(gradients(attend), gradients(plain), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.usefixtures("form")
def test_attention_survives_scores_that_overflow_an_exponential():
    key = jnp.eye(3)[None] * 300
    out = attend(key, key, normal(0, 1, 3, 3))
    np.testing.assert_allclose(out, normal(0, 1, 3, 3), atol=1e-6)


def test_attention_in_bfloat16_is_the_same_in_both_forms():
    inputs = [normal(seed, 2, 600, 8).astype(jnp.bfloat16) for seed in range(3)]

    def with_gradients(attention):
        out, pull = jax.vjp(attention, *inputs)
        return out, *pull(normal(3, *out.shape).astype(jnp.bfloat16))

    chunks, whole = quick_jit(
        lambda: tuple(map(with_gradients, (attend_in_chunks, attend_at_once)))
    )()
    for found, expected in zip(chunks, whole, strict=True):
        assert found.dtype == expected.dtype == jnp.bfloat16
        found, expected = (np.asarray(x, np.float32) for x in (found, expected))
        # bfloat16 has eight significant bits.
        np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("kind", [kind for kind in ATTENTIONS if kind != "none"])
def test_attention_depends_on_the_decoder_feature(kind):
    skip, gate = normal(0, 1, 8, 8, 4), normal(1, 1, 8, 8, 4)
    module = Attention(kind, norm="none")
    variables = module.init(jax.random.key(0), skip, gate, train=False)
    out = module.apply(variables, skip, gate, train=False)
    other = module.apply(variables, skip, gate + normal(2, 1, 8, 8, 4), train=False)
    assert out.shape == skip.shape
    assert jnp.abs(out - other).max() > 1e-4


# Options


@pytest.mark.parametrize(
    ("attention", "pyramid", "residual", "norm"),
    list(itertools.product(ATTENTIONS, PYRAMIDS, (True, False), NORMS)),
)
def test_every_combination_has_the_right_shapes(attention, pyramid, residual, norm):
    options = dict(attention=attention, pyramid=pyramid, residual=residual, norm=norm, stages=1)
    model = build_model({**SMALL, **options, "widths": (4, 6)}, out_channels=3)
    x = jax.ShapeDtypeStruct((2, 16, 24, 1), jnp.float32)
    (logits, out), variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x), x
    )
    assert logits.shape == (2, 16, 24, 3)
    assert logits.dtype == jnp.float32
    assert out["encoder2"].shape == (2, 8, 12, 6)
    assert out["attention1"].shape == out["decoder1"].shape == (2, 16, 24, 4)
    assert ("batch_stats" in variables) == (norm == "batch")


@pytest.mark.parametrize("options", [{}, dict(norm="batch", chaspp_per_pool=2, stages=1)])
def test_gradients_are_finite_and_reach_every_parameter(options):
    model = build_model({**SMALL, "dropout": 0.3, **options})
    x, label = normal(0, 2, 16, 16, 1), normal(1, 2, 16, 16) > 0
    variables = init(model, x)

    def loss(parameters):
        (logits, _), _ = model.apply(
            {**variables, "params": parameters},
            x,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        return dice_ce(logits, label)

    gradients = quick_jit(jax.grad(loss))(variables["params"])
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert jnp.isfinite(gradient).all(), path
        assert jnp.abs(gradient).max() > 0, path


@pytest.mark.parametrize("name", SLICE_NETWORKS)
def test_bfloat16_keeps_float32_parameters_and_logits_and_stays_close(name):
    fields = SMALL if name == "chasppraunet" else dict(name=name, widths=(4, 8), norm="group")
    x = normal(0, 1, 16, 16, 1)
    full = build_model(fields)
    half = build_model(fields, dtype=jnp.bfloat16)
    variables = init(half, x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    logits, out = apply(half, variables, x)
    assert logits.dtype == jnp.float32
    assert out["encoder1"].dtype == jnp.bfloat16
    expected = apply(full, variables, x)[0]
    assert jnp.abs(logits - expected).max() < 0.1 * jnp.abs(expected).max()


@pytest.mark.parametrize("name", SLICE_NETWORKS)
def test_remat_changes_neither_values_nor_gradients(name):
    fields = SMALL if name == "chasppraunet" else dict(name=name, widths=(4, 8), norm="group")
    x = normal(0, 1, 16, 16, 1)
    plain, remat = build_model(fields), build_model(fields, remat=True)
    variables = init(plain, x)
    assert jax.tree.structure(variables) == jax.tree.structure(
        jax.eval_shape(remat.init, jax.random.key(0), x)
    )

    weight = normal(7, 1, 16, 16, 1)

    def loss(model):
        return lambda v: jnp.sum(model.apply(v, x, train=True, rngs=rngs)[0] * weight)

    rngs = {"dropout": jax.random.key(1)}
    values = [quick_jit(jax.value_and_grad(loss(model)))(variables) for model in (plain, remat)]
    for a, b in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3)


def test_dropout_drops_whole_channels_and_only_while_training():
    x = jnp.ones((4, 3, 5, 16))
    layer = SpatialDropout(0.5)
    out = layer.apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    kept = np.asarray(out[:, 0, 0, :])
    np.testing.assert_array_equal(out, np.broadcast_to(kept[:, None, None], out.shape))
    assert set(kept.ravel().tolist()) == {0.0, 2.0}  # 1 / (1 - 0.5)
    np.testing.assert_array_equal(layer.apply({}, x, train=False), x)


def test_the_decoder_has_dropout():
    x = normal(0, 1, 16, 16, 1)
    model = build_model({**SMALL, "widths": (8, 16), "dropout": 0.5})
    variables = init(model, x)
    step = quick_jit(lambda key: model.apply(variables, x, train=True, rngs={"dropout": key})[1])
    dropped = np.asarray((step(jax.random.key(3))["decoder1"] == 0).all((1, 2)))
    assert dropped.any() and not dropped.all()


def test_group_norm_makes_the_network_blind_to_the_rest_of_the_batch():
    model = build_model(SMALL)
    x = normal(0, 3, 16, 16, 1)
    variables = init(model, x)
    together = apply(model, variables, x)[0]
    alone = apply(model, variables, x[1:2])[0]
    np.testing.assert_allclose(together[1:2], alone, atol=1e-4)


# Errors


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(name="chaspraunet"), ["'chaspraunet'", "did you mean 'chasppraunet'", "unet"]),
        (dict(name="unet", width=3), ["width", "did you mean model.widths"]),
        ({**SMALL, "attention": "dotproduct"}, ["model.attention", "'dot_product'", "'gate'"]),
        ({**SMALL, "pyramid": "chasp"}, ["did you mean 'chaspp'"]),
        ({**SMALL, "norm": "layer"}, ["model.norm", "'batch'", "'group'", "'none'"]),
        ({**SMALL, "dropout": 1.0}, ["model.dropout", "below 1"]),
        ({**SMALL, "dropout": "much"}, ["model.dropout"]),
        ({**SMALL, "widths": ()}, ["model.widths"]),
        ({**SMALL, "widths": 8}, ["model.widths"]),
        ({**SMALL, "stages": 0}, ["model.stages"]),
        ({**SMALL, "residual": "no"}, ["model.residual"]),
    ],
)
def test_bad_fields_are_refused_with_one_line(fields, words):
    with pytest.raises(InputError) as error:
        build_model(fields)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", SLICE_NETWORKS)
@pytest.mark.parametrize(("side", "words"), [(2, "smaller than"), (18, "multiples of")])
def test_image_sides_that_do_not_fit_the_stride_are_refused(name, side, words):
    model = build_model(dict(name=name, widths=(2, 2, 2)))
    assert model.stride == 4
    with pytest.raises(InputError, match=words):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, side, 1)))
