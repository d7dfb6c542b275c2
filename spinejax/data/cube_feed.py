"""Batches of cubes of cached scans, for networks of volumes.

The scans come from `cache.prepare` with `preprocess.mode="isotropic"`: stacks of slices with one
spacing along all three axes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grain
import numpy as np

from spinejax import labels
from spinejax.data.cache import CachedCase
from spinejax.data.feeds import (
    EndlessShuffle,
    ScanFeed,
    Share,
    check_any,
    cut,
    grain_seed,
    random_start,
    seed_of,
    tile_table,
    tiled,
)

Size = tuple[int, int, int]

CENTRED_SHARE = 2 / 3
"""Share of training cubes that contain a voxel of a label drawn uniformly."""


@lru_cache(maxsize=512)
def _label_counts(scan: CachedCase) -> tuple[np.ndarray, np.ndarray]:
    """Return the VerSe ids of a scan (k,), and the voxels of each id in each slice (k, n)."""
    counts = np.stack(
        [np.bincount(part.ravel(), minlength=labels.MAX_ID + 1) for part in scan.label], axis=1
    )
    present = np.flatnonzero(counts.any(1))
    present = present[present > 0]
    return present, counts[present]


@dataclass(frozen=True, repr=False)
class RandomCube(grain.transforms.RandomMap):
    """Cuts a cube out of a scan, or pads the scan, at a random place.

    `CENTRED_SHARE` of the cubes contain a voxel of a label that is drawn uniformly among the labels
    of the scan, so that small vertebrae come as often as large ones; the other cubes lie anywhere.

    Attributes:
        cached: the scans.
        size: (x, y, z) voxels.
    """

    cached: Sequence[CachedCase]
    size: Size

    def random_map(self, case: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return a cube of a scan as one sample, see `feeds.cut`."""
        scan = self.cached[case]
        # Always drawn, so that the number of draws does not depend on the scan.
        wanted, which, where, pick, *places = rng.random(7)
        anchor: tuple[int | None, ...] = (None, None, None)
        present, counts = _label_counts(scan)
        if wanted < CENTRED_SHARE and len(present):
            row = int(which * len(present))
            share = np.cumsum(counts[row])
            position = int(np.searchsorted(share, where * share[-1], side="right"))
            chosen = np.flatnonzero(scan.label[position] == present[row])
            anchor = position, *divmod(int(chosen[int(pick * len(chosen))]), scan.shape[2])
        start = list(map(random_start, scan.shape, self.size, anchor, places))
        return cut(self.cached, case, start, self.size)


class CubeFeed(ScanFeed):
    """Cubes; an epoch has as many as cover the training scans."""

    def __init__(
        self,
        split: Mapping[str, Sequence[CachedCase]],
        *,
        size: Size,
        **reading: int,
    ) -> None:
        """Set up.

        Args:
            split: preprocessed scans of "train" and "val".
            size: (x, y, z) voxels.
            **reading: batch size, seed, threads and prefetch, see `ScanFeed`.

        Raises:
            InputError: a number cannot be used.
        """
        super().__init__(split["train"], split["val"], **reading)
        self._size = size

    @property
    def epoch_samples(self) -> int:
        """Number of cubes side by side that cover the training scans."""
        check_any(self.train_cases, "cubes")
        return len(tile_table(self.train_cases, self._size))

    def _training(self, share: Share) -> grain.MapDataset:
        check_any(self.train_cases, "cubes")
        cases = EndlessShuffle(range(len(self.train_cases)), seed_of(self._seed, "cubes"))
        cutting = RandomCube(self.train_cases, self._size)
        stream = grain.MapDataset.source(cases)
        return share.batches(stream.random_map(cutting, seed=grain_seed(self._seed, "cube")))

    def _validation(self, share: Share) -> grain.MapDataset:
        return tiled(self.val_cases, self._size, share, "cubes")
