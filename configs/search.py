"""The trials of a random search. Nothing here imports jax.

Every trial of a random search has a new value of every hyper-parameter; a grid repeats the values
of hyper-parameters that matter little (Bergstra and Bengio, JMLR 13, 2012). The search goes from
coarse to fine (the "pyramidal approach" of paper B, section IV): each round shrinks the box around
the best trial so far and searches it again.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

BOX = {
    "optim.learning_rate": (1e-4, 1e-1),
    "optim.momentum": (0.5, 0.99),
    "optim.weight_decay": (1e-6, 1e-2),
}
"""Ends of the box. Paper B prints the result of its search (0.01, 0.9, 1e-4, 128), not its box.
This box reaches one to two orders of magnitude to either side."""

BATCH_SIZES = (32, 64, 128, 256)


def random_search(
    seed: int = 0,
    trials: int = 8,
    centre: Mapping[str, Any] | None = None,
    shrink: float = 1.0,
) -> Iterator[dict[str, int | float]]:
    """Yield `trials` random settings of the optimiser and the batch size.

    Learning rate, weight decay and 1 - momentum are uniform in their logarithms. The batch size is
    a power of two from 32 to 256. Numbers have three significant digits.

    Args:
        seed: of the draws; the same arguments give the same trials.
        trials: number of settings, at least 1.
        centre: a trial of an earlier round; None for the middle of the box.
        shrink: side of the box around `centre` as a share of the whole box's side, in logarithms,
            in (0, 1]; the box is cut off at the ends of the whole box.

    Raises:
        ValueError: `trials` or `shrink` is out of range, or `centre` lacks a key.
    """
    if trials < 1:
        raise ValueError(f"trials={trials} must be at least 1")
    if not 0 < shrink <= 1:
        raise ValueError(f"shrink={shrink} must lie above 0 and be at most 1")
    missing = set() if centre is None else {*BOX, "train.batch_size"} - set(centre)
    if missing:
        raise ValueError(f"the centre of the search lacks {', '.join(sorted(missing))}")
    rng = np.random.default_rng(seed)
    for _ in range(trials):
        trial: dict[str, int | float] = {}  # values of fields by dotted key
        for key, ends in BOX.items():
            if key == "optim.momentum":
                middle = None if centre is None else 1 - centre[key]
                trial[key] = _rounded(1 - _draw(rng, 1 - ends[1], 1 - ends[0], middle, shrink))
            else:
                middle = None if centre is None else centre[key]
                trial[key] = _rounded(_draw(rng, *ends, middle, shrink))
        sizes = _near(None if centre is None else centre["train.batch_size"], shrink)
        trial["train.batch_size"] = int(sizes[rng.integers(len(sizes))])
        yield trial


def _draw(
    rng: np.random.Generator, low: float, high: float, middle: float | None, shrink: float
) -> float:
    """Draw from a share `shrink` of [low, high] around `middle`, uniform in the logarithm."""
    at = math.log(math.sqrt(low * high) if middle is None else min(max(middle, low), high))
    low, high = math.log(low), math.log(high)
    half = shrink * (high - low) / 2
    return math.exp(rng.uniform(max(low, at - half), min(high, at + half)))


def _near(middle: int | None, shrink: float) -> list[int]:
    """Return the batch sizes in a share `shrink` of the range around `middle`, or the nearest."""
    logs = [math.log2(size) for size in BATCH_SIZES]
    at = (logs[0] + logs[-1]) / 2 if middle is None else math.log2(middle)
    distance = [abs(value - at) for value in logs]
    reach = max(shrink * (logs[-1] - logs[0]) / 2, min(distance))
    return [size for size, d in zip(BATCH_SIZES, distance, strict=True) if d <= reach + 1e-9]


def _rounded(value: float) -> float:
    """Round to three significant digits."""
    return float(f"{value:.3g}")
