"""Validation: Dice of each case over all its samples, and pictures of some slices."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from spinejax import overlay
from spinejax.data import feeds
from spinejax.data.cache import CachedCase
from spinejax.train import parallel
from spinejax.train.signals import Stop
from spinejax.train.step import accuracy, pooled_dice


class Evaluation(NamedTuple):
    """Result of an evaluation.

    loss: mean over the batches of the loss of each, weighted by the samples in it.
    dice: mean over the cases that have samples, each case's Dice pooled over all pixels of all its
        slices (of patches: over all its patches, which is their F-score); 1 for a case with neither
        labels nor predictions.
    accuracy: share of all pixels, or patches, that are right.
    cases: by case id, (4,) float64 true positives, false positives, false negatives, true
        negatives.
    pictures: (h, w, 3) uint8 by name, of slices with the outlines of prediction and reference;
        none of patches and cubes.
    """

    loss: float
    dice: float
    accuracy: float
    cases: dict[str, np.ndarray]
    pictures: dict[str, np.ndarray]


def pick_slices(cached: Sequence[CachedCase], count: int) -> dict[tuple[int, int], str]:
    """Return {(case, slice): name} of at most `count` slices with the most foreground, one a case.

    Cases are taken evenly over the list, hence the same ones at every evaluation.
    """
    chosen = np.unique(np.linspace(0, len(cached) - 1, min(count, len(cached))).round().astype(int))
    return {
        (int(c), s): f"{cached[c].id}/slice {s}"
        for c in chosen
        for s in [int(np.argmax(cached[c].foreground_counts))]
    }


def evaluate(
    mapped_step: Callable[..., Any],
    mapped: parallel.Parallel,
    variables: dict[str, Any],
    feed: feeds.Feed,
    *,
    pictures: int,
    stop: Stop,
) -> Evaluation | None:
    """Evaluate all of `feed.val`; None where a lone process was asked to stop meanwhile.

    Args:
        mapped_step: what `step.make_eval_step` gives, mapped.
        mapped: how it is mapped.
        variables: replicated {"params", "batch_stats"}.
        feed: with at least one validation case.
        pictures: how many to make, of slices that this process evaluates itself.
        stop: asked at every batch.
    """
    cached = feed.val_cases
    sums = np.zeros((len(cached), 4))
    weighted_loss, weights = 0.0, 0.0
    wanted = pick_slices(cached, pictures) if pictures else {}
    found: dict[str, tuple[int, np.ndarray]] = {}

    def collect(batch: feeds.Batch, results: dict[str, jax.Array], mask: jax.Array) -> None:
        nonlocal weighted_loss, weights
        host = jax.device_get(results)
        np.add.at(sums, host["case"], host["sums"].astype(np.float64))
        weight = float(host["weight"].sum())
        weighted_loss += float(host["loss"]) * weight
        weights += weight
        rows = [
            (i, wanted[key])
            for i, key in enumerate(
                zip(batch["case"].tolist(), batch["slice"].tolist(), strict=True)
            )
            if key in wanted and batch["weight"][i] > 0
        ]
        masks = mapped.local_rows(mask) if rows else None
        if masks is None or masks.ndim != 3:
            return
        for i, name in rows:
            # A slice may come in several windows: the one with the most foreground is shown.
            amount = int((batch["label"][i] > 0).sum())
            if name not in found or amount > found[name][0]:
                found[name] = (
                    amount,
                    _picture(
                        batch["image"][i],
                        masks[i],
                        batch["label"][i] > 0,
                        plane=cached[0].settings.plane,
                    ),
                )

    batches = feed.val(
        process_index=parallel.process_index(), process_count=parallel.process_count()
    )
    waiting = None
    try:
        for batch in batches:
            if stop and parallel.process_count() == 1:
                return None
            # The results of a batch are fetched while the device works on the next.
            results, mask = mapped_step(variables, mapped.put(batch))
            if waiting is not None:
                collect(*waiting)
            waiting = batch, results, mask
        if waiting is not None:
            collect(*waiting)
    finally:
        batches.close()
    dice = pooled_dice(sums)
    # Where patches are split, not scans, a scan may have none that validates.
    sampled = sums.sum(1) > 0
    return Evaluation(
        loss=weighted_loss / max(weights, 1.0),
        dice=float(dice[sampled].mean()),
        accuracy=float(accuracy(sums.sum(0))),
        cases={case.id: counts for case, counts in zip(cached, sums, strict=True)},
        pictures={name: found[name][1] for name in wanted.values() if name in found},
    )


def _picture(
    image_hu: np.ndarray, mask: np.ndarray, reference: np.ndarray, *, plane: str
) -> np.ndarray:
    """Draw a slice as radiologists hang it: superior, or anterior in axial slices, on top."""
    picture = overlay.overlay(image_hu, mask, reference).swapaxes(0, 1)
    # The second axis of a slice grows to superior, in an axial one to posterior.
    return np.ascontiguousarray(picture if plane == "axial" else picture[::-1])
