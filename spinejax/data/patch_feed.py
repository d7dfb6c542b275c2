"""Batches of overlapping patches, by Grain.

As in `pipeline`, training batches are a pure function of (seed, index of the batch), and process
`p` of `n` reads every n-th sample of one global stream, from the p-th. An element of Grain is a
whole batch here: cutting a patch takes a fraction of what Grain adds to an element.
"""

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from spinejax.data import feeds
from spinejax.data.cache import CachedCase
from spinejax.data.patches import PatchIndex, TrainingPatches, gather, index_patches
from spinejax.errors import InputError, check_choice

SPLIT_UNITS = ("scan", "patch")

MOST_MARGIN = 8
"""Most pixels that are cut around a patch, in sides of it; memory grows with their square."""

Batch = feeds.Batch
"""One process's share of a batch: the fields of `pipeline.Batch`, and

* `"image"`, `"label"`: (b, W, W), W = patch + 2 * margin
* `"row"`, `"column"`: (b,) int32 first pixel of the patch, without its margin, in its slice
"""


class PatchFeed:
    """Batches of patches for training and validation.

    With `split_unit="scan"` patches of the training scans train and all patches of the validation
    scans validate, in their natural proportion of the classes. With `"patch"` the scans of both are
    pooled, RUS is applied, and a random share validates, as paper B seems to have done (895,019
    patches = 716,019 + 179,000, section III). THIS LEAKS: patches overlap, and neighbouring slices
    look alike, so that nearly every validation patch shares pixels with patches trained on. The
    validation loss then says little about other scans; it is there to reproduce the paper.

    Attributes:
        train_cases: what `"case"` of training batches counts.
        val_cases: what `"case"` of validation batches counts; empty if nothing validates.
        per_epoch: training batches that show every selected patch once, rounded up.
    """

    def __init__(
        self,
        split: Mapping[str, Sequence[CachedCase]],
        *,
        size: int,
        stride: int,
        label_rule: str,
        split_unit: str,
        rus: str,
        rus_ratio: float,
        val_fraction: float,
        batch_size: int,
        seed: int,
        margin: int = 0,
        threads: int = 2,
        prefetch: int = 4,
    ) -> None:
        """Find the class of every patch (a pass over the cached labels) and set up.

        Args:
            split: scans of "train" and, if there are any, "val".
            size: side n of a patch in pixels.
            stride: pixels between the first pixels of neighbouring patches.
            label_rule: `"majority"` or `"centre"` (`patches.patch_classes`).
            split_unit: `"scan"` or `"patch"`.
            rus: `"once"`, `"epoch"` or `"none"` (`patches.TrainingPatches`).
            rus_ratio: background patches per vertebra patch.
            val_fraction: share of the pooled patches that validates; for `"patch"` only.
            batch_size: patches over all processes.
            seed: of order, under-sampling and the split of patches.
            margin: pixels around a training patch, for augmentation to draw from; validation
                patches have none.
            threads: that read and cut; 0 reads in the caller.
            prefetch: batches kept ready by the threads; 0 also reads in the caller.

        Raises:
            InputError: a value that cannot be used, no training scans, a patch larger than a
                slice, or training patches of one class only.
        """
        check_choice("data.patches.split_unit", split_unit, SPLIT_UNITS)
        feeds.check_reading(batch_size, 0, 1, threads, prefetch)
        if margin < 0:
            raise InputError(f"margin {margin} must not be negative")
        if margin > MOST_MARGIN * size:
            raise InputError(
                f"augmentation asks for {margin} pixels around patches of {size}, more than "
                f"{MOST_MARGIN} times their side; raise augment.scale or lower "
                "augment.translation_px"
            )
        train, val = list(split.get("train", ())), list(split.get("val", ()))
        pooled = split_unit == "patch" and bool(train)
        grid: dict[str, Any] = {"size": size, "stride": stride, "label_rule": label_rule}
        self._index = index_patches([*train, *val] if pooled else train, **grid)
        self._patches = TrainingPatches(
            self._index,
            rus=rus,
            ratio=rus_ratio,
            seed=seed,
            held_out_share=val_fraction if pooled else 0.0,
        )
        self._val_index = self._index if pooled else index_patches(val, **grid)
        # None: all patches of the index.
        self._val_numbers = self._patches.held_out if pooled else None
        self._batch_size, self._margin = batch_size, margin
        self._threads, self._prefetch = threads, prefetch
        self.train_cases = self._index.cases
        self.val_cases = self._val_index.cases if self._val_length() else []
        self.per_epoch = -(-len(self._patches) // batch_size)

    def train(
        self, *, start_step: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Generator[Batch, None, None]:
        """Return an endless stream of shuffled training batches, this process's share of each.

        Epochs follow one another without a gap: a batch may hold the end of one and the beginning
        of the next.

        Args:
            start_step: batch to begin at.
            process_index: which share; below `process_count`.
            process_count: number of shares; divides the batch size.

        Returns:
            A generator, which `close()` (or its end of life) shuts down with its threads.

        Raises:
            InputError: a value that cannot be used, named.
        """
        if start_step < 0:
            raise InputError(f"start_step {start_step} must not be negative")
        source = _Batches(
            self._index,
            self._patches.at,
            length=sys.maxsize,
            batch_size=self._batch_size,
            process_index=process_index,
            process_count=process_count,
            margin=self._margin,
        )
        return self._iterate(source, start_step)

    def val(
        self, *, process_index: int = 0, process_count: int = 1
    ) -> Generator[Batch, None, None]:
        """Return every validation patch exactly once, in order, without margin.

        Every process gets the same number of batches, all full; filler has weight 0. Arguments,
        result and errors as for `train`.
        """
        numbers = self._val_numbers
        return self._in_order(
            self._val_index,
            (lambda places: places) if numbers is None else numbers.__getitem__,
            self._val_length(),
            process_index,
            process_count,
        )

    def balanced(self, limit: int) -> Generator[Batch, None, None]:
        """Return at most `limit` patches of the first epoch's balanced selection, without margin.

        They come in random order, so that fewer than all are a fair sample; with `rus="none"` they
        are balanced all the same. Batches are full; filler has weight 0.
        """
        if limit < 0:
            raise InputError(f"number of balanced patches {limit} must not be negative")
        numbers = self._patches.balanced(limit)
        return self._in_order(self._index, numbers.__getitem__, len(numbers), 0, 1)

    def counts(self) -> dict[str, Any]:
        """Return the numbers of patches per class, as JSON values.

        Returns:
            `"before"`: in the training scans (of both splits for `split_unit="patch"`) before
            under-sampling; `"after"`: trained on in an epoch; `"validation"`: those that validate;
            each {"background", "vertebra"}. `"balanced_total"`: patches that `balanced` can give.
        """
        patches, index = self._patches, self._val_index
        held = index.classes if self._val_numbers is None else index.classes[self._val_numbers]
        pairs = {
            "before": (len(self._index), self._index.vertebra_count),
            "after": (len(patches), patches.vertebra_count),
            "validation": (len(held), int(np.count_nonzero(held))),
        }
        classes = {
            name: {"background": total - vertebra, "vertebra": vertebra}
            for name, (total, vertebra) in pairs.items()
        }
        return {**classes, "balanced_total": patches.balanced_count}

    def _val_length(self) -> int:
        return len(self._val_index if self._val_numbers is None else self._val_numbers)

    def _in_order(
        self,
        index: PatchIndex,
        numbers: Callable[[np.ndarray], np.ndarray],
        length: int,
        process_index: int,
        process_count: int,
    ) -> Generator[Batch, None, None]:
        source = _Batches(
            index,
            numbers,
            length=length,
            batch_size=self._batch_size,
            process_index=process_index,
            process_count=process_count,
        )
        return self._iterate(source, 0)

    def _iterate(self, source: "_Batches", start: int) -> Generator[Batch, None, None]:
        shares = source.batch_size, source.process_index, source.process_count
        feeds.check_reading(*shares, self._threads, self._prefetch)
        share = grain.MapDataset.source(source)[start:]
        return feeds.iterate(share, *shares, self._threads, self._prefetch)


@dataclass(frozen=True, repr=False)
class _Batches:
    """Random access to one process's share of the batches of a sequence of `length` patches.

    `numbers` gives the patches at places (b,) of the sequence.
    """

    index: PatchIndex
    numbers: Callable[[np.ndarray], np.ndarray]
    length: int
    batch_size: int
    process_index: int
    process_count: int
    margin: int = 0

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        first = index * self.batch_size
        places = np.arange(first + self.process_index, first + self.batch_size, self.process_count)
        real = places < self.length
        # Filler takes the place of the first patch, so that there is a case and a slice to name.
        batch = gather(self.index, self.numbers(np.where(real, places, 0)), self.margin)
        if not real.all():
            fill_hu = self.index.cases[batch["case"][~real][0]].settings.fill_hu
            batch["image"][~real], batch["label"][~real] = fill_hu, 0
            batch["weight"][~real] = 0
        return batch

    def __repr__(self) -> str:
        return f"_Batches(cases={len(self.index.cases)}, patches={self.length})"
