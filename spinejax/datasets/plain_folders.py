"""CTs, masks and centroid files under a folder of any layout and any names."""

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from spinejax import failures, labels
from spinejax.datasets import verse
from spinejax.datasets.verse import Case
from spinejax.errors import InputError
from spinejax.io import file_names, nnunet, scanfile, slicer
from spinejax.io.centroid_json import Points, label_at, read_centroids
from spinejax.io.file_names import FileName
from spinejax.volume import LabelVolume

_log = logging.getLogger("spinejax")


def real_scans(root: Path, failed: dict[str, str] | None = None) -> list[Case]:
    """Find the scans under a folder, with a CT, a mask or both.

    This function finds more masks than `verse.index_dataset`. If the name of a file begins with the
    name of a CT in the same folder ("example_vertebrae" and "example"), the file may be a mask of
    that CT. A CT without a mask gets the first such file that holds only VerSe ids; names with
    "verse" come first.

    Args:
        root: the folder.
        failed: gets the folders that cannot be listed, see `scanfile.walk`.

    Raises:
        InputError: `root` is no folder or holds no scan.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "no such folder"
        raise InputError(f"{root}: {what}; give a folder of real CTs and masks")
    cases = [case for case in verse.index_dataset(root, failed=failed) if case.duplicate_of is None]
    masks: dict[str, list[Case]] = {}
    for case in cases:
        if case.image is None or case.labels is not None:
            continue
        owners = [
            other
            for other in cases
            if other is not case
            and _folder(other) == _folder(case)
            and case.id.lower().startswith((other.id.lower() + "_", other.id.lower() + "-"))
        ]
        if owners:  # the shortest name is that of the CT
            masks.setdefault(min(owners, key=lambda other: len(other.id)).id, []).append(case)
    spare = {case.id for group in masks.values() for case in group}
    found = []
    for case in cases:
        if case.id in spare:
            continue
        mask = case.labels
        for candidate in sorted(
            masks.get(case.id, ()), key=lambda one: ("verse" not in one.id.lower(), one.id)
        ):
            if mask is None and candidate.image is not None and _is_mask(candidate.image):
                mask = candidate.image
        if case.image is not None or mask is not None:
            found.append(replace(case, labels=mask))
    return found


def _folder(case: Case) -> Path | None:
    return case.image.parent if case.image is not None else None


def _is_mask(path: Path) -> bool:
    try:
        scanfile.read_labels(path)
    except InputError:
        return False
    return True


def with_masks(root: Path, failed: dict[str, str] | None = None) -> list[Case]:
    """Return the scans of `real_scans` that have both CT and mask.

    Args:
        root: the folder.
        failed: gets the folders that cannot be listed, see `scanfile.walk`.

    Raises:
        InputError: `root` is no folder, or no scan in it has both.
    """
    found = verse.usable(real_scans(root, failed))
    if not found:
        raise InputError(
            f"{root} has no CT with a mask; `spinejax doctor --data={root}` names what is missing"
        )
    return found


def scan_files(source: Path, failed: dict[str, str] | None = None) -> dict[str, Path]:
    """Find the CT of a file, or the CTs under a folder, by case id.

    The folder may have any layout of a data set and may hold masks, too: files whose name or folder
    says "mask", as earlier predictions do, are passed over. A DICOM folder is one CT, see
    `scanfile.walk`, of the name of the folder.

    Args:
        source: a file or a folder.
        failed: gets the folders that cannot be listed, see `scanfile.walk`, and the cases of which
            there are several CTs; None refuses such a folder.

    Raises:
        InputError: `source` does not exist, holds no CT that can be used, or is a data set of
            several channels in nnU-Net's layout.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; check --input")
    source = scanfile.named(source)
    folder = source if source.is_dir() else source.parent
    outer = _nnunet_folder(folder)
    nnunet.check_channels(folder.resolve().parent if outer else folder)
    if not source.is_dir():
        return {file_names.parse(source, outer).id or scanfile.case_id(source): source}
    scans: dict[str, list[FileName]] = {}
    paths = sorted(path for path in _files(source, failed) if scanfile.is_listed(path))
    if paths[:1] == [source]:
        return {scanfile.case_id(source): source}
    for path in paths:
        name = file_names.parse(path, (*outer, *path.relative_to(source).parts[:-1]))
        if name.role != "image":
            continue
        scans.setdefault(name.id or scanfile.case_id(path), []).append(name)
    found = {case: one.path for case, one in _one_each(scans, failed).items()}
    if not found and failed:
        raise InputError(next(iter(failed.values())))
    if not found:
        raise InputError(f"{source}: no CT ({scanfile.ENDINGS}) in it; check --input")
    return found


def _nnunet_folder(folder: Path) -> tuple[str, ...]:
    """Return the folder's name where it says how its files are named (nnU-Net's `imagesTr`)."""
    name = folder.resolve().name
    return (name,) if re.fullmatch(r"images(tr|ts|val)", name, re.IGNORECASE) else ()


def reference_files(reference: Path, scans: Collection[str]) -> dict[str, Path]:
    """Find the label file of each scan: the file itself, or those of a folder by case id.

    A scan without a label file is left out with a warning.

    Args:
        reference: a label file, for one scan only, or a folder of label files.
        scans: case ids, for example the keys of `scan_files`.

    Raises:
        InputError: no such path, one file for several scans, or no label file for any scan.
    """
    if not reference.exists():
        raise InputError(f"{reference}: no such file or folder; check --reference")
    if not reference.is_dir():
        if len(scans) > 1:
            raise InputError(
                f"{reference}: is one file for {len(scans)} scans; give --reference=FOLDER"
            )
        return dict.fromkeys(scans, reference)
    files = label_files(reference)
    found = {case: files[case.lower()][1] for case in scans if case.lower() in files}
    if not found:
        raise InputError(
            f"{reference}: no label file for case {next(iter(scans))}; check --reference"
        )
    for case in sorted(set(scans) - found.keys()):
        _log.warning("%s: no label file for case %s; predicting it without", reference, case)
    return found


def label_files(folder: Path, failed: dict[str, str] | None = None) -> dict[str, tuple[str, Path]]:
    """Find the label files under a folder: lower-case id -> (id, path), sorted.

    Args:
        folder: the folder.
        failed: gets the folders that cannot be listed, see `scanfile.walk`, and the cases of which
            there are several files; None refuses such a folder.

    Raises:
        InputError: there is none.
    """
    paths = [path for path in _files(folder, failed) if scanfile.is_scan(path)]
    # If no name says "mask", all files count as label files.
    chosen = _of_role(folder, paths, ("labels", "image"))
    if not chosen:
        raise InputError(f"{folder}: holds no label file ({scanfile.ENDINGS}); check the path")
    return {case: (name.id, name.path) for case, name in _by_case(chosen, failed).items()}


def centroid_files(path: Path, cases: Collection[str]) -> dict[str, Path]:
    """Find the centroid file of each case: the file itself, or those of a folder.

    In a folder, a file belongs to a case if their names agree without the suffix of centroid files
    (`_ctd`, `_iso-ctd`, `_seg-subreg_ctd`, ...) and in lower case. If no file does, names with
    VerSe ids may also differ in `-` and `_` and in the words of the layouts (`sub`, `ct`, `dir`,
    `split`).

    Args:
        path: a JSON file, for one case only, or a folder with any subfolders.
        cases: ids, as `label_files` returns them.

    Raises:
        InputError: no such path, one file for several cases, or no centroid file or several for a
            case in the folder.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check --reference_centroids")
    if not path.is_dir():
        if len(cases) > 1:
            raise InputError(
                f"{path}: is one file for {len(cases)} cases; give --reference_centroids=FOLDER"
            )
        return dict.fromkeys(cases, path)
    paths = [file for file in _files(path) if _is_json(file)]
    chosen = _of_role(path, paths, ("centroids", "other"))
    if not chosen:
        raise InputError(f"{path}: holds no centroid file (.json); check --reference_centroids")
    exact = _by_case(chosen)
    loose: dict[tuple[str, ...], list[Path]] = {}
    for name in exact.values():
        loose.setdefault(name.loose, []).append(name.path)
    files = {}
    for case in cases:
        words = file_names.parse(Path(f"{case}_seg.nii.gz"), ()).loose
        found = [exact[case.lower()].path] if case.lower() in exact else loose.get(words, [])
        if len(found) != 1:
            what = "several centroid files" if found else "no centroid file"
            raise InputError(
                f"{path}: {what} for case {case}; name one like the case, or leave out "
                "--reference_centroids to take the masks' centroids"
            )
        files[case] = found[0]
    return files


def read_reference_centroids(
    path: Path, reference: LabelVolume, boxes: Mapping[int, tuple[slice, ...]]
) -> Points:
    """Read the centroids of a label map and check them against it.

    A centroid is at its vertebra if the map has its label there, or if the map has no label there
    and the point lies in the box of the vertebra. (The centroid of C1 lies in the hole of its
    ring.) Vertebrae that only the map or only the file has cause a warning.

    Args:
        path: JSON file in any of the conventions of `centroids.read_centroids`.
        reference: the label map.
        boxes: label -> its box, for every label of the map.

    Returns:
        VerSe id -> (3,) voxel index in `reference.array`, for labels of the map only.

    Raises:
        InputError: as for `read_centroids`; or the file has no point, or fewer than half of
            its points are at their vertebrae.
    """
    edition = file_names.edition_of(path.parts[:-1])
    points = read_centroids(path, reference, edition=edition, mask=reference)
    if not points:
        raise InputError(f"{path}: holds no centroid with numbers; take another file")
    at_home = 0
    for label, point in points.items():
        there = label_at(point, reference, reference)
        box = boxes.get(label, ())
        inside = bool(box) and all(
            side.start - 0.5 <= index <= side.stop - 0.5
            for side, index in zip(box, point, strict=True)
        )
        at_home += there == label or (there == 0 and inside)
    if 2 * at_home < len(points):
        raise InputError(
            f"{path}: {at_home} of {len(points)} centroids are at their vertebrae of the reference "
            "mask; the file belongs to another scan, or has another convention or numbering"
        )
    present = boxes.keys() & labels.NAMES.keys()
    for those, what in (
        (present - points.keys(), "no centroid of %s; id.rate and d_mean leave them out"),
        (points.keys() - present, "centroids of %s, which the mask lacks; they are ignored"),
    ):
        if those:
            names = map(labels.name, sorted(those, key=labels.order))
            _log.warning(f"%s: has {what}", path, ", ".join(names))
    return {label: point for label, point in points.items() if label in present}


def _files(folder: Path, failed: dict[str, str] | None = None) -> list[Path]:
    return [where / name for where, _, names in scanfile.walk(folder, failed) for name in names]


def _is_json(path: Path) -> bool:
    return file_names.is_relevant(path.name) and not scanfile.is_scan(path)


def _of_role(folder: Path, paths: Iterable[Path], roles: tuple[str, str]) -> list[FileName]:
    """Return the names of the files with the first role; if there are none, with the second."""
    names = [file_names.parse(path, path.relative_to(folder).parts[:-1]) for path in sorted(paths)]
    first, second = ([name for name in names if name.role == role] for role in roles)
    return first or second


def _by_case(
    names: Iterable[FileName], failed: dict[str, str] | None = None
) -> dict[str, FileName]:
    """Return the file of each case, by lower-case id; see `_one_each`."""
    files: dict[str, list[FileName]] = {}
    for name in names:
        files.setdefault(name.id.lower(), []).append(name)
    return _one_each(files, failed)


def _one_each(
    cases: Mapping[str, Sequence[FileName]], failed: dict[str, str] | None
) -> dict[str, FileName]:
    """Return the file of each case; `failed` gets the cases that have several.

    Raises:
        InputError: a case has several, and `failed` is None or there is no other case.
    """
    alone = failed is None or len(cases) == 1
    found = {}
    for case, names in cases.items():
        # `predict --formats=seg.nrrd` writes the same labels a second time.
        kept = [one for one in names if not one.path.name.endswith(slicer.ENDING)] or names
        first, *others = kept
        if not others:
            found[case] = first
            continue
        more = "" if len(others) == 1 else f" and {len(others) - 1} more"
        problem = InputError(
            f"{first.id}: {first.path} and {others[0].path}{more} have one name; rename all but "
            "one, or move them away"
        )
        failures.note(first.id, problem, {} if failed is None else failed, alone=alone)
    return found
