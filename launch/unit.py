"""One unit: its child process, its log and its exit status."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from spinejax.errors import EXIT_INTERRUPTED, InputError
from spinejax.files import check_output, write_json
from spinejax.sweep_state import LOG, OUTCOME, take_lock

_PR_SET_PDEATHSIG = 1  # prctl(2): the signal that a child gets when its parent dies


class Child:
    """A running unit; `start` makes one."""

    def __init__(self, outcome: Path | None, process: subprocess.Popen, began: float) -> None:
        self._outcome, self._process, self._began = outcome, process, began
        self._pruned = ""

    def ended(self) -> int | None:
        """Return the exit status, negative for a signal, and record it; None while it runs."""
        status = self._process.poll()
        if status is not None and self._outcome is not None:
            seconds = round(time.time() - self._began, 1)
            why = {"pruned": self._pruned} if self._pruned else {}
            try:
                write_json(self._outcome, {"status": status, "seconds": seconds, **why})
            except OSError as error:  # a full disk must not end the other units
                print(f"{self._outcome}: {error.strerror}", file=sys.stderr)
        return status

    def stop(self) -> None:
        """Ask the unit to save and end."""
        self._signal(signal.SIGTERM)

    def prune(self, why: str) -> None:
        """Ask the unit once to save and end, and record why; it is not continued."""
        if not self._pruned:
            self._pruned = why
            self.stop()

    def kill(self) -> None:
        """End the unit at once; its checkpoints stay."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, number)  # it leads a group of its own
            except ProcessLookupError:
                pass


def note_pruned(folder: Path, why: str) -> None:
    """Record that a unit which does not run is pruned, as `Child.ended` does for one that did."""
    write_json(folder / OUTCOME, {"status": EXIT_INTERRUPTED, "seconds": 0.0, "pruned": why})


def start(
    folder: Path,
    words: Sequence[str],
    environment: dict[str, str] | None = None,
    *,
    rank: int = 0,
) -> Child:
    """Start `spinejax` with some arguments; its output is appended to unit.log in `folder`.

    The child holds the lock of the log. It leads a process group of its own, so that the terminal's
    Ctrl-C does not reach it. When this process dies for any reason, the child is asked to stop.

    Args:
        folder: of the unit; made if missing.
        words: arguments of `spinejax`.
        environment: added to that of this process.
        rank: number of the process in a unit of several; each process has a log of its own, and
            the outcome of the first process is the unit's.

    Raises:
        InputError: the unit is running already, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (f"unit-{rank}.log" if rank else LOG)
        check_output(path)
        log = path.open("ab")
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); give a --workdir that can"
        ) from error
    with log:
        if not take_lock(log):
            raise InputError(
                f"{folder}: the unit is running already; wait until it ends, or stop what started "
                "it"
            )
        outcome = None if rank else folder / OUTCOME
        try:
            if outcome is not None:
                outcome.unlink(missing_ok=True)
            process = subprocess.Popen(
                [sys.executable, *(f"-W{w}" for w in sys.warnoptions), "-m", "spinejax", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                process_group=0,
                preexec_fn=_prepare(os.getpid()),
            )
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be started ({error.strerror}); try again"
            ) from error
    return Child(outcome, process, time.time())


def _prepare(parent: int) -> Callable[[], None]:
    """Return a function for the child to call first: SIGTERM will reach it when `parent` dies.

    Only Linux has a call for this.
    """
    prctl = ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None

    def prepare() -> None:
        # Slurm's warning SIGUSR2 is for the parent, and may reach the child, too.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        if prctl is None:
            return
        # Until it runs a program of its own, the child has the launcher's handler of SIGTERM. That
        # only sets a flag, which the new program would not see.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent died before the call
            os.kill(os.getpid(), signal.SIGTERM)

    return prepare
