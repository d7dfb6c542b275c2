"""Label maps, and their pairing with scans."""

import nibabel as nib
import numpy as np
import pytest

from spinejax import geometry
from spinejax.errors import InputError
from spinejax.io import nifti, scanfile
from spinejax.volume import LabelVolume
from tests.support.nifti_files import (
    forms,
    oblique_affine,
    one_line,
    resampled_grid,
    save,
    scan_values,
    shifted,
)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", "i1"])
def test_labels_of_any_type_are_read_as_uint8(tmp_path, dtype):
    labels = np.random.default_rng(0).integers(0, 29, (6, 7, 8))
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(labels.astype(dtype), np.eye(4), dtype=dtype), path)
    read = nifti.read_labels(path)
    assert isinstance(read, LabelVolume)
    assert read.native.dtype == np.uint8
    np.testing.assert_array_equal(read.native, labels)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_labels_that_a_writer_has_quantised_are_rounded(tmp_path, dtype):
    labels = np.random.default_rng(0).integers(0, 29, (6, 7, 8))
    made = nib.Nifti1Image(labels.astype(np.float64), np.eye(4))
    made.set_data_dtype(dtype)  # nibabel chooses a slope that spreads 0..28 over the whole type
    nib.save(made, tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").dataobj.slope not in (0, 1)
    np.testing.assert_array_equal(nifti.read_labels(tmp_path / "a.nii.gz").native, labels)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (0.5, "float32", "whole numbers"),
        (np.nan, "float64", "whole numbers"),
        (np.inf, "float32", "whole numbers"),
        (-3, "int16", "label -3 is out of range"),
        (-1, "int8", "label -1 is out of range"),
        (29, "uint8", "label 29 is out of range; allowed are 0 to 28"),
        (1000, "int32", "label 1000 is out of range"),
        (2**40, "int64", "is out of range"),
        (1e30, "float64", "is out of range"),
    ],
)
def test_values_that_are_no_labels_are_refused(tmp_path, value, dtype, message):
    labels = np.zeros((4, 4, 4), dtype)
    labels[1, 2, 3] = value
    path = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(labels, np.eye(4), dtype=dtype), path)
    with pytest.raises(InputError, match=message) as error:
        nifti.read_labels(path)
    assert one_line(error).startswith(str(path))


def test_which_labels_are_valid_can_be_said(tmp_path):
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, :2] = (41, 255)
    path = save(tmp_path / "a.nii.gz", labels)
    np.testing.assert_array_equal(nifti.read_labels(path, None).native, labels)
    with pytest.raises(InputError, match="label 255 is out of range; allowed are 0, 41"):
        nifti.read_labels(path, {0, 41})


def test_numbers_beyond_255_are_read_where_any_will_do(tmp_path):
    labels = np.zeros((6, 6, 6), np.int32)
    labels[0].flat[:21] = 100 * np.arange(21)
    path = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(labels, np.eye(4), dtype="int32"), path)
    read = nifti.read_labels(path, None).native
    np.testing.assert_array_equal(read > 0, labels > 0)
    assert len(np.unique(read)) == 21
    np.testing.assert_array_equal(read[labels < 256], labels[labels < 256])


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
    assert "taken to be on the grid" in caplog.text


def test_a_mask_that_agrees_with_the_other_form_of_the_scan_is_paired(tmp_path, caplog):
    image = forms(tmp_path / "image.nii", oblique_affine(), 1, shifted(20), 1)
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[2:4, 2:4, 2:4] = 3
    made = nib.Nifti1Image(labels, shifted(20))
    nib.save(made, tmp_path / "mask.nii.gz")
    _, read = scanfile.read_pair(image, tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(read.native, labels)
    assert "taken to be on the grid" in caplog.text
