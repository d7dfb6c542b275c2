"""`spinejax evaluate`: scores of a split."""

import json
import shutil

from spinejax.cli import main
from tests.support.cli_runs import fails, snapshot


def test_scores_of_the_test_split_are_written_and_printed(run, capsys):
    assert main(["evaluate", f"--workdir={run}", "--split=test"]) == 0
    folder = run / "evaluation/test"
    scores = json.loads((folder / "scores.json").read_text())
    (case,) = scores["cases"]
    assert set(scores["cases"][case]["voxels"]) == {"tp", "fp", "fn", "tn"}
    assert set(scores["summary"]["binary"]["dice"]) >= {"mean", "std", "median", "pooled"}
    out = capsys.readouterr().out
    assert case in out and out.splitlines()[-1].startswith("evaluated in ")
    assert out.splitlines()[-1].endswith(f"; scores: {folder / 'scores.json'}")


def test_other_scans_are_scored_into_a_folder_of_their_name(dataset, run, tmp_path):
    data = tmp_path / "other"
    shutil.copytree(dataset, data)
    for number in (500, 501, 502):
        shutil.rmtree(data / f"rawdata/sub-verse{number}")
    assert main(["evaluate", "--workdir", str(run), "--data", str(data)]) == 0
    (path,) = run.glob("evaluation/other-*/scores.json")
    scores = json.loads(path.read_text())
    assert len(scores["cases"]) == 2


def test_what_is_no_run_or_an_edited_one_is_refused(dataset, run, tmp_path, capsys):
    fails(capsys, ["evaluate", f"--workdir={tmp_path / 'nowhere'}"], "nowhere")
    shutil.copytree(run, tmp_path / "edited")
    (tmp_path / "edited/config.json").write_text("{}")
    fails(capsys, ["evaluate", f"--workdir={tmp_path / 'edited'}"], "config.json")
    config = json.loads((run / "config.json").read_text())
    for block, field, value in (
        ("data", "plane", "sagital"),
        ("predict", "threshold", "half"),
        ("model", "norm", "layer"),
        ("train", "epoch", 3),
    ):
        edited = config | {block: config[block] | {field: value}}
        (tmp_path / "edited/config.json").write_text(json.dumps(edited))
        named = ("config.json", f"{block}.{field}")
        words = [f"--input={dataset}", f"--output={tmp_path / 'out'}"]
        fails(capsys, ["evaluate", f"--workdir={tmp_path / 'edited'}"], *named)
        fails(capsys, ["predict", f"--workdir={tmp_path / 'edited'}", *words], *named)
    assert {path.parts[0] for path in snapshot(tmp_path)} == {"edited"}


def test_missing_and_damaged_checkpoints(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    fails(capsys, ["evaluate", f"--workdir={copy}"], "copy")
    shutil.rmtree(copy / "checkpoints")
    fails(capsys, ["evaluate", f"--workdir={copy}"], "copy", "checkpoint")
