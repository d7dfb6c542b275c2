"""`spinejax score`: bad masks are refused; see test_predict.py for its numbers."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from spinejax.cli import main
from tests.support.cli_runs import bad_mask, fails, mask_of


@pytest.mark.parametrize("kind", ["elsewhere", "out_of_range", "negative", "fractional"])
def test_bad_masks_are_refused(kind, dataset, tmp_path, capsys):
    path, target = bad_mask(kind, tmp_path), tmp_path / "new" / "scores.json"
    arguments = ["score", f"--prediction={path}", f"--reference={mask_of(dataset)}"]
    fails(capsys, [*arguments, f"--output={target}"], path.name, ";")
    assert not target.parent.exists()


def test_a_folder_is_no_json_file(dataset, tmp_path, capsys):
    labels = mask_of(dataset)
    arguments = ["score", "--prediction", labels, "--reference", labels, "-o", tmp_path]
    fails(capsys, arguments, "is a folder; name a JSON file")


@pytest.mark.parametrize("command", ["score", "report"])
def test_an_output_that_ends_like_a_folder_is_no_file(tmp_path, capsys, command):
    others = "--workdir=w" if command == "report" else "--prediction=a --reference=b"
    fails(capsys, [command, *others.split(), f"--output={tmp_path}/new/"], "folder; name a file")
    assert not (tmp_path / "new").exists()


def test_the_output_is_no_label_file_and_no_file_of_somebody_else(dataset, tmp_path, capsys):
    mask, reference = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    for path in (mask, reference):
        shutil.copy(mask_of(dataset), path)
    (tmp_path / "notes.txt").write_text("mine")
    before = reference.read_bytes()
    arguments = ["score", f"--prediction={mask}", f"--reference={reference}"]
    fails(capsys, [*arguments, f"--output={reference}", "--overwrite"], "is an input")
    fails(capsys, [*arguments, f"--output={tmp_path / 'notes.txt'}"], "did not write this file")
    assert reference.read_bytes() == before and (tmp_path / "notes.txt").read_text() == "mine"
    for _ in range(2):
        assert main([*arguments, f"--output={tmp_path / 'scores.json'}"]) == 0
    assert main([*arguments, f"--output={tmp_path / 'notes.txt'}", "--overwrite"]) == 0


def test_the_sacrum_is_scored_in_neither_mask(tmp_path, capsys):
    """A right prediction scores 1, with or without labels 26 and 27 in either mask."""
    lumbar = np.zeros((12, 12, 30), np.uint8)
    lumbar[4:8, 4:8, 16:26] = 20
    with_sacrum = lumbar.copy()
    with_sacrum[4:8, 4:8, 4:14], with_sacrum[4:8, 4:8, :4] = 26, 27
    for name, pair in {"a": (lumbar, with_sacrum), "b": (with_sacrum, lumbar)}.items():
        for folder, array in zip(("prediction", "reference"), pair, strict=True):
            (tmp_path / folder).mkdir(exist_ok=True)
            made = nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1]))
            nib.save(made, tmp_path / folder / f"{name}.nii.gz")
    words = [f"--{side}={tmp_path / side}" for side in ("prediction", "reference")]
    out = tmp_path / "scores.json"
    assert main(["score", *words, f"--output={out}"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "sacrum" in line]
    assert len(said) == 1 and "labels 26 (sacrum) and 27 (coccyx) of 2 masks" in said[0]
    for case in json.loads(out.read_text())["cases"].values():
        assert case["binary"]["dice"] == case["vertebrae"]["dice_mean"] == 1
    # With binary labels any number is a vertebra.
    assert main(["score", *words, f"--output={out}", "--labels=binary"]) == 0
    for case in json.loads(out.read_text())["cases"].values():
        assert case["binary"]["dice"] < 0.7
    assert "sacrum" not in capsys.readouterr().err


def test_distances_on_a_sheared_grid_are_those_of_the_world(tmp_path, capsys):
    affine = np.eye(4)
    affine[:3, 1] = (0, np.cos(0.35), np.sin(0.35))
    affine[:3, 2] = (0, 0, 3)
    masks = np.zeros((2, 10, 10, 10), np.uint8)
    masks[0, 5, 3, 4] = masks[1, 5, 6, 6] = 20
    for name, array in zip("pr", masks, strict=True):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}.nii.gz")
    out = tmp_path / "scores.json"
    words = [f"--prediction={tmp_path / 'p.nii.gz'}", f"--reference={tmp_path / 'r.nii.gz'}"]
    assert main(["score", *words, f"--output={out}"]) == 0
    (case,) = json.loads(out.read_text())["cases"].values()
    apart = np.linalg.norm(affine[:3, :3] @ (0, 3, 2))
    assert case["binary"]["hd95_mm"] == pytest.approx(apart, abs=1e-4)
    assert case["vertebrae"]["per_label"]["20"]["hd_mm"] == pytest.approx(apart, abs=1e-4)
    assert case["vertebrae"]["d_mean_mm"] == pytest.approx(apart, abs=1e-4)


@pytest.mark.parametrize("label", [29, 100, 255])
def test_labels_that_verse_does_not_have_are_said(tmp_path, capsys, label):
    lumbar = np.zeros((12, 12, 30), np.uint8)
    lumbar[4:8, 4:8, 16:26] = 20
    other = lumbar.copy()
    other[4:8, 4:8, 4:14] = label
    for name, array in {"prediction": lumbar, "reference": other}.items():
        nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1])), tmp_path / f"{name}.nii.gz")
    words = [f"--{side}={tmp_path / side}.nii.gz" for side in ("prediction", "reference")]
    words.append(f"--output={tmp_path / 'scores.json'}")
    for kind, said in (("verse", 1), ("binary", 0)):
        assert main(["score", *words, f"--labels={kind}"]) == 0
        assert capsys.readouterr().err.count(f"does not have ({label}) in 1 mask (first") == said


def save(path, array):
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1])), path)
    return path


def spine(*numbers):
    """One box of 4 voxels for each number, from head to foot."""
    array = np.zeros((6, 6, 5 * len(numbers)), np.uint8)
    for i, number in enumerate(numbers):
        array[2:4, 2:4, array.shape[2] - 5 * i - 4 : array.shape[2] - 5 * i] = number
    return array


def test_masks_in_the_numbers_of_another_program(tmp_path, capsys):
    """The wrong scheme is said, with the flags that are right; with them the score is 1."""
    verse = save(tmp_path / "verse.nii.gz", spine(19, 20, 21))
    total = save(tmp_path / "total.nii.gz", spine(32, 31, 30))
    out = tmp_path / "scores.json"

    def score(prediction, reference, *words):
        arguments = [f"--prediction={prediction}", f"--reference={reference}", f"-o={out}"]
        assert main(["score", *arguments, *words]) == 0
        scores = json.loads(out.read_text())["summary"]
        return scores.get("vertebrae", {}).get("id_rate"), capsys.readouterr().err

    rate, said = score(total, total)
    assert rate is None
    assert said.count("\n") == 1 and "look like those of totalsegmentator" in said
    assert said.endswith("score with labels=totalsegmentator\n")
    assert score(total, total, "--labels=totalsegmentator") == (1.0, "")
    rate, said = score(verse, total)
    assert rate is None and "labels=verse and reference_labels=totalsegmentator" in said
    assert score(verse, total, "--reference_labels=totalsegmentator") == (1.0, "")
    rate, said = score(verse, total, "--labels=totalsegmentator")
    assert "labels=verse and reference_labels=totalsegmentator" in said
    assert score(total, total, "--labels=binary") == (None, "")
    odd = save(tmp_path / "odd.nii.gz", spine(47, 41, 90))
    words = ["score", f"--prediction={odd}", f"--reference={odd}", f"-o={out}"]
    fails(capsys, [*words, "--labels=totalspineseg"], "label 47, 90 is out of range", "0 to 2, 11")


def test_the_example_of_totalsegmentator_scores_1_against_itself(real_data, tmp_path, capsys):
    mask = real_data / "totalsegmentator" / "example_vertebrae_totalseg-ids.nii.gz"
    verse = real_data / "totalsegmentator" / "example_vertebrae_verse-ids.nii.gz"
    out = tmp_path / "scores.json"
    words = ["score", f"--prediction={mask}", f"--output={out}"]
    assert main([*words, f"--reference={mask}"]) == 0
    assert "score with labels=totalsegmentator\n" in capsys.readouterr().err
    for reference, flags in ((mask, []), (verse, ["--reference_labels=verse"])):
        labels = ["--labels=totalsegmentator", *flags]
        assert main([*words, f"--reference={reference}", *labels]) == 0
        vertebrae = json.loads(out.read_text())["summary"]["vertebrae"]
        assert vertebrae["id_rate"] == vertebrae["dice_mean"] == 1.0
        assert vertebrae["n_reference"] == 7
        assert not capsys.readouterr().err
