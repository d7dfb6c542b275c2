"""Batches of overlapping patches of cached scans.

An element of Grain is a whole batch here: cutting a patch takes a fraction of the time that Grain
adds to an element.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from spinejax import schema
from spinejax.data.cache import CachedCase
from spinejax.data.feeds import ENDLESS, Batch, ScanFeed, Share
from spinejax.data.patches import PatchIndex, TrainingPatches, gather, index_patches
from spinejax.errors import InputError

MOST_MARGIN = 8
"""Largest margin around a patch, in sides of the patch; memory grows with its square."""


class PatchFeed(ScanFeed):
    """Square patches of side n, with `margin` pixels around training patches.

    Besides the fields of `feeds.Batch`, batches have "row" and "column", (b,) int32: the first
    pixel of the patch, without its margin, in its slice.

    With `split_unit="scan"` patches of the training scans train and all patches of the validation
    scans validate, in their natural proportion of the classes. With `"patch"` the scans of both are
    pooled, RUS is applied, and a random share validates, as paper B seems to have done (895,019
    patches = 716,019 + 179,000, section III). THIS LEAKS: patches overlap, and neighbouring slices
    look alike, so that nearly every validation patch shares pixels with training patches. The
    validation loss then says little about other scans. The option reproduces the paper.
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
        split_seed: int = 0,
        margin: int = 0,
        **reading: Any,
    ) -> None:
        """Find the class of every patch (a pass over the cached labels) and set up.

        Args:
            split: scans of "train" and, if there are any, "val".
            size: side n of a patch in pixels.
            stride: pixels between the first pixels of neighbouring patches.
            label_rule: rule for the two classes (`patches.patch_classes`).
            split_unit: `"scan"` or `"patch"`.
            rus: `"once"`, `"epoch"` or `"none"` (`patches.TrainingPatches`).
            rus_ratio: background patches per vertebra patch.
            val_fraction: share of the pooled patches that validates, for `"patch"`.
            batch_size: patches over all processes.
            seed: of order and under-sampling.
            split_seed: of the split of patches, for `"patch"`.
            margin: pixels around a training patch, for augmentation to draw from; validation
                patches have none.
            **reading: threads, prefetch and workers, see `ScanFeed`.

        Raises:
            InputError: a value cannot be used, there are no training scans, a patch is larger than
                a slice, or all training patches belong to one class.
        """
        schema.check_value("data.patches.split_unit", split_unit)
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
            split_seed=split_seed,
        )
        self._val_index = self._index if pooled else index_patches(val, **grid)
        self._val_numbers = self._patches.held_out if pooled else np.arange(len(self._val_index))
        super().__init__(
            self._index.cases,
            self._val_index.cases if len(self._val_numbers) else [],
            batch_size=batch_size,
            seed=seed,
            **reading,
        )
        self._margin = margin
        self._fields = {**grid, "split_unit": split_unit, "rus": rus, "rus_ratio": rus_ratio}
        if pooled:
            self._fields["split_seed"] = split_seed

    @property
    def epoch_samples(self) -> int:
        """Number of patches that an epoch trains on."""
        return len(self._patches)

    def _training(self, share: Share) -> grain.MapDataset:
        # Epochs follow one another without a gap: a batch may hold the end of one and the beginning
        # of the next.
        return _batches(self._index, self._patches.at, ENDLESS, share, self._margin)

    def _validation(self, share: Share) -> grain.MapDataset:
        numbers = self._val_numbers
        return _batches(self._val_index, numbers.__getitem__, len(numbers), share)

    def balanced(self, limit: int) -> Generator[Batch, None, None]:
        """Return at most `limit` patches of the first epoch's balanced selection, without margin.

        They come in random order, so that a part of them is a fair sample, and are balanced even
        with `rus="none"`. Batches are full; filler has weight 0.
        """
        if limit < 0:
            raise InputError(f"number of balanced patches {limit} must not be negative")
        numbers, share = self._patches.balanced(limit), Share(self._batch_size)
        return self._read(
            _batches(self._index, numbers.__getitem__, len(numbers), share),
            share,
            threads=self._val_threads,
        )

    def counts(self) -> dict[str, Any]:
        """Return the numbers of patches per class, as JSON values.

        Returns:
            `"before"`: in the training scans (in both splits for `split_unit="patch"`) before
            under-sampling; `"after"`: in a training epoch; `"validation"`: in the validation; each
            {"background", "vertebra"}. `"balanced_total"`: patches that `balanced` can give.
        """
        patches, held = self._patches, self._val_index.classes[self._val_numbers]
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

    def record(self) -> dict[str, dict[str, Any]]:
        """Return the fields and counts of the patches, for patches.json."""
        return {"patches.json": {**self._fields, **self.counts()}}


def _batches(
    index: PatchIndex,
    numbers: Callable[[np.ndarray], np.ndarray],
    length: int,
    share: Share,
    margin: int = 0,
) -> grain.MapDataset:
    return grain.MapDataset.source(_Batches(index, numbers, length, share, margin))


@dataclass(frozen=True, repr=False)
class _Batches:
    """One process's share of the batches of a sequence of `length` patches.

    `numbers` gives the patches at places (b,) of the sequence.
    """

    index: PatchIndex
    numbers: Callable[[np.ndarray], np.ndarray]
    length: int
    share: Share
    margin: int

    def __len__(self) -> int:
        return -(-self.length // self.share.batch_size)

    def __getitem__(self, index: int) -> Batch:
        places = index * self.share.batch_size + self.share.positions.astype(np.int64)
        real = places < self.length
        # Filler takes the place of the first patch, so that it has a case and a slice.
        batch = gather(self.index, self.numbers(np.where(real, places, 0)), self.margin)
        if not real.all():
            fill_hu = self.index.cases[batch["case"][~real][0]].settings.fill_hu
            batch["image"][~real], batch["label"][~real] = fill_hu, 0
            batch["weight"][~real] = 0
        return batch
