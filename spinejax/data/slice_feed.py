"""Batches of slices of cached scans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

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
    tiled,
)
from spinejax.errors import InputError
from spinejax.volume import check_neighbours

SPINE_CENTRED_SHARE = 2 / 3
"""Share of the crops of a slice with vertebrae that contain a labelled pixel."""


@dataclass(frozen=True, repr=False)
class RandomWindow(grain.transforms.RandomMap):
    """Cuts a slice to `size`, or pads it, at a random place.

    `SPINE_CENTRED_SHARE` of the crops of a slice with foreground contain a uniformly drawn labelled
    pixel at a random place in the crop; the others lie anywhere. A slice smaller than the window
    lies anywhere within it.

    Attributes:
        cached: the scans.
        size: (h, w) pixels.
        neighbours: slices on each side that a sample also holds.
    """

    cached: Sequence[CachedCase]
    size: tuple[int, int]
    neighbours: int = 0

    def random_map(self, place: Sequence[int], rng: np.random.Generator) -> dict[str, Any]:
        """Return a window of the slice at `place` (case, slice) as one sample, see `feeds.cut`."""
        case, position = (int(number) for number in place)
        label = self.cached[case].label[position]
        anchor = (None, None)
        # Always drawn, so that the number of draws does not depend on the label.
        wanted, pick, *places = rng.random(4)
        larger = label.shape[0] > self.size[0] or label.shape[1] > self.size[1]
        if wanted < SPINE_CENTRED_SHARE and larger:
            foreground = np.flatnonzero(label)
            if foreground.size:
                anchor = divmod(int(foreground[int(pick * foreground.size)]), label.shape[1])
        start = map(random_start, label.shape, self.size, anchor, places)
        return cut(self.cached, case, (position, *start), self.size, self.neighbours)


class SliceFeed(ScanFeed):
    """Slices, cropped or padded to one size.

    Slices with and without foreground are two training streams, each shuffled anew on every pass
    and merged in a fixed proportion. If one kind does not exist, the other is used alone.
    Validation cuts larger slices into windows that do not overlap.
    """

    def __init__(
        self,
        split: Mapping[str, Sequence[CachedCase]],
        *,
        size: tuple[int, int],
        spine_free_fraction: float = 0.1,
        neighbours: int = 0,
        **reading: Any,
    ) -> None:
        """Set up.

        Args:
            split: preprocessed scans of "train" and "val".
            size: (h, w) pixels; larger training slices are cropped at random (`RandomWindow`).
            spine_free_fraction: share of slices without any foreground. It counts whole slices: a
                crop of a slice with vertebrae may miss them.
            neighbours: slices on each side that a sample also holds, as channels.
            **reading: batch size, seed, threads, prefetch and workers, see `ScanFeed`.

        Raises:
            InputError: a value cannot be used, or a scan has no neighbouring slices.
        """
        super().__init__(split["train"], split["val"], **reading)
        for case in (*self.train_cases, *self.val_cases):
            check_neighbours(case.id, case.shape[0], case.settings.plane, neighbours)
        if len(size) != 2 or min(size) < 1:
            raise InputError(f"data.size {tuple(size)} must be two positive numbers of pixels")
        if not 0 <= spine_free_fraction <= 1:
            raise InputError(f"spine_free_fraction {spine_free_fraction} must lie in [0, 1]")
        self._size, self._free = (int(size[0]), int(size[1])), spine_free_fraction
        self._neighbours = neighbours

    @property
    def epoch_samples(self) -> int:
        """Number of training slices."""
        check_any(self.train_cases, "slices")
        return sum(case.shape[0] for case in self.train_cases)

    def _training(self, share: Share) -> grain.MapDataset:
        total = self.epoch_samples
        rows = [(i, n) for i, case in enumerate(self.train_cases) for n in range(case.shape[0])]
        places = np.array(rows, np.int32)
        spine = np.concatenate([case.foreground_counts for case in self.train_cases]) > 0
        streams, weights = [], []
        for name, kind, weight in (("spine", spine, 1 - self._free), ("free", ~spine, self._free)):
            chosen = places[kind]
            if len(chosen) and (weight > 0 or len(chosen) == total):
                shuffled = EndlessShuffle(chosen, seed_of(self._seed, name))
                streams.append(grain.MapDataset.source(shuffled))
                # Whole numbers: Grain rounds weights to a hundredth of the smallest.
                weights.append(max(1, round(weight * 10_000)))
        stream = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, weights=weights)
        cutting = RandomWindow(self.train_cases, self._size, self._neighbours)
        return share.batches(stream.random_map(cutting, seed=grain_seed(self._seed, "window")))

    def _validation(self, share: Share) -> grain.MapDataset:
        return tiled(self.val_cases, self._size, share, "slices", self._neighbours)
