"""Data sets in nnU-Net's and VerSe's layout: what is written, and the way there and back."""

import json
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from spinejax import labels
from spinejax.cli import main
from spinejax.datasets import conversion, verse
from spinejax.errors import InputError
from spinejax.io import scanfile
from spinejax.phantom.dataset import write_dataset
from tests.support import nifti_files
from tests.support.cli_runs import fails, snapshot
from tests.support.nifti_files import tissue

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
save = partial(nifti_files.save, affine=AFFINE)
SHAPE = (20, 22, 24)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms") / "verse"
    write_dataset(root, 2, 0, max_voxels=40_000)
    return root


def box(*numbers):
    array = np.zeros(SHAPE, np.uint8)
    for i, number in enumerate(numbers):
        array[6:14, 6:14, 18 - 5 * i : 22 - 5 * i] = number
    return array


def read(case):
    return scanfile.read_pair(case.image, case.labels)


def by_subject(root):
    return {case.id: case for case in verse.usable(verse.index_dataset(root))}


def test_to_nnunet_and_back_is_equal(phantoms, tmp_path):
    there, back = tmp_path / "Dataset501_Spine", tmp_path / "back"
    assert len(conversion.convert(phantoms, there, "nnunet")) == 2
    conversion.convert(there, back, "verse")
    first, second, third = map(by_subject, (phantoms, there, back))
    assert first.keys() == second.keys() == third.keys() and len(first) == 2
    for name in first:
        scans = [read(one[name]) for one in (first, second, third)]
        image, mask = scans[0]
        assert mask.array.any()
        for other_image, other_mask in scans[1:]:
            np.testing.assert_array_equal(other_image.native, image.native)
            np.testing.assert_array_equal(other_mask.native, mask.native)
            np.testing.assert_allclose(other_image.native_affine, image.native_affine, atol=1e-5)
    assert {case.subset for case in third.values()} == {"train"}


def test_nnunet_finds_what_its_documentation_asks_for(phantoms, tmp_path):
    root = tmp_path / "Dataset501_Spine"
    conversion.convert(phantoms, root, "nnunet")
    content = json.loads((root / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "CT"} and content["file_ending"] == ".nii.gz"
    numbers = content["labels"]
    assert numbers["background"] == 0
    assert sorted(numbers.values()) == list(range(len(labels.VERSE_IDS) + 1))
    images = sorted((root / "imagesTr").glob("*.nii.gz"))
    assert content["numTraining"] == len(images) == 2
    for image in images:
        mask = root / "labelsTr" / image.name.replace("_0000.nii.gz", ".nii.gz")
        # By nnU-Net's own reader: equal grids, and no number without a name.
        one, other = sitk.ReadImage(str(image)), sitk.ReadImage(str(mask))
        assert one.GetSize() == other.GetSize()
        for field in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(one, field)() == pytest.approx(getattr(other, field)())
        values = sitk.GetArrayFromImage(other)
        assert set(np.unique(values)) <= set(numbers.values())
        (original,) = phantoms.glob(f"derivatives/{mask.name[:-7]}/*_msk.nii.gz")
        names = {number: name for name, number in numbers.items()}
        for verse_id in np.unique(nib.load(original).get_fdata()[...]):
            if verse_id:
                written = np.unique(values.T[nib.load(original).get_fdata() == verse_id])
                assert [names[i] for i in written] == [labels.name(int(verse_id))]


def test_masks_get_the_grid_of_their_ct(tmp_path):
    save(tmp_path / "d" / "a_ct.nii.gz", tissue(SHAPE, 0).astype(np.int16))
    turned = np.ascontiguousarray(box(19, 28, 20)[::-1])
    flipped = AFFINE @ np.array([[-1, 0, 0, 19], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    save(tmp_path / "d" / "a_seg.nii.gz", turned, affine=flipped)
    conversion.convert(tmp_path / "d", tmp_path / "out", "nnunet")
    written = nib.load(tmp_path / "out" / "labelsTr" / "a.nii.gz")
    np.testing.assert_allclose(written.affine, AFFINE)
    np.testing.assert_array_equal(written.get_fdata(), box(19, 26, 20))  # T13 is the last number


def test_test_scans_and_scans_without_mask_are_no_training_scans(tmp_path):
    root = tmp_path / "d"
    for subset, name in (("training", "a"), ("test", "b")):
        save(root / subset / f"{name}_ct.nii.gz", tissue(SHAPE, ord(name)).astype(np.int16))
        save(root / subset / f"{name}_seg.nii.gz", box(20, 21))
    save(root / "training" / "c_ct.nii.gz", tissue(SHAPE, 3).astype(np.int16))
    conversion.convert(root, tmp_path / "out", "nnunet")
    found = {str(path) for path in snapshot(tmp_path / "out") if path.suffix == ".gz"}
    assert found == {
        "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b_0000.nii.gz",
        "labelsTs/b.nii.gz", "imagesTs/c_0000.nii.gz",
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["numTraining"] == 1
    conversion.convert(tmp_path / "out", tmp_path / "back", "verse")
    cases = verse.index_dataset(tmp_path / "back")
    assert [(case.id, case.subset) for case in cases] == [
        ("sub-a", "train"), ("sub-b", "test"), ("sub-c", "test"),
    ]  # fmt: skip


def test_names_of_patients_stay_apart(tmp_path):
    for name in ("CASE_1", "CASE_2"):
        save(tmp_path / "d" / "imagesTr" / f"{name}_0000.nii.gz", tissue(SHAPE, 1).astype(np.int16))
        save(tmp_path / "d" / "labelsTr" / f"{name}.nii.gz", box(20, 21))
    conversion.convert(tmp_path / "d", tmp_path / "out", "verse")
    cases = verse.index_dataset(tmp_path / "out")
    assert [case.subject for case in cases] == ["sub-case1", "sub-case2"]
    another = tmp_path / "d" / "imagesTr" / "CASE-1_0000.nii.gz"
    another.write_bytes((tmp_path / "d" / "imagesTr" / "CASE_1_0000.nii.gz").read_bytes())
    with pytest.raises(InputError, match="would both become"):
        conversion.convert(tmp_path / "d", tmp_path / "again", "verse")
    assert not (tmp_path / "again").exists()


def test_other_numbers_and_masks_without_levels(tmp_path):
    save(tmp_path / "d" / "a_ct.nii.gz", tissue(SHAPE, 0).astype(np.int16))
    save(tmp_path / "d" / "a_seg.nii.gz", box(31, 30))
    conversion.convert(tmp_path / "d", tmp_path / "n", "nnunet", scheme="totalsegmentator")
    np.testing.assert_array_equal(
        nib.load(tmp_path / "n" / "labelsTr" / "a.nii.gz").get_fdata(), box(20, 21)
    )
    conversion.convert(tmp_path / "d", tmp_path / "b", "nnunet", scheme="binary")
    np.testing.assert_array_equal(
        nib.load(tmp_path / "b" / "labelsTr" / "a.nii.gz").get_fdata(), box(1, 1)
    )
    content = json.loads((tmp_path / "b" / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "vertebra": 1}
    with pytest.raises(InputError, match="needs the names of vertebrae"):
        conversion.convert(tmp_path / "d", tmp_path / "v", "verse", scheme="binary")


def test_a_bad_scan_does_not_stop_the_others(tmp_path, capsys):
    root = tmp_path / "d"
    for name in "ab":
        save(root / f"{name}_ct.nii.gz", tissue(SHAPE, ord(name)).astype(np.int16))
        save(root / f"{name}_seg.nii.gz", box(20, 21))
    (root / "a_seg.nii.gz").write_text("text")
    words = ["convert", root, "--layout=nnunet", "-o", tmp_path / "out"]
    fails(capsys, words, "1 of 2 scans failed", "a_seg.nii.gz", "the rest are written")
    assert not (tmp_path / "out" / "imagesTr" / "a_0000.nii.gz").exists()
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["numTraining"] == 1
    save(root / "a_seg.nii.gz", box(20, 21))
    assert main([*map(str, words)]) == 0  # replaces its own files
    assert "2 scans in" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["numTraining"] == 2


def test_bad_requests(tmp_path, capsys):
    root = tmp_path / "d"
    save(root / "a_ct.nii.gz", tissue(SHAPE, 0).astype(np.int16))
    fails(capsys, ["convert", root, "--layout=verse", "-o", tmp_path / "o"], "no CT with a mask")
    save(root / "a_seg.nii.gz", box(20, 21))
    before = snapshot(tmp_path)
    fails(capsys, ["convert", root, "-o", tmp_path / "o"], "--layout")
    fails(capsys, ["convert", root, "--layout=nnunet", "-o", root / "o"], "lies in the data set")
    assert snapshot(tmp_path) == before
    save(tmp_path / "o" / "labelsTr" / "a.nii.gz", box(9))
    (tmp_path / "o" / "dataset.json").write_text("mine")
    theirs = (tmp_path / "o" / "labelsTr" / "a.nii.gz").read_bytes()
    fails(capsys, ["convert", root, "--layout=nnunet", "-o", tmp_path / "o"], "did not write")
    assert (tmp_path / "o" / "labelsTr" / "a.nii.gz").read_bytes() == theirs
    assert (tmp_path / "o" / "dataset.json").read_text() == "mine"
    assert not list((tmp_path / "o").glob("imagesTr/*.gz"))
