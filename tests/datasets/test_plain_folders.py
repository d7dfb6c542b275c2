"""Scans, references and masks of folders in any layout."""

from pathlib import Path

import numpy as np
import pytest

from spinejax.datasets import plain_folders
from spinejax.errors import InputError
from spinejax.io import nifti
from spinejax.volume import Volume


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_the_scans_of_a_folder_are_its_cts(tmp_path):
    touch(tmp_path, "a_ct.nii.gz", "deep/b.mha", "masks/a.nii.gz", "a_seg.nii.gz", ".c.nii.gz", "d")
    (tmp_path / "deep/loop").symlink_to(tmp_path)
    found = plain_folders.scan_files(tmp_path)
    assert found == {"a": tmp_path / "a_ct.nii.gz", "b": tmp_path / "deep/b.mha"}
    assert plain_folders.scan_files(tmp_path / "a_ct.nii.gz") == {"a": tmp_path / "a_ct.nii.gz"}
    nnunet = touch(tmp_path / "imagesTs", "x_0000.nii.gz")
    assert list(plain_folders.scan_files(nnunet)) == ["x"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no CT"),
        (("a_seg.nii.gz",), "no CT"),
        (("1/a.nii.gz", "2/a.nii.gz"), "a: .*1/a.nii.gz and .*2/a.nii.gz have one name"),
    ],
)
def test_folders_without_scans_or_with_equal_names_are_refused(tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        plain_folders.scan_files(touch(tmp_path, *names))
    with pytest.raises(InputError, match="no such file or folder"):
        plain_folders.scan_files(tmp_path / "none")


def test_a_case_with_several_files_is_left_out_alone(tmp_path):
    touch(tmp_path, "a.nii", "a.nii.gz", "1/a.mha", "b.nii.gz", "c.nii.gz", "1/c.nii")
    for find in (plain_folders.scan_files, plain_folders.label_files):
        failed: dict[str, str] = {}
        assert list(find(tmp_path, failed)) == ["b"]
        assert failed.keys() == {"a", "c"}
        assert "and 1 more have one name; rename all but one" in failed["a"]
        with pytest.raises(InputError, match="have one name"):
            find(tmp_path)


def test_references_are_found_by_case_and_missing_ones_are_told(tmp_path, caplog):
    touch(tmp_path, "A_seg.nii.gz", "other_seg.nii.gz")
    found = plain_folders.reference_files(tmp_path, ["a", "b"])
    assert found == {"a": tmp_path / "A_seg.nii.gz"}
    assert "no label file for case b; predicting it without" in caplog.text
    one = tmp_path / "A_seg.nii.gz"
    assert plain_folders.reference_files(one, ["any"]) == {"any": one}
    with pytest.raises(InputError, match="one file for 2 scans"):
        plain_folders.reference_files(one, ["a", "b"])
    with pytest.raises(InputError, match="no label file for case c"):
        plain_folders.reference_files(tmp_path, ["c"])


def test_label_files_are_those_that_say_mask_or_else_all(tmp_path):
    touch(tmp_path / "mixed", "a_ct.nii.gz", "a_seg.nii.gz")
    assert list(plain_folders.label_files(tmp_path / "mixed")) == ["a"]
    touch(tmp_path / "plain", "B.nii.gz", "c.nii.gz")
    assert list(plain_folders.label_files(tmp_path / "plain")) == ["b", "c"]
    touch(tmp_path / "twice", "a_seg.nii.gz", "a_mask.nii.gz")
    with pytest.raises(InputError, match="have one name; rename"):
        plain_folders.label_files(tmp_path / "twice")


def test_a_longer_name_beside_a_ct_is_its_mask_if_it_holds_verse_ids(tmp_path):
    ct = Volume(np.zeros((3, 4, 5), np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]))
    nifti.write_volume(tmp_path / "x.nii.gz", ct)
    labels = np.zeros((3, 4, 5), np.uint8)
    for name, value in (("x_bones", 200), ("x_vertebrae", 20)):
        labels[1] = value
        nifti.write_labels(tmp_path / f"{name}.nii.gz", labels, ct)
    (found,) = plain_folders.with_masks(tmp_path)
    assert (found.id, found.labels) == ("x", tmp_path / "x_vertebrae.nii.gz")
    (tmp_path / "x_vertebrae.nii.gz").unlink()
    with pytest.raises(InputError, match="no CT with a mask"):
        plain_folders.with_masks(tmp_path)


def test_a_file_in_place_of_a_folder_is_called_a_file(tmp_path):
    path = tmp_path / "ct.nii.gz"
    path.touch()
    with pytest.raises(InputError, match="is a file, not a folder"):
        plain_folders.real_scans(path)
    with pytest.raises(InputError, match="no such folder"):
        plain_folders.real_scans(tmp_path / "nowhere")


def test_a_segmentation_for_slicer_beside_its_labels_is_no_second_file(tmp_path):
    """`predict --formats=seg.nrrd` writes both into one folder."""
    for name in ("a_seg.nii.gz", "a.seg.nrrd", "b_seg.nii.gz"):
        (tmp_path / name).touch()
    files = {case: path.name for case, (_, path) in plain_folders.label_files(tmp_path).items()}
    assert files == {"a": "a_seg.nii.gz", "b": "b_seg.nii.gz"}
