"""Overlap of two masks: Dice, intersection over union, and the mean IoU that counts background.

All functions take `classification.Counts` and follow its rule for empty masks.
"""

from spinejax.metrics.classification import Counts, ratio


def dice(counts: Counts) -> float:
    """Return the Dice coefficient 2 TP / (2 TP + FP + FN); in [0, 1].

    Paper A, eq. 3, with P1 x P2 read as the intersection (as printed, with products of images, it
    is not a ratio of sizes); paper B's DSC. Both masks empty: 1. One of them empty: 0.
    """
    return ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn, counts)


def iou(counts: Counts) -> float:
    """Return the intersection over union of the foreground, TP / (TP + FP + FN); in [0, 1].

    Paper A, eq. 4; paper B's Jaccard index (JAC). It is D / (2 - D) for Dice D, and never exceeds
    Dice. Both masks empty: 1. One of them empty: 0.
    """
    return ratio(counts.tp, counts.tp + counts.fp + counts.fn, counts)


def miou_with_background(counts: Counts) -> float:
    """Return the mean of the IoU of foreground and the IoU of background; in [0, 1].

    Paper A does not define it, but its IoU exceeds Dice in most rows. A foreground IoU cannot do
    that; this mean usually does, because background fills most of a CT and scores nearly 1. A class
    that is absent from both masks scores 1; absent from one of them, 0.
    """
    background = ratio(counts.tn, counts.tn + counts.fp + counts.fn, counts)
    return (iou(counts) + background) / 2
