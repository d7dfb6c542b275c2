"""What the benchmarks share: calls that take turns, and the rows of their table."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Times:
    """Seconds that a call took in each round, (rounds,): wall time, and that of all processors."""

    wall: np.ndarray
    processor: np.ndarray

    def per(self, count: float) -> "Times":
        """Return the times of one of `count` things that the call does."""
        return Times(self.wall / count, self.processor / count)

    def __add__(self, other: "Times") -> "Times":
        """Return the times of both calls of each round together."""
        return Times(self.wall + other.wall, self.processor + other.processor)


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1
) -> dict[str, Times]:
    """Time calls that take turns, so that other load meets all alike.

    Args:
        calls: each returns when its work is done.
        rounds: how often each is timed.
        warm_up: earlier rounds that do not count, because they compile.
    """
    seconds: dict[str, list] = {name: [] for name in calls}
    for index in range(warm_up + rounds):
        for name, call in calls.items():
            start = np.array([time.perf_counter(), time.process_time()])
            call()
            if index >= warm_up:
                seconds[name].append([time.perf_counter(), time.process_time()] - start)
    return {name: Times(*np.array(values).T) for name, values in seconds.items()}


class Row(NamedTuple):
    """A row of the table: one thing measured beside its peer.

    Attributes:
        work: what is done.
        ours: the measure; seconds of wall time, or a number of `unit`.
        peer: what else does the same, or what is given for it.
        theirs: its measure.
        ratio: ours / theirs, the median over the rounds; below 1 is better.
        low, high: the least and the greatest of the rounds.
        processor: processor time in seconds of ours and the peer, and the median ratio; None where
            the peer is a number.
        limit: what the ratio may be.
        unit: "" for seconds.
    """

    work: str
    ours: float
    peer: str
    theirs: float
    ratio: float
    low: float
    high: float
    processor: tuple[float, float | None, float | None] | None = None
    limit: float | None = None
    unit: str = ""

    @property
    def exceeded(self) -> bool:
        """Whether the ratio is above its limit, as both are printed."""
        return self.limit is not None and bool(round(self.ratio, 2) > self.limit)


def versus(work: str, ours: Times, peer: str, theirs: Times, limit: float | None = None) -> Row:
    """Return the row of two calls that took turns."""
    wall, processor = ours.wall / theirs.wall, ours.processor / theirs.processor
    ours_s, theirs_s, ratio = (
        float(np.median(values)) for values in (ours.processor, theirs.processor, processor)
    )
    return Row(
        work,
        float(np.median(ours.wall)),
        peer,
        float(np.median(theirs.wall)),
        float(np.median(wall)),
        float(wall.min()),
        float(wall.max()),
        (ours_s, theirs_s, ratio),
        limit,
    )


def within(work: str, ours: Times, given_s: float) -> Row:
    """Return the row of a call that should take at most `given_s` seconds of wall time."""
    used_s = float(np.median(ours.processor))
    ratio, low, high = (float(of(ours.wall)) / given_s for of in (np.median, np.min, np.max))
    return Row(
        work, ratio * given_s, "given for it", given_s, ratio, low, high, (used_s, None, None), 1.0
    )


def against(
    work: str, ours: float, unit: str, theirs: float, peer: str = "given for it", limit: float = 1.0
) -> Row:
    """Return the row of a number of `unit` beside another one."""
    ratio = ours / theirs
    return Row(work, ours, peer, theirs, ratio, ratio, ratio, None, limit, unit)


def measured(name: str, toy: bool) -> dict[str, Any]:
    """Run the benchmark `bench_<name>`; return its rows, and what it ran with."""
    import jax

    from spinejax.training import parallel, run_folder

    parallel.use_cores()  # as the commands do
    rows = import_module(f"tests.benchmarks.bench_{name}").rows(toy)
    return {
        "commit": run_folder.commit(),
        "jax": jax.__version__,
        "device": jax.local_devices()[0].device_kind,
        "rows": [row._asdict() for row in rows],
    }
