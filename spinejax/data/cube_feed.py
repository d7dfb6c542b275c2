"""Batches of cubes of cached scans, for networks of volumes.

The scans come from `cache.prepare` with `preprocess.mode="isotropic"`: stacks of slices with one
spacing along all three axes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import grain
import numpy as np

from spinejax import labels
from spinejax.data.cache import CachedCase, kept
from spinejax.data.feeds import (
    EndlessShuffle,
    ScanFeed,
    Share,
    check_any,
    cut,
    grain_seed,
    in_order,
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

    def count() -> np.ndarray:
        parts = [np.bincount(part.ravel(), minlength=labels.MAX_ID + 1) for part in scan.label]
        return np.stack(parts, axis=1)

    counts = kept(scan, "label-counts-1", count)
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


Centres = Callable[[np.ndarray, tuple[float, float, float]], Mapping[int, np.ndarray]]
"""(labels (x, y, z), voxel size in mm) -> VerSe id -> voxel index (3,) of the body's centre."""


@lru_cache(maxsize=512)
def _centres_in(scan: CachedCase, centres: Centres) -> Mapping[int, np.ndarray]:
    return centres(scan.label, (scan.slice_spacing_mm, *scan.spacing_mm))


@dataclass(frozen=True, repr=False)
class Outlined:
    """The cubes of single vertebrae of scans; the label of a cube is 1 in its vertebra.

    Attributes:
        cached: the scans.
        size: (x, y, z) voxels.
        shift: (3,) voxels from a vertebra's centre to the centre of its cube.
        centres: finds the centres of the vertebrae of a scan.
    """

    cached: Sequence[CachedCase]
    size: Size
    shift: np.ndarray
    centres: Centres

    def table(self) -> list[tuple[int, int]]:
        """Return (index into `cached`, VerSe id) of every vertebra."""
        return [
            (case, int(verse_id))
            for case, scan in enumerate(self.cached)
            for verse_id in _label_counts(scan)[0]
        ]

    def cube(self, case: int, verse_id: int, error: np.ndarray | float = 0.0) -> dict[str, Any]:
        """Return the cube of a vertebra as one sample (`feeds.cut`); `error` of its centre."""
        centre = _centres_in(self.cached[case], self.centres)[verse_id] + error
        start = np.rint(centre + self.shift - (np.array(self.size) - 1) / 2).astype(int)
        sample = cut(self.cached, case, start.tolist(), self.size)
        return sample | {"label": (sample["label"] == verse_id).astype(np.uint8)}


@dataclass(frozen=True, repr=False)
class RandomError(grain.transforms.RandomMap):
    """Cuts the cube of a vertebra out of a scan, its centre displaced at random.

    Attributes:
        outlined: the cubes.
        jitter: standard deviation along each axis in voxels.
    """

    outlined: Outlined
    jitter: float

    def random_map(self, vertebra: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
        """Return the cube of (index of the scan, VerSe id) as one sample, see `feeds.cut`."""
        return self.outlined.cube(*vertebra, self.jitter * rng.standard_normal(3))


class OutlineFeed(ScanFeed):
    """Cubes of single vertebrae; an epoch has each vertebra of the training scans once."""

    def __init__(
        self,
        split: Mapping[str, Sequence[CachedCase]],
        *,
        size: Size,
        shift: np.ndarray,
        jitter: float,
        centres: Centres,
        **reading: Any,
    ) -> None:
        """Set up.

        Args:
            split: preprocessed scans of "train" and "val".
            size: (x, y, z) voxels.
            shift: (3,) voxels from a vertebra's centre to the centre of its cube.
            jitter: standard deviation in voxels of the error of the centre in training.
            centres: finds the centres of the vertebrae of a scan.
            **reading: batch size, seed, threads, prefetch and workers, see `ScanFeed`.

        Raises:
            InputError: a number cannot be used.
        """
        super().__init__(split["train"], split["val"], **reading)
        self._train, self._val = (
            Outlined(cases, size, shift, centres) for cases in (self.train_cases, self.val_cases)
        )
        self._jitter = jitter

    @property
    def epoch_samples(self) -> int:
        """Number of vertebrae of the training scans."""
        return len(_vertebrae(self._train))

    def _training(self, share: Share) -> grain.MapDataset:
        vertebrae = EndlessShuffle(_vertebrae(self._train), seed_of(self._seed, "outlines"))
        cutting = RandomError(self._train, self._jitter)
        stream = grain.MapDataset.source(vertebrae)
        return share.batches(stream.random_map(cutting, seed=grain_seed(self._seed, "outline")))

    def _validation(self, share: Share) -> grain.MapDataset:
        table = _vertebrae(self._val)
        fill_hu = self.val_cases[0].settings.fill_hu
        return in_order(lambda index: self._val.cube(*table[index]), len(table), share, fill_hu)


def _vertebrae(outlined: Outlined) -> list[tuple[int, int]]:
    """Return the table of vertebrae; an InputError if there is none."""
    check_any(table := outlined.table(), "cubes of vertebrae")
    return table


class CubeFeed(ScanFeed):
    """Cubes; an epoch has as many as cover the training scans."""

    def __init__(
        self,
        split: Mapping[str, Sequence[CachedCase]],
        *,
        size: Size,
        **reading: Any,
    ) -> None:
        """Set up.

        Args:
            split: preprocessed scans of "train" and "val".
            size: (x, y, z) voxels.
            **reading: batch size, seed, threads, prefetch and workers, see `ScanFeed`.

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
