"""Inventory of a dataset folder: its counts beside the published ones, and every problem by file.

Published counts: VerSe'19 from Loeffler et al. 2020 (10.1148/ryai.2020190138); VerSe'20 from Liebl
et al. 2021 (10.1038/s41597-021-01060-0) and Sekuboyina et al. 2021 (10.1016/j.media.2021.102166).
105 scans are in both editions; the subject-based download of '20 holds only the 214 others.
"""

import logging
import os
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spinejax import geometry, labels, plausible
from spinejax.datasets import copies, splits, verse
from spinejax.datasets.verse import Case
from spinejax.errors import InputError, describe
from spinejax.io import centroid_json, dicom, nnunet, scanfile
from spinejax.io.grids import relation
from spinejax.label_schemes import BINARY
from spinejax.progress import Progress, silent
from spinejax.text_table import text_table
from spinejax.volume import LabelVolume, Volume

logger = logging.getLogger("spinejax")

CENTROID_TOLERANCE_MM = 5.0
"""A centroid that lies further outside its own vertebra is a problem."""

# The centre of C1 lies in its ring, near the dens of C2: in sub-gl003, 9 mm from the bone of C1.
_C1_TOLERANCE_MM = 15.0
# Each thread holds a mask of up to several hundred MB.
_THREADS = 2
_SUBSETS = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Expected:
    """Published counts of one download; a subset without a published count is missing."""

    title: str
    scans: Mapping[str, int]
    vertebrae: Mapping[str, int]
    total_scans: int
    total_patients: int
    total_vertebrae: int


EXPECTED = {
    "verse19": Expected(
        "VerSe'19",
        {"train": 80, "val": 40, "test": 40},
        {"train": 862, "val": 434, "test": 429},
        160,
        141,
        1725,
    ),
    "verse20": Expected(
        "VerSe'20", {"train": 113, "val": 103, "test": 103}, {"train": 1428}, 319, 300, 4142
    ),
    # Differences: 319 - 105 scans, 355 - 141 patients, 4505 - 1725 vertebrae.
    "verse20 new": Expected(
        "VerSe'20 without the scans of '19",
        {"train": 61, "val": 80, "test": 73},
        {},
        214,
        214,
        2780,
    ),
}
EXPECTED_BOTH = (374, 355, 4505)
"""Scans, patients and vertebrae of both editions together."""


Look = Callable[[Volume | None, LabelVolume | None, bool], str]
"""Makes a picture of CT and mask; the last argument says whether the labels are VerSe ids."""


@dataclass(frozen=True)
class CaseReport:
    """What was found in the files of one scan.

    Attributes:
        id: of the case.
        subset: "train", "val" or "test" if the folders say so.
        ids: the VerSe ids in the mask from head to foot; empty for other numbers.
        voxels: along each side, and their size in mm, as text; "" if no file could be read.
        problems: one line each, without the name of the case.
        picture: what `Look` made; "" without.
    """

    id: str
    subset: str | None
    ids: tuple[int, ...]
    voxels: str
    problems: tuple[str, ...]
    picture: str


@dataclass(frozen=True)
class DoctorReport:
    """The inventory of a data set.

    Attributes:
        lines: the inventory, line by line.
        problems: one line each with the name of the file.
        cases: what was found, scan by scan.
        others: the problems that are no scan's: folders that cannot be listed.
    """

    lines: list[str]
    problems: list[str]
    cases: list[CaseReport]
    others: list[str]


@dataclass
class _Finding:
    """The contents of one case.

    `is_as_given` is False if its mask does not have the scheme that the user gave, or does not tell
    vertebrae apart. `likely` names the schemes that it seems to have instead. `voxels` is the
    digest of its CT, "" without. `series` describes the DICOM series of its CT. `label_map`
    says how what is named like a CT shows that it is a label map.
    """

    ids: tuple[int, ...] = ()
    is_as_given: bool = True
    likely: tuple[str, ...] = ()
    voxels: str = ""
    series: tuple[str, ...] = ()
    label_map: str = ""
    grid: str = ""
    picture: str = ""
    problems: list[str] = field(default_factory=list)


def doctor(
    root: str | os.PathLike[str],
    exclude_gl: bool = False,
    *,
    scheme: str = "verse",
    look: Look | None = None,
    progress: Progress = silent,
) -> DoctorReport:
    """Read and check every scan, mask and centroid file of a dataset.

    Files are read to their end, so that truncated ones are found. A file that cannot be read is a
    problem in the report, not an error.

    Args:
        root: folder of a dataset, see `verse.index_dataset`.
        exclude_gl: leave out the `gl*` scans.
        scheme: the numbers in the masks, one of `label_schemes.NAMES`.
        look: makes the picture of a scan; None for no pictures, which takes less memory.
        progress: shows how many scans are read.

    Returns:
        The inventory and the problems.

    Raises:
        InputError: `root` is missing, is no folder, or holds no scans.
    """
    root = scanfile.named(Path(root))
    unlisted: dict[str, str] = {}
    cases = verse.index_dataset(root, exclude_gl, unlisted)
    findings: list[_Finding] = []
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        progress("reading scans", len(cases), "scan") as bar,
    ):
        for case, finding in zip(
            cases, pool.map(lambda case: _examine(case, root, scheme, look), cases), strict=True
        ):
            finding.problems[:0] = case.problems
            findings.append(finding)
            bar.advance()
    _advise(cases, findings, root)
    problems = list(unlisted.values())
    for case, finding in zip(cases, findings, strict=True):
        problems += [_line(case.id, text) for text in finding.problems]
    equal = _copies(cases, findings)
    problems += [f"{', '.join(ids)}: {_EQUAL}" for ids in equal]
    for ids in equal:
        for case, finding in zip(cases, findings, strict=True):
            if case.id in ids:
                names = ", ".join(other for other in ids if other != case.id)
                finding.problems.append(f"equals {names}; remove all but one")
    found = [
        CaseReport(
            case.id,
            case.subset,
            finding.ids,
            finding.grid,
            tuple(_line(case.id, text).removeprefix(f"{case.id}: ") for text in finding.problems),
            finding.picture,
        )
        for case, finding in zip(cases, findings, strict=True)
    ]
    scans = [case for case, one in zip(cases, findings, strict=True) if not one.label_map]
    lines = _summary(root, scans)
    lines += _label_maps(cases, findings)
    lines += _series(findings, cases)
    lines += _scheme(cases, findings, scheme)
    lines += _table(scans, [one for one in findings if not one.label_map])
    lines += _histogram(cases, findings)
    return DoctorReport(lines, problems, found, list(unlisted.values()))


def _advise(cases: Sequence[Case], findings: Sequence[_Finding], root: Path) -> None:
    """Say what to do about label maps that are named like CTs."""
    scans = [
        case
        for case, finding in zip(cases, findings, strict=True)
        if case.image and not finding.label_map
    ]
    for case, finding in zip(cases, findings, strict=True):
        path = case.image
        if path is None or not finding.label_map:
            continue
        owners = [
            other
            for other in scans
            if other.image
            and other.image.parent == path.parent
            and case.id.lower().startswith((f"{other.id.lower()}_", f"{other.id.lower()}-"))
        ]
        ending = path.name.removeprefix(scanfile.stem(path))
        what = "end its name with _seg and begin it like that of its CT"
        if case.labels is not None:
            what = "put the CT in its place"
        elif owners:
            owner = max(owners, key=lambda other: len(other.id))
            what = f"name it {owner.id}_seg{ending} if it is the mask of {owner.id}"
            if owner.labels is not None:
                what = f"move it away: {owner.id} has another mask"
        text = f"{_shown(path, root)}: {finding.label_map}; {what}"
        # Without a mask or centroids is what such a file should be.
        kept = [one for one in finding.problems if case.labels or one not in case.problems]
        finding.problems[:] = [text, *kept]


def _label_maps(cases: Sequence[Case], findings: Sequence[_Finding]) -> list[str]:
    paths = [
        case.image
        for case, finding in zip(cases, findings, strict=True)
        if finding.label_map and case.image
    ]
    if not paths:
        return []
    one = len(paths) == 1
    what = "is a label map, but named like a CT" if one else "are label maps, but named like CTs"
    return [f"others    {len(paths)} {what} (first: {paths[0].name}); see below"]


def _line(case: str, text: str) -> str:
    """Return a problem on one line that names its case once; file names may hold line ends."""
    text = " ".join(text.split())
    return text if text.startswith(f"{case}.") else f"{case}: {text}"


def _series(findings: Sequence[_Finding], cases: Sequence[Case]) -> Iterable[str]:
    """List the DICOM series of each case."""
    for case, finding in zip(cases, findings, strict=True):
        if finding.series:
            yield f"DICOM series of {case.id}, by number:"
            yield from (f"  {one}" for one in finding.series)


_EQUAL = "one scan under several names (equal voxels); remove all but one"


def _copies(cases: Sequence[Case], findings: Sequence[_Finding]) -> list[list[str]]:
    """Return the scans that lie under several names, beyond those that the index knows."""
    by_digest: dict[str, list[str]] = defaultdict(list)
    for case, finding in zip(cases, findings, strict=True):
        if finding.voxels and case.duplicate_of is None:
            by_digest[finding.voxels].append(case.id)
    return [ids for ids in by_digest.values() if len(ids) > 1]


def _examine(case: Case, root: Path, scheme: str, look: Look | None) -> _Finding:
    """Read and check the files of one case."""
    finding = _Finding()
    image: Volume | None = None
    mask: LabelVolume | None = None
    with _noting(finding):
        if case.image:
            if scanfile.is_dicom(case.image):
                finding.series = tuple(map(str, dicom.series_in(case.image)))
            image = scanfile.read_volume(case.image)
            finding.grid = _grid(image)
            finding.label_map = plausible.label_map(image) or ""
            name = _shown(case.image, root)
            if not finding.label_map:
                finding.voxels = copies.voxel_digest(image)
                finding.problems += [f"{name}: {doubt}" for doubt in plausible.check(image, name)]
    drawn: tuple[Volume | None, LabelVolume | None] = image, None
    if image is not None and finding.label_map:
        numbers = np.clip(image.native, 0, 255).astype(np.uint8)
        drawn = None, LabelVolume(numbers, image.native_affine)
    if image is not None:
        if look is None:
            drawn = None, None
        image = _without_voxels(image)  # which frees the memory before the mask is read
    with _noting(finding):
        if case.labels:
            mask, finding.is_as_given = _read_mask(case.labels, case.edition, scheme)
    if mask is not None and case.labels is not None:
        ids = _present(mask)
        # A mask with no number but 1 is binary: no scan shows C1 alone.
        finding.is_as_given = finding.is_as_given and not (case.edition is None and ids == (1,))
        if scheme != BINARY:
            found = mask.found or labels.from_head_to_foot(mask.array)
            finding.likely = labels.likely_schemes(found, scheme)
            finding.is_as_given = finding.is_as_given and not finding.likely
        if finding.is_as_given:
            finding.ids = ids
            finding.problems += _check_mask(ids, mask.reserved, _shown(case.labels, root))
        if image is not None and case.image is not None:
            shown = _shown(case.labels, root), _shown(case.image, root)
            with _noting(finding):
                finding.problems += _check_grids(image, mask, *shown)
        finding.grid = finding.grid or _grid(mask)
        drawn = drawn[0], mask
    if case.centroids and finding.is_as_given:
        with _noting(finding):
            finding.problems += _check_centroids(case, image, mask, finding.ids, root)
    if look is not None and drawn != (None, None):
        with _noting(finding):
            finding.picture = look(*drawn, mask is not None and finding.is_as_given)
    return finding


def _grid(volume: Volume) -> str:
    """Return the voxels of a file along each side and their size."""
    spacing = " x ".join(f"{mm:.3g}" for mm in geometry.spacing_mm(volume.native_affine))
    return f"{_sides(volume.native.shape)}, {spacing} mm"


@contextmanager
def _noting(finding: _Finding) -> Iterator[None]:
    """Turn whatever goes wrong into a problem: the files of the other cases are still checked."""
    try:
        yield
    except Exception as error:
        logger.debug("%s", traceback.format_exc())
        finding.problems.append(describe(error))


def _read_mask(path: Path, edition: str | None, scheme: str) -> tuple[LabelVolume, bool]:
    """Return a mask and whether its numbers are those of `scheme`; outside VerSe others may be.

    Masks of "binary" numbers have no ids.
    """
    valid = scanfile.valid_labels(scheme)
    try:
        return scanfile.read_labels(path, valid), valid is not None
    except InputError:
        if edition is not None or nnunet.of_mask(path) is not None:
            raise
        return scanfile.read_labels(path, valid=None), False


def _shown(path: Path, root: Path) -> str:
    return path.name if path == root else str(path.relative_to(root))


def _without_voxels(volume: Volume) -> Volume:
    """Return a volume on the same grid whose array takes no memory."""
    nothing = np.broadcast_to(np.zeros((), np.int16), volume.native.shape)
    return Volume(nothing, volume.native_affine, volume.disk)


def _present(mask: LabelVolume) -> tuple[int, ...]:
    """Return the ids in the mask from head to foot."""
    counts = np.zeros(256, np.int64)
    for k in range(mask.shape[2]):  # by slices, because bincount copies its input to 8 bytes each
        counts += np.bincount(mask.array[:, :, k].ravel(), minlength=256)
    found = [int(i) for i in np.flatnonzero(counts) if i]
    return tuple(sorted(found, key=lambda i: labels.order(i) if i in labels.NAMES else i))


def _check_mask(ids: Sequence[int], reserved: Sequence[int], shown: str) -> Iterable[str]:
    for label in reserved:
        name = labels.RESERVED[label]
        yield f"{shown} has label {label} ({name}), which is no vertebra and counts as background"
    if not ids:
        yield f"{shown} has no vertebra" if reserved else f"{shown} is empty"
    for upper, lower in zip(ids, ids[1:], strict=False):
        if lower not in labels.successors(upper):
            yield f"{shown} goes from {labels.name(upper)} to {labels.name(lower)}"


def _check_grids(
    image: Volume, mask: LabelVolume, mask_name: str, image_name: str
) -> Iterable[str]:
    """Check that mask and CT have the same grid; axis order and a small shift do not matter.

    Raises:
        InputError: the two cannot be used together.
    """
    how, _ = relation(image, mask)
    if how == "same":
        if mask.orientation != image.orientation:
            stored = f"{mask.orientation}, its CT in {image.orientation}"
            yield f"{mask_name} is stored in {stored} (read correctly)"
        return
    if mask.shape != image.shape:
        sides = _sides(image.to_native(mask.array).shape), _sides(image.native.shape)
        what = f"has {sides[0]} voxels, its CT {image_name} {sides[1]}"
    else:
        distance = geometry.max_corner_distance_mm(mask.affine, image.affine, image.shape)
        what = f"lies up to {distance:.3g} mm off its CT {image_name}"
    yield f"{mask_name} {what} (it will be {how.replace('assumed', 'paired voxel by voxel')})"


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _check_centroids(
    case: Case, image: Volume | None, mask: LabelVolume | None, ids: Sequence[int], root: Path
) -> Iterable[str]:
    path = case.centroids
    if path is None:
        return []
    shown = _shown(path, root)
    problems = []
    direction = centroid_json.read_direction(path)
    grid = image if image is not None else mask
    if grid is None:
        return []
    points = centroid_json.read_centroids(path, grid, edition=case.edition, mask=mask)
    if direction is not None and direction != grid.orientation:
        problems.append(
            f"{shown} has direction {direction}, the scan {grid.orientation} (points are turned)"
        )
    if mask is None:
        return problems
    for label, point in points.items():
        name = labels.name(label)
        if label not in ids:
            problems.append(f"{shown} has a centroid of {name}, which is not in the mask")
            continue
        limit = _C1_TOLERANCE_MM if label == 1 else CENTROID_TOLERANCE_MM
        world = geometry.voxel_to_world(grid.affine, point)
        distance = distance_to_label_mm(world, label, mask, limit)
        if distance > limit:
            far = f"{distance:.1f} mm" if np.isfinite(distance) else f"more than {limit:g} mm"
            problems.append(f"{shown}: the centroid of {name} lies {far} outside its mask")
    without = [labels.name(i) for i in ids if i in labels.NAMES and i not in points]
    if without:
        problems.append(f"{shown} lacks a centroid of {', '.join(without)}")
    return problems


def distance_to_label_mm(
    world: np.ndarray, label: int, mask: LabelVolume, limit_mm: float
) -> float:
    """Return the distance in mm from a world point (3,) to the nearest voxel centre of a label.

    It is 0 if the point lies in a voxel of the label, and infinite if the label has no voxel within
    `4 * limit_mm`.
    """
    index = geometry.world_to_voxel(mask.affine, world)
    if centroid_json.label_at(index, mask, mask) == label:
        return 0.0
    # The box of indices around the ball of this radius, on a sheared grid, too.
    rows = np.linalg.norm(np.linalg.inv(mask.affine[:3, :3]), axis=1)
    reach = np.ceil(4 * limit_mm * rows)
    low = np.clip(index - reach, 0, mask.shape).astype(int)
    high = np.clip(index + reach + 1, 0, mask.shape).astype(int)
    box = mask.array[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    voxels = np.argwhere(box == label) + low
    if not len(voxels):
        return float("inf")
    return float(np.linalg.norm(geometry.voxel_to_world(mask.affine, voxels) - world, axis=1).min())


def _summary(root: Path, cases: Sequence[Case]) -> list[str]:
    usable = verse.usable(cases)
    copies = sum(case.duplicate_of is not None for case in cases)
    patients = len({case.subject for case in cases})
    complete = f"{len(usable)} usable (CT and mask)"
    lines = [
        f"dataset   {root}",
        f"scans     {len(cases)} listed, of {patients} patients; {complete}",
    ]
    if copies:
        lines.append(
            f"copies    {copies} of scans that lie in several folders, each scan is used once"
        )
    moved = splits.moved_patients(usable)
    if moved:
        lines.append(
            f"subsets   {len(moved)} patients are in several official subsets; the official split "
            f"puts each wholly into the most held-out one: {', '.join(moved)}"
        )
    return lines


def _scheme(cases: Sequence[Case], findings: Sequence[_Finding], given: str) -> list[str]:
    """Return how many masks have other numbers than those that were said to be in them."""
    if given == BINARY:
        return []
    lines = _named(cases) if given == "verse" else []
    others: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for case, finding in zip(cases, findings, strict=True):
        if not finding.is_as_given and case.labels:
            others[finding.likely].append(case.labels)
    for likely, paths in others.items():
        what = f"{len(paths)} have numbers that "
        what += "are no VerSe ids" if given == "verse" else f"are not those of {given}"
        hint = f"train with --config.data.labels={BINARY}"
        if likely:
            what = f"{len(paths)} have numbers that look like {labels.likely_words(likely)}"
            hint = f"add --labels={likely[0]}, and train with --config.data.labels={likely[0]}"
        lines.append(f"masks     {what} (first: {paths[0].name}); {hint}")
    return lines


def _named(cases: Sequence[Case]) -> list[str]:
    """Return what nnU-Net's files say about the numbers in masks."""
    lines = []
    for path in {case.labels.parent: case.labels for case in cases if case.labels}.values():
        dataset = nnunet.of_mask(path)
        if dataset is not None:
            number = len({one for one in dataset.ids.values() if one})
            others = f"; background: {', '.join(dataset.others)}" if dataset.others else ""
            where = f"{dataset.path.parent.name}/{dataset.path.name}"
            lines.append(f"labels    {number} vertebrae by their names in {where}{others}")
    return lines


def _table(cases: Sequence[Case], findings: Sequence[_Finding]) -> list[str]:
    """Return counts per edition and subset, found / published; a scan counts once per edition."""
    groups: dict[str, dict[str | None, list[int]]] = defaultdict(lambda: defaultdict(list))
    editions = {case.id: case.edition for case in cases}
    for i, case in enumerate(cases):
        is_copy = case.duplicate_of and editions[case.duplicate_of] == case.edition
        if case.edition and not is_copy:
            groups[case.edition][case.subset].append(i)
    rows: list[list[str]] = []
    for edition in sorted(groups):
        members = [i for group in groups[edition].values() for i in group]
        expected = EXPECTED[edition]
        if edition == "verse20" and not any(_is_of_19(cases[i]) for i in members):
            expected = EXPECTED["verse20 new"]
        rows += [_BLANK, [expected.title, "scans", "patients", "vertebrae"]]
        for subset, title in _SUBSETS.items():
            counts = _counts(cases, findings, groups[edition].get(subset, []))
            wanted = (expected.scans.get(subset), None, expected.vertebrae.get(subset))
            rows.append(_row(title, counts, wanted))
        if None in groups[edition]:
            counts = _counts(cases, findings, groups[edition][None])
            rows.append(_row("no subset named", counts, (None, None, None)))
        totals = (expected.total_scans, expected.total_patients, expected.total_vertebrae)
        rows.append(_row("all", _counts(cases, findings, members), totals))
    if {"verse19", "verse20"} <= set(groups):
        union = [i for i, case in enumerate(cases) if case.edition and not case.duplicate_of]
        counts = _counts(cases, findings, union)
        rows += [_BLANK, _row("both editions, copies once", counts, EXPECTED_BOTH)]
    other = [i for i, case in enumerate(cases) if not case.edition]
    if other and groups:
        counts = _counts(cases, findings, other)
        rows += [_BLANK, _row("other scans", counts, (None, None, None))]
    if not rows:
        return []
    note = "found / published; a scan counts if it has a CT or a mask"
    return [*text_table(rows, gap="    ").split("\n"), "", note]


_BLANK = [""] * 4


def _is_of_19(case: Case) -> bool:
    return case.subject.startswith("verse") and int(case.subject.removeprefix("verse")) < 450


def _counts(
    cases: Sequence[Case], findings: Sequence[_Finding], members: Sequence[int]
) -> tuple[int, int, int]:
    scans = [i for i in members if cases[i].image or cases[i].labels]
    vertebrae = sum(len(findings[i].ids) for i in members)
    return len(scans), len({cases[i].subject for i in scans}), vertebrae


def _row(title: str, found: Sequence[int], wanted: Sequence[int | None]) -> list[str]:
    counts = zip(found, wanted, strict=True)
    return [f"  {title}", *(f"{n:,}" if w is None else f"{n:,} / {w:,}" for n, w in counts)]


def _histogram(cases: Sequence[Case], findings: Sequence[_Finding]) -> list[str]:
    """Return how many scans contain each vertebra; a scan with copies counts once."""
    counts: Counter[int] = Counter()
    for case, finding in zip(cases, findings, strict=True):
        if case.duplicate_of is None:
            counts.update(finding.ids)
    if not counts:
        return []
    lines = ["", "scans with each vertebra"]
    for region in labels.REGIONS:
        ids = sorted((i for i in labels.VERSE_IDS if labels.region(i) == region), key=labels.order)
        lines.append("  " + "  ".join(f"{labels.name(i)} {counts[i]}" for i in ids))
    return lines
