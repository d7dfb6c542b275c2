"""Masks in nnU-Net's layout: their numbers mean what `dataset.json` says."""

import json
from functools import partial

import numpy as np
import pytest

from spinejax import labels, scoring
from spinejax.data import cache
from spinejax.data.preprocess import SlicePreprocess
from spinejax.datasets import plain_folders, verse
from spinejax.datasets.doctor import doctor
from spinejax.errors import InputError
from spinejax.io import nnunet, scanfile
from tests.support import nifti_files
from tests.support.nifti_files import tissue

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
save = partial(nifti_files.save, affine=AFFINE)
SHAPE = (24, 24, 30)
NAMES = {"background": 0, "disc": 1, "vertebrae_L2": 2, "L1": 3, "T13": 4, "sacrum": 5}


def mask(*numbers):
    """One box per number, from the top down."""
    array = np.zeros(SHAPE, np.uint8)
    for i, number in enumerate(numbers):
        array[8:16, 8:16, 24 - 5 * i : 28 - 5 * i] = number
    return array


def write(root, names=NAMES, numbers=(4, 3, 1, 2, 5), channels=("CT",), **more):
    root.mkdir(parents=True, exist_ok=True)
    content = {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": names,
        "numTraining": 1,
        "file_ending": ".nii.gz",
    } | more
    (root / "dataset.json").write_text(json.dumps(content))
    save(root / "imagesTr" / "CASE_7_0000.nii.gz", tissue(SHAPE, 0).astype(np.int16))
    return save(root / "labelsTr" / "CASE_7.nii.gz", mask(*numbers))


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("L1", "L1"), ("vertebrae_L1", "L1"), ("vertebra T12", "T12"), ("t01", "T1"), ("Th3", "T3"),
        ("L6 vertebra", "L6"), ("vert-C7", "C7"), ("T13", "T13"), (" C2 ", "C2"),
    ],
)  # fmt: skip
def test_names_of_vertebrae(name, level):
    assert nnunet.vertebra(name) == labels.id_of(level)


@pytest.mark.parametrize(
    "name", ["L7", "T14", "C8", "T0", "S1", "vertebrae_S1", "L1-L2", "L", "1", "rib_T1", "clavicle"]
)
def test_names_of_what_is_no_vertebra(name):
    assert nnunet.vertebra(name) == 0


def test_a_mask_is_read_by_names(tmp_path):
    path = write(tmp_path / "d")
    found = scanfile.read_labels(path)
    np.testing.assert_array_equal(found.native, mask(28, 20, 0, 21, 0))
    assert found.found == (28, 20, 21)
    # In another folder, the same numbers are VerSe's.
    other = save(tmp_path / "other" / "CASE_7.nii.gz", mask(4, 3, 1, 2, 5))
    np.testing.assert_array_equal(scanfile.read_labels(other).native, mask(4, 3, 1, 2, 5))


def test_another_choice_of_numbers_is_obeyed(tmp_path):
    path = write(tmp_path / "d", numbers=(43, 42, 41))
    found = scanfile.read_labels(path, scanfile.valid_labels("totalsegmentator"))
    np.testing.assert_array_equal(found.native, mask(8, 9, 10))
    assert set(np.unique(scanfile.read_labels(path, None).array)) == {0, 41, 42, 43}


def test_version_1_and_regions(tmp_path):
    by_number = {"0": "background", "3": "L1", "4": "canal"}
    path = write(tmp_path / "d", by_number, (3, 4), channel_names=None, modality={"0": "CT"})
    np.testing.assert_array_equal(scanfile.read_labels(path).native, mask(20, 0))
    regions = {"background": 0, "spine": [1, 2, 3], "L1": [1, 2], "L2": 3}
    path = write(tmp_path / "e", regions, (1, 2, 3), regions_class_order=[1, 2, 3])
    np.testing.assert_array_equal(scanfile.read_labels(path).native, mask(20, 20, 21))


def test_predictions_of_nnunet_are_read_by_names(tmp_path):
    predicted = save(tmp_path / "out" / "CASE_7.nii.gz", mask(4, 3, 1, 2))
    reference = write(tmp_path / "d")
    (tmp_path / "out" / "dataset.json").write_bytes((tmp_path / "d/dataset.json").read_bytes())
    np.testing.assert_array_equal(scanfile.read_labels(predicted).native, mask(4, 3, 1, 2))
    (tmp_path / "out" / "plans.json").write_text("{}")
    np.testing.assert_array_equal(scanfile.read_labels(predicted).native, mask(28, 20, 0, 21))
    scores = scoring.score(predicted.parent, reference.parent)
    assert scores["cases"]["CASE_7"]["vertebrae"]["id_rate"] == 1


@pytest.mark.parametrize(
    ("names", "numbers", "words"),
    [
        ({"background": 0, "spine": 1}, (1,), "none of its labels.*spine.*data.labels=binary"),
        ({"background": 0, "L1": 1}, (1, 9), "label 9 is none of dataset.json"),
        ({"background": 0, "L1": 1, "ignore": 2}, (1, 2), "label 2 .* the one to ignore"),
        ({"background": 0, "L1": 1, "vertebrae_L2": 1}, (1,), "1 is both L1 and L2"),
        ({"L1": 0, "L2": 1}, (1,), "0 is L1, not background"),
        ({"L1": "a"}, (1,), "its labels have no numbers"),
        ({"L1": 1.5}, (1,), "damaged"),
        ({"L1": 300}, (1,), "label 300 is out of range"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, names, numbers, words):
    path = write(tmp_path / "d", names, numbers)
    with pytest.raises(InputError, match=words) as error:
        scanfile.read_labels(path)
    assert "\n" not in str(error.value)


def test_several_channels_are_refused(tmp_path):
    write(tmp_path / "d", channels=("CT", "T1"))
    calls = (
        lambda: verse.index_dataset(tmp_path / "d"),
        lambda: verse.index_dataset(tmp_path),
        lambda: plain_folders.scan_files(tmp_path / "d"),
        lambda: plain_folders.scan_files(tmp_path / "d" / "imagesTr"),
    )
    for call in calls:
        with pytest.raises(InputError, match=r"has 2 channels \(CT, T1\)"):
            call()


def test_a_dataset_json_of_another_program_is_ignored(tmp_path):
    path = write(tmp_path / "d")
    (tmp_path / "d" / "dataset.json").write_text('[{"labels": 3}]')
    np.testing.assert_array_equal(scanfile.read_labels(path).native, mask(4, 3, 1, 2, 5))
    assert len(verse.index_dataset(tmp_path / "d")) == 1


def test_the_cache_obeys_the_names(tmp_path):
    path = write(tmp_path / "d")
    (case,) = verse.index_dataset(tmp_path / "d")
    assert case.labels == path and case.subset == "train"

    def prepared():
        (found,) = cache.prepare([case], SlicePreprocess(), tmp_path / "cache")
        return np.array(found.label)

    first = prepared()
    write(tmp_path / "d", NAMES | {"disc": 3, "L1": 1})
    second = prepared()
    assert set(np.unique(first)) == set(np.unique(second)) == {0, 20, 21, 28}
    assert (first == 20).any() and not ((first == 20) & (second == 20)).any()
    write(tmp_path / "d", {name: i for name, i in NAMES.items() if name != "L1"})
    with pytest.raises(InputError, match="label 3 is none of"):
        prepared()


def test_the_doctor_says_what_the_names_are(tmp_path):
    write(tmp_path / "d")
    report = doctor(tmp_path / "d")
    assert "labels    3 vertebrae by their names in d/dataset.json; background: disc, sacrum" in (
        report.lines
    )
    assert any("T13 1" in line for line in report.lines)
    write(tmp_path / "d", {"background": 0, "spine": 1}, (1,))
    assert any("data.labels=binary" in problem for problem in doctor(tmp_path / "d").problems)
