"""Runs that are killed at random moments, saves included, end with the same parameters.

Every kill is a SIGKILL of a training process of its own; its successor gets the same arguments.
"""

import json
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
import numpy as np
import pytest

from spinejax.errors import InputError
from spinejax.tasks import build_task
from spinejax.training import checkpoint, log, optim
from spinejax.training.state import create_state
from tests.support import forked_run
from tests.support.tiny_run import EXIT_INTERRUPTED, tiny_config, write_scans

STEPS = 30
NETWORK = {"model.norm": "batch", "model.widths": [4]}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Folder of the scans and of an uninterrupted run."""
    base = tmp_path_factory.mktemp("kill")
    write_scans(base / "scans")
    finish(base, "whole")
    return base


def start(base: Path, name: str, pause: float = 0.0) -> BaseProcess:
    """Start or continue a run, with a pause before each step; its cache of scans is shared."""
    settings = {
        "train.steps": STEPS,
        "train.eval_every_epochs": 2,
        "train.pictures": 0,
        **NETWORK,
        "data.cache_dir": str(base / "cache"),
    }
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    words = [str(base / "scans"), str(base / name), *pairs, f"--pause={pause}"]
    return forked_run.start(words, base / f"{name}.log")


def finish(base: Path, name: str, status: int = 0) -> str:
    """Run to the end, and return all that the run ever printed."""
    process = start(base, name)
    process.join(300)
    printed = (base / f"{name}.log").read_text()
    assert process.exitcode == status, printed[-3000:]
    return printed


def last_step(workdir: Path) -> int:
    """Return the step of the last whole line of metrics.jsonl; cheap, for loops that wait."""
    try:
        lines = (workdir / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return json.loads(lines[-1])["step"] if lines else 0


def is_saving(workdir: Path) -> bool:
    folders = [checkpoint.folder(workdir, which) for which in checkpoint.FOLDERS]
    return any("tmp" in p.name for f in folders if f.is_dir() for p in f.iterdir())


def is_deleting(workdir: Path) -> bool:
    return any((checkpoint.folder(workdir, w) / "_todelete").is_dir() for w in checkpoint.FOLDERS)


def kill_once(process: BaseProcess, workdir: Path, how: str, chance: random.Random) -> bool:
    """Kill at a random moment of the kind `how`; False where the run was over before."""
    deadline = time.monotonic() + 120
    begun = last_step(workdir)
    target = begun + chance.randrange(1, 6)
    reached = {"saving": is_saving, "deleting": is_deleting}.get(how)
    while process.exitcode is None and time.monotonic() < deadline:
        if how != "starting" and last_step(workdir) < target:
            time.sleep(0.01)  # leaves the processor to the run
        elif reached and not reached(workdir):
            time.sleep(0.001)
        else:
            longest = {"starting": 1.0, "updating": 0.1, "saving": 0.05, "deleting": 0.01}[how]
            time.sleep(chance.random() * longest)
            process.kill()
            process.join()
            return process.exitcode == -signal.SIGKILL
    assert process.exitcode is not None, "the run got stuck"
    return False


def final_state(base: Path, name: str):
    config = tiny_config(base / "scans", **NETWORK)
    optimizer = optim.make_optimizer(
        "adam", optim.make_schedule("constant", learning_rate=1.0, total_steps=1), clip_norm=1.0
    )
    variables = jax.eval_shape(build_task(config).init, jax.random.key(0))
    like = jax.eval_shape(lambda v: create_state(v, optimizer, ema=True), variables)
    with checkpoint.Checkpoints(base / name) as checkpoints:
        state, meta = checkpoints.restore(like)
        return state, meta, checkpoints.best()


def assert_same_end(base: Path, name: str) -> None:
    (a, meta_a, best_a), (b, meta_b, best_b) = final_state(base, "whole"), final_state(base, name)
    assert (meta_b, best_b) == (meta_a, best_a) and meta_b.step == STEPS
    jax.tree.map(np.testing.assert_array_equal, a, b)
    best = [checkpoint.load_for_inference(base / n)[1] for n in ("whole", name)]
    jax.tree.map(np.testing.assert_array_equal, *best)
    times = ("seconds", "samples_per_s")
    lines = [
        [{k: v for k, v in x.items() if k not in times} for x in log.read_metrics(base / n)]
        for n in ("whole", name)
    ]
    assert lines[0] == lines[1]
    # `lines` lacks lines that were written twice, so those of the file are counted.
    assert len((base / name / "metrics.jsonl").read_text().splitlines()) == len(lines[1])


def test_another_process_reads_whole_networks_while_a_run_saves_and_is_killed(base):
    """A reader finds no checkpoint yet, or all parameters as finite numbers; nothing else."""
    shapes, sizes = set(), []
    for how in ("killed", "finished"):
        process = start(base, "read", pause=0.1)
        deadline = time.monotonic() + 120
        while process.exitcode is None and time.monotonic() < deadline:
            which = checkpoint.FOLDERS[len(sizes) % 2]
            try:
                variables = checkpoint.load_for_inference(base / "read", which)[1]
            except InputError as error:
                assert "no checkpoint yet" in str(error) or "no config.json" in str(error), error
                continue
            leaves = jax.tree.leaves(variables)
            assert all(np.isfinite(leaf).all() for leaf in leaves)
            shapes.add(tuple(leaf.shape for leaf in leaves))
            sizes.append(len(leaves))
            if how == "killed" and len(sizes) >= 4:
                process.kill()
            time.sleep(0.2)  # the machine is for the run
        process.join(60)
    assert process.exitcode == 0 and len(shapes) == 1 and len(sizes) > 8
    assert "Traceback" not in (base / "read.log").read_text()


def torture(base: Path, name: str, kills: int, seed: int) -> dict[str, int]:
    """Kill a run `kills` times, or until it is done; let it end; return how often each way."""
    chance = random.Random(seed)
    counts = dict.fromkeys(("starting", "updating", "saving", "deleting"), 0)
    for _ in range(kills):
        how = chance.choices(list(counts), weights=(1, 3, 4, 2))[0]
        if not kill_once(start(base, name), base / name, how, chance):
            break
        counts[how] += 1
    printed = finish(base, name)
    assert "Traceback" not in printed, printed[-3000:]
    assert_same_end(base, name)
    return counts


@pytest.mark.slow
def test_twenty_kills_in_all_and_each_run_ends_the_same(base):
    total = dict.fromkeys(("starting", "updating", "saving", "deleting"), 0)
    for seed in range(100, 120):
        left = 20 - sum(total.values())
        if left <= 0:
            break
        for how, count in torture(base, f"killed{seed}", min(left, 10), seed).items():
            total[how] += count
    print("kills:", total)
    assert sum(total.values()) == 20 and total["saving"] >= 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_exits_and_the_same_command_resumes(base, number):
    name = f"signal{number}"
    process = start(base, name, pause=0.1)
    while last_step(base / name) < 4 and process.exitcode is None:
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(120)
    assert process.exitcode == EXIT_INTERRUPTED
    steps = [int(p.name) for p in checkpoint.folder(base / name, "latest").iterdir()]
    assert 4 <= max(steps) == last_step(base / name) < STEPS
    assert "Traceback" not in finish(base, name)
    assert_same_end(base, name)
