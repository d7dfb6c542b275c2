"""The parts of file names, in each layout; `tests/datasets/test_verse.py` has whole folders."""

from pathlib import Path

import pytest

from spinejax.io import file_names


@pytest.mark.parametrize(
    ("path", "role", "case", "ids", "subset", "edition"),
    [
        (
            "dataset-verse19training/rawdata/sub-verse401_split-verse253_ct.nii.gz",
            *("image", "sub-verse401_split-verse253", ("verse401", "verse253")),
            *("train", "verse19"),
        ),
        (
            "02_validation/derivatives/sub-gl003_dir-ax_seg-vert_msk.nii.gz",
            *("labels", "sub-gl003_dir-ax", ("gl003",), "val", "verse20"),
        ),
        (
            "derivatives/sub-gl003_dir-ax_seg-subreg_ctd.json",
            *("centroids", "sub-gl003_dir-ax", ("gl003",), None, None),
        ),
        ("imagesTs/case_07_0000.nii.gz", "image", "case_07", (), "test", None),
        ("imagesTs/case_07_0001.nii.gz", "other", "case_07_0001", (), "test", None),
        ("labelsTr/case_07.nii.gz", "labels", "case_07", (), "train", None),
        ("case1.mhd", "image", "case1", (), None, None),
        ("case1_label.mhd", "labels", "case1", (), None, None),
        ("s0001/ct.nii.gz", "image", "s0001", (), None, None),
    ],
)
def test_names_say_role_case_and_origin(path, role, case, ids, subset, edition):
    found = file_names.parse(Path(path), Path(path).parts[:-1])
    assert (found.role, found.id, found.ids) == (role, case, ids)
    assert (found.subset, found.edition) == (subset, edition)


def test_hidden_and_temporary_files_are_not_relevant():
    assert file_names.is_relevant("a.nii.gz") and file_names.is_relevant("A.JSON")
    for name in (".a.nii.gz", "~a.nii.gz", "a.txt", "a.nii.gz.part"):
        assert not file_names.is_relevant(name)
