"""Slices per second of the input pipeline alone, beside a plain loop over the same files.

    python tests/benchmarks/bench_pipeline.py

The loop reads slices of the same memory maps in random order, cuts the same windows
and stacks them, without Grain: the ratio is the price of resumable order, threads and bookkeeping
(below 1) or their gain (above 1). Files are in the page cache for both.
"""

import argparse
import itertools
import tempfile
import time
from contextlib import closing
from pathlib import Path

import nibabel
import numpy as np

from spinejax.data import cache
from spinejax.data.preprocess import SlicePreprocess
from spinejax.data.slice_feed import RandomWindow, SliceFeed
from spinejax.datasets.verse import Case

SIZE = (256, 256)
BATCH = 8


def write_scan(folder, name):
    """A scan of 60 sagittal slices of 300 x 420 mm, a third of which have labels."""
    rng = np.random.default_rng(len(name))
    shape = (60, 300, 420)
    labels = np.zeros(shape, np.uint8)
    labels[20:40, 120:180, 40:380] = 20
    image = rng.normal(0, 80, shape).astype(np.int16) + labels * np.int16(15)
    paths = folder / f"{name}_ct.nii", folder / f"{name}_msk.nii"
    for path, array in zip(paths, (image, labels), strict=True):
        nibabel.save(nibabel.Nifti1Image(array, np.diag([-2.0, -1.0, 1.0, 1.0])), path)
    return Case(id=name, subject=name, image=paths[0], labels=paths[1])


def plain_batches(cached, seed):
    rng = np.random.default_rng(seed)
    table = [(i, n) for i, case in enumerate(cached) for n in range(case.shape[0])]
    cut = RandomWindow(cached, SIZE)
    while True:
        picks = rng.permutation(len(table))
        for start in range(0, len(picks) - BATCH + 1, BATCH):
            items = [cut.random_map(table[i], rng) for i in picks[start : start + BATCH]]
            yield {name: np.stack([item[name] for item in items]) for name in items[0]}


def slices_per_second(batches, seconds):
    for _ in itertools.islice(batches, 8):
        pass
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += len(next(batches)["image"])
    return count / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is printed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cases = [write_scan(root, "scan" + "x" * i) for i in range(4)]
        start = time.perf_counter()
        cached = cache.prepare(cases, SlicePreprocess(), root / "cache")
        rate = sum(case.shape[0] for case in cached) / (time.perf_counter() - start)
        print(f"prepare: {rate:,.0f} slices/s of {cached[0].shape[1:]} (read, smoothed, cached)")
        results = {"plain loop": [], "0 threads": [], "2 threads": []}
        for _ in range(options.rounds):  # interleaved, so that other load meets all alike
            with closing(plain_batches(cached, 0)) as batches:
                results["plain loop"].append(slices_per_second(batches, options.seconds))
            for threads in (0, 2):
                options = dict(batch_size=BATCH, seed=0, threads=threads)
                feed = SliceFeed({"train": cached, "val": []}, size=SIZE, **options)
                with closing(feed.train()) as batches:
                    rate = slices_per_second(batches, options.seconds)
                    results[f"{threads} threads"].append(rate)
        plain = np.median(results["plain loop"])
        for name, rates in results.items():
            median = np.median(rates)
            print(
                f"input pipeline, {name}: {median:,.0f} slices/s of {SIZE} "
                f"({median / plain:.2f} x plain loop; {min(rates):,.0f}-{max(rates):,.0f})"
            )


if __name__ == "__main__":
    main()
