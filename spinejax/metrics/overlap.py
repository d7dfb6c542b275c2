"""Overlap of two masks: Dice, intersection over union, and the mean IoU that counts background.

All are functions of `classification.Counts` and follow its rule for empty masks.
"""

from spinejax.metrics.classification import Counts, ratio


def dice(counts: Counts) -> float:
    """Dice coefficient 2 TP / (2 TP + FP + FN); in [0, 1].

    Paper A, eq. 3 (whose P1 x P2 is read as the intersection: as printed, with products of
    images, the formula is not a ratio of sizes); paper B's DSC. Both masks empty: 1. One: 0.
    """
    return ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn, counts)


def iou(counts: Counts) -> float:
    """Intersection over union of the foreground, TP / (TP + FP + FN); in [0, 1].

    Paper A, eq. 4; paper B's Jaccard index (JAC). Equals D / (2 - D) for Dice D, hence never
    exceeds Dice. Both masks empty: 1. One: 0.
    """
    return ratio(counts.tp, counts.tp + counts.fp + counts.fn, counts)


def miou_with_background(counts: Counts) -> float:
    """Mean of the IoU of foreground and the IoU of background; in [0, 1].

    Not defined in paper A, but its IoU columns exceed Dice in most rows, which a foreground IoU
    cannot do and this one usually does: background is nearly all of a CT and scores nearly 1.
    Each class absent from both masks scores 1; absent from one of them, 0.
    """
    background = ratio(counts.tn, counts.tn + counts.fp + counts.fn, counts)
    return (iou(counts) + background) / 2
