"""DICOM series in: a folder, a zip archive or a file, of which one CT series is the scan.

SimpleITK (GDCM) reads the fields, decodes the pixels and applies the rescale slope and intercept of
each image; `multi_frame` makes single images of frames first. This module decides which images make
up a series, orders them by their positions, and refuses a series whose grid or values cannot be
trusted. Tags are those of DICOM PS3.6, their meaning that of PS3.3: C.7.6.2 (positions), C.8.2.1
(CT image), C.7.6.1 (image type).

DICOM's world is LPS+ and ours is RAS+: x and y change sign.

Names of patients and their numbers may be anywhere: in fields, in descriptions of series, in names
of files. No message repeats them (`_without_names`), but the path that the user gave.
"""

import io
import logging
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from spinejax import geometry
from spinejax.errors import InputError, MachineError
from spinejax.files import change_signature, open_regular
from spinejax.io import itk, multi_frame, voxels
from spinejax.io.grids import disk_grid
from spinejax.io.voxels import Layout, Source

logger = logging.getLogger("spinejax")

_HEAD_BYTES = 2048
_CT = ("1.2.840.10008.5.1.4.1.1.2", *multi_frame.KINDS)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Classes of objects (PS3.4, B.5), the first that begins so.
_CLASSES = {
    _SECONDARY_CAPTURE: "secondary capture",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PET",
    "1.2.840.10008.5.1.4.1.1.66": "segmentation",
    "1.2.840.10008.5.1.4.1.1.88": "report",
    "1.2.840.10008.5.1.4.1.1.481": "radiotherapy",
    "1.2.840.10008.5.1.4.1.1.1": "X-ray",
}
_TAGS = {
    "type": "0008|0008", "uid": "0008|0018", "modality": "0008|0060", "description": "0008|103e",
    "patient": "0010|0010", "patient number": "0010|0020", "tilt": "0018|1120",
    "study": "0020|000d", "series": "0020|000e", "number": "0020|0011", "acquisition": "0020|0012",
    "position": "0020|0032", "directions": "0020|0037", "samples": "0028|0002",
    "photometric": "0028|0004", "frames": "0028|0008", "rows": "0028|0010", "columns": "0028|0011",
    "spacing": "0028|0030", "intercept": "0028|1052", "slope": "0028|1053",
    "quantity": "0028|1054", "lossy": "0028|2110",
}  # fmt: skip
# Rescale types of maps that look like a CT (PS3.3, C.11.1.1.2).
_NOT_HU = {
    "OD": "optical densities", "MGML": "concentrations", "Z_EFF": "atomic numbers",
    "ED": "electron densities", "EDW": "electron densities", "HU_MOD": "modified HU",
    "PCT": "percentages",
}  # fmt: skip
_NAMED = re.compile(r"\.(dcm|dicom|ima)$", re.IGNORECASE)
_PROJECTIONS = {"MIP", "MINIP", "PROJECTION IMAGE", "VOLREN", "VRT"}
# Two images are at one position if they are closer than this.
_ONE_POSITION_MM = 0.01
# Positions are rounded to 0.1 mm by some scanners.
_MOST_OFF_MM = 0.2
_MOST_OFF_SHARE = 0.1
_MOST_TILT_DEG = 45.0
_LEAST_TILT_DEG = 0.5  # as in geometry.straight_grid
# Of two series of one region, the one with more voxels is taken.
_ONE_REGION = 0.9
_AGAIN = "export the series again"


class _File(NamedTuple):
    """A DICOM file: where it is, its name as the user knows it, and its first bytes.

    That of a frame also says which file it comes from, and its number there, from 1.
    """

    path: Path
    name: str
    head: bytes
    whole: Path | None = None
    frame: int = 0


@dataclass(frozen=True, eq=False)
class _Image:
    """The fields of an image of a CT; a place or size that is missing or no number is None.

    Attributes:
        path: the file of this image alone.
        whole: the file of the user, which holds more images if `frame` is above 0.
        frame: number of the image in `whole`, from 1; 0 if it is the only one.
    """

    path: Path
    name: str
    tags: Mapping[str, str]
    position: np.ndarray | None
    directions: np.ndarray | None
    spacing: np.ndarray | None
    whole: Path | None = None
    frame: int = 0

    @property
    def normal(self) -> np.ndarray:
        """The direction (3,) in which images of a series follow one another."""
        row, column = np.zeros((2, 3)) if self.directions is None else self.directions
        return np.cross(row, column)


@dataclass(frozen=True, eq=False)
class Series:
    """Images that may make up one scan.

    Attributes:
        number: names the series in its folder. It is the scanner's number, or a higher one if that
            is missing or taken.
        description: what the scanner calls it, "" without.
        images: in the order of their positions.
        useless: why it is no scan, for example "localiser"; "" for a scan.
    """

    number: int
    description: str
    images: tuple[_Image, ...]
    useless: str = ""

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Distances of columns, of rows and (the median) of slices; None if they are unknown."""
        first = self.images[0]
        heights = _heights(self.images)
        if heights is None or first.spacing is None:
            return None
        step = float(np.median(np.diff(heights))) if len(heights) > 1 else 0.0
        return float(first.spacing[1]), float(first.spacing[0]), step

    @property
    def volume_ml(self) -> float:
        """Volume that the images show, 0 if it is unknown."""
        sides = self.spacing_mm
        return 0.0 if sides is None else math.prod(sides) * self._voxels / 1000

    @property
    def _voxels(self) -> int:
        rows, columns = (int(self.images[0].tags.get(one, "0")) for one in ("rows", "columns"))
        return rows * columns * len(self.images)

    def __str__(self) -> str:
        name = f" ({self.description})" if self.description else ""
        count = f"{len(self.images)} slice{'s' * (len(self.images) != 1)}"
        sides = self.spacing_mm
        size = "" if sides is None else f" of {' x '.join(f'{side:.3g}' for side in sides)} mm"
        why = f", {self.useless}" if self.useless else ""
        return f"{self.number}{name}: {count}{size}{why}"


def is_dicom(path: Path) -> bool:
    """Return whether a path is a folder, a zip archive, or a DICOM file by its first bytes."""
    if path.suffix.lower() == ".zip" or path.is_dir():
        return True
    return _is_dicom_head(_head(path))


def holds_dicom(path: Path) -> bool:
    """Return whether a zip archive holds DICOM files; one that cannot be read does not."""
    try:
        with voxels.opened_regular(path) as (raw, _), zipfile.ZipFile(raw) as archive:
            for member in _members(archive)[:20]:
                with archive.open(member) as file:
                    if _is_dicom_head(file.read(_HEAD_BYTES)):
                        return True
    except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, InputError):
        pass
    return False


def study_in(folder: Path, names: Iterable[str]) -> str | None:
    """Return the study of the first DICOM file directly in a folder; None if it holds none.

    The study is "" if the file does not say it.

    Args:
        folder: the folder.
        names: of the files in it. Those with an ending that no DICOM file has are passed over, and
            so are DICOMDIR, a list of files, and segmentations that `predict` wrote.
    """
    likely = re.compile(r"[^.]*|(?!.*\.seg\.dcm$).*\.(dcm|dicom|ima|\d+)", re.IGNORECASE)
    chosen = [name for name in names if likely.fullmatch(name) and name.upper() != "DICOMDIR"]
    for name in sorted(chosen, key=lambda name: (not name.lower().endswith(".dcm"), name))[:5]:
        if name.startswith(".") or not _is_dicom_head(_head(folder / name)):
            continue
        tags = _tags(folder / name)
        return tags.get("study", "") if tags is not None else ""
    return None


def parts(path: Path) -> tuple[Path, ...]:
    """Return the files of all series: the DICOM files of a folder, or the file itself.

    Raises:
        InputError: a file cannot be read.
    """
    if not path.is_dir():
        return (path,)
    with _files(path) as files:
        return tuple(file.path for file in files)


def series_in(path: Path) -> list[Series]:
    """Return the CT series of a folder, a zip archive or a file, by number.

    Raises:
        InputError: there is none, or a file of one cannot be read.
    """
    with _images(path) as files:
        return _series(path, files)


def shape_of(path: Path) -> tuple[int, ...]:
    """Return the three sides of the scan that `opened` reads, from its fields alone.

    Raises:
        InputError: as for `opened`.
    """
    with _images(path) as files:
        return size(_choose(path, _series(path, files), None))


@contextmanager
def opened(path: Path, series: int | None = None) -> Iterator[Source]:
    """Open a series and check it.

    Args:
        path: a folder with any subfolders, a zip archive, or a file.
        series: its number; None takes the one that shows most: the largest volume, and of those
            that show one region, the one with most voxels.

    Raises:
        InputError: there is no CT series or not the one that is wanted; an image cannot be read or
            decoded, or is no grey picture in HU; positions are missing, double or uneven.
    """
    with _checked(path, series) as (found, chosen, affine):
        where = f"{path}: series {chosen.number}"
        _note(path, chosen, found, chose=series is None)
        tags = [image.tags for image in chosen.images]
        whole = all(float(one[k]).is_integer() for one in tags for k in ("slope", "intercept"))
        x, y, z = size(chosen)
        layout = Layout((x, y, z), np.dtype("<i4" if whole else "<f8"))
        voxels.check_claim(path, layout, 0, layout.nbytes)
        grid = replace(disk_grid(path, layout.shape, affine), series=chosen.number)
        stream = cast(BinaryIO, _Pixels(where, chosen, layout))
        yield Source(stream, layout, affine, grid)


@contextmanager
def checked(path: Path, series: int | None = None) -> Iterator[tuple[Series, np.ndarray]]:
    """Give a series whose files exist within the block, and its affine (4, 4) to RAS mm.

    Args:
        path: as for `opened`.
        series: as for `opened`.

    Raises:
        InputError: as for `opened`, but no voxel is read.
    """
    with _checked(path, series) as (_, chosen, affine):
        yield chosen, affine


@contextmanager
def _checked(
    path: Path, series: int | None
) -> Iterator[tuple[Sequence[Series], Series, np.ndarray]]:
    with _images(path) as files:
        found = _series(path, files)
        chosen = _choose(path, found, series)
        where = f"{path}: series {chosen.number}"
        yield found, chosen, geometry.LPS_TO_RAS @ _checked_affine(where, chosen)


class _Pixels(io.RawIOBase):
    """The values of the images of a series in HU, one image after the other."""

    def __init__(self, where: str, series: Series, layout: Layout) -> None:
        self._where, self._layout = where, layout
        self._images = iter(series.images)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._left:
            image = next(self._images, None)
            if image is None:
                return 0
            values = _values(self._where, image)
            columns, rows, _ = self._layout.shape
            if values.shape != (rows, columns):
                raise InputError(f"{self._where}: {image.name} has another size; {_AGAIN}")
            self._left = memoryview(values.astype(self._layout.dtype).tobytes())
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


# Files.


def _head(path: Path) -> bytes:
    """Return the first bytes of a regular file; none if it is something else or unreadable."""
    try:
        with open_regular(path) as file:
            return file.read(_HEAD_BYTES)
    except (OSError, InputError):
        return b""


def _is_dicom_head(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def _element(head: bytes, group: int, element: int) -> str:
    """Return a UID of the meta information at the start of a file (PS3.10, 7.1), "" without."""
    mark = group.to_bytes(2, "little") + element.to_bytes(2, "little") + b"UI"
    at = head.find(mark, 132)
    if at < 0:
        return ""
    length = int.from_bytes(head[at + 6 : at + 8], "little")
    return head[at + 8 : at + 8 + length].decode("ascii", "replace").strip("\0 ")


@contextmanager
def _files(path: Path) -> Iterator[list[_File]]:
    """Give the DICOM files of a folder, of a zip archive (unpacked in the meantime), or the file.

    Raises:
        InputError: there is none, or a folder or an archive cannot be read.
    """
    if path.is_dir():
        found = []
        for one in _below(path):  # a file that cannot be read may be a slice
            with voxels.reporting(one), open_regular(one) as stream:
                found.append(_File(one, str(one.relative_to(path)), stream.read(_HEAD_BYTES)))
        yield _dicom_only(path, found)
    elif path.suffix.lower() == ".zip":
        with tempfile.TemporaryDirectory(prefix="spinejax-") as folder:
            yield _dicom_only(path, _unpacked(path, Path(folder)))
    else:
        with voxels.opened_regular(path) as (file, _):
            head = file.read(_HEAD_BYTES)
        yield _dicom_only(path, [_File(path, path.name, head)])


@contextmanager
def _images(path: Path) -> Iterator[list[_File]]:
    """Give the DICOM files as `_files` does, those of several frames as a file a frame.

    Raises:
        InputError: as for `_files`, or there is no room for the frames.
    """
    with _files(path) as files:
        if not any(map(_is_multi_frame, files)):
            yield files
            return
        with tempfile.TemporaryDirectory(prefix="spinejax-") as folder:
            yield [one for file in files for one in _frames_of(path, file, Path(folder))]


def _is_multi_frame(file: _File) -> bool:
    return _element(file.head, 2, 2) in multi_frame.KINDS


def _frames_of(path: Path, file: _File, folder: Path) -> list[_File]:
    """Return the frames of a file as files of their own, or the file if it cannot be divided."""
    if not _is_multi_frame(file):
        return [file]
    _check_room(path, file.path.stat().st_size, folder, "taking its frames apart")
    found = multi_frame.split(file.path, Path(tempfile.mkdtemp(dir=folder)))
    return [
        _File(one, f"{file.name}, frame {frame}", _head(one), file.path, frame)
        for frame, one in enumerate(found, start=1)
    ] or [file]


def _check_room(path: Path, needed: int, folder: Path, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MachineError(
            f"{path}: {what} takes {needed / 1e9:.1f} GB, and {folder.parent} has "
            f"{free / 1e9:.1f} GB; free some, or set TMPDIR to another folder"
        )


def _dicom_only(path: Path, files: Iterable[_File]) -> list[_File]:
    found = [file for file in files if _is_dicom_head(file.head) or _NAMED.search(file.name)]
    if not found:
        if path.is_dir():
            raise InputError(f"{path}: is a folder without DICOM files; give that of a series")
        raise InputError(f"{path}: holds no DICOM file; unpack it and give the scan in it")
    return found


def _below(root: Path) -> Iterator[Path]:
    """Yield all files under a folder, sorted; links are followed, loops are not."""

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename}: cannot be listed ({error.strerror}); check the rights on the folder"
        ) from error

    seen: set[str] = set()
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(n for n in folders if not n.startswith("."))
        if real not in seen:
            seen.add(real)
            yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the files of an archive that are neither hidden nor macOS's notes about files."""
    return [
        member
        for member in archive.infolist()
        if not member.is_dir() and not re.search(r"(^|/)(\.[^./]|__MACOSX)", member.filename)
    ]


def _unpacked(path: Path, folder: Path) -> list[_File]:
    """Unpack the DICOM files of an archive; its own names decide nothing about where."""
    found: list[_File] = []
    try:
        with voxels.opened_regular(path) as (raw, _), zipfile.ZipFile(raw) as archive:
            members = _members(archive)
            _check_room(path, sum(one.file_size for one in members), folder, "unpacking")
            for number, member in enumerate(members):
                with archive.open(member) as file:
                    head = file.read(_HEAD_BYTES)
                    if not _is_dicom_head(head) and not _NAMED.search(member.filename):
                        continue
                    target = folder / f"{number}.dcm"
                    with target.open("wb") as out:
                        out.write(head)
                        shutil.copyfileobj(file, out)
                found.append(_File(target, member.filename, head))
    except zipfile.BadZipFile:
        raise InputError(
            f"{path}: is damaged or no zip archive; copy or download it again"
        ) from None
    except (RuntimeError, NotImplementedError):  # a password, or a method that Python has not
        raise InputError(
            f"{path}: is encrypted or compressed in an unusual way; unpack it and give the folder"
        ) from None
    return found


# Fields.


def _reader(path: Path) -> Any:
    reader = itk.library().ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader


def _tags(path: Path) -> Mapping[str, str] | None:
    """Return the fields of an image that this module uses; None if GDCM reads no image there.

    A command looks at a series several times. The fields of unchanged files are read once.
    """
    try:
        signature, is_settled = change_signature(path.stat())
    except OSError:
        return None
    return _remembered_tags(path.absolute(), signature) if is_settled else _read_tags(path)


@lru_cache(maxsize=4096)
def _remembered_tags(path: Path, _: tuple[int, int, int]) -> Mapping[str, str] | None:
    return _read_tags(path)


def _read_tags(path: Path) -> Mapping[str, str] | None:
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    return {
        name: _printable(reader.GetMetaData(tag)).strip()
        for name, tag in _TAGS.items()
        if reader.HasMetaDataKey(tag)
    }


def _values(where: str, image: _Image) -> np.ndarray:
    """Return the HU (rows, columns) of an image."""
    try:
        found = _reader(image.path).Execute()
    except RuntimeError:
        syntax = _element(_head(image.path), 2, 0x10) or "unknown"
        raise InputError(
            f"{where}: {image.name} cannot be decoded (transfer syntax {syntax}); it is damaged, "
            "or unpack the series first, e.g. with gdcmconv --raw"
        ) from None
    array = itk.library().GetArrayFromImage(found)
    return array.reshape(array.shape[-2:]) if array.ndim == 3 else array


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _numbers(text: str, count: int) -> np.ndarray | None:
    """Return the numbers of a field; None if they are others than `count` finite ones."""
    try:
        found = np.array([float(word) for word in text.split("\\")])
    except ValueError:
        return None
    return found if len(found) == count and np.isfinite(found).all() else None


def _without_names(tags: Iterable[Mapping[str, str]]) -> Callable[[str], str]:
    """Return a function that takes names and numbers of patients out of a text."""
    words = {
        word
        for one in tags
        for field in ("patient", "patient number")
        for word in re.findall(r"[^\W_]{2,}", one.get(field, ""))
    }
    if not words:
        return lambda text: text
    # Short ones count where they stand alone: "Li" is no part of "helical".
    spelled = [
        re.escape(word) if len(word) > 3 else rf"(?<![^\W_]){re.escape(word)}(?![^\W_])"
        for word in sorted(words, key=len, reverse=True)
    ]
    pattern = re.compile("|".join(spelled), re.IGNORECASE)
    return lambda text: pattern.sub("***", text)


def _image(file: _File, tags: Mapping[str, str], clean: Callable[[str], str]) -> _Image:
    directions = _numbers(tags.get("directions", ""), 6)
    spacing = _numbers(tags.get("spacing", ""), 2)
    return _Image(
        path=file.path,
        name=clean(_printable(file.name)),
        tags=tags,
        position=_numbers(tags.get("position", ""), 3),
        directions=None if directions is None else directions.reshape(2, 3),
        spacing=spacing if spacing is not None and (spacing > 0).all() else None,
        whole=file.whole,
        frame=file.frame,
    )


# Series.


def _series(path: Path, files: Sequence[_File]) -> list[Series]:
    """Return the CT series among files, by number."""
    others: Counter[str] = Counter()
    read: list[tuple[_File, Mapping[str, str]]] = []
    broken: list[_File] = []
    for file in files:
        kind = _element(file.head, 2, 2)
        if kind.startswith(_SECONDARY_CAPTURE) or (kind and not _is_ct(kind)):
            others[_class_name(kind)] += 1
            continue
        tags = _tags(file.path)
        if tags is None:
            if _is_ct(kind) or not _is_dicom_head(file.head):
                broken.append(file)
            else:
                others["no image"] += 1
        elif tags.get("modality") != "CT":
            others[_printable(tags.get("modality", "")) or "no modality"] += 1
        else:
            read.append((file, tags))
    clean = _without_names(tags for _, tags in read)
    if broken:
        more = "" if len(broken) == 1 else f" and {len(broken) - 1} more"
        raise InputError(
            f"{path}: {clean(_printable(broken[0].name))}{more} cannot be read: truncated or "
            "damaged; copy or export the series again"
        )
    if not read:
        what = ", ".join(f"{count} x {name}" for name, count in sorted(others.items()))
        raise InputError(f"{path}: holds no CT image ({what}); give the folder of a CT series")
    groups: dict[tuple[str, str], list[_Image]] = {}
    known: set[str] = set()
    copied = 0
    for file, tags in read:
        uid = tags.get("uid", "")
        if uid in known:
            copied += 1
            continue
        if uid:
            known.add(uid)
        key = tags.get("series", ""), _why_useless(tags)
        groups.setdefault(key, []).append(_image(file, tags, clean))
    if copied:
        logger.info("%s: %d images are second copies of another and are left out", path, copied)
    stacks = [
        _Stack(stack, why, which)
        for (_, why), images in sorted(groups.items(), key=lambda group: group[0])
        for alike in _alike(images)
        for which, stack in _acquisitions(alike)
    ]
    return _numbered(stacks, clean)


def _is_ct(kind: str) -> bool:
    return kind in _CT


def _class_name(kind: str) -> str:
    found = (name for start, name in _CLASSES.items() if (kind + ".").startswith(start + "."))
    return next(found, "other object")


def _why_useless(tags: Mapping[str, str]) -> str:
    """Return why an image is no slice of a scan, "" if it may be one."""
    words = {word.strip() for word in tags.get("type", "").upper().split("\\")}
    if "LOCALIZER" in words:
        return "localiser"
    return "projection" if words & _PROJECTIONS else ""


def _alike(images: Sequence[_Image]) -> list[list[_Image]]:
    """Return the images in groups of one size, one voxel size and one direction."""
    groups: list[list[_Image]] = []
    for image in images:
        for group in groups:
            if _are_alike(group[0], image):
                group.append(image)
                break
        else:
            groups.append([image])
    return groups


def _are_alike(one: _Image, other: _Image) -> bool:
    if any(one.tags.get(name) != other.tags.get(name) for name in ("rows", "columns")):
        return False
    pairs = ((one.directions, other.directions), (one.spacing, other.spacing))
    return all(
        a is b if a is None or b is None else np.allclose(a, b, rtol=0, atol=1e-3) for a, b in pairs
    )


def _acquisitions(images: Sequence[_Image]) -> list[tuple[str, list[_Image]]]:
    """Return the images as one stack, or by acquisition where only that may make even stacks."""
    groups: dict[str, list[_Image]] = {}
    for image in images:
        groups.setdefault(image.tags.get("acquisition", ""), []).append(image)
    if len(groups) < 2 or not _unevenness(_ordered(images)):
        return [("", _ordered(images))]
    return [(which, _ordered(groups[which])) for which in sorted(groups)]


def _frames(image: _Image) -> int:
    text = image.tags.get("frames", "")
    return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else 1


class _Stack(NamedTuple):
    """Images in order, why they are no scan ("" if they are one), and their acquisition."""

    images: list[_Image]
    useless: str
    acquisition: str

    @property
    def number(self) -> int | None:
        """The scanner's number of the series, None without."""
        text = self.images[0].tags.get("number", "")
        return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else None


def _numbered(stacks: Sequence[_Stack], clean: Callable[[str], str]) -> list[Series]:
    """Return stacks as series with a number each."""

    def order(stack: _Stack) -> tuple[float, bool, int]:
        number = math.inf if stack.number is None else stack.number
        return number, bool(stack.useless), -len(stack.images)

    highest = max((stack.number or 0 for stack in stacks), default=0)
    taken: set[int] = set()
    found = []
    for stack in sorted(stacks, key=order):
        images, why, acquisition = stack
        number = stack.number
        if number is None or number in taken:
            number = highest = highest + 1
        taken.add(number)
        words = [clean(images[0].tags.get("description", ""))]
        words += [f"acquisition {acquisition}"] if acquisition else []
        if not why and len(images) == 1 and _frames(images[0]) == 1:
            why = "a single slice"
        found.append(Series(number, ", ".join(filter(None, words)), tuple(images), why))
    return sorted(found, key=lambda series: series.number)


def _choose(path: Path, found: Sequence[Series], number: int | None) -> Series:
    """Return the series of a number, or the one that shows most."""
    listed = "; ".join(map(str, found))
    if number is not None:
        for series in found:
            if series.number == number:
                if series.useless:
                    raise InputError(f"{path}: series {series}, so no scan; there are {listed}")
                return series
        raise InputError(f"{path}: there is no series {number}; choose from {listed}")
    scans = [series for series in found if not series.useless]
    if not scans:
        raise InputError(f"{path}: holds no scan ({listed}); give the folder of a CT series")
    most = max(series.volume_ml for series in scans)
    widest = [series for series in scans if series.volume_ml >= _ONE_REGION * most]
    return max(widest, key=lambda series: (series._voxels, -series.number))


def _note(path: Path, chosen: Series, found: Sequence[Series], *, chose: bool) -> None:
    """Say which series is read, and what is odd about it."""
    others = [series for series in found if series is not chosen and not series.useless]
    if chose and others:
        logger.info(
            "%s: reading series %s; --series=N takes another: %s",
            path,
            chosen,
            "; ".join(map(str, others)),
        )
    where = f"{path}: series {chosen.number}"
    if any(image.tags.get("lossy") == "01" for image in chosen.images):
        logger.warning("%s: was compressed with loss, so its HU are approximate", where)
    tilt = _tilt_deg(_affine(chosen))
    if tilt >= _LEAST_TILT_DEG:
        logger.info(
            "%s: gantry tilt of %.1f degrees; networks see the scan resampled upright, labels are "
            "written on its own grid",
            where,
            tilt,
        )
    said = _numbers(chosen.images[0].tags.get("tilt", ""), 1)
    if said is not None and abs(float(said[0])) >= 1 > tilt:
        logger.warning(
            "%s: its header says gantry tilt of %.1f degrees, but its slices do not lean; unless "
            "it was straightened before, distances along the spine are wrong",
            where,
            float(said[0]),
        )


# The grid.


def size(series: Series) -> tuple[int, int, int]:
    """Return the columns, rows and slices of a series."""
    tags = series.images[0].tags
    return int(tags["columns"]), int(tags["rows"]), len(series.images)


def _heights(images: Sequence[_Image]) -> np.ndarray | None:
    """Return the places (n,) of images along their normal in mm; None if one has no place."""
    if any(image.position is None or image.directions is None for image in images):
        return None
    return np.stack([cast(np.ndarray, image.position) for image in images]) @ images[0].normal


def _ordered(images: Sequence[_Image]) -> list[_Image]:
    heights = _heights(images)
    if heights is None:
        return list(images)
    return [images[i] for i in np.argsort(heights, kind="stable")]


def _unevenness(images: Sequence[_Image]) -> str:
    """Return why ordered images do not lie evenly along one line; "" if they do."""
    heights = _heights(images)
    if heights is None:
        return "an image has no position or direction"
    if len(images) < 2:
        return ""
    steps = np.diff(heights)
    close = int(np.argmin(steps))
    if steps[close] < _ONE_POSITION_MM:
        names = f"{images[close].name} and {images[close + 1].name}"
        return (
            f"{int((steps < _ONE_POSITION_MM).sum()) + 1} images are where another one is "
            f"({names} at {heights[close]:.2f} mm)"
            if (steps < _ONE_POSITION_MM).sum() > 1
            else f"{names} are at one position ({heights[close]:.2f} mm)"
        )
    step = float(np.median(steps))
    off = _positions(images) - _line(images)
    allowed = min(_MOST_OFF_MM, _MOST_OFF_SHARE * step)
    along = off @ images[0].normal
    if np.abs(along).max() > allowed:
        wide = int(np.argmax(steps))
        count = int((np.rint(steps / step) - 1).clip(0).sum())
        if count and np.abs(steps / step - np.rint(steps / step)).max() < 0.2:
            return (
                f"{count} slice{'s are' if count > 1 else ' is'} missing, first between "
                f"{images[int(np.argmax(steps > 1.5 * step))].name} and its neighbour: a gap of "
                f"{steps[wide]:.3g} mm where slices are {step:.3g} mm apart"
            )
        return f"slices are {steps.min():.3g} to {steps.max():.3g} mm apart"
    sideways = np.linalg.norm(off - along[:, None] * images[0].normal, axis=1).max()
    return f"slices are shifted sideways by {sideways:.2g} mm" if sideways > _MOST_OFF_MM else ""


def _positions(images: Sequence[_Image]) -> np.ndarray:
    return np.stack([cast(np.ndarray, image.position) for image in images])


def _line(images: Sequence[_Image]) -> np.ndarray:
    """Return the even positions (n, 3) in LPS mm that are nearest to those of images."""
    count = np.arange(len(images)) - (len(images) - 1) / 2
    places = _positions(images)
    step = count @ places / max(float(count @ count), 1.0)
    return places.mean(axis=0) + np.outer(count, step)


def _affine(series: Series) -> np.ndarray:
    """Return the affine (4, 4) from indices (column, row, slice) to LPS mm."""
    first = series.images[0]
    line = _line(series.images)
    row, column = cast(np.ndarray, first.directions)
    between_rows, between_columns = cast(np.ndarray, first.spacing)
    affine = np.eye(4)
    affine[:3, 0] = row * between_columns
    affine[:3, 1] = column * between_rows
    affine[:3, 2] = (line[-1] - line[0]) / (len(line) - 1) if len(line) > 1 else first.normal
    affine[:3, 3] = line[0]
    return affine


def _tilt_deg(affine: np.ndarray) -> float:
    """Return the angle between the normal of slices and the line along which they lie."""
    normal, step = np.cross(affine[:3, 0], affine[:3, 1]), affine[:3, 2]
    sine = np.linalg.norm(np.cross(normal, step))
    return math.degrees(math.atan2(float(sine), abs(float(normal @ step))))


def _checked_affine(where: str, series: Series) -> np.ndarray:
    """Return the affine of a series to LPS mm.

    Raises:
        InputError: something about the series cannot be trusted.
    """
    for image in series.images:
        problem = _image_problem(image)
        if problem:
            raise InputError(f"{where}: {image.name}: {problem}")
    problem = _unevenness(series.images)
    if problem:
        raise InputError(
            f"{where}: {problem}; export the whole series again, or make even slices of it, e.g. "
            "with dcm2niix, and give their .nii.gz"
        )
    affine = _affine(series)
    tilt = _tilt_deg(affine)
    if tilt > _MOST_TILT_DEG or not geometry.is_usable_affine(affine):
        raise InputError(
            f"{where}: its slices lean by {tilt:.0f} degrees, as no gantry does; check its image "
            f"positions, or {_AGAIN}"
        )
    return affine


def _image_problem(image: _Image) -> str:
    """Return why an image cannot be a slice of a CT, and what to do; "" if it can."""
    tags = image.tags
    if _frames(image) > 1:
        return (
            "is a multi-frame image whose frames have no fields of their own, or is damaged; "
            "export the series as single images, or convert it to .nii.gz, e.g. with dcm2niix"
        )
    if tags.get("samples", "1") != "1" or tags.get("photometric") != "MONOCHROME2":
        kind = f"{tags.get('samples', '1')} x {tags.get('photometric') or 'unknown'}"
        return f"is no grey picture with air in black ({kind}); give the CT itself"
    for name, field in (("position", image.position), ("direction", image.directions),
                        ("pixel size", image.spacing)):  # fmt: skip
        if field is None:
            return f"gives no {name}, so its place is unknown; {_AGAIN}"
    directions = cast(np.ndarray, image.directions)
    if not np.allclose(directions @ directions.T, np.eye(2), atol=1e-2):
        return f"its directions are not at right angles or not of length 1; {_AGAIN}"
    if tags.get("quantity") in _NOT_HU:
        return f"its numbers are {_NOT_HU[tags['quantity']]}, not HU; give the CT itself"
    for name in ("slope", "intercept"):
        value = _numbers(tags.get(name, ""), 1)
        if value is None or (name == "slope" and not value[0] > 0):
            shown = tags.get(name) or "missing"
            return f"its rescale {name} is {shown}, so its numbers are not HU; {_AGAIN}"
    return ""
