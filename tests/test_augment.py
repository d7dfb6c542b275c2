"""Augmentation: closed forms, scipy, labels, independence of slices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from spinejax.augment import FLIP_AXES, augment, resample
from spinejax.errors import InputError

OFF = dict(
    scale=(1.0, 1.0),
    rotation_deg=0.0,
    translation_px=0.0,
    flip_probability=0.0,
    shift_hu=0.0,
    gain=0.0,
    noise_hu=0.0,
)
LABELS = (0, 8, 20, 28)


def batch(b=3, h=24, w=20):
    rng = np.random.default_rng(0)
    image = rng.normal(0, 300, (b, h, w)).astype(np.float32)
    label = rng.choice(np.array(LABELS, np.uint8), (b, h, w))
    return jnp.asarray(image), jnp.asarray(label)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@pytest.mark.parametrize("plane", FLIP_AXES)
def test_all_ranges_at_zero_is_the_identity_bit_for_bit(plane):
    image, label = batch()
    new_image, new_label = augment(keys(3), image, label, plane=plane, **OFF)
    np.testing.assert_array_equal(new_image, image)
    np.testing.assert_array_equal(new_label, label)
    assert new_label.dtype == label.dtype


@pytest.mark.parametrize("plane", FLIP_AXES)
@pytest.mark.parametrize("moved", [True, False])
def test_neighbouring_slices_change_together(plane, moved):
    image, label = batch()
    slices = jnp.stack([image[::-1], image, 2 * image], axis=-1)
    how = dict(plane=plane, translation_px=3.0, noise_hu=0.0, fill_hu=0.0)
    if not moved:  # mirrored alone
        how |= dict(scale=(1.0, 1.0), rotation_deg=0.0, translation_px=0.0)
    changed, changed_label = augment(keys(3), slices, label, **how)
    alone, alone_label = augment(keys(3), image, label, **how)
    np.testing.assert_allclose(changed[..., 1], alone, atol=1e-3)
    np.testing.assert_array_equal(changed_label, alone_label)
    # A shift of HU is the same for all, and everything else is linear.
    shift = 2 * changed[..., 1] - changed[..., 2]
    np.testing.assert_allclose(shift, shift[:, :1, :1] + 0 * shift, atol=0.01)
    others, _ = augment(keys(3), image[::-1], label, **how)
    np.testing.assert_allclose(changed[..., 0], others, atol=1e-3)


def test_neighbouring_slices_have_their_own_noise_of_one_level():
    image, label = jnp.zeros((4, 64, 64, 3)), jnp.zeros((4, 64, 64), jnp.uint8)
    noise, _ = augment(keys(4), image, label, plane="axial", **OFF | dict(noise_hu=20.0))
    levels = noise.std((1, 2))
    np.testing.assert_allclose(levels, levels[:, :1] + 0 * levels, rtol=0.05)
    for sample in np.asarray(noise).reshape(4, -1, 3):
        assert np.abs(np.corrcoef(sample.T) - np.eye(3)).max() < 0.06


def test_a_quarter_turn_is_numpys():
    image, label = batch(1, 17, 17)
    turned, turned_label = resample(
        image[0], label[0], scale=1.0, angle_rad=np.pi / 2, fill_hu=-1000.0
    )
    # Axis 0 turns onto axis 1: what lies at +0 from the centre comes to +1.
    inner = (slice(1, -1), slice(1, -1))  # rounding may push the rim outside
    np.testing.assert_allclose(turned[inner], np.rot90(image[0])[inner], atol=0.05)
    np.testing.assert_array_equal(turned_label[inner], np.rot90(label[0])[inner])


def test_resampling_equals_scipys_affine_transform():
    image, label = batch(1, 30, 26)
    scale, angle = 1.1, np.deg2rad(12.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = turn.T / scale
    centre = (np.array(image[0].shape) - 1) / 2
    offset = centre - inverse @ centre
    found, found_label = resample(image[0], label[0], scale=scale, angle_rad=angle, fill_hu=-1000.0)
    options = dict(offset=offset, mode="constant")
    expected = scipy.ndimage.affine_transform(
        np.asarray(image[0], np.float64), inverse, order=1, cval=-1000.0, **options
    )
    inside = scipy.ndimage.affine_transform(
        np.ones(image[0].shape), inverse, order=1, cval=0.0, **options
    )
    whole = inside > 0.999  # scipy cuts off at the rim where JAX interpolates with the fill
    np.testing.assert_allclose(np.asarray(found)[whole], expected[whole], atol=0.05)
    expected_label = scipy.ndimage.affine_transform(
        np.asarray(label[0]), inverse, order=0, cval=0, **options
    )
    assert np.mean(np.asarray(found_label)[whole] == expected_label[whole]) > 0.99


@pytest.mark.parametrize("move", [(2.3, -1.7), (0.0, 4.0), (-3.0, 0.5), (40.0, 0.0)])
def test_moving_equals_scipys_shift(move):
    image, label = batch(1)
    found, found_label = resample(
        image[0], label[0], scale=1.0, angle_rad=0.0, shift_px=move, fill_hu=-1000.0
    )
    expected = scipy.ndimage.shift(
        np.asarray(image[0], np.float64), move, order=1, mode="grid-constant", cval=-1000.0
    )
    np.testing.assert_allclose(found, expected, atol=0.01)
    # Halves apart, on which rounding may differ.
    whole = np.asarray(move) % 1 != 0.5
    if whole.all():
        expected_label = scipy.ndimage.shift(
            np.asarray(label[0]), move, order=0, mode="grid-constant", cval=0
        )
        np.testing.assert_array_equal(found_label, expected_label)


def test_moving_comes_after_turning_and_magnifying():
    """Content at p goes to scale * R p + move: a blob is found where the formula puts it."""
    image = jnp.zeros((41, 41)).at[26, 17].set(1.0)
    scale, angle, move = 1.2, np.deg2rad(25.0), np.array([3.0, -4.0])
    found, _ = resample(
        scipy.ndimage.gaussian_filter(np.asarray(image), 1.5),
        jnp.zeros((41, 41), jnp.uint8),
        scale=scale,
        angle_rad=angle,
        shift_px=tuple(move),
        fill_hu=0.0,
    )
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    expected = 20 + scale * turn @ np.array([6.0, -3.0]) + move
    assert scipy.ndimage.center_of_mass(np.asarray(found)) == pytest.approx(expected, abs=0.05)


def test_translations_fill_their_range_on_both_axes():
    n, limit = 400, 4.0
    image = jnp.zeros((n, 21, 21)).at[:, 10, 10].set(100.0)
    label = jnp.zeros((n, 21, 21), jnp.uint8)
    options = {**OFF, "translation_px": limit}
    new, _ = augment(keys(n), image, label, plane="axial", fill_hu=0.0, **options)
    moves = np.array([scipy.ndimage.center_of_mass(one) for one in np.asarray(new)]) - 10
    assert np.abs(moves).max() <= limit + 1e-3
    # Uniform on [-4, 4], and one axis does not tell the other: within 4 standard errors.
    assert np.abs(moves.mean(0)).max() < 4 * limit / np.sqrt(3 * n)
    assert moves.std(0) == pytest.approx(limit / np.sqrt(3), rel=0.15)
    assert moves.min() < -0.95 * limit and moves.max() > 0.95 * limit
    assert abs(np.corrcoef(moves.T)[0, 1]) < 4 / np.sqrt(n)


def test_translation_leaves_the_other_draws_alone():
    """The same turn, mirror image and intensities with and without it: only the place differs."""
    points = np.zeros((41, 41), np.float32)
    points[20, 16:27] = 1000.0
    points[24, 26] = 2000.0
    blob = scipy.ndimage.gaussian_filter(points, 1.5)  # smooth: interpolation loses nothing of it
    image = jnp.broadcast_to(blob, (6, 41, 41))
    label = jnp.zeros(image.shape, jnp.uint8)

    def moments(translation_px):
        options = {**OFF, "rotation_deg": 40.0, "flip_probability": 0.5, "gain": 0.2}
        options["translation_px"] = translation_px
        new, _ = augment(keys(6), image, label, plane="axial", fill_hu=0.0, **options)
        for one in np.asarray(new, np.float64):
            centre = np.array(scipy.ndimage.center_of_mass(one))
            offsets = np.indices(one.shape).reshape(2, -1) - centre[:, None]
            yield one.sum(), centre, (offsets * one.ravel()) @ offsets.T / one.sum()

    for still, moved in zip(moments(0.0), moments(6.0), strict=True):
        assert moved[0] == pytest.approx(still[0], rel=2e-3)
        assert np.abs(moved[1] - still[1]).max() > 0.1
        np.testing.assert_allclose(moved[2], still[2], atol=0.1)


def test_halving_leaves_the_fill_and_background_outside():
    image, label = jnp.full((1, 20, 20), 100.0), jnp.full((1, 20, 20), 20, jnp.uint8)
    options = {**OFF, "scale": (0.5, 0.5 + 1e-6)}
    new_image, new_label = augment(keys(1), image, label, plane="axial", fill_hu=-1000.0, **options)
    inside = np.zeros((20, 20), bool)
    inside[5:15, 5:15] = True
    np.testing.assert_array_equal(np.asarray(new_label[0]) == 20, inside)
    np.testing.assert_allclose(new_image[0][inside], 100.0, atol=1e-3)
    outside = ~scipy.ndimage.binary_dilation(inside)
    np.testing.assert_allclose(new_image[0][outside], -1000.0)


@pytest.mark.parametrize(("plane", "axis"), [("coronal", 0), ("axial", 0), ("sagittal", None)])
def test_only_left_and_right_are_mirrored(plane, axis):
    image, label = batch()
    options = {**OFF, "flip_probability": 1.0}
    new_image, new_label = augment(keys(3), image, label, plane=plane, **options)
    expected = (image, label) if axis is None else (image[:, ::-1], label[:, ::-1])
    np.testing.assert_array_equal(new_image, expected[0])
    np.testing.assert_array_equal(new_label, expected[1])


@pytest.mark.parametrize("plane", FLIP_AXES)
def test_all_axes_are_mirrored_on_request(plane):
    image, label = batch()
    options = {**OFF, "flip_probability": 1.0, "flip_axes": "all"}
    new_image, new_label = augment(keys(3), image, label, plane=plane, **options)
    np.testing.assert_array_equal(new_image, image[:, ::-1, ::-1])
    np.testing.assert_array_equal(new_label, label[:, ::-1, ::-1])
    with pytest.raises(InputError, match=r"augment\.flip_axes.*'all', 'left_right'"):
        augment(keys(3), image, label, plane=plane, flip_axes="up")


def test_half_of_the_slices_are_mirrored_at_probability_one_half():
    image = jnp.broadcast_to(jnp.arange(4.0)[None, :, None], (400, 4, 1))
    options = {**OFF, "flip_probability": 0.5}
    new, _ = augment(keys(400), image, jnp.zeros(image.shape, jnp.uint8), plane="axial", **options)
    assert 160 < int((new[:, 0, 0] == 3).sum()) < 240


def test_labels_stay_among_those_of_the_slice_and_follow_the_image():
    _, label = batch(4, 32, 32)
    blocks = jnp.kron(label[:, :4, :4], jnp.ones((8, 8), jnp.uint8))  # so that most pixels agree
    options = {**OFF, "scale": (0.8, 1.2), "rotation_deg": 30.0, "flip_probability": 0.5}
    new_image, new_label = augment(
        keys(4), blocks.astype(jnp.float32), blocks, plane="axial", fill_hu=0.0, **options
    )
    assert set(np.unique(new_label).tolist()) <= set(LABELS)
    agree = np.abs(np.asarray(new_image) - np.asarray(new_label)) < 1e-3
    assert agree.mean() > 0.6
    assert not np.array_equal(new_label, blocks)


@pytest.mark.parametrize(
    ("option", "value", "low", "high"),
    [("shift_hu", 30.0, 70.0, 130.0), ("gain", 0.1, 90.0, 110.0)],
)
def test_intensity_changes_are_one_number_a_slice_within_their_range(option, value, low, high):
    image = jnp.full((200, 3, 3), 100.0)
    new, _ = augment(
        keys(200), image, jnp.zeros(image.shape, jnp.uint8), plane="axial", **{**OFF, option: value}
    )
    new = np.asarray(new)
    assert np.ptp(new, axis=(1, 2)).max() < 1e-4
    assert low <= new.min() < low + 2 and high - 2 < new.max() <= high


def test_noise_has_up_to_the_given_standard_deviation():
    image = jnp.zeros((50, 40, 40))
    label = jnp.zeros(image.shape, jnp.uint8)
    new, _ = augment(keys(50), image, label, plane="axial", **{**OFF, "noise_hu": 20.0})
    deviations = np.asarray(new).std((1, 2))
    assert 15 < deviations.max() < 21
    assert abs(deviations.mean() - 10) < 3  # uniform on [0, 20]


def test_a_slice_does_not_depend_on_the_batch_around_it():
    image, label = batch(4)
    whole = augment(keys(4), image, label, plane="axial")
    part = augment(keys(4)[2:3], image[2:3], label[2:3], plane="axial")
    again = augment(keys(4), image, label, plane="axial")
    other = augment(keys(4, seed=1), image, label, plane="axial")
    np.testing.assert_allclose(whole[0][2:3], part[0], atol=1e-3)
    np.testing.assert_array_equal(whole[1][2:3], part[1])
    np.testing.assert_array_equal(whole[0], again[0])
    assert not np.array_equal(whole[0], other[0])


def test_an_unknown_plane_is_refused_with_the_choices():
    image, label = batch(1)
    with pytest.raises(InputError, match="'axial'.*did you mean 'sagittal'"):
        augment(keys(1), image, label, plane="saggital")
