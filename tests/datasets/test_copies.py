"""One scan under several names is found by its voxels and kept in one split."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from spinejax import geometry
from spinejax.datasets import copies, splits
from spinejax.datasets.verse import Case
from spinejax.io import nifti, scanfile
from spinejax.volume import Volume
from tests.support.nifti_files import oblique_affine, save, tissue


def digest(path):
    return copies.voxel_digest(scanfile.read_volume(path))


def cases_of(paths):
    return [Case(id=name, subject=name, image=path, labels=path) for name, path in paths.items()]


def test_copies_are_found_in_any_form(tmp_path):
    hu, affine = tissue((9, 10, 11)), oblique_affine()
    turned, turned_affine = geometry.reorient(hu, affine, "PIR")
    other = hu.copy()
    other[4, 4, 4] += 1
    spaced = affine @ np.diag([2, 1, 1, 1])
    paths = {
        "a": save(tmp_path / "a.nii.gz", hu, affine),
        "bytes": save(tmp_path / "bytes.nii.gz", hu, affine),
        "plain": save(tmp_path / "plain.nii", hu, affine),
        "turned": save(tmp_path / "turned.nii.gz", np.ascontiguousarray(turned), turned_affine),
        "float": save(tmp_path / "float.nii.gz", hu.astype(np.float64), affine),
        "nifti2": save(tmp_path / "nifti2.nii.gz", hu, affine, nib.Nifti2Image),
        "spaced": save(tmp_path / "spaced.nii.gz", hu, spaced),
        "other": save(tmp_path / "other.nii.gz", other, affine),
        "cropped": save(tmp_path / "cropped.nii.gz", hu[1:], affine),
        "damaged": tmp_path / "damaged.nii.gz",
        "gone": tmp_path / "gone.nii.gz",
    }
    nifti.write_volume(tmp_path / "sloped.nii.gz", Volume(hu, affine), "int32", slope=0.5, inter=-7)
    paths["sloped"] = tmp_path / "sloped.nii.gz"
    paths["damaged"].write_bytes(paths["a"].read_bytes()[:400])
    (found,) = copies.same_scans(cases_of(paths), digest)
    same = {"a", "bytes", "plain", "turned", "float", "nifti2", "spaced", "sloped"}
    assert found == sorted(same)


def test_only_scans_of_equal_shape_are_read(tmp_path):
    paths = {
        str(n): save(tmp_path / f"{n}.nii.gz", tissue((9, 10, n)), oblique_affine())
        for n in range(2, 6)
    }
    assert copies.same_scans(cases_of(paths), lambda path: pytest.fail("read")) == []


def test_patients_of_copies_become_one():
    cases = [
        Case(id=i, subject=i[0], image=None, labels=None) for i in ("a1", "a2", "b1", "c1", "d1")
    ]
    joined = copies.as_one_patient(cases, [["a2", "c1"], ["c1", "d1"]])
    assert [case.subject for case in joined] == ["a", "a", "b", "a", "a"]
    assert copies.as_one_patient(cases, []) == cases


def test_copies_are_in_one_split_and_others_stay_where_they_are():
    cases = [Case(id=f"p{i}", subject=f"p{i}", image=None, labels=None) for i in range(20)]
    joined = copies.as_one_patient(cases, [["p3", "p8", "p12"]])
    for seed in range(5):
        split = splits.split_cases(joined, kind="ratio", seed=seed)
        where = [name for name, those in split.items() for case in those
                 if case.id in ("p3", "p8", "p12")]  # fmt: skip
        assert len(where) == 3 and len(set(where)) == 1
    official = [
        replace(case, subset="test" if case.id == "p8" else "val" if case.id == "p1" else "train")
        for case in joined
    ]
    held = splits.split_cases(official, kind="official")["test"]
    assert [case.id for case in held] == ["p12", "p3", "p8"]
