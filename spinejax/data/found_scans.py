"""CTs and masks under any folder, whichever way they are laid out and named."""

from dataclasses import dataclass
from pathlib import Path

from spinejax.data import scanfile, verse
from spinejax.errors import InputError


@dataclass(frozen=True)
class Files:
    """A real scan: its CT, its mask or both."""

    id: str
    image: Path | None
    labels: Path | None
    centroids: Path | None = None
    edition: str | None = None


def real_scans(root: Path) -> list[Files]:
    """Find CTs and masks under a folder, whichever of the two a scan has.

    Besides all that `verse.index_dataset` pairs: of files that it takes for CTs, one whose name
    begins with that of another of the same folder ("example_vertebrae", "example") is taken for a
    mask of that. Where a CT has no other, the first of them that holds VerSe's numbers alone is its
    mask, those that say "verse" coming first.

    Raises:
        InputError: `root` is no folder or holds no scan.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give a folder of real CTs and masks")
    cases = [case for case in verse.index_dataset(root) if case.duplicate_of is None]
    masks: dict[str, list[verse.Case]] = {}
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
        if owners:  # the shortest name is the CT's
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
            found.append(Files(case.id, case.image, mask, case.centroids, case.edition))
    return found


def _folder(case: verse.Case) -> Path | None:
    return case.image.parent if case.image is not None else None


def _is_mask(path: Path) -> bool:
    try:
        scanfile.read_labels(path)
    except InputError:
        return False
    return True


def with_masks(root: Path) -> list[Files]:
    """Return those of `real_scans` that have both.

    Raises:
        InputError: `root` is no folder, or no scan in it has both.
    """
    found = [files for files in real_scans(root) if files.image and files.labels]
    if not found:
        raise InputError(
            f"{root} has no CT with a mask; `spinejax doctor --data={root}` names what is missing"
        )
    return found
