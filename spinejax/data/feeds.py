"""Random access to cached slices, and the cutting of slices to the network's size.

Batches of slices, by Grain.

Training batches are a pure function of (seed, index of the batch): resuming at step `k` means
starting at batch `k`, whatever the number of reading threads or processes was. Process `p` of `n`
reads every n-th sample of one global stream, from the p-th; put side by side the processes' batches
are that of a single process, in another order within the batch, and `"position"` says which.
"""

import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grain
import numpy as np

from spinejax.data.cache import CachedCase
from spinejax.errors import InputError

SPINE_CENTRED_SHARE = 2 / 3
"""Share of crops of a slice with vertebrae that are made to contain a labelled pixel."""


def slice_table(cached: Sequence[CachedCase]) -> tuple[np.ndarray, np.ndarray]:
    """Return all slices in order of case, and whether each has foreground.

    Returns:
        (m, 2) int32 of (index into `cached`, slice), and (m,) bool.

    Raises:
        InputError: no slices.
    """
    if not cached or not sum(case.shape[0] for case in cached):
        raise InputError(
            "no slices to read: the split holds no case; check data.root and the split"
        )
    rows = [
        np.stack([np.full(case.shape[0], i), np.arange(case.shape[0])], axis=1)
        for i, case in enumerate(cached)
    ]
    counts = np.concatenate([case.foreground_counts for case in cached])
    return np.concatenate(rows).astype(np.int32), counts > 0


@dataclass(frozen=True, repr=False)
class SliceSource:
    """Whole slices of cached scans, one per row of `table`.

    Attributes:
        cached: the scans.
        table: (m, 2) int of (index into `cached`, slice).
    """

    cached: Sequence[CachedCase]
    table: np.ndarray

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one element of `pipeline.Batch`, without the batch axis."""
        case, position = (int(value) for value in self.table[index])
        scan = self.cached[case]
        return {
            "image": scan.image[position],
            "label": scan.label[position],
            "stats": scan.stats,
            "case": np.int32(case),
            "slice": np.int32(position),
            "weight": np.float32(1),
        }

    def __repr__(self) -> str:
        return f"SliceSource(cases={len(self.cached)}, slices={len(self)})"


class EndlessShuffle:
    """`source` over and over, in a new random order on each pass.

    The order of a pass is a pure function of the seed and the number of the pass. Grain's own
    `shuffle` is that too, but takes time in inverse proportion to the number of elements (0.3 ms
    per element of 100); here the orders of the passes being read are kept.
    """

    def __init__(self, source: Any, seed: Sequence[int]) -> None:
        """Set up over `source` (`len()` and `[]`); `seed` is any sequence of numbers from 0 on."""
        self._source = source
        self._seed = tuple(seed)
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Any:
        """Return the element of `source` at place `index` of the endless order."""
        number, place = divmod(index, len(self._source))
        return self._source[int(self._order(number)[place])]

    def __repr__(self) -> str:
        return f"EndlessShuffle({self._source!r}, seed={self._seed})"

    def _order(self, number: int) -> np.ndarray:
        order = self._orders.get(number)
        if order is None:
            # Threads that arrive together make the same order twice, and that is all.
            rng = np.random.default_rng((*self._seed, number))
            order = rng.permutation(len(self._source))
            orders = self._orders | {number: order}
            # Reading ahead spans two passes, or more where a pass is shorter than a batch.
            kept = sorted(orders)[-max(3, 4096 // len(order)) :]
            self._orders = {number: orders[number] for number in kept}
        return order


@dataclass(frozen=True, repr=False)
class WindowSource:
    """Windows of one size that cover every slice: each pixel lies in exactly one window.

    A slice is centred in the smallest grid of windows that holds it; what sticks out is filled with
    `fill_hu` of the preprocessing and label 0. Beyond the last window follow, up to `length`, empty
    ones of weight 0, so that the last batch is as large as the others.

    Attributes:
        cached: the scans.
        size: (h, w) of a window.
        table: (m, 4) int32 of (index into `cached`, slice, first row, first column); the latter two
            are negative where a window begins outside the slice.
        length: total, at least m.
    """

    cached: Sequence[CachedCase]
    size: tuple[int, int]
    table: np.ndarray
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one element of `pipeline.Batch`, without the batch axis."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        filler = index >= len(self.table)
        case, position, row, column = (int(v) for v in self.table[0 if filler else index])
        scan = self.cached[case]
        fill_hu = scan.settings.fill_hu
        if filler:
            image, label = np.full(self.size, fill_hu, np.int16), np.zeros(self.size, np.uint8)
        else:
            image = window(scan.image[position], (row, column), self.size, fill_hu)
            label = window(scan.label[position], (row, column), self.size, 0)
        return {
            "image": image,
            "label": label,
            "stats": scan.stats,
            "case": np.int32(case),
            "slice": np.int32(position),
            "weight": np.float32(not filler),
        }

    def __repr__(self) -> str:
        return (
            f"WindowSource(cases={len(self.cached)}, size={self.size}, windows={len(self.table)})"
        )


def window_table(cached: Sequence[CachedCase], size: tuple[int, int]) -> np.ndarray:
    """Return the table of `WindowSource`: every slice of every case, window by window."""
    slices, _ = slice_table(cached)
    starts = [
        [
            (row, column)
            for row in tile_starts(case.shape[1], size[0])
            for column in tile_starts(case.shape[2], size[1])
        ]
        for case in cached
    ]
    rows = [(i, position, *start) for i, position in slices for start in starts[i]]
    return np.array(rows, np.int32)


def tile_starts(length: int, window_length: int) -> list[int]:
    """First indices of the windows side by side that cover `length`, centred; may be negative."""
    windows = -(-length // window_length)
    first = -((windows * window_length - length) // 2)
    return [first + k * window_length for k in range(windows)]


def window(array: np.ndarray, start: Sequence[int], size: Sequence[int], fill: int) -> np.ndarray:
    """Return a copy of `array[start : start + size]`, one number an axis; `fill` outside."""
    result = np.full(size, fill, array.dtype)
    source, target = [], []
    for first, length, available in zip(start, size, array.shape, strict=True):
        begin, end = max(first, 0), min(first + length, available)
        end = max(begin, end)
        source.append(slice(begin, end))
        target.append(slice(begin - first, end - first))
    result[tuple(target)] = array[tuple(source)]
    return result


@dataclass(frozen=True)
class RandomWindow(grain.transforms.RandomMap):
    """Cuts a slice to `size`, or pads it, at a random place.

    `SPINE_CENTRED_SHARE` of the crops of a slice with foreground contain a labelled pixel drawn
    uniformly, at a random place within the crop; the others lie anywhere. Slices smaller than the
    window are placed anywhere within it.

    Attributes:
        cached: the scans, for their fill value.
        size: (h, w).
    """

    cached: Sequence[CachedCase]
    size: tuple[int, int]

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return `element` with image and label of `size`."""
        label = element["label"]
        anchor = None
        # Drawn in any case, so that the number of draws does not hang on the label.
        wanted, pick, *places = rng.random(4)
        if wanted < SPINE_CENTRED_SHARE and self._cuts(label.shape):
            foreground = np.flatnonzero(label)
            if foreground.size:
                chosen = foreground[int(pick * foreground.size)]
                anchor = divmod(int(chosen), label.shape[1])
        start = tuple(
            random_start(
                label.shape[axis],
                self.size[axis],
                None if anchor is None else anchor[axis],
                places[axis],
            )
            for axis in (0, 1)
        )
        fill_hu = self.cached[int(element["case"])].settings.fill_hu
        return element | {
            "image": window(element["image"], (start[0], start[1]), self.size, fill_hu),
            "label": window(label, (start[0], start[1]), self.size, 0),
        }

    def _cuts(self, shape: tuple[int, ...]) -> bool:
        return shape[0] > self.size[0] or shape[1] > self.size[1]


def random_start(length: int, window_length: int, anchor: int | None, place: float) -> int:
    """First index of a window; `place` in [0, 1) chooses among the legal ones."""
    # Legal starts keep the window inside the slice, or the slice inside the window.
    low, high = min(0, length - window_length), max(0, length - window_length)
    if anchor is not None:
        low, high = max(low, anchor - window_length + 1), min(high, anchor)
    return low + int(place * (high - low + 1))


Batch = dict[str, np.ndarray]
"""One process's share of a batch.

* `"image"`: (b, h, w) int16 HU, preprocessed but not normalised
* `"label"`: (b, h, w) uint8 VerSe ids
* `"stats"`: (b, 4) float32 mean, std, min, max of the whole scan
* `"case"`: (b,) int32 index into the list of cached cases
* `"slice"`: (b,) int32 index into the case's slices
* `"weight"`: (b,) float32, 0 for filler
* `"position"`: (b,) int32 place within the batch of all processes
"""


class TrainingSource(Protocol):
    """What is said of something that training reads from: its name and the pixels' mm."""

    @property
    def id(self) -> str: ...  # noqa: D102

    @property
    def spacing_mm(self) -> tuple[float, float]: ...  # noqa: D102


class Feed(Protocol):
    """Where the batches of a run come from.

    train_cases, val_cases: what `"case"` in the batches counts.
    per_epoch: training batches in which each sample comes once.
    """

    @property
    def train_cases(self) -> Sequence[TrainingSource]: ...  # noqa: D102

    @property
    def val_cases(self) -> Sequence[CachedCase]: ...  # noqa: D102

    @property
    def per_epoch(self) -> int: ...  # noqa: D102

    def train(
        self, *, start_step: int, process_index: int, process_count: int
    ) -> Generator[Batch, None, None]:
        """Return this process's share of the endless training batches from `start_step` on."""

    def val(self, *, process_index: int, process_count: int) -> Generator[Batch, None, None]:
        """Return this process's share of every validation sample once, in full batches."""

    def counts(self) -> dict[str, Any]:
        """Return what is worth recording of the samples, as JSON; nothing of slices."""


@dataclass(frozen=True, eq=False)
class SliceFeed:
    """Batches of slices: see `train_batches` and `eval_batches` for the fields."""

    split: Mapping[str, Sequence[CachedCase]]
    size: tuple[int, int]
    batch_size: int
    seed: int
    spine_free_fraction: float
    threads: int
    prefetch: int

    @property
    def train_cases(self) -> Sequence[CachedCase]:
        """Scans of the training split."""
        return self.split["train"]

    @property
    def val_cases(self) -> Sequence[CachedCase]:
        """Scans of the validation split."""
        return self.split["val"]

    @property
    def per_epoch(self) -> int:
        """Number of batches that show as many slices as there are, rounded up."""
        return steps_per_epoch(self.train_cases, self.batch_size)

    def train(
        self, *, start_step: int, process_index: int, process_count: int
    ) -> Generator[Batch, None, None]:
        """Return `train_batches` of the training split."""
        return train_batches(
            self.train_cases,
            size=self.size,
            batch_size=self.batch_size,
            seed=self.seed,
            start_step=start_step,
            spine_free_fraction=self.spine_free_fraction,
            process_index=process_index,
            process_count=process_count,
            threads=self.threads,
            prefetch=self.prefetch,
        )

    def counts(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def val(self, *, process_index: int, process_count: int) -> Generator[Batch, None, None]:
        """Return `eval_batches` of the validation split."""
        return eval_batches(
            self.val_cases,
            size=self.size,
            batch_size=self.batch_size,
            process_index=process_index,
            process_count=process_count,
            threads=self.threads,
            prefetch=self.prefetch,
        )


def train_batches(
    cached: Sequence[CachedCase],
    *,
    size: tuple[int, int],
    batch_size: int,
    seed: int,
    start_step: int = 0,
    spine_free_fraction: float = 0.1,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    prefetch: int = 4,
) -> Generator[Batch, None, None]:
    """Return an endless stream of shuffled training batches, this process's share of each.

    Slices with and without foreground are two streams, each shuffled anew on every pass, and merged
    in fixed proportion. Where one kind does not exist, the other is used alone.

    Args:
        cached: the scans (`cache.prepare`).
        size: (h, w); larger slices are cropped at random, smaller ones padded (`RandomWindow`).
        batch_size: slices over all processes.
        seed: of order and crops.
        start_step: batch to begin at.
        spine_free_fraction: share of slices without any foreground. It counts whole slices: a crop
            of a slice with vertebrae may miss them.
        process_index: which share; below `process_count`.
        process_count: number of shares; divides `batch_size`.
        threads: that read and cut; 0 reads in the caller.
        prefetch: batches kept ready by the threads; 0 also reads in the caller.

    Returns:
        A generator of `Batch`, which `close()` (or its end of life) shuts down with its threads.

    Raises:
        InputError: no slices, or a value that cannot be used, named.
    """
    size = _check(size, batch_size, process_index, process_count, threads, prefetch)
    if not 0 <= spine_free_fraction <= 1:
        raise InputError(f"spine_free_fraction {spine_free_fraction} must lie in [0, 1]")
    if seed < 0:
        raise InputError(f"seed {seed} must not be negative")
    if start_step < 0:
        raise InputError(f"start_step {start_step} must not be negative")
    table, has_spine = slice_table(cached)
    kinds = {"spine": (table[has_spine], 1 - spine_free_fraction)}
    kinds["free"] = (table[~has_spine], spine_free_fraction)
    streams, weights = [], []
    for name, (rows, weight) in kinds.items():
        other_is_empty = len(rows) == len(table)
        if len(rows) and (weight > 0 or other_is_empty):
            source = EndlessShuffle(SliceSource(cached, rows), seed_of(seed, name))
            streams.append(grain.MapDataset.source(source))
            # Whole numbers: Grain rounds weights to a hundredth of the smallest.
            weights.append(max(1, round(weight * 10_000)))
    stream = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, weights=weights)
    (window_seed,) = np.random.SeedSequence(seed_of(seed, "window")).generate_state(1)
    stream = stream.random_map(RandomWindow(cached, size), seed=int(window_seed))
    # The share is taken last, so that the global stream does not hang on the number of processes.
    share = stream[process_index::process_count].batch(batch_size // process_count)
    return iterate(share[start_step:], batch_size, process_index, process_count, threads, prefetch)


def eval_batches(
    cached: Sequence[CachedCase],
    *,
    size: tuple[int, int],
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    prefetch: int = 4,
) -> Generator[Batch, None, None]:
    """Return every pixel of every slice exactly once, in order, in windows of `size`.

    Slices larger than `size` are cut into windows that do not overlap; what sticks out of a slice
    has the preprocessing's `fill_hu` and label 0, which counts as true negative and leaves Dice
    alone. Every process gets the same number of batches, all full; filler has weight 0.

    Arguments, result and errors as for `train_batches`.
    """
    size = _check(size, batch_size, process_index, process_count, threads, prefetch)
    table = window_table(cached, size)
    length = -(-len(table) // batch_size) * batch_size
    stream = grain.MapDataset.source(WindowSource(cached, size, table, length))
    share = stream[process_index::process_count].batch(batch_size // process_count)
    return iterate(share, batch_size, process_index, process_count, threads, prefetch)


def steps_per_epoch(cached: Sequence[CachedCase], batch_size: int) -> int:
    """Return the number of batches that show as many slices as there are, rounded up."""
    table, _ = slice_table(cached)
    return -(-len(table) // batch_size)


def iterate(
    share: Any,
    batch_size: int,
    process_index: int,
    process_count: int,
    threads: int,
    prefetch: int,
) -> Generator[Batch, None, None]:
    """Read a `grain.MapDataset` whose elements are one process's batches; add `"position"`."""
    # Grain's own defaults would read 500 batches ahead.
    ahead = prefetch if threads else 0
    options = grain.ReadOptions(num_threads=threads if ahead else 0, prefetch_buffer_size=ahead)
    position = np.arange(process_index, batch_size, process_count, dtype=np.int32)
    iterator = iter(share.to_iter_dataset(options))
    try:
        for batch in iterator:
            yield batch | {"position": position.copy()}
    finally:
        iterator.close()


def _check(
    size: tuple[int, int],
    batch_size: int,
    process_index: int,
    process_count: int,
    threads: int,
    prefetch: int,
) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"data.size {tuple(size)} must be two positive numbers of pixels")
    check_reading(batch_size, process_index, process_count, threads, prefetch)
    return int(size[0]), int(size[1])


def check_reading(
    batch_size: int, process_index: int, process_count: int, threads: int, prefetch: int
) -> None:
    """Raise InputError for numbers that `iterate` cannot use."""
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} must be at least 1")
    if process_count < 1 or not 0 <= process_index < process_count:
        raise InputError(f"process {process_index} of {process_count} does not exist")
    if batch_size % process_count:
        raise InputError(
            f"batch_size {batch_size} must be a multiple of the number of processes "
            f"({process_count})"
        )
    if threads < 0 or prefetch < 0:
        raise InputError(
            f"data.threads {threads} and data.prefetch {prefetch} must not be negative"
        )


def seed_of(seed: int, purpose: str) -> tuple[int, ...]:
    """Return a seed of NumPy for one purpose; neighbouring seeds and purposes share nothing."""
    return (seed, *purpose.encode())
