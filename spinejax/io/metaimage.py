"""MetaImage files in: .mha, and .mhd with a .raw or .zraw file beside it.

No other module uses SimpleITK (the `dicom` extra). SimpleITK reads the headers, because it knows
all spellings of a grid. This module reads the voxels slab by slab, as those of NIfTI files: ITK
would hold a scan twice, and returns an image even if compressed voxels are damaged or missing.

ITK's world is LPS+ (x grows to the patient's left, y to posterior), and ours is RAS+: x and y
change sign. The fields of the header are those of MetaIO's documentation
(https://itk.org/Wiki/ITK/MetaIO/Documentation). As in ITK, slope and offset of intensities and the
name of the orientation are ignored: voxels are read as stored, on the grid of the matrix.
"""

import io
import logging
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, cast

import numpy as np

from spinejax import geometry
from spinejax.errors import InputError
from spinejax.io import contents, voxels
from spinejax.io.voxels import Layout, Source
from spinejax.volume import DiskGrid

logger = logging.getLogger("spinejax")

_MAX_HEADER = 1 << 16
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
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


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


def require_simpleitk(path: str | os.PathLike[str]) -> ModuleType:
    """Return the module SimpleITK.

    Raises:
        InputError: it is not installed; `path` is the file that needs it.
    """
    try:
        import SimpleITK
    except ImportError:
        raise InputError(
            f"{path}: reading MetaImage needs SimpleITK; pip install 'spinejax[dicom]', or convert "
            "the file to .nii.gz"
        ) from None
    return SimpleITK


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
    fields = _read_header(path).fields
    try:
        return tuple(int(side) for side in fields["DimSize"].split())[:3]
    except (KeyError, ValueError):
        raise InputError(
            f"{path}: the header's DimSize is no shape; copy or download it again"
        ) from None


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Open an image and check its header.

    Raises:
        InputError: SimpleITK is not installed; else see `scanfile.read_volume`.
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
    length = 0
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
            f"{path}: its voxels are in several files ({name or 'none named'}); save it as one "
            ".mha or .nii.gz file"
        )
    data = path.parent / name
    # A header that names any other file of the machine is damaged, or not to be trusted.
    if Path(name).is_absolute() or ".." in Path(name).parts or not os.path.lexists(data):
        raise InputError(
            f"{path}: its voxel file {name} is not beside it; copy both, under their own names"
        )
    return data


def _layout_and_grid(path: Path, header: _Header) -> tuple[Layout, DiskGrid]:
    """Return the layout of the voxels in their file, and their grid in space."""
    sitk = require_simpleitk(path)
    _check_fields(path, header.fields)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        # The message has several lines; keep the reason, without addresses in memory.
        reason = re.sub(r"\w+\(0x\w+\): ", "", str(error).rpartition("ERROR: ")[2]).split("\n")[0]
        raise InputError(
            f"{path}: ITK cannot read its header ({reason}); export the scan again"
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
    affine = np.eye(4)
    affine[:3, :3] = direction * reader.GetSpacing()[:3]
    affine[:3, 3] = reader.GetOrigin()[:3]
    affine = _TO_RAS @ affine
    if not geometry.is_usable_affine(affine):
        raise InputError(
            f"{path}: the header's grid is unusable (matrix zero or flat, or voxels not of 0.001 "
            "to 1000 mm); export the scan again"
        )
    # A qform of NIfTI holds rotations only, so a sheared grid is written as sform alone.
    rigid = np.allclose(direction.T @ direction, np.eye(3), atol=1e-4)
    grid = DiskGrid(path, layout.shape, affine, 1, affine, int(rigid), "mm")
    return layout, grid


def _check_fields(path: Path, fields: dict[str, str]) -> None:
    """Check fields that make ITK fail, or that it silently completes if numbers are missing."""
    try:
        axes = int(fields["NDims"])
        shape = [int(side) for side in fields["DimSize"].split()]
    except (KeyError, ValueError):
        axes, shape = 0, []
    if axes < 1 or len(shape) != axes or min(shape) < 1 or "ElementType" not in fields:
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
        try:
            numbers = [float(number) for number in fields.get(name, "0 " * axes**power).split()]
        except ValueError:
            numbers = []
        if len(numbers) != axes**power or not np.isfinite(numbers).all():
            raise InputError(
                f"{path}: the header's {name} is not {axes**power} numbers; export the scan again"
            )

    if not {"ElementSpacing", "ElementSize"} & set(fields):
        logger.warning("%s: the header gives no voxel size; assuming 1 mm, as ITK does", path)
    for name in ("HeaderSize", "CompressedDataSize"):
        if not re.fullmatch(r"-?\d{1,18}", fields.get(name, "0")):
            raise InputError(f"{path}: the header's {name} is no number; export the scan again")


def _offset(path: Path, header: _Header, size: int, layout: Layout) -> int:
    """Return the number of bytes before the voxels in their file."""
    skipped = int(header.fields.get("HeaderSize", "0"))
    if skipped == -1:  # the voxels are the end of the file
        stored = int(header.fields.get("CompressedDataSize", "0"))
        return max(0, size - (stored if header.says("CompressedData") else layout.nbytes))
    return max(0, skipped) or (header.length if header.data == path else 0)
