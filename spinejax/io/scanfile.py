"""Scans and label maps from files of all supported formats: NIfTI and MetaImage.

The ending of the name decides. Everything is written as NIfTI (`nifti.py`).
"""

import os
import re
from collections.abc import Collection
from pathlib import Path

from spinejax.errors import check_choice
from spinejax.io import metaimage, nifti
from spinejax.io.grids import TOLERANCE_MM, match_labels
from spinejax.io.nifti import VERSE_LABELS
from spinejax.volume import LabelVolume, Volume

LABELS = ("verse", "binary")
"""Contents of label files: VerSe ids, or any numbers, of which those above 0 mean vertebra."""

ENDINGS = ".nii, .nii.gz, .mha or .mhd"
"""The endings of scan files, for messages."""

_ENDING = re.compile(r"\.(nii(\.gz)?|mh[ad])$", re.IGNORECASE)


def is_scan(path: str | os.PathLike[str]) -> bool:
    """Return whether a name ends like that of a scan and is not hidden (unfinished files are)."""
    name = Path(path).name
    return bool(_ENDING.search(name)) and not name.startswith(".")


def stem(path: str | os.PathLike[str]) -> str:
    """Return the name of a file without the ending of its format."""
    return _ENDING.sub("", Path(path).name)


def case_id(path: str | os.PathLike[str]) -> str:
    """Return the name of a file's case, which is the same for an image and its masks.

    It is the name without its ending, without a suffix for the kind of file (`_ct`, `_seg`, `_msk`,
    `_mask`, `_label`, `_labels`, `_pred`), and without a BIDS entity `_seg-*`. The case of both
    `sub-verse521_dir-ax_ct.nii.gz` and `sub-verse521_dir-ax_seg-vert_msk.nii.gz` is
    `sub-verse521_dir-ax`.
    """
    name = stem(path)
    kind = r"(_seg-[a-z0-9]+)?_(ct|seg|msk|mask|labels?|pred)$"
    return re.sub(kind, "", name, flags=re.IGNORECASE) or name


def valid_labels(kind: str) -> Collection[int] | None:
    """Return the argument `valid` of `read_labels` for one of `LABELS`.

    Raises:
        InputError: `kind` is none of them.
    """
    check_choice("data.labels", kind, LABELS)
    return VERSE_LABELS if kind == "verse" else None


def parts(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the files of an image: the file itself, and the voxel file of a MetaImage.

    Raises:
        InputError: the header does not name the voxel file, or that is missing.
    """
    return metaimage.parts(path) if metaimage.is_metaimage(path) else (Path(path),)


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read a CT; see `nifti.read_volume` and `metaimage.read_volume`."""
    return (metaimage if metaimage.is_metaimage(path) else nifti).read_volume(path)


def read_labels(
    path: str | os.PathLike[str], valid: Collection[int] | None = VERSE_LABELS
) -> LabelVolume:
    """Read a label map as uint8; see `nifti.read_labels` and `metaimage.read_labels`."""
    return (metaimage if metaimage.is_metaimage(path) else nifti).read_labels(path, valid)


def read_pair(
    image_path: str | os.PathLike[str],
    labels_path: str | os.PathLike[str],
    tolerance_mm: float = TOLERANCE_MM,
    valid: Collection[int] | None = VERSE_LABELS,
) -> tuple[Volume, LabelVolume]:
    """Read a CT and its label map, which may have another format, axis order or grid.

    Returns:
        The CT, and the labels on its grid (see `grids.match_labels`).

    Raises:
        InputError: as for `read_volume` and `read_labels`; the two do not overlap in space, or no
            label lies on the CT's grid.
    """
    image = read_volume(image_path)
    return image, match_labels(image, read_labels(labels_path, valid), tolerance_mm)
