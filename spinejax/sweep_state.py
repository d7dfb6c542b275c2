"""The folder of a sweep: its units and their states. This module only reads files.

    <workdir>/sweep.json              the sweep and its units
    <workdir>/<unit>/                 the workdir of the unit's run
    <workdir>/<unit>/unit.log         the output of the run; locked while the run goes on
    <workdir>/<unit>/outcome.json     exit status of the last start, written when it ends, and why
                                      the unit was pruned if it was
    <workdir>/<unit>/job.json         the unit's job, if a cluster runs it
    <workdir>/first/                  first networks of pipelines that several units share

A lock shows whether a unit is running. The kernel holds it for the unit's processes and drops it
when they end for any reason. Other hosts see it if the file system shares locks.
"""

import fcntl
import json
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from spinejax import records
from spinejax.errors import EXIT_INTERRUPTED, InputError
from spinejax.files import write_json
from spinejax.schema import SECOND

LOCK = ".lock"  # the training in a folder holds it
FILE, LOG, OUTCOME, JOB = "sweep.json", "unit.log", "outcome.json", "job.json"

_STOPPED = (0, EXIT_INTERRUPTED, -signal.SIGTERM, -signal.SIGINT)  # on request; may be resumed
_LAST_LINES = 65536  # bytes at the end of a log that are read
_LOOK_S = 0.5  # `is_locked` holds a lock itself for a moment
_WHOLE = 1 << 30
_RATE_STEPS = 20  # the time left is computed from so many logged steps


RESTORE = "restore it from a copy"
REMOVE = "remove it"
_SWEEP = {
    "name": str,
    "config": str,
    "units": [{"name": str, "words": [str], "overrides": dict, "cell": dict, "first?": str}],
}
_RUN = {
    "started?": str,
    "seconds?": float,
    "steps?": int,
    "starts?": int,
    "parameters?": (int, None),
    "pixels_mm?": [float],
    "cases?": {"train?": [str], "val?": [str], "test?": [str]},
    "begun_with?": {str: str},
}
SCORES = {
    "cases": {str: dict},
    "summary?": {"binary?": {"dice?": {"mean?": (float, None)}}},
    "failed?": {str: str},
}
"""The shape of scores.json as far as it must be right; reports leave out what else is wrong."""


@dataclass(frozen=True)
class SweepUnit:
    """One run of a sweep.

    name: of its folder.
    words: arguments of `spinejax train`, without --workdir.
    overrides: the fields that it sets, by dotted key.
    cell: its place in a published table, see `configs.sweeps.Unit`; may be empty.
    first: folder, within that of the sweep, in which units that share their first network train it;
        "" where a unit shares none.
    """

    name: str
    words: tuple[str, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    cell: Mapping[str, Any] = field(default_factory=dict)
    first: str = ""


@dataclass(frozen=True)
class Sweep:
    """The content of sweep.json: name of the sweep, the config that it varies, its units."""

    name: str
    config: str
    units: tuple[SweepUnit, ...]


@dataclass(frozen=True)
class State:
    """The state of a unit.

    kind: "waiting", "running", "stopped" (to be resumed), "pruned" (stopped because others are
        better), "failed" or "done".
    step, steps: progress of its current or last training; None before the first step.
    score: Dice of the last validation, or of the test split if the unit is done and scored.
    seconds_left: time that the training still needs at its latest speed; None if unknown.
    note: why the unit failed or was pruned, or which network of a pipeline is trained.
    """

    kind: str
    step: int | None = None
    steps: int | None = None
    score: float | None = None
    seconds_left: float | None = None
    note: str = ""


class LearningCurve(NamedTuple):
    """The validations of a unit's training so far.

    steps: length of the whole training; 0 if it has not begun.
    scores: (step, Dice) of each validation, in order of the steps.
    """

    steps: int
    scores: list[tuple[int, float]]


def write(workdir: Path, sweep: Sweep) -> None:
    """Write sweep.json."""
    write_json(workdir / FILE, asdict(sweep), "sweep")


def read(workdir: Path) -> Sweep:
    """Read sweep.json.

    Raises:
        InputError: the folder is not a sweep's, or the file is damaged.
    """
    file = workdir / FILE
    if not file.exists():
        raise InputError(
            f"{workdir} is not the folder of a sweep (no {FILE}); give the --workdir of "
            "`spinejax sweep`"
        )
    record = records.read(file, _SWEEP, RESTORE)
    units = tuple(SweepUnit(**{**one, "words": tuple(one["words"])}) for one in record["units"])
    return Sweep(record["name"], record["config"], units)


def state(folder: Path) -> State:
    """Return how far the unit in a folder is; a damaged file of the unit counts as a failure."""
    try:
        return _state(folder)
    except InputError as error:
        return State("failed", note=str(error))


def _state(folder: Path) -> State:
    # The launcher locks the log; a run that was started by hand has the run's own lock only.
    running = any(is_locked(folder / name) for name in (LOG, LOCK, f"{SECOND}/{LOCK}"))
    if not (folder / LOG).exists() and not (folder / "config.json").exists():
        job = job_of(folder)
        return State("waiting", note=f"job {job}" if job else "")
    stages = _stages(folder)
    now = next((one for one in stages if not (one / "DONE").exists()), stages[-1])
    note = "" if len(stages) == 1 else f"network {stages.index(now) + 1} of {len(stages)}"
    lines = _metrics(now / "metrics.jsonl")
    steps = read_run(now).get("steps")
    step = lines[-1]["step"] if lines else None
    validated = _dice(lines)
    if lines and not validated:  # the last validation may lie further back
        validated = _dice(_metrics(now / "metrics.jsonl", whole=True))
    common: dict[str, Any] = dict(
        step=step,
        steps=steps if isinstance(steps, int) else None,
        score=validated[-1][1] if validated else None,
    )
    if running:
        left = seconds_left(lines, steps)
        return State("running", **common, seconds_left=left, note=note)
    if _is_done(folder, stages):
        scores = read_scores(folder / "evaluation" / "test" / "scores.json")
        tested = scores.get("summary", {}).get("binary", {}).get("dice", {}).get("mean")
        return State("done", **{**common, "score": common["score"] if tested is None else tested})
    outcome = records.read_if_there(folder / OUTCOME, {"status": int, "pruned?": str}, REMOVE)
    status = outcome.get("status", EXIT_INTERRUPTED)
    if status in _STOPPED and outcome.get("pruned"):
        return State("pruned", **common, note=outcome["pruned"])
    if status in _STOPPED:
        job = job_of(folder)
        waits = job and not (folder / OUTCOME).exists()
        return State(
            "stopped", **common, note=", ".join(filter(None, (note, f"job {job}" if waits else "")))
        )
    return State("failed", **common, note=_why(folder / LOG, status))


def learning_curve(folder: Path) -> LearningCurve:
    """Return the validations of a unit; of a pipeline those of its second network.

    Raises:
        InputError: a file of the unit is damaged.
    """
    if not (folder / "config.json").exists():
        return LearningCurve(0, [])
    last = _stages(folder)[-1]
    steps = read_run(last).get("steps", 0)
    lines = _metrics(last / "metrics.jsonl", whole=True, having='"val"')
    return LearningCurve(steps, _dice(lines) if steps else [])


def _stages(folder: Path) -> list[Path]:
    """Return the folder of each network of a unit that has begun."""
    is_pipeline = SECOND in records.read_if_there(folder / "config.json", dict, RESTORE)
    return [folder, folder / SECOND] if is_pipeline else [folder]


def _dice(lines: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Return the step and the Dice of each validation."""
    found = (line for line in lines if line["kind"] == "val" and "dice" in line)
    return [(line["step"], line["dice"]) for line in found]


def read_run(folder: Path) -> dict[str, Any]:
    """Return run.json of a run; {} if it has none.

    Raises:
        InputError: the file is damaged.
    """
    return records.read_if_there(
        folder / "run.json", _RUN, f"{RESTORE}, or remove it: the next start writes another"
    )


def read_scores(file: Path) -> dict[str, Any]:
    """Return a scores.json; {} if there is none.

    Raises:
        InputError: the file is damaged.
    """
    return records.read_if_there(
        file, SCORES, "remove it and run the same `spinejax evaluate` again"
    )


def job_of(folder: Path) -> str:
    """Return the job of a unit's last start on a cluster; "" if there is none.

    Raises:
        InputError: job.json is damaged.
    """
    return records.read_if_there(folder / JOB, {"job": str}, REMOVE).get("job", "")


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file; False if the file system has no locks."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def take_lock(file: IO[bytes]) -> bool:
    """Lock an open file until it is closed; return False if another process holds the lock.

    If the file system has no locks, return True.
    """
    until = time.monotonic() + _LOOK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        except OSError:
            return True
        else:
            return True


def _is_done(folder: Path, stages: list[Path]) -> bool:
    """Whether all networks are trained, and the test split is scored if it has cases."""
    if not all((stage / "DONE").exists() for stage in stages):
        return False
    cases = read_run(folder).get("cases", {})
    scores = folder / "evaluation" / "test" / "scores.json"
    return not cases.get("test") or (scores.exists() and "failed" not in read_scores(scores))


def seconds_left(lines: list[dict[str, Any]], steps: Any) -> float | None:
    """Return the time that a training still needs at its latest speed; None if it is unknown.

    Args:
        lines: records of metrics.jsonl, see `metric`.
        steps: of the whole run.
    """
    trained = [line for line in lines if line["kind"] == "train" and "seconds" in line]
    trained = trained[-_RATE_STEPS:]
    if len(trained) < 2 or not isinstance(steps, int):
        return None
    first, last = trained[0], trained[-1]
    done = last["step"] - first["step"]
    taken = last["seconds"] - first["seconds"]
    return (steps - last["step"]) * taken / done if done > 0 else None


def _why(log: Path, status: int) -> str:
    """Return in one line why a run failed: its last error, or the signal that ended it."""
    lines = [line.strip() for line in _tail(log).replace("\r", "\n").splitlines()]
    lines = [line for line in lines if line]
    said = next((line for line in reversed(lines) if "error: " in line), lines[-1] if lines else "")
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        hint = ", perhaps out of memory" if name == "SIGKILL" else ""
        return f"ended by {name}{hint}; last line: {said}"
    return said or f"exit status {status}, nothing printed"


def _tail(path: Path, size: int = _LAST_LINES) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _metrics(path: Path, *, whole: bool = False, having: str = "") -> list[dict[str, Any]]:
    """Return the last records of metrics.jsonl, or all; only of lines that hold some text."""
    lines = _tail(path, _WHOLE if whole else _LAST_LINES).split("\n")
    found = (metric(line) for line in lines if having in line)
    return [record for record in found if record is not None]


_LINE = {"step": int, "kind": str}


def metric(line: str) -> dict[str, Any] | None:
    """Return the record in a line of metrics.jsonl: a step, "train" or "val", and finite numbers.

    Returns:
        None where the line is something else, such as a last line that a kill cut off.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not records.fits(record, _LINE) or record["kind"] not in ("train", "val"):
        return None
    numbers = {name: value for name, value in record.items() if name != "kind"}
    return record if record["step"] >= 0 and records.fits(numbers, {str: float}) else None
