"""Cubes of cached scans for networks of volumes, by Grain.

The scans are those of `cache.prepare` with `preprocess.mode="isotropic"`: stacks of slices whose
three axes have one spacing. As for slices (pipeline.py), a training batch is a pure function of
seed and index, whatever the number of threads and processes.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import grain
import numpy as np

from spinejax import labels
from spinejax.data import feeds
from spinejax.data.cache import CachedCase
from spinejax.data.feeds import EndlessShuffle, random_start, tile_starts, window
from spinejax.errors import InputError

Size = tuple[int, int, int]

CENTRED_SHARE = 2 / 3
"""Share of training cubes that are made to hold a voxel of a vertebra, each label as often."""


@lru_cache(maxsize=512)
def _label_counts(scan: CachedCase) -> tuple[np.ndarray, np.ndarray]:
    """VerSe ids of a scan (k,), and how many voxels each slice has of each (k, n)."""
    counts = np.stack(
        [np.bincount(part.ravel(), minlength=labels.MAX_ID + 1) for part in scan.label], axis=1
    )
    present = np.flatnonzero(counts.any(1))
    present = present[present > 0]
    return present, counts[present]


@dataclass(frozen=True)
class RandomCube(grain.transforms.RandomMap):
    """Cuts a cube out of a scan, or pads the scan, at a random place.

    `CENTRED_SHARE` of the cubes hold a voxel of a label drawn uniformly among those of the scan, so
    that small and rare vertebrae come as often as large ones; the others lie anywhere.

    Attributes:
        cached: the scans.
        size: (x, y, z) voxels.
    """

    cached: Sequence[CachedCase]
    size: Size

    def random_map(self, case: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return a cube of a scan: one element of `pipeline.Batch` without the batch axis."""
        scan = self.cached[case]
        # Drawn in any case, so that the number of draws does not hang on the scan.
        wanted, which, where, pick, *places = rng.random(7)
        anchor: tuple[int, ...] | None = None
        present, counts = _label_counts(scan)
        if wanted < CENTRED_SHARE and len(present):
            row = int(which * len(present))
            share = np.cumsum(counts[row])
            position = int(np.searchsorted(share, where * share[-1], side="right"))
            chosen = np.flatnonzero(scan.label[position] == present[row])
            at = divmod(int(chosen[int(pick * len(chosen))]), scan.shape[2])
            anchor = (position, *at)
        start = [
            random_start(n, side, None if anchor is None else anchor[axis], places[axis])
            for axis, (n, side) in enumerate(zip(scan.shape, self.size, strict=True))
        ]
        return _cube(scan, case, start, self.size)


def _cube(scan: CachedCase, case: int, start: Sequence[int], size: Size) -> dict[str, Any]:
    return {
        "image": window(scan.image, start, size, scan.settings.fill_hu),
        "label": window(scan.label, start, size, 0),
        "stats": scan.stats,
        "case": np.int32(case),
        "slice": np.int32(start[0]),
        "weight": np.float32(1),
    }


@dataclass(frozen=True, repr=False)
class TileSource:
    """Cubes side by side that hold every voxel of every scan once, then filler of weight 0.

    Attributes:
        cached: the scans.
        size: (x, y, z) voxels.
        table: (m, 4) int32 of (index into `cached`, first index along each axis, maybe negative).
        length: total, at least m.
    """

    cached: Sequence[CachedCase]
    size: Size
    table: np.ndarray
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one element of `pipeline.Batch` without the batch axis."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        filler = index >= len(self.table)
        case, *start = (int(v) for v in self.table[0 if filler else index])
        element = _cube(self.cached[case], case, start, self.size)
        return element | {"weight": np.float32(not filler)}

    def __repr__(self) -> str:
        return f"TileSource(cases={len(self.cached)}, size={self.size}, cubes={len(self.table)})"


def tile_table(cached: Sequence[CachedCase], size: Size) -> np.ndarray:
    """Return the table of `TileSource`.

    Raises:
        InputError: there is no scan.
    """
    if not cached:
        raise InputError("no cubes to read: the split holds no case; check data.root and the split")
    rows = [
        (case, *start)
        for case, scan in enumerate(cached)
        for start in product(
            *(tile_starts(n, side) for n, side in zip(scan.shape, size, strict=True))
        )
    ]
    return np.array(rows, np.int32)


@dataclass(frozen=True, eq=False)
class CubeFeed:
    """Batches of cubes; see `pipeline.Feed`. An epoch shows as many voxels as the scans have."""

    split: Mapping[str, Sequence[CachedCase]]
    size: Size
    batch_size: int
    seed: int
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
        """Number of batches with as many cubes as cover the training scans, rounded up."""
        return -(-len(tile_table(self.train_cases, self.size)) // self.batch_size)

    def train(
        self, *, start_step: int, process_index: int, process_count: int
    ) -> Generator[feeds.Batch, None, None]:
        """Return this process's share of the endless training batches from `start_step` on."""
        tile_table(self.train_cases, self.size)  # refuses an empty split
        self._check(process_index, process_count)
        source = EndlessShuffle(range(len(self.train_cases)), feeds.seed_of(self.seed, "cubes"))
        (seed,) = np.random.SeedSequence(feeds.seed_of(self.seed, "cube")).generate_state(1)
        cut = RandomCube(self.train_cases, self.size)
        stream = grain.MapDataset.source(source).random_map(cut, seed=int(seed))
        share = stream[process_index::process_count].batch(self.batch_size // process_count)
        return self._read(share[start_step:], process_index, process_count)

    def val(self, *, process_index: int, process_count: int) -> Generator[feeds.Batch, None, None]:
        """Return this process's share of every voxel of the validation scans, once."""
        self._check(process_index, process_count)
        table = tile_table(self.val_cases, self.size)
        length = -(-len(table) // self.batch_size) * self.batch_size
        stream = grain.MapDataset.source(TileSource(self.val_cases, self.size, table, length))
        share = stream[process_index::process_count].batch(self.batch_size // process_count)
        return self._read(share, process_index, process_count)

    def counts(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def _check(self, process_index: int, process_count: int) -> None:
        feeds.check_reading(
            self.batch_size, process_index, process_count, self.threads, self.prefetch
        )

    def _read(
        self, share: Any, process_index: int, process_count: int
    ) -> Generator[feeds.Batch, None, None]:
        return feeds.iterate(
            share, self.batch_size, process_index, process_count, self.threads, self.prefetch
        )
