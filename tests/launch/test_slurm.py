"""A sweep on a real Slurm of this machine; and its flags, which need none."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

import jax
import numpy as np
import pytest
import submitit

from spinejax import records, sweep_state
from spinejax.cli import main
from spinejax.errors import InputError
from spinejax.launch import slurm
from spinejax.training import checkpoint
from tests.support import slurm_cluster, tiny_run

ROOT = Path(__file__).parents[2]
WAIT_S = 400
STEPS = 60

on_slurm = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing() or "none"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    tiny_run.write_scans(folder / "scans")
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_cluster.running(tmp_path_factory.mktemp("cluster")) as environment:
        yield environment


def command(place, workdir, *words):
    return [
        *(
            sys.executable,
            "-m",
            "spinejax",
            "sweep",
            "--config=tests/support/tiny_sweep.py",
            "--sweep=table3",
        ),
        f"--config.data.root={place / 'scans'}",
        f"--config.train.steps={STEPS}",
        *(f"--workdir={workdir}", *words),
    ]


def run(words, environment):
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def states(workdir):
    return {u.name: sweep_state.state(workdir / u.name) for u in sweep_state.read(workdir).units}


def until(condition, workdir):
    end = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end:
            logs = [p.read_text()[-1500:] for p in Path(workdir).rglob("*.err")]
            raise AssertionError(f"waited in vain in {workdir}: {logs}")
        time.sleep(0.2)


def hurry(environment):
    """Start requeued jobs soon; Slurm lets them wait for two minutes.

    Not at once: for about a second after it requeued a job, Slurm refuses to start it.
    """
    pending = ["squeue", "--noheader", "--array", "--states=PENDING", "--format=%i %S"]
    for line in run(pending, environment).splitlines():
        job, start = line.split()
        if start == "N/A" or datetime.fromisoformat(start) < datetime.now() + timedelta(seconds=10):
            continue
        command = ["scontrol", "update", f"jobid={job}", "StartTime=now+4seconds"]
        subprocess.run(command, env=environment, capture_output=True, check=False)


@contextmanager
def halted(folder):
    """Halt the processes that train in a folder until one of them is sent a signal.

    Otherwise a fast machine finishes the training before the test interrupts it.
    """
    held = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and trains(pid, folder)]
    assert held, f"no process trains in {folder}"
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: all(state(pid)[0] == "T" for pid in held), folder)
        yield
        until(lambda: any(state(pid) != ("T", 0) for pid in held), folder)
    finally:
        for pid in held:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def trains(pid, folder):
    """Return whether another process than this one holds the log of a unit open."""
    try:
        files = [os.path.realpath(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # it ended meanwhile
        return False
    return int(pid) != os.getpid() and str(folder / sweep_state.LOG) in files


def state(pid):
    """Return the state of a process, "T" if it is halted, and its pending signals as bits."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "ended", 0
    lines = dict(line.split(":\t") for line in text.splitlines())
    return lines["State"][0], int(lines["ShdPnd"], 16)


def requeued(job, environment):
    run(["scontrol", "requeue", job], environment)


def out_of_time(job, environment):
    """Send what Slurm sends before the end of a job's time."""
    run(["scancel", "--signal=USR2", job], environment)


def preempted(job, environment):
    """Start a job that needs the whole machine and comes first."""
    options = ["--partition=urgent", "--cpus-per-task=4", "--time=1", "--output=/dev/null"]
    run(["sbatch", *options, "--wrap=sleep 1"], environment)


@pytest.fixture(scope="module")
def undisturbed(place, tmp_path_factory):
    """The sweep without Slurm, and without an interruption."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(command(place, folder), {**os.environ, "SLURM_CONF": ""})
    return folder


def weights(folder):
    return checkpoint.load_for_inference(folder, "latest")[1]["params"]


class TestOnSlurm:
    pytestmark = on_slurm

    @pytest.mark.parametrize("interrupt", [requeued, out_of_time, preempted])
    def test_an_interrupted_job_of_an_array_goes_on_bit_for_bit(
        self, place, cluster, undisturbed, tmp_path, interrupt
    ):
        words = command(place, tmp_path, "--executor=slurm", "--slurm.cpus=2", "--slurm.time=20")
        out = run(words, cluster)
        assert out.startswith("submitted 2 units: job ")
        first = "zscore,seed=0"
        job = records.read_or_empty(tmp_path / first / sweep_state.JOB)["job"]
        until(lambda: (states(tmp_path)[first].step or 0) >= 6, tmp_path)
        asked = [sys.executable, "-m", "spinejax", "sweep", "--status", f"--workdir={tmp_path}"]
        with halted(tmp_path / first):
            assert "not submitted again" in run(words, cluster)
            assert "running" in run(asked, cluster)
            interrupt(job, cluster)
        until(lambda: states(tmp_path)[first].kind != "running", tmp_path)
        stopped = states(tmp_path)[first]
        assert stopped.kind == "stopped" and 0 < stopped.step < STEPS

        def ended():
            hurry(cluster)
            return all(s.kind == "done" for s in states(tmp_path).values())

        until(ended, tmp_path)
        assert "2 of 2 units done" in run(asked, cluster)

        record = records.read_or_empty(tmp_path / first / "run.json")
        assert record["starts"] == 2
        for unit in states(tmp_path):
            alone, queued = weights(undisturbed / unit), weights(tmp_path / unit)
            jax.tree.map(np.testing.assert_array_equal, alone, queued)
        out = run(words, cluster)
        assert out.splitlines()[0] == "2 of 2 units done, running or queued before"

    def test_a_unit_of_two_processes_is_one_run(self, place, cluster, tmp_path):
        words = (
            *("--executor=slurm", "--slurm.cpus=1", "--slurm.processes=2", "--slurm.time=20"),
            *("--units=*seed=0", "--config.train.batch_size=4"),
        )
        run(command(place, tmp_path, *words), cluster)
        name = "zscore,seed=0"
        until(lambda: states(tmp_path)[name].kind in ("done", "failed"), tmp_path)
        assert states(tmp_path)[name].kind == "done", states(tmp_path)[name].note
        record = records.read_or_empty(tmp_path / name / "run.json")
        assert (record["processes"], record["devices"]) == (2, 2)
        assert (tmp_path / name / "unit-1.log").exists()

    def test_the_script_for_several_hosts_saves_and_goes_on_before_its_time_ends(
        self, place, cluster, tmp_path
    ):
        folder = tmp_path / "run"
        words = [
            *("--config=tests/support/tiny_sweep.py", f"--config.data.root={place / 'scans'}"),
            *(f"--config.train.steps={STEPS}", "--config.train.batch_size=4"),
            f"--workdir={folder}",
        ]
        options = ["--ntasks=2", "--time=20", f"--output={tmp_path / 'out'}", "--parsable"]
        environment = {**cluster, "PYTHON": sys.executable}
        job = run(["sbatch", *options, "launch/multihost.sh", *words], environment).strip()

        def step():
            return (sweep_state.state(folder).step or 0) if folder.exists() else 0

        def printed():
            return (tmp_path / "out").read_text() if (tmp_path / "out").exists() else ""

        end = time.monotonic() + WAIT_S
        while step() < 6:
            assert time.monotonic() < end, printed()
            time.sleep(0.2)
        # What Slurm itself sends to the run before the end of a job's time.
        run(["scancel", "--signal=TERM", f"{job}.0"], cluster)
        while "interrupted at step" not in printed():
            assert time.monotonic() < end, printed()
            time.sleep(0.2)
        while not (folder / "DONE").exists():
            hurry(cluster)
            seen = run(["scontrol", "show", "job", job], cluster), run(["sinfo", "-R"], cluster)
            assert time.monotonic() < end, (printed(), seen)
            time.sleep(1)
        record = records.read_or_empty(folder / "run.json")
        assert (record["starts"], record["processes"]) == (2, 2)


def test_times_are_those_of_sbatch():
    assert slurm.minutes("30") == 30
    assert slurm.minutes("1:30:00") == 90
    assert slurm.minutes("2-01:00:01") == 2 * 24 * 60 + 61
    with pytest.raises(InputError, match=r"--slurm.time=soon: give \[D-\]HH:MM:SS"):
        slurm.minutes("soon")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("partition", "gpu\nrm -rf x"),
        ("account", "a\r#SBATCH"),
        ("memory", "1\x00GB"),
        ("more", "qos=a\nb"),
        ("more", "wrap me=1"),
        ("more", "=x"),
        ("memory", "lots"),
        ("time", "25:61:61"),
        ("time", "1" * 5000),
    ],
)
def test_what_would_leave_its_line_of_the_script_is_refused(tmp_path, monkeypatch, name, value):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: "/usr/bin/sbatch")
    options = dict(partition="", account="", memory="", more="", time="1", gpus=0, hosts=1, cpus=1)
    options = {**options, "processes": 1}
    with pytest.raises(InputError, match=f"--slurm.{name}=") as error:
        slurm.executor(tmp_path, 0, {**options, name: value})
    assert "\n" not in str(error.value)
    for folder in ("a\nb", "100%j"):
        with pytest.raises(InputError, match="Slurm cannot use a folder"):
            slurm.executor(tmp_path / folder, 0, options)
    made = slurm.executor(tmp_path / "a b'c", 0, options)
    assert made._executor.parameters["job_name"] == "a_b_c"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--slurm.partition=a\nb", "--slurm.partition="),
        ("--slurm.memory=lots", "--slurm.memory='lots': give a number of MB"),
        ("--slurm.time=25:61:61", "--slurm.time=25:61:61: give"),
        ("--slurm.more==x", "--slurm.more='=x': give NAME=VALUE"),
        ("--gpus=-2", "--gpus=-2"),
        ("--gpus=2", "--gpus=2 is for this machine; on Slurm give --slurm.gpus"),
        ("--units_per_gpu=2", "submit one job that runs this sweep with --executor=local"),
        ("--prune=2", "without a launcher that could compare them; submit one job"),
        ("--seeds=1000000000", "--seeds=1000000000"),
        ("--folds=1000000000", "--folds=1000000000"),
    ],
)
def test_a_dry_run_refuses_what_the_start_refuses(tmp_path, capsys, word, said):
    words = [*command(tmp_path, tmp_path / "w")[3:], "--executor=slurm", "--dry_run", word]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and len(error) < 400


def test_the_folder_of_pickles_is_private(tmp_path):
    folder = tmp_path / "slurm"
    folder.mkdir(mode=0o755)
    slurm.private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rename(tmp_path / "other")
    folder.symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match="others may change this folder"):
        slurm.private(folder)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(InputError, match=r"open: others may change .* \(chmod o-w\)"):
        slurm.private(tmp_path / "open" / "slurm")


def test_without_slurm_or_submitit_it_says_what_to_do(monkeypatch, capsys, tmp_path):
    words = [*command(tmp_path, tmp_path / "w")[3:], "--executor=slurm"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(words) == 1
    assert "no sbatch on this machine; start the sweep on a login node" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(words) == 1
    assert "needs submitit: pip install -e '.[slurm]'" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_submitit_without_slurm_runs_units_saves_and_starts_them_again(place, tmp_path):
    """What a job runs, by submitit's local executor: no cluster is needed."""
    folder = tmp_path / "unit"
    words = [
        *("train", "--config=tests/support/tiny_sweep.py", f"--config.data.root={place / 'scans'}"),
        *(f"--workdir={folder}", "--config.train.steps=4", "--evaluate"),
    ]
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=5)
    job = executor.submit(slurm.Job(), str(folder), words)
    assert job.result() == 0
    assert sweep_state.state(folder).kind == "done"
    failing = executor.submit(slurm.Job(), str(tmp_path / "bad"), ["train", "--nonsense"])
    with pytest.raises(submitit.core.utils.FailedJobError, match="exit status 1"):
        failing.result()
    state = sweep_state.state(tmp_path / "bad")
    assert state.kind == "failed" and "nonsense" in state.note
