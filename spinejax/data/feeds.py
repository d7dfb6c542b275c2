"""Batches for training and validation: what a feed is, and how feeds read cached scans with Grain.

The training loop knows `Feed`. `ScanFeed` reads cached scans; its subclasses in `slice_feed`,
`patch_feed` and `cube_feed` define the samples.

A training batch is a pure function of (seed, number of the batch): resuming at step `k` means
starting with batch `k`, whatever the number of reading threads and processes. Process `p` of `n`
reads every n-th sample of one global stream, starting with the p-th. Together they read the batch
of a single process, in another order that `"position"` gives.
"""

import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from spinejax import machine
from spinejax.data.cache import CachedCase
from spinejax.errors import InputError
from spinejax.volume import with_neighbours

Batch = dict[str, np.ndarray]
"""One process's share of a batch of slices (h, w), patches (h, w) or cubes (x, y, z).

* `"image"`: (b, ...) int16 HU, preprocessed but not normalised; slices with n neighbours on each
  side are (b, h, w, 2n + 1)
* `"label"`: (b, ...) uint8 VerSe ids
* `"stats"`: (b, 4) float32 mean, std, min, max of the whole scan in HU
* `"case"`: (b,) int32 index into the feed's list of cases
* `"index"`: (b,) int32 slice of the sample in the case; for a cube its first slice, maybe negative
* `"weight"`: (b,) float32, 0 for filler
* `"position"`: (b,) int32 place within the batch of all processes
"""


class TrainingSource(Protocol):
    """A source of training samples: its name, and the pixel spacing in mm along h and w."""

    @property
    def id(self) -> str: ...  # noqa: D102

    @property
    def spacing_mm(self) -> tuple[float, float]: ...  # noqa: D102


class Feed(Protocol):
    """The source of a run's batches.

    train_cases, val_cases: the lists that `"case"` of the batches indexes.
    per_epoch: number of training batches in which each sample comes once, rounded up.
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

    def record(self) -> dict[str, dict[str, Any]]:
        """Return what a run records of its samples: name of a file in its folder -> JSON."""


@dataclass(frozen=True)
class Share:
    """The samples of each batch that one process reads: `index`, `index + count`, ...

    Raises:
        InputError: the numbers do not fit together.
    """

    batch_size: int
    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size {self.batch_size} must be at least 1")
        if self.count < 1 or not 0 <= self.index < self.count:
            raise InputError(f"process {self.index} of {self.count} does not exist")
        if self.batch_size % self.count:
            raise InputError(
                f"batch_size {self.batch_size} must be a multiple of the number of processes "
                f"({self.count})"
            )

    @property
    def positions(self) -> np.ndarray:
        """Places of the samples within the batch of all processes, (b,) int32."""
        return np.arange(self.index, self.batch_size, self.count, dtype=np.int32)

    def batches(self, samples: grain.MapDataset) -> grain.MapDataset:
        """Return this share of the batches of a global stream of samples."""
        return samples[self.index :: self.count].batch(self.batch_size // self.count)


class ScanFeed(ABC):
    """A feed of cached scans, read with Grain.

    Attributes:
        train_cases: scans of the training split.
        val_cases: scans of the validation split.
    """

    def __init__(
        self,
        train_cases: Sequence[CachedCase],
        val_cases: Sequence[CachedCase],
        *,
        batch_size: int,
        seed: int,
        threads: int | None = None,
        prefetch: int = 4,
        workers: int = 0,
    ) -> None:
        """Set up.

        Args:
            train_cases: preprocessed scans (`cache.prepare`).
            val_cases: preprocessed scans.
            batch_size: samples over all processes.
            seed: of all random choices, not negative.
            threads: number of reading threads, of each worker if there are any; 0 reads in the
                caller, None shares the cores that the process may use among the workers. Validation
                has no workers.
            prefetch: number of batches that the threads keep ready, at least one for each; 0 also
                reads in the caller.
            workers: number of processes that read training batches; 0 for none. They need a
                `__main__` guard in a script.

        Raises:
            InputError: a number cannot be used.
        """
        Share(batch_size)
        if seed < 0:
            raise InputError(f"seed {seed} must not be negative")
        val_threads = threads
        if threads is None:
            threads = _share_of_cores(workers)
            val_threads = _share_of_cores(0)
        if threads < 0 or prefetch < 0 or workers < 0:
            raise InputError(
                f"data.threads {threads}, data.prefetch {prefetch} and data.workers {workers} must "
                "not be negative"
            )
        self.train_cases, self.val_cases = train_cases, val_cases
        self._batch_size, self._seed = batch_size, seed
        self._prefetch, self._workers = prefetch, workers
        self._threads, self._val_threads = threads, val_threads or 0

    @property
    @abstractmethod
    def epoch_samples(self) -> int:
        """Number of training samples in an epoch."""

    @abstractmethod
    def _training(self, share: Share) -> grain.MapDataset:
        """Return the endless training batches."""

    @abstractmethod
    def _validation(self, share: Share) -> grain.MapDataset:
        """Return all validation batches, in order."""

    @property
    def per_epoch(self) -> int:
        """Number of training batches in an epoch, rounded up."""
        return -(-self.epoch_samples // self._batch_size)

    def train(
        self, *, start_step: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Generator[Batch, None, None]:
        """Return an endless stream of shuffled training batches, this process's share of each.

        Args:
            start_step: number of the first batch.
            process_index: index of the share, below `process_count`.
            process_count: number of shares; divides the batch size.

        Returns:
            A generator; `close()`, or the end of its life, stops its threads.

        Raises:
            InputError: a number cannot be used, or there is no training sample.
        """
        if start_step < 0:
            raise InputError(f"start_step {start_step} must not be negative")
        share = Share(self._batch_size, process_index, process_count)
        return self._read(
            self._training(share)[start_step:], share, threads=self._threads, workers=self._workers
        )

    def val(
        self, *, process_index: int = 0, process_count: int = 1
    ) -> Generator[Batch, None, None]:
        """Return every validation sample exactly once, in order.

        Every process gets the same number of batches, all full; filler has weight 0. Arguments,
        result and errors as for `train`.
        """
        share = Share(self._batch_size, process_index, process_count)
        return self._read(self._validation(share), share, threads=self._val_threads)

    def record(self) -> dict[str, dict[str, Any]]:
        """Return nothing; feeds that count their samples override this."""
        return {}

    def _read(
        self, batches: grain.MapDataset, share: Share, *, threads: int, workers: int = 0
    ) -> Generator[Batch, None, None]:
        # Grain's own defaults would read 500 batches ahead. A thread without a place for its batch
        # would wait.
        ahead = max(threads, -(-self._prefetch // max(1, workers)))
        if not threads or not self._prefetch:
            threads = ahead = 0
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        reading = batches.to_iter_dataset(options)
        if workers:
            if not flags.FLAGS.is_parsed():  # Grain reads flags, outside of absl's programs, too
                flags.FLAGS.mark_as_parsed()
            # Grain hands worker w the batches w, w + workers, ..., and puts them back in order.
            reading = reading.mp_prefetch(grain.MultiprocessingOptions(workers), _begin_worker)
        iterator = iter(reading)
        try:
            for batch in iterator:
                yield batch | {"position": share.positions}
        finally:
            iterator.close()


def _share_of_cores(workers: int) -> int:
    """Return how many threads a worker may start, or the process if there are none."""
    return max(1, min(MOST_THREADS, machine.cores() // max(1, workers)))


MOST_THREADS = 16
"""The most threads that a feed starts unless it is told a number."""


def _begin_worker(index: int, count: int) -> None:
    """Let a worker live as long as the process that reads from it, and no longer."""
    # Signals for the whole group ask the run to stop; it reads on until it has saved.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def seed_of(seed: int, purpose: str) -> tuple[int, ...]:
    """Return a NumPy seed for one purpose; neighbouring seeds and purposes share nothing."""
    return (seed, *purpose.encode())


def grain_seed(seed: int, purpose: str) -> int:
    """Return a seed for Grain, as `seed_of` for NumPy."""
    return int(np.random.SeedSequence(seed_of(seed, purpose)).generate_state(1)[0])


ENDLESS = 2**60
"""Length of an endless stream of samples; Grain rounds `sys.maxsize` up to a number of 64 bits."""


class EndlessShuffle:
    """`source` over and over, in a new random order on each pass.

    The order of a pass is a pure function of the seed and the number of the pass. Grain's own
    `shuffle` is slow for few elements (0.3 ms each for 100); here the orders being read are kept.
    """

    def __init__(self, source: Any, seed: Sequence[int]) -> None:
        """Set up over `source` (`len()` and `[]`); `seed` is a sequence of numbers from 0 on."""
        self._source = source
        self._seed = tuple(seed)
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Any:
        """Return the element of `source` at place `index` of the endless order."""
        number, place = divmod(index, len(self._source))
        return self._source[int(self._order(number)[place])]

    def _order(self, number: int) -> np.ndarray:
        order = self._orders.get(number)
        if order is None:
            # Threads that arrive together make the same order twice, which does no harm.
            rng = np.random.default_rng((*self._seed, number))
            order = rng.permutation(len(self._source))
            orders = self._orders | {number: order}
            # Reading ahead spans two passes, or more if a pass is shorter than a batch.
            kept = sorted(orders)[-max(3, 4096 // len(order)) :]
            self._orders = {number: orders[number] for number in kept}
        return order


# Windows of scans.


def tile_starts(length: int, window_length: int) -> list[int]:
    """Return the first indices of windows side by side that cover `length`, centred, maybe < 0."""
    windows = -(-length // window_length)
    first = -((windows * window_length - length) // 2)
    return [first + k * window_length for k in range(windows)]


def random_start(length: int, window_length: int, anchor: int | None, place: float) -> int:
    """Return the first index of a window; `place` in [0, 1) chooses among the legal ones.

    A legal window lies inside the scan, or holds it, and contains the index `anchor` if given.
    """
    low, high = min(0, length - window_length), max(0, length - window_length)
    if anchor is not None:
        low, high = max(low, anchor - window_length + 1), min(high, anchor)
    return low + int(place * (high - low + 1))


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


def cut(
    cached: Sequence[CachedCase],
    case: int,
    start: Sequence[int],
    size: Sequence[int],
    neighbours: int = 0,
) -> dict[str, Any]:
    """Return a window of a scan as one sample: the fields of `Batch` without the batch axis.

    Args:
        cached: the scans.
        case: index into `cached`.
        start: first slice, row and column.
        size: (h, w) for a window of the slice `start[0]`, (x, y, z) for a cube. Outside the scan
            lies `fill_hu` of the preprocessing, with label 0.
        neighbours: slices on each side of a slice that the image also holds, as channels.
    """
    scan, index = cached[case], start[0]
    image, label = scan.image, scan.label
    if len(size) == 2:
        image = with_neighbours(image, index, index + 1, neighbours)[0]
        label, start = label[index], start[1:]
    channels = image.shape[len(size) :]
    return {
        "image": window(
            image, (*start, *[0] * len(channels)), (*size, *channels), scan.settings.fill_hu
        ),
        "label": window(label, start, size, 0),
        "stats": scan.stats,
        "case": np.int32(case),
        "index": np.int32(index),
        "weight": np.float32(1),
    }


def tile_table(cached: Sequence[CachedCase], size: Sequence[int]) -> np.ndarray:
    """Return the places of windows that hold every pixel of every scan exactly once.

    Returns:
        (m, 4) int32 of (index into `cached`, first slice, row and column), centred on the scan and
        maybe negative; for a `size` (h, w) slice by slice.
    """
    whole = (1, *size) if len(size) == 2 else size
    rows = [
        (case, *start)
        for case, scan in enumerate(cached)
        for start in product(*map(tile_starts, scan.shape, whole))
    ]
    return np.array(rows, np.int32).reshape(-1, 4)


@dataclass(frozen=True, repr=False)
class Filled:
    """Samples in order, then empty ones of weight 0 up to `length`.

    Attributes:
        sample: index -> sample, see `cut`.
        count: number of samples.
        length: of the source.
        fill_hu: HU of an empty sample.
    """

    sample: Callable[[int], dict[str, Any]]
    count: int
    length: int
    fill_hu: float

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample, see `cut`."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        if index < self.count:
            return self.sample(index)
        filler = self.sample(0)
        return filler | {
            "image": np.full_like(filler["image"], self.fill_hu),
            "label": np.zeros_like(filler["label"]),
            "weight": np.float32(0),
        }


def in_order(
    sample: Callable[[int], dict[str, Any]], count: int, share: Share, fill_hu: float
) -> grain.MapDataset:
    """Return batches of `count` samples in order; the last one is filled up (`Filled`)."""
    length = -(-count // share.batch_size) * share.batch_size
    return share.batches(grain.MapDataset.source(Filled(sample, count, length, fill_hu)))


def tiled(
    cached: Sequence[CachedCase],
    size: tuple[int, ...],
    share: Share,
    samples: str,
    neighbours: int = 0,
) -> grain.MapDataset:
    """Return batches in which every pixel of the scans comes exactly once.

    Windows do not overlap, and the last batch is as full as the others. Pixels outside a scan count
    as true negatives, which do not change the Dice. `neighbours` is that of `cut`.

    Raises:
        InputError: there is no scan; `samples` says what is missing.
    """
    check_any(cached, samples)
    table = tile_table(cached, size)

    def sample(index: int) -> dict[str, Any]:
        case, *start = table[index].tolist()
        return cut(cached, case, start, size, neighbours)

    return in_order(sample, len(table), share, cached[0].settings.fill_hu)


def check_any(cached: Sequence[Any], samples: str) -> None:
    """Raise an InputError if there is no scan or vertebra; `samples` says what is missing."""
    if not cached:
        raise InputError(
            f"no {samples} to read: the split holds no case; check data.root and the split"
        )
