"""Trackers beside TensorBoard: MLflow, Weights & Biases, and what happens when one fails."""

import importlib
import json
import struct
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest

from spinejax import schema
from spinejax.errors import InputError
from spinejax.training import log, loop, trackers
from tests.support.tiny_run import tiny_config, write_scans
from tests.training.test_loop import StopAt


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("scans"))


def needs(name):
    """Skip a test without the package, which is large and not among the packages for tests."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"needs the package {name} (pip install {name})")


BLOCK, FULL, LAST = 32768, 1, 4  # of LevelDB's log

# Calls inside of these packages that are deprecated are no errors of ours.
lenient = pytest.mark.filterwarnings("default")


class Recorder:
    """A tracker that keeps what it gets, or fails at a step."""

    def __init__(self, fails_at=None):
        self.seen, self.shown, self.end, self.fails_at = [], [], None, fails_at

    def scalars(self, step, values):
        if step == self.fails_at:
            raise RuntimeError("the server\nis gone")
        self.seen.append((step, dict(values)))

    def pictures(self, step, images):
        self.shown.append((step, sorted(images)))

    def close(self, end):
        self.end = end


def test_each_tracker_has_a_word_in_the_config():
    assert set(schema.choices("train.trackers")) == set(trackers.TRACKERS)


@pytest.mark.parametrize("name", sorted(trackers.TRACKERS))
def test_a_missing_package_is_refused_before_anything_is_written(
    name, scans, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # Python would import this folder as an empty package

    def missing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(trackers.metadata, "version", missing)
    config = tiny_config(scans, **{"train.trackers": (name,)})
    with pytest.raises(
        InputError, match=rf"^train\.trackers={name}: .*`pip install -e '\.\[tracking\]'`"
    ):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(caplog):
    good, bad = Recorder(), Recorder(fails_at=2)
    both = trackers.Trackers({"bad": bad, "good": good})
    for step in (1, 2, 3):
        both.scalars(step, {"train/loss": 1 / step})
    both.pictures(3, {"case": np.zeros((2, 2, 3), np.uint8)})
    both.close(trackers.FINISHED)
    assert [step for step, _ in good.seen] == [1, 2, 3] and good.end == trackers.FINISHED
    assert good.shown == [(3, ["case"])]
    assert [step for step, _ in bad.seen] == [1] and bad.end is None and bad.shown == []
    (message,) = caplog.messages
    assert message.startswith("bad takes no more metrics (RuntimeError: the server is gone)")


def test_a_full_disk_is_no_failure_of_a_tracker():
    class Full(Recorder):
        def scalars(self, step, values):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        trackers.Trackers({"full": Full()}).scalars(1, {"train/loss": 1.0})


@pytest.mark.parametrize(
    ("interrupted", "error", "end"),
    [
        (False, None, trackers.FINISHED),
        (True, None, trackers.INTERRUPTED),
        (False, KeyError, trackers.FAILED),
    ],
    ids=["finished", "interrupted", "failed"],
)
def test_a_tracker_gets_what_the_log_gets_and_how_it_ended(
    tmp_path, monkeypatch, interrupted, error, end
):
    seen = Recorder()
    monkeypatch.setattr(trackers, "begin", lambda *_, **__: trackers.Trackers({"seen": seen}))
    try:
        with log.RunLog(tmp_path, start_step=0, total_steps=2, batch_size=4) as writer:
            writer.train(1, {"loss": 0.5, "dice": 0.25})
            writer.val(1, {"loss": 0.75})
            writer.interrupted = interrupted
            if error:
                raise error
    except KeyError:
        pass
    (_, train), (_, val) = seen.seen
    assert (train["train/loss"], train["train/dice"], val) == (0.5, 0.25, {"val/loss": 0.75})
    assert seen.end == end


def test_only_the_first_process_starts_trackers(tmp_path, monkeypatch):
    def begin(*_, **__):
        raise AssertionError("another process started a tracker")

    monkeypatch.setattr(trackers, "begin", begin)
    with log.RunLog(
        tmp_path, start_step=0, total_steps=1, batch_size=1, track=("mlflow",), active=False
    ) as writer:
        writer.train(1, {"loss": 0.5, "dice": 0.25})


def start(tmp_path, monkeypatch, tracker, *, start_step=0):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", tracker)
    return trackers.begin(
        ("wandb",), workdir=tmp_path, start_step=start_step, total_steps=9, fields={"seed": 1}
    )


def test_a_resumed_run_goes_on_with_its_id_and_a_finished_one_begins_nothing(tmp_path, monkeypatch):
    starts = []

    class Known(Recorder):
        def __init__(self, start):
            super().__init__()
            starts.append(start)
            self.id = start.id or "a1"

    start(tmp_path, monkeypatch, Known, start_step=9)
    assert starts == [] and not (tmp_path / trackers.FILE).exists()
    start(tmp_path, monkeypatch, Known)
    start(tmp_path, monkeypatch, Known, start_step=4)
    assert [(one.step, one.id) for one in starts] == [(0, ""), (4, "a1")]
    assert starts[0].name == "/".join(tmp_path.parts[-2:]) and starts[0].fields == {"seed": 1}


def test_a_tracker_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    def broken(start):
        raise ConnectionError("no route\nto host")

    with pytest.raises(InputError, match="train.trackers=wandb: does not start .*no route to host"):
        start(tmp_path, monkeypatch, broken)
    (tmp_path / trackers.FILE).write_text('{"wandb": "gone"}')
    with pytest.raises(InputError, match="remove .*trackers.json to begin a new run"):
        start(tmp_path, monkeypatch, broken)
    (tmp_path / trackers.FILE).write_text('{"wandb": 3}')
    with pytest.raises(InputError, match="trackers.json is damaged"):
        start(tmp_path, monkeypatch, broken)


def test_commands_import_no_package_of_a_tracker():
    program = (
        "import sys\n"
        "from spinejax import cli\n"
        "from spinejax.training import loop\n"
        "for name in cli.COMMANDS: cli.command(name)\n"
        f"found = {{'tensorboardX', 'torch', *{sorted(trackers.TRACKERS)}}} & set(sys.modules)\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def interrupted_and_resumed(scans, workdir, name):
    """Train 12 steps with one interruption; return the logged losses of the run by step."""
    config = tiny_config(scans, **{"train.trackers": (name,)})
    assert loop.train(config, workdir, stop=StopAt(4)).interrupted
    (first,) = json.loads((workdir / trackers.FILE).read_text()).values()
    assert not loop.train(config, workdir).interrupted
    assert list(json.loads((workdir / trackers.FILE).read_text()).values()) == [first]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {x["step"]: x["loss"] for x in lines if x["kind"] == "train"}


@lenient
def test_mlflow_reads_back_one_run_with_every_step_once(scans, tmp_path, monkeypatch):
    needs("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    losses = interrupted_and_resumed(scans, tmp_path, "mlflow")
    client = importlib.import_module("mlflow").MlflowClient(
        f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    )
    experiment = client.get_experiment_by_name(trackers.PROJECT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["train.batch_size"] == "4"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [one.step for one in history] == list(range(1, 13))
    np.testing.assert_allclose([one.value for one in history], list(losses.values()))
    dice = client.get_metric_history(run.info.run_id, "val/dice")
    assert [one.step for one in dice] == [5, 10, 12]
    assert client.list_artifacts(run.info.run_id)


@lenient
def test_mlflow_does_not_take_a_step_twice(tmp_path, monkeypatch):
    needs("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first = trackers.Mlflow(trackers.Start(tmp_path, 0, {"seed": 1}))
    for step in (1, 2, 3):
        first.scalars(step, {"train/loss": 1 / step})  # a kill follows: no `close`
    second = trackers.Mlflow(trackers.Start(tmp_path, 1, {"seed": 2}, first.id))
    for step in (2, 3, 4):
        second.scalars(step, {"train/loss": 1 / step})
    second.close(trackers.INTERRUPTED)
    client = importlib.import_module("mlflow").MlflowClient(
        f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    )
    history = client.get_metric_history(first.id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(n, 1 / n) for n in (1, 2, 3, 4)]
    assert client.get_run(first.id).info.status == "KILLED"


@lenient
def test_the_environment_names_a_store_of_mlflow_that_runs_share(tmp_path, monkeypatch):
    needs("mlflow")
    place = f"sqlite:///{tmp_path}/shared.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        one = trackers.Mlflow(trackers.Start(tmp_path / name, 0, {"seed": 1}))
        one.scalars(1, {"train/loss": 0.5})
        one.close(trackers.FINISHED)
        assert not any((tmp_path / name).iterdir())
    client = importlib.import_module("mlflow").MlflowClient(place)
    runs = client.search_runs([client.get_experiment_by_name(trackers.PROJECT).experiment_id])
    assert {run.info.run_name for run in runs} == {f"{tmp_path.name}/{name}" for name in "ab"}


@lenient
def test_wandb_writes_both_starts_of_a_run_offline_under_one_id(scans, tmp_path, monkeypatch):
    needs("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    losses = interrupted_and_resumed(scans, tmp_path, "wandb")
    (name,) = json.loads((tmp_path / trackers.FILE).read_text()).values()
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{name}.wandb"] * 2
    found = [row for file in files for row in history(file)]
    assert {row["_step"]: row["train/loss"] for row in found if "train/loss" in row} == losses
    assert [row["_step"] for row in found if "val/dice" in row] == [5, 10, 12]


def history(file):
    """Return the rows of a file of Weights & Biases: the blocks of LevelDB's log, with protobuf.

    The format is that of https://github.com/google/leveldb/blob/main/doc/log_format.md after a
    header of 7 bytes, and the package has the messages.
    """
    from wandb.proto import wandb_internal_pb2

    data, at, whole, rows = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            items = record.history.item
            if items:
                rows.append(
                    {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
                )
    return rows
