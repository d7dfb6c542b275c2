"""Units as a job array of Slurm, submitted by submitit. Slurm alone schedules them.

A job that Slurm preempts, or whose time ends, saves and is queued again; then it resumes. A unit's
output is in its own folder, submitit's output about a job in `<workdir>/slurm/`.
"""

import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spinejax.errors import EXIT_INTERRUPTED, InputError, shown
from spinejax.files import write_json
from spinejax.launch import plan, status, unit
from spinejax.sweep_state import JOB, OUTCOME, SweepUnit, job_of

_POLL_S = 0.5
_KILL_WAIT_S = 300.0  # longer than Slurm waits between asking a job to stop and killing it
_ASK_S = 90  # Slurm asks a job to stop this long before its time ends
_SAVE_S = 80.0  # a run then has this long to save
_RESTARTS = 1000  # how often a job starts again after its time ended


class Job:
    """Runs a unit as a job; submitit pickles it and calls `checkpoint` when Slurm asks to stop."""

    def __init__(self) -> None:
        self._child: unit.Child | None = None

    def __call__(self, folder: str, words: Sequence[str]) -> int:
        """Run a unit to its end; return its exit status, 0.

        Args:
            folder: of the unit.
            words: arguments of `spinejax`.

        Raises:
            RuntimeError: the unit failed.
        """
        rank = int(os.environ.get("SLURM_PROCID", "0"))
        self._child = unit.start(Path(folder), words, rank=rank)
        # submitit ignores SIGTERM, and not every cluster sends it to the child as well.
        signal.signal(signal.SIGTERM, self._stop)
        while (ended := self._child.ended()) is None:
            time.sleep(_POLL_S)
        if ended == EXIT_INTERRUPTED:
            # Slurm asked the unit to stop and will kill this process. If the job ended by itself
            # now, it would count as completed and not be queued again.
            time.sleep(_KILL_WAIT_S)
        if ended != 0:
            raise RuntimeError(f"{folder}: exit status {ended}; see {unit.LOG} there")
        return ended

    def _stop(self, number: int, frame: Any) -> None:
        if self._child is not None:
            self._child.stop()

    def checkpoint(self, folder: str, words: Sequence[str]) -> Any:
        """Stop the unit, which saves, and ask submitit to start it again."""
        import submitit

        child, self._child = self._child, None
        if child is not None:
            child.stop()
            until = time.monotonic() + _SAVE_S
            while child.ended() is None and time.monotonic() < until:
                time.sleep(_POLL_S)
        return submitit.helpers.DelayedSubmission(Job(), folder, words)


def executor(workdir: Path, at_once: int, options: Mapping[str, Any]) -> Any:
    """Return submitit's executor.

    Args:
        workdir: folder of the sweep.
        at_once: most units at a time; 0 for no limit.
        options: values of the flags `--slurm.*`, without the prefix.

    Raises:
        InputError: submitit or Slurm is missing, or a value cannot be used.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            "--executor=slurm needs submitit: pip install -e '.[slurm]', or use --executor=local"
        ) from error
    if shutil.which("sbatch") is None:
        raise InputError(
            "--executor=slurm: no sbatch on this machine; start the sweep on a login node of the "
            "cluster, or use --executor=local"
        )
    check(workdir, options)
    made = submitit.AutoExecutor(
        folder=workdir / "slurm" / "%j", cluster="slurm", slurm_max_num_timeout=_RESTARTS
    )
    optional = {
        "slurm_partition": options["partition"],
        "slurm_account": options["account"],
        "slurm_mem": options["memory"],
        "gpus_per_node": options["gpus"],
    }
    made.update_parameters(
        name=plan.folder_name(workdir.resolve().name),
        timeout_min=minutes(options["time"]),
        nodes=options["hosts"],
        tasks_per_node=options["processes"],
        cpus_per_task=options["cpus"],
        slurm_array_parallelism=at_once or 1000,
        slurm_signal_delay_s=_ASK_S,
        slurm_additional_parameters={"requeue": True, **_more(options["more"])},
        **{name: value for name, value in optional.items() if value},
    )
    return made


def minutes(text: str) -> int:
    """Return the minutes of sbatch's `[D-]HH:MM:SS`, or of a number of minutes.

    Raises:
        InputError: `text` is neither.
    """
    if re.fullmatch(r"[0-9]{1,8}", text):
        return int(text)
    found = re.fullmatch(r"(?:([0-9]{1,4})-)?([0-9]{1,6}):([0-5][0-9]):([0-5][0-9])", text)
    if found is None:
        raise InputError(
            f"--slurm.time={text}: give [D-]HH:MM:SS, such as 12:00:00, or a number of minutes"
        )
    days, hours, rest, seconds = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + rest + (seconds > 0)


def _more(text: str) -> dict[str, str]:
    pairs = dict(word.partition("=")[::2] for word in text.split(",") if word)
    for name, value in pairs.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or not value:
            raise InputError(f"--slurm.more={shown(text)}: give NAME=VALUE,..., such as qos=high")
    return pairs


def check(workdir: Path, options: Mapping[str, Any]) -> None:
    """Refuse what Slurm cannot use, also what would leave its line of the script for sbatch.

    Args:
        workdir: folder of the sweep.
        options: values of the flags `--slurm.*`, without the prefix.

    Raises:
        InputError: names the flag.
    """
    for name, value in options.items():
        if isinstance(value, str) and not value.isprintable():
            raise InputError(
                f"--slurm.{name}={shown(value)}: give printable characters on one line"
            )
    folder = str(workdir.resolve())
    if not folder.isprintable() or "%" in folder:
        raise InputError(
            f"--workdir={shown(folder)}: Slurm cannot use a folder with % or with characters that "
            "cannot be printed; give another"
        )
    minutes(options["time"])
    _more(options["more"])
    if not re.fullmatch(r"([0-9]{1,12}([KMGTkmgt][Bb]?)?)?", options["memory"]):
        raise InputError(
            f"--slurm.memory={shown(options['memory'])}: give a number of MB, or one with its "
            "unit, such as 32GB"
        )


def private(folder: Path) -> None:
    """Make a folder that only this user may read and change, or make an own one so.

    submitit stores pickles there, and a job runs what they hold.

    Raises:
        InputError: the folder belongs to somebody else or is a link, or somebody else may replace
            it, because all users may write to a folder around it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = os.getuid()
    for place in (folder, *folder.absolute().parents):
        status = place.lstat() if place == folder else place.stat()
        theirs = status.st_uid not in ((own,) if place == folder else (own, 0))
        shared = status.st_mode & 0o002 and not status.st_mode & stat.S_ISVTX
        if theirs or not stat.S_ISDIR(status.st_mode) or (shared and place != folder):
            raise InputError(
                f"{place}: others may change this folder, and with it the jobs; give a --workdir "
                "in a folder that is yours, or take their rights away (chmod o-w)"
            )
    folder.chmod(0o700)


def submit(executor: Any, units: Sequence[SweepUnit], workdir: Path) -> int:
    """Submit the units that are neither done nor queued as one job array; return the exit status.

    Raises:
        InputError: Slurm refuses the jobs.
    """
    import submitit

    todo = []
    for one in units:
        kind = status.states([one], workdir)[one.name].kind
        job = job_of(workdir / one.name)
        if kind == "done":
            continue
        if kind == "running" or (job and _is_queued(job)):
            print(f"{one.name}: {kind}, job {job}; not submitted again")
            continue
        todo.append(one)
    if todo:
        private(workdir / "slurm")
        folders = [str((workdir / one.name).resolve()) for one in todo]
        words = [plan.command(one, workdir.resolve()) for one in todo]
        try:
            jobs = executor.map_array(Job(), folders, words)
        except submitit.core.utils.FailedJobError as error:
            said = str(error).strip().splitlines()
            raise InputError(
                f"Slurm refuses the jobs ({said[-1] if said else error}); check --slurm.*"
            ) from error
        for one, job in zip(todo, jobs, strict=True):
            (workdir / one.name / OUTCOME).unlink(missing_ok=True)  # left by an earlier start
            write_json(workdir / one.name / JOB, {"job": job.job_id})
        print(f"submitted {len(todo)} units: job {jobs[0].job_id.partition('_')[0]}")
    print(f"{len(units) - len(todo)} of {len(units)} units done, running or queued before")
    print(f"spinejax sweep --status --workdir={shlex.quote(str(workdir))}")
    return 0


def _is_queued(job: str) -> bool:
    """Whether a job still waits or runs.

    Raises:
        InputError: Slurm does not answer.
    """
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%T"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError("squeue does not answer; try again when the cluster does") from error
    if asked.returncode != 0 and "Invalid job id" not in asked.stderr:
        said = " ".join(asked.stderr.split())
        raise InputError(f"squeue fails ({said}); try again when the cluster answers")
    return asked.returncode == 0 and bool(asked.stdout.strip())
