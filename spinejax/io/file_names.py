"""The meaning of file and folder names, in all VerSe layouts and in paired folders.

No function here opens a file. The wiki of the data set (https://github.com/anjany/verse) documents
the three VerSe layouts (subject-based, MICCAI'19, MICCAI'20) and their irregular names; the names
in the tests come from public file lists. The CSI data of paper B (`case1.mhd` and
`case1_label.mhd`, in one folder or two) are paired like any other folders.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from spinejax.io import scanfile
from spinejax.io.scanfile import IMAGE_DIRS, LABEL_DIRS

# Patients of VerSe'19 with several series. The subject-based and the MICCAI'20 names contain the
# patient ("sub-verse401_split-verse253", "verse401_verse253"). The MICCAI'19 names do not
# ("verse253"); without this table two scans of one patient would look like two patients. The second
# series of verse412 is unknown.
SERIES_OF_PATIENT: dict[str, tuple[str, ...]] = {
    "verse400": ("verse090", "verse155"),
    "verse401": ("verse201", "verse253"),
    "verse402": ("verse202", "verse251"),
    "verse403": ("verse208", "verse255"),
    "verse404": ("verse209", "verse256"),
    "verse405": ("verse212", "verse258", "verse259"),
    "verse406": ("verse214", "verse261"),
    "verse407": ("verse215", "verse262"),
    "verse408": ("verse223", "verse265"),
    "verse409": ("verse226", "verse266"),
    "verse410": ("verse227", "verse267"),
    "verse411": ("verse232", "verse270"),
    "verse412": ("verse290",),
    "verse413": ("verse239", "verse272"),
    "verse414": ("verse241", "verse273"),
    "verse415": ("verse243", "verse275"),
    "verse416": ("verse247", "verse279"),
    "verse417": ("verse277", "verse278"),
}

_CENTROID_DIRS = {"ctd", "centroids", "landmarks", "snapshots"}
_NNUNET_DIRS = {
    f"{kind}{part}": (kind, part) for kind in ("images", "labels") for part in ("tr", "ts", "val")
}
_NNUNET_SUBSET = {"tr": "train", "ts": "test", "val": "val"}

_LABEL_SUFFIX = re.compile(
    r"(?:^|[-_.])(msk|seg|mask|masks|label|labels|segmentation|gt)$", re.IGNORECASE
)
_CENTROID_SUFFIX = re.compile(r"[-_](?:iso[-_]ctd|ctd[-_]iso|ctd)$", re.IGNORECASE)
_ISO_CENTROID = re.compile(r"[-_](?:iso[-_]ctd|ctd[-_]iso)$", re.IGNORECASE)
_SEG_ENTITY = re.compile(r"_seg-([a-z0-9]+)(?=_|$)", re.IGNORECASE)
_CT_SUFFIX = re.compile(r"(?:^|[-_])ct$", re.IGNORECASE)
_DICOM_FOLDER = re.compile(r"(?:^|[-_])(dicom|dcm)$", re.IGNORECASE)
_CHANNEL = re.compile(r"_0000$")
_OTHER_CHANNEL = re.compile(r"_000[1-9]$")
_VERSE_ID = re.compile(r"(?<![a-z])(verse|gl)(\d{1,4})(?!\d)", re.IGNORECASE)
_MICCAI20_NAME = re.compile(r"_ct[-_](iso|sag|ax|cor)(?![a-z])", re.IGNORECASE)
_DIR_ENTITY = re.compile(r"_dir-(iso|sag|ax|cor)(?![a-z])", re.IGNORECASE)
_SUBSET = re.compile(
    r"(?<![a-z])(training|train|validation|valid|val|testing|test|hidden)(?:data|set)?(?![a-z])",
    re.IGNORECASE,
)
_EDITION = re.compile(r"verse[-_ ]?(?:20)?(19|20)(?!\d)", re.IGNORECASE)
_NUMBERED_20 = re.compile(r"^(dataset-)?0[123][-_]?(training|validation|test)$", re.IGNORECASE)
_NOISE = {"sub", "split", "dir", "ct"}


@dataclass(frozen=True)
class FileName:
    """The parts of a file's name.

    Attributes:
        path: the file.
        role: "image", "labels", "centroids" or "other".
        id: the name without role and format, as spelled, but see `scanfile.safe_name`.
        base: `id` in lower case.
        loose: the tokens of `base` without the words that differ between layouts.
        ids: the VerSe ids in the name, patient first.
        collection: the folders that tell one download from another.
        subset: "train", "val", "test", or None.
        edition: "verse19", "verse20", or None.
        is_iso: whether it is a centroid file of MICCAI'20.
    """

    path: Path
    role: str
    id: str
    base: str
    loose: tuple[str, ...]
    ids: tuple[str, ...]
    collection: tuple[str, ...]
    subset: str | None
    edition: str | None
    is_iso: bool


def subset_of(folders: tuple[str, ...]) -> str | None:
    """Return the official subset that the deepest folder with such a name gives; None without one.

    "dataset-verse19training", "01_training", "train" and "imagesTr" mean "train". "validation",
    "val" and VerSe'19's "public test" mean "val". "test", "hidden" and "imagesTs" mean "test".
    """
    for folder in reversed(folders):
        name = folder.lower()
        if name in _NNUNET_DIRS:
            return _NNUNET_SUBSET[_NNUNET_DIRS[name][1]]
        found = _SUBSET.findall(name)
        if not found:
            continue
        if found[0].startswith("train"):
            return "train"
        if found[0].startswith("val") or "public" in name:
            return "val"
        return "test"
    return None


def edition_of(folders: tuple[str, ...]) -> str | None:
    """Return the edition that the deepest folder with such a name gives; None without one."""
    for folder in reversed(folders):
        found = _EDITION.search(folder)
        if found:
            return f"verse{found.group(1)}"
        if _NUMBERED_20.match(folder):
            return "verse20"
    return None


def edition_by_name(name: str, ids: tuple[str, ...]) -> str | None:
    """Return the edition that a file's own name gives: '20 marks its series, '19 has low ids."""
    stem = _stem(name)
    if _ISO_CENTROID.search(stem) or _MICCAI20_NAME.search(stem) or _DIR_ENTITY.search(stem):
        return "verse20"
    if not ids:
        return None
    if ids[0].startswith("gl") or int(ids[0][5:]) >= 450:
        return "verse20"
    return "verse19"


def verse_ids(name: str) -> tuple[str, ...]:
    """Return the VerSe ids in a name, e.g. ("verse401", "verse253"), patient before series."""
    found = [f"{kind.lower()}{int(number):03d}" for kind, number in _VERSE_ID.findall(name)]
    return tuple(dict.fromkeys(found))


def parse(path: Path, folders: tuple[str, ...], outer: tuple[str, ...] = ()) -> FileName:
    """Return the parts of a file's name.

    Args:
        path: the file.
        folders: the names of the folders from the root of the dataset to the file.
        outer: the names of folders above the root, which give subset and edition only.
    """
    stem = _stem(path.name)
    is_json = path.name.lower().endswith(".json")
    iso = bool(is_json and _ISO_CENTROID.search(stem))
    lower = [folder.lower() for folder in folders]
    if is_json:
        role = "centroids" if _CENTROID_SUFFIX.search(stem) else "other"
        name = _SEG_ENTITY.sub("", _CENTROID_SUFFIX.sub("", stem))
    else:
        role, name = _image_or_labels(stem, lower)
    if "." not in path.name:  # a folder of DICOM files
        name = _DICOM_FOLDER.sub("", name)
    name = _CT_SUFFIX.sub("", name).strip("-_")
    if not name and folders:  # one folder per scan, e.g. s0001/ct.nii.gz beside s0001/mask.nii.gz
        kept = [f for f in folders if f.lower() not in IMAGE_DIRS | LABEL_DIRS]
        name = kept[-1] if kept else folders[-1]
        lower = lower[: lower.index(name.lower())]
    name = scanfile.safe_name(name)
    base = name.lower()
    ids = verse_ids(name)
    everything = outer + folders
    return FileName(
        path=path,
        role=role,
        id=name,
        base=base,
        loose=_loose(base, ids),
        ids=ids,
        collection=_collection(lower, base, ids),
        subset=subset_of(everything),
        edition=edition_of(everything),
        is_iso=iso,
    )


def _stem(name: str) -> str:
    return re.sub(r"\.json$", "", scanfile.stem(name), flags=re.IGNORECASE)


def is_relevant(name: str) -> bool:
    """Return whether a name is that of a scan or JSON file, neither hidden nor temporary."""
    if name.startswith((".", "~")):
        return False
    return scanfile.is_scan(name) or name.lower().endswith(".json")


def _image_or_labels(stem: str, folders: list[str]) -> tuple[str, str]:
    """Return role and bare name of a voxel file; the suffix of the name outweighs the folder."""
    entity = _SEG_ENTITY.search(stem)
    suffix = _LABEL_SUFFIX.search(stem)
    if entity:
        # Masks of subregions and of vertebral bodies are no vertebra labels.
        is_vertebrae = entity.group(1).lower() == "vert"
        bare = _LABEL_SUFFIX.sub("", _SEG_ENTITY.sub("", stem))
        return ("labels" if suffix and is_vertebrae else "other"), bare
    if suffix:
        return "labels", _LABEL_SUFFIX.sub("", stem)
    for folder in reversed(folders):
        if folder in _NNUNET_DIRS:
            kind = _NNUNET_DIRS[folder][0]
            if kind == "labels":
                return "labels", stem
            if _OTHER_CHANNEL.search(stem):
                return "other", stem
            return "image", _CHANNEL.sub("", stem)
        if folder in LABEL_DIRS:
            return "labels", stem
        if folder in IMAGE_DIRS:
            return "image", _CHANNEL.sub("", stem)
        if folder == "derivatives":  # it also holds results of other programs
            return "other", stem
    return "image", stem


def _loose(base: str, ids: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tokens without the words of the layouts; the whole name if it has no VerSe id."""
    if not ids:
        return (base,)
    tokens = [token for token in re.split(r"[-_]+", base) if token and token not in _NOISE]
    return tuple(verse_ids(token)[0] if verse_ids(token) else token for token in tokens)


def _collection(folders: list[str], base: str, ids: tuple[str, ...]) -> tuple[str, ...]:
    """Return the folders that are neither named after a role nor after the scan."""
    kept = []
    for folder in folders:
        if folder in _NNUNET_DIRS:
            kept.append(_NNUNET_DIRS[folder][1])
        elif folder in IMAGE_DIRS | LABEL_DIRS | _CENTROID_DIRS or folder == "derivatives":
            continue
        elif folder.startswith("sub-") or folder == base:
            continue
        elif ids and verse_ids(folder)[:1] == ids[:1]:
            continue
        else:
            kept.append(folder)
    return tuple(kept)
