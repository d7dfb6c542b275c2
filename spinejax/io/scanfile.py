"""Scans and label maps of all supported formats: DICOM, NIfTI, NRRD and MetaImage.

The ending of the name decides the format. A folder, a zip archive or a DICOM file without one of
these endings is read as DICOM. Everything is written as NIfTI (`nifti.py`).
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

from spinejax import failures, labels, schema
from spinejax.errors import InputError
from spinejax.files import expanded
from spinejax.io import dicom, metaimage, nifti, nnunet, nrrd, voxels
from spinejax.io.grids import TOLERANCE_MM, match_labels
from spinejax.io.voxels import Source
from spinejax.label_schemes import BINARY
from spinejax.volume import LabelVolume, Volume

logger = logging.getLogger("spinejax")

IMAGE_DIRS = {"images", "image", "imgs", "img", "ct", "cts", "scans", "volumes", "rawdata"}
LABEL_DIRS = {
    "labels", "label", "labeled", "labelled", "masks", "mask", "msk", "seg", "segs",
    "segmentation", "segmentations", "gt",
}  # fmt: skip
"""Names of folders that hold scans, and of folders that hold masks."""

VERSE_LABELS = range(29)
"""The numbers of VerSe's masks."""

ENDINGS = "DICOM, .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd"
"""The formats of scans, for messages."""

_ENDING = re.compile(r"\.(nii(\.gz)?|mh[ad]|nrrd|nhdr)$", re.IGNORECASE)
_DICOM_ENDING = re.compile(r"\.(zip|dcm|dicom|ima)$", re.IGNORECASE)


def is_scan(path: str | os.PathLike[str]) -> bool:
    """Return whether a name ends like that of a scan and is not hidden (unfinished files are)."""
    name = Path(path).name
    return bool(_ENDING.search(name)) and not name.startswith(".")


def named(root: Path) -> Path:
    """Return a path whose last part is a name, which "." and ".." are not."""
    return root.resolve() if root.name in ("", "..") else root


def is_listed(path: Path) -> bool:
    """Return whether one of the files that `walk` lists is a scan: its folders and archives are."""
    return is_scan(path) or path.suffix.lower() == ".zip" or path.is_dir()


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is read as DICOM: a folder, a zip archive, or a DICOM file."""
    return not _ENDING.search(Path(path).name) and dicom.is_dicom(Path(path))


def walk(
    root: Path, failed: dict[str, str] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk a folder like `os.walk`; links are followed, loops of links are not.

    A DICOM scan is one of the files: a folder that holds DICOM files; or one whose DICOM files, all
    in folders below, are of one study, and which holds no other scan; or a zip archive with DICOM
    files. If `root` itself is one, it is a file of the folder above. Other zip archives are left
    out. A folder that is named like a scan and holds no file is one of the files, too, so that its
    reader says what is wrong with it.

    Args:
        root: the folder, or a DICOM scan.
        failed: gets the reason for every folder that cannot be listed, which is logged, too; None
            refuses such a folder.

    Raises:
        InputError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        problem = InputError(
            f"{error.filename}: cannot be listed ({error.strerror}); check the rights on the folder"
        )
        if failed is None:
            raise problem from error
        failures.note(str(error.filename), problem, failed)

    series = _dicom_folders(root)
    if root in series or not root.is_dir():
        yield root.parent, [], [root.name]
        yield root, [], _beside_dicom(root)
        return
    for folder, folders, files in _walk(root, refuse):
        files[:] = [
            name
            for name in files
            if not name.lower().endswith(".zip") or dicom.holds_dicom(folder / name)
        ]
        for name in list(folders):
            empty = is_scan(name) and not any(there for _, _, there in os.walk(folder / name))
            if empty or folder / name in series:
                folders.remove(name)
                files.append(name)
        found = [folder / name for name in files if folder / name in series]
        yield folder, folders, files
        for one in found:
            yield one, [], _beside_dicom(one)


def _beside_dicom(folder: Path) -> list[str]:
    """Return the masks and other scans among the files of a DICOM series."""
    return sorted(filter(is_scan, os.listdir(folder))) if folder.is_dir() else []


def _walk(
    root: Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk a folder like `os.walk`; links are followed, loops of links are not."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=onerror, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield Path(folder), folders, files


def _dicom_folders(root: Path) -> set[Path]:
    """Return the largest folders under and with `root` that are a DICOM scan each, see `walk`."""
    studies: dict[Path, set[str]] = {}
    direct: set[Path] = set()
    with_scan: set[Path] = set()
    scan_below: set[Path] = set()
    for folder, _, files in _walk(root):
        study = dicom.study_in(folder, files)
        above = (folder, *folder.parents)[: len(folder.relative_to(root).parts) + 1]
        if study is not None:
            direct.add(folder)
            for one in above:  # without a number of the study, a folder is one
                studies.setdefault(one, set()).add(study or str(folder))
        if any(map(is_scan, files)):
            with_scan.add(folder)
            scan_below.update(above[1:])
    alone = {one for one, found in studies.items() if len(found) == 1 and one not in scan_below}
    for folder in sorted(direct - alone):
        logger.warning(
            "%s: its own DICOM files are left out, because folders below hold other scans; move "
            "them into a folder of their own",
            folder,
        )
    scans = {
        one
        for one in alone
        if one in direct or not (one in with_scan or one.name.lower() in IMAGE_DIRS | LABEL_DIRS)
    }
    return {one for one in scans if scans.isdisjoint(one.parents)}


def stem(path: str | os.PathLike[str]) -> str:
    """Return the name of a file without the ending of its format."""
    return _DICOM_ENDING.sub("", _ENDING.sub("", Path(path).name))


_MOST_BYTES = 200  # a file system's limit is 255, and `_quicklook.png` and such are added


def safe_name(name: str) -> str:
    """Return a name that can be printed, written into any file, and lengthened.

    Line ends, other control characters and bytes that are not UTF-8 become their codes, "%0A" or
    "%FF". A name of more than 200 bytes is cut, and the digest of the whole name is added.
    """
    shown = "".join(
        letter if letter.isprintable() else quote(letter, safe="", errors="surrogateescape")
        for letter in name
    )
    if len(shown.encode()) <= _MOST_BYTES:
        return shown
    digest = hashlib.sha256(shown.encode()).hexdigest()[:8]
    return f"{shown.encode()[: _MOST_BYTES - 9].decode(errors='ignore')}-{digest}"


def case_id(path: str | os.PathLike[str]) -> str:
    """Return the name of a file's case, which is the same for an image and its masks.

    It is the name without its ending, without a suffix for the kind of file (`_ct`, `_seg`, `_msk`,
    `_mask`, `_label`, `_labels`, `_pred`), and without a BIDS entity `_seg-*`. The case of both
    `sub-verse521_dir-ax_ct.nii.gz` and `sub-verse521_dir-ax_seg-vert_msk.nii.gz` is
    `sub-verse521_dir-ax`.
    """
    name = stem(path)
    kind = r"(_seg-[a-z0-9]+)?[._](ct|seg|msk|mask|labels?|pred)$"
    return safe_name(re.sub(kind, "", name, flags=re.IGNORECASE) or name)


def valid_labels(scheme: str, *, strict: bool = True) -> Collection[int] | None:
    """Return the argument `valid` of `read_labels` for a value of `data.labels`.

    Args:
        scheme: one of `label_schemes.NAMES`.
        strict: refuse numbers that VerSe does not have; else they are kept. Numbers that another
            scheme does not have are always refused.

    Raises:
        InputError: there is no such value.
    """
    schema.check_value("data.labels", scheme)
    if scheme == BINARY:
        return None
    if scheme == "verse":
        return VERSE_LABELS if strict else range(256)
    return labels.verse_ids(scheme)


def numbering(path: str | os.PathLike[str], scheme: str) -> str:
    """Return what decides the meaning of a mask's numbers: the scheme, or names in nnU-Net's file.

    Raises:
        InputError: as for `nnunet.mask_ids`.
    """
    named = nnunet.mask_ids(expanded(path)) if scheme == "verse" else None
    return scheme if named is None else f"{scheme} {sorted(named.items())}"


def parts(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the files of an image: the file itself, and the voxel file if that is separate.

    Those of a DICOM folder are the files of all its series.

    Raises:
        InputError: the header does not name the voxel file, or that is missing; or a file of a
            folder cannot be read.
    """
    if is_dicom(path):
        return dicom.parts(Path(path))
    if nrrd.is_nrrd(Path(path)):
        return nrrd.parts(Path(path))
    return metaimage.parts(path) if metaimage.is_metaimage(path) else (Path(path),)


def read_volume(path: str | os.PathLike[str], *, series: int | None = None) -> Volume:
    """Read a CT: a DICOM folder, zip archive or file, or a NIfTI, NRRD or MetaImage file.

    The slope and intercept of NIfTI and DICOM are applied. NaN, both infinities, and values below
    -1024 HU (fillers outside the scan circle, such as -2048) become -1024. Trailing axes of length
    one are dropped.

    Args:
        path: the folder or file.
        series: number of the DICOM series. None takes the CT series that shows most, and says which
            in the log if there are several.

    Returns:
        A volume of int16 if all values are whole numbers that fit, else of float32.

    Raises:
        InputError: the file is missing, truncated, of another format, or no single 3D image of
            numbers; it has no usable affine or no finite value; its header claims more voxels than
            the file or the memory can hold; or a DICOM series cannot be trusted, see
            `dicom.opened`.
    """
    path = expanded(path)
    with _opened(path, series) as (stream, layout, affine, disk):
        return Volume(voxels.intensities(path, stream, layout), affine, disk)


def read_labels(
    path: str | os.PathLike[str], valid: Collection[int] | None = VERSE_LABELS
) -> LabelVolume:
    """Read a label map of any numeric type on disk, as uint8.

    In masks of VerSe ids, sacrum and coccyx become background (`labels.drop_reserved`). Where a
    mask lies in nnU-Net's layout, the names in its `dataset.json` count instead of VerSe's numbers.

    Args:
        path: a NIfTI, NRRD or MetaImage file.
        valid: the allowed labels; a mapping also says which VerSe id each becomes, see
            `valid_labels`. A range means VerSe's numbers. None allows all whole numbers from 0,
            none of which is special, and wraps numbers above 255 into 1 to 255.

    Raises:
        InputError: as for `read_volume`; or a value is negative, not one of `valid`, or no whole
            number (to 0.01, or to half a quantisation step if the file has a slope).
    """
    path = expanded(path)
    named = nnunet.mask_ids(path) if isinstance(valid, range) else None
    with _opened(path) as (stream, layout, affine, disk):
        array = voxels.label_values(path, stream, layout, wrap=valid is None)
    if valid is None:
        return LabelVolume(array, affine, disk)
    found = labels.from_head_to_foot(LabelVolume(array, affine).array)
    if named is not None:
        if unnamed := sorted(set(found) - set(named)):
            raise InputError(
                f"{path}: label {unnamed[0]} is none of {nnunet.NAME}, or the one to ignore; "
                "correct the mask or that file, or leave the mask out"
            )
        labels.translate(array, named)
        ids = tuple(dict.fromkeys(named[one] for one in found if named[one]))
        return LabelVolume(array, affine, disk, found=ids)
    unknown = sorted(set(found) - set(valid))
    if unknown:
        shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        raise InputError(f"{path}: label {shown} is out of range; {_remedy(valid, found)}")
    if isinstance(valid, Mapping):
        labels.translate(array, valid)
        return LabelVolume(array, affine, disk, found=found)
    return LabelVolume(array, affine, disk, labels.drop_reserved(array), found)


def _remedy(valid: Collection[int], found: Sequence[int]) -> str:
    """Return what to do about a mask with the labels `found`, some of which are not allowed."""
    likely = labels.likely_schemes(found)
    if likely:
        return (
            f"the mask's numbers look like {labels.likely_words(likely)}; use "
            f"data.labels={likely[0]} (--labels={likely[0]} of score, evaluate, convert and doctor)"
        )
    runs: list[list[int]] = []
    for label in sorted(valid):
        if runs and label == runs[-1][1] + 1:
            runs[-1][1] = label
        else:
            runs.append([label, label])
    allowed = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in runs)
    return f"allowed are {allowed}; renumber the mask, or {voxels.ANY_NUMBER}"


def shape_of(path: Path) -> tuple[int, ...]:
    """Return the three sides of a scan, from its header alone.

    Raises:
        InputError: the header cannot be read.
    """
    shape: tuple[int, ...] = _format(path).shape_of(path)
    return shape


def _format(path: Path) -> ModuleType:
    if is_dicom(path):
        return dicom
    if nrrd.is_nrrd(path):
        return nrrd
    return metaimage if metaimage.is_metaimage(path) else nifti


def _opened(path: Path, series: int | None = None) -> AbstractContextManager[Source]:
    """Open a scan with the reader of its format."""
    found = _format(path)
    if found is dicom:
        return dicom.opened(path, series)
    if series is not None:
        raise InputError(f"{path}: is no DICOM and has no series {series}; leave --series out")
    opened: AbstractContextManager[Source] = found.opened(path)
    return opened


def read_pair(
    image_path: str | os.PathLike[str],
    labels_path: str | os.PathLike[str],
    tolerance_mm: float = TOLERANCE_MM,
    valid: Collection[int] | None = VERSE_LABELS,
    *,
    series: int | None = None,
) -> tuple[Volume, LabelVolume]:
    """Read a CT and its label map, which may have another format, axis order or grid.

    The arguments are those of `read_volume`, `read_labels` and `grids.match_labels`.

    Returns:
        The CT, and the labels on its grid (see `grids.match_labels`).

    Raises:
        InputError: as for `read_volume` and `read_labels`; the two do not overlap in space, or no
            label lies on the CT's grid.
    """
    image = read_volume(image_path, series=series)
    return image, match_labels(image, read_labels(labels_path, valid), tolerance_mm)
