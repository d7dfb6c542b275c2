"""Names of scan files."""

import os
from pathlib import Path

import pytest

from spinejax.errors import InputError
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


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("sub-verse014", "sub-verse014"),
        ("März 日本", "März 日本"),
        (os.fsdecode(b"a\xff"), "a%FF"),
        ("a\nb\tc\x1b", "a%0Ab%09c%1B"),
        ("\u202ea", "%E2%80%AEa"),
    ],
)
def test_names_of_results_can_be_printed_and_written(name, safe):
    assert scanfile.safe_name(name) == safe == scanfile.safe_name(safe)


def test_names_of_results_leave_room_for_an_ending():
    one, other = (scanfile.safe_name("ü" * 120 + end) for end in "ab")
    assert one != other and one[:90] == other[:90]
    assert len(one.encode()) <= 200 and scanfile.safe_name(one) == one


def test_walking_follows_links_once_and_names_what_it_cannot_list(tmp_path, monkeypatch):
    for folder in ("a", "a/empty.nii.gz", "a/unpacked.nii.gz", "locked"):
        (tmp_path / folder).mkdir()
    for file in ("a/b.nii", "a/unpacked.nii.gz/c.nii", "locked/d.nii"):
        (tmp_path / file).touch()
    (tmp_path / "a/loop").symlink_to(tmp_path, target_is_directory=True)
    scandir = os.scandir

    def guarded(path="."):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    failed: dict[str, str] = {}
    found = {
        str((folder / name).relative_to(tmp_path))
        for folder, _, names in scanfile.walk(tmp_path, failed)
        for name in names
    }
    assert found == {"a/b.nii", "a/unpacked.nii.gz/c.nii", "a/empty.nii.gz"}
    assert list(failed) == [str(tmp_path / "locked")]
    with pytest.raises(InputError, match="locked: cannot be listed"):
        list(scanfile.walk(tmp_path))
