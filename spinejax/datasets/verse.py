"""The index of a dataset folder: VerSe in any of its layouts, or paired folders of any dataset.

Only names are read, so that a folder of thousands of scans is indexed in seconds; `doctor.py` opens
the files. The index decides which files belong to the same scan and patient:

* *Scan*: in VerSe, the series id (the last id in the name), whatever the layout or edition; 105
  scans are in both '19 and '20. All copies of a scan are listed, but all except one are marked
  `duplicate_of`, and `usable` leaves them out. A complete copy is preferred to one that lacks a
  file; then the subject-based naming (restructured and corrected); then '20 (native resolution,
  while '19 was resampled); then the first path.
* *Patient*: ids that occur in one name ("verse401_verse253"), in any edition, and the known
  patients with several series (`file_names.SERIES_OF_PATIENT`). In other datasets, the BIDS subject
  ("sub-X") or else the name. A name that occurs in two folders of another dataset (train/001 and
  test/001) means two patients, because numbering often restarts.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from spinejax.errors import InputError
from spinejax.io import file_names, nnunet, scanfile
from spinejax.io.file_names import FileName

_SKIPPED_FOLDERS = {"__macosx", "lost+found"}
_HELD_OUT = {"test": 2, "val": 1, "train": 0}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Case:
    """One scan in a dataset folder.

    Attributes:
        id: unique in the index and usable as a file name.
        subject: the patient, the same in all editions.
        image: the CT, or None.
        labels: the mask, or None.
        centroids: the centroid file, or None.
        subset: "train", "val" or "test" if the folders say so.
        edition: "verse19" or "verse20" if the folders say so.
        problems: one line each, with the file.
        duplicate_of: id of the copy of this scan that is used instead, if any.
        copy_subsets: subsets of the copies that this case replaces.
    """

    id: str
    subject: str
    image: Path | None
    labels: Path | None
    centroids: Path | None = None
    subset: str | None = None
    edition: str | None = None
    problems: tuple[str, ...] = ()
    duplicate_of: str | None = None
    copy_subsets: tuple[str, ...] = ()


@dataclass
class _Draft:
    """A case whose files are being matched."""

    name: FileName
    image: Path | None = None
    labels: Path | None = None
    centroids: Path | None = None
    iso: bool = False
    problems: tuple[str, ...] = ()


def index_dataset(
    root: str | os.PathLike[str], exclude_gl: bool = False, failed: dict[str, str] | None = None
) -> list[Case]:
    """Return all scans under a folder, complete or not, sorted by id.

    Args:
        root: a VerSe download (subject-based, MICCAI'19 or MICCAI'20, one or both editions, any
            depth of folders), or a dataset with `images/` and `labels/`, or nnU-Net's
            `imagesTr`, `labelsTr` and `imagesTs`. Scans are DICOM folders and archives, NIfTI, NRRD
            or MetaImage.
        exclude_gl: leave out the `gl*` scans, which one redistribution licenses differently.
        failed: gets the folders that cannot be listed, see `scanfile.walk`.

    Raises:
        InputError: `root` is missing, is no folder, holds no scans, or cannot be listed; or
            nnU-Net's `dataset.json` is damaged or names several channels.
    """
    root = scanfile.named(Path(root))
    if not root.exists():
        raise InputError(f"dataset folder {root} does not exist; check the path")
    if not root.is_dir() and not root.name.lower().endswith(".zip"):
        raise InputError(f"{root} is not a folder; data.root must be the folder of the dataset")
    names = _names(root, failed)
    if not any(name.role in ("image", "labels") for name in names):
        raise InputError(
            f"{root} holds no {scanfile.ENDINGS} scans or masks; expected VerSe (rawdata/, "
            "derivatives/, or flat) or images/ and labels/"
        )
    collections: dict[tuple[str, ...], list[FileName]] = defaultdict(list)
    for name in names:
        collections[name.collection].append(name)
    drafts = [draft for key in sorted(collections) for draft in _match(collections[key], root)]
    if exclude_gl:
        drafts = [draft for draft in drafts if not any(i.startswith("gl") for i in draft.name.ids)]
    subjects = _subjects(drafts)
    ids = _unique_ids(drafts)
    cases = [
        Case(
            id=ids[i],
            subject=subjects[i],
            image=draft.image,
            labels=draft.labels,
            centroids=draft.centroids,
            subset=draft.name.subset,
            edition=_edition(draft),
            problems=draft.problems,
        )
        for i, draft in enumerate(drafts)
    ]
    return sorted(_mark_duplicates(cases, drafts), key=lambda case: case.id)


def usable(cases: Iterable[Case]) -> list[Case]:
    """Return the cases that have image and mask and are no copies of another case."""
    return [case for case in cases if case.image and case.labels and case.duplicate_of is None]


def of_edition(cases: Iterable[Case], edition: str) -> list[Case]:
    """Return the cases of one edition of VerSe ("verse19" or "verse20"), as if it were alone.

    A scan that is in both editions is returned for either.
    """
    chosen = [case for case in cases if case.edition == edition]
    ids = {case.id for case in chosen}
    kept: list[Case] = []
    first: dict[str, str] = {}
    for case in chosen:
        best = case.duplicate_of
        if best is not None and best not in ids:  # the other edition's; ours takes its place
            best = None if first.setdefault(best, case.id) == case.id else first[best]
        kept.append(replace(case, duplicate_of=best))
    return kept


def _names(root: Path, failed: dict[str, str] | None) -> list[FileName]:
    """Return the parsed names of all files under `root`; links are followed, loops are not."""
    names: list[FileName] = []
    # The root's own name counts if the root is part of a download, but not for, say, "test_run".
    own = root.resolve().name
    is_part = bool(file_names.edition_of((own,))) or own.lower().startswith("dataset")
    outer = (own,) if is_part else ()
    for folder, folders, files in scanfile.walk(root, failed):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name.lower() not in _SKIPPED_FOLDERS
        )
        if nnunet.NAME in files and "imagestr" in map(str.lower, folders):
            nnunet.check_channels(folder)
        parts = () if folder == root.parent else folder.relative_to(root).parts
        for file in sorted(files):
            if file_names.is_relevant(file) or scanfile.is_listed(folder / file):
                name = file_names.parse(folder / file, parts, outer)
                if name.role != "other":
                    names.append(name)
    return names


def _match(names: Sequence[FileName], root: Path) -> list[_Draft]:
    """Match the images, masks and centroids of one collection."""
    drafts: list[_Draft] = []
    for role in ("image", "labels", "centroids"):
        chosen = _one_per_base([name for name in names if name.role == role], root)
        taken = _assign([name for name, _ in chosen], drafts)
        for name, problems in chosen:
            draft = taken.get(name.path)
            if draft is None:
                draft = _Draft(name)
                drafts.append(draft)
            setattr(draft, role, name.path)
            draft.iso = draft.iso or name.is_iso
            draft.problems += problems
    is_verse = any(name.ids or name.role == "centroids" for name in names)
    for draft in drafts:
        draft.problems = tuple(_missing(draft, is_verse, root)) + draft.problems
    return drafts


def _one_per_base(names: Sequence[FileName], root: Path) -> list[tuple[FileName, tuple[str, ...]]]:
    """Return one file per name, the compressed one of two, and the problems of ignored files."""
    groups: dict[str, list[FileName]] = defaultdict(list)
    for name in names:
        groups[name.base].append(name)
    chosen = []
    for group in groups.values():
        group.sort(key=lambda name: (not name.path.name.lower().endswith(".gz"), str(name.path)))
        spare = tuple(f"ignored {n.path.relative_to(root)}, a second file" for n in group[1:])
        chosen.append((group[0], spare))
    return chosen


def _assign(names: Sequence[FileName], drafts: Sequence[_Draft]) -> dict[Path, _Draft]:
    """Return file -> draft: by equal names, else tokens, else series ids, if unambiguous."""
    keys: list[Callable[[FileName], object]] = [
        lambda name: name.base,
        lambda name: name.loose,
        lambda name: name.ids[-1] if name.ids else None,
    ]
    found: dict[Path, _Draft] = {}
    for key in keys:
        left = [name for name in names if name.path not in found]
        used = {id(draft) for draft in found.values()}
        free = [draft for draft in drafts if id(draft) not in used]
        by_file = _groups(left, key)
        by_draft = _groups(free, lambda draft, key=key: key(draft.name))  # type: ignore[misc]
        for value, files in by_file.items():
            if value is not None and len(files) == 1 and len(by_draft.get(value, [])) == 1:
                found[files[0].path] = by_draft[value][0]
    return found


def _groups(items: Iterable[_T], key: Callable[[_T], object]) -> dict[object, list[_T]]:
    groups: dict[object, list[_T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _missing(draft: _Draft, is_verse: bool, root: Path) -> list[str]:
    present = next(path for path in (draft.image, draft.labels, draft.centroids) if path)
    shown = present.name if present == root else present.relative_to(root)
    problems = []
    if draft.image is None:
        problems.append(f"no CT for {shown}")
    if draft.labels is None:
        problems.append(f"no mask for {shown}")
    if draft.centroids is None and is_verse:
        problems.append(f"no centroids for {shown}")
    return problems


def _edition(draft: _Draft) -> str | None:
    if draft.name.edition or not draft.name.ids:
        return draft.name.edition
    if draft.iso:
        return "verse20"
    paths = [path for path in (draft.image, draft.labels, draft.centroids) if path]
    editions = [file_names.edition_by_name(path.name, draft.name.ids) for path in paths]
    return "verse20" if "verse20" in editions else editions[0]


def _subjects(drafts: Sequence[_Draft]) -> list[str]:
    """Return the patient of each draft; ids in the same name belong to one patient."""
    links: dict[str, str] = {}

    def find(item: str) -> str:
        while links.setdefault(item, item) != item:
            item = links[item]
        return item

    patients: set[str] = set(file_names.SERIES_OF_PATIENT)
    known = [(patient, *series) for patient, series in file_names.SERIES_OF_PATIENT.items()]
    for ids in known + [draft.name.ids for draft in drafts]:
        if len(ids) > 1:
            patients.add(ids[0])
        for other in ids[1:]:
            a, b = find(ids[0]), find(other)
            # The patient's own id represents its group, whatever the order of the names.
            first, second = sorted((a, b), key=lambda item: (item not in patients, item))
            links[second] = first
    plain = Counter(draft.name.base for draft in drafts if not draft.name.ids)
    subjects = []
    for draft in drafts:
        name = draft.name
        if name.ids:
            subjects.append(find(name.ids[0]))
        elif plain[name.base] > 1:
            subjects.append("/".join((*name.collection, name.base)))
        elif name.base.startswith("sub-"):
            subjects.append(name.base.split("_")[0])
        else:
            subjects.append(name.base)
    return subjects


def _unique_ids(drafts: Sequence[_Draft]) -> list[str]:
    """Return the id of each draft; equal ones get edition, subset or a number appended."""
    counts = Counter(draft.name.base for draft in drafts)
    used: set[str] = set()
    ids = []
    for draft in drafts:
        name = draft.name
        candidate = name.id
        if counts[name.base] > 1:
            candidate = "_".join(filter(None, (name.id, _edition(draft), name.subset)))
        unique, number = candidate, 2
        while unique.lower() in used:
            unique, number = f"{candidate}_{number}", number + 1
        used.add(unique.lower())
        ids.append(unique)
    return ids


def _mark_duplicates(cases: Sequence[Case], drafts: Sequence[_Draft]) -> list[Case]:
    """Mark all copies except the best one of each scan that is in several collections."""
    result = list(cases)
    scans: dict[str, list[int]] = defaultdict(list)
    for i, draft in enumerate(drafts):
        if draft.name.ids:
            scans[draft.name.ids[-1]].append(i)
    for copies in scans.values():
        if len({drafts[i].name.collection for i in copies}) < 2:
            continue  # series of one patient in one download, or a single copy

        def rank(i: int) -> tuple[bool, bool, bool, str]:
            case, name = cases[i], drafts[i].name
            complete = case.image is not None and case.labels is not None
            is_20 = case.edition == "verse20"
            return not complete, not name.base.startswith("sub-"), not is_20, str(name.path)

        best, *others = sorted(copies, key=rank)
        subsets = tuple(sorted({s for i in others if (s := cases[i].subset)}, key=_HELD_OUT.get))  # type: ignore[arg-type]
        result[best] = replace(result[best], copy_subsets=subsets)
        for i in others:
            note = f"copy of {cases[best].id}, which is used instead"
            result[i] = replace(
                result[i], duplicate_of=cases[best].id, problems=(*result[i].problems, note)
            )
    return result
