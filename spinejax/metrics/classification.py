"""Counting agreement, and the ratios of it that classification papers report.

Everything here is computed from a `Counts` of true and false positives and negatives, so that it
serves voxels of a scan, pixels of a slice and patches of a patch classifier alike, and so that the
counts of several scans can be added up before a ratio is formed.

One rule covers empty masks: **a ratio 0/0 is 1 where prediction and reference agree everywhere,
and 0 otherwise.** Two empty masks therefore score 1, and an empty prediction of a reference that is
not empty has precision 0.

Scores of a patch classifier, case by case: paper B, section III.B.1, table 2 and figure 13.

Here the elements that `Counts` counts are patches: a patch is right if its predicted class is that
of its label, whatever its pixels. Scores of pixels are another matter (`spinejax.scoring`): the
recall that table 2 implies and the sensitivity of table 3 differ by up to 15 points.

Empty cases follow the one rule of `classification`: a ratio 0/0 is 1 where prediction and
reference agree everywhere and 0 otherwise, so that every score is defined for every case.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Counts:
    """How many elements (voxels, pixels, patches) fall in each cell of the binary table."""

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: "Counts") -> "Counts":
        """Counts of both sets of elements together: the way to pool cases."""
        return Counts(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn
        )

    @property
    def total(self) -> int:
        """All elements."""
        return self.tp + self.fp + self.fn + self.tn


def same_shape(prediction: np.ndarray, reference: np.ndarray) -> None:
    """Raise ValueError unless both arrays have one shape with at least one element."""
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction has shape {prediction.shape}, reference {reference.shape}: they must agree"
        )
    if prediction.size == 0:
        raise ValueError(f"masks of shape {prediction.shape} have no elements to compare")


def slabs(shape: tuple[int, ...], elements: int = 1 << 24) -> Iterator[tuple[slice, ...]]:
    """Cut a grid along its last axis, so that temporaries stay near `elements` elements."""
    if not shape:
        yield ()
        return
    layer = max(1, int(np.prod(shape[:-1])))
    step = max(1, elements // layer)
    for start in range(0, shape[-1], step):
        yield (slice(None),) * (len(shape) - 1) + (slice(start, start + step),)


def count(prediction: np.ndarray, reference: np.ndarray) -> Counts:
    """Count agreement of two masks; foreground is everything above 0.

    Works slab by slab: needs little memory beyond the two arrays.

    Args:
        prediction: bool or number, any shape.
        reference: bool or number, the same shape.

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


def confusion_matrix(
    prediction: np.ndarray, reference: np.ndarray, num_classes: int = 2
) -> np.ndarray:
    """Confusion matrix of class ids (paper B, section "Classification metrics").

    Args:
        prediction: integer or bool, any shape, ids 0 .. num_classes - 1.
        reference: the same shape.
        num_classes: how many classes there are.

    Returns:
        (num_classes, num_classes) int64: rows are the reference's class, columns the predicted one.

    Raises:
        ValueError: shapes differ, or an id lies outside 0 .. num_classes - 1.
    """
    same_shape(prediction, reference)
    matrix = np.zeros(num_classes * num_classes, np.int64)
    for slab in slabs(prediction.shape):
        columns = np.asarray(prediction[slab]).astype(np.int64).ravel()
        rows = np.asarray(reference[slab]).astype(np.int64).ravel()
        for name, ids in (("prediction", columns), ("reference", rows)):
            if ids.min() < 0 or ids.max() >= num_classes:
                raise ValueError(
                    f"{name} has class ids {ids.min()} .. {ids.max()}, but num_classes is "
                    f"{num_classes}"
                )
        matrix += np.bincount(rows * num_classes + columns, minlength=matrix.size)
    return matrix.reshape(num_classes, num_classes)


def counts_of_class(matrix: np.ndarray, class_id: int) -> Counts:
    """One class against all others, from a confusion matrix with the reference in its rows."""
    tp = int(matrix[class_id, class_id])
    fp = int(matrix[:, class_id].sum()) - tp
    fn = int(matrix[class_id].sum()) - tp
    return Counts(tp=tp, fp=fp, fn=fn, tn=int(matrix.sum()) - tp - fp - fn)


def pooled(counts: Iterable[Counts]) -> Counts:
    """Sum of counts, as if all cases were one."""
    return sum(counts, Counts(0, 0, 0, 0))


def ratio(numerator: int, denominator: int, counts: Counts) -> float:
    """`numerator / denominator`, with the module's rule for 0/0."""
    if denominator == 0:
        return 1.0 if counts.fp == 0 and counts.fn == 0 else 0.0
    return numerator / denominator


def precision(counts: Counts) -> float:
    """TP / (TP + FP), the share of what was predicted that is true; in [0, 1].

    Paper A, eq. 5; paper B, eq. 2. Both masks empty: 1. Only the prediction empty: 0 (nothing was
    found; the usual convention, and it keeps such a case from leaving the mean). Only the
    reference empty: 0.
    """
    return ratio(counts.tp, counts.tp + counts.fp, counts)


def recall(counts: Counts) -> float:
    """TP / (TP + FN), the share of the reference that was found; in [0, 1].

    Paper A, eq. 6; paper B's sensitivity (SEN). Both masks empty: 1. One of them empty: 0.
    """
    return ratio(counts.tp, counts.tp + counts.fn, counts)


def specificity(counts: Counts) -> float:
    """TN / (TN + FP), the share of true background that was left as background; in [0, 1].

    Paper B, eq. 1. It depends on how much background the image shows: on a CT, where the spine
    fills a few percent, it is always near 1. Reference all foreground: 1 if so is the prediction,
    else 0. Empty masks need no rule: TN is then not 0.
    """
    return ratio(counts.tn, counts.tn + counts.fp, counts)


def accuracy(counts: Counts) -> float:
    """(TP + TN) / all, the share of elements labelled rightly; in [0, 1].

    Paper B, eq. 3. Like specificity it is dominated by background. Both masks empty: 1.
    """
    return ratio(counts.tp + counts.tn, counts.total, counts)


def f_score(counts: Counts) -> float:
    """2 TP / (2 TP + FP + FN); in [0, 1]: paper B's F-score (eq. 4) of patches.

    The same number as Dice, under the name used for classifiers. Both masks empty: 1. One: 0.
    """
    return ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn, counts)


def f1_pre_sen(counts: Counts) -> float:
    """2 PRE SEN / (PRE + SEN), the harmonic mean of precision and recall; in [0, 1].

    Paper B, eq. 5, which the paper calls BF-score although no boundary enters it. For one set of
    counts it equals Dice identically; the paper's two columns differ, so its figures cannot come
    from the same counts. It is kept beside `bf_score`, the true boundary F1, to make that visible.
    Both masks empty: 1. One of them empty, or no overlap: 0.
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
"""The four of table 2 in its order (eqs. 2, 1, 3, 4), and the recall that the text describes."""


def patch_scores(
    cases: Mapping[str, Counts],
    *,
    size: int,
    stride: int,
    label_rule: str,
    balanced_training: tuple[Counts, int] | None = None,
) -> dict[str, Any]:
    """Collect the scores of a split, ready for `files.write_json`.

    The counts are the confusion matrices of figure 13: "tp" and "fn" are its row of patches that
    are vertebra, "fp" and "tn" that of background.

    Args:
        cases: case id -> counts of its patches.
        size: side of a patch, pixels.
        stride: pixels from one patch to the next.
        label_rule: how a patch gets its label from its pixels.
        balanced_training: counts of patches of the balanced training data, and how many patches
            these data have in all (the counts may be of a part of them); None if unknown.

    Returns:
        {"label_rule", "stride", "size", "cases": {id: {"tp", "fp", "fn", "tn", metric: value}},
        "summary": {metric: {"mean", "std", "pooled", "n"}}, "balanced_training": {"tp", "fp", "fn",
        "tn", "of", "used"} or None}. `mean` and `std` (of the population) are over the `n` cases,
        `pooled` is of the counts of all cases added up; all None without cases.
    """
    table = {
        name: asdict(counts) | {metric: score(counts) for metric, score in PATCH_METRICS.items()}
        for name, counts in cases.items()
    }
    together = pooled(cases.values())
    summary = {}
    for metric, score in PATCH_METRICS.items():
        values = [row[metric] for row in table.values()]
        summary[metric] = {
            "mean": float(np.mean(values)) if values else None,
            "std": float(np.std(values)) if values else None,
            "pooled": score(together) if values else None,
            "n": len(values),
        }
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


def summary_table(scores: Mapping[str, Any]) -> str:
    """A table for the terminal of what `patch_scores` returned: one line per metric.

    Ratios are fractions, not percent; "-" stands for undefined.
    """
    lines = [f"{'patches':<22}{'mean ± std':>18}{'pooled':>10}{'n':>6}"]
    for metric, row in scores["summary"].items():
        mean, std, total = (
            "-" if row[key] is None else f"{row[key]:.4f}" for key in ("mean", "std", "pooled")
        )
        lines.append(f"{metric:<22}{f'{mean} ± {std}':>18}{total:>10}{row['n']:>6}")
    return "\n".join(lines)
