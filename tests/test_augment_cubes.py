"""Cubes: resampling against scipy, mirroring left and right alone, intensities as of slices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from spinejax import augment

SHAPE = (14, 12, 10)
OFF = dict(
    scale=(1.0, 1.0), rotation_deg=0.0, flip_probability=0.0, shift_hu=0.0, gain=0.0, noise_hu=0.0
)


def batch(count=3, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 300, (count, *SHAPE)).astype(np.float32)
    label = rng.integers(0, 25, image.shape)
    keys = jax.random.split(jax.random.key(seed), count)
    return keys, jnp.asarray(image), jnp.asarray(label, jnp.int32)


def test_rotation_is_scipys_about_fixed_axes():
    angles = np.array([0.3, -0.7, 1.1])
    expected = Rotation.from_euler("xyz", angles).as_matrix()
    np.testing.assert_allclose(augment.rotation(jnp.asarray(angles)), expected, atol=1e-6)


def test_resampling_agrees_with_scipy():
    _, image, label = batch(1)
    matrix = np.asarray(augment.rotation(jnp.asarray([0.2, -0.1, 0.3]))) * 1.1
    shift = np.array([1.5, -0.5, 2.0])
    got, marks = augment.resample_cube(
        image[0], label[0], matrix=jnp.asarray(matrix), shift=jnp.asarray(shift), fill_hu=-500.0
    )
    back = np.linalg.inv(matrix)
    centre = (np.array(SHAPE) - 1) / 2
    offset = centre - back @ (centre + shift)
    common = dict(offset=offset, mode="constant")
    expected = ndimage.affine_transform(image[0], back, order=1, cval=-500.0, **common)
    # scipy fades to the outside over a voxel where jax cuts: compare what is well inside.
    inside = np.s_[3:-3, 3:-3, 3:-3]
    np.testing.assert_allclose(got[inside], expected[inside], atol=0.05)
    nearest = ndimage.affine_transform(np.asarray(label[0]), back, order=0, **common)
    assert (np.asarray(marks)[inside] == nearest[inside]).mean() > 0.99


def test_nothing_changes_where_all_ranges_are_zero():
    keys, image, label = batch()
    got, marks = augment.augment_cubes(keys, image, label, **OFF)
    np.testing.assert_array_equal(got, image)
    np.testing.assert_array_equal(marks, label)


def test_left_and_right_alone_are_mirrored():
    keys, image, label = batch(40)
    got, marks = augment.augment_cubes(keys, image, label, **OFF | {"flip_probability": 0.5})
    flipped = [bool((g == i[::-1]).all()) for g, i in zip(got, image, strict=True)]
    same = [bool((g == i).all()) for g, i in zip(got, image, strict=True)]
    assert all(a != b for a, b in zip(flipped, same, strict=True))
    assert 8 <= sum(flipped) <= 32
    for mark, given, mirrored in zip(marks, label, flipped, strict=True):
        np.testing.assert_array_equal(mark, given[::-1] if mirrored else given)


def test_a_cube_is_changed_by_its_own_key_alone():
    keys, image, label = batch()
    options = dict(translation_px=2.0)
    whole, marks = augment.augment_cubes(keys, image, label, **options)
    alone, mark = augment.augment_cubes(keys[1:2], image[1:2], label[1:2], **options)
    np.testing.assert_allclose(whole[1], alone[0], atol=1e-3)
    np.testing.assert_array_equal(marks[1], mark[0])
    assert set(np.unique(marks)) <= set(range(25))


@pytest.mark.parametrize(
    ("field", "value"), [("shift_hu", 30.0), ("gain", 0.2), ("noise_hu", 20.0)]
)
def test_intensities_change_within_their_range(field, value):
    keys, image, label = batch()
    got, _ = augment.augment_cubes(keys, image, label, **OFF | {field: value})
    change = np.asarray(got - image)
    assert change.any()
    if field == "shift_hu":
        assert np.abs(change).max() <= 30.001 and np.ptp(change, axis=(1, 2, 3)).max() < 1e-3
    elif field == "gain":
        assert (np.abs(change) <= 0.2001 * np.abs(image) + 1e-3).all()
    else:
        assert change.std() < 20


def test_worn_masks_are_like_the_true_ones_with_faults():
    """Outlines by a voxel, holes, other bone added; a fifth is true, a twentieth empty."""
    keys = jax.random.split(jax.random.key(2), 96)
    mask = np.zeros((96, 24, 24, 32), bool)
    mask[:, 6:18, 6:18, 4:28] = True
    image = np.where(mask, 300.0, 0.0)
    image[:, 19:23] = 400.0  # bone that is no vertebra
    wear = partial(augment.worn_masks, spacing_mm=5.0)
    thoracic = jnp.asarray(10 * mask.astype(np.int32))
    worn = np.asarray(wear(keys, thoracic, jnp.asarray(image)))
    assert worn.dtype == bool and worn.shape == mask.shape
    same = (worn == mask).all((1, 2, 3))
    assert 10 <= same.sum() <= 35
    empty = ~worn.any((1, 2, 3))
    assert 1 <= empty.sum() <= 12
    dice = 2 * (worn & mask).sum((1, 2, 3)) / (worn.sum((1, 2, 3)) + mask.sum((1, 2, 3)))
    assert 0.6 < dice[~same & ~empty].mean() < 0.98
    added = worn & ~mask
    assert added[:, 19:23].any() and not added[:, :4].any()  # nothing arises in soft tissue
    assert (mask & ~worn)[~empty, 8:16, 8:16, 6:26].any()  # holes, not outlines alone
    again = wear(keys[3:4], thoracic[3:4], jnp.asarray(image[3:4]))
    np.testing.assert_array_equal(np.asarray(again)[0], worn[3])  # by its own key alone


def test_worn_masks_take_the_top_of_the_sacrum_for_a_vertebra():
    """Below the last lumbar vertebra alone, and within 50 mm of its centre."""
    keys = jax.random.split(jax.random.key(5), 96)
    label = np.zeros((96, 16, 16, 48), np.int32)
    label[:, 4:12, 4:12, 30:36] = 23  # L4, L5 and bone below them
    label[:, 4:12, 4:12, 24:30] = 24
    image = np.where(label > 0, 300.0, 0.0)
    image[:, 4:12, 4:12, :23] = 300.0
    added = {}
    for name, moved in (("lumbar", 0), ("thoracic", -8)):
        named = jnp.asarray(np.where(label > 0, label + moved, 0))
        worn = np.asarray(augment.worn_masks(keys, named, jnp.asarray(image), spacing_mm=4.0))
        added[name] = (worn & (label == 0))[:, 4:12, 4:12, :23]
    more = added["lumbar"] & ~added["thoracic"]
    assert not (added["thoracic"] & ~added["lumbar"]).any()
    share = more[..., 20:].mean((1, 2, 3)) > 0.5
    assert 20 <= share.sum() <= 50  # three tenths of 96
    lumbar = jnp.asarray(label)
    worn = augment.worn_masks(keys, lumbar, jnp.asarray(image), spacing_mm=4.0, sacrum=0.0)
    kept = (np.asarray(worn) & (label == 0))[:, 4:12, 4:12, :23]
    np.testing.assert_array_equal(kept, added["thoracic"])
    centre = np.array([7.5, 7.5, 26.5]) - [4, 4, 0]
    far = np.linalg.norm(np.argwhere(more)[:, 1:] - centre, axis=1) * 4.0
    assert 40 < far.max() <= 50
