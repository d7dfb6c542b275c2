"""Phantoms that a training draws as the config says.

Batches of the feed hold no images, only the places of samples in the batch. Images are drawn on the
device, in the update or, where several updates share them, before it. On CPUs the host draws the
subjects before (`subjects`).
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
from spinejax.schema import STREAM


@dataclass(frozen=True)
class Streamed:
    """Stands for all phantoms of a stream where messages name a scan."""

    spacing_mm: tuple[float, float]
    id: str = "phantom stream"


@dataclass(frozen=True, eq=False)
class StreamFeed:
    """Places of training samples, and validation scans.

    A training batch holds `"position"`, the sample's place in the batch of all processes, `"case"`
    (0), `"weight"` (1), `"index"`, the sample's number since the beginning, and `"step"`, the
    number of batches before. Processes take runs of positions in order of their index, so that
    neighbours can be cut from one slice.

    Attributes:
        scans: Feed of the validation scans, None without any.
        batch_size: Samples of all processes.
        per_epoch: Batches in an epoch.
        spacing_mm: Sides of the pixels; see `SPACINGS_MM`.
    """

    scans: Feed | None
    batch_size: int
    per_epoch: int
    spacing_mm: tuple[float, float]

    @property
    def train_cases(self) -> Sequence[TrainingSource]:
        """One entry for all phantoms."""
        return [Streamed(self.spacing_mm)]

    @property
    def val_cases(self) -> Sequence[Any]:
        """The scans that validate."""
        return self.scans.val_cases if self.scans else []

    def train(
        self, *, start_step: int = 0, process_index: int = 0, process_count: int = 1
    ) -> Generator[Batch, None, None]:
        """Yield the places of batch after batch, from `start_step` on."""
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
                "step": np.full(share, step, np.int32),
            }
            step += 1

    def val(
        self, *, process_index: int = 0, process_count: int = 1
    ) -> Generator[Batch, None, None]:
        """Yield every sample of the validation scans once."""
        if self.scans:
            yield from self.scans.val(process_index=process_index, process_count=process_count)

    def record(self) -> dict[str, dict[str, Any]]:
        """Return no counts: a stream has no end."""
        return {}


SPACINGS_MM = (0.25, 5.0)
"""Sides of pixels that are not resampled: the limits of `scan_plan.protocol`."""


Drawn = dict[str, jax.Array]


class Stream(NamedTuple):
    """Training samples drawn on the device.

    Attributes:
        draw: (key, positions (b,)) -> "image", "label" and "stats", see `samples.slice_sample`. A
            third argument, the rows that `subjects` returns, saves it from drawing the subjects.
        subjects: (key, positions (b,), a NumPy array) -> rows (b / group, n) of the subjects, see
            `samples.subject_rows`; None if `draw` takes none.
        group: Number of neighbouring positions that are drawn together: `draw` returns
            b / group rows.
        cut: (key, positions (b,), what `draw` returned) -> the samples, b rows; None if `draw`
            returns them.
        updates: Number of updates in a row that cut their samples from the same drawing.
    """

    draw: Callable[..., Drawn]
    subjects: Callable[[jax.Array, np.ndarray], np.ndarray] | None = None
    group: int = 1
    cut: Callable[[jax.Array, jax.Array, Drawn], Drawn] | None = None
    updates: int = 1


def sampling(config: ConfigDict, size: tuple[int, int]) -> samples.Sampling:
    """Return the options with which slices of `size` pixels look like preprocessed ones."""
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
        neighbours=config.data.get("neighbours", 0),  # slices alone have them
        distractors=config.data.phantom.distractors,
        acquisition=config.data.phantom.acquisition,
        label_cut=config.data.phantom.label_cut,
        region=config.data.phantom.region,
        extents_mm=(config.data.phantom.min_extent_mm, config.data.phantom.max_extent_mm),
        rates=tuple(sorted(config.data.phantom.rates.items())),
    )


def of_slices(config: ConfigDict) -> Stream | None:
    """Return the stream of slices of `data.size`; None where training reads scans."""
    if config.data.source != STREAM:
        return None
    how = sampling(config, tuple(config.data.size))
    return _stream(partial(samples.slice_sample, how=how), how)


def _stream(one: Callable[..., Drawn], how: samples.Sampling) -> Stream:
    """Return the stream of the samples that `one` draws, each of another subject."""
    return Stream(partial(samples.batch_of, one), partial(samples.subject_rows, how=how))


def of_patches(config: ConfigDict, side: int, margin: int) -> Stream | None:
    """Return the stream of patches; None where training reads scans."""
    if config.data.source != STREAM:
        return None
    how, group = sampling(config, tuple(config.data.size)), samples.PATCHES_PER_SLICE
    one = partial(samples.slice_sample, how=how)
    patches = partial(
        samples.patches_of, count=group, side=side, margin=margin, fill_hu=how.fill_hu
    )

    def draw(key: jax.Array, positions: jax.Array, *rows: jax.Array) -> Drawn:
        return samples.batch_of(one, key, positions[::group] // group, *rows)

    def subjects(key: jax.Array, positions: np.ndarray) -> np.ndarray:
        return samples.subject_rows(key, positions[::group] // group, how)

    def cut(key: jax.Array, positions: jax.Array, drawn: Drawn) -> Drawn:
        rows = samples.batch_of(patches, key, positions[::group] // group, drawn)
        return {name: x.reshape(-1, *x.shape[2:]) for name, x in rows.items()}

    return Stream(draw, subjects, group, cut, config.data.phantom.updates_per_slice)


def of_cubes(config: ConfigDict, size: tuple[int, int, int]) -> Stream | None:
    """Return the stream of cubes of `size` voxels; None where training reads scans."""
    if config.data.source != STREAM:
        return None
    how = sampling(config, (size[0], size[1]))
    spacing_mm = config.data.preprocess.spacing_mm
    return _stream(partial(samples.cube_sample, size=size, spacing_mm=spacing_mm, how=how), how)


def of_outlines(config: ConfigDict, size: tuple[int, int, int]) -> Stream | None:
    """Return the stream of cubes of one vertebra each; None where training reads scans."""
    if config.data.source != STREAM:
        return None
    how = sampling(config, (size[0], size[1]))
    one = partial(
        samples.outline_sample,
        size=size,
        spacing_mm=config.data.preprocess.spacing_mm,
        shift_mm=tuple(config.data.cube.shift_mm),
        jitter_mm=config.data.cube.jitter_mm,
        how=how,
    )
    return _stream(one, how)


def feed(
    config: ConfigDict,
    split: Mapping[str, Sequence[CachedCase]],
    make: Callable[[Mapping[str, Sequence[CachedCase]]], Feed],
) -> Feed:
    """Return `make(split)`; for a stream, a feed of places whose scans only validate."""
    if config.data.source != STREAM:
        return make(split)
    val = split["val"]
    how = config.data.preprocess
    resampled = (how.spacing_mm, how.spacing_mm)
    return StreamFeed(
        # A feed needs training scans; these are never read.
        make({"train": val, "val": val}) if val else None,
        batch_size=config.train.batch_size,
        per_epoch=config.data.phantom.epoch_batches,
        spacing_mm=resampled if how.mode in ("resample", "isotropic") else SPACINGS_MM,
    )
