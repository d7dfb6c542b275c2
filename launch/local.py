"""Units on this machine: one or several on each GPU, or a few at once on the CPU."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spinejax import sweep_state
from spinejax.errors import EXIT_INTERRUPTED, InputError
from spinejax.launch import halving, plan, status, unit
from spinejax.sweep_state import LearningCurve, State, SweepUnit

_ALONE = {"SLURM_NTASKS": "1"}  # inside a Slurm allocation, too, a unit is a single process
_MEMORY = "XLA_CLIENT_MEM_FRACTION"  # share of a GPU's memory that a process of jax reserves
# If the user sets one of these, all are left to the user. jaxlib refuses both names of the share.
_MEMORY_NAMES = (
    _MEMORY,
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
)
_RESERVED = 0.75  # jax's own default; the rest holds what CUDA itself needs for each process
_POLL_S = 0.5
_REDRAW_S = 5.0
_PRUNE_S = 2.0  # between two comparisons of the units


def gpus() -> list[str]:
    """Return the ids of the GPUs that may be used, in the words of CUDA_VISIBLE_DEVICES."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name and name != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return []
    return listed.stdout.split() if listed.returncode == 0 else []


def slots(at_once: int, per_unit: int, units_per_gpu: int = 1) -> list[dict[str, str]]:
    """Return the environment of each place that a unit can run in.

    Places that share a GPU divide the share of its memory that jax reserves for one process. A unit
    that needs more than its part fails, and takes nothing from its neighbours.

    Args:
        at_once: most units at a time; 0 for as many as there are GPUs for, or 1 on the CPU.
        per_unit: GPUs of a unit; -1 for one if there is any.
        units_per_gpu: units that share a GPU. The first places are on different GPUs.

    Raises:
        InputError: the machine has too few GPUs, or units of several GPUs would share one.
    """
    found = gpus()
    if units_per_gpu > 1 and not (found and per_unit in (-1, 1)):
        raise InputError(
            f"--units_per_gpu={units_per_gpu}: "
            + (
                f"units that share a GPU have one each, not --gpus={per_unit}; leave one flag out"
                if per_unit not in (-1, 1)
                else "this machine has no GPU that can be used; --at_once=N runs N units on the CPU"
            )
        )
    if per_unit < 0:
        per_unit = min(1, len(found))
    if per_unit == 0:
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if found else {}
        return [{**_ALONE, **hidden}] * max(1, at_once)
    if len(found) < per_unit:
        raise InputError(
            f"--gpus={per_unit}: this machine has {len(found)} that can be used; leave --gpus out "
            "to run on the CPU, or use --executor=slurm"
        )
    share = {}
    if units_per_gpu > 1 and not any(map(os.environ.get, _MEMORY_NAMES)):
        share = {_MEMORY: f"{_RESERVED / units_per_gpu:.4f}"}
    places = [found[at : at + per_unit] for at in range(0, len(found) - per_unit + 1, per_unit)]
    places = (places * units_per_gpu)[: at_once or None]
    return [{**_ALONE, "CUDA_VISIBLE_DEVICES": ",".join(ids), **share} for ids in places]


def run(
    units: Sequence[SweepUnit],
    workdir: Path,
    places: Sequence[dict[str, str]],
    prune: int = 0,
) -> int:
    """Run units, each in the first free place; return the exit status.

    Ctrl-C and SIGTERM ask the running units to save and end; a second Ctrl-C ends them at once. The
    same command then continues. If a unit fails, the others still run.

    Args:
        units: to run.
        workdir: folder of the sweep.
        places: environment of each place, see `slots`.
        prune: eta of `halving.worst`, by which bad units are stopped and not started again; 0 runs
            all units to their end.
    """
    over = ("done", "pruned") if prune else ("done",)
    curves = _curves(units, workdir) if prune else {}
    why = halving.worst(curves, prune) if prune else {}
    looked = time.monotonic()
    waiting = list(units)
    running: dict[int, tuple[SweepUnit, unit.Child]] = {}
    screen = _Screen(units, workdir)
    with _asked_to_stop() as asked:
        told = 0
        while running or (waiting and not asked):
            while waiting and not asked and len(running) < len(places):
                one = next((u for u in waiting if not _is_taken(u, workdir)), None)
                if one is None:
                    break
                waiting.remove(one)
                if sweep_state.state(workdir / one.name).kind in over:
                    continue
                if one.name in why:  # a launcher that was killed had not noted it
                    unit.note_pruned(workdir / one.name, why[one.name])
                    continue
                place = next(at for at in range(len(places)) if at not in running)
                words = plan.command(one, workdir)
                try:
                    running[place] = one, unit.start(workdir / one.name, words, places[place])
                except InputError as error:
                    print(f"{one.name}: {error}", file=sys.stderr)
            if len(asked) > told:
                told = len(asked)
                screen.say(
                    "stopping: units save and end; again to end them at once"
                    if told == 1
                    else "ending all units"
                )
                for _, child in running.values():
                    child.stop() if told == 1 else child.kill()
            if prune and not asked and time.monotonic() - looked > _PRUNE_S:
                looked = time.monotonic()
                curves |= _curves([one for one, _ in running.values()], workdir)
                why = halving.worst(curves, prune)
                for one, child in running.values():
                    if one.name in why:
                        child.prune(why[one.name])
            time.sleep(_POLL_S)
            for place, (one, child) in list(running.items()):
                if child.ended() is not None:
                    del running[place]
                    curves |= _curves([one], workdir) if prune else {}
            screen.refresh()
    found = screen.finish()
    if asked:
        return EXIT_INTERRUPTED
    return 0 if all(state.kind in over for state in found.values()) else 1


def _curves(units: Sequence[SweepUnit], workdir: Path) -> dict[str, LearningCurve]:
    """Return the validations of units by name; a damaged unit counts as one that has none."""
    found = {}
    for one in units:
        try:
            found[one.name] = sweep_state.learning_curve(workdir / one.name)
        except InputError:
            found[one.name] = LearningCurve(0, [])
    return found


def _is_taken(one: SweepUnit, workdir: Path) -> bool:
    """Whether another process uses the unit's folder, such as one that outlived a kill."""
    return sweep_state.state(workdir / one.name).kind == "running"


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list while the block runs."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Screen:
    """Shows the units: a table that redraws itself on a terminal, elsewhere a line a change."""

    def __init__(self, units: Sequence[SweepUnit], workdir: Path) -> None:
        self._units, self._workdir = units, workdir
        self._live = sys.stdout.isatty()
        self._before: dict[str, State] = {}
        self._lines = 0
        self._last = 0.0

    def say(self, text: str) -> None:
        """Print a line; the next refresh prints the table below it."""
        print(text, flush=True)
        self._lines = 0

    def refresh(self) -> None:
        """Show how far the units are, every few seconds."""
        if time.monotonic() - self._last < (_REDRAW_S if self._live else 2 * _POLL_S):
            return
        self._last = time.monotonic()
        found = status.states(self._units, self._workdir)
        if self._live:
            self._draw(status.table(found))
        else:
            for name, state in found.items():
                words = status.change(name, self._before.get(name), state)
                if words is not None and state.kind != "waiting":
                    print(words, flush=True)
        self._before = found

    def finish(self) -> dict[str, State]:
        """Print the table a last time, and return the states."""
        found = status.states(self._units, self._workdir)
        text = status.table(found)
        if self._live:
            self._draw(text)
        else:
            print(text, flush=True)
        return found

    def _draw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns
        lines = [line[:width] for line in text.splitlines()]
        up = f"\x1b[{self._lines}A\x1b[J" if self._lines else ""
        print(up + "\n".join(lines), flush=True)
        self._lines = len(lines)
