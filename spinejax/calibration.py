"""Calibration of the names of a model on scans with reference labels.

`calibrate` predicts each scan once and keeps the decoder's evidence. `inference.reliability` then
fits the two numbers of `inference.sequence.Calibration`, and measures how well the probabilities of
names agree with the reference, always on scans that did not fit the numbers.

A found vertebra belongs to the vertebra of the reference with which it shares most voxels. It is
wrong whatever its name if it shares less than a quarter of its voxels with any. If an end of the
scan cuts it, it is then left out, because references do not show such vertebrae.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spinejax import __version__, failures, geometry, predictor
from spinejax.datasets import plain_folders
from spinejax.errors import InputError
from spinejax.files import StrPath, atomic_path, check_output, expanded, write_json
from spinejax.inference import reliability
from spinejax.inference.reliability import UNKNOWN, Judged, Measured
from spinejax.inference.sequence import Calibration, decode
from spinejax.io import scanfile
from spinejax.labels import VERSE_IDS
from spinejax.metrics import identification
from spinejax.progress import Progress, silent
from spinejax.reports import reliability_diagram

logger = logging.getLogger("spinejax")

JSON_NAME, FIGURE_NAME = "calibration.json", "reliability.png"
PARTS = 5
"""Without test scans, the numbers for each fifth of the scans are fitted on the other four."""
LEAST = 10
"""Fewest scans for a fit."""

_KIND = "calibration"
_SHARE = 0.25
"""Least share of the voxels of a found vertebra in its vertebra of the reference."""


def calibrate(
    model: StrPath | Sequence[StrPath],
    data: Sequence[StrPath],
    *,
    output: StrPath,
    test: Sequence[StrPath] = (),
    checkpoint: str = "best",
    vertebrae: StrPath | Sequence[StrPath] | None = None,
    outlines: StrPath | Sequence[StrPath] | None = None,
    flip: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Fit the calibration of a model, and write it with a reliability diagram.

    The scans must not have trained the model. A scan that cannot be read or predicted is logged,
    left out and listed under "failed".

    Args:
        model: see `predictor.load`.
        data: folders of scans with reference labels, which fit the numbers.
        output: folder for calibration.json and reliability.png.
        test: folders of scans that judge them; without any, each fifth of the scans of `data` is
            judged by numbers that the other four fifths fitted.
        checkpoint: see `predictor.load`.
        vertebrae: see `predictor.load`.
        outlines: see `predictor.load`.
        flip: see `predictor.load`.
        overwrite: replace files that this program did not write, too.
        progress: shows the progress, scan by scan.

    Returns:
        The content of calibration.json: "name_weight" and "level_error", fitted on all scans of
        `data`; "model", its digest; "scans", the number of all scans, and "fitted",
        of those that fitted the numbers; "judged_by"; "before" and
        "after", each with "views" (`reliability.by_view`), "variants" (`reliability.by_variant`)
        and "reliability" (`reliability.reliability`) with the numbers of the model and with fitted
        ones; and "failed", if a scan failed.

    Raises:
        InputError: the model names no vertebrae, there are fewer than `LEAST` scans with vertebrae
            to fit the numbers, or no test scan; a file may not be replaced.
    """
    folder = expanded(output)
    for name in (JSON_NAME, FIGURE_NAME):
        check_output(folder / name, _KIND, overwrite=overwrite)
    loaded = predictor.load(
        model, vertebrae=vertebrae, outlines=outlines, checkpoint=checkpoint, flip=flip
    )
    if not loaded.named:
        raise InputError("the model names no vertebrae; give one that does, or add --vertebrae=...")
    failed: dict[str, str] = {}
    fit_scans, test_scans = _scans(data, failed), _scans(test, failed)
    twice = set(fit_scans.values()) & set(test_scans.values())
    if twice:
        raise InputError(
            f"{min(twice)[0]} is in --data and in --test; judge by scans that fit no number"
        )
    fitting, own = _judge(loaded, fit_scans, failed, progress)
    if len(fitting) < LEAST:
        raise _too_few(len(fitting), LEAST, data, failed)
    calibration = reliability.fit(fitting)
    if test:
        judged, own = _judge(loaded, test_scans, failed, progress)
        if not judged:
            raise _too_few(0, 1, test, failed)
        by, how = [calibration] * len(judged), f"{len(judged)} test scans"
    else:
        judged, how = fitting, f"the same scans: each of {PARTS} parts by what the others fitted"
        parts = [
            reliability.fit([one for k, one in enumerate(fitting) if k % PARTS != part])
            for part in range(PARTS)
        ]
        by = [parts[k % PARTS] for k in range(len(judged))]
    before = [reliability.measure(*pair) for pair in zip(judged, own, strict=True)]
    after = [reliability.measure(*pair) for pair in zip(judged, by, strict=True)]
    result: dict[str, Any] = {
        "spinejax": __version__,
        "model": loaded.digest,
        "name_weight": calibration.weight,
        "level_error": calibration.level_error,
        "scans": len(fit_scans) + len(test_scans),
        "fitted": len(fitting),
        "judged_by": how,
        "before": _measures(before),
        "after": _measures(after),
    } | ({"failed": failed} if failed else {})
    png = reliability_diagram.png(result["before"], result["after"], how)
    with atomic_path(folder / FIGURE_NAME, _KIND, overwrite=overwrite) as temporary:
        temporary.write_bytes(png)
    write_json(folder / JSON_NAME, result, _KIND, overwrite=overwrite)
    return result


def _measures(scans: Sequence[Measured]) -> dict[str, Any]:
    return {
        "views": reliability.by_view(scans),
        "variants": reliability.by_variant(scans),
        "reliability": reliability.reliability(scans),
    }


def _too_few(
    count: int, least: int, folders: Sequence[StrPath], failed: Mapping[str, str]
) -> InputError:
    if failed:
        return failures.summary(failed, count + len(failed), "too few are left")
    where = ", ".join(map(str, folders))
    return InputError(
        f"{where}: vertebrae were found in {count} scans with reference labels; give folders with "
        f"at least {least} such scans"
    )


_Files = tuple[Path, Path]


def _scans(folders: Sequence[StrPath], failed: dict[str, str]) -> dict[str, _Files]:
    """Return CT and labels of the scans of some folders, by name."""
    found = {}
    for folder in map(expanded, folders):
        for one in plain_folders.with_masks(folder, failed):
            if one.image and one.labels:
                name = one.id if len(folders) == 1 else f"{folder}/{one.id}"
                found[name] = (one.image.resolve(), one.labels.resolve())
    return found


def _judge(
    model: predictor.Model,
    cases: Mapping[str, _Files],
    failed: dict[str, str],
    progress: Progress,
) -> tuple[list[Judged], list[Calibration]]:
    """Predict scans; return those with known names, and the model's calibration for each."""
    titles = {name: f"{number}/{len(cases)} {name}" for number, name in enumerate(cases, 1)}

    def predict(name: str, files: _Files) -> tuple[Judged, Calibration] | None:
        volume, reference = scanfile.read_pair(*files)
        found = model.segment(volume, name=titles[name], progress=progress)
        logger.info("%s: %s", titles[name], found.summary())
        if found.record is None or found.record.evidence is None:
            return None
        true = geometry.label_boxes(reference.array)
        why = identification.not_comparable(geometry.label_boxes(found.mask), true)
        if why is not None:
            raise InputError(f"{files[1]}: {why}; give reference labels with VerSe ids")
        return judge(found, reference.array), found.record.calibration

    done, wrong = failures.each(cases, predict, alone=len(cases) == 1)
    failed |= wrong
    known = [one for one in done.values() if one and any(i != UNKNOWN for i in one[0].right)]
    return [one for one, _ in known], [calibration for _, calibration in known]


def judge(found: predictor.Segmentation, reference: np.ndarray) -> Judged:
    """Return the evidence of a prediction and the right names of its instances.

    Args:
        found: with a record.
        reference: (x, y, z) VerSe ids on the grid of `found.mask`.
    """
    record = found.record
    if record is None or record.evidence is None:
        raise ValueError(f"{found.name}: no vertebra was found")
    true = right_names(found.mask, reference)
    named = decode(
        record.evidence, anomalies=record.variants, calibration=record.calibration
    ).labels
    right = []
    for label in named:
        known = true.get(label, UNKNOWN)
        right.append(UNKNOWN if known == 0 and label in record.cut else known)
    present = frozenset(geometry.label_boxes(reference)) & frozenset(VERSE_IDS)
    return Judged(record.evidence, tuple(record.variants), tuple(right), present)


def right_names(mask: np.ndarray, reference: np.ndarray) -> dict[int, int]:
    """Return the right name of each vertebra of a prediction, see the module's docstring.

    Args:
        mask: (x, y, z) VerSe ids.
        reference: likewise.

    Returns:
        VerSe id in `mask` -> VerSe id in `reference`, or 0.
    """
    inside = mask > 0
    pairs = np.zeros((256, 256), np.int64)
    np.add.at(pairs, (mask[inside], reference[inside]), 1)
    found = {}
    for label in map(int, np.flatnonzero(pairs.sum(axis=1))):
        shared = pairs[label, list(VERSE_IDS)]
        enough = shared.max() >= _SHARE * pairs[label].sum()
        found[label] = VERSE_IDS[int(shared.argmax())] if enough else 0
    return found
