"""`spinejax inspect`: status, scores, checkpoints and config of a run."""

import fcntl
import json
import shutil

import pytest

from spinejax.cli import main
from spinejax.configs import cascade
from spinejax.sweep_state import LOCK
from tests.support.cli_runs import fails


def shown(capsys, *words) -> str:
    capsys.readouterr()
    assert main(["inspect", *map(str, words)]) == 0
    return capsys.readouterr().out


def row(name: str, text: str) -> list[str]:
    """Return the words after a name that begins one line."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return line.removeprefix(name).split()


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run that has not ended."""
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    (folder / "DONE").unlink()
    return folder


def test_a_finished_run_shows_what_its_files_say(run, capsys):
    text = shown(capsys, run)
    record = json.loads((run / "run.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    val = [line for line in lines if line["kind"] == "val"]
    best = max(val, key=lambda line: line["dice"])
    assert row("status", text) == ["finished", "at", "step", "6"]
    assert row("parameters", text) == [f"{record['parameters']:,}"]
    counts = [f"{len(record['cases'][name])} {name}" for name in ("train", "val", "test")]
    assert " ".join(row("scans", text)) == ", ".join(counts)
    for name, line in (("validation", val[-1]), ("best validation", best)):
        numbers = [f"{line[key]:.4f}" for key in ("loss", "dice", "accuracy")]
        assert row(name, text) == [str(line["step"]), *numbers]
    assert row("best", text.replace("best validation", "")) == [
        str(best["step"]),
        f"{best['dice']:.4f}",
    ]


def test_the_fields_that_differ_are_those_that_config_marks(run, capsys):
    """`spinejax config` prints "(default X)" behind each value that differs."""
    differing = shown(capsys, run).split("fields that differ: this run, default\n")[1]
    names = {line.split()[0] for line in differing.splitlines()}
    fields = json.loads((run / "config.json").read_text())
    words = [
        f"--config.{block}.{name}={tuple(value) if isinstance(value, list) else value}"
        for block, values in fields.items()
        if isinstance(values, dict) and block in ("data", "train", "optim", "augment", "model")
        for name, value in values.items()
        if not isinstance(value, dict) and name != "name"
    ]
    spacing = f"--config.data.preprocess.spacing_mm={fields['data']['preprocess']['spacing_mm']}"
    assert main(["config", "--config=chasppraunet", *words, spacing]) == 0
    marked = [x for x in capsys.readouterr().out.splitlines() if "(default " in x]
    assert names == {line.split()[0] for line in marked} - {"name"}
    assert "data.size" in names and "optim.clip_norm" not in names


def test_against_another_run_or_config(run, copy, capsys):
    assert shown(capsys, run, f"--against={copy}").endswith("no field differs\n")
    config = json.loads((copy / "config.json").read_text())
    config["train"]["pictures"] = 3
    (copy / "config.json").write_text(json.dumps(config))
    text = shown(capsys, run, f"--against={copy}")
    assert f"fields that differ: this run, {copy}\ntrain.pictures" in text
    assert row("train.pictures", text)[1] == "3"
    assert row("model.name", shown(capsys, run, "--against=unet")) == ["chasppraunet", "unet"]


def test_a_run_is_interrupted_or_running(copy, capsys):
    said = " ".join(row("status", shown(capsys, copy)))
    assert said == "interrupted at step 6 of 6; the same `spinejax train` goes on from step 6"
    with (copy / LOCK).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert " ".join(row("status", shown(capsys, copy))).startswith("running, step 6 of 6")
    shutil.rmtree(copy / "checkpoints")
    assert row("status", shown(capsys, copy))[-2:] == ["begins", "again"]


def test_a_unit_of_a_sweep_says_why_it_failed(copy, capsys):
    (copy / "unit.log").write_text("spinejax train: error: training diverged at step 3\n")
    (copy / "outcome.json").write_text('{"status": 1}')
    assert "failed (spinejax train: error: training diverged" in shown(capsys, copy)


def test_damaged_checkpoints_and_missing_records_are_no_errors(copy, capsys):
    (step,) = (copy / "checkpoints" / "best").glob("[0-9]*")
    (step / "meta" / "metadata").write_text("{")
    (copy / "run.json").unlink()
    text = shown(capsys, copy)
    assert row("best", text.replace("best validation", "")) == [step.name, "damaged"]
    assert "parameters" not in text


def test_a_pipeline_shows_both_networks(run, tmp_path, capsys):
    config = cascade.get_config("debug")
    (tmp_path / "config.json").write_text(config.to_json())
    text = shown(capsys, tmp_path)
    assert f"{tmp_path}: cascade (chasppraunet, slice_segmentation)" in text
    assert f"\n{tmp_path / 'vertebrae'}: not begun\n" in text
    assert row("vertebrae.data.cube.size", text)
    shutil.copytree(run, tmp_path / "vertebrae")
    text = shown(capsys, tmp_path)
    assert "not begun" not in text and f"\n{tmp_path / 'vertebrae'}: chasppraunet (" in text


def test_what_is_no_run_is_one_line(run, tmp_path, capsys):
    fails(capsys, ["inspect", tmp_path], "is not the folder of a run")
    fails(capsys, ["inspect", tmp_path / "none"], "is not the folder of a run")
    fails(capsys, ["inspect"], "--workdir is required")
    fails(capsys, ["inspect", run, tmp_path], f"--against={tmp_path}")
    fails(capsys, ["inspect", run, "--against=unett"], "did you mean unet?")
    for name, said in (("search.json", "of a search"), ("sweep.json", "spinejax sweep --status")):
        (tmp_path / name).write_text("{}")
        fails(capsys, ["inspect", tmp_path], said)
