"""Random access to cached slices, and the cutting of slices to the network's size."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
