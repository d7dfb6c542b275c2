"""Label maps on the grid of their scan: turned, paired or resampled, or refused."""

import nibabel as nib
import numpy as np
import pytest

from spinejax import geometry
from spinejax.errors import InputError
from spinejax.io import grids, scanfile
from spinejax.volume import LabelVolume, Volume
from tests.support.nifti_files import (
    forms,
    oblique_affine,
    one_line,
    resampled_grid,
    save,
    scan_values,
    shifted,
)


@pytest.fixture
def pair(tmp_path):
    """A scan on an oblique grid and a mask with a block in it."""
    labels = np.zeros((20, 21, 22), np.uint8)
    labels[5:12, 6:14, 7:15] = 20
    affine = oblique_affine((1, 1, 1))
    image = save(tmp_path / "image.nii.gz", scan_values((20, 21, 22)).astype(np.int16), affine)
    return image, labels, affine


def test_a_mask_a_little_off_is_taken_as_it_is(tmp_path, pair, caplog):
    image, labels, affine = pair
    affine[0, 3] += 0.3
    mask = save(tmp_path / "mask.nii.gz", labels, affine)
    scan, read = scanfile.read_pair(image, mask)
    np.testing.assert_array_equal(read.native, labels)
    np.testing.assert_array_equal(read.native_affine, scan.native_affine)
    assert not caplog.records


@pytest.mark.parametrize("code", geometry.ALL_ORIENTATIONS)
def test_a_mask_in_another_axis_order_is_turned(tmp_path, pair, code, caplog):
    image, labels, affine = pair
    turned, turned_affine = geometry.reorient(labels, affine, code)
    mask = save(tmp_path / "mask.nii.gz", np.ascontiguousarray(turned), turned_affine)
    _, read = scanfile.read_pair(image, mask)
    np.testing.assert_array_equal(read.native, labels)
    assert not caplog.records


def test_a_mask_on_a_shifted_grid_is_resampled(tmp_path, pair, caplog):
    image, labels, affine = pair
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ (3, 0, 0)  # three voxels along the first axis
    mask = save(tmp_path / "mask.nii.gz", labels, moved)
    _, read = scanfile.read_pair(image, mask)
    expected = np.zeros_like(labels)
    expected[3:] = labels[:-3]
    np.testing.assert_array_equal(read.native, expected)
    assert "resampling the mask" in caplog.text
    assert "mask.nii.gz" in caplog.text
    # The same displacement is nothing where the tolerance says so.
    np.testing.assert_array_equal(scanfile.read_pair(image, mask, 5)[1].native, labels)


def test_a_cropped_mask_is_put_where_it_belongs(tmp_path, pair):
    image, labels, affine = pair
    cropped = affine.copy()
    cropped[:3, 3] = geometry.voxel_to_world(affine, np.array([5, 6, 7]))
    mask = save(tmp_path / "mask.nii.gz", labels[5:12, 6:14, 7:15], cropped)
    np.testing.assert_array_equal(scanfile.read_pair(image, mask)[1].native, labels)


def test_a_finer_mask_is_resampled_to_nearly_the_same_volume(tmp_path, pair):
    image, labels, affine = pair
    fine, _ = resampled_grid(affine, labels.shape, (0.5, 0.5, 0.5))
    doubled = labels.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    mask = save(tmp_path / "mask.nii.gz", doubled, fine)
    read = scanfile.read_pair(image, mask)[1]
    np.testing.assert_array_equal(read.native, labels)


def test_a_mask_elsewhere_is_refused(tmp_path, pair):
    image, labels, affine = pair
    affine[0, 3] += 1000
    mask = save(tmp_path / "mask.nii.gz", labels, affine)
    with pytest.raises(InputError, match="does not overlap") as error:
        scanfile.read_pair(image, mask)
    message = one_line(error)
    assert str(mask) in message
    assert str(image) in message


def test_a_mask_whose_labels_all_miss_the_scan_is_refused(tmp_path, pair):
    image, labels, affine = pair
    affine[:3, 3] += affine[:3, :3] @ (18, 0, 0)
    mask = save(tmp_path / "mask.nii.gz", labels, affine)
    with pytest.raises(InputError, match="no labelled voxel"):
        scanfile.read_pair(image, mask)


def test_a_mask_without_orientation_is_paired_by_shape(tmp_path, pair, caplog):
    image, labels, _ = pair
    nib.save(nib.Nifti1Image(labels, None), tmp_path / "mask.nii.gz")
    _, read = scanfile.read_pair(image, tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(read.native, labels)
    assert "assumed to be on the grid" in caplog.text


def test_a_mask_that_agrees_with_the_other_form_of_the_scan_is_paired(tmp_path, caplog):
    image = forms(tmp_path / "image.nii", oblique_affine(), 1, shifted(20), 1)
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[2:4, 2:4, 2:4] = 3
    made = nib.Nifti1Image(labels, shifted(20))
    nib.save(made, tmp_path / "mask.nii.gz")
    _, read = scanfile.read_pair(image, tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(read.native, labels)
    assert "assumed to be on the grid" in caplog.text


def lattice(spacing, origin, axes="LPS"):
    affine = np.diag([*spacing, 1.0])
    affine = geometry.reorient(np.zeros((2, 2, 2)), affine, axes)[1]
    affine[:3, 3] = origin
    return affine


HOME = lattice((0.7, 0.7, 2.5), (150, 120, -400))
SHAPE = (24, 26, 20)


@pytest.mark.parametrize(
    ("affine", "shape"),
    [
        pytest.param(lattice((1, 1, 1), (150, 120, -400)), SHAPE, id="spacing lost"),
        pytest.param(lattice((1, 1, 1), (0, 0, 0), "RAS"), SHAPE, id="all lost but the codes"),
        pytest.param(lattice((0.7, 0.7, 1.25), (150, 120, -400)), SHAPE, id="half the slices"),
        pytest.param(lattice((7, 7, 25), (150, 120, -400)), SHAPE, id="cm for mm"),
        pytest.param(lattice((2.5, 0.7, 0.7), (150, 120, -400)), SHAPE, id="order of spacing"),
        pytest.param(lattice((0.7, 0.7, 2.5), (150, 120, -400), "RPS"), SHAPE, id="flipped"),
        pytest.param(lattice((0.7, 0.7, 2.5), (150, 120, -400), "PLS"), SHAPE, id="transposed"),
        pytest.param(lattice((0.7, 0.7, 2.5), (-150, -120, -400)), SHAPE, id="origin of ITK"),
        pytest.param(lattice((0.7, 0.7, 2.5), (0, 0, 0)), SHAPE, id="origin lost"),
        pytest.param(lattice((0.7, 0.7, 2.5), (143, 120, -400)), SHAPE, id="whole voxels, rightly"),
        pytest.param(lattice((0.7, 0.7, 2.5), (147.2, 118.9, -403)), SHAPE, id="shifted"),
        pytest.param(HOME, SHAPE[::-1], id="axes of numpy"),
    ],
)
def test_two_grids_of_one_shape_that_cannot_both_be_right_are_refused(
    tmp_path, affine, shape, request
):
    labels = np.zeros(shape, np.uint8)
    labels[8:16, 8:16, 8:16] = 20
    image = save(tmp_path / "image.nii.gz", scan_values(SHAPE).astype(np.int16), HOME)
    mask = save(tmp_path / "mask.nii.gz", labels, affine)
    if "rightly" in request.node.name:
        assert scanfile.read_pair(image, mask)[1].native[18:26].any()
        return
    with pytest.raises(InputError, match="one header is wrong") as error:
        scanfile.read_pair(image, mask)
    message = one_line(error)
    assert str(mask) in message and str(image) in message
    differences = ("0.7 x 0.7 x 2.5 mm", "instead of LPS", "(150, 120, -400) mm", "26 x 20 voxels")
    assert (
        sum(f"{what};" in message.replace(", so it does not overlap", "") for what in differences)
        == 1
    )


@pytest.mark.parametrize("axis", range(3))
def test_masks_of_other_resolutions_are_still_resampled(tmp_path, axis):
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:16, 8:16, 8:16] = 20
    sides = np.array([0.7, 0.7, 2.5])
    sides[axis] /= 2
    fine, shape = resampled_grid(HOME, SHAPE, sides)
    assert shape != SHAPE
    image = save(tmp_path / "image.nii.gz", scan_values(SHAPE).astype(np.int16), HOME)
    mask = save(tmp_path / "mask.nii.gz", labels.repeat(2, axis), fine)
    np.testing.assert_array_equal(scanfile.read_pair(image, mask)[1].native, labels)


def test_half_a_voxel_is_a_matter_of_convention(tmp_path, caplog):
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:16, 8:16, 8:16] = 20
    moved = HOME.copy()
    moved[:3, 3] += HOME[:3, :3] @ (0.4, 0.4, 0.4)
    image = save(tmp_path / "image.nii.gz", scan_values(SHAPE).astype(np.int16), HOME)
    mask = save(tmp_path / "mask.nii.gz", labels, moved)
    np.testing.assert_array_equal(scanfile.read_pair(image, mask)[1].native, labels)
    assert "resampling" in caplog.text


def tilted_affine(degrees=20.0):
    """The grid of a gantry tilt: the table moves along z, the slices lean about x."""
    affine = np.diag([-0.8, -0.8, 2.0, 1.0])
    angle = np.deg2rad(degrees)
    affine[:3, 1] = (0, -0.8 * np.cos(angle), 0.8 * np.sin(angle))
    return affine


def test_a_scan_with_gantry_tilt_is_straightened():
    affine = tilted_affine()
    index = np.stack(np.indices((20, 24, 16)), -1)
    world = geometry.voxel_to_world(affine, index)
    scan = Volume(np.rint(10 * world[..., 2]).astype(np.int16), affine)
    ball = np.linalg.norm(world - world[10, 12, 8], axis=-1) < 6
    marks = LabelVolume(ball.astype(np.uint8), affine)
    straight, straight_marks = grids.straight(scan), grids.straight(marks)
    np.testing.assert_allclose(straight.affine, np.diag([-0.8, -0.8, 1.0, 1]), atol=20)
    assert geometry.straight_grid(straight.shape, straight.affine) is None
    assert (straight.array.dtype, straight_marks.array.dtype) == (np.int16, np.uint8)
    inside = straight.array > -1024
    heights = geometry.voxel_to_world(straight.affine, np.stack(np.indices(straight.shape), -1))
    off = np.abs(straight.array - 10 * heights[..., 2])[inside]
    assert np.percentile(off, 80) <= 1  # further out there are only half voxels at the border
    np.testing.assert_allclose(
        straight_marks.array.sum() * straight_marks.voxel_ml, ball.sum() * marks.voxel_ml, rtol=0.03
    )
    back = geometry.resample(
        straight_marks.array, straight.affine, scan.shape, scan.affine, order=0, fill=0
    )
    assert 2 * (back[ball] > 0).sum() / (back.sum() + ball.sum()) > 0.95


def test_a_straight_scan_is_left_alone():
    scan = Volume(np.zeros((4, 5, 6), np.int16), oblique_affine())
    assert grids.straight(scan) is scan
    slightly = Volume(np.zeros((4, 5, 6), np.int16), tilted_affine(0.3))
    assert grids.straight(slightly) is slightly
