"""Names of scan files."""

from pathlib import Path

import pytest

from spinejax.io import scanfile


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-verse014_ct.nii.gz", "sub-verse014"),
        ("sub-verse014_seg-vert_msk.nii.gz", "sub-verse014"),
        ("sub-verse521_dir-ax_ct.nii.gz", "sub-verse521_dir-ax"),
        ("verse004_seg.nii.gz", "verse004"),
        ("verse506_CT-iso.nii.gz", "verse506_CT-iso"),
        ("case.7.nii", "case.7"),
        ("scan_CT.NII.GZ", "scan"),
        ("_ct.nii.gz", "_ct"),
    ],
)
def test_case_ids(name, expected):
    assert scanfile.case_id(f"/some/where/{name}") == expected


def test_nifti_names():
    assert scanfile.is_scan("a.nii")
    assert scanfile.is_scan(Path("x/a.NII.gz"))
    for name in ("a.nii.gz.part", "a.json", ".tmp-abc-a.nii.gz", "._a.nii.gz", "nii"):
        assert not scanfile.is_scan(name)
