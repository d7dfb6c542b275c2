"""The folder of a run: its lock, the room on its disk, config.json and run.json.

    <workdir>/.lock          held while a training uses the folder
    <workdir>/config.json    the resolved config
    <workdir>/run.json       record of the run: machine, duration, cases

Orbax and tensorboardX write in background threads, which print tracebacks of their own when the
disk is full. So the room on the disk is checked before each write.
"""

import json
import logging
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from spinejax import numerics, records, schema, tasks
from spinejax.datasets.verse import Case
from spinejax.errors import InputError, MachineError, shown
from spinejax.files import check_claim, check_output, claim, is_ours, made, write_json
from spinejax.sweep_state import LOCK, RESTORE, read_run, take_lock
from spinejax.training import parallel

logger = logging.getLogger("spinejax")

RESERVE_BYTES = 2 * 2**20
"""Room in bytes that logs and small files may take between two checks."""


def require_room(folder: Path, needed_bytes: int = 0) -> None:
    """Check that `needed_bytes` and a reserve fit on the disk of an existing `folder`.

    Raises:
        InputError: they do not.
    """
    free, needed = shutil.disk_usage(folder).free, needed_bytes + RESERVE_BYTES
    if free < needed:
        raise InputError(
            f"{folder}: the disk is full ({free / 2**20:.1f} MiB free, {needed / 2**20:.1f} MiB "
            "needed); free some space and run the same command again, it continues from the last "
            "checkpoint"
        )


def full(folder: Path) -> MachineError:
    """Return the error for a disk that filled up while a run wrote to `folder`."""
    return MachineError(
        f"{folder}: the disk is full; free some space and run the same command again, it continues "
        "from the last checkpoint"
    )


# A new folder with one of these files or folders is kept although its start failed.
_RESULTS = (
    "cache/*/meta.json",
    "checkpoints/*/[0-9]*",
    "metrics.jsonl",
    "phantoms/*",
    "search.jsonl",
)


# What a run or a search writes into its folder. Whatever the cache holds is named by its content.
_NAMES = (
    "DONE",
    "checkpoints",
    "config.json",
    "evaluation",
    "metrics.jsonl",
    "mlflow",
    "patches.json",
    "profile",
    "run.json",
    "search.json",
    "search.jsonl",
    "tensorboard",
    "trackers.json",
    "wandb",
)


def _is_known(workdir: Path) -> bool:
    """Return whether a run or a search wrote into an unmarked folder."""
    return (
        _is_record(records.read_or_empty(workdir / "run.json"))
        or {"sweep", "trials", "config"} <= records.read_or_empty(workdir / "search.json").keys()
    )


def _is_record(found: Mapping[str, Any]) -> bool:
    """Return whether the content of a run.json is that of a run."""
    versions = found.get("versions")
    return isinstance(versions, dict) and "spinejax" in versions


def check_owner(workdir: Path) -> None:
    """Refuse a folder in which somebody else's files have the names of a run's.

    Raises:
        InputError: it is such a folder.
    """
    check_claim(workdir, "run", _NAMES, known=_is_known(workdir))


class BusyError(InputError):
    """Another process trains in the folder."""


@contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Make `workdir` and hold its lock while the block runs; only the first process does both.

    The kernel drops the lock whenever the process ends, so a killed run leaves nothing to clean up.
    On a file system without locks the block runs unprotected. If the block fails, a folder made
    here without results is removed.

    Raises:
        BusyError: another process holds the lock.
        InputError: the folder cannot be written, or it holds somebody else's files under the names
            of a run's.
    """
    if parallel.process_index() != 0:
        yield
        return
    with made(workdir, _RESULTS, leftovers=(LOCK,)):
        check_output(workdir / LOCK)
        try:
            claim(workdir, "run", _NAMES, known=_is_known(workdir))
            file = (workdir / LOCK).open("ab")
        except OSError as error:
            raise not_writable(workdir, error) from error
        with file:
            if not take_lock(file):
                raise BusyError(
                    f"{workdir}: another `spinejax train` is at work in it; wait until it ends, "
                    "stop it, or give another --workdir"
                )
            yield


def not_writable(workdir: Path, error: OSError) -> InputError:
    """Return the error for a folder that cannot be written."""
    return InputError(f"{workdir}: cannot be written ({error.strerror}); give another --workdir")


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Write config.json unless it says the same; only the first process does.

    Raises:
        InputError: the folder cannot be written, the disk is full, or the file was edited and says
            something else.
    """
    file, fields = workdir / "config.json", schema.plain(config)
    if parallel.process_index() == 0 and records.read_or_empty(file) != json.loads(
        json.dumps(fields)
    ):
        if file.exists() and not is_ours(file, "run"):
            raise InputError(
                f"{file}: was edited and differs from the config of this command; give its values "
                "with --config.key=value, or restore it"
            )
        require_room(workdir)
        try:
            write_json(file, fields, "run")
        except OSError as error:
            raise not_writable(workdir, error) from error


MOST_DIFFERENCES = 4
"""The largest number of differing fields that an error names."""


def read_config(workdir: Path) -> ConfigDict:
    """Return the config of a run, sequences as tuples; a field that it lacks is filled in.

    Raises:
        InputError: the folder holds no run, or its config.json is damaged.
    """
    file = workdir / "config.json"
    if not (file.exists() or file.is_symlink()):
        raise InputError(
            f"{workdir} is not the folder of a run: it has no config.json; give --workdir of a "
            "finished or running `spinejax train`"
        )
    found = records.read(file, dict, RESTORE)
    try:
        return config_of(found)
    except (ValueError, TypeError, AttributeError) as error:  # ConfigDict's for odd names
        raise InputError(f"{file} is damaged ({error}); {RESTORE}") from error


def config_of(found: Mapping[str, Any]) -> ConfigDict:
    """Return the config that the fields of a record describe; a field that it lacks is filled in.

    Raises:
        ValueError, TypeError, AttributeError: for fields that no config can have.
    """
    return ConfigDict(_tuples(schema.complete(found)))


def checked_config(workdir: Path) -> ConfigDict:
    """Return the config of a run as `read_config`, and refuse one that nobody could train with.

    Raises:
        InputError: as `read_config`, or a field is wrong, such as after an edit.
    """
    config = read_config(workdir)
    try:
        tasks.check(config)
    except InputError as error:
        raise InputError(f"{workdir / 'config.json'} is damaged ({error}); {RESTORE}") from error
    return config


def finished_step(workdir: Path) -> int | None:
    """Return the step at which a run was finished; None if it is not.

    Raises:
        InputError: the file DONE is damaged.
    """
    file = workdir / "DONE"
    if not file.exists():
        return None
    words = file.read_bytes().split() if file.is_file() else []
    if words[1:] != [b"steps"] or not words[0].isdigit() or len(words[0]) > 12:
        raise InputError(
            f"{file} is damaged (it does not say `N steps`); remove it, and the same command looks "
            "at the checkpoints again"
        )
    return int(words[0])


def take(source: Path, target: Path, config: ConfigDict) -> None:
    """Copy a finished run into the folder of a run that has not begun.

    The checkpoints come last: before them, nothing of the run has begun, and the copy is made anew.

    Args:
        source: folder of the finished run.
        target: the other folder; made if missing.
        config: of the run in `target`, with the same network and training.
    """
    with alone(target):
        write_config(target, config)
        write_json(target / "run.json", read_run(source), "run")
        for name in ("patches.json", "metrics.jsonl", "tensorboard", "checkpoints"):
            if not (source / name).exists():
                continue
            with tempfile.TemporaryDirectory(dir=target, prefix=".take-") as folder:
                copied = Path(folder) / name
                if (source / name).is_dir():
                    shutil.copytree(source / name, copied)
                    shutil.rmtree(target / name, ignore_errors=True)
                else:
                    shutil.copy2(source / name, copied)
                copied.replace(target / name)


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    return value


def check_same(old: ConfigDict, new: ConfigDict, workdir: Path) -> None:
    """Refuse to resume in `workdir` with a config that would train another network.

    Raises:
        InputError: names the differing fields with their old and new values.
    """
    before, after = schema.flatten(schema.plain(old)), schema.flatten(schema.plain(new))
    missing = "(absent)"
    differing = [
        f"{key} (there {shown(before.get(key, missing))}, now {shown(after.get(key, missing))})"
        for key in sorted(before | after)
        if before.get(key, missing) != after.get(key, missing) and not schema.is_free(key)
    ]
    if differing:
        # Fields that name the run come before its details.
        first = ("name ", "task ", "model.name ")
        differing.sort(key=lambda text: not text.startswith(first))
        named = ", ".join(differing[:MOST_DIFFERENCES])
        more = len(differing) - MOST_DIFFERENCES
        raise InputError(
            f"{workdir} holds a run of another config: {named}{f' and {more} more' * (more > 0)}; "
            "give this one another --workdir, or the old values to resume"
        )


SPLITS = ("train", "val", "test")

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "spinejax")


def recorded_cases(workdir: Path) -> dict[str, list[str]]:
    """Return the ids of the cases of each split of a run; empty lists where none are recorded."""
    found = read_run(workdir).get("cases", {})
    return {name: list(found.get(name, [])) for name in SPLITS}


def recorded_pixels_mm(workdir: Path) -> tuple[float, float] | None:
    """Return the finest and the coarsest pixel spacing, in mm, of the scans that trained a run.

    Returns:
        None where run.json has no such record.
    """
    found = read_run(workdir).get("pixels_mm")
    if isinstance(found, list) and len(found) == 2:
        if all(isinstance(side, int | float) and side > 0 for side in found):
            return float(found[0]), float(found[1])
    return None


def recorded_training(workdir: Path) -> dict[str, Any]:
    """Return what a run recorded of its training.

    Returns:
        Those of these that run.json has: "commit" of the code, "steps", "parameters" (a number),
        "seconds", "hardware", "versions" of the packages, and "initial", the same of the network
        with whose parameters it began, with "config", the name of its config, "seed", and "random",
        a line for each array that did not fit.
    """
    found = read_run(workdir)
    wanted = ("commit", "steps", "parameters", "seconds", "hardware", "versions", "initial")
    return {name: found[name] for name in wanted if name in found}


def commit() -> str:
    """Return the commit of this source tree; "+" marks changes, "" no repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _say_changes(workdir: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Warn if a run continues with another device, library or switch than it began with."""
    changes = [
        f"{name} {now.get(name, 'unset')} (was {before.get(name, 'unset')})"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if changes and parallel.process_index() == 0:
        logger.warning(
            "%s began with other versions or switches: %s; the last digits of its numbers may "
            "differ from those of an unbroken run",
            workdir,
            ", ".join(changes),
        )


class RunRecord:
    """Writes run.json."""

    def __init__(
        self,
        workdir: Path,
        cases: Mapping[str, Sequence[Case]],
        *,
        resumes: bool,
        devices: int,
        steps: int,
        parameters: int,
        gflops: float,
        pixels_mm: tuple[float, float],
        initial: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the record of this start; a resumed run adds to the record of earlier starts.

        Args:
            workdir: folder of the run.
            cases: of each split.
            resumes: whether an earlier start saved a checkpoint.
            devices: number of devices.
            steps: updates of the whole run.
            parameters: number of parameters of the network.
            gflops: of its forward pass of one sample.
            pixels_mm: finest and coarsest pixel spacing of the training scans.
            initial: the "initial" of `recorded_training`; None for random weights.
        """
        self._path = workdir / "run.json"
        there = records.read_or_empty(self._path)
        # A record that was edited is still the run's. Notes in it are kept.
        self._overwrite = True if _is_record(there) else None
        notes = {
            name: value
            for name, value in there.items()
            if self._overwrite and records.fits(value, (str, float, bool, None))
        }
        earlier = read_run(workdir) if resumes else {}
        self._began = time.monotonic()
        self._seconds = float(earlier.get("seconds", 0.0))
        versions = {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        }
        computing = {"device": f"{jax.default_backend()} ({parallel.device_kinds()})", **versions}
        computing |= numerics.switches()
        begun_with = earlier.get("begun_with", computing)
        _say_changes(workdir, begun_with, computing)
        self._record: dict[str, Any] = {
            **notes,
            "started": earlier.get("started", _now()),
            "finished": None,
            "seconds": self._seconds,
            "hardware": parallel.hardware(),
            "backend": jax.default_backend(),
            "devices": devices,
            "processes": parallel.process_count(),
            "versions": versions,
            "begun_with": begun_with,
            "commit": commit(),
            "steps": steps,
            "parameters": parameters,
            "gflops": round(gflops, 6),
            "starts": int(earlier.get("starts", 0)) + 1,
            "pixels_mm": list(pixels_mm),
            "cases": {name: [case.id for case in cases[name]] for name in SPLITS},
        }
        if (begun_from := earlier.get("initial", initial)) is not None:
            self._record["initial"] = begun_from
        self._write()

    def update(self, *, finished: bool = False) -> None:
        """Write the duration so far, summed over all starts."""
        self._record["seconds"] = round(self._seconds + time.monotonic() - self._began, 3)
        if finished:
            self._record["finished"] = _now()
        self._write()

    def _write(self) -> None:
        if parallel.process_index() == 0:
            write_json(self._path, self._record, "run", overwrite=self._overwrite)
