"""A sweep in its folder: started, continued, or shown.

Each unit is a run of its own, `spinejax train ... --evaluate`, in the folder WORKDIR/NAME of the
unit; a user can also start, resume and look at any of them by hand.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from spinejax import progress, sweep_state
from spinejax.errors import InputError
from spinejax.files import check_output, claim, made
from spinejax.launch import plan, status
from spinejax.sweep_state import JOB, LOG, OUTCOME, Sweep, SweepUnit

_LOCK = ".launcher"  # the launcher of a sweep holds it
_WATCH_S = 5.0


def launch(
    sweep: Sweep,
    units: Sequence[SweepUnit],
    workdir: Path,
    start: Callable[[Sequence[SweepUnit], Path], int],
) -> int:
    """Write sweep.json and start units; return the exit status.

    Args:
        sweep: the sweep, with all of its units.
        units: the units to start.
        workdir: folder of the sweep; made if missing, and removed if nothing could be started.
        start: runs or submits units.

    Raises:
        InputError: a unit's scans or first weights are nowhere; the folder belongs to a run or to
            another sweep, or another launcher is at work in it; `start` refuses.
    """
    plan.check_places(units, workdir)
    with made(workdir, (f"*/{LOG}", f"*/{JOB}"), leftovers=(_LOCK,)):
        known = (workdir / sweep_state.FILE).exists()
        if known:
            sweep_state.read(workdir)
        elif (workdir / "config.json").exists():
            raise InputError(
                f"{workdir} is the folder of a single run; give the sweep another --workdir"
            )
        files = [f"{unit.name}/{name}" for unit in units for name in (LOG, OUTCOME, JOB)]
        claim(workdir, "sweep", [sweep_state.FILE, *files], known=known)
        with _alone(workdir):
            if known:
                old = sweep_state.read(workdir)
                begun = [
                    unit.name
                    for unit in old.units
                    if sweep_state.state(workdir / unit.name).kind != "waiting"
                ]
                plan.check_same(old, sweep, begun, workdir)
            sweep_state.write(workdir, sweep)
            return start(units, workdir)


def show(workdir: Path, *, watch: bool) -> None:
    """Print the table of a sweep; with `watch` again and again until no unit runs or is queued."""
    while True:
        found = status.states(sweep_state.read(workdir).units, workdir)
        print(status.table(found), flush=True)
        continues = sweep_state.is_locked(workdir / _LOCK) or any(
            state.kind == "running" or "job " in state.note
            for state in found.values()
            if state.kind not in ("done", "failed", "pruned")
        )
        if not watch or not continues:
            return
        time.sleep(_WATCH_S if sys.stdout.isatty() else progress.EVERY_S)
        print()


@contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    """Hold the lock of a sweep's folder while the block runs."""
    check_output(workdir / _LOCK)
    with (workdir / _LOCK).open("ab") as file:
        if not sweep_state.take_lock(file):
            raise InputError(
                f"{workdir}: another `spinejax sweep` is at work in it; wait until it ends, or "
                "stop it with Ctrl-C"
            )
        yield


if __name__ == "__main__":  # `python -m launch.sweep` in a clone is `spinejax sweep`
    os.execv(sys.executable, [sys.executable, "-m", "spinejax", "sweep", *sys.argv[1:]])
