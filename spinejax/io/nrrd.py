"""NRRD files in, through SimpleITK: .nrrd, and .nhdr with its voxels in a file beside it.

The fields are those of the format's definition (https://teem.sourceforge.net/nrrd/format.html). ITK
turns every known space into LPS+; ours is RAS+, so x and y change sign.
"""

import io
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from spinejax.errors import InputError, shown
from spinejax.io import contents, itk, voxels
from spinejax.io.grids import disk_grid
from spinejax.io.voxels import Layout, Source

logger = logging.getLogger("spinejax")

_MAX_HEADER = 1 << 16
_SPACES = {
    "right-anterior-superior", "ras", "left-anterior-superior", "las",
    "left-posterior-superior", "lps",
}  # fmt: skip
_COMPRESSED = ("gz", "gzip", "bz2", "bzip2")
_TYPES = ("Int8", "UInt8", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64", "Float32",
          "Float64")  # fmt: skip


def is_nrrd(path: Path) -> bool:
    """Return whether the name ends in .nrrd or .nhdr."""
    return path.suffix.lower() in (".nrrd", ".nhdr")


def parts(path: Path) -> tuple[Path, ...]:
    """Return the files of an image: its header and, if it is separate, its voxel file.

    Raises:
        InputError: the header cannot be read, or its voxel file is missing.
    """
    data = _voxel_file(path, _header(path)[0])
    return (path,) if data is None else (path, data)


def shape_of(path: Path) -> tuple[int, ...]:
    """Return the three sides of a scan, from its header alone.

    Raises:
        InputError: the header cannot be read.
    """
    reader, _, _ = _read_header(path)
    return tuple(int(side) for side in reader.GetSize()[:3])


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Open an image and check its header.

    Raises:
        InputError: see `scanfile.read_volume`.
    """
    reader, fields, most = _read_header(path)
    sitk = itk.library()
    dtypes = {getattr(sitk, f"sitk{name}"): np.dtype(name.lower()) for name in _TYPES}
    dtype = dtypes.get(reader.GetPixelID())
    if dtype is None:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise InputError(
            f"{path}: voxels are of type {kind}; convert it to one 3D scan of int16 or float32"
        )
    x, y, z = (int(side) for side in reader.GetSize()[:3])
    layout = Layout((x, y, z), dtype)
    voxels.check_claim(path, layout, 0, most)
    affine = _affine(path, reader, fields)
    grid = disk_grid(path, layout.shape, affine)
    try:
        array = itk.library().GetArrayFromImage(reader.Execute())
    except RuntimeError:
        raise InputError(
            f"{path}: truncated or damaged voxels; copy or download it again"
        ) from None
    stream = io.BytesIO(np.ascontiguousarray(array).data)
    del array
    yield Source(cast(BinaryIO, stream), layout, affine, grid)


def _read_header(path: Path) -> tuple[Any, dict[str, str], int]:
    """Return a reader that has read the header, its fields, and how many bytes voxels can take."""
    fields, left = _header(path)
    _check_fields(path, fields)
    reader = itk.library().ImageFileReader()
    reader.SetImageIO("NrrdImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        lines = [line.rpartition("] ")[2] for line in str(error).splitlines() if "[nrrd]" in line]
        reason = lines[-1].replace(str(path), "the header") if lines else "not in the format"
        raise InputError(
            f"{path}: ITK cannot read its header ({shown(reason)}); export the scan again"
        ) from None
    if math.prod(reader.GetSize()[3:]) != 1:  # a first axis of length one whose kind is not given
        raise InputError(
            f"{path}: its first axis ({fields['sizes']}) may be one of channels or of space; give "
            "one 3D scan or label map"
        )
    ratio = voxels.MAX_DEFLATE_RATIO if fields.get("encoding", "").lower() in _COMPRESSED else 1
    return reader, fields, left * ratio


def _header(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields of a header, and how many bytes of voxels follow it or are in their file.

    The voxel file is checked to be a regular one, which ITK may open.
    """
    with voxels.opened_regular(path) as (file, size):
        block = file.read(_MAX_HEADER)
    if not block.startswith(b"NRRD"):
        raise InputError(f"{path}: {contents.explain(block[: contents.HEAD_BYTES], 'a NRRD file')}")
    end = re.search(rb"\r?\n\r?\n", block)
    fields = _fields(block[: end.start()] if end else block)
    data = _voxel_file(path, fields)
    if data is not None:
        with voxels.opened_regular(data) as (_, size):
            return fields, size
    if end is None:
        raise InputError(f"{path}: its header has no end; copy or download it again")
    return fields, size - end.end()


def _voxel_file(path: Path, fields: dict[str, str]) -> Path | None:
    """Return the file that the header names for its voxels; None if they follow the header."""
    name = fields.get("data file", fields.get("datafile"))
    if name is None:
        return None
    if not name or "%" in name or name.split()[0] == "LIST":
        raise InputError(
            f"{path}: its voxels are in several files ({shown(name) if name else 'none named'}); "
            "save it as one .nrrd or .nii.gz file"
        )
    return voxels.voxel_file(path, name)


def _fields(header: bytes) -> dict[str, str]:
    lines = header.decode("latin-1").splitlines()[1:]
    pairs = (line.partition(":") for line in lines if not line.startswith("#"))
    return {key.strip().lower(): value.strip() for key, colon, value in pairs if colon}


def _check_fields(path: Path, fields: dict[str, str]) -> None:
    words = fields.get("sizes", "").split()
    if not words or not all(re.fullmatch(r"[1-9]\d{0,8}", word, re.ASCII) for word in words):
        raise InputError(f"{path}: the header's sizes make no image; copy or download it again")
    sides = [int(word) for word in words]
    times = " x ".join(words)
    if len(sides) < 3:
        raise InputError(f"{path}: is a {len(sides)}D image ({times}); give a 3D scan")
    if len(sides) > 3 and (1 not in (sides[0], math.prod(sides[3:]))):
        raise InputError(
            f"{path}: holds several volumes or channels ({times}); give one 3D scan or label map"
        )
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"", "mm"}
    if units:
        raise InputError(
            f"{path}: its lengths are in {shown(sorted(units)[0])}; save it with lengths in mm"
        )


def _affine(path: Path, reader: Any, fields: dict[str, str]) -> np.ndarray:
    """Return the affine (4, 4) to RAS mm; say what the header leaves open."""
    space = fields.get("space", "").lower()
    if space not in _SPACES:
        said = f"the space {shown(space)}" if space else "no space"
        logger.warning(
            "%s: the header gives %s, so its orientation is unknown; assuming LPS", path, said
        )
    if not {"space directions", "spacings"} & fields.keys():
        logger.warning("%s: the header gives no voxel size; assuming 1 mm, as ITK does", path)
    return itk.affine_of(path, reader)
