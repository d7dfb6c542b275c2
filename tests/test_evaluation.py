"""Evaluation from Python: what it returns and where it writes; test_predictor has interruptions."""

import json
import re
import shutil
from pathlib import Path

import pytest

import spinejax
from spinejax import predictor
from spinejax.errors import InputError
from spinejax.evaluation import results_folder
from spinejax.files import LIST
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
        "scores.json", "cases.json", "slices.json", "times.json", "predictions", LIST,
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
    folder = results_folder(run, data=tmp_path / "test")
    assert re.fullmatch("test-[0-9a-f]{8}", folder.name)
    assert json.loads((folder / "scores.json").read_text()) == scores
    (tmp_path / "link").symlink_to(tmp_path)
    assert results_folder(run, data=f"{tmp_path}/link/./test") == folder
    others = [tmp_path / "other" / "test", tmp_path / "other" / "te\nst\udcff", Path("/")]
    names = {results_folder(run, data=path).name for path in (tmp_path / "test", *others)}
    assert len(names) == 4 and all(re.fullmatch("[a-z_]+-[0-9a-f]{8}", name) for name in names)
    assert results_folder(run, "val", flip=True).name == "val_flip"


def test_what_cannot_be_evaluated_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="split = 'tset' is unknown.*did you mean 'test'"):
        spinejax.evaluate(run, split="tset")
    with pytest.raises(InputError, match="is not the folder of a run"):
        spinejax.evaluate(tmp_path)


def _note_predicted(patch):
    """Return a list that gets the title of every scan that a network sees."""
    titles: list[str] = []
    segment = predictor.Model.segment

    def noting(self, scan, *, name="", **options):
        titles.append(name)
        return segment(self, scan, name=name, **options)

    patch.setattr(predictor.Model, "segment", noting)
    return titles


def test_a_prediction_that_was_corrected_by_hand_stays(run, tmp_path):
    shutil.copytree(run.parent / "scans", tmp_path / "scans")
    options = {"data": tmp_path / "scans", "checkpoint": "latest"}
    first = spinejax.evaluate(run, **options)
    folder = results_folder(run, data=tmp_path / "scans")
    case = next(iter(first["cases"]))
    mask = folder / "predictions" / f"{case}_seg.nii.gz"
    corrected = (tmp_path / "scans" / "labels" / f"{case}.nii.gz").read_bytes()
    mask.write_bytes(corrected)
    again = spinejax.evaluate(run, **options)
    assert set(again["failed"]) == {case}
    assert again["failed"][case].endswith("changed since; move it away, or add --overwrite")
    assert mask.read_bytes() == corrected
    # Nor is it scored as the network's by an evaluation that goes on after an interruption.
    mask.unlink()
    bad = tmp_path / "scans" / "images" / f"{next(c for c in first['cases'] if c != case)}.nii.gz"
    content = bad.read_bytes()
    bad.write_bytes(b"")
    assert set(spinejax.evaluate(run, **options)["failed"]) == {bad.name.partition(".")[0]}
    bad.write_bytes(content)
    mask.write_bytes(corrected)
    with pytest.MonkeyPatch.context() as patch:
        predicted = _note_predicted(patch)
        again = spinejax.evaluate(run, **options)
        assert set(again["failed"]) == {case} and mask.read_bytes() == corrected
        assert [title.partition(" ")[2] for title in predicted] == [bad.name.partition(".")[0]]
    (folder / "scores.json").write_text("mine")
    with pytest.raises(InputError, match="scores.json: spinejax did not write this file"):
        spinejax.evaluate(run, **options)
    assert (folder / "scores.json").read_text() == "mine"
    assert (
        spinejax.evaluate(run, **options, overwrite=True)["cases"].keys() == first["cases"].keys()
    )
