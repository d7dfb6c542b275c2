"""Losses: closed forms, limits, masks, and the same gradient on one device and on four."""

import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage

from spinejax.errors import InputError
from spinejax.losses import (
    LOSSES,
    ce,
    centre_offsets,
    contour,
    dice,
    dice_ce,
    focal,
    make_loss,
    offset_error,
    tversky,
)
from tests.support.cubes import ways

ZERO = jnp.zeros((2, 4, 4, 1))


def binary(seed=0, b=3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (b, 5, 6, 1)).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(rng.integers(0, 2, (b, 5, 6)).astype(np.uint8))


def classes(seed=0, b=3, k=4):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (b, 5, 6, k)).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(rng.integers(0, k, (b, 5, 6)).astype(np.uint8))


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def test_dice_of_binary_logits_is_the_formula_over_the_whole_batch():
    logits, labels = binary()
    p, t = sigmoid(logits[..., 0]), np.asarray(labels, float)
    expected = 1 - 2 * (p * t).sum() / (p + t).sum()
    assert float(dice(logits, labels)) == pytest.approx(expected, abs=1e-5)


def test_dice_of_classes_is_the_mean_over_those_present():
    logits, labels = classes()
    labels = jnp.where(labels == 3, 0, labels)  # class 3 has no pixel
    p = np.asarray(jax.nn.softmax(logits))
    scores = []
    for c in (1, 2):
        t = np.asarray(labels) == c
        scores.append(2 * (p[..., c] * t).sum() / (p[..., c].sum() + t.sum()))
    assert float(dice(logits, labels)) == pytest.approx(1 - np.mean(scores), abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_certain_and_right_costs_nothing_and_wrong_costs_much(name):
    labels = jnp.zeros((2, 4, 4), jnp.uint8).at[:, :2].set(20)
    sure = jnp.where(labels > 0, 40.0, -40.0)[..., None]
    assert float(LOSSES[name](sure, labels)) == pytest.approx(0, abs=1e-5)
    assert float(LOSSES[name](-sure, labels)) > 0.99


def test_any_positive_label_is_foreground_when_binary():
    logits, labels = binary()
    for loss in LOSSES.values():
        assert float(loss(logits, labels * 28)) == float(loss(logits, labels))


def test_empty_batch_predicted_empty_has_dice_zero():
    assert float(dice(ZERO - 100, jnp.zeros((2, 4, 4), jnp.uint8))) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("k", "expected"), [(1, math.log(2)), (5, math.log(5))])
def test_cross_entropy_of_equal_logits_is_the_log_of_the_classes(k, expected):
    labels = jnp.ones((2, 3, 3), jnp.uint8)
    assert float(ce(jnp.zeros((2, 3, 3, k)), labels)) == pytest.approx(expected, rel=1e-6)


def test_focal_is_cross_entropy_at_gamma_zero_and_optaxs_at_two():
    logits, labels = binary()
    assert float(focal(logits, labels, gamma=0.0)) == pytest.approx(float(ce(logits, labels)))
    theirs = optax.sigmoid_focal_loss(logits[..., 0], labels.astype(jnp.float32), gamma=2.0).mean()
    assert float(focal(logits, labels, gamma=2.0)) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradient_is_finite_where_the_prediction_is_certain(gamma):
    labels = jnp.ones((1, 2, 2), jnp.uint8)
    gradient = jax.grad(lambda x: focal(x, labels, gamma=gamma))(jnp.full((1, 2, 2, 1), 60.0))
    assert jnp.isfinite(gradient).all()


def test_tversky_at_one_half_is_dice_and_small_alpha_punishes_misses():
    logits, labels = binary()
    half = float(tversky(logits, labels, alpha=0.5))
    assert half == pytest.approx(float(dice(logits, labels)), abs=1e-6)
    labels = jnp.zeros((1, 4, 4), jnp.uint8).at[:, :2].set(1)
    missing = jnp.where(jnp.arange(4)[:, None] < 1, 40.0, -40.0) * jnp.ones((1, 4, 4))
    extra = jnp.where(jnp.arange(4)[:, None] < 3, 40.0, -40.0) * jnp.ones((1, 4, 4))
    # 4 of 8 pixels found; 8 of 8 found with 4 false ones.
    dear = 4 / (4 + 0.7 * 4)
    cheap = 8 / (8 + 0.3 * 4)
    assert float(tversky(missing[..., None], labels, alpha=0.3)) == pytest.approx(
        1 - dear, abs=1e-5
    )
    assert float(tversky(extra[..., None], labels, alpha=0.3)) == pytest.approx(1 - cheap, abs=1e-5)


def test_dice_ce_is_the_weighted_sum():
    logits, labels = classes()
    expected = 0.3 * dice(logits, labels) + 2.0 * ce(logits, labels)
    found = dice_ce(logits, labels, dice_weight=0.3, ce_weight=2.0)
    assert float(found) == pytest.approx(float(expected))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("make", [binary, classes])
def test_samples_of_weight_zero_do_not_count(name, make):
    logits, labels = make(b=3)
    padded = jnp.concatenate([logits, logits[:2] * 5 - 3])
    padded_labels = jnp.concatenate([labels, labels[1:]])
    weight = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0])
    found = LOSSES[name](padded, padded_labels, weight=weight)
    assert float(found) == pytest.approx(float(LOSSES[name](logits, labels)), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_no_weight_at_all_gives_finite_values_and_no_gradient(name):
    logits, labels = binary()
    value, gradient = jax.value_and_grad(lambda x: LOSSES[name](x, labels, weight=jnp.zeros(3)))(
        logits
    )
    assert jnp.isfinite(value)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(logits))


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_logits_give_a_float32_loss(name):
    logits, labels = classes()
    loss = LOSSES[name](logits.astype(jnp.bfloat16), labels)
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(float(LOSSES[name](logits, labels)), rel=0.02)


def test_mismatched_shapes_are_a_programming_error():
    with pytest.raises(ValueError, match="must have the shape"):
        ce(jnp.zeros((2, 4, 4, 1)), jnp.zeros((2, 4, 5), jnp.uint8))


def test_make_loss_reads_the_fields_of_its_own_loss_only():
    fields = dict(name="tversky", dice_weight=1.0, ce_weight=1.0, gamma=2.0, alpha=0.7)
    logits, labels = binary()
    found = make_loss(fields)(logits, labels, weight=jnp.ones(3))
    assert float(found) == float(tversky(logits, labels, alpha=0.7))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(name="dicece"), "did you mean 'dice_ce'"),
        (dict(name="dice", gama=1.0), "did you mean loss.gamma"),
        (dict(name="tversky", alpha=1.5), "loss.alpha=1.5"),
        (dict(name="focal", gamma=-1.0), "loss.gamma=-1.0"),
        (dict(), "loss.name=None"),
    ],
)
def test_bad_fields_are_refused(fields, words):
    with pytest.raises(InputError, match=words):
        make_loss(fields)


# The devices must be asked for before JAX starts, hence the process of its own.
FOUR_DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
import jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from spinejax.losses import LOSSES
rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(8, 5, 6, 3)), jnp.float32)
labels = jnp.asarray(rng.integers(0, 3, (8, 5, 6)), jnp.uint8)
weight = jnp.asarray([1, 1, 0, 1, 1, 1, 0, 0], jnp.float32)  # the last device has padding only
mesh = Mesh(np.array(jax.devices()), ("data",))
assert mesh.size == 4
split = lambda a: a.reshape(4, 2, *a.shape[1:])
for name, loss in LOSSES.items():
    for k in (1, 3):
        w = jnp.asarray(rng.normal(size=(3, k)), jnp.float32)
        def whole(w):
            return loss(x @ w, labels, weight=weight)
        def step(w, x, labels, weight):
            value, gradient = jax.value_and_grad(
                lambda w: loss(x @ w, labels, weight=weight, axis_name="data"))(w)
            return value, jax.lax.pmean(gradient, "data")
        expected = jax.value_and_grad(whole)(w)
        pmapped = jax.pmap(step, axis_name="data", in_axes=(None, 0, 0, 0), out_axes=None)(
            w, split(x), split(labels), split(weight))
        sharded = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), *[P("data")] * 3),
            out_specs=(P(), P()), check_vma=False))(w, x, labels, weight)
        for found in (pmapped, sharded):
            for a, b in zip(expected, found, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=f"{name} {k}")
print("equal")
"""


def test_loss_and_mean_gradient_on_four_devices_are_those_of_the_whole_batch():
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", FOUR_DEVICES], capture_output=True, text=True, env=env, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("equal")


def test_the_contour_is_the_dilation_without_the_erosion_of_scipy():
    labels = np.random.default_rng(0).choice([0, 7], (3, 9, 12), p=[0.2, 0.8]).astype(np.uint8)
    labels[2] = 20
    square = (1, 3, 3)
    wide, narrow = (f(labels, square) for f in (ndimage.grey_dilation, ndimage.grey_erosion))
    expected = (wide > 0) & (narrow == 0)
    assert expected[0].any() and not expected[0].all() and not expected[2].any()
    np.testing.assert_array_equal(contour(jnp.asarray(labels)), expected)


def test_offsets_lead_to_the_centre_that_scipy_finds():
    array = np.random.default_rng(0).integers(0, 4, (2, 5, 6, 7)) * 8
    found = np.asarray(centre_offsets(jnp.asarray(array), 4.0)) * 10
    for one, own in zip(found, array, strict=True):
        inside = own > 0
        np.testing.assert_allclose(one[inside], ways(own, [4.0] * 3)[inside], atol=1e-3)


def test_error_is_the_mean_distance_along_an_axis_over_vertebrae():
    array = np.zeros((3, 4, 4, 4), int)
    array[:2, 1:3], array[1, 3] = 5, 6
    right = centre_offsets(jnp.asarray(array), 5.0)
    assert float(offset_error(right, jnp.asarray(array), spacing_mm=5.0)) == 0
    wrong = right + jnp.where(jnp.asarray(array)[..., None] > 0, 0.25, 99.0)
    wrong = wrong.at[0].add(1.0)
    error = float(offset_error(wrong, jnp.asarray(array), spacing_mm=5.0))
    first, second = (array[i] > 0 for i in (0, 1))
    share = first.sum() / (first.sum() + second.sum())
    assert error == pytest.approx(0.25 + share, rel=1e-5)
    weight = jnp.array([0.0, 1.0, 1.0])
    error = offset_error(wrong, jnp.asarray(array), spacing_mm=5.0, weight=weight)
    assert float(error) == pytest.approx(0.25, rel=1e-5)
    nothing = offset_error(wrong[2:], jnp.asarray(array[2:]), spacing_mm=5.0)
    assert float(nothing) == 0


def test_error_and_gradient_over_an_axis_are_those_of_the_whole_batch():
    rng = np.random.default_rng(1)
    array = jnp.asarray(rng.integers(0, 3, (4, 3, 4, 5)))
    x = jnp.asarray(rng.normal(size=(4, 3, 4, 5, 3)), jnp.float32)
    weight = jnp.array([1.0, 0.0, 1.0, 1.0])

    def step(scale, x, array, weight):
        def error(scale):
            return offset_error(
                scale * x, array, spacing_mm=3.0, weight=weight, axis_name="devices"
            )

        value, gradient = jax.value_and_grad(error)(scale)
        return value, jax.lax.pmean(gradient, "devices")

    split = [a.reshape(2, 2, *a.shape[1:]) for a in (x, array, weight)]
    found = jax.vmap(step, (None, 0, 0, 0), axis_name="devices")(jnp.float32(1.3), *split)
    expected = jax.value_and_grad(
        lambda scale: offset_error(scale * x, array, spacing_mm=3.0, weight=weight)
    )(jnp.float32(1.3))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, np.full(2, b), rtol=1e-5)
