"""`spinejax score`: bad masks are refused; see test_predict.py for its numbers."""

import shutil

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
