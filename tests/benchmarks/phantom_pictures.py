"""Real scans beside phantoms without and with what earlier networks erred at.

    python -m tests.benchmarks.phantom_pictures --out=OUT [--data=DIR] [--rows 1 5]

Writes OUT/phantoms_body.png and OUT/phantoms_scan.png: for each theme a row with a real scan of
DIR, a phantom without the feature and the same phantom with it. The two phantoms of a row have the
same key. They differ only in `before` and `after` of the row: random numbers of the person or of
the scan, by their names, and numbers that no random number can make. Keys and numbers were chosen
by looking, so that the theme is plain to see.

Real scans are found by the names of their files. A row says so if its scan is not there, or if no
scan at hand shows its theme. All panels of a row have one scale, and all have one grey window.
"""

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from spinejax import geometry, numerics, overlay
from spinejax.io import scanfile
from spinejax.labels import id_of
from spinejax.phantom import centroids
from spinejax.phantom.draws import Draws, draw
from spinejax.phantom.person import anatomy
from spinejax.phantom.scanner import acquisition, scan_plan
from spinejax.reports import figures
from spinejax.volume import PLANES, Volume

WINDOW_HU = (-200.0, 600.0)
"""Black up to the first value, white from the second on."""
LIDC = "LIDC-IDRI-0003_ct.nii.gz"
TOTALSEGMENTATOR = "example_ct.nii.gz"
TPTBOX = "sub-ct_label-22_ct.nii.gz"
# Random numbers of every scan here, unless a row has others: the patient lies still, the kernel is
# between soft and sharp, and there is little noise.
SCAN = {
    "kind": 0.5, "moves": 1.0, "tilted": 1.0, "turn": 0.0, "circle": 1.0, "far off": 1.0,
    "coarse": 1.0, "sharp": 0.3, "noise": -0.3, "gradual": 0.4, "shading": 0.0, "cupping": 0.0,
    "voltage": 0.0, "offset": 0.0, "clip": 0.0,
    "starvation": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One theme.

    Attributes:
        words: The theme.
        figure: Name of the picture that it is in.
        plane: One of `volume.PLANES`.
        size_mm: Width and height of a panel.
        key: Of the person and of the scan.
        at: VerSe name, and mm to the left, to posterior and to superior from its body's centroid:
            the middle of the phantoms' panels.
        real: Name of a file and the voxel (x, y, z) in the middle of its panel; None if no scan at
            hand shows the theme.
        both: Numbers of both phantoms: "NAME" of a random number of the person, "scan NAME" of one
            of the scan, "set PART.NAME" of what `anatomy` returns, "slices mm" thickness of slices.
        before: Those of the phantom without the feature.
        after: Those of the phantom with it.
        spacing_mm: Side of pixels, and distance of axial slices.
    """

    words: str
    figure: str
    plane: str
    size_mm: tuple[float, float]
    key: int
    at: tuple[str, float, float, float]
    real: tuple[str, tuple[int, int, int]] | None = None
    both: Mapping[str, float] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    spacing_mm: tuple[float, float] = (0.7, 2.5)

    def numbers(self, column: str) -> dict[str, dict[str, float]]:
        """Return the numbers of "before" or "after" by their kinds."""
        given = {**self.both, **(self.before if column == "before" else self.after)}
        found: dict[str, dict[str, float]] = {"person": {}, "scan": {}, "set": {}, "slices": {}}
        for name, value in given.items():
            first, _, rest = name.partition(" ")
            known = first in ("scan", "set", "slices")
            found[first if known else "person"][rest if known else name] = value
        return found


ROWS = [
    Row(
        "Bodies between aorta, lung and ribs", "body", "axial", (150, 110), 3, ("T8", 0, 0, 6),
        (LIDC, (244, 350, 56)),
        both={"tissue: plain": 0.9, "tissue: contrast": 0.7, "tissue: phase": 0.5},
        # No random number undoes this: earlier phantoms had fat up to 34 mm beside the midline.
        before={
            "set tissue.pleura": 7.0, "set tissue.recess": 34.0, "set tissue.behind": -18.0,
            "profile: wide aorta": 0.0, "profile: aorta to the left": 0.0,
        },
        after={"profile: wide aorta": 1.6, "profile: aorta to the left": 0.7},
    ),
    Row(
        "Heads of ribs and transverse processes", "body", "axial", (110, 80), 5, ("T8", 0, 18, 6),
        (LIDC, (240, 370, 46)),
        # No random number removes a rib. This hides heads, necks and tubercles.
        before={"set ribs.low": math.inf, "set ribs.high": -math.inf},
    ),
    Row(
        "Contrast, early phase", "body", "axial", (220, 150), 10, ("T6", 0, -35, 0),
        (LIDC, (249, 310, 74)),
        both={"contents: palette: mixed": 0.9},
        before={"tissue: plain": 0.1},
        after={"tissue: plain": 0.9, "tissue: contrast": 0.9, "tissue: phase": 0.1},
    ),
    Row(
        "Contrast, late phase", "body", "axial", (220, 150), 3, ("L2", 0, -25, 0),
        both={"contents: palette: urine": 0.7},
        before={"tissue: plain": 0.1},
        after={"tissue: plain": 0.9, "tissue: contrast": 0.9, "tissue: phase": 0.85},
    ),
    Row(
        "Bridging osteophytes", "body", "sagittal", (80, 95), 20, ("T8", -9, -4, 0),
        (LIDC, (222, 340, 27)),
        both={
            "person: age": 0.75, "person: worn": 0.8,
            "pathology: upper rim: azimuth": 0.0, "pathology: lower rim: azimuth": 0.0,
            "pathology: upper rim: bridge": 0.9, "pathology: lower rim: bridge": 0.9,
            "pathology: upper rim: size": 0.9, "pathology: lower rim: size": 0.9,
        },
        before={"pathology: DISH": 0.99, "pathology: bridge": 0.99},
        after={"pathology: DISH": 0.0},
    ),
    Row(
        "Bodies with little contrast to discs", "scan", "sagittal", (105, 68), 13, ("L3", 0, 12, 0),
        (TPTBOX, (36, 36, 23)),
        both={"person: age": 0.45, "person: brittle": 0.0, "density: mean": 0.5, "scan sharp": 0.6},
        before={"bone: density": 1.5},
        after={"bone: density": -1.2},
        spacing_mm=(1.0, 1.0),
    ),
    Row(
        "Slices of 5 mm", "scan", "sagittal", (130, 115), 13, ("L3", 0, 10, 0),
        both={"person: age": 0.45, "person: brittle": 0.0},
        before={"slices mm": 1.0},
        after={"slices mm": 5.0},
    ),
    Row(
        "Soft kernel", "scan", "axial", (130, 90), 7, ("T12", 0, 10, 0),
        (LIDC, (232, 356, 4)),
        before={"scan sharp": 0.95},
        after={"scan sharp": 0.02},
    ),
    Row(
        "Metal in the hip", "scan", "axial", (150, 110), 7, ("L5", 88, -12, -110),
        (TOTALSEGMENTATOR, (90, 60, 8)),
        before={"implant: hip": 0.99},
        after={"implant: hip": 0.0},
        spacing_mm=(0.9, 3.0),
    ),
    Row(
        "Screws in pedicles", "scan", "axial", (110, 80), 14, ("L4", 0, 15, 4),
        both={"tissue: plain": 0.1, "scan metal": 0.8},
        before={"implant: screws": 0.99},
        after={"implant: screws": 0.0, "implant: screw: count": 0.7, "implant: screw: last": 0.1},
        spacing_mm=(0.7, 1.5),
    ),
]  # fmt: skip


# The phantoms


def _drawn(key: jax.Array, build: Callable, numbers: Mapping[str, jax.Array]) -> dict:
    """Return `build(draws)`, with these random numbers by name; NaN leaves that of the key."""
    used = set()

    def held(draws: Draws) -> Draws:
        def take(kind: str, name: str, shape: tuple[int, ...]) -> jax.Array:
            number = draws._take(kind, name, shape)
            if name not in numbers:
                return number
            used.add(name)
            return jnp.where(jnp.isnan(numbers[name]), number, numbers[name])

        return Draws(take, draws._number)

    found = draw(key, lambda draws: build(held(draws)))
    if unknown := set(numbers) - used:
        raise KeyError(f"no random number has the name {' or '.join(sorted(unknown))}")
    return found


@jax.jit
def _person(key: jax.Array, numbers: dict[str, jax.Array]) -> dict:
    rates = anatomy.anatomy.__kwdefaults__
    return _drawn(key, lambda draws: anatomy._person(draws, **rates), numbers)


@jax.jit
def _protocol(key: jax.Array, person: dict, numbers: dict[str, jax.Array]) -> dict:
    limits = ((0.25, 5.0), (0.0, 700.0), math.inf, jnp.asarray(scan_plan.REGIONS["any"]))
    return _drawn(key, lambda draws: scan_plan._protocol(draws, person, *limits), numbers)


def _all(kind: str) -> dict[str, float]:
    """NaN for every number of a kind that a row names, so that all rows share one program."""
    names = {name for row in ROWS for c in ("before", "after") for name in row.numbers(c)[kind]}
    return dict.fromkeys(sorted(names), math.nan)


@numerics.fixed()
def phantom(row: Row, column: str) -> tuple[Volume, np.ndarray]:
    """Return one slice of "before" or "after", and the voxel in the middle of its panel."""
    numbers = row.numbers(column)
    key = jax.random.key(row.key)
    person = _person(key, {**_all("person"), **numbers["person"]})
    for name, value in numbers["set"].items():
        part, _, item = name.partition(".")
        person[part][item] = jnp.full_like(person[part][item], value)
    scan = {**_all("scan"), **SCAN, **numbers["scan"]}
    protocol = dict(_protocol(jax.random.fold_in(key, 1), person, scan))
    ids, points = (np.asarray(values) for values in centroids(person))
    name, *offset = row.at
    middle = points[list(ids).index(id_of(name))] + np.array(offset)
    fine, thick = row.spacing_mm
    thick = numbers["slices"].get("mm", thick)
    spacing = np.array([fine, fine, thick])
    extent = np.insert(np.array(row.size_mm, float), PLANES[row.plane], 0.0)
    shape = 2 * np.ceil(0.5 * extent / spacing).astype(int) + 1
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = middle - spacing * (shape // 2)
    for item, value in {
        "lower": affine[:3, 3],
        "upper": affine[:3, 3] + spacing * (shape - 1),
        "spacing": spacing,
        "slice_mm": thick,
        "axial_mm": thick,
        "pitch_mm": thick,
    }.items():
        protocol[item] = jnp.asarray(value, jnp.float32)
    protocol["slice_axis"] = jnp.int32(2)
    x, y, z = (int(n) for n in shape)
    plan = scan_plan.Scan((x, y, z), affine, "LPS", protocol, scan_plan.Storage())
    hu, _ = acquisition.acquire(person, plan)
    return Volume(hu, geometry.LPS_TO_RAS @ affine), shape // 2


# The figure

WIDTH, MARGIN, GAP, LINE, LETTERS = 1200, 15, 10, 55, 31
LEVELS = 32
"""Grey levels of the panels: more of them make larger files, since noise does not compress."""
_PANEL = (WIDTH - 2 * MARGIN - 2 * GAP) // 3


def cut(volume: Volume, row: Row, middle: np.ndarray) -> np.ndarray:
    """Return the slice through a voxel as a picture (rows, columns) uint8."""
    wide, high = row.size_mm
    pixel = wide / _PANEL
    across, down = (axis for axis in range(3) if axis != PLANES[row.plane])
    u = (np.arange(_PANEL) - (_PANEL - 1) / 2) * pixel
    v = (np.arange(round(high / pixel)) - (round(high / pixel) - 1) / 2) * pixel
    v = v if row.plane == "axial" else -v  # the top is anterior in axial slices, else superior
    where = [np.full((len(v), len(u)), float(i)) for i in middle]
    where[across] += u / volume.spacing_mm[across]
    where[down] += v[:, None] / volume.spacing_mm[down]
    image = np.asarray(volume.array, np.float32)
    drawn = ndimage.map_coordinates(image, where, order=1, mode="constant", cval=-1024.0)
    return overlay.window(drawn, WINDOW_HU)


def real_panel(row: Row, data: Path | None) -> np.ndarray | None:
    """Return the panel of the real scan, or None without one."""
    if row.real is None or data is None:
        return None
    name, middle = row.real
    found = sorted(data.rglob(name))
    if not found:
        return None
    return cut(scanfile.read_volume(found[0]), row, np.array(middle))


def panels(row: Row, data: Path | None) -> list[np.ndarray | None]:
    """Return the pictures of a row: real scan, phantom without and with the feature."""
    drawn = [phantom(row, column) for column in ("before", "after")]
    return [real_panel(row, data), *(cut(volume, row, middle) for volume, middle in drawn)]


def figure(rows: list[tuple[Row, list[np.ndarray | None]]]) -> Image.Image:
    """Draw rows of panels under their themes."""
    heights = [next(p for p in found if p is not None).shape[0] for _, found in rows]
    total = MARGIN + LINE + sum(heights) + len(rows) * (LINE + GAP) + MARGIN
    picture = Image.new("L", (WIDTH, total), 12)
    pen = ImageDraw.Draw(picture)
    fonts = figures.matplotlib_data() / "fonts" / "ttf"
    bold = ImageFont.truetype(fonts / "DejaVuSans-Bold.ttf", LETTERS)
    plain = ImageFont.truetype(fonts / "DejaVuSans.ttf", LETTERS)
    lefts = [MARGIN + i * (_PANEL + GAP) for i in range(3)]
    for left, head in zip(lefts, ("real scan", "phantom without", "phantom with"), strict=True):
        pen.text((left, MARGIN), head, 170, plain)
    top = MARGIN + LINE
    for (row, found), height in zip(rows, heights, strict=True):
        pen.text((MARGIN, top + 8), row.words, 240, bold)
        top += LINE
        for left, panel in zip(lefts, found, strict=True):
            if panel is None:
                pen.rectangle((left, top, left + _PANEL - 1, top + height - 1), 26)
                middle = (left + _PANEL / 2, top + height / 2)
                pen.text(middle, "no real example\nat hand", 170, plain, "mm", align="center")
                continue
            step = 255 / (LEVELS - 1)
            coarse = np.rint(np.rint(panel / step) * step).astype(np.uint8)
            picture.paste(Image.fromarray(coarse), (left, top))
        top += height + GAP
    return picture


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=range(1, len(ROWS) + 1))
    options = parser.parse_args(words)
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [ROWS[i - 1] for i in options.rows]
    for name in dict.fromkeys(row.figure for row in chosen):
        rows = [(row, panels(row, options.data)) for row in chosen if row.figure == name]
        path = options.out / f"phantoms_{name}.png"
        figure(rows).save(path, optimize=True)
        print(path)


if __name__ == "__main__":
    main()
