"""One self-contained HTML page a scan, with an interactive viewer, and the index of a folder.

The page holds the scan around the spine, the labels, the straightened spine, the record and NiiVue
(`niivue/README.md`). The browser loads nothing else: the page's Content-Security-Policy forbids it.

The scan on a page is small: a box around the labels, at most `MOST_VOXELS` voxels, one byte each.
"""

import base64
import gzip
import html as entities
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from PIL import Image

from spinejax import files, geometry, labels, overlay
from spinejax.inference.sequence import Naming
from spinejax.io import grids, nifti
from spinejax.reports import curved, figures, html
from spinejax.reports.tables import DASH
from spinejax.volume import CANONICAL, Volume

logger = logging.getLogger("spinejax")

MOST_VOXELS = 4_000_000
"""Voxels of the scan on a page. More of them show finer detail, and the page is larger."""

LOWEST_HU, STEP_HU = -250.0, 5.0
"""A byte b of the page's scan means LOWEST_HU + b * STEP_HU."""

MARGIN_MM = 25.0
"""Of the scan around the labels."""

WINDOWS = {"Bone": overlay.BONE_WINDOW_HU, "Soft tissue": (-160.0, 240.0)}
"""Preset -> lowest and highest HU of the grey levels."""

INDEX = "index.html"

_SPINE_RGB = overlay.PREDICTION_RGB  # of labels without names, as in the other pictures
_BEYOND_MM = 30.0
_REACH_MM = {"sagittal": (-45.0, 65.0), "coronal": (-55.0, 55.0)}
_TOWARD = {"sagittal": (0.0, -1.0, 0.0), "coronal": (-1.0, 0.0, 0.0)}
_OFF_MM = 12.0
_CURVED_ROWS = 900
_CURVED_BYTES = 250_000
_ENTRY = re.compile(r'<script type="application/json" id="entry">(.*?)</script>', re.DOTALL)
_ENTRY_WITHIN = 200_000  # characters from the start of a page
_JPEG = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+")
_LIKELY = 0.9  # a name below this probability has a sentence of its own
_UNLIKELY = 0.05  # a naming below this probability is not told


class Reduced(NamedTuple):
    """A scan and its labels on the grid of a page.

    Attributes:
        scan: (x, y, z) uint8, see `LOWEST_HU`.
        mask: (x, y, z) uint8 labels.
        affine: (4, 4) of both.
    """

    scan: np.ndarray
    mask: np.ndarray
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        return geometry.spacing_mm(self.affine)

    @property
    def extent_mm(self) -> list[float]:
        """Size in mm along each axis."""
        return [round(n * mm, 2) for n, mm in zip(self.scan.shape, self.spacing_mm, strict=True)]


def reduce(scan: Volume, mask: np.ndarray, most_voxels: int = MOST_VOXELS) -> Reduced:
    """Return a scan as a page shows it: the box around the labels, few voxels, one byte each.

    The voxels of a page are means of the scan's voxels. No axis gets finer than in the scan.

    Args:
        scan: a CT.
        mask: (x, y, z) uint8 labels on the grid of `scan.array`.
        most_voxels: of the result.
    """
    scan, mask = _around_labels(scan, mask)
    spacing, sides = np.asarray(scan.spacing_mm), np.array(mask.shape)
    wanted, side_mm = sides, float(spacing.min())
    while np.prod(wanted, dtype=np.int64) > most_voxels:
        side_mm *= 1.02
        wanted = np.clip(np.rint(sides * spacing / side_mm).astype(int), 1, sides)
    stored = (_averaged(scan.array, tuple(wanted.tolist())) - LOWEST_HU) / STEP_HU
    nearest = [geometry.nearest(n, m) for n, m in zip(sides, wanted, strict=True)]
    ratio = sides / wanted
    affine = scan.affine.copy()
    affine[:3, :3] *= ratio
    affine[:3, 3] = geometry.voxel_to_world(scan.affine, ratio / 2 - 0.5)
    return Reduced(
        np.rint(np.clip(stored, 0, 255)).astype(np.uint8), mask[np.ix_(*nearest)], affine
    )


def _around_labels(scan: Volume, mask: np.ndarray) -> tuple[Volume, np.ndarray]:
    """Return scan and labels in the box around the labels, on a grid with axes at right angles."""
    box = geometry.bounding_box(mask)
    straight = geometry.straight_grid(scan.shape, scan.affine)
    if straight is None:
        part = _with_margin(box, scan.shape, scan.affine)
        return Volume(scan.array[part], geometry.affine_of_part(scan.affine, part)), mask[part]
    # The viewer cannot draw a sheared grid. Resampling all of it would take far more time and
    # memory than resampling the part that is shown.
    shape, affine = straight
    if box is not None:
        box = geometry.box_on_grid(box, scan.affine, shape, affine)
    around = _with_margin(box, shape, affine)
    affine = geometry.affine_of_part(affine, around)
    sides = [side.stop - side.start for side in around]
    mask = geometry.resample(mask, scan.affine, sides, affine, order=0, fill=0)
    part = _with_margin(geometry.bounding_box(mask), mask.shape, affine)
    mask, affine = mask[part], geometry.affine_of_part(affine, part)
    scan = grids.resampled(scan, mask.shape, affine)
    return scan, geometry.reorient(mask, affine, CANONICAL)[0]


def _with_margin(
    box: tuple[slice, ...] | None, shape: Sequence[int], affine: np.ndarray
) -> tuple[slice, ...]:
    """Return a box with `MARGIN_MM` around it, within a grid; all of the grid without a box."""
    if box is None:
        return tuple(slice(0, n) for n in shape)
    margins = np.ceil(MARGIN_MM / np.asarray(geometry.spacing_mm(affine))).astype(int).tolist()
    return tuple(
        slice(max(0, side.start - margin), min(n, side.stop + margin))
        for side, margin, n in zip(box, margins, shape, strict=True)
    )


def _averaged(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the means of an array (x, y, z) over the voxels of a coarser grid, float32."""
    x, y, z = shape
    box = Image.Resampling.BOX

    def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(picture, np.float32))
        return np.asarray(image.resize((size[1], size[0]), box))

    flat = np.stack([resized(array[:, :, k], (x, y)) for k in range(array.shape[2])], axis=2)
    return np.stack([resized(flat[:, j], (x, z)) for j in range(y)], axis=1)


@cache
def niivue() -> bytes:
    """Return the script of NiiVue, compressed with gzip."""
    return resources.files(__package__).joinpath("niivue/niivue.umd.js.gz").read_bytes()


@cache
def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def page(
    scan: Volume,
    mask: np.ndarray,
    record: Mapping[str, Any],
    centroids: Mapping[int, np.ndarray],
    *,
    title: str,
    summary: str,
    named: bool,
) -> str:
    """Return the page of a scan.

    Args:
        scan: the CT.
        mask: (x, y, z) uint8 on the grid of `scan.array`: VerSe ids if `named`, else 0 and 1.
        record: of the scan, as `<case>.json` has it. The page shows what is there.
        centroids: VerSe id -> (3,) voxel index in `mask` of the vertebral body's centre.
        title: name of the scan.
        summary: what was found, in one line.
        named: whether the labels are VerSe ids.
    """
    small = reduce(scan, mask)
    centres = {i: geometry.voxel_to_world(scan.affine, point) for i, point in centroids.items()}
    centres = {i: centres[i] for i in sorted(centres, key=labels.order)}
    pictures = straightened(scan, mask, centres) if centres else []
    rgb = labels.RGB if named else {1: _SPINE_RGB}
    found = [int(i) for i in np.unique(small.mask) if i]
    data = {
        "labels": [
            {
                "id": i,
                "name": labels.NAMES.get(i, str(i)) if named else "spine",
                "rgb": rgb.get(i, (200, 200, 200)),
            }
            for i in found
        ],
        "windows": WINDOWS,
        "extent_mm": small.extent_mm,
        "middle_mm": _middle(small, centres).round(2).tolist(),
    }
    scan_bytes = nifti.encoded(small.scan, small.affine, slope=STEP_HU, inter=LOWEST_HU)
    mask_bytes = nifti.encoded(small.mask, small.affine, is_map=True)
    thumbnail = _thumbnail(pictures, small)
    rows = vertebra_rows(record, centres)
    return html.render(
        "viewer.html",
        title=title,
        summary=summary,
        headline=headline(centres, named=named),
        warnings=warnings(record),
        entry=_entry(title, record, centres, thumbnail, summary=summary, named=named),
        data=data,
        table=record_table(record, rows),
        rows=rows,
        pictures=[picture for picture, _ in pictures],
        cobb_angles=cobb_angles(record),
        note=str(record.get("note") or ""),
        facts=facts(record),
        small=small,
        extent_mm=small.extent_mm,
        least_hu=LOWEST_HU,
        most_hu=LOWEST_HU + 255 * STEP_HU,
        step_hu=STEP_HU,
        native_mm=scan.spacing_mm,
        icon=thumbnail,
        windows=WINDOWS,
        niivue=_base64(niivue()),
        scan=_base64(gzip.compress(scan_bytes, 9, mtime=0)),
        mask=_base64(gzip.compress(mask_bytes, 9, mtime=0)),
        script=Markup(_text("viewer.js")),  # ours: it holds no user's text
        licences=Markup(entities.escape(_text("niivue/LICENSE"), quote=False)),
    )


def _base64(data: bytes) -> Markup:
    return Markup(base64.b64encode(data).decode("ascii"))


def _middle(small: Reduced, centres: Mapping[int, np.ndarray]) -> np.ndarray:
    """Return where the crosshair is at first: in the middle vertebra, else in the middle voxel."""
    if centres:
        return np.asarray(list(centres.values())[len(centres) // 2])
    where = figures.centre(small.mask) or [n // 2 for n in small.mask.shape]
    return geometry.voxel_to_world(small.affine, np.asarray(where))


def straightened(
    scan: Volume, mask: np.ndarray, centres: Mapping[int, np.ndarray]
) -> list[tuple[figures.Picture, np.ndarray]]:
    """Return the spine drawn straight, from the side and from the front, with its pixels in RGB.

    Args:
        scan: the CT.
        mask: (x, y, z) uint8 VerSe ids on the grid of `scan.array`.
        centres: VerSe id -> (3,) centre of a body in mm, RAS+, from head to foot, at least one.
    """
    points = np.array(list(centres.values()))
    length = np.linalg.norm(np.diff(points, axis=0), axis=1).sum() + 2 * _BEYOND_MM
    step = max(0.4, float(length) / _CURVED_ROWS)
    curve = curved.centreline(points, step, _BEYOND_MM)
    found = []
    for plane, toward in _TOWARD.items():
        reach = _REACH_MM[plane]
        hu = curved.straighten(scan.array, scan.affine, curve, toward, reach, order=1, fill=-1000)
        cut = curved.straighten(mask, scan.affine, curve, toward, reach, order=0, fill=0)
        grey, layer = overlay.window(hu), figures.fill(cut, figures.level_numbers(cut))
        names = []
        for label, point in centres.items():
            row, apart = curve.nearest(point)
            if apart <= _OFF_MM:
                names.append(figures.Name(-reach[0] / step, row, labels.name(label)))
        (jpeg,) = figures.jpegs([grey], _CURVED_BYTES)
        side = {"sagittal": "from the side", "coronal": "from the front"}[plane]
        picture = figures.Picture(
            grey.shape,
            figures.data_uri(jpeg, "jpeg"),
            layer,
            tuple(names),
            f"The spine drawn straight, seen {side}",
            plane,
            1 / step,
            f"Seen {side}",
        )
        found.append((picture, figures.blend(grey, layer)))
    return found


def _thumbnail(pictures: Sequence[tuple[figures.Picture, np.ndarray]], small: Reduced) -> str:
    """Return a small picture of the spine from the side, as a data URI."""
    if pictures:
        pixels = pictures[0][1]
    else:
        index = (figures.centre(small.mask) or [n // 2 for n in small.mask.shape])[0]
        hu = figures.hung(small.scan, "sagittal", index) * STEP_HU + LOWEST_HU
        cut = figures.hung(small.mask, "sagittal", index)
        pixels = figures.blend(overlay.window(hu), figures.fill(cut, figures.PREDICTION))
        _, y, z = small.spacing_mm
        size = (max(1, round(pixels.shape[0] * z / y)), pixels.shape[1])
        pixels = figures.resize(pixels, size, smooth=True)
    return figures.thumbnail(pixels)


# Words and tables.


def headline(centres: Mapping[int, np.ndarray], *, named: bool) -> str:
    """Return what was found in a few words, such as "T10 to L3, 6 vertebrae"."""
    if not named:
        return "The spine"
    names = [labels.name(i) for i in centres]
    if len(names) < 2:
        return names[0] if names else "No vertebra found"
    return f"{names[0]} to {names[-1]}, {len(names)} vertebrae"


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def warnings(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is uncertain about a scan in plain words, as (title, sentence)."""
    found: list[tuple[str, str]] = []
    vertebrae = record.get("vertebrae") or []
    namings = record.get("namings") or []
    if record.get("certain") is False:
        likely = [one for one in namings[:3] if one["probability"] >= _UNLIKELY]
        likely = likely if len(likely) > 1 else namings[:2]  # never only what is shown
        read = [_naming(one["names"], one["probability"]) for one in likely]
        found.append(
            (
                "The numbering is uncertain",
                f"{' or '.join(read)}, each with its probability. Count from a landmark, such as "
                "C2, the last ribs or the sacrum, before you use the names.",
            )
        )
    doubtful = []
    for one in vertebrae:
        probability = one.get("probability")
        if probability is not None and probability < _LIKELY:
            other = f", next name {one['next_name']}" if one.get("next_name") else ""
            doubtful.append(f"{one.get('name')} ({probability:.2f}{other})")
    if doubtful and len(doubtful) < len(vertebrae):
        found.append(("Names below 0.9", f"{_and(doubtful)}, each with its probability."))
    left_out = [one["name"] for one in vertebrae if one.get("written") is False]
    kept = [one["name"] for one in vertebrae if one.get("cut") and one["name"] not in left_out]
    if kept:
        words = "no volume is measured, and no height of a body that the edge cuts."
        found.append(("Cut by the edge of the scan", f"{_and(kept)}: {words}"))
    if left_out:
        verb = "reach" if len(left_out) > 1 else "reaches"
        found.append(("Left out", f"{_and(left_out)} {verb} beyond the edge of the scan."))
    if record.get("not_found"):
        found.append(
            (
                "Not found",
                f"{_and(record['not_found'])}, between vertebrae that were found. Look there, or "
                "the names beside it are wrong.",
            )
        )
    for name, probability in (record.get("variants") or {}).items():
        if probability is not None and probability >= 0.5:
            found.append(("Variant of the spine", f"{name} (probability {probability:.2f})."))
    if record.get("reversed"):
        found.append(
            (
                "Head and foot",
                "The names would fit better from foot to head. Check the orientation of the file.",
            )
        )
    if record.get("no_vertebra"):
        count = record["no_vertebra"]
        what = "1 piece" if count == 1 else f"{count} pieces"
        found.append(("Left out as no vertebra", f"{what} of the mask."))
    found += [("Warning", str(words)) for words in record.get("warnings") or []]
    return found


def _naming(names: Sequence[str], probability: float) -> str:
    """Return names and probability in short, such as "T10-T12, L1-L3 (0.55)"."""
    return str(Naming(tuple(labels.id_of(name) for name in names), probability))


def _span(names: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys([names[0], names[-1]])) if names else DASH


class Column(NamedTuple):
    """A column of the table of vertebrae: `key` of the record, title, digits; None for text."""

    key: str
    title: str
    digits: int | None
    factor: float = 1.0


_COLUMNS = (
    Column("probability", "Name right, %", 0, 100),
    Column("margin", "Margin", 1),
    Column("next_name", "Next name", None),
    Column("volume_ml", "Volume, ml", 1),
    Column("hu_mean", "Core, mean HU", 0),
    Column("hu_median", "Core, median HU", 0),
    Column("height_anterior_mm", "Anterior height, mm", 1),
    Column("height_middle_mm", "Middle height, mm", 1),
    Column("height_posterior_mm", "Posterior height, mm", 1),
    Column("depth_mm", "Depth, mm", 1),
    Column("wedge", "Anterior / posterior", 2),
    Column("biconcave", "Middle / posterior", 2),
    Column("crush", "Posterior / neighbours", 2),
    Column("genant", "Genant", None),
    Column("distance_below_mm", "To the next below, mm", 1),
    Column("angle_below_deg", "To the next below, °", 1),
)


class Cell(NamedTuple):
    """A cell as text; `why` says why a number is missing."""

    words: str
    why: str = ""


class Row(NamedTuple):
    """A vertebra of the table; `mm` is None where it has no centre to jump to."""

    name: str
    rgb: tuple[int, int, int]
    mm: list[float] | None
    note: str


def vertebra_rows(record: Mapping[str, Any], centres: Mapping[int, np.ndarray]) -> list[Row]:
    """Return the vertebrae of a record, from head to foot, with where they are."""
    rows = []
    for one in record.get("vertebrae") or []:
        label = labels.id_of(str(one["name"]))
        centre = centres.get(label)
        notes = [
            "left out" if one.get("written") is False else "",
            "cut by the edge" if one.get("cut") else "",
        ]
        mm = None if centre is None else [round(float(side), 2) for side in centre]
        rows.append(Row(str(one["name"]), labels.RGB[label], mm, ", ".join(filter(None, notes))))
    return rows


def record_table(
    record: Mapping[str, Any], rows: Sequence[Row]
) -> tuple[list[str], list[list[Cell]]]:
    """Return the titles of the columns that the record has, and the cells of each row."""
    vertebrae = record.get("vertebrae") or []
    columns = [c for c in _COLUMNS if any(one.get(c.key) is not None for one in vertebrae)]
    cells = []
    for one, row in zip(vertebrae, rows, strict=True):
        line = []
        for column in columns:
            value = one.get(column.key)
            if value is None:
                reasons = one.get("not_measured") or {}
                line.append(Cell(DASH, str(reasons.get(column.key) or row.note or "not measured")))
            elif column.digits is None or isinstance(value, str | bool):
                line.append(Cell(str(value)))
            else:
                words = f"{float(value) * column.factor:.{column.digits}f}".replace("-", "−")
                line.append(Cell(words))
        cells.append(line)
    return [column.title for column in columns], cells


_UNITS = (("_mm", " mm"), ("_deg", "°"), ("_ml", " ml"), ("_hu", " HU"), ("_s", " s"))


_TOLD = (
    "case", "vertebrae", "cobb_angles", "namings", "variants", "warnings", "not_found", "certain",
    "reversed", "no_vertebra", "summary", "note",
)  # fmt: skip
"""What a record says that other parts of the page show."""

_FACTS = {
    "spinejax": "spinejax",
    "model": "Digest of the model",
    "input": "Digest of the scan",
    "seconds": "Seconds to find it",
    "peak_gb": "Memory, GB",
    "calibrated": "Probabilities calibrated",
}


def cobb_angles(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the Cobb angles of the spine, as (name, angle with its end vertebrae)."""
    found = []
    for name, one in (record.get("cobb_angles") or {}).items():
        if not isinstance(one, Mapping):
            continue
        angle = one.get("cobb_deg")
        words = f"{DASH} ({one.get('not_measured') or 'not measured'})"
        if angle is not None:
            words = f"{angle:.1f}°, {one.get('upper')} to {one.get('lower')}".replace("-", "−")
        found.append((f"{name[:1].upper()}{name[1:]}".replace("_", " "), words))
    return found


def facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the record says of the scan as a whole and of the model, as (name, value)."""
    found = []
    for key, value in record.items():
        if key not in _TOLD:
            found += _fact(key, value)
    return found


def _fact(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [fact for name, one in value.items() for fact in _fact(f"{key}, {name}", one)]
    ending, unit = next(((e, u) for e, u in _UNITS if key.endswith(e)), ("", ""))
    name = key.removesuffix(ending).replace("_", " ")
    name = _FACTS.get(key, name[:1].upper() + name[1:])
    if value is None:
        return [(name, DASH)]
    if isinstance(value, list | tuple):
        words = ", ".join(map(str, value))
    elif isinstance(value, bool):
        words = "yes" if value else "no"
    elif isinstance(value, float):
        words = f"{value:.4g}".replace("-", "−")
    else:
        words = str(value)
    return [(name, words + unit)] if words else []


# The index of a folder.


def _entry(
    title: str,
    record: Mapping[str, Any],
    centres: Mapping[int, np.ndarray],
    thumbnail: str,
    *,
    summary: str,
    named: bool,
) -> dict[str, Any]:
    """Return what the index of a folder shows of a page."""
    names = [labels.name(i) for i in centres]
    certain = record.get("certain")
    return {
        "title": title,
        "summary": summary,
        "levels": _span(names) if named else "spine",
        "first": labels.order(next(iter(centres))) if centres else 99,
        "count": len(names),
        "numbering": "" if certain is None or not names else "certain" if certain else "uncertain",
        "warnings": len(warnings(record)),
        "thumbnail": thumbnail,
    }


def write_index(folder: Path, *, overwrite: bool = False) -> Path | None:
    """Write the index of a folder's pages, if there are two or more.

    The index shows every page of a scan in the folder, also of earlier commands.

    Args:
        folder: with the pages.
        overwrite: replace an index that this program did not write, too.

    Returns:
        The file, or None if there are fewer than two pages.

    Raises:
        InputError: there is another file of that name.
    """
    entries = [entry for path in sorted(folder.glob("*.html")) if (entry := _read_entry(path))]
    if len(entries) < 2:
        return None
    path = folder / INDEX
    text = html.render("index.html", entries=entries, folder=folder.absolute().name)
    files.write_text(path, text, "index", overwrite=overwrite)
    return path


def _read_entry(path: Path) -> dict[str, Any] | None:
    """Return the entry of a page; None for a file that is no such page."""
    try:
        with files.open_regular(path) as file:
            head = file.read(_ENTRY_WITHIN).decode("utf-8", errors="replace")
        found = _ENTRY.search(head)
        entry = json.loads(found.group(1)) if found else None
        if entry is None or not _JPEG.fullmatch(entry["thumbnail"]):
            return None
        return {
            "title": str(entry["title"]),
            "summary": str(entry["summary"]),
            "levels": str(entry["levels"]),
            "first": float(entry["first"]),
            "count": int(entry["count"]),
            "numbering": str(entry["numbering"]),
            "warnings": int(entry["warnings"]),
            "thumbnail": entry["thumbnail"],
            "link": quote(os.fsencode(path.name)),
        }
    except (OSError, ValueError, TypeError, LookupError, files.InputError) as problem:
        logger.warning("%s: is not listed in %s (%s)", path, INDEX, problem)
        return None
