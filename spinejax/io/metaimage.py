"""MetaImage files in: .mha, and .mhd with a .raw or .zraw file beside it.

SimpleITK makes the grid from the fields of the header, because it knows all spellings of a grid. It
gets a header with checked fields alone, because it prints lines of its own about a field that it
cannot read. This module reads the voxels slab by slab, as those of NIfTI files: ITK would hold a
scan twice, and returns an image even if compressed voxels are damaged or missing.

ITK's world is LPS+ (x grows to the patient's left, y to posterior), and ours is RAS+: x and y
change sign. The fields of the header are those of MetaIO's documentation
(https://itk.org/Wiki/ITK/MetaIO/Documentation). As in ITK, slope and offset of intensities and the
name of the orientation are ignored: voxels are read as stored, on the grid of the matrix.
"""

import io
import logging
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from spinejax.errors import InputError, shown
from spinejax.io import contents, itk, voxels
from spinejax.io.grids import disk_grid
from spinejax.io.voxels import Layout, Source
from spinejax.volume import DiskGrid

logger = logging.getLogger("spinejax")

_MAX_HEADER = 1 << 16
_MARK = b"\xef\xbb\xbf"  # the byte order mark that some editors put before UTF-8
_TYPES = (
    "Int8", "UInt8", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64", "Float32", "Float64",
)  # fmt: skip
# Spellings of origin, voxel size and matrix -> p, for (number of axes)^p numbers.
_GRID = {
    "Offset": 1, "Origin": 1, "Position": 1, "ElementSpacing": 1, "ElementSize": 1,
    "TransformMatrix": 2, "Orientation": 2, "Rotation": 2,
}  # fmt: skip
_KNOWN = {
    "NDims", "DimSize", "ElementType", "ElementNumberOfChannels", "HeaderSize", "BinaryData",
    "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData", "CompressedDataSize", *_GRID,
}  # fmt: skip
# Headers of sheared grids (a tilted gantry) may give directions that are slightly longer than 1.
_MOST_STRETCHED = 0.2


@dataclass(frozen=True)
class _Header:
    """The fields of a header, its length in bytes, and the file with the voxels."""

    fields: dict[str, str]
    length: int
    data: Path

    def says(self, *names: str) -> bool:
        """Return whether the first of these fields that the header has is true."""
        value = next((self.fields[name] for name in names if name in self.fields), "")
        return value[:1] in ("T", "t", "1")


def is_metaimage(path: str | os.PathLike[str]) -> bool:
    """Return whether the name ends in .mha or .mhd."""
    return Path(path).suffix.lower() in (".mha", ".mhd")


def parts(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the files of an image: its header and, if it is separate, its voxel file.

    Raises:
        InputError: the header cannot be read, or its voxel file is missing.
    """
    path = Path(path)
    data = _read_header(path).data
    return (path,) if data == path else (path, data)


def shape_of(path: Path) -> tuple[int, ...]:
    """Return the three sides of a scan, from its header alone.

    Raises:
        InputError: the header cannot be read.
    """
    sides = _integers(_read_header(path).fields.get("DimSize", ""))
    if len(sides) < 3:
        raise InputError(f"{path}: the header's DimSize is no shape; copy or download it again")
    return tuple(sides[:3])


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Open an image and check its header.

    Raises:
        InputError: see `scanfile.read_volume`.
    """
    header = _read_header(path)
    layout, grid = _layout_and_grid(path, header)
    compressed = header.says("CompressedData")
    with voxels.opened_regular(header.data) as (raw, size):
        offset = _offset(path, header, size, layout)
        ratio = voxels.MAX_DEFLATE_RATIO if compressed else 1
        voxels.check_claim(header.data, layout, 0, max(0, size - offset) * ratio)
        raw.seek(offset)
        stream = cast(BinaryIO, _Inflated(raw)) if compressed else raw
        yield Source(stream, layout, grid.sform, grid)
        if compressed:
            voxels.drain(stream)


class _Inflated(io.RawIOBase):
    """The contents of a zlib or gzip stream.

    Reading raises EOFError if the stream ends before its checksum, and zlib.error if it is damaged.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._inflate.eof:
            data = self._inflate.unconsumed_tail or self._raw.read(1 << 16)
            out = self._inflate.decompress(data, len(buffer))
            if out:
                buffer[: len(out)] = out
                return len(out)
            if not data:
                raise EOFError
        return 0


def _read_header(path: Path) -> _Header:
    """Read the fields of a header and find its voxel file."""
    with voxels.opened_regular(path) as (file, _):
        block = file.read(_MAX_HEADER)
    fields: dict[str, str] = {}
    length = len(_MARK) if block.startswith(_MARK) else 0
    while "ElementDataFile" not in fields:
        line, newline, _ = block[length:].partition(b"\n")
        length += len(line) + 1
        text = line.decode("latin-1")
        key, _, value = text.partition("=" if "=" in text else ":")
        key, value = key.strip(), value.strip()
        if not newline and key != "ElementDataFile":
            if "NDims" in fields:
                raise InputError(f"{path}: its header has no end; copy or download it again")
            head = block[: contents.HEAD_BYTES]
            raise InputError(f"{path}: {contents.explain(head, 'a MetaImage file')}")
        if fields.setdefault(key, value) != value and key in _KNOWN:
            raise InputError(
                f"{path}: its header gives {key} twice, {fields[key][:40]!r} and {value[:40]!r}; "
                "export the scan again"
            )
    return _Header(fields, length, _data_file(path, fields["ElementDataFile"]))


def _data_file(path: Path, name: str) -> Path:
    if name.upper() == "LOCAL":
        return path
    if not name or "%" in name or name.split()[0].upper() == "LIST":
        raise InputError(
            f"{path}: its voxels are in several files ({shown(name) if name else 'none named'}); "
            "save it as one .mha or .nii.gz file"
        )
    return voxels.voxel_file(path, name)


def _layout_and_grid(path: Path, header: _Header) -> tuple[Layout, DiskGrid]:
    """Return the layout of the voxels in their file, and their grid in space."""
    sitk = itk.library()
    _check_fields(path, header.fields)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    try:
        with tempfile.TemporaryDirectory(prefix="spinejax-") as folder:
            checked = Path(folder, "header.mha")
            checked.write_text(_checked_header(header.fields), encoding="ascii")
            reader.SetFileName(str(checked))
            reader.ReadImageInformation()
    except RuntimeError as error:
        # The message has several lines; keep the reason, without addresses in memory.
        reason = re.sub(r"\w+\(0x\w+\): ", "", str(error).rpartition("ERROR: ")[2]).split("\n")[0]
        raise InputError(
            f"{path}: ITK cannot read its header ({reason.replace(str(checked), 'the header')}); "
            "export the scan again"
        ) from None
    dtypes = {getattr(sitk, f"sitk{name}"): np.dtype(name.lower()) for name in _TYPES}
    dtype = dtypes.get(reader.GetPixelID())
    if dtype is None:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise InputError(f"{path}: voxels are of type {kind}; convert it to int16 or float32")
    if "BinaryData" in header.fields and not header.says("BinaryData"):
        raise InputError(f"{path}: voxels are stored as text; save it again in binary form")
    big = header.says("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    x, y, z = reader.GetSize()[:3]
    layout = Layout((x, y, z), dtype.newbyteorder(">" if big else "<"))
    axes = reader.GetDimension()
    direction = np.reshape(reader.GetDirection(), (axes, axes))[:3, :3]
    affine = itk.affine_of(path, reader)
    lengths = np.linalg.norm(direction, axis=0)
    if not (np.abs(lengths - 1) <= _MOST_STRETCHED).all():
        raise InputError(
            f"{path}: the header's matrix has directions of length "
            f"{', '.join(f'{length:.3g}' for length in lengths)}, not 1, so the voxel size is in "
            "doubt; export the scan again"
        )
    return layout, disk_grid(path, layout.shape, affine)


def _check_fields(path: Path, fields: dict[str, str]) -> None:
    """Check fields that make ITK fail, or that it silently completes if numbers are missing."""
    if fields.get("ObjectType", "Image") != "Image":
        raise InputError(
            f"{path}: holds an object of type {shown(fields['ObjectType'])}, no image; give a CT"
        )
    axes = sum(_integers(fields.get("NDims", ""))[:1])
    shape = _integers(fields.get("DimSize", ""))
    named = re.fullmatch(r"MET_[A-Z_]+", fields.get("ElementType", ""))
    if axes < 1 or len(shape) != axes or min(shape) < 1 or not named:
        raise InputError(
            f"{path}: the header's NDims, DimSize and ElementType make no image; copy or download "
            "it again"
        )
    sides = " x ".join(map(str, shape))
    if axes < 3:
        raise InputError(f"{path}: is a {axes}D image ({sides}); give a 3D scan")
    if max(shape[3:], default=1) > 1:
        raise InputError(f"{path}: holds several volumes ({sides}); give one 3D scan")
    if fields.get("ElementNumberOfChannels", "1") != "1":
        raise InputError(f"{path}: its voxels have several channels, as in RGB; give a CT")
    for name, power in _GRID.items():
        if name in fields and len(_numbers(fields[name])) != axes**power:
            raise InputError(
                f"{path}: the header's {name} is not {axes**power} numbers; export the scan again"
            )

    if not {"ElementSpacing", "ElementSize"} & set(fields):
        logger.warning("%s: the header gives no voxel size; assuming 1 mm, as ITK does", path)
    for name in ("HeaderSize", "CompressedDataSize"):
        if not re.fullmatch(r"-1|\d{1,18}", fields.get(name, "0"), re.ASCII):
            raise InputError(f"{path}: the header's {name} is no number; export the scan again")


def _integers(text: str) -> list[int]:
    """Return the whole numbers in a field; none if it holds anything else, or one is too large."""
    words = text.split()
    plain = all(re.fullmatch(r"\d{1,9}", word, re.ASCII) for word in words)
    return [int(word) for word in words] if plain else []


def _numbers(text: str) -> list[float]:
    """Return the numbers in a field; none if it holds anything else, or a number is too large.

    Python reads more than ITK does, such as "4_0", "nan" and digits of other scripts.
    """
    if not re.fullmatch(r"[-+.eE\d\s]*", text, re.ASCII):
        return []
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        return []
    return numbers if np.isfinite(numbers).all() else []


def _checked_header(fields: dict[str, str]) -> str:
    """Return a header of the checked fields that make the grid, in the order that ITK wants."""
    names = ("NDims", "DimSize", *_GRID, "ElementType")
    kept = [f"{name} = {' '.join(fields[name].split())}\n" for name in names if name in fields]
    return "".join(("ObjectType = Image\n", *kept, "ElementDataFile = LOCAL\n"))


def _offset(path: Path, header: _Header, size: int, layout: Layout) -> int:
    """Return the number of bytes before the voxels in their file."""
    skipped = int(header.fields.get("HeaderSize", "0"))
    if skipped == -1:  # the voxels are the end of the file
        stored = int(header.fields.get("CompressedDataSize", "0"))
        return max(0, size - (stored if header.says("CompressedData") else layout.nbytes))
    return max(0, skipped) or (header.length if header.data == path else 0)
