"""Sweeps that run: killed, stopped, failing, and what `--status` says meanwhile."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spinejax import sweep_state
from spinejax.cli import main
from tests.support import tiny_run

ROOT = Path(__file__).parents[2]
WAIT_S = 300

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc"),
]


@pytest.fixture
def start(place):
    """A function that starts a launcher in a session of its own, which its units share."""
    launchers = []

    def start(workdir, *more):
        launcher = subprocess.Popen(
            [sys.executable, "-m", "spinejax", *words(place, workdir, *more)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        launchers.append(launcher)
        return launcher

    yield start
    for launcher in launchers:
        kill_all(launcher)  # a test that fails leaves nothing behind


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the scans, their cache and compiled programs, shared by all sweeps."""
    folder = tmp_path_factory.mktemp("sweeps")
    tiny_run.write_scans(folder / "scans")
    return folder


def words(place, workdir, *more, name="four"):
    return [
        *("sweep", "--config=tests/support/tiny_sweep.py", f"--sweep={name}"),
        f"--config.data.root={place / 'scans'}",
        f"--config.data.cache_dir={place / 'cache'}",
        *(f"--workdir={workdir}", "--at_once=2", *more),
    ]


def launch(place, workdir, *more, name="four", status=0):
    """Run a sweep to its end. This process has jax's threads and must not start units itself."""
    done = subprocess.run(
        [sys.executable, "-m", "spinejax", *words(place, workdir, *more, name=name)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * WAIT_S,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def run(capsys, *command, status=0):
    """Run a command that starts no unit, in this process."""
    capsys.readouterr()
    done = main([str(word) for word in command])
    out, err = capsys.readouterr()
    assert done == status, out + err
    return out


def members(session):
    """Processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def kill_all(launcher):
    """Kill a launcher and its units."""
    while victims := members(launcher.pid):
        for process in victims:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
    launcher.wait()


def states(workdir):
    return {u.name: sweep_state.state(workdir / u.name) for u in sweep_state.read(workdir).units}


def kinds(workdir):
    if not (workdir / sweep_state.FILE).exists():
        return []
    return [state.kind for state in states(workdir).values()]


def until(condition):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def tables(capsys, workdir):
    run(capsys, "report", f"--sweep={workdir}")
    # Times differ.
    lines = (workdir / "report.csv").read_text().splitlines()
    return [line for line in lines if ",train_h," not in line and ",predict_s," not in line]


def test_a_killed_sweep_goes_on_with_what_is_missing_to_the_same_table(
    place, start, tmp_path, capsys
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    out = launch(place, whole)
    assert out.splitlines()[-1] == "4 of 4 units done"

    launcher = start(killed)
    # Halfway: some are done, and one has saved and not finished.
    until(lambda: "done" in kinds(killed))
    until(
        lambda: (
            any(
                state.kind == "running" and (state.step or 0) >= 4
                for state in states(killed).values()
            )
            or "waiting" not in kinds(killed)
        )
    )
    kill_all(launcher)
    until(lambda: "running" not in kinds(killed))  # threads of the killed may outlive their leader
    before = states(killed)
    assert 1 <= kinds(killed).count("done") < 4
    finished = {name for name, state in before.items() if state.kind == "done"}
    touched = {name: (killed / name / "DONE").stat().st_mtime_ns for name in finished}

    out = launch(place, killed)
    started = {line.split(":")[0] for line in out.splitlines() if line.endswith(": running")}
    assert started == before.keys() - finished
    assert {name: (killed / name / "DONE").stat().st_mtime_ns for name in finished} == touched
    assert tables(capsys, killed) == tables(capsys, whole)
    # Once more: nothing is left to do, and nothing is done.
    out = run(capsys, *words(place, killed))
    assert ": running" not in out and out.splitlines()[-1] == "4 of 4 units done"


def test_ctrl_c_saves_all_units_and_a_dead_launcher_takes_its_units_with_it(start, tmp_path):
    endless = "--config.train.steps=1000000"
    launcher = start(tmp_path, endless)
    until(
        lambda: (
            any((s.step or 0) >= 1 for s in states(tmp_path).values()) if kinds(tmp_path) else False
        )
    )
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(WAIT_S) == 75
    assert not members(launcher.pid)
    until(lambda: "running" not in kinds(tmp_path))
    assert "failed" not in kinds(tmp_path)

    launcher = start(tmp_path, endless)
    until(lambda: "running" in kinds(tmp_path))
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    until(lambda: not members(launcher.pid) and "running" not in kinds(tmp_path))


def test_a_failed_unit_says_why_and_the_others_go_on(place, tmp_path, capsys):
    out = launch(place, tmp_path, name="failing", status=1)
    found = states(tmp_path)
    assert [state.kind for state in found.values()] == ["failed", "done"]
    note = found["split=official"].note
    assert "error:" in note and "official" in note and note in out
    shown = run(capsys, "sweep", "--status", f"--workdir={tmp_path}")
    assert shown.splitlines()[-1] == "1 of 2 units done, 1 failed" and note in shown


def test_the_folder_of_a_run_or_of_another_sweep_is_refused(place, tmp_path, capsys):
    def said(name):
        capsys.readouterr()
        assert main(words(place, tmp_path, "--config.train.steps=1", name=name)) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    (tmp_path / "config.json").write_text("{}")
    assert "is the folder of a single run" in said("four")
    (tmp_path / "config.json").unlink()
    launch(place, tmp_path, "--config.train.steps=1", "--units=*zscore,seed=0", name="table3")
    assert "belongs to sweep table3" in said("four")
    (tmp_path / sweep_state.FILE).write_text("{")
    assert "is damaged" in said("table3")
