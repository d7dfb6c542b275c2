"""3D MRU-Net: its size, what each view sees, switches of the paper's tables, errors, config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinejax import models, schema
from spinejax.cli import main
from spinejax.configs import mrunet
from spinejax.errors import InputError
from spinejax.labels import NUM_CLASSES
from spinejax.models import build_model
from spinejax.models.layer_table import count_parameters
from spinejax.models.layers import NORMS
from spinejax.models.mobilenet import MobileNetEncoder
from spinejax.models.mrunet import MRUNet, join_slices, slices_of
from spinejax.volume import PLANES
from tests.support.cubes import check_gradients, shapes
from tests.support.networks import apply, init, normal, quick_jit

# Strides 2 and 4, maps of 8 channels.
SMALL = dict(
    name="mrunet",
    width_multiplier=0.25,
    widths=(16, 32),
    depths=(1, 1),
    expansions=(1, 2),
    strides=(1, 2),
    decoder_widths=(8, 4),
    dropout=0.0,
)


def small(**fields):
    return build_model({**SMALL, **fields}, out_channels=3)


# Size


def test_count_is_that_of_its_layers_added_up_by_hand():
    widths, c, encoder = (8, 8, 16, 24, 32), 16, 9 * 16 + 2 * 16
    rows = zip(widths, (1, 2, 3, 4, 3), (1, 6, 6, 6, 6), strict=True)
    for width, depth, expansion in rows:
        for _ in range(depth):
            inner = expansion * c
            encoder += (expansion > 1) * (c * inner + 2 * inner)
            encoder += 9 * inner + 2 * inner + inner * width + 2 * width
            c = width
        encoder += 2 * (9 * width * width + 2 * width)  # paper A's residual block
    decoder, c = 0, 3 * 32
    for width, skip in zip((88, 48, 24, 16), (3 * 16, 3 * 8, 3 * 8, 1), strict=True):
        decoder += 8 * c * width + width  # up
        decoder += 27 * (width + skip) * width + 27 * width * width + 2 * 2 * width
        c = width
    total = 3 * encoder + decoder + c * NUM_CLASSES + NUM_CLASSES
    model = build_model(mrunet.model(), out_channels=NUM_CLASSES)
    found = count_parameters(shapes(model, 32, 32, 32)[0]["params"])
    assert found == total == 1_227_307
    assert 1_180_000 <= found <= 1_310_000
    # Paper A prints 1,245,155, without saying for which of its two networks.
    assert abs(found / 1_245_155 - 1) < 0.05


def test_classes_are_background_and_every_vertebra():
    assert MRUNet().out_channels == NUM_CLASSES == 27


def test_share_views_has_one_encoder_instead_of_three():
    apart = shapes(MRUNet(), 32, 32, 32)[0]["params"]
    shared = shapes(MRUNet(share_views=True), 32, 32, 32)[0]["params"]
    assert set(apart) - set(shared) == set(PLANES)
    assert set(shared) - set(apart) == {"encoder"}
    one = count_parameters(shared["encoder"])
    assert [count_parameters(apart[view]) for view in PLANES] == [one] * 3
    assert count_parameters(apart) - count_parameters(shared) == 2 * one


# What each view sees


@pytest.mark.parametrize("axis", range(3))
def test_slices_along_an_axis_and_back(axis):
    x = normal(0, 2, 4, 6, 8, 3)
    slices = slices_of(x, axis)
    np.testing.assert_array_equal(slices[:, 1], jnp.take(x, 1, axis=axis + 1))
    np.testing.assert_array_equal(join_slices(slices, axis, 1), x)


@pytest.mark.parametrize("axis", range(3))
def test_neighbouring_slices_are_averaged_to_the_grid_of_the_maps(axis):
    maps = normal(0, 1, 4, 3, 5, 2)  # 4 slices with maps of 3 x 5
    joined = join_slices(maps, axis, 2)
    assert jnp.moveaxis(joined, axis + 1, 1).shape == (1, 2, 3, 5, 2)
    found = jnp.take(joined, 1, axis=axis + 1)
    np.testing.assert_allclose(found, maps[:, 2:].mean(1), atol=1e-6)


@pytest.mark.parametrize("share_views", [False, True])
def test_each_view_encodes_the_slices_of_its_own_axis(share_views):
    model = small(norm="none", share_views=share_views)
    x = normal(0, 1, 8, 12, 4, 1)
    variables = init(model, x)
    joined = apply(model, variables, x)[1]["encoder3"]  # stride 4
    assert joined.shape == (1, 2, 3, 1, 3 * 8)
    encoder = MobileNetEncoder(
        **{k: v for k, v in SMALL.items() if k not in ("name", "decoder_widths", "dropout")},
        stem_width=32,
        residual=True,
        norm="none",
        axis_name=None,
        dtype=jnp.float32,
        remat=False,
    )
    for position, (view, axis) in enumerate(PLANES.items()):
        weights = variables["params"]["encoder" if share_views else view]
        slices = jnp.moveaxis(x[0], axis, 0)  # as a batch of images, the first four
        maps = encoder.apply({"params": weights}, slices[:4], train=False)[-1]
        found = jnp.take(joined[0], 0, axis=axis)[..., 8 * position : 8 * (position + 1)]
        np.testing.assert_allclose(found, maps.mean(0), atol=1e-4)


def test_shared_views_see_an_exchange_of_axes_as_an_exchange_of_views():
    model = small(norm="none", share_views=True)
    x = normal(0, 1, 8, 8, 8, 1)
    variables = init(model, x)
    run = quick_jit(lambda x: model.apply(variables, x)[1]["encoder2"])
    plain = run(x)
    turned = run(x.swapaxes(1, 2))
    n = plain.shape[-1] // 3
    # Sagittal (y, z) slices of the one are coronal (x, z) slices of the other.
    np.testing.assert_allclose(turned[..., n : 2 * n], plain[..., :n].swapaxes(1, 2), atol=1e-5)
    np.testing.assert_allclose(turned[..., :n], plain[..., n : 2 * n].swapaxes(1, 2), atol=1e-5)


def test_group_norm_looks_at_a_whole_stack_of_slices():
    # Were each slice normalised by itself, a faint one would become as bright as the others.
    model = small(share_views=True)
    x = normal(0, 1, 8, 8, 8, 1)
    variables = init(model, x)
    run = quick_jit(lambda x: model.apply(variables, x)[1]["encoder2"])
    one = x.at[:, :2].multiply(1e-3)
    n = run(x).shape[-1] // 3
    faint, bright = run(one)[:, 0, ..., :n], run(x)[:, 0, ..., :n]
    assert faint.std() < 0.5 * bright.std()


def test_separate_views_find_classes_in_each_slice_by_itself():
    model = small(norm="none", views="separate", share_views=True)
    x = normal(0, 1, 8, 4, 8, 1)
    variables = init(model, x)
    run = quick_jit(lambda x: model.apply(variables, x)[1])
    plain = run(x)
    for view, axis in PLANES.items():
        logits = plain[f"{view}_logits"]
        assert logits.shape == (1, 8, 4, 8, 3)
        changed = x.at[(0, *[slice(None)] * axis, 2)].add(1.0)
        same = np.isclose(run(changed)[f"{view}_logits"], logits, atol=1e-6)
        others = tuple(at for at in range(5) if at != axis + 1)
        np.testing.assert_array_equal(same.all(others), np.arange(x.shape[axis + 1]) != 2)


def test_separate_views_learn_from_their_own_loss_only():
    model = small(norm="none", views="separate")
    x = normal(0, 1, 4, 4, 4, 1)
    variables = init(model, x)
    parts = [f"{view}_logits" for view in PLANES]

    @quick_jit
    @jax.grad
    def gradient(parameters, weights):
        logits, out = model.apply({"params": parameters}, x)
        squares = [jnp.sum(part**2) for part in (logits, *(out[name] for name in parts))]
        return jnp.stack(squares) @ weights

    def reached(at):
        found = gradient(variables["params"], jnp.eye(4)[at])
        return {name for name, tree in found.items() if any(map(jnp.any, jax.tree.leaves(tree)))}

    assert reached(0) == set(variables["params"]) - {*PLANES, *parts}
    for at, view in enumerate(PLANES, 1):
        assert reached(at) == {view, f"{view}_logits"}


# Options


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("residual", [True, False])
def test_shapes_are_those_of_the_cube_at_each_stride(norm, residual):
    model = MRUNet(norm=norm, residual=residual)
    variables, out = shapes(model, 32, 48, 64, channels=2, batch=2)
    assert out == {
        "encoder2": (16, 24, 32, 3 * 8),
        "encoder3": (8, 12, 16, 3 * 8),
        "encoder4": (4, 6, 8, 3 * 16),
        "encoder5": (2, 3, 4, 3 * 32),
        "decoder4": (4, 6, 8, 88),
        "decoder3": (8, 12, 16, 48),
        "decoder2": (16, 24, 32, 24),
        "decoder1": (32, 48, 64, 16),
    }
    assert ("batch_stats" in variables) == (norm == "batch")
    assert ("residual" in variables["params"]["axial"]["stage1"]) == residual


@pytest.mark.parametrize("options", [{}, dict(norm="batch", dropout=0.3, share_views=True)])
def test_gradients_are_finite_and_reach_every_parameter(options):
    check_gradients(small(**options), 8)


def test_dropout_is_active_only_in_training():
    x = normal(0, 1, 4, 4, 4, 1)
    model = small(dropout=0.5, norm="none", share_views=True)
    variables = init(model, x)

    @quick_jit
    def both(key):
        train = model.apply(variables, x, train=True, rngs={"dropout": key})[1]["decoder2"]
        return train, model.apply(variables, x)[1]["decoder2"]

    train, silent = [
        np.stack([(maps == 0).all((0, 1, 2, 3)) for maps in group])
        for group in zip(*[both(jax.random.key(i)) for i in range(4)], strict=True)
    ]
    assert (train & ~silent).any() and not train.all()
    assert (silent == silent[0]).all()


def test_remat_and_bfloat16_keep_the_parameters():
    x = jnp.zeros((1, 8, 8, 8, 1))
    plain = jax.eval_shape(small().init, jax.random.key(0), x)
    for options in (dict(remat=True), dict(dtype=jnp.bfloat16)):
        model = build_model(SMALL, out_channels=3, **options)
        assert jax.eval_shape(model.init, jax.random.key(0), x) == plain
        assert jax.eval_shape(model.apply, plain, x)[0].dtype == jnp.float32


def test_remat_changes_no_value():
    x = normal(0, 1, 4, 4, 4, 1)
    plain, remat = (build_model({**SMALL, "share_views": True}, remat=r) for r in (False, True))
    variables = init(plain, x)
    found, expected = (apply(model, variables, x)[0] for model in (remat, plain))
    np.testing.assert_allclose(found, expected, atol=1e-5)


# Errors


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(views="apart"), ["model.views", "'joint'", "'separate'"]),
        (dict(share_views=1), ["model.share_views", "true or false"]),
        (dict(width_multiplier=-1.0), ["model.width_multiplier", "above 0"]),
        (dict(decoder_widths=(8, 0)), ["model.decoder_widths"]),
        (dict(depths=(1,)), ["model.depths", "2 stages"]),
        (dict(dropout=1.0), ["model.dropout", "below 1"]),
        (dict(norm="layer"), ["model.norm", "'group'"]),
        (dict(share_view=True), ["share_view", "did you mean model.share_views"]),
    ],
)
def test_bad_fields_are_refused_with_one_line(fields, words):
    with pytest.raises(InputError) as error:
        small(**fields)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(decoder_widths=(8, 4, 2)), "2 decoder widths"),
        (dict(strides=(2, 2), decoder_widths=(8, 4, 2)), "first stage must have stride 1"),
        (dict(strides=(1, 4)), "each a whole number from 1 to 2"),
    ],
)
def test_stages_that_do_not_fit_the_decoder_are_refused(fields, words):
    with pytest.raises(InputError, match=words) as error:
        shapes(small(**fields), 16, 16, 16)
    assert "\n" not in str(error.value)


# Config


def test_config_has_the_defaults_and_its_debug_cube_fits():
    config = mrunet.get_config()
    schema.check(config)
    assert config.task == "vertebra_recognition"
    assert dict(config.model) == {name: f.default for name, f in models.fields("mrunet").items()}
    config = mrunet.get_config("debug")
    schema.check(config)
    shapes(build_model(config.model, out_channels=NUM_CLASSES), *config.data.cube.size)


@pytest.mark.parametrize(
    ("table", "augmented", "residual", "dropout"),
    [(4, False, False, 0), (6, True, False, 0), (7, True, True, 0), (8, True, True, 0.3)],
)
def test_each_table_of_the_paper_is_one_config(table, augmented, residual, dropout):
    config = mrunet.get_config(f"table={table}")
    assert config.augment.geometry == config.augment.intensity == augmented
    assert (config.model.residual, config.model.dropout) == (residual, dropout)


def test_other_tables_are_refused():
    with pytest.raises(ValueError, match="table=5 is unknown; choose from 4, 6, 7, 8"):
        mrunet.get_config("table=5")


def test_summarize_prints_layers_that_add_up_to_the_total(capsys):
    assert main(["summarize", f"--config={mrunet.__file__}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["parameters: 1,227,307", "GFLOPs: 50.51"]
    counts = [int(line.split()[-1].replace(",", "")) for line in lines[2:-2]]
    assert sum(counts) == 1_227_307
    assert "(96, 48, 48, 16)" in lines[2]
