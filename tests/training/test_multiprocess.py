"""Two processes of two devices each and four of one device, on one machine."""

import json
import os
import signal
import socket
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
import numpy as np
import pytest

from spinejax import evaluation
from spinejax.training import checkpoint, log
from tests.support import forked_run
from tests.support.tensorboard_events import pictures
from tests.support.tiny_run import EXIT_INTERRUPTED, write_scans

# No dropout, which depends on the device, and SGD, which does not blow up rounding. The rate is one
# with which a network of one level finds some foreground before the second evaluation.
SETTINGS = {
    "train.steps": 30,
    "train.pictures": 1,
    "train.eval_every_steps": 7,
    "model.widths": [4],
    "model.dropout": 0.0,
    "optim.name": "sgd",
    "optim.clip_norm": 0.0,
    "optim.learning_rate": 0.3,
    "optim.momentum": 0.0,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("processes")
    write_scans(base / "scans")
    write_scans(base / "damaged")
    (base / "damaged" / "images" / "case1.nii.gz").write_bytes(b"")  # of the second process
    return base


def start(
    base: Path, name: str, processes: int, devices: int, *flags: str, **changes: object
) -> list[BaseProcess]:
    """Start or continue a run; what process N prints is appended to NAME-N.log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pairs = [f"{key}={json.dumps(value)}" for key, value in {**SETTINGS, **changes}.items()]
    words = [str(base / "scans"), str(base / name), *pairs, *flags]
    started = []
    for process in range(processes):
        rank = [f"--processes={processes}", f"--process={process}", f"--port={port}"]
        log_file = base / f"{name}-{process}.log"
        started.append(
            forked_run.start([*words, *(rank if processes > 1 else [])], log_file, devices)
        )
    return started


def finish(base: Path, name: str, processes: list[BaseProcess], status: int = 0) -> None:
    for process in processes:
        process.join(300)
    printed = [(base / f"{name}-{n}.log").read_text()[-3000:] for n in range(len(processes))]
    assert [process.exitcode for process in processes] == [status] * len(processes), printed


def end(base: Path, name: str) -> dict:
    return checkpoint.load_for_inference(base / name, "latest")[1]


def assert_close(a: dict, b: dict) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


@pytest.fixture(scope="module")
def alone(base) -> Path:
    """The same run in one process on one device."""
    finish(base, "alone", start(base, "alone", 1, 1))
    return base


@pytest.mark.parametrize(
    ("kind", "processes"), [("pmap", 2), pytest.param("shard_map", 4, marks=pytest.mark.slow)]
)
def test_several_processes_equal_one(alone, kind, processes):
    flags = ["--evaluate=train", f"--damaged={alone / 'damaged'}"]
    changes = {"train.parallel": kind}
    started = start(alone, kind, processes, 4 // processes, *flags, **changes)
    finish(alone, kind, started)
    ranks = range(processes)
    assert_close(end(alone, kind), end(alone, "alone"))
    lines = [log.read_metrics(alone / name) for name in (kind, "alone")]
    for two, one in zip(*lines, strict=True):
        assert (two["step"], two["kind"]) == (one["step"], one["kind"])
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert two["dice"] == pytest.approx(one["dice"], abs=1e-3)
    assert lines[0][-1]["dice"] > 0.5  # there is something to compare
    validated = [line["step"] for line in lines[0] if line["kind"] == "val"]
    assert validated == [7, 14, 21, 28, 30]
    shown = [pictures(alone / name) for name in (kind, "alone")]
    assert shown[0].keys() == shown[1].keys()
    assert sorted(step for step, _ in shown[0]) == validated
    assert json.loads((alone / kind / "run.json").read_text())["processes"] == processes
    # Processes predicted and scored scans of the training split, each its own; the scores are those
    # of one process. Of four processes two have no scan.
    results = alone / kind / "evaluation" / "train"
    assert {"unfinished.json", "unfinished-1.json"} <= {
        json.loads(line)["name"]
        for line in (results / ".spinejax-files.jsonl").read_text().split("\n")
        if line
    }
    assert not list(results.glob("unfinished*"))
    scores = json.loads((results / "scores.json").read_text())
    expected = evaluation.evaluate(alone / kind, split="train", output=alone / f"{kind}-scores")
    assert list(scores["cases"]) == list(expected["cases"])
    for case, one in scores["cases"].items():
        assert one["voxels"] == pytest.approx(expected["cases"][case]["voxels"], abs=5)
    scored = [json.loads((alone / kind / f"scored-{rank}.json").read_text()) for rank in ranks]
    assert [len(one) for one in scored] == [1, 1, 0, 0][:processes]
    assert sorted(sum(scored, [])) == sorted(scores["cases"])
    # Each prepared a part of the scans that train and validate.
    prepared = [json.loads((alone / kind / f"prepared-{rank}.json").read_text()) for rank in ranks]
    cases = json.loads((alone / kind / "run.json").read_text())["cases"]
    assert sorted(sum(prepared, [])) == sorted(cases["train"] + cases["val"])
    assert max(map(len, prepared)) - min(map(len, prepared)) <= 1
    # What failed on one process is one line on all, and the other scans are scored.
    errors = [(alone / kind / f"error-{rank}.txt").read_text() for rank in ranks]
    assert len(set(errors)) == 1 and "case1.nii.gz" in errors[0] and "\n" not in errors[0]
    folder = evaluation.results_folder(alone / kind, data=alone / "damaged")
    damaged = json.loads((folder / "scores.json").read_text())
    assert (list(damaged["cases"]), list(damaged["failed"])) == (
        ["case0", "case2", "case3"],
        ["case1"],
    )


def test_sigterm_to_one_process_stops_both_and_one_process_can_go_on(alone):
    # jax looks for a SIGTERM once a second.
    processes = start(alone, "stopped", 2, 2, "--pause=0.2")
    while len(log.read_metrics(alone / "stopped")) < 3 and processes[0].exitcode is None:
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGTERM)
    finish(alone, "stopped", processes, EXIT_INTERRUPTED)
    steps = [int(p.name) for p in checkpoint.folder(alone / "stopped", "latest").iterdir()]
    assert 3 <= max(steps) < 30
    finish(alone, "stopped", start(alone, "stopped", 1, 1))
    assert_close(end(alone, "stopped"), end(alone, "alone"))
