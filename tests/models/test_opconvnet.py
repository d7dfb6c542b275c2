"""OP-convNet: table 1, equality with a plain forward pass, initialisation, dropout, errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal, stats

from spinejax.errors import InputError
from spinejax.models import build_model
from spinejax.models.layer_table import count_parameters
from spinejax.models.layers import MaxPool, ProductConv, max_pool
from spinejax.models.opconvnet import OPConvNet
from tests.support.networks import apply, init, normal, quick_jit

SMALL = dict(name="opconvnet", widths=(5, 6, 7), fc_widths=(9, 8))
# Fields and side of the patch: no two alike in padding, strides and remainders.
VARIANTS = {
    "as_published": (dict(widths=(64, 128, 256), fc_widths=(1024, 256)), 32),
    "larger_patch_linear": (dict(fc_relu=False), 45),
    "same_with_stride": (
        dict(
            paddings=("same", "same", "valid"),
            strides=(2, 3, 1),
            kernels=(4, 3, 2),
            pools=(3, 2, 1),
        ),
        32,
    ),
    "one_stage": (
        dict(
            widths=(4,),
            kernels=(5,),
            strides=(3,),
            paddings=("valid",),
            pools=(2,),
            pool_strides=(2,),
            fc_widths=(6,),
        ),
        17,
    ),
    "no_pooling": (dict(pools=(1, 1, 1), pool_strides=(1, 1, 1)), 12),
}


def small(**fields):
    return build_model({**SMALL, **fields}, out_channels=2)


# Table 1


def test_parameters_are_those_of_table_1():
    model = build_model(dict(name="opconvnet"), out_channels=2)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    assert set(variables) == {"params"}
    parameters = variables["params"]
    assert {name: count_parameters(layer) for name, layer in parameters.items()} == {
        "conv_1": 640,
        "conv_2": 73_856,
        "conv_3": 295_168,
        "fc_1": 1_049_600,
        "fc_2": 262_400,
        "fc_3": 514,
    }
    assert count_parameters(parameters) == 1_682_178
    assert parameters["conv_2"]["kernel"].shape == (3, 3, 64, 128)
    assert parameters["fc_1"]["kernel"].shape == (1024, 1024)


def test_activation_sizes_are_those_of_table_1():
    assert OPConvNet().activation_sizes(32) == (15, 7, 5, 3, 3, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_activation_sizes_are_those_of_the_activations(variant):
    fields, side = VARIANTS[variant]
    model = small(**fields)
    sizes = model.activation_sizes(side)
    _, out = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x)[0], jnp.zeros((2, side, side, 1))
    )
    for index, width in enumerate(model.widths):
        pooled = sizes[2 * index + 1]
        assert out[f"maxpool_{index + 1}"].shape == (2, pooled, pooled, width)


# Against scipy


def convolve(image, kernel, stride, padding):
    """Convolve `(h, w, c)` with `(k, k, c, out)`, in the way of the textbook."""
    side = kernel.shape[0]
    if padding == "same":
        for axis in (0, 1):
            n = image.shape[axis]
            lacking = max((-(-n // stride) - 1) * stride + side - n, 0)
            widths = [(0, 0)] * 3
            widths[axis] = (lacking // 2, lacking - lacking // 2)
            image = np.pad(image, widths)
    planes = [
        signal.correlate(image, kernel[..., out], mode="valid", method="direct")[..., 0]
        for out in range(kernel.shape[-1])
    ]
    return np.stack(planes, axis=-1)[::stride, ::stride]


def pool(image, size, stride):
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))
    return windows.max(axis=(-2, -1))[::stride, ::stride]


def forward(model, parameters, patch):
    """Logits and pooled activations of one patch `(n, n, 1)`, in float64."""
    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    x, pooled = np.asarray(patch, np.float64), []
    for index in range(len(model.widths)):
        layer = parameters[f"conv_{index + 1}"]
        x = convolve(x, layer["kernel"], model.strides[index], model.paddings[index])
        x = pool(relu(x + layer["bias"]), model.pools[index], model.pool_strides[index])
        pooled.append(x)
    x = x.ravel()
    for index in range(len(model.fc_widths) + 1):
        layer = parameters[f"fc_{index + 1}"]
        x = x @ layer["kernel"] + layer["bias"]
        if index < len(model.fc_widths) and model.fc_relu:
            x = relu(x)
    return x, pooled


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_pass_equals_scipys(variant):
    fields, side = VARIANTS[variant]
    model = small(**fields)
    x = normal(0, 2, side, side, 1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    rng = np.random.default_rng(0)
    parameters = jax.tree.map(  # biases, too
        lambda leaf: rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape), shapes
    )
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), parameters)
    logits, out = apply(model, {"params": single}, x)
    assert logits.shape == (2, 2) and logits.dtype == jnp.float32
    for index, patch in enumerate(x):
        expected, pooled = forward(model, parameters, patch)
        np.testing.assert_allclose(logits[index], expected, atol=1e-4, rtol=1e-4)
        for stage, activations in enumerate(pooled, 1):
            found = out[f"maxpool_{stage}"][index]
            np.testing.assert_allclose(found, activations, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "sides"),
    [(3, 1, "VALID", (7, 8)), (3, 2, "SAME", (8, 9)), (2, 3, "VALID", (11, 9)), (3, 2, 1, (2, 1))],
)
@pytest.mark.usefixtures("form")
def test_product_and_its_gradients_equal_the_convolution(kernel, stride, padding, sides):
    product = ProductConv(
        5, kernel, stride, padding.lower() if isinstance(padding, str) else padding
    )
    reference = nn.Conv(5, (kernel, kernel), stride, padding=padding)
    variables = {"params": {"kernel": normal(1, kernel, kernel, 4, 5), "bias": normal(2, 5)}}

    def both(model):
        def total(variables, x):
            y = model.apply(variables, x)
            return jnp.sum(y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)), y

        return quick_jit(jax.grad(total, (0, 1), has_aux=True))(variables, normal(0, 2, *sides, 4))

    for a, b in zip(*map(jax.tree.leaves, map(both, (product, reference))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


# Pooling


@pytest.mark.parametrize(
    ("sides", "size", "stride"),
    [
        ((15, 15), 3, 2),
        ((5, 5), 3, 1),
        ((3, 3), 2, 1),
        ((7, 10), 2, 2),
        ((11, 9), 3, 3),
        ((9, 8), 2, 3),
        ((4, 6), 4, 1),
        ((5, 4), 1, 1),
        ((5, 4), 1, 2),
    ],
)
def test_max_pool_and_its_gradient_equal_flax(sides, size, stride):
    def both(pool):
        def total(x):
            y = pool(x)
            return jnp.sum(y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)), y

        return quick_jit(jax.grad(total, has_aux=True))

    ours = both(lambda x: max_pool(x, size, stride))
    theirs = both(lambda x: nn.max_pool(x, (size, size), (stride, stride)))
    x = normal(0, 2, *sides, 3)
    for image in (x, jnp.round(x)):  # rounded: of many equal maxima the same one has to be taken
        (gradient, values), (their_gradient, their_values) = ours(image), theirs(image)
        np.testing.assert_array_equal(values, their_values)
        np.testing.assert_allclose(gradient, their_gradient, atol=1e-6)


def test_padding_of_a_pool_is_never_the_maximum():
    x = normal(0, 2, 6, 7, 3) - 10
    expected = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    np.testing.assert_array_equal(MaxPool(3, 2, padding=1).apply({}, x), expected)


# Initialisation


@pytest.mark.parametrize("init_std", [0.0, 0.01])
def test_weights_are_drawn_from_a_gaussian_and_biases_are_zero(init_std):
    model = small(init_std=init_std, widths=(16, 24, 32), fc_widths=(64, 48))
    parameters = init(model, jnp.zeros((1, 32, 32, 1)))["params"]
    for name, layer in parameters.items():
        assert not layer["bias"].any(), name
        weights = np.asarray(layer["kernel"])
        std = init_std or np.sqrt(2 / np.prod(weights.shape[:-1]))
        # Not truncated, of the right mean and width: seeds are fixed, 1 % is no lottery.
        assert stats.kstest(weights.ravel() / std, "norm").pvalue > 0.01, name


# Dropout


def hidden(model, variables, x, **kwargs):
    """Return logits and what follows each dropout."""
    run = quick_jit(
        lambda v, x, rngs: model.apply(
            v, x, train=bool(kwargs), rngs=rngs, capture_intermediates=True, mutable="intermediates"
        )
    )
    (logits, _), state = run(variables, x, kwargs.get("rngs"))
    layers = state["intermediates"]
    return logits, [layers[f"dropout_{index}"]["__call__"][0] for index in (1, 2)]


def test_dropout_halves_the_hidden_units_and_only_while_training():
    # Without ReLU, lest units be zero by it.
    model = small(fc_widths=(400, 300), fc_relu=False, dropout=0.5)
    x = normal(0, 3, 32, 32, 1)
    variables = init(model, x)
    plain, (full, _) = hidden(model, variables, x)
    np.testing.assert_array_equal(plain, apply(model, variables, x)[0])
    first, dropped = hidden(model, variables, x, rngs={"dropout": jax.random.key(0)})
    again, _ = hidden(model, variables, x, rngs={"dropout": jax.random.key(0)})
    other, _ = hidden(model, variables, x, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 0
    for units in dropped:
        assert 0.4 < float((units == 0).mean()) < 0.6
    kept = dropped[0] != 0
    np.testing.assert_allclose(dropped[0][kept], 2 * full[kept], rtol=1e-5)


def test_training_without_dropout_needs_no_key():
    model = small(dropout=0.0)
    x = normal(0, 1, 32, 32, 1)
    variables = init(model, x)
    logits = quick_jit(lambda v, x: model.apply(v, x, train=True)[0])(variables, x)
    np.testing.assert_allclose(logits, apply(model, variables, x)[0], atol=1e-5)


# Many networks at once, memory, precision


def loss(model, x):
    labels = jnp.arange(len(x)) % 2

    def value(parameters, key):
        logits, _ = model.apply({"params": parameters}, x, train=True, rngs={"dropout": key})
        return -jax.nn.log_softmax(logits)[jnp.arange(len(x)), labels].mean()

    return jax.value_and_grad(value)


def test_networks_trained_at_once_get_the_values_and_gradients_of_each_alone():
    model = small()
    x = normal(0, 4, 32, 32, 1)
    keys = jax.random.split(jax.random.key(0), 3)
    parameters = quick_jit(jax.vmap(lambda key: model.init(key, x)["params"]))(keys)
    together = quick_jit(jax.vmap(loss(model, x)))(parameters, keys)
    alone = quick_jit(loss(model, x))
    for member, key in enumerate(keys):
        expected = alone(jax.tree.map(lambda leaf: leaf[member], parameters), key)  # noqa: B023
        found = jax.tree.map(lambda leaf: leaf[member], together)  # noqa: B023
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


def test_remat_changes_neither_parameters_nor_values_nor_gradients():
    plain = small()
    remat = build_model(SMALL, out_channels=2, remat=True)
    x, key = normal(0, 2, 32, 32, 1), jax.random.key(1)
    parameters = init(plain, x)["params"]
    shapes = jax.eval_shape(remat.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, parameters) == jax.tree.map(jnp.shape, shapes)
    values = [quick_jit(loss(model, x))(parameters, key) for model in (plain, remat)]
    for a, b in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


def test_bfloat16_keeps_float32_parameters_and_logits_and_stays_close():
    half = build_model(SMALL, out_channels=2, dtype=jnp.bfloat16)
    x = normal(0, 2, 32, 32, 1)
    variables = init(half, x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    logits, out = apply(half, variables, x)
    assert logits.dtype == jnp.float32
    assert out["maxpool_1"].dtype == jnp.bfloat16
    expected = apply(small(), variables, x)[0]
    assert jnp.abs(logits - expected).max() < 0.1 * jnp.abs(expected).max()


# Errors


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(widths=(4, 8)), ["model.kernels", "2 stages", "model.widths = (4, 8)"]),
        (dict(pool_strides=[2, 1]), ["model.pool_strides", "3 stages"]),
        (dict(paddings=("valid",)), ["model.paddings", "3 stages"]),
        (dict(paddings=("valid", "valid", "sane")), ["model.paddings", "did you mean 'same'"]),
        (dict(paddings="same"), ["model.paddings", "'valid'"]),
        (dict(paddings=(1, 1, 1)), ["model.paddings", "'valid'"]),
        (dict(strides=(2, 0, 1)), ["model.strides", "from 1 to"]),
        (dict(kernels=(3, 3, 2.5)), ["model.kernels", "whole"]),
        (dict(fc_widths=()), ["model.fc_widths"]),
        (dict(dropout=1), ["model.dropout", "below 1"]),
        (dict(init_std=-0.1), ["model.init_std", "at least 0"]),
        (dict(fc_relu="no"), ["model.fc_relu", "true or false"]),
    ],
)
def test_bad_fields_are_refused_with_one_line(fields, words):
    with pytest.raises(InputError) as error:
        small(**fields)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("shape", "stage"), [((2, 2), 1), ((7, 32), 2), ((32, 7), 2), ((22, 22), 2), ((23, 23), 3)]
)
def test_a_patch_that_is_too_small_is_refused(shape, stage):
    with pytest.raises(InputError, match="data.patches.size") as error:
        jax.eval_shape(small().init, jax.random.key(0), jnp.zeros((1, *shape, 1)))
    assert "\n" not in str(error.value)
    assert f"stage {stage} " in str(error.value)


def test_the_smallest_patch_is_accepted():
    model = small()
    # Backwards through table 1: 1 <- 2 <- 2 <- 4 <- 6 <- 13 <- 27
    assert model.activation_sizes(27) == (13, 6, 4, 2, 2, 1)
    with pytest.raises(InputError):
        model.activation_sizes(26)
