"""Validation: Dice of each case over all its samples, and pictures of some slices."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from spinejax import overlay
from spinejax.data.cache import CachedCase
from spinejax.data.feeds import Batch, Feed
from spinejax.training import parallel
from spinejax.training.signals import Stop
from spinejax.training.step import accuracy, pooled_dice


class Evaluation(NamedTuple):
    """Result of an evaluation of one network, or of k members of a population.

    loss: () or (k,) float64, mean over the batches, weighted by their samples.
    dice: () or (k,) float64, mean over the cases. The Dice of a case is pooled over all its
        samples: over the pixels of all slices, or over all patches (then it is their F-score). It
        is 1 for a case with neither labels nor predictions; cases without samples are left out.
    accuracy: () or (k,) float64, share of correct pixels, voxels or patches.
    cases: by case id, (4,) or (k, 4) float64 true positives, false positives, false negatives, true
        negatives.
    pictures: (h, w, 3) uint8 by name: slices with the outlines of prediction and reference; empty
        for patches, cubes and populations.
    """

    loss: Any
    dice: Any
    accuracy: Any
    cases: dict[str, np.ndarray]
    pictures: dict[str, np.ndarray]


def pick_slices(cached: Sequence[CachedCase], count: int) -> dict[tuple[int, int], str]:
    """Return {(case, slice): name} of at most `count` slices with the most foreground, one a case.

    Cases are taken evenly over the list, so that every evaluation shows the same ones.
    """
    chosen = np.unique(np.linspace(0, len(cached) - 1, min(count, len(cached))).round().astype(int))
    return {
        (int(c), s): f"{cached[c].id}/slice {s}"
        for c in chosen
        for s in [int(np.argmax(cached[c].foreground_counts))]
    }


class _Pictures:
    """Pictures of the wanted slices, drawn from the batches that hold them."""

    def __init__(self, cached: Sequence[CachedCase], count: int) -> None:
        self._cached = cached
        self._wanted = pick_slices(cached, count) if count else {}
        self._found: dict[str, tuple[int, np.ndarray]] = {}

    def add(self, batch: Batch, masks: Callable[[], np.ndarray]) -> None:
        """Draw the wanted slices of a batch; `masks` fetches the predictions."""
        if not self._wanted:
            return
        keys = zip(batch["case"].tolist(), batch["index"].tolist(), strict=True)
        rows = [(i, key) for i, key in enumerate(keys) if key in self._wanted]
        rows = [(i, key) for i, key in rows if batch["weight"][i] > 0]
        mask = masks() if rows else np.zeros(0)
        if mask.ndim != 3:  # patches and cubes have no pictures
            return
        for i, key in rows:
            name, label = self._wanted[key], batch["label"][i] > 0
            # A slice may be cut into several windows: the one with the most foreground is shown.
            amount = int(label.sum())
            if name not in self._found or amount > self._found[name][0]:
                plane = self._cached[0].settings.plane
                image = batch["image"][i]
                if image.ndim == 3:  # between its neighbours
                    image = image[..., image.shape[-1] // 2]
                picture = _picture(image, mask[i], label, plane=plane)
                self._found[name] = amount, picture

    def drawn(self) -> dict[str, np.ndarray]:
        """Return the pictures of all processes by name; all of them must call this."""
        if not self._wanted:
            return {}
        found: dict[str, tuple[int, np.ndarray]] = {}
        for share in parallel.from_all(lambda: self._found):
            for name, one in share.items():
                if name not in found or one[0] > found[name][0]:
                    found[name] = one
        return {name: found[name][1] for name in self._wanted.values() if name in found}


def evaluate(
    score: Callable[..., Any],
    mapped: parallel.Parallel,
    variables: Mapping[str, Any],
    feed: Feed,
    *,
    pictures: int = 0,
    stop: Stop,
) -> Evaluation | None:
    """Evaluate all of `feed.val`; None if a lone process was asked to stop.

    Args:
        score: the mapped step of `step.make_eval_step`, or of `search.make_eval_step` for a
            population.
        mapped: the devices.
        variables: replicated {"params", "batch_stats"}; of a population with a leading axis k.
        feed: with at least one validation case.
        pictures: how many to draw.
        stop: asked at every batch.
    """
    cached = feed.val_cases
    sums: Any = 0.0
    loss: Any = 0.0
    weights = 0.0
    drawn = _Pictures(cached, pictures)

    def collect(batch: Batch, results: dict[str, jax.Array], mask: jax.Array) -> None:
        nonlocal sums, loss, weights
        host = jax.device_get(results)
        counts = host["sums"].astype(np.float64)
        part = np.zeros((len(cached), *counts.shape[1:]))
        np.add.at(part, host["case"], counts)
        sums = sums + part
        weight = float(host["weight"].sum())
        loss = loss + host["loss"].astype(np.float64) * weight
        weights += weight
        drawn.add(batch, lambda: mapped.local_rows(mask))

    batches = feed.val(
        process_index=parallel.process_index(), process_count=parallel.process_count()
    )
    waiting = None
    try:
        for batch in batches:
            if stop and parallel.process_count() == 1:
                return None
            # The results of a batch are fetched while the device works on the next one.
            results, mask = score(variables, mapped.put(batch))
            if waiting is not None:
                collect(*waiting)
            waiting = batch, results, mask
        if waiting is not None:
            collect(*waiting)
    finally:
        batches.close()
    # If patches are split instead of scans, a scan may have no validation patches.
    sampled = sums.reshape(len(cached), -1).sum(1) > 0
    return Evaluation(
        loss=loss / max(weights, 1.0),
        dice=pooled_dice(sums)[sampled].mean(0),
        accuracy=accuracy(sums.sum(0)),
        cases={case.id: counts for case, counts in zip(cached, sums, strict=True)},
        pictures=drawn.drawn(),
    )


def _picture(
    image_hu: np.ndarray, mask: np.ndarray, reference: np.ndarray, *, plane: str
) -> np.ndarray:
    """Draw a slice in the radiological convention: superior, in axial ones anterior, on top."""
    picture = overlay.overlay(image_hu, mask, reference).swapaxes(0, 1)
    # The second axis of a slice points to superior, or in axial slices to posterior.
    return np.ascontiguousarray(picture if plane == "axial" else picture[::-1])
