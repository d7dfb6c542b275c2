"""VGG, ResNet and DenseNet: published counts and shapes, their blocks, options, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from spinejax.errors import InputError
from spinejax.models import build_model
from spinejax.models.densenet import DenseNet
from spinejax.models.layer_table import count_parameters
from spinejax.models.layers import NORMS, ConvNorm
from spinejax.models.resnet import Block, ResNet
from spinejax.models.vgg import VGG
from tests.support.networks import apply, init, normal, quick_jit, quick_key

LARGE = dict(widths=(64, 128, 256, 512), stem="7x7", shortcut="projection")
VGG_16 = VGG(1000, depths=(2, 2, 3, 3, 3), fc_widths=(4096, 4096))
RESNET_50 = ResNet(1000, depths=(3, 4, 6, 3), block="bottleneck", **LARGE)
DENSENET_121 = DenseNet(1000, depths=(6, 12, 24, 16), growth=32, stem="7x7")

SMALL = {
    "vgg": dict(name="vgg", depths=(1, 2), widths=(4, 6), fc_widths=(8,), dropout=0.0),
    "resnet": dict(name="resnet", depths=(1, 2), widths=(4, 6)),
    "densenet": dict(name="densenet", depths=(2, 1), growth=4),
}
CONNECTED = ("logits", "fc1")
EVERY = pytest.mark.parametrize("name", SMALL)


def traced(model, side, channels):
    """Return the shapes of parameters and intermediates."""
    x = jnp.zeros((1, side, side, channels))
    (logits, out), variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x), x
    )
    assert logits.shape == (1, model.out_channels)
    return variables, out


# Published members


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (VGG(1000, fc_widths=(4096, 4096)), 132_863_336),
        (VGG_16, 138_357_544),
        (ResNet(1000, depths=(2, 2, 2, 2), **LARGE), 11_689_512),
        (RESNET_50, 25_557_032),
        (DENSENET_121, 7_978_856),
    ],
    ids=["vgg-11", "vgg-16", "resnet-18", "resnet-50", "densenet-121"],
)
def test_members_for_photographs_have_their_published_parameters(model, expected):
    assert count_parameters(traced(model, 224, 3)[0]["params"]) == expected


@pytest.mark.parametrize(("n", "millions"), [(3, 0.27), (5, 0.46), (7, 0.66), (9, 0.85)])
def test_resnets_for_small_images_have_the_parameters_of_their_authors_table(n, millions):
    found = count_parameters(traced(ResNet(10, depths=(n, n, n)), 32, 3)[0]["params"])
    assert round(found / 1e6, 2) == millions


def test_resnet_20_is_that_of_its_layers_added_up_by_hand():
    widths, total = (16, 32, 64), 9 * 3 * 16 + 2 * 16
    for c, w in zip((16, *widths), widths, strict=False):
        total += 9 * c * w + 5 * 9 * w * w + 6 * 2 * w  # the shortcut has none
    total += 64 * 10 + 10
    assert count_parameters(traced(ResNet(10), 32, 3)[0]["params"]) == total


def test_densenet_bc_100_12_is_that_of_its_layers_added_up_by_hand():
    c, total = 24, 9 * 3 * 24
    for block in range(3):
        if block:
            total += 2 * c + c * (c // 2)
            c //= 2
        for _ in range(16):
            total += 2 * c + c * 48 + 2 * 48 + 9 * 48 * 12
            c += 12
    total += 2 * c + c * 10 + 10
    found = count_parameters(traced(DenseNet(10), 32, 3)[0]["params"])
    assert found == total
    assert round(found / 1e6, 1) == 0.8  # as its authors print


@pytest.mark.parametrize(
    ("model", "stages"),
    [
        (VGG_16, [(112, 64), (56, 128), (28, 256), (14, 512), (7, 512)]),
        (RESNET_50, [(56, 256), (28, 512), (14, 1024), (7, 2048)]),
        (DENSENET_121, [(56, 256), (28, 512), (14, 1024), (7, 1024)]),
    ],
    ids=["vgg-16", "resnet-50", "densenet-121"],
)
def test_members_for_photographs_have_their_published_shapes(model, stages):
    _, out = traced(model, 224, 3)
    for index, (side, channels) in enumerate(stages, 1):
        assert out[f"stage{index}"].shape == (1, side, side, channels)


@pytest.mark.parametrize(
    ("name", "stages", "parameters"),
    [
        ("vgg", [(16, 64), (8, 128), (4, 256), (2, 512), (1, 512)], 9_745_666),
        ("resnet", [(32, 16), (16, 32), (8, 64)], 268_914),
        ("densenet", [(32, 216), (16, 300), (8, 342)], 765_986),
    ],
)
def test_default_members_take_patches_of_32_pixels(name, stages, parameters):
    variables, out = traced(build_model(dict(name=name), out_channels=2), 32, 1)
    assert count_parameters(variables["params"]) == parameters
    for index, (side, channels) in enumerate(stages, 1):
        assert out[f"stage{index}"].shape == (1, side, side, channels)


@pytest.mark.parametrize(("name", "side"), [("vgg", 75), ("resnet", 17), ("densenet", 21)])
def test_other_patch_sizes_are_taken(name, side):
    traced(build_model(dict(name=name), out_channels=2), side, 1)


# Blocks


def test_a_strided_convolution_is_centred_on_every_second_pixel():
    x, kernel = normal(0, 1, 7, 8, 3), normal(1, 3, 3, 3, 2)
    layer = ConvNorm(2, norm="none", activate=False, stride=2)
    variables = {"params": {"conv": {"kernel": kernel, "bias": jnp.zeros(2)}}}
    found = quick_jit(lambda x: layer.apply(variables, x, train=False))(x)[0]
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)))
    for out in range(2):
        full = signal.correlate(padded, kernel[..., out], mode="valid", method="direct")[..., 0]
        np.testing.assert_allclose(found[..., out], full[::2, ::2], atol=1e-4)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_what_a_residual_block_adds_is_its_shortcut(kind, shortcut):
    block = Block(6, 2, kind, shortcut, norm="batch")
    x = jnp.abs(normal(0, 2, 7, 8, 4))
    variables = quick_jit(lambda x: block.init(quick_key(0), x, False))(x)
    last = "conv2" if kind == "basic" else "conv3"
    variables["params"][last]["norm"]["batch"]["scale"] *= 0  # nothing but the shortcut is left
    found = quick_jit(lambda v, x: block.apply(v, x, False))(variables, x)
    channels = 6 if kind == "basic" else 24
    assert found.shape == (2, 4, 4, channels)
    assert ("shortcut" in variables["params"]) == (shortcut == "projection")
    pixels = x[:, ::2, ::2]
    if shortcut == "pad":
        expected = np.pad(pixels, ((0, 0), (0, 0), (0, 0), (0, channels - 4)))
    else:
        kernel = variables["params"]["shortcut"]["conv"]["kernel"][0, 0]
        expected = np.maximum(pixels @ kernel / np.sqrt(1 + 1e-5), 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_dense_block_keeps_its_input_and_adds_growth_channels_for_each_layer():
    model = build_model({**SMALL["densenet"], "depths": (3, 1)}, out_channels=2)
    x = normal(0, 2, 8, 8, 1)
    _, out = apply(model, init(model, x), x)
    assert out["stage1"].shape == (2, 8, 8, 8 + 3 * 4)
    assert out["stage2"].shape == (2, 4, 4, 10 + 4)
    np.testing.assert_array_equal(out["stage1"][..., :8], out["stem"])


# Options


@EVERY
@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_has_the_right_variables(name, norm):
    model = build_model({**SMALL[name], "norm": norm}, out_channels=3)
    variables, _ = traced(model, 16, 2)
    assert ("batch_stats" in variables) == (norm == "batch")
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(variables["params"])
    ]
    # Convolutions have a bias only where no norm takes it away.
    biases = [
        path
        for path in paths
        if path.endswith("bias") and "norm" not in path and path.split("/")[0] not in CONNECTED
    ]
    assert bool(biases) == (norm == "none")


def train_loss(model, x):
    labels = jnp.arange(len(x)) % 2

    def loss(parameters, variables):
        (logits, _), updated = model.apply(
            {**variables, "params": parameters},
            x,
            train=True,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
        )
        return -jax.nn.log_softmax(logits)[jnp.arange(len(x)), labels].mean(), updated

    return lambda variables: jax.value_and_grad(loss, has_aux=True)(variables["params"], variables)


@EVERY
def test_training_reaches_every_parameter_and_remat_changes_nothing(name):
    fields = {**SMALL[name], "norm": "batch"}
    x = normal(0, 4, 16, 16, 1)
    plain, remat = (build_model(fields, out_channels=2, remat=remat) for remat in (False, True))
    variables = init(plain, x)
    assert jax.tree.structure(variables) == jax.tree.structure(
        jax.eval_shape(remat.init, jax.random.key(0), x)
    )
    results = [quick_jit(train_loss(model, x))(variables) for model in (plain, remat)]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3)
    (_, updated), gradients = results[0]
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0, path
    before, after = (jax.tree.leaves(v["batch_stats"]) for v in (variables, updated))
    assert all(jnp.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True))


@EVERY
def test_batch_norm_over_two_devices_is_that_of_the_whole_batch(name):
    fields = {**SMALL[name], "norm": "batch"}
    x = normal(0, 4, 16, 16, 1)
    whole = build_model(fields, out_channels=2)
    shared = build_model(fields, out_channels=2, axis_name="data")
    variables = init(whole, x)

    def run(model):
        return lambda x: model.apply(
            variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )

    (expected, _), updated = quick_jit(run(whole))(x)
    halves = quick_jit(jax.vmap(run(shared), axis_name="data"))(x.reshape(2, 2, 16, 16, 1))
    (found, _), synchronised = halves
    np.testing.assert_allclose(found.reshape(4, 2), expected, atol=1e-4)
    for a, b in zip(*map(jax.tree.leaves, (synchronised, updated)), strict=True):
        np.testing.assert_allclose(a[0], b, atol=1e-5)
        np.testing.assert_allclose(a[1], b, atol=1e-5)


@pytest.mark.parametrize("name", ["vgg", "densenet"])
def test_dropout_is_active_only_while_training(name):
    model = build_model({**SMALL[name], "dropout": 0.5, "norm": "none"}, out_channels=2)
    x = normal(0, 2, 16, 16, 1)
    variables = init(model, x)
    train = quick_jit(
        lambda seed: model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)})
    )
    first, again, other = (train(seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 0
    plain = build_model({**SMALL[name], "dropout": 0.0, "norm": "none"}, out_channels=2)
    np.testing.assert_array_equal(apply(model, variables, x)[0], apply(plain, variables, x)[0])


@EVERY
def test_bfloat16_keeps_float32_parameters_and_logits_and_stays_close(name):
    fields = {**SMALL[name], "norm": "group"}
    full, half = (build_model(fields, out_channels=2, dtype=d) for d in ("float32", jnp.bfloat16))
    x = normal(0, 2, 16, 16, 1)
    variables = init(half, x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    logits, out = apply(half, variables, x)
    assert logits.dtype == jnp.float32
    assert out["stage1"].dtype == jnp.bfloat16
    expected = apply(full, variables, x)[0]
    assert jnp.abs(logits - expected).max() < 0.1 * jnp.abs(expected).max()


# Errors


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(name="vgg", depths=(1, 1)), ["model.depths", "5 stages", "model.widths"]),
        (dict(name="resnet", widths=(4,)), ["model.depths", "1 stages", "model.widths"]),
        (dict(name="resnet", block="basis"), ["model.block", "did you mean 'basic'"]),
        (dict(name="resnet", shortcut="none"), ["model.shortcut", "'pad'", "'projection'"]),
        (dict(name="densenet", stem="5x5"), ["model.stem", "'3x3'", "'7x7'"]),
        (dict(name="densenet", norm=["batch"]), ["model.norm", "'batch'"]),
        (dict(name="densenet", growth=0), ["model.growth", "from 1 to"]),
        (dict(name="resnet", dropout=0.5), ["no field model.dropout"]),
    ],
)
def test_bad_fields_are_refused_with_one_line(fields, words):
    with pytest.raises(InputError) as error:
        build_model(fields, out_channels=2)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("fields", "least"),
    [
        (dict(name="vgg"), 32),
        (dict(name="densenet"), 4),
        (dict(name="densenet", stem="7x7"), 16),
        (dict(name="resnet"), 1),
        (dict(name="resnet", stem="7x7"), 1),
    ],
)
def test_the_smallest_patch_is_taken_and_a_smaller_one_refused(fields, least):
    model = build_model(fields, out_channels=2)
    traced(model, least, 1)
    if least > 1:
        with pytest.raises(InputError, match=f"needs {least} x {least}; .*data.patches.size"):
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 40, least - 1, 1)))
