"""The sequence decoder: which vertebra is which, from the label map of a network.

A network that names every voxel by itself names whole vertebrae wrongly, most often by one, and
then all below it: an error that hurts a patient more than a ragged outline. Here the vertebrae of a
label map are first found (`instances`), and then named all together, by the most probable legal
sequence (`sequence`), which also leaves out what is no vertebra.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from spinejax.errors import InputError
from spinejax.inference.instances import Instances
from spinejax.inference.pieces import NUM_LABELS, STEP_MM, VOLUME_ML
from spinejax.inference.sequence import Sequence, class_scores, decode_sequence
from spinejax.inference.transitions import ANOMALIES, Costs

UNCERTAIN_MARGIN = math.log(10)
"""Below this margin another sequence is more than a tenth as probable: say so to the reader.

Of 134 phantoms, 24 lay below it, 8 of them with a wrong name; 12 of the 110 above it had one.
"""

_LIKENESS = 0.5
"""Of T13 to T12 and of L6 to L5; from 0.3 to 0.6, about 130 phantoms were named alike."""

_SMALL = 0.85
"""Share of usual distances between vertebrae below which a person is measured by a smaller rule."""

REVERSED_BY = math.log(1000)
"""How much cheaper the sequence must be from foot to head for the scan to be called reversed."""


@dataclass(frozen=True)
class Record:
    """What there is to say about the labels of a scan."""

    labels: tuple[int, ...]
    """VerSe ids from head to foot, those dropped included, each once."""
    cost: float
    """Minus the log of the sequence's probability, up to a constant."""
    margin: float
    """The least of `margins`; inf if there is none."""
    margins: tuple[float, ...]
    """For each label, how much more the best sequence costs that names the vertebra differently."""
    anomalies: tuple[str, ...]
    """Those of `ANOMALIES` that the spine shows."""
    skipped: tuple[int, ...]
    """VerSe ids of vertebrae between the labelled ones that were not found."""
    cut: tuple[int, ...]
    """VerSe ids of vertebrae that an end of the scan cuts."""
    dropped: tuple[int, ...]
    """Those of them that were dropped."""
    unnamed: int
    """How many instances are no vertebra and were left out."""
    reversed: bool
    """Whether the sequence would be far more probable from foot to head (see `label_instances`)."""


@dataclass(frozen=True, eq=False)
class Labelling:
    """Labelled vertebrae of a scan."""

    array: np.ndarray
    """(x, y, z) uint8 VerSe ids."""
    centroids_mm: dict[int, np.ndarray]
    """VerSe id -> (3,) voxel index x spacing, from head to foot."""
    record: Record


def label_instances(
    instances: Instances,
    *,
    class_sums: np.ndarray | None = None,
    anomalies: Collection[str] = ANOMALIES,
    costs: Costs = Costs(),  # noqa: B008 - frozen
    drop_cut: bool = False,
) -> Labelling:
    """Name instances.

    The record's `reversed` is set where the instances in the opposite order, foot to head, have a
    legal sequence that is more than 1000 times as probable: then head and foot may be exchanged in
    the file's header. The labels follow the header all the same. Two vertebrae can hardly show it.

    Args:
        instances: from head to foot.
        class_sums: (n, 26) probabilities of a network summed over the voxels of each instance, in
            place of the numbers of voxels of each class.
        anomalies: see `decode_sequence`, as for `costs`.
        costs: of deviations.
        drop_cut: whether vertebrae cut by an end of the scan, which have a name and say what their
            neighbours are, are left out of the result, as in VerSe's annotation.

    Raises:
        InputError: as `class_scores` and `decode_sequence`.
    """
    items = instances.items
    if class_sums is None:
        class_sums = np.array([item.counts for item in items]).reshape(-1, NUM_LABELS)
    elif np.shape(class_sums) != (len(items), NUM_LABELS):
        raise InputError(
            f"class_sums has shape {np.shape(class_sums)}; give ({len(items)}, {NUM_LABELS}), a "
            "row for each instance and a column for each vertebra class"
        )
    class_sums = np.asarray(class_sums)
    centroids = np.array([item.centroid_mm for item in items]).reshape(-1, 3)
    cut = np.array([item.cut_head or item.cut_foot for item in items], bool)
    classes = class_sums.argmax(axis=1)
    sizes = np.array([item.volume_ml for item in items]) / VOLUME_ML[classes]
    if not cut.all():
        sizes /= min(1.0, np.median(sizes[~cut]))  # of a child, all vertebrae are small
    sizes[cut] = 1.0  # that the scan shows less of a vertebra does not make it less of one
    # A scrap below L5 is rather a part of the sacrum than an L6.
    scores = class_scores(class_sums, likeness=np.where(sizes < 0.5, 0.0, _LIKENESS))
    rule = _rule(classes, centroids, cut)
    room = (instances.room_mm[0] / rule, instances.room_mm[1] / rule)

    def decode(way: int, room_mm: tuple[float, float]) -> Sequence:
        return decode_sequence(
            scores[::way],
            centroids_mm=centroids[::way] / rule,
            cut=cut[::way],
            sizes=sizes[::way],
            room_mm=room_mm,
            anomalies=anomalies,
            costs=costs,
        )

    best = decode(1, room)
    upside_down = decode(-1, (room[1], room[0]))
    to = np.zeros(256, np.uint8)
    points, cut_labels, dropped = {}, [], []
    named = tuple(dict.fromkeys(label for label in best.labels if label))
    for label in named:
        own = np.flatnonzero(np.array(best.labels) == label)
        if cut[own].any():
            cut_labels.append(label)
            if drop_cut:
                dropped.append(label)
                continue
        to[own + 1] = label
        points[label] = np.average(
            centroids[own], axis=0, weights=[items[i].volume_ml for i in own]
        )
    margins = tuple(
        min(m for m, other in zip(best.margins, best.labels, strict=True) if other == label)
        for label in named
    )
    record = Record(
        labels=named,
        cost=best.cost,
        margin=min(margins, default=math.inf),
        margins=margins,
        anomalies=best.anomalies,
        skipped=best.skipped,
        cut=tuple(cut_labels),
        dropped=tuple(dropped),
        unnamed=best.labels.count(0),
        reversed=best.cost - upside_down.cost > REVERSED_BY,
    )
    return Labelling(to[instances.array], points, record)


def _rule(classes: np.ndarray, centroids_mm: np.ndarray, cut: np.ndarray) -> float:
    """Return 1, or less for a person whose vertebrae mostly lie nearer to each other than usual.

    Of a child, or of discs that are all worn, every distance would else be a reason to leave a
    vertebra out.
    """
    apart = np.linalg.norm(np.diff(centroids_mm, axis=0), axis=1) / STEP_MM[classes[:-1]]
    whole = ~(cut[:-1] | cut[1:])
    if whole.sum() < 3:
        return 1.0
    return min(1.0, max(0.5, float(np.median(apart[whole])) / _SMALL))
