"""Rendering is a pure function of the point, and HU are like measured ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from spinejax.phantom import anatomy, render
from spinejax.phantom.body.render import render_block
from spinejax.phantom.once import drawn_for
from spinejax.phantom.scanner import acquisition

draw = jax.jit(anatomy)
bent = jax.jit(partial(anatomy, fractures=4.0, scoliosis=0.7))
_paint = jax.jit(render)


_sparse = jax.jit(partial(render, distractors=False))
SIDE = 48
"""Side of the slices here, and of the tiles of larger ones: one shape is compiled once."""


def paint(person, points, edge_mm=0.6):
    """HU and labels; one compiled program for each shape of points."""
    return _paint(person, points, edge_mm=edge_mm)


def sagittal(p, index=20, step=2.0):
    """Points of a sagittal slice (y, z) through a vertebra."""
    y, z = jnp.meshgrid(*[step * (jnp.arange(SIDE) - SIDE / 2)] * 2, indexing="ij")
    return p["spine"]["origin"][index] + jnp.stack([0 * y, y + 10.0, z], -1)


def test_the_same_key_draws_the_same_person_and_another_key_another(person):
    again = draw(jax.random.key(5))
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), person, again)
    assert all(jax.tree.leaves(same))
    other = draw(jax.random.key(6))
    assert not jnp.allclose(person["spine"]["origin"], other["spine"]["origin"])


def test_slice_equals_the_plane_of_the_volume(person):
    affine = np.diag([4.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = np.asarray(person["spine"]["origin"][20]) - [40.0, 40.0, 48.0]
    hu, label = acquisition.render_volume(person, (20, 48, 48), affine, 0.8)
    index = np.stack(np.meshgrid([10], range(48), range(48), indexing="ij"), -1)[0]
    points = index @ affine[:3, :3].T + affine[:3, 3]
    slice_hu, slice_label = paint(person, points, edge_mm=0.8)
    assert len(np.unique(slice_label)) > 3
    # Points on a surface may fall to either side by rounding of coordinates.
    assert (np.asarray(slice_label) != label[10]).mean() < 1e-3
    assert np.abs(np.asarray(slice_hu) - hu[10]).mean() < 0.1


def test_result_does_not_depend_on_which_points_are_drawn_together(person):
    points = np.asarray(sagittal(person))
    hu, label = (np.asarray(a).ravel() for a in paint(person, points))
    order = np.random.default_rng(0).permutation(hu.size)
    some = order[:100]
    # The others lie to the left of the body's middle now, beside other bones.
    mixed = points.reshape(-1, 3)[order]
    mixed[100:, 0] += 40.0
    few_hu, few_label = (
        np.asarray(a).ravel()[:100] for a in paint(person, mixed.reshape(points.shape))
    )
    np.testing.assert_array_equal(few_label, label[some])
    np.testing.assert_allclose(few_hu, hu[some], atol=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_vertebrae_are_skipped_only_where_they_change_nothing(seed):
    person = bent(jax.random.key(seed))
    spine = person["spine"]
    everywhere = {"reach": 1e4, "low": -1e4, "high": 1e4}
    full = {**spine, **{k: jnp.full_like(spine[k], v) for k, v in everywhere.items()}}
    rng = np.random.default_rng(seed)
    at = np.asarray(spine["origin"])[rng.integers(0, 22, 6000)]
    points = jnp.asarray(at + rng.normal(0.0, [25.0, 30.0, 20.0], (6000, 3)), jnp.float32)
    hu, label = paint(person, points)
    all_hu, all_label = paint({**person, "spine": full}, points)
    assert len(np.unique(label)) > 18
    np.testing.assert_array_equal(label, all_label)
    assert np.abs(np.asarray(hu) - np.asarray(all_hu)).max() < 2.0


@jax.jit
def _at_once(person, points, edge_mm):
    with drawn_for("gpu"):
        return render_block(points, person, edge_mm)


@pytest.mark.parametrize("edge_mm", [0.5, 1.0, 2.0, 3.0])
def test_blocks_leave_out_only_what_the_blur_hides(people, edge_mm):
    """Cubes of voxels of twice the blur, in blocks, and beside everything that a body has."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[2.0 * edge_mm * (np.arange(20) - 10)] * 3, indexing="ij"), -1)
    ends = [[-500.0, -500.0, -1200.0], [500.0, 500.0, 1200.0]]  # no box lies outside of these
    change = []
    for i in range(12):
        person = jax.tree.map(lambda a, i=i: a[i], people)
        # Mostly beside the column: in the chest, the neck, the shoulders and the hips.
        at = person["spine"]["origin"][2 * i] + rng.normal(0.0, 40.0, 3)
        points = np.float32(grid + at)
        hu, label = paint(person, points, np.float32(edge_mm))
        all_points = np.float32(np.concatenate([points.reshape(-1, 3), ends]))
        all_hu, all_label = _at_once(person, all_points, np.float32(edge_mm))
        np.testing.assert_array_equal(np.ravel(label), all_label[:-2])
        change.append(np.abs(np.ravel(hu) - all_hu[:-2]))
    assert np.mean(np.concatenate(change) > 2.0) < 3e-4


def test_vmap_equals_a_loop(people):
    two = jax.tree.map(lambda a: a[:2], people)
    alone = [jax.tree.map(lambda a, i=i: a[i], two) for i in range(2)]
    points = np.stack([sagittal(person) for person in alone])
    hu, label = jax.jit(jax.vmap(render))(two, points)
    for i, person in enumerate(alone):
        one_hu, one_label = paint(person, points[i])
        assert (np.asarray(label[i]) != np.asarray(one_label)).mean() < 1e-3
        assert np.abs(np.asarray(hu[i]) - np.asarray(one_hu)).mean() < 0.1


def test_any_shape_of_points_is_drawn(person):
    points = sagittal(person)
    hu, label = paint(person, points)
    assert hu.shape == label.shape == points.shape[:-1]
    assert hu.dtype == jnp.float32 and label.dtype == jnp.int32
    assert bool(jnp.all(jnp.isfinite(hu)))
    one, _ = paint(person, points[3, 5])
    assert one.shape == ()
    assert abs(float(one) - float(hu[3, 5])) < 0.05


def test_far_from_the_body_there_is_air(person):
    for point in ([0.0, -900.0, 0.0], [1500.0, 0.0, 0.0]):
        hu, label = paint(person, np.float32(point))
        np.testing.assert_allclose(hu, -1000.0, atol=1.0)
        assert not label


def test_wider_blur_lowers_the_contrast_of_the_cortical_shell(person):
    points = sagittal(person)
    peaks = [np.percentile(paint(person, points, edge_mm=e)[0], 99.0) for e in (0.4, 2.0)]
    assert peaks[0] > peaks[1] + 100


@pytest.fixture(scope="module")
def slices(people):
    """Sagittal slices of 192 mm about T12 at 1 mm, beside the midline: HU and label."""
    tiles = 4
    y, z = np.meshgrid(*[np.arange(tiles * SIDE) - tiles * SIDE / 2] * 2, indexing="ij")
    count = len(people["spine"]["origin"])
    sides = np.linspace(2.0, 26.0, count)

    def paint(draw, i):
        person = jax.tree.map(lambda a: a[i], people)
        points = person["spine"]["origin"][18] + np.stack([0 * y + sides[i], y, z], -1)
        drawn = [
            [draw(person, np.float32(tile), edge_mm=0.7) for tile in np.split(row, tiles, 1)]
            for row in np.split(points, tiles)
        ]
        return [np.block([[pair[n] for pair in row] for row in drawn]) for n in range(2)]

    def all_of(draw):
        return [np.stack(a) for a in zip(*(paint(draw, i) for i in range(count)), strict=True)]

    return {True: all_of(_paint), False: all_of(_sparse)}


def test_without_distractors_bright_points_belong_to_the_column(slices):
    hu, label = slices[False]
    around = ndimage.binary_dilation(label > 0, np.ones((1, 7, 7), bool))
    # Beside the column there may be chalk in a worn disc: few points.
    assert ((hu > 250) & ~around).sum() < 0.03 * (hu > 250).sum()
    assert (hu[label == 0] < -700).sum() < (slices[True][0] < -700).sum()


def test_the_switch_changes_no_label(slices):
    np.testing.assert_array_equal(slices[True][1], slices[False][1])


def test_bright_points_are_often_not_vertebra(slices):
    """Of all voxels above 150 HU, 40-80 % are not vertebra in whole real scans.

    Slices through the column itself, as here, hold fewer than whole scans do.
    """
    hu, label = slices[True]
    bright = hu > 150
    assert 0.12 < (bright & (label == 0)).sum() / bright.sum() < 0.8


def test_hu_of_vertebrae_resemble_measured_ones(slices):
    """Medians of three real scans: marrow 68-201, one-voxel shell 246-405, 3 mm around -168..345.

    Persons are drawn wider than three scans vary; the middle of many must lie within.
    """
    hu, label = slices[True]
    bone = label > 0
    step = np.zeros((3, 3, 3), bool)
    step[1] = ndimage.generate_binary_structure(2, 1)
    deep = ndimage.binary_erosion(bone, step, iterations=3)
    shell = bone & ~ndimage.binary_erosion(bone, step)
    near = ndimage.binary_dilation(bone, step, iterations=3) & ~bone
    marrow = [np.median(h[m]) for h, m in zip(hu, deep, strict=True)]
    rim = [np.median(h[m]) for h, m in zip(hu, shell, strict=True)]
    assert 68 < np.median(marrow) < 240
    assert 220 < np.median(rim) < 450
    assert np.ptp(marrow) > 40  # persons differ
    low, middle, high = np.percentile(hu[near], [5, 50, 95])
    assert -180 < low < -30
    assert -50 < middle < 120
    assert 150 < high < 500
