"""Evaluation from Python: what it returns and where it writes; test_predictor has interruptions."""

import json
import shutil

import pytest

import spinejax
from spinejax.errors import InputError
from spinejax.evaluation import results_folder
from spinejax.progress import silent
from tests.support.tiny_run import tiny_config, write_scans


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps, with the folder of its scans beside it."""
    folder = tmp_path_factory.mktemp("evaluation")
    config = tiny_config(write_scans(folder / "scans"), **{"train.steps": 2})
    spinejax.train(config, folder / "run")
    return folder / "run"


def test_scores_are_returned_and_written_and_nothing_is_printed(run, capsys):
    titles = []

    def progress(title, total, unit):
        titles.append((title, total, unit))
        return silent(title, total, unit)

    scores = spinejax.evaluate(run, checkpoint="latest", progress=progress)
    folder = run / "evaluation" / "test"
    assert results_folder(run) == folder
    assert scores == json.loads((folder / "scores.json").read_text())
    (case,) = scores["cases"]
    assert titles == [(f"1/1 {case}", 10, "slice")]
    assert {path.name for path in folder.iterdir()} == {
        "scores.json", "cases.json", "slices.json", "predictions",
    }  # fmt: skip
    # Every prediction is scored as its file would be.
    again = spinejax.score(
        folder / "predictions" / f"{case}_seg.nii.gz",
        run.parent / "scans" / "labels" / f"{case}.nii.gz",
    )
    assert again["summary"]["binary"] == scores["summary"]["binary"]
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_other_scans_have_their_own_folder(run, tmp_path):
    """A folder that is called like a split is not that split."""
    shutil.copytree(run.parent / "scans", tmp_path / "test")
    scores = spinejax.evaluate(run, data=tmp_path / "test", checkpoint="latest")
    assert len(scores["cases"]) == 4
    folder = run / "evaluation" / "folder_test"
    assert results_folder(run, data=tmp_path / "test") == folder
    assert (folder / "scores.json").exists()
    assert results_folder(run, "val", flip=True).name == "val_flip"


def test_what_cannot_be_evaluated_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="split = 'tset' is unknown.*did you mean 'test'"):
        spinejax.evaluate(run, split="tset")
    with pytest.raises(InputError, match="is not the folder of a run"):
        spinejax.evaluate(tmp_path)
