"""What was found in a scan, in one line."""

import resource
import sys

import numpy as np

from spinejax import labels
from spinejax.inference.labelling import UNCERTAIN_MARGIN
from spinejax.prediction import Result
from spinejax.volume import Volume


def describe(found: Result, volume: Volume, seconds: float) -> str:
    """Return e.g. "T9-L5, 9 vertebrae, 1 cut, 12.4 s, 1.1 GB"; of a mask alone its volume in ml.

    The memory is the greatest that this process has held so far.
    """
    if not found.named:
        volume_ml = np.count_nonzero(found.labels) * float(np.prod(volume.spacing_mm)) / 1000
        return f"{volume_ml:.0f} ml of spine"
    record = found.record
    words = []
    if record is None or not record.labels:
        words.append("no vertebra found, labels are empty")
    else:
        first, last = (labels.name(record.labels[i]) for i in (0, -1))
        count = len(record.labels)
        words.append(f"{first}-{last}" if count > 1 else first)
        words.append(f"{count} vertebra{'e' * (count > 1)}")
        if record.cut:
            words.append(f"{len(record.cut)} cut{' and left out' * bool(record.dropped)}")
        if record.skipped:
            words.append(f"not found: {_names(record.skipped)}")
        if record.anomalies:
            words.append(", ".join(record.anomalies))
        if record.margin < UNCERTAIN_MARGIN:
            words.append(f"names UNCERTAIN (margin {record.margin:.1f})")
    words += [f"{seconds:.1f} s", f"{_peak_bytes() / 1e9:.1f} GB"]
    return ", ".join(words)


def _names(ids: tuple[int, ...]) -> str:
    return " ".join(labels.name(i) for i in ids)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
