"""Counts of agreement, and the ratios of them that papers on classification report.

All ratios are computed from `Counts` of true and false positives and negatives. The counted
elements are voxels of a scan, pixels of a slice, or patches of a patch classifier. Counts of
several scans can be added up before a ratio is formed.

One rule covers empty masks: **a ratio 0/0 is 1 if prediction and reference agree everywhere, and 0
otherwise.** Two empty masks therefore score 1. An empty prediction of a reference that is not empty
has precision 0. Every ratio is thus defined for every case.

`patch_scores` scores a patch classifier case by case (paper B, section III.B.1, table 2 and figure
13). A patch is right if its predicted class is that of its label. Scores of pixels differ
(`spinejax.scoring`): the recall that table 2 implies and the sensitivity of table 3 differ by up to
15 points.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spinejax.metrics.aggregate import over_cases


@dataclass(frozen=True)
class Counts:
    """Numbers of true and false positives and negatives among voxels, pixels or patches."""

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: "Counts") -> "Counts":
        """Return the counts of both sets of elements together."""
        return Counts(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn
        )

    @property
    def total(self) -> int:
        """The number of all elements."""
        return self.tp + self.fp + self.fn + self.tn


def same_shape(prediction: np.ndarray, reference: np.ndarray) -> None:
    """Raise ValueError unless both arrays have the same shape with at least one element."""
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction has shape {prediction.shape}, reference {reference.shape}: they must agree"
        )
    if prediction.size == 0:
        raise ValueError(f"masks of shape {prediction.shape} have no elements to compare")


def slabs(shape: tuple[int, ...], elements: int = 1 << 24) -> Iterator[tuple[slice, ...]]:
    """Yield slabs of a grid along its last axis, each of about `elements` elements."""
    if not shape:
        yield ()
        return
    layer = max(1, int(np.prod(shape[:-1])))
    step = max(1, elements // layer)
    for start in range(0, shape[-1], step):
        yield (slice(None),) * (len(shape) - 1) + (slice(start, start + step),)


def count(prediction: np.ndarray, reference: np.ndarray) -> Counts:
    """Count the agreement of two masks, slab by slab.

    Args:
        prediction: bool or number, any shape; foreground is everything above 0.
        reference: the same.

    Returns:
        The counts.

    Raises:
        ValueError: the shapes differ or have no elements.
    """
    same_shape(prediction, reference)
    tp = predicted = positive = 0
    for slab in slabs(prediction.shape):
        found, true = prediction[slab] > 0, reference[slab] > 0
        predicted += int(np.count_nonzero(found))
        positive += int(np.count_nonzero(true))
        tp += int(np.count_nonzero(found & true))
    fp, fn = predicted - tp, positive - tp
    return Counts(tp=tp, fp=fp, fn=fn, tn=prediction.size - tp - fp - fn)


def pooled(counts: Iterable[Counts]) -> Counts:
    """Return the sum of counts, as if all cases were one."""
    return sum(counts, Counts(0, 0, 0, 0))


def ratio(numerator: int, denominator: int, counts: Counts) -> float:
    """Return `numerator / denominator`, with the module's rule for 0/0."""
    if denominator == 0:
        return 1.0 if counts.fp == 0 and counts.fn == 0 else 0.0
    return numerator / denominator


def precision(counts: Counts) -> float:
    """Return TP / (TP + FP), the share of the prediction that is true; in [0, 1].

    Paper A, eq. 5; paper B, eq. 2. Both masks empty: 1. Only the prediction empty: 0, the usual
    convention, which keeps the case in the mean. Only the reference empty: 0.
    """
    return ratio(counts.tp, counts.tp + counts.fp, counts)


def recall(counts: Counts) -> float:
    """Return TP / (TP + FN), the share of the reference that was found; in [0, 1].

    Paper A, eq. 6; paper B's sensitivity (SEN). Both masks empty: 1. One of them empty: 0.
    """
    return ratio(counts.tp, counts.tp + counts.fn, counts)


def specificity(counts: Counts) -> float:
    """Return TN / (TN + FP), the share of the background that was predicted so; in [0, 1].

    Paper B, eq. 1. It depends on how much background the image shows. The spine fills a few percent
    of a CT, so specificity is always near 1 there. If the reference is foreground everywhere, it is
    1 for a prediction that is foreground everywhere, else 0.
    """
    return ratio(counts.tn, counts.tn + counts.fp, counts)


def accuracy(counts: Counts) -> float:
    """Return (TP + TN) / all, the share of correct elements; in [0, 1].

    Paper B, eq. 3. Background dominates it as it does specificity. Both masks empty: 1.
    """
    return ratio(counts.tp + counts.tn, counts.total, counts)


def f_score(counts: Counts) -> float:
    """Return 2 TP / (2 TP + FP + FN), in [0, 1]: the F-score of patches (paper B, eq. 4).

    It is Dice under the name used for classifiers. Both masks empty: 1. One of them empty: 0.
    """
    return ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn, counts)


def f1_pre_sen(counts: Counts) -> float:
    """Return 2 PRE SEN / (PRE + SEN), the harmonic mean of precision and recall; in [0, 1].

    Paper B, eq. 5. The paper calls it BF-score, although no boundary enters it. It always equals
    Dice of the same counts. The two columns of the paper differ, so its numbers cannot come from
    the same counts; the true boundary F1 (`boundary.bf_score`) is reported beside it. Both masks
    empty: 1. One of them empty, or no overlap: 0.
    """
    found, sensitivity = precision(counts), recall(counts)
    if found + sensitivity == 0:
        return 0.0
    return 2 * found * sensitivity / (found + sensitivity)


PATCH_METRICS = {
    "precision": precision,
    "specificity": specificity,
    "accuracy": accuracy,
    "f_score": f_score,
    "recall": recall,
}
"""The four metrics of table 2 in its order (eqs. 2, 1, 3, 4), and the recall of its text."""


def patch_scores(
    cases: Mapping[str, Counts],
    *,
    size: int,
    stride: int,
    label_rule: str,
    balanced_training: tuple[Counts, int] | None = None,
) -> dict[str, Any]:
    """Return the scores of a patch classifier on a split, ready for `files.write_json`.

    The counts are the confusion matrices of figure 13: "tp" and "fn" are its row of vertebra, "fp"
    and "tn" its row of background.

    Args:
        cases: case id -> counts of its patches.
        size: side of a patch, pixels.
        stride: pixels from one patch to the next.
        label_rule: how a patch gets its label from its pixels.
        balanced_training: counts of patches of the balanced training data, possibly of a part of
            them, and the number of all of them; None if unknown.

    Returns:
        {"label_rule", "stride", "size", "cases": {id: {"tp", "fp", "fn", "tn", metric: value}},
        "summary": what `aggregate.over_cases` returns, with `pooled` for the sum of all counts,
        "balanced_training": {"tp", "fp", "fn", "tn", "of", "used"} or None}.
    """
    table = {
        name: asdict(counts) | {metric: score(counts) for metric, score in PATCH_METRICS.items()}
        for name, counts in cases.items()
    }
    together = pooled(cases.values())
    summary = over_cases(table, {name: score(together) for name, score in PATCH_METRICS.items()})
    balanced = None
    if balanced_training is not None:
        counts, available = balanced_training
        balanced = asdict(counts) | {"of": available, "used": counts.total}
    return {
        "label_rule": label_rule,
        "stride": stride,
        "size": size,
        "cases": table,
        "summary": summary,
        "balanced_training": balanced,
    }
