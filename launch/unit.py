"""Running one unit: a child process, its log, and what came of it."""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from spinejax.errors import InputError
from spinejax.files import write_json
from spinejax.sweep import LOG, OUTCOME

_PR_SET_PDEATHSIG = 1  # prctl(2): the signal that a child gets when its parent dies
_RETRY_S = 2.0  # for as long as somebody may look whether the unit is at work


class Child:
    """A running unit; `start` makes one."""

    def __init__(self, outcome: Path | None, process: subprocess.Popen, began: float) -> None:
        self._outcome, self._process, self._began = outcome, process, began

    def ended(self) -> int | None:
        """Return the exit status, negative for a signal, and record it; None while it runs."""
        status = self._process.poll()
        if status is not None and self._outcome is not None:
            seconds = round(time.time() - self._began, 1)
            write_json(self._outcome, {"status": status, "seconds": seconds})
        return status

    def stop(self) -> None:
        """Ask it to save and end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once; what was saved stays."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, number)  # it leads a group of its own
            except ProcessLookupError:
                pass


def start(
    folder: Path,
    words: Sequence[str],
    environment: dict[str, str] | None = None,
    *,
    rank: int = 0,
) -> Child:
    """Start `spinejax` with some words; what it prints is added to unit.log in `folder`.

    The child holds the lock of the log. It leads a group of processes, so that the terminal's
    Ctrl-C does not reach it, and is asked to stop when this process dies, however that comes.

    Args:
        folder: of the unit; made if missing.
        words: arguments of `spinejax`.
        environment: added to that of this process.
        rank: which of the processes of a unit that has several; each has a log of its own, and the
            first one's outcome is the unit's.

    Raises:
        InputError: the unit is at work already, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = (folder / (f"unit-{rank}.log" if rank else LOG)).open("ab")
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); give a --workdir that can"
        ) from error
    with log:
        _lock(log.fileno(), folder)
        outcome = None if rank else folder / OUTCOME
        if outcome is not None:
            outcome.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "spinejax.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            process_group=0,
            preexec_fn=_stops_with(os.getpid()),
        )
    return Child(outcome, process, time.time())


def _lock(file: int, folder: Path) -> None:
    until = time.monotonic() + _RETRY_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise InputError(
                    f"{folder}: the unit is at work already; wait until it ends, or stop what "
                    "started it"
                ) from None
            time.sleep(0.1)
        except OSError:  # a file system without locks
            return


def _stops_with(parent: int) -> Callable[[], None] | None:
    """Return what makes a child get SIGTERM when `parent` dies; None where there is no such way."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before this line
            os.kill(os.getpid(), signal.SIGTERM)

    return ask
