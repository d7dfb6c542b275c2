"""Where a run errs: which vertebrae it misses and what it takes for one, beside an earlier run."""

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from spinejax import overlay
from spinejax.errors import InputError
from spinejax.io import scanfile
from spinejax.io.grids import match_labels
from spinejax.metrics import mistakes
from spinejax.reports import error_tables, figures, markup, montage, pictures, tables
from spinejax.reports.run import Run
from spinejax.volume import PLANES, Volume


@dataclass(frozen=True, eq=False)
class _Case:
    """A scan with its masks, canonical (x, y, z), and their errors; `before` may be missing."""

    id: str
    dice: float
    volume: Volume
    reference: np.ndarray
    prediction: np.ndarray
    found: error_tables.Found
    before: np.ndarray | None = None
    dice_before: float | None = None
    note: str = ""


def shown_splits(run: Run) -> list[str]:
    """Return the evaluations whose errors are shown: the page's own, and all folders of scans."""
    folders = [name for name in run.evaluations if name not in tables.OWN_SPLITS]
    return list(dict.fromkeys([*([run.split] if run.split else []), *folders]))


def check_before(run: Run, before: Run) -> None:
    """Refuse an earlier run that shares no evaluation with this one.

    Raises:
        InputError: it is the run itself, or there is nothing to compare.
    """
    if before.workdir.resolve() == run.workdir.resolve():
        raise InputError(
            f"--before: {before.workdir} is the run itself; give the workdir of another"
        )
    wanted = shown_splits(run)
    if not wanted:
        raise InputError(
            f"{run.workdir} has no evaluation to compare; run `spinejax evaluate "
            f"--workdir={run.workdir}` first"
        )
    if not set(wanted) & set(before.evaluations):
        first = wanted[0]
        flag = f"--split={first}" if first in tables.OWN_SPLITS else "--data=DIR"
        raise InputError(
            f"--before: {before.workdir} has no evaluation called {' or '.join(wanted)}; run "
            f"`spinejax evaluate --workdir={before.workdir} {flag}` on the same scans first"
        )


def where_it_errs(run: Run, before: Run | None = None) -> str:
    """Return what is missed and what is found wrongly, scan by scan; "" without an evaluation.

    Args:
        run: the run of the page.
        before: an earlier run that `check_before` accepts.
    """
    parts: list[str] = []
    for split in shown_splits(run):
        chosen = pictures.chosen_cases(tables.ranked(run.evaluations[split]))
        blocks = [
            _block(run, before, split, one, f"errs-{len(parts)}-{number}")
            for number, one in enumerate(reversed(chosen))
        ]
        if not blocks:
            continue
        title = "Where it errs"
        if split not in tables.OWN_SPLITS:
            title += f": scans of “{split}”"
        intro = _introduction(run, before) if not parts else ""
        parts.append(
            f'<section class="errs"><h2>{escape(title)}</h2>{intro}{"".join(blocks)}</section>'
        )
    return "\n".join(parts)


def _plane(run: Run) -> str:
    plane = tables.item(run.config, "data", "plane")
    return plane if plane in PLANES else "sagittal"


def _introduction(run: Run, before: Run | None) -> str:
    plane = _plane(run)
    left, _, top, _ = figures.EDGES[plane]
    sides = {"R": "the patient’s right is on the left", "A": "anterior is on the left"}[left]
    up = {"A": "anterior", "S": "superior"}[top]
    low, high = (f"{hu:.0f}".replace("-", "−") for hu in overlay.BONE_WINDOW_HU)
    key = "".join(
        f'<span class="swatch"><i style="background:rgb{rgb}"></i>{name}</span>'
        for rgb, name in (
            (montage.FOUND_RGB, "found"),
            (montage.MISSED_RGB, "missed"),
            (montage.FALSE_RGB, "found, but not in the reference"),
        )
    )
    than = (
        ""
        if before is None
        else f" Before is the run in {escape(str(before.workdir))}, after is this one."
    )
    return (
        f"<p>{plane.capitalize()} slices ({low} to {high} HU), {sides}, {up} at the top.{than} "
        "Point at a slice to see the scan alone. The reference’s labelled range is that of its "
        "axial slices with a label: beyond it, bone may be spine that nobody labelled.</p>"
        f'<p class="swatches">{key}<label><input type="checkbox" class="bare"> hide colours'
        "</label></p>"
    )


def _block(
    run: Run, before: Run | None, split: str, chosen: tuple[str, str, float], key: str
) -> str:
    word, case, dice = chosen
    head = f"<h3>{escape(word)}: {escape(case)}</h3>"
    try:
        found = _read(run, before, split, case, dice)
    except InputError as error:
        return head + markup.missing(error)
    return (
        f"{head}{_facts(found)}{_note(found)}{_montages(found, _plane(run), key)}"
        f'{error_tables.words(found.found)}<div class="beside">'
        f"{error_tables.table(found.found)}{error_tables.false_positives(found.found)}</div>"
    )


def _read(run: Run, before: Run | None, split: str, case: str, dice: float) -> _Case:
    """Read a case and measure its errors, and those of the earlier run.

    Raises:
        InputError: a file is gone or damaged.
    """
    volume, masks = pictures.read_case(run, case, split)
    if "labels" not in masks:
        raise InputError("The file of the reference is gone, so that errors cannot be told.")
    reference, prediction = masks["labels"], masks["prediction"]
    numbered = tables.item(run.config, "data", "labels") != "binary" and reference.max() != 1
    if not numbered:
        reference = (reference > 0).astype(np.uint8)

    def measured(mask: np.ndarray) -> dict[str, Any]:
        return mistakes.analyse(
            volume.array, reference, mask, volume.spacing_mm, axial=PLANES["axial"]
        )

    mask, dice_before, note = None, None, ""
    if before is not None:
        try:
            mask = _read_before(before, volume, masks["labels"], split, case)
            dice_before = tables.case_values(before.evaluations[split], "dice").get(case)
        except InputError as error:
            note = f"Without a Before: {error}"
    found = error_tables.Found(
        measured(prediction), None if mask is None else measured(mask), numbered
    )
    return _Case(case, dice, volume, reference, prediction, found, mask, dice_before, note)


def _read_before(
    before: Run, volume: Volume, reference: np.ndarray, split: str, case: str
) -> np.ndarray:
    """Return what the earlier run predicted, on the grid of `volume`.

    Raises:
        InputError: it has no such case, a file is gone or damaged, or it scored another scan of
            that name.
    """
    if case not in (before.evaluations.get(split, {}).get("cases") or {}):
        raise InputError(f"the earlier run did not score {case}.")
    paths = pictures.case_files(before, case, split)
    if not paths["prediction"].is_file():
        raise InputError(f"{paths['prediction']} is gone")
    given = paths.get("labels")
    if given is not None and given.is_file():
        # Two sets of phantoms have the same names.
        theirs = scanfile.read_labels(given, valid=None)
        same = sorted(theirs.shape) == sorted(volume.shape) and np.array_equal(
            match_labels(volume, theirs).array, reference
        )
        if not same:
            raise InputError(f"what the earlier run scored as {case} is another scan.")
    return match_labels(volume, scanfile.read_labels(paths["prediction"], valid=None)).array


def _facts(case: _Case) -> str:
    dice = f"Dice {case.dice:.3f}"
    if case.before is not None and case.dice_before is not None:
        dice = f"Dice {case.dice_before:.3f} before, {case.dice:.3f} after"
    shape = " × ".join(map(str, case.volume.shape))
    spacing = " × ".join(f"{mm:.3g}" for mm in case.volume.spacing_mm)
    return f'<p class="nothing">{dice} · {shape} voxels of {spacing} mm</p>'


def _note(case: _Case) -> str:
    return f'<p class="missing">{escape(case.note)}</p>' if case.note else ""


def _montages(case: _Case, plane: str, key: str) -> str:
    """Return the row of slices, and above it that of the earlier run on the same slices."""
    masks = [("", case.prediction)]
    if case.before is not None:
        masks = [("Before", case.before), ("After", case.prediction)]
    shown = montage.view(case.reference, [mask for _, mask in masks], case.volume.spacing_mm, plane)
    count = case.volume.shape[PLANES[plane]]
    scans = montage.jpegs(case.volume.array, shown)
    numbered = case.reference if case.found.numbered else None
    sides, below = montage.sides(numbered, shown), montage.captions(numbered, shown)
    rows = []
    for number, (title, mask) in enumerate(masks):
        layers = [montage.layer(case.reference, mask, shown, i) for i in shown.indices]
        words = f"{case.id} {title.lower()}".strip()
        head = f'<p class="row">{title}</p>' if title else ""
        drawn = montage.row(
            shown, scans if number == 0 else None, layers, sides, below, key, words, count
        )
        rows.append(head + drawn)
    return f'<div class="wide rows">{"".join(rows)}</div>'
