"""The state of a sweep, one line for each unit."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from spinejax import sweep_state
from spinejax.sweep_state import State, SweepUnit
from spinejax.text_table import text_table

_ORDER = ("done", "running", "stopped", "pruned", "failed", "waiting")


def states(units: Sequence[SweepUnit], workdir: Path) -> dict[str, State]:
    """Return the state of each unit by its name."""
    return {unit.name: sweep_state.state(workdir / unit.name) for unit in units}


def table(found: dict[str, State]) -> str:
    """Return the units as a table, and below it the `summary`."""
    rows = [("unit", "", "step", "Dice", "left", "")]
    for name, state in found.items():
        step = "" if state.step is None else str(state.step)
        if state.step is not None and state.steps:
            step += f"/{state.steps}"
        score = "" if state.score is None else f"{state.score:.4f}"
        rows.append((name, state.kind, step, score, duration(state.seconds_left), state.note))
    return f"{text_table(rows, 'llrrrl')}\n{summary(found)}"


def summary(found: dict[str, State]) -> str:
    """Return e.g. "4 of 6 units done, 1 running, 1 failed"."""
    counts = Counter(state.kind for state in found.values())
    rest = [f"{counts[kind]} {kind}" for kind in _ORDER[1:] if counts[kind]]
    return ", ".join([f"{counts['done']} of {len(found)} units done", *rest])


def change(name: str, before: State | None, now: State) -> str | None:
    """Return what to print about a unit whose state has changed; None if it has not."""
    if before is not None and before.kind == now.kind:
        return None
    words = [f"{name}: {now.kind}"]
    if now.step is not None and now.kind != "running":
        words.append(f"step {now.step}")
    if now.kind == "done" and now.score is not None:
        words.append(f"Dice {now.score:.4f}")
    if now.kind in ("failed", "pruned"):
        words.append(now.note)
    return ", ".join(words)


def duration(seconds: float | None) -> str:
    """Return hours, minutes and seconds, such as "1:02:03"; "" for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
