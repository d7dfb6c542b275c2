"""Label maps, and their pairing with scans."""

import nibabel as nib
import numpy as np
import pytest

from spinejax import labels
from spinejax.errors import InputError
from spinejax.io import scanfile
from spinejax.volume import LabelVolume
from tests.support.nifti_files import (
    one_line,
    save,
)

VERSE = (0, *labels.VERSE_IDS)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", "i1"])
def test_labels_of_any_type_are_read_as_uint8(tmp_path, dtype):
    labels = np.random.default_rng(0).choice(VERSE, (6, 7, 8))
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(labels.astype(dtype), np.eye(4), dtype=dtype), path)
    read = scanfile.read_labels(path)
    assert isinstance(read, LabelVolume)
    assert read.native.dtype == np.uint8
    np.testing.assert_array_equal(read.native, labels)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_labels_that_a_writer_has_quantised_are_rounded(tmp_path, dtype):
    labels = np.random.default_rng(0).choice(VERSE, (6, 7, 8))
    made = nib.Nifti1Image(labels.astype(np.float64), np.eye(4))
    made.set_data_dtype(dtype)  # nibabel chooses a slope that spreads 0..28 over the whole type
    nib.save(made, tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").dataobj.slope not in (0, 1)
    np.testing.assert_array_equal(scanfile.read_labels(tmp_path / "a.nii.gz").native, labels)


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
        scanfile.read_labels(path)
    assert one_line(error).startswith(str(path))


def test_which_labels_are_valid_can_be_said(tmp_path):
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, :2] = (41, 255)
    path = save(tmp_path / "a.nii.gz", labels)
    np.testing.assert_array_equal(scanfile.read_labels(path, None).native, labels)
    with pytest.raises(InputError, match="label 255 is out of range; allowed are 0, 41"):
        scanfile.read_labels(path, {0, 41})


def test_masks_of_other_programs_become_verse_ids(tmp_path):
    marks = np.zeros((4, 4, 6), np.uint8)
    marks[1, 1] = (26, 27, 28, 0, 5, 31)  # S1, L5, L4, background, an organ, L1
    path = save(tmp_path / "a.nii.gz", marks, np.eye(4))
    valid = scanfile.valid_labels("totalsegmentator")
    read = scanfile.read_labels(path, valid)
    assert read.native[1, 1].tolist() == [0, 24, 23, 0, 0, 20]
    assert read.found == (31, 5, 28, 27, 26) and read.reserved == ()
    image = save(tmp_path / "ct.nii.gz", np.zeros((4, 4, 6), np.int16), np.eye(4))
    np.testing.assert_array_equal(
        scanfile.read_pair(image, path, valid=valid)[1].native, read.native
    )
    marks[1, 1, 4:] = (29, 30)
    path = save(tmp_path / "b.nii.gz", marks, np.eye(4))
    with pytest.raises(InputError, match="29, 30 is out of range; .* use data.labels=totalsegm"):
        scanfile.read_labels(path)


def test_numbers_beyond_255_are_read_where_any_will_do(tmp_path):
    labels = np.zeros((6, 6, 6), np.int32)
    labels[0].flat[:21] = 100 * np.arange(21)
    path = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(labels, np.eye(4), dtype="int32"), path)
    read = scanfile.read_labels(path, None).native
    np.testing.assert_array_equal(read > 0, labels > 0)
    assert len(np.unique(read)) == 21
    np.testing.assert_array_equal(read[labels < 256], labels[labels < 256])


def test_sacrum_and_coccyx_become_background(tmp_path):
    marks = np.zeros((4, 4, 4), np.uint8)
    marks[0, 0] = (20, 26, 27, 28)
    path = save(tmp_path / "a.nii.gz", marks)
    for read in (scanfile.read_labels(path), scanfile.read_labels(path, range(256))):
        assert read.native[0, 0].tolist() == [20, 0, 0, 28]
        assert read.reserved == (26, 27)
    # Any number is a vertebra.
    read = scanfile.read_labels(path, None)
    assert read.native[0, 0].tolist() == [20, 26, 27, 28]
    assert read.reserved == ()
    # In another scheme, 26 and 27 are something else.
    marks[1, 1, 1] = 31
    read = scanfile.read_labels(save(path, marks), range(256))
    np.testing.assert_array_equal(read.native, marks)
