"""Batches of a stream of phantoms: training batches name places, and the step draws them there."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spinejax.data.pipeline import Batch, Feed, TrainingSource

ID = "phantom stream"


@dataclass(frozen=True)
class Streamed:
    """What stands for a scan in messages."""

    id: str
    spacing_mm: tuple[float, float]


@dataclass(frozen=True, eq=False)
class StreamFeed:
    """Where to draw from, and whole scans that validate.

    Training batches hold no images: only `"position"`, `"case"` (0), `"weight"` (1) and `"slice"`,
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
                "slice": (number % 2**31).astype(np.int32),
                "weight": np.ones(share, np.float32),
            }
            step += 1

    def val(
        self, *, process_index: int = 0, process_count: int = 1
    ) -> Generator[Batch, None, None]:
        """Return every sample of the validation scans once."""
        if self.scans:
            yield from self.scans.val(process_index=process_index, process_count=process_count)

    def counts(self) -> dict[str, Any]:
        """Return nothing: a stream has no end to count."""
        return {}
