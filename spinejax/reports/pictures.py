"""The best, the median and the worst scan of a run as pictures inside the page."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from spinejax.errors import InputError
from spinejax.io import scanfile
from spinejax.io.grids import match_labels
from spinejax.metrics.body_centres import body_centres
from spinejax.reports import figures, markup, tables
from spinejax.reports.run import Run
from spinejax.volume import Volume


def chosen_cases(ranked: list[tuple[str, float]]) -> list[tuple[str, str, float]]:
    """Return (word, case id, Dice) of the scans to show, from cases ranked worst to best.

    Three or more: best, median (the lower one of two middle scans), worst; two: best and worst.
    """
    if not ranked:
        return []
    if len(ranked) == 1:
        return [("The only scan", *ranked[0])]
    shown = [("Best scan", *ranked[-1]), ("Worst scan", *ranked[0])]
    if len(ranked) > 2:
        shown.insert(1, ("Median scan", *ranked[(len(ranked) - 1) // 2]))
    return shown


def best_median_worst(run: Run) -> str:
    """Return the best, the median and the worst scan as pictures, all of one size."""
    if run.split is None:
        return ""
    chosen = chosen_cases(tables.ranked(run.evaluations[run.split]))
    if not chosen:
        return ""
    record = run.evaluations[run.split]
    distances = tables.case_values(record, "hd95_mm")
    parts = []
    for word, case, dice in chosen:
        more = [f"Dice {dice:.3f}"]
        if case in distances:
            more.append(f"HD95 {distances[case]:.1f} mm")
        parts.append(
            f'<figure class="scan"><figcaption><b>{word}: {escape(case)}</b>'
            f"<span>{' · '.join(more)}</span></figcaption>{_picture(run, case)}</figure>"
        )
    title = {1: "The scan", 2: "Best and worst scan"}.get(
        len(chosen), "Best, median and worst scan"
    )
    return (
        f"<section><h2>{title}</h2><p>Outlines of the prediction (orange) and the reference "
        "(cyan), yellow where both run. Planes through the middle of the spine; the patient’s "
        f"right is on the left of coronal and axial pictures.</p>{''.join(parts)}</section>"
    )


def _picture(run: Run, case: str) -> str:
    try:
        volume, masks = read_case(run, case)
    except InputError as error:
        return f'<p class="missing">No picture: {escape(str(error))}</p>'
    named = tables.item(run.evaluations[run.split or ""], "cases", case, "vertebrae")
    png = figures.quicklook_png(
        volume,
        masks["prediction"],
        masks.get("labels"),
        title=case,
        centroids=body_centres(masks["prediction"], volume.spacing_mm) if named else {},
    )
    words = f"{case}: sagittal, coronal and axial slice with outlines"
    return f'<div class="frame"><img alt="{escape(words)}" src="{markup.png_uri(png)}"></div>'


def case_files(run: Run, case: str, split: str | None = None) -> dict[str, Path]:
    """Return the paths of a case: "image", "prediction" and, if it was recorded, "labels".

    Raises:
        InputError: cases.json does not name the files.
    """
    paths = run.cases.get(split or run.split or "", {}).get(case)
    if not isinstance(paths, Mapping) or not {"image", "prediction"} <= set(paths):
        raise InputError(f"cases.json does not say where the scan and prediction of {case} are")
    return {
        # Paths inside the workdir are relative to it, so that it can be moved.
        name: run.workdir / str(paths[name])
        for name in ("image", "prediction", "labels")
        if paths.get(name)
    }


def read_case(
    run: Run, case: str, split: str | None = None
) -> tuple[Volume, dict[str, np.ndarray]]:
    """Read a case of an evaluation; by default the one that the page is about.

    Returns:
        The scan, and "prediction" and, if its file is there, "labels" on the scan's grid.

    Raises:
        InputError: cases.json does not name the files, or one is gone or damaged.
    """
    files = case_files(run, case, split)
    for name, path in files.items():
        if name != "labels" and not path.is_file():
            raise InputError(f"{path} is gone")
    volume = scanfile.read_volume(files["image"])
    masks = {
        name: match_labels(volume, scanfile.read_labels(path, valid=None)).array
        for name, path in files.items()
        if name != "image" and path.is_file()
    }
    return volume, masks
