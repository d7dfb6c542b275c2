"""Two processes of two devices each and four of one device, on one machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from spinejax import evaluation
from spinejax.training import checkpoint, log
from tests.support.tensorboard_events import pictures
from tests.support.tiny_run import EXIT_INTERRUPTED, write_scans

HERE = Path(__file__).parents[1] / "support"
# No dropout, which depends on the device, and SGD, which does not blow up rounding.
SETTINGS = {
    "train.steps": 30,
    "train.pictures": 1,
    "train.eval_every_steps": 7,
    "model.dropout": 0.0,
    "optim.name": "sgd",
    "optim.clip_norm": 0.0,
    "optim.learning_rate": 0.01,
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
    base: Path, name: str, processes: int, devices: int, evaluate: str = "", **changes: object
) -> list:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(HERE.parents[1]),
    }
    pairs = [f"{key}={json.dumps(value)}" for key, value in {**SETTINGS, **changes}.items()]
    command = [sys.executable, str(HERE / "tiny_run.py"), str(base / "scans"), str(base / name)]
    if evaluate:
        command += [f"--evaluate={evaluate}", f"--damaged={base / 'damaged'}"]
    started = []
    for process in range(processes):
        rank = [f"--processes={processes}", f"--process={process}", f"--port={port}"]
        started.append(
            subprocess.Popen(
                [*command, *pairs, *(rank if processes > 1 else [])],
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def finish(processes: list[subprocess.Popen], status: int = 0) -> None:
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), errors


def end(base: Path, name: str) -> dict:
    return checkpoint.load_for_inference(base / name, "latest")[1]


def assert_close(a: dict, b: dict) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


@pytest.fixture(scope="module")
def alone(base) -> Path:
    """The same run in one process on one device."""
    finish(start(base, "alone", 1, 1))
    return base


@pytest.mark.parametrize(
    ("kind", "processes"), [("pmap", 2), pytest.param("shard_map", 4, marks=pytest.mark.slow)]
)
def test_several_processes_equal_one(alone, kind, processes):
    finish(
        start(alone, kind, processes, 4 // processes, "train", **{"train.parallel": kind}),
    )
    ranks = range(processes)
    assert_close(end(alone, kind), end(alone, "alone"))
    lines = [log.read_metrics(alone / name) for name in (kind, "alone")]
    for two, one in zip(*lines, strict=True):
        assert (two["step"], two["kind"]) == (one["step"], one["kind"])
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert two["dice"] == pytest.approx(one["dice"], abs=1e-3)
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
    processes = start(alone, "stopped", 2, 2)
    while len(log.read_metrics(alone / "stopped")) < 3 and processes[0].poll() is None:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    finish(processes, EXIT_INTERRUPTED)
    steps = [int(p.name) for p in checkpoint.folder(alone / "stopped", "latest").iterdir()]
    assert 3 <= max(steps) < 30
    finish(start(alone, "stopped", 1, 1))
    assert_close(end(alone, "stopped"), end(alone, "alone"))
