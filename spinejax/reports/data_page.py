"""The page of `spinejax doctor`: a thumbnail of each scan, and what is wrong with it."""

from pathlib import Path

import numpy as np

from spinejax import files, geometry, labels, overlay
from spinejax.datasets.doctor import DoctorReport
from spinejax.reports import figures, html
from spinejax.reports.tables import DASH, count
from spinejax.volume import LabelVolume, Volume

_ROWS, _COLUMNS = 220, 300  # of a picture, before it is made small


def thumbnail(scan: Volume | None, mask: LabelVolume | None, named: bool) -> str:
    """Return a sagittal slice through the middle of the labels, as a data URI.

    Args:
        scan: the CT; None draws the labels on black.
        mask: labels on any grid; None shows the middle of the scan.
        named: whether the labels are VerSe ids, which have a colour each.

    Raises:
        ValueError: there is neither scan nor mask.
    """
    shown = scan if scan is not None else mask
    if shown is None:
        raise ValueError("`scan` and `mask` are both None; give one of them")
    at = np.array([(n - 1) / 2 for n in shown.shape])
    middle = None if mask is None else figures.centre(mask.array)
    if mask is not None and middle is not None:
        world = geometry.voxel_to_world(mask.affine, np.array(middle))
        at = geometry.world_to_voxel(shown.affine, world)
    x = int(np.clip(np.rint(at[0]), 0, shown.shape[0] - 1))
    _, wide, high = (n * mm for n, mm in zip(shown.shape, shown.spacing_mm, strict=True))
    scale = min(_ROWS / high, _COLUMNS / wide)
    size = (max(1, round(high * scale)), max(1, round(wide * scale)))
    grey = np.zeros(size, np.uint8)
    if scan is not None:
        hu = figures.hung(scan.array, "sagittal", x)
        grey = figures.resize(overlay.window(hu), size, smooth=True)
    cut = np.zeros(size, np.uint8)
    if mask is not None:
        cut = _cut(mask, shown, x, size)
    numbers = figures.level_numbers(cut) if named else figures.PREDICTION
    return figures.thumbnail(figures.blend(grey, figures.fill(cut, numbers)))


def _cut(mask: LabelVolume, shown: Volume, x: int, size: tuple[int, int]) -> np.ndarray:
    """Return the labels at the pixels of a sagittal slice of another grid, (rows, columns)."""
    z = shown.shape[2] - 0.5 - (np.arange(size[0]) + 0.5) * shown.shape[2] / size[0]
    y = (np.arange(size[1]) + 0.5) * shown.shape[1] / size[1] - 0.5
    index = np.stack(np.broadcast_arrays(float(x), y[None], z[:, None]), axis=-1)
    there = geometry.world_to_voxel(mask.affine, geometry.voxel_to_world(shown.affine, index))
    nearest = np.rint(there).astype(int)
    inside = ((nearest >= 0) & (nearest < mask.shape)).all(axis=-1)
    i, j, k = np.moveaxis(np.clip(nearest, 0, np.array(mask.shape) - 1), -1, 0)
    return np.where(inside, mask.array[i, j, k], 0).astype(np.uint8)


def write(path: Path, folder: str, report: DoctorReport, *, overwrite: bool = False) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        folder: name of the data set.
        report: of `doctor.doctor`, with pictures of `thumbnail`.
        overwrite: see `files.check_output`.

    Raises:
        InputError: the file may not be replaced.
    """
    cases = [
        {
            "id": case.id,
            "subset": case.subset,
            "voxels": case.voxels,
            "problems": case.problems,
            "picture": case.picture,
            "levels": _levels(case.ids),
            "count": len(case.ids),
            "first": labels.order(case.ids[0]) if case.ids else 99,
        }
        for case in report.cases
    ]
    wrong = sum(bool(case.problems) for case in report.cases)
    headline = "No problems" if not report.problems else count(len(report.problems), "problem")
    if wrong:
        headline += f" in {count(wrong, 'case')}"
    text = html.render(
        "data_page.html",
        folder=folder,
        headline=headline,
        cases=cases,
        others=report.others,
        lines=report.lines,
    )
    files.write_text(path, text, "report", overwrite=overwrite)


def _levels(ids: tuple[int, ...]) -> str:
    if not ids:
        return DASH
    return " to ".join(dict.fromkeys([labels.name(ids[0]), labels.name(ids[-1])]))
