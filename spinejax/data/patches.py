"""Overlapping patches as numbers: where they lie, their classes, and which of them train.

Paper B (Qadri et al. 2021), section II.B cuts slices into overlapping patches of n x n pixels and
calls a patch vertebra if most of its pixels are vertebra; section II.C balances the two classes by
leaving out background patches at random (RUS: random under-sampling; He and Garcia, "Learning from
Imbalanced Data", IEEE TKDE 21:1263, 2009).

Here a patch is a number. Its place follows from the number by arithmetic and its class takes one
byte, so a million patches take a megabyte; the pixels are read from the cached slices when a batch
needs them.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from spinejax import schema
from spinejax.data.cache import CachedCase, kept
from spinejax.errors import InputError

BACKGROUND, VERTEBRA = 0, 1

MOST_PATCHES = 10**9 - 1
"""The most patches that int32 can number and NumPy's hypergeometric distribution can draw."""

_log = logging.getLogger("spinejax")


def patch_starts(length: int, size: int, stride: int) -> np.ndarray:
    """Return the first pixels of the patches along one axis: 0, stride, ... while they fit."""
    return np.arange(0, length - size + 1, stride)


def patch_classes(label: np.ndarray, size: int, stride: int, rule: str) -> np.ndarray:
    """Return the class of every patch of one slice.

    Args:
        label: (h, w) integers; numbers above 0 are foreground.
        size: side of a patch in pixels, at most h and w.
        stride: pixels between the first pixels of neighbouring patches.
        rule: `"majority"` (section II.B): vertebra if more than half of the pixels are foreground,
            for 32 x 32 patches at least 513 of 1024. `"centre"`: vertebra if the pixel
            (size // 2, size // 2) is; a dense scan gives this pixel the patch's probability.
            `"redundant"` parts the two classes of `"centre"`, which the task does.

    Returns:
        (rows, columns) uint8, `VERTEBRA` or `BACKGROUND`; row i starts at pixel i * stride.
    """
    foreground = label > 0
    rows, columns = (patch_starts(length, size, stride) for length in label.shape)
    if rule != "majority":
        return foreground[rows[:, None] + size // 2, columns + size // 2].astype(np.uint8)
    # An integral image, one axis after the other; the second only for columns with patches.
    strips = _running_sums(foreground, columns, size)
    pixels = _running_sums(np.ascontiguousarray(strips.T), rows, size).T
    return (2 * pixels > size * size).astype(np.uint8)


def _running_sums(values: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
    """Return sums over values[:, start : start + size], (h, starts) int32, for (h, w) values."""
    total = np.zeros((len(values), values.shape[1] + 1), np.int32)
    np.cumsum(values, axis=1, dtype=np.int32, out=total[:, 1:])
    return total[:, starts + size] - total[:, starts]


@dataclass(frozen=True, eq=False)
class PatchIndex:
    """All patches of some scans: case by case, slice by slice, row by row (`index_patches`).

    Attributes:
        cases: the scans.
        size: side of a patch in pixels.
        stride: pixels between the first pixels of neighbouring patches.
        label_rule: rule for the classes.
        grids: (c, 3) int64 numbers of slices, rows and columns of patches in each case.
        offsets: (c + 1,) int64 number of the first patch of each case, and the number of patches.
        classes: (m,) uint8 class of each patch, `VERTEBRA` or `BACKGROUND`.
    """

    cases: Sequence[CachedCase]
    size: int
    stride: int
    label_rule: str
    grids: np.ndarray
    offsets: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def nbytes(self) -> int:
        """Size of the index in bytes."""
        return self.grids.nbytes + self.offsets.nbytes + self.classes.nbytes

    @cached_property
    def vertebra_count(self) -> int:
        """Number of vertebra patches."""
        return int(np.count_nonzero(self.classes))

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the places of patches.

        Args:
            numbers: (b,) integers in [0, len).

        Returns:
            (case, slice, row, column), each (b,) int32: index into `cases`, slice of the case, and
            the patch's first pixel in the slice.
        """
        case = np.searchsorted(self.offsets, numbers, side="right") - 1
        position, place = np.divmod(
            numbers - self.offsets[case], self.grids[case, 1] * self.grids[case, 2]
        )
        row, column = np.divmod(place, self.grids[case, 2])
        found = (case, position, row * self.stride, column * self.stride)
        return tuple(values.astype(np.int32) for values in found)  # type: ignore[return-value]


def index_patches(
    cases: Sequence[CachedCase], *, size: int, stride: int, label_rule: str
) -> PatchIndex:
    """Return the patches of every slice of every case.

    Only the labels of slices with foreground are read, one slice at a time. The classes of a case
    are kept in the cache.

    Args:
        cases: the scans; none gives an empty index.
        size: see `patch_classes`.
        stride: see `patch_classes`.
        label_rule: see `patch_classes`.

    Raises:
        InputError: a value cannot be used, or a patch is larger than the slices of a case.
    """
    for name, value in (("size", size), ("stride", stride), ("label_rule", label_rule)):
        schema.check_value(f"data.patches.{name}", value)
    for case in cases:
        if size > min(case.shape[1:]):
            raise InputError(
                f"data.patches.size {size} is larger than the slices of case {case.id} "
                f"({case.shape[1]} x {case.shape[2]} pixels); lower it, or leave the case out"
            )
    grids = np.array(
        [
            (case.shape[0], *(len(patch_starts(n, size, stride)) for n in case.shape[1:]))
            for case in cases
        ],
        np.int64,
    ).reshape(-1, 3)
    offsets = np.concatenate([[0], np.cumsum(grids.prod(axis=1))])
    if offsets[-1] > MOST_PATCHES:
        raise InputError(
            f"data.patches.stride {stride} makes {offsets[-1]} patches, more than {MOST_PATCHES}; "
            "raise it"
        )
    classes = np.zeros(offsets[-1], np.uint8)
    for case, grid, start, stop in zip(cases, grids, offsets, offsets[1:], strict=False):
        name = f"patches-{size}-{stride}-{label_rule}-1"
        own = kept(case, name, partial(_classes, case, tuple(grid), size, stride, label_rule))
        classes[start:stop] = own.ravel()
        if not own.any():
            _log.warning(
                "case %s: none of its %d patches is vertebra under data.patches.label_rule=%s and "
                "data.patches.size=%d (%d labelled pixels); all of them are background",
                case.id,
                own.size,
                label_rule,
                size,
                case.foreground_counts.sum(),
            )
    return PatchIndex(cases, size, stride, label_rule, grids, offsets, classes)


def _classes(
    case: CachedCase, grid: tuple[int, int, int], size: int, stride: int, rule: str
) -> np.ndarray:
    """Return the classes of the patches of a case, `grid` of uint8."""
    classes, label = np.zeros(grid, np.uint8), case.label
    for position in np.flatnonzero(case.foreground_counts):
        classes[position] = patch_classes(label[position], size, stride, rule)
    return classes


class TrainingPatches:
    """The patches that train, in their order: a pure function of seed and epoch.

    Every epoch has all vertebra patches and the same number of background patches, in a new random
    order.
    """

    def __init__(
        self,
        index: PatchIndex,
        *,
        rus: str,
        ratio: float,
        seed: int,
        held_out_share: float = 0.0,
        split_seed: int = 0,
    ) -> None:
        """Set up; only the held-out patches are drawn here.

        Args:
            index: the patches.
            rus: `"once"`: the background patches are drawn once; `"epoch"`: anew for each epoch;
                `"none"`: all of them are used.
            ratio: background patches per vertebra patch; all are used if there are fewer. With
                `"none"` only `balanced` reads it.
            seed: of all draws but that of the held-out patches, not negative.
            held_out_share: this share of the patches that the under-sampling leaves is drawn at
                random and never trained on (`held_out`).
            split_seed: of the draw of the held-out patches, not negative.

        Raises:
            InputError: a value cannot be used, or all patches belong to one class.
        """
        schema.check_value("data.patches.rus", rus)
        schema.check_value("data.patches.rus_ratio", ratio)
        if not 0 <= held_out_share < 1:
            raise InputError(f"data.val_fraction {held_out_share} must lie in [0, 1)")
        for name, number in (("seed", seed), ("split_seed", split_seed)):
            if number < 0:
                raise InputError(f"{name} {number} must not be negative")
        _check_classes(index)
        self._index, self._rus, self._ratio, self._seed = index, rus, ratio, seed
        self._orders: dict[int, np.ndarray] = {}
        self.held_out = np.zeros(0, np.int32)
        self.vertebra_count = index.vertebra_count
        rest = len(index) - self.vertebra_count
        self.background_count = rest if rus == "none" else self._balancing(rest)
        if held_out_share:
            self._hold_out(held_out_share, split_seed)

    def __len__(self) -> int:
        """Number of patches of an epoch."""
        return self.vertebra_count + self.background_count

    @property
    def balanced_count(self) -> int:
        """Number of patches of `balanced`."""
        return self.vertebra_count + self._balanced_background()

    def order(self, epoch: int) -> np.ndarray:
        """Return the numbers of the patches of an epoch in their order, (len,) integers."""
        order = self._orders.get(epoch)
        if order is None:
            # Threads that arrive together make the same order twice, and that is all.
            order = self._shuffled(self.background_count, epoch)
            orders = self._orders | {epoch: order}
            # Reading ahead spans two epochs, or more where an epoch is shorter than a batch.
            kept = list(orders)[-(2 + 4096 // len(order)) :]
            self._orders = {number: orders[number] for number in kept}
        return order

    def at(self, places: np.ndarray) -> np.ndarray:
        """Return the patches at `places` (b,) of the endless sequence of epochs, (b,) integers."""
        epochs, within = np.divmod(places, len(self))
        numbers = np.empty(len(places), np.int32)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            numbers[mine] = self.order(int(epoch))[within[mine]]
        return numbers

    def balanced(self, limit: int) -> np.ndarray:
        """Return at most `limit` patches of the first epoch in random order.

        With `rus="none"` they come from the selection that `"once"` would train on.
        """
        if self._rus != "none":
            return self.order(0)[:limit]
        return self._shuffled(self._balanced_background(), 0)[:limit]

    def _balancing(self, available: int) -> int:
        """Return how many of the `available` background patches RUS leaves."""
        return max(1, round(min(available, self._ratio * self.vertebra_count)))

    def _balanced_background(self) -> int:
        if self._rus != "none":
            return self.background_count
        return self._balancing(self.background_count)

    def _hold_out(self, share: float, seed: int) -> None:
        # Given the held-out part of a draw, the rest is a uniform draw from the other patches. So
        # for each kind of RUS the same code draws training patches from those not held out.
        chosen = self._shuffled(self.background_count, 0, "pool", seed)
        held = np.sort(chosen[: round(share * len(chosen))])
        vertebra = int(np.count_nonzero(self._index.classes[held]))
        self.vertebra_count -= vertebra
        self.background_count -= len(held) - vertebra
        self.held_out = held
        if not self.vertebra_count or not self.background_count:
            raise InputError(
                f"data.val_fraction {share} of {len(chosen)} patches leaves patches of one class "
                "to train on; lower it"
            )

    def _shuffled(
        self, background: int, epoch: int, purpose: str = "", seed: int | None = None
    ) -> np.ndarray:
        """Return all vertebra and `background` other patches not held out, in random order."""
        seed = self._seed if seed is None else seed
        draw = _rng(seed, purpose + "rus", epoch if self._rus == "epoch" else 0)
        chosen = np.concatenate(list(self._choose(background, draw)))
        _rng(seed, purpose + "order", epoch).shuffle(chosen)
        return chosen

    def _choose(self, wanted: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield for each case its vertebra patches and its part of a draw of `wanted` others."""
        index, held = self._index, self.held_out
        rest = len(index) - index.vertebra_count
        rest -= int(np.count_nonzero(index.classes[held] == BACKGROUND))
        for start, stop in zip(index.offsets, index.offsets[1:], strict=False):
            classes = index.classes[start:stop]
            free = np.ones(len(classes), bool)
            free[held[np.searchsorted(held, start) : np.searchsorted(held, stop)] - start] = False
            vertebra = np.flatnonzero(free & (classes == VERTEBRA))
            background = np.flatnonzero(free & (classes == BACKGROUND))
            # The parts of a uniform draw without replacement are hypergeometric; drawing case by
            # case needs memory for one case only.
            rest -= len(background)
            part = int(rng.hypergeometric(len(background), rest, wanted))
            wanted -= part
            if part < len(background):
                background = rng.choice(background, part, replace=False, shuffle=False)
            yield (np.concatenate([vertebra, background]) + start).astype(np.int32)


def _rng(seed: int, purpose: str, number: int) -> np.random.Generator:
    return np.random.default_rng((seed, *purpose.encode(), number))


def gather(index: PatchIndex, numbers: np.ndarray, margin: int = 0) -> dict[str, np.ndarray]:
    """Return patches with `margin` pixels around them, read from the cached slices.

    Only the pixels of these windows are read. Outside a slice lies the `fill_hu` of the
    preprocessing, with label 0.

    Args:
        index: the patches.
        numbers: (b,) numbers of patches.
        margin: pixels on each side.

    Returns:
        The fields of a batch of `PatchFeed` except `"position"`, for b patches of weight 1.
    """
    case, position, row, column = index.locate(numbers)
    side = index.size + 2 * margin
    image = np.empty((len(numbers), side, side), np.int16)
    label = np.zeros((len(numbers), side, side), np.uint8)
    # Plain arrays: slicing a `np.memmap` makes an object, which takes longer than the copy.
    scans = {i: index.cases[i] for i in np.unique(case).tolist()}
    slices = {i: (np.asarray(scan.image), np.asarray(scan.label)) for i, scan in scans.items()}
    if margin:
        image[:] = np.array([scans[i].settings.fill_hu for i in case.tolist()])[:, None, None]
    places = zip(case.tolist(), position.tolist(), row.tolist(), column.tolist(), strict=True)
    for k, (i, n, first_row, first_column) in enumerate(places):
        images, labels = slices[i]
        top, left = first_row - margin, first_column - margin
        rows = slice(max(0, top), min(top + side, images.shape[1]))
        columns = slice(max(0, left), min(left + side, images.shape[2]))
        inside = (
            k,
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )
        image[inside] = images[n, rows, columns]
        label[inside] = labels[n, rows, columns]
    return {
        "image": image,
        "label": label,
        "stats": np.stack([scans[i].stats for i in case.tolist()]),
        "case": case,
        "index": position,
        "weight": np.ones(len(numbers), np.float32),
        "row": row,
        "column": column,
    }


def _check_classes(index: PatchIndex) -> None:
    if not len(index):
        raise InputError(
            "no slices to read: the split holds no case; check data.root and the split"
        )
    how = f"data.patches.label_rule={index.label_rule} and data.patches.size={index.size}"
    if not index.vertebra_count:
        raise InputError(
            f"none of the {len(index)} training patches is vertebra under {how}: random "
            "under-sampling has nothing to balance; choose a smaller data.patches.size, "
            "data.patches.label_rule=centre, or other scans"
        )
    if index.vertebra_count == len(index):
        raise InputError(
            f"all {len(index)} training patches are vertebra under {how}: there is no background "
            "to learn; choose a smaller data.patches.stride, or scans that show more than the spine"
        )
