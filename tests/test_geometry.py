"""Grids and orientations, against nibabel, scipy and closed forms."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.processing import resample_from_to
from scipy import ndimage
from scipy.spatial.transform import Rotation

from spinejax import geometry
from tests.support.nifti_files import resampled_grid

seeds = st.integers(0, 2**32 - 1)


def random_affine(seed, shear=0.0):
    """Any rotation or reflection, spacings 0.3 to 3 mm, origin within 300 mm."""
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    turn = Rotation.random(rng=rng).as_matrix() * rng.choice([-1, 1], 3)
    skew = np.eye(3) + shear * rng.uniform(-1, 1, (3, 3))
    affine[:3, :3] = turn @ skew @ np.diag(rng.uniform(0.3, 3, 3))
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return affine


def axis_affine(code, spacing=(1, 1, 1), origin=(0, 0, 0)):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(code):
        world = ["LR", "PA", "IS"].index(next(p for p in ("LR", "PA", "IS") if letter in p))
        affine[world, axis] = spacing[axis] * (1 if letter in "RAS" else -1)
    affine[:3, 3] = origin
    return affine


def test_there_are_48_orientations_and_each_is_named_by_its_directions():
    assert len(set(geometry.ALL_ORIENTATIONS)) == 48
    for code in geometry.ALL_ORIENTATIONS:
        affine = axis_affine(code, (0.5, 2, 3))
        assert geometry.orientation(affine) == code == "".join(nib.aff2axcodes(affine))
        assert geometry.spacing_mm(affine) == (0.5, 2, 3)


@settings(deadline=None, max_examples=300)
@given(seeds)
def test_orientation_agrees_with_nibabel(seed):
    for shear in (0, 0.3):
        affine = random_affine(seed, shear)
        assert geometry.orientation(affine) == "".join(nib.aff2axcodes(affine))


@settings(deadline=None, max_examples=100)
@given(seeds, st.sampled_from(geometry.ALL_ORIENTATIONS))
def test_reorienting_keeps_every_voxel_where_it_is_in_the_world(seed, to):
    affine = random_affine(seed, shear=0.2)
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    turned, new_affine = geometry.reorient(array, affine, to)
    assert geometry.orientation(new_affine) == to
    assert np.shares_memory(turned, array)
    index = np.argwhere(turned >= 0)
    world = geometry.voxel_to_world(new_affine, index)
    old_index = np.array(np.unravel_index(turned[tuple(index.T)], array.shape)).T
    np.testing.assert_allclose(world, geometry.voxel_to_world(affine, old_index), atol=1e-9)
    back, old_affine = geometry.reorient(turned, new_affine, geometry.orientation(affine))
    np.testing.assert_array_equal(back, array)
    np.testing.assert_allclose(old_affine, affine, atol=1e-9)


def test_reorienting_to_ras_agrees_with_nibabel():
    for seed in range(50):
        affine = random_affine(seed)
        array = np.random.default_rng(seed).normal(size=(3, 4, 5))
        ours, our_affine = geometry.reorient(array, affine, "RAS")
        theirs = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
        np.testing.assert_array_equal(ours, theirs.get_fdata())
        np.testing.assert_allclose(our_affine, theirs.affine, atol=1e-9)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
@pytest.mark.parametrize("angle", [45, -45, 135])
def test_orientations_come_back_even_from_exactly_between_two_codes(axis, angle):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler(axis, angle, degrees=True).as_matrix()
    array = np.arange(24).reshape(2, 3, 4)
    for to in geometry.ALL_ORIENTATIONS:
        turned, new_affine = geometry.reorient(array, affine, to)
        assert geometry.orientation(new_affine) == to
        back, _ = geometry.reorient(turned, new_affine, geometry.orientation(affine))
        np.testing.assert_array_equal(back, array)


def test_reorient_leaves_further_axes_and_refuses_what_is_no_orientation():
    array = np.zeros((2, 3, 4, 5))
    assert geometry.reorient(array, np.eye(4), "SPL")[0].shape == (4, 3, 2, 5)
    for wrong in ("LPX", "LLS", "lps", ""):
        with pytest.raises(ValueError, match="three letters"):
            geometry.reorient(array, np.eye(4), wrong)
    with pytest.raises(ValueError, match="three spatial axes"):
        geometry.reorient(np.zeros((2, 3)), np.eye(4), "LPS")
    with pytest.raises(ValueError, match="zero or non-finite"), np.errstate(invalid="ignore"):
        geometry.orientation(np.zeros((4, 4)))


@pytest.mark.parametrize(
    ("affine", "usable"),
    [
        (np.eye(4), True),
        (random_affine(3, shear=0.3), True),
        (np.zeros((4, 4)), False),
        (np.full((4, 4), np.nan), False),
        (np.diag([1, 1, 0, 1]), False),
        (np.diag([1, 1, 1e-9, 1]), False),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), False),
        (np.diag([1, 1, np.inf, 1]), False),
        (np.eye(3), False),
    ],
    ids=["identity", "oblique", "zero", "nan", "flat", "tiny", "parallel", "inf", "3x3"],
)
def test_usable_affines(affine, usable):
    assert geometry.is_usable_affine(affine) is usable


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_world_and_voxel_points_are_inverse(seed):
    affine = random_affine(seed, shear=0.2)
    points = np.random.default_rng(seed).uniform(-50, 500, (4, 5, 3))
    world = geometry.voxel_to_world(affine, points)
    np.testing.assert_allclose(world, nib.affines.apply_affine(affine, points), atol=1e-9)
    np.testing.assert_allclose(geometry.world_to_voxel(affine, world), points, atol=1e-8)


def test_corner_distance_of_a_shift_and_of_a_stretch():
    shifted = np.eye(4)
    shifted[:3, 3] = (3, 4, 0)
    assert geometry.max_corner_distance_mm(np.eye(4), shifted, (9, 9, 9)) == pytest.approx(5)
    stretched = np.diag([1.01, 1, 1, 1])
    # The farthest corner is index 100 of 101: 100 voxels x 0.01 mm.
    distance = geometry.max_corner_distance_mm(np.eye(4), stretched, (101, 5, 5))
    assert distance == pytest.approx(1)
    every = np.array(list(itertools.product(range(4), range(5), range(6))))
    a, b = random_affine(1), random_affine(2, shear=0.3)
    gap = np.linalg.norm(
        geometry.voxel_to_world(a, every) - geometry.voxel_to_world(b, every), axis=1
    )
    assert geometry.max_corner_distance_mm(a, b, (4, 5, 6)) == pytest.approx(gap.max())


def test_overlap_of_boxes():
    cube = (16, 16, 16)

    def moved(x):
        return axis_affine("RAS", origin=(x, 0, 0))

    assert geometry.overlap_fraction(cube, np.eye(4), cube, np.eye(4)) == 1
    assert geometry.overlap_fraction(cube, np.eye(4), cube, moved(8)) == pytest.approx(1 / 2)
    assert geometry.overlap_fraction(cube, np.eye(4), cube, moved(16.5)) == 0
    # The small box is all inside the big one, which is 1/8 inside the small one.
    big = (32, 32, 32)
    assert geometry.overlap_fraction(cube, np.eye(4), big, np.eye(4)) == 1
    assert geometry.overlap_fraction(big, np.eye(4), cube, np.eye(4)) == pytest.approx(1 / 8)


@pytest.mark.parametrize("order", [0, 1])
def test_resampling_agrees_with_scipy_at_random_points_and_fills_outside(order):
    rng = np.random.default_rng(order)
    for seed in range(10):
        array = rng.normal(size=(11, 12, 13)).astype(np.float32)
        affine = random_affine(seed, shear=0.2)
        target = random_affine(seed + 100, shear=0.2)
        middle = geometry.voxel_to_world(affine, np.array([5.1, 5.4, 6.2]))
        target[:3, 3] = middle - target[:3, :3] @ np.array([4, 5, 6])
        ours = geometry.resample(array, affine, (9, 10, 11), target, order=order, fill=-7)
        index = np.stack(np.meshgrid(*map(np.arange, (9, 10, 11)), indexing="ij"), axis=-1)
        at = geometry.world_to_voxel(affine, geometry.voxel_to_world(target, index))
        expected = ndimage.map_coordinates(
            array, np.moveaxis(at, -1, 0), order=order, mode="nearest", prefilter=False
        )
        outside = ((at < -0.5) | (at > np.array(array.shape) - 0.5)).any(axis=-1)
        expected[outside] = -7
        assert 0 < outside.sum() < outside.size
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_nearest_resampling_agrees_with_nibabel_away_from_the_border():
    labels = np.zeros((20, 21, 22), np.uint8)
    labels[5:15, 5:16, 5:17] = np.random.default_rng(0).integers(1, 29, (10, 11, 12))
    for seed in range(5):
        affine, target = random_affine(seed), random_affine(seed + 50)
        middle = geometry.voxel_to_world(affine, np.array([10.1, 10.4, 11.2]))
        target[:3, 3] = middle - target[:3, :3] @ np.array([12, 12, 12])
        ours = geometry.resample(labels, affine, (25, 25, 25), target, order=0, fill=0)
        theirs = resample_from_to(nib.Nifti1Image(labels, affine), ((25, 25, 25), target), order=0)
        assert ours.dtype == np.uint8
        np.testing.assert_array_equal(ours, np.asarray(theirs.dataobj))


@pytest.mark.parametrize("order", [0, 1])
def test_resampling_to_another_axis_order_is_exact(order):
    array = np.random.default_rng(0).integers(-1024, 2000, (5, 6, 7)).astype(np.int16)
    affine = random_affine(4)
    for to in geometry.ALL_ORIENTATIONS:
        turned, target = geometry.reorient(array, affine, to)
        out = geometry.resample(array, affine, turned.shape, target, order=order, fill=0)
        np.testing.assert_allclose(out, turned, atol=1e-3 * order)


def test_linear_resampling_reproduces_a_linear_field():
    index = np.stack(np.meshgrid(*map(np.arange, (20, 20, 20)), indexing="ij"), axis=-1)
    affine = axis_affine("PIR", (1.5, 2, 1))
    weights = np.array([1.0, -2.0, 3.0])
    array = (geometry.voxel_to_world(affine, index) @ weights).astype(np.float32)
    target, shape = resampled_grid(affine, (20, 20, 20), (1, 1, 1))
    assert shape == (30, 40, 20)
    out = geometry.resample(array, affine, shape, target, order=1, fill=0)
    new_index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    expected = geometry.voxel_to_world(target, new_index) @ weights
    np.testing.assert_allclose(out[1:-1, 1:-1, 1:-1], expected[1:-1, 1:-1, 1:-1], atol=1e-3)


def test_resampling_does_not_depend_on_the_slab_size(monkeypatch):
    array = np.random.default_rng(0).normal(size=(11, 12, 13)).astype(np.float32)
    a, b = axis_affine("LPS", (1, 2, 3)), axis_affine("PSR", (2, 1, 1.3), (5, -8, 3))
    whole = geometry.resample(array, a, (15, 30, 12), b, order=1, fill=0)
    monkeypatch.setattr(geometry, "_SLAB_VOXELS", 1)
    sliced = geometry.resample(array, a, (15, 30, 12), b, order=1, fill=0)
    np.testing.assert_allclose(sliced, whole, atol=1e-5)


def test_resample_refuses_other_orders_and_shapes():
    with pytest.raises(ValueError, match="order"):
        geometry.resample(np.zeros((2, 2, 2)), np.eye(4), (2, 2, 2), np.eye(4), order=3, fill=0)
    with pytest.raises(ValueError, match="three axes"):
        geometry.resample(np.zeros((2, 2)), np.eye(4), (2, 2, 2), np.eye(4), order=0, fill=0)


@given(st.integers(1, 300), st.integers(1, 80), st.floats(0, 0.95))
def test_windows_cover_the_axis_with_at_least_the_overlap(length, window, overlap):
    starts = geometry.window_starts(length, window, overlap)
    assert starts[0] == 0
    if window >= length:
        assert starts == [0]
        return
    assert starts[-1] == length - window
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (window - steps >= overlap * window - 1e-6).all() or steps.max() == 1


def test_window_starts_by_hand():
    assert geometry.window_starts(10, 4, 0.5) == [0, 2, 4, 6]
    assert geometry.window_starts(10, 10, 0.5) == [0]
    for arguments in ((0, 4, 0.5), (4, 0, 0.5), (4, 2, 1), (4, 2, -0.1)):
        with pytest.raises(ValueError, match="must be"):
            geometry.window_starts(*arguments)


def test_bounding_box_agrees_with_scipy():
    rng = np.random.default_rng(1)
    for density in (0.0005, 0.01, 0.5):
        mask = rng.random((9, 14, 11)) < density
        expected = ndimage.find_objects(mask.astype(int))
        assert geometry.bounding_box(mask) == (expected[0] if expected else None)


@given(seeds, st.sampled_from([0.0, 0.1, 0.4]))
@settings(max_examples=50, deadline=None)
def test_steps_give_the_distances_of_the_world(seed, shear):
    affine = random_affine(seed, shear)
    points = np.random.default_rng(seed).integers(-40, 40, (20, 3))
    steps = geometry.steps_mm(affine)
    world = points @ affine[:3, :3].T
    np.testing.assert_allclose(
        np.linalg.norm(points @ steps, axis=1), np.linalg.norm(world, axis=1), atol=1e-3
    )
    np.testing.assert_allclose(
        geometry.voxel_ml(affine), abs(np.linalg.det(affine[:3, :3])) / 1000, rtol=1e-4
    )
    if not shear:
        spacing = geometry.spacing_mm(affine)
        np.testing.assert_array_equal(steps, np.diag(spacing))
        assert geometry.voxel_ml(affine) == np.prod(spacing) / 1000


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_a_straight_grid_covers_the_sheared_one(seed):
    affine, shape = random_affine(seed, 0.3), (9, 12, 7)
    found = geometry.straight_grid(shape, affine)
    assert found is not None
    straight_shape, straight = found
    sides = np.array(geometry.spacing_mm(straight))
    columns = straight[:3, :3] / sides
    np.testing.assert_allclose(columns.T @ columns, np.eye(3), atol=1e-9)
    along = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    np.testing.assert_allclose(columns[:, 2], along, atol=1e-9)
    assert (columns * affine[:3, :3]).sum(axis=0).min() > 0  # no axis is turned around
    assert (sides <= np.array(geometry.spacing_mm(affine)) + 1e-9).all()
    assert geometry.overlap_fraction(shape, affine, straight_shape, straight) == 1
    assert geometry.straight_grid(shape, random_affine(seed)) is None


@pytest.mark.parametrize("seed", range(8))
def test_the_box_on_another_grid_holds_all_that_nearest_neighbours_take_from_a_box(seed):
    rng = np.random.default_rng(seed)
    affine, other = random_affine(seed, shear=0.3), random_affine(seed + 50, shear=0.3)
    array = np.zeros((20, 22, 24), np.uint8)
    starts, sides = rng.integers(1, 10, (2, 3)).tolist()
    box = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    array[box] = 1
    middle = [(s.start + s.stop - 1) / 2 for s in box]
    there = geometry.voxel_to_world(other, np.full(3, 15))
    other[:3, 3] += geometry.voxel_to_world(affine, middle) - there
    found = geometry.resample(array, affine, (30, 30, 30), other, order=0, fill=0)
    exact = geometry.bounding_box(found)
    around = geometry.box_on_grid(box, affine, found.shape, other)
    assert found.any()
    for inner, outer in zip(exact, around, strict=True):
        assert outer.start <= inner.start and inner.stop <= outer.stop
    part = geometry.affine_of_part(other, around)
    sides = [side.stop - side.start for side in around]
    np.testing.assert_array_equal(
        geometry.resample(array, affine, sides, part, order=0, fill=0), found[around]
    )


def test_a_box_beyond_another_grid_is_none_there():
    far = np.eye(4)
    far[:3, 3] = 100
    assert geometry.box_on_grid((slice(0, 5),) * 3, np.eye(4), (5, 5, 5), far) is None


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, bool])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_boxes_of_labels_are_those_of_scipy_for_any_order_in_memory(order, dtype):
    rng = np.random.default_rng(0)
    array = np.zeros((9, 11, 13), dtype)
    array[2:6, 3:9, 1:12] = rng.integers(0, 6, (4, 6, 11)) * (rng.random((4, 6, 11)) < 0.2)
    array[array == 3] = 0  # a label that is not there
    expected = ndimage.find_objects(array.astype(np.uint8))
    turned = np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))
    for view in (turned, turned[::-1, :, ::-1][::-1, :, ::-1]):
        found = geometry.label_boxes(view)
        assert list(found.items()) == [(i, box) for i, box in enumerate(expected, 1) if box]
    assert geometry.label_boxes(np.zeros((2, 3, 4), dtype)) == {}
