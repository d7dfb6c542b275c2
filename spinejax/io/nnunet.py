"""`dataset.json` of nnU-Net: the channels of a data set, and what the numbers in its masks mean.

The file is described in nnU-Net's `documentation/dataset_format.md` (MIC-DKFZ/nnUNet on GitHub).
Version 2 maps names to numbers, or to several numbers for a region. Version 1 and the Medical
Segmentation Decathlon map numbers to names and call the channels "modality". It lies above the
folders `imagesTr` and `labelsTr`, and nnU-Net puts a copy beside its predictions and `plans.json`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spinejax import labels, records
from spinejax.errors import InputError

NAME = "dataset.json"

_LABEL_FOLDER = re.compile(r"labels(tr|ts|val)", re.IGNORECASE)
_LEVEL = re.compile(
    r"(?:vertebrae?|vert)?[\s_-]*(c|th?|l)[\s_-]*0*(\d{1,2})(?:[\s_-]*vertebrae?)?", re.IGNORECASE
)
_NUMBER = (int, [int])
_REMEDY = "correct it as nnU-Net's documentation of the data format says"


@dataclass(frozen=True)
class Dataset:
    """A `dataset.json`.

    Attributes:
        path: of the file.
        channels: their names.
        ids: number in a mask -> VerSe id; 0 for what is no vertebra. nnU-Net's label "ignore" is
            left out.
        others: the names of what is no vertebra, without the background.
    """

    path: Path
    channels: Sequence[str]
    ids: Mapping[int, int]
    others: Sequence[str]


def read(path: Path) -> Dataset | None:
    """Read a `dataset.json`; None if it is not nnU-Net's.

    Raises:
        InputError: the file is no JSON, or its labels cannot be told apart.
    """
    content = records.read(path, object, _REMEDY)
    channels = "channel_names" if records.fits(content, {"channel_names": dict}) else "modality"
    if not records.fits(content, {"labels": dict, channels: dict}):
        return None
    numbers = _numbers(path, content["labels"])
    ids: dict[int, int] = {0: 0}
    for name, found in numbers.items():
        label = vertebra(name)
        if _ignored(name):
            continue  # voxels that nobody annotated: neither vertebra nor background
        for number in found:
            if label and not number:
                raise InputError(f"{path}: 0 is {labels.name(label)}, not background; {_REMEDY}")
            if label and ids.get(number, label) not in (0, label):
                other = labels.name(ids[number])
                raise InputError(
                    f"{path}: {number} is both {other} and {labels.name(label)}; {_REMEDY}"
                )
            ids[number] = label or ids.get(number, 0)
    others = [
        name
        for name, found in numbers.items()
        if found != [0] and not vertebra(name) and not _ignored(name)
    ]
    names = [str(name) for _, name in sorted(content[channels].items())]
    return Dataset(path, names, ids, others)


def _ignored(name: str) -> bool:
    return name.strip().lower() == "ignore"


def _numbers(path: Path, entries: Mapping[str, object]) -> dict[str, list[int]]:
    """Return name -> numbers."""
    if records.fits(entries, {str: str}):  # version 1
        if not all(key.isdecimal() for key in entries):
            raise InputError(f"{path}: its labels have no numbers; {_REMEDY}")
        by_name: dict[str, list[int]] = {}
        for key, name in entries.items():
            by_name.setdefault(str(name), []).append(int(key))
        found = by_name
    else:
        records.check(entries, {str: _NUMBER}, path, _REMEDY, "labels")
        found = {
            name: list(value) if isinstance(value, list) else [value]  # type: ignore[list-item]
            for name, value in entries.items()
        }
    wrong = [number for some in found.values() for number in some if not 0 <= number <= 255]
    if wrong:
        raise InputError(f"{path}: label {wrong[0]} is out of range; allowed are 0 to 255")
    return found


def vertebra(name: str) -> int:
    """Return the VerSe id of a label's name, such as "L1", "vertebrae_L1" or "T01"; else 0."""
    found = _LEVEL.fullmatch(name.strip())
    if found is None:
        return 0
    level = f"{found[1][0].upper()}{int(found[2])}"
    return labels.id_of(level) if level in labels.NAMES.values() else 0


def of_mask(path: Path) -> Dataset | None:
    """Return the `dataset.json` of a mask; None if nnU-Net's layout gives it none.

    Raises:
        InputError: as for `read`.
    """
    folder = path.absolute().parent
    if _LABEL_FOLDER.fullmatch(folder.name):
        where = folder.parent / NAME
    elif (folder / "plans.json").is_file():
        where = folder / NAME
    else:
        return None
    return read(where) if where.is_file() else None


def mask_ids(path: Path) -> Mapping[int, int] | None:
    """Return number -> VerSe id for a mask in nnU-Net's layout; None for others.

    Raises:
        InputError: as for `read`; or no label is a vertebra.
    """
    dataset = of_mask(path)
    if dataset is None:
        return None
    if not any(dataset.ids.values()):
        shown = ", ".join(dataset.others[:4]) or "none"
        raise InputError(
            f"{dataset.path}: none of its labels ({shown}) is a vertebra such as L1 or "
            "vertebrae_L1; correct the names, or use data.labels=binary (--labels=binary of score, "
            "evaluate, convert and doctor), which takes any number for vertebra"
        )
    return dataset.ids


def check_channels(folder: Path) -> None:
    """Refuse a data set with several channels in nnU-Net's layout.

    Args:
        folder: that may hold a `dataset.json`.

    Raises:
        InputError: as for `read`; or there are several channels.
    """
    path = folder / NAME
    dataset = read(path) if path.is_file() else None
    if dataset is not None and len(dataset.channels) > 1:
        raise InputError(
            f"{path}: has {len(dataset.channels)} channels ({', '.join(dataset.channels)}), and "
            "spinejax takes a CT alone; make a data set of that channel (files CASE_0000)"
        )
