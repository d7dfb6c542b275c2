"""Samples that one process reads from the cache, without a network that waits for them.

    python -m tests.benchmarks.feeding

Prints the table of `docs/scaling.md`: samples in a second, and in a second of one core, by threads
of the process and by Grain's worker processes. The scans are in memory (the page cache). Nothing
augments the samples, since the training step does that on the device.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from spinejax.data import cache
from spinejax.data.cube_feed import CubeFeed
from spinejax.data.feeds import ScanFeed
from spinejax.data.patch_feed import PatchFeed
from spinejax.data.preprocess import SlicePreprocess
from spinejax.data.slice_feed import SliceFeed
from tests.benchmarks.bench_input import write_scan

SECONDS = 5.0
"""How long each way of reading is measured."""


def feeds(root: Path, toy: bool) -> dict[str, tuple[int, Callable[..., ScanFeed]]]:
    """Return a batch's size and a feed, given how it reads, for each kind of samples."""
    shape = (40, 48, 12) if toy else (300, 420, 60)
    slices, patch, cube = (32, 16, (16, 16, 8)) if toy else (256, 32, (96, 96, 96))
    cases = [write_scan(root, "scan" + "x" * i, shape) for i in range(1 if toy else 4)]
    axial = cache.prepare(cases, SlicePreprocess(plane="axial"), root / "cache")
    isotropic = SlicePreprocess(mode="isotropic", spacing_mm=1.0)
    whole = cache.prepare(cases, isotropic, root / "cache")
    patches: dict[str, Any] = dict(
        size=patch,
        stride=patch // 4,
        label_rule="centre",
        split_unit="scan",
        rus="epoch",
        rus_ratio=1.0,
        val_fraction=0.0,
    )

    def reads(kind: type, cached: Any, batch: int, **fields: Any) -> tuple[int, Any]:
        split = {"train": cached, "val": []}
        return batch, lambda **how: kind(split, batch_size=batch, seed=0, **fields, **how)

    of_cubes = " x ".join(map(str, cube))
    return {
        f"slices of {slices} x {slices}": reads(SliceFeed, axial, 16, size=(slices, slices)),
        f"patches of {patch} x {patch}": reads(PatchFeed, axial, 256, **patches),
        f"cubes of {of_cubes}": reads(CubeFeed, whole, 2, size=cube),
    }


def rates(feed: ScanFeed, batch: int, seconds: float) -> tuple[float, float]:
    """Return samples a second, and samples a second of one core, workers included."""
    own = psutil.Process()

    def cpu() -> float:
        total = 0.0
        for process in (own, *own.children(recursive=True)):
            times = process.cpu_times()
            total += times.user + times.system
        return total

    with closing(feed.train()) as batches:
        for _ in range(4):
            next(batches)
        begin, before, count = time.perf_counter(), cpu(), 0
        while (wall := time.perf_counter() - begin) < seconds:
            next(batches)
            count += batch
        return count / wall, count / (cpu() - before)


def main(toy: bool = False) -> int:
    """Print the table."""
    ways = {"4 threads": {"threads": 4}, "2 workers": {"threads": 2, "workers": 2}}
    print("| samples | read by | a second | a second of one core |")
    print("| --- | --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for name, (batch, feed) in feeds(Path(folder), toy).items():
            for way, how in ways.items():
                wall, core = rates(feed(**how), batch, 0.2 if toy else SECONDS)
                print(f"| {name} | {way} | {wall:,.0f} | {core:,.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
