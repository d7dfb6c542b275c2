"""Scans that lie in a data set under several names.

Copies are found by their voxels, whatever the format, compression or axis order of the files. Only
scans of equal shapes are read.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from spinejax.datasets.verse import Case
from spinejax.errors import InputError
from spinejax.io import scanfile
from spinejax.volume import Volume

logger = logging.getLogger("spinejax")


def voxel_digest(volume: Volume) -> str:
    """Return the hexadecimal SHA-256 of the voxels of a scan, in canonical order."""
    found = hashlib.sha256(f"{volume.shape} {volume.array.dtype}".encode())
    for k in range(volume.shape[2]):
        found.update(np.asfortranarray(volume.array[:, :, k]).tobytes(order="F"))
    return found.hexdigest()


def same_scans(cases: Iterable[Case], digest: Callable[[Path], str]) -> list[list[str]]:
    """Find the scans that lie under several names.

    Args:
        cases: the scans; those without CT, or whose CT cannot be read, are passed over.
        digest: returns the `voxel_digest` of a file.

    Returns:
        The ids of the copies of each such scan, sorted.
    """
    by_shape: dict[tuple[int, ...], list[Case]] = defaultdict(list)
    for case in cases:
        if case.image is not None:
            try:
                by_shape[tuple(sorted(scanfile.shape_of(case.image)))].append(case)
            except InputError:
                pass  # preparing it names it
    by_digest: dict[str, list[str]] = defaultdict(list)
    for alike in by_shape.values():
        for case in alike if len(alike) > 1 else ():
            try:
                by_digest[digest(Path(case.image or ""))].append(case.id)
            except InputError:
                pass
    return sorted(sorted(ids) for ids in by_digest.values() if len(ids) > 1)


def as_one_patient(cases: Sequence[Case], copies: Iterable[Sequence[str]]) -> list[Case]:
    """Return the cases, such that the patients of the copies of a scan are one.

    Args:
        cases: the scans.
        copies: ids, as `same_scans` returns them.
    """
    patient = {case.id: case.subject for case in cases}
    for ids in copies:
        theirs = {patient[i] for i in ids}
        patient = {i: min(theirs) if one in theirs else one for i, one in patient.items()}
    return [replace(case, subject=patient[case.id]) for case in cases]
