"""Batches of a stream of phantoms: training batches name places, and the step draws them there.

From a config to the phantoms that a training step draws for itself.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from spinejax.data import preprocess
from spinejax.data.cache import CachedCase
from spinejax.data.feeds import Batch, Feed, TrainingSource
from spinejax.phantom import samples

ID = "phantom stream"


@dataclass(frozen=True)
class Streamed:
    """What stands for a scan in messages."""

    id: str
    spacing_mm: tuple[float, float]


@dataclass(frozen=True, eq=False)
class StreamFeed:
    """Where to draw from, and whole scans that validate.

    Training batches hold no images: only `"position"`, `"case"` (0), `"weight"` (1) and `"index"`,
    the number of the sample since the beginning. Processes take runs of positions in order of their
    index, so that neighbours can be cut from one slice.

    Attributes:
        scans: feed of the validation scans; None if there are none.
        batch_size: samples over all processes.
        per_epoch: batches that are called an epoch.
        spacing_mm: of the pixels.
    """

    scans: Feed | None
    batch_size: int
    per_epoch: int
    spacing_mm: tuple[float, float]

    @property
    def train_cases(self) -> Sequence[TrainingSource]:
        """One entry that stands for all phantoms."""
        return [Streamed(ID, self.spacing_mm)]

    @property
    def val_cases(self) -> Sequence[Any]:
        """Scans that validate."""
        return self.scans.val_cases if self.scans else []

    def train(
        self, *, start_step: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Generator[Batch, None, None]:
        """Return the places of the batches from `start_step` on."""
        share = self.batch_size // process_count
        position = np.arange(process_index * share, (process_index + 1) * share, dtype=np.int32)
        step = start_step
        while True:
            number = step * self.batch_size + position.astype(np.int64)
            yield {
                "position": position.copy(),
                "case": np.zeros(share, np.int32),
                "index": (number % 2**31).astype(np.int32),
                "weight": np.ones(share, np.float32),
            }
            step += 1

    def val(
        self, *, process_index: int = 0, process_count: int = 1
    ) -> Generator[Batch, None, None]:
        """Return every sample of the validation scans once."""
        if self.scans:
            yield from self.scans.val(process_index=process_index, process_count=process_count)

    def record(self) -> dict[str, dict[str, Any]]:
        """Return nothing: a stream has no end to count."""
        return {}


SOURCE = "phantom_stream"

SPACINGS_MM = (0.25, 5.0)
"""Of pixels that are not resampled: the limits of `scanner.protocol`."""


class Stream(NamedTuple):
    """Training samples drawn on the device.

    draw: (key of the batch, positions (b,)) -> the fields "image", "label" and "stats" of
        `pipeline.Batch`.
    group: positions are taken in whole groups of so many neighbours.
    """

    draw: Callable[[jax.Array, jax.Array], dict[str, jax.Array]]
    group: int


def sampling(config: ConfigDict, size: tuple[int, int]) -> samples.Sampling:
    """Return how slices are drawn so that they look like preprocessed ones of `size` pixels."""
    how = preprocess.from_config(config.data)
    return samples.Sampling(
        plane=how.plane,
        size=size,
        mode=how.mode,
        spacing_mm=how.spacing_mm,
        smoothing_mm=how.smoothing_sigma_mm if how.intensity == "clamp" else 0.0,
        clamp_hu=how.clamp_hu,
        window=how.intensity == "op_window",
        fill_hu=how.fill_hu,
        spine_free_fraction=config.data.get("spine_free_fraction", 0.0),  # cubes have none
        distractors=config.data.phantom.distractors,
        acquisition=config.data.phantom.acquisition,
        label_cut=config.data.phantom.label_cut,
        region=config.data.phantom.region,
        extents_mm=(config.data.phantom.min_extent_mm, config.data.phantom.max_extent_mm),
        rates=tuple(sorted(config.data.phantom.rates.items())),
    )


def of_slices(config: ConfigDict) -> Stream | None:
    """Return the stream of slices of `data.size`; None where training reads scans."""
    if config.data.source != SOURCE:
        return None
    one = partial(samples.slice_sample, how=sampling(config, tuple(config.data.size)))
    return Stream(partial(samples.batch_of, one), 1)


def of_patches(config: ConfigDict, side: int, margin: int) -> Stream | None:
    """Return the stream of patches; None where training reads scans."""
    if config.data.source != SOURCE:
        return None
    group = samples.PATCHES_PER_SLICE
    one = partial(
        samples.patch_samples,
        count=group,
        side=side,
        margin=margin,
        how=sampling(config, tuple(config.data.size)),
    )
    return Stream(partial(samples.batch_of, one, group=group), group)


def of_cubes(config: ConfigDict, size: tuple[int, int, int]) -> Stream | None:
    """Return the stream of cubes of `size` voxels; None where training reads scans."""
    if config.data.source != SOURCE:
        return None
    one = partial(
        samples.cube_sample,
        size=size,
        spacing_mm=config.data.preprocess.spacing_mm,
        how=sampling(config, (size[0], size[1])),
    )
    return Stream(partial(samples.batch_of, one), 1)


def feed(
    config: ConfigDict,
    split: Mapping[str, Sequence[CachedCase]],
    make: Callable[[Mapping[str, Sequence[CachedCase]]], Feed],
) -> Feed:
    """Return the feed that `make` makes of scans; of a stream, one whose scans only validate."""
    if config.data.source != SOURCE:
        return make(split)
    val = split["val"]
    how = config.data.preprocess
    resampled = (how.spacing_mm, how.spacing_mm)
    return StreamFeed(
        # A feed of scans wants some to train on; nothing is read of them.
        make({"train": val, "val": val}) if val else None,
        batch_size=config.train.batch_size,
        per_epoch=config.data.phantom.epoch_batches,
        spacing_mm=resampled if how.mode in ("resample", "isotropic") else SPACINGS_MM,
    )
