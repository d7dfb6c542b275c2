"""The folder of a run: what a failed start leaves, its lock, its record."""

import json

import pytest
from ml_collections import ConfigDict

from spinejax.errors import InputError
from spinejax.training import loop, pipeline, run_folder
from tests.support.pipeline_run import pipeline_config
from tests.support.tiny_run import tiny_config, write_scans


def test_a_failed_start_leaves_no_folder_behind(tmp_path):
    scans = write_scans(tmp_path / "scans")
    workdir = tmp_path / "runs" / "new"
    with pytest.raises(InputError, match="no such folder"):
        loop.train(tiny_config("/nowhere"), workdir)
    with pytest.raises(InputError, match="cannot fill 9 folds"):
        loop.train(tiny_config(scans, **{"data.split": "kfold", "data.folds": 9}), workdir)
    assert list(tmp_path.iterdir()) == [scans]


def test_a_failed_start_leaves_a_folder_that_was_there_as_it_was(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no such folder"):
        loop.train(tiny_config("/nowhere"), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "metrics.jsonl",
        "DONE",
        "checkpoints/latest/3/x",
        "search.jsonl",
        "evaluation/test/scores.json",
    ],
)
def test_a_folder_of_somebody_else_is_refused_before_anything(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="spinejax did not write this"):
        loop.train(tiny_config(tmp_path), tmp_path)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / name).read_text() == "mine"


def test_the_folder_of_the_second_run_is_looked_at_before_the_first_trains(tmp_path):
    (tmp_path / "run" / "vertebrae").mkdir(parents=True)
    (tmp_path / "run" / "vertebrae" / "config.json").write_text("mine")
    with pytest.raises(InputError, match="vertebrae/config.json: spinejax did not write this"):
        pipeline.train(pipeline_config(tmp_path), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["vertebrae"]


def test_a_run_is_recognised_without_the_list_of_its_files(tmp_path):
    """Older versions wrote no list, and copying `run/*` leaves it behind."""
    (tmp_path / "run.json").write_text('{"versions": {"spinejax": "0.1.0"}}')
    (tmp_path / "config.json").write_text("{}")
    config = tiny_config(tmp_path)
    for steps in (1, 2):
        config.train.steps = steps
        with run_folder.alone(tmp_path):
            run_folder.write_config(tmp_path, config)
        assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == steps


def test_an_edited_config_is_replaced_by_no_other(tmp_path):
    config, file = tiny_config(tmp_path), tmp_path / "config.json"
    with run_folder.alone(tmp_path):
        run_folder.write_config(tmp_path, config)
        edited = json.dumps(json.loads(file.read_text()), indent=4)
        file.write_text(edited)
        run_folder.write_config(tmp_path, config)  # it says the same
        config.train.steps += 1
        with pytest.raises(InputError, match="config.json: was edited and differs"):
            run_folder.write_config(tmp_path, config)
    assert file.read_text() == edited


@pytest.mark.parametrize("result", ["cache/a/meta.json", "search.jsonl", "phantoms/images"])
def test_a_failed_start_that_left_results_keeps_its_folder(tmp_path, result):
    workdir = tmp_path / "new"
    with pytest.raises(ValueError, match="later"), run_folder.alone(workdir):
        (workdir / result).parent.mkdir(parents=True, exist_ok=True)
        (workdir / result).write_text("x")
        raise ValueError("later")
    assert (workdir / result).exists()


def test_two_runs_do_not_share_a_folder(tmp_path):
    with run_folder.alone(tmp_path / "run"):
        with (
            pytest.raises(InputError, match="another `spinejax train` is at work"),
            run_folder.alone(tmp_path / "run"),
        ):
            pass
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize("record", ["{}", '{"pixels_mm": [0, 1]}'])
def test_what_is_not_recorded_is_unknown(tmp_path, record):
    (tmp_path / "run.json").write_text(record)
    assert run_folder.recorded_pixels_mm(tmp_path) is None
    assert run_folder.recorded_cases(tmp_path) == {"train": [], "val": [], "test": []}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("", "it is empty"),
        ("[]", r"the content is \[\], not an object"),
        ('{"pixels_mm": "ab"}', "pixels_mm is 'ab', not a list"),
        ('{"cases": {"val": [3]}}', "cases.val.0 is 3, not text"),
        ('{"seconds": NaN}', "seconds is nan, not a number"),
    ],
)
def test_a_damaged_record_is_refused_with_its_field(tmp_path, record, words):
    (tmp_path / "run.json").write_text(record)
    with pytest.raises(InputError, match=rf"run.json is damaged \({words}.*restore it from a copy"):
        run_folder.recorded_cases(tmp_path)


def test_an_edited_record_blocks_no_start_and_notes_in_it_are_kept(tmp_path):
    options = dict(resumes=True, devices=1, steps=2, parameters=3, gflops=0.1, pixels_mm=(1.0, 1.0))
    cases = {name: [] for name in run_folder.SPLITS}
    run_folder.RunRecord(tmp_path, cases, **options)
    file = tmp_path / "run.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "note": "second scanner", "odd": float("nan")}))
    run_folder.RunRecord(tmp_path, cases, **options).update(finished=True)
    found = json.loads(file.read_text())
    assert (found["starts"], found["note"]) == (2, "second scanner") and "odd" not in found
    file.write_text('{"mine": 1}')
    with pytest.raises(InputError, match="run.json: spinejax did not write this file"):
        run_folder.RunRecord(tmp_path, cases, **options)
    assert file.read_text() == '{"mine": 1}'


@pytest.mark.parametrize("text", ["{}", '{"task": 3}', '{"task": "slice_segmentation"}'])
def test_a_config_that_is_none_is_damaged(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config.json is damaged \(.*restore it") as info:
        run_folder.checked_config(tmp_path)
    assert len(str(info.value)) < 400


def test_another_config_is_told_in_a_line_of_few_fields(tmp_path):
    new = tiny_config(tmp_path)
    old = ConfigDict({**new.to_dict(), "model": {"name": "x" * 5000}, "optim": {}, "loss": {}})
    with pytest.raises(InputError, match="holds a run of another config: .* more; give") as info:
        run_folder.check_same(old, new, tmp_path)
    assert len(str(info.value)) < 800


def test_what_is_recorded_is_read(tmp_path):
    cases = {"train": ["a"], "val": [], "test": ["b"]}
    (tmp_path / "run.json").write_text(json.dumps({"pixels_mm": [0.5, 1], "cases": cases}))
    assert run_folder.recorded_pixels_mm(tmp_path) == (0.5, 1.0)
    assert run_folder.recorded_cases(tmp_path) == cases
