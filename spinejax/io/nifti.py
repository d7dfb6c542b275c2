"""NIfTI files in and out. No other module uses nibabel or knows NIfTI headers.

Files are read slab by slab along the last axis, straight from the (gzipped) file. Beside the
result, only some 100 MB are needed, whatever the type on disk. The claims of a header are compared
with the size of the file before memory is allocated.

NIfTI-1 and NIfTI-2 are read, little and big endian, gzipped or not, whatever the ending of the
name. Analyze files and .hdr/.img pairs are refused. Header fields are those of the NIfTI-1 standard
(nifti1.h, NIMH 2004).
"""

import logging
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from nibabel.quaternions import fillpositive, quat2mat
from nibabel.spatialimages import SpatialImage

from spinejax import geometry, labels
from spinejax.errors import InputError
from spinejax.files import StrPath, check_output, expanded
from spinejax.io import contents, voxels
from spinejax.io.grids import TOLERANCE_MM, check_native
from spinejax.io.voxels import Layout, Source
from spinejax.volume import DiskGrid, Volume

logger = logging.getLogger("spinejax")

# Bytes of the header -> its class, first bytes of its magic, where voxels start at the earliest.
_HEADERS = {348: (Nifti1Header, b"n+1", 352), 540: (Nifti2Header, b"n+2", 544)}
_UNITS = {1: ("meter", 1000.0), 2: ("mm", 1.0), 3: ("micron", 0.001)}

# NIFTI_ECODE_IGNORE of nifti1.h, as TotalSegmentator gives to such tables. nibabel 5.4 gives no
# content of extensions with the code of Caret, 30.
_LABEL_TABLE = 0

_Header = Nifti1Header | Nifti2Header


@dataclass(frozen=True, eq=False)
class _NiftiGrid(DiskGrid):
    """A grid with the header of its file; files written on it repeat the header bit by bit."""

    header: bytes


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Open a file and check its header.

    The affine is the sform if its code is set and it is usable; else the qform; else it is made of
    the voxel sizes with the origin in the middle (nibabel's rule). If sform and qform disagree by
    more than 0.5 mm, a warning is logged.

    Raises:
        InputError: see `scanfile.read_volume`.
    """
    with voxels.opened(path) as (stream, limit):
        yield _read_source(path, stream, limit)


def shape_of(path: Path) -> tuple[int, ...]:
    """Return the three sides of a scan, from its header alone.

    Raises:
        InputError: see `scanfile.read_volume`.
    """
    with voxels.opened(path, whole=False) as (stream, _):
        return _checked_shape(path, _read_header(path, stream)[0])[:3]


def from_image(image: SpatialImage) -> Volume:
    """Return the CT of a nibabel image, as `scanfile.read_volume` reads it from a file.

    Labels are written on the grid of the image's header.

    Raises:
        InputError: `image` is no nibabel image, or as for `scanfile.read_volume`.
    """
    if not isinstance(image, SpatialImage):
        raise InputError(
            f"{type(image).__name__} is no scan; give a path, a Volume, a nibabel image, or an "
            "array and its affine"
        )
    path = Path(image.get_filename() or "the image")
    kind = Nifti2Image if isinstance(image, Nifti2Image) else Nifti1Image
    header = kind.from_image(image).header
    x, y, z, *_ = shape = _checked_shape(path, header)
    affine, disk = _affine_and_grid(path, header, header.binaryblock, shape)
    array = np.asanyarray(image.dataobj).reshape((x, y, z))
    return voxels.from_array(array, affine, disk, path)


def write_labels(
    path: StrPath,
    array: np.ndarray,
    like: Volume,
    *,
    names: Mapping[int, str] | None = None,
    overwrite: bool = False,
    kind: str = "labels",
) -> None:
    """Write a label map on the grid of the file that a scan was read from.

    The file repeats the sform and qform with their codes, the units and the shape (with trailing
    axes of length one) of that file. Its type is uint8. For a scan without a file, sform and qform
    are the affine of the scan, with code 1. The file appears whole or not at all.

    Args:
        path: ends in .nii or .nii.gz.
        array: (x, y, z) uint8 in the order of the file, that is, on the grid of `like.native`.
            Labels on the grid of `like.array` go through `like.to_native` first.
        like: the scan.
        names: label -> name. They are written into an extension of the header, as the table of
            labels in XML that Caret has and that TotalSegmentator writes and reads
            (wasserth/TotalSegmentator, `totalsegmentator/nifti_ext_header.py`).
        overwrite: replace a file that this program did not write, too, unless it is the scan.
        kind: of file, see `files.check_output`.

    Raises:
        InputError: the file may not be replaced, the folder cannot be written, the disk is full, or
            the name has another ending.
        ValueError: `array` is not uint8 or not of the shape of `like.native`.
    """
    check_native(array, like)
    _write(
        expanded(path),
        array,
        like,
        np.dtype(np.uint8),
        extension=_label_table(names) if names else b"",
        kind=kind,
        overwrite=overwrite,
    )


def write_volume(
    path: StrPath,
    volume: Volume,
    dtype: str = "int16",
    *,
    slope: float = 1,
    inter: float = 0,
    overwrite: bool = False,
) -> None:
    """Write a CT on the grid of its file or with its affine, see `write_labels`.

    Args:
        path: ends in .nii or .nii.gz.
        volume: the CT.
        dtype: type on disk, e.g. "int16", "uint16", "int32", "float32", "float64".
        slope: not 0; stored value * slope + inter is the value in HU.
        inter: see `slope`.
        overwrite: see `write_labels`.

    Raises:
        InputError: as for `write_labels`.
        ValueError: a value does not fit `dtype`.
    """
    on_disk = np.dtype(dtype)
    array = volume.native
    if on_disk.kind in "iu" and array.size:
        stored = sorted((float(v) - inter) / slope for v in (array.min(), array.max()))
        bounds = np.iinfo(on_disk)
        if not (bounds.min <= round(stored[0]) and round(stored[1]) <= bounds.max):
            raise ValueError(f"values {stored[0]:g} to {stored[1]:g} do not fit {on_disk}")
    _write(expanded(path), array, volume, on_disk, slope, inter, kind="scan", overwrite=overwrite)


@np.errstate(all="ignore")  # damaged headers hold any bit pattern; their values are checked here
def _read_source(path: Path, stream: BinaryIO, limit: int) -> Source:
    """Read and check the header; leave the stream at the first voxel."""
    header, block = _read_header(path, stream)
    full_shape = _checked_shape(path, header)
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        slope, inter = 1.0, 0.0  # by the standard the data are then not scaled
    if not math.isfinite(inter):
        raise InputError(
            f"{path}: the header's intercept of intensities (scl_inter) is {inter:g}; export the "
            "scan again"
        )
    x, y, z = full_shape[:3]
    layout = Layout((x, y, z), _checked_dtype(path, header), slope, inter)
    first, offset = _HEADERS[len(block)][2], float(header["vox_offset"])
    # Some writers leave the offset 0.
    offset = max(first, int(offset)) if math.isfinite(offset) else first
    voxels.check_claim(path, layout, offset, limit)
    affine, disk = _affine_and_grid(path, header, block, full_shape)
    voxels.skip(path, stream, offset - len(block))
    return Source(stream, layout, affine, disk)


def _read_header(path: Path, stream: BinaryIO) -> tuple[_Header, bytes]:
    start = stream.read(4)
    sizes = {int.from_bytes(start, "little"): "<", int.from_bytes(start, "big"): ">"}
    size = next((s for s in sizes if s in _HEADERS), None)
    if size is None or len(start) < 4:
        head = start + stream.read(contents.HEAD_BYTES - len(start))
        raise InputError(f"{path}: {contents.explain(head, 'a NIfTI file')}")
    block = start + stream.read(size - 4)
    if len(block) < size:
        raise InputError(f"{path}: truncated inside the header; copy or download it again")
    header = _parse(block)
    if bytes(header["magic"].item())[:3] != _HEADERS[size][1]:
        raise InputError(
            f"{path}: is half of an Analyze or NIfTI .hdr/.img pair; convert it to one .nii.gz file"
        )
    return header, block


def _parse(block: bytes) -> _Header:
    size = len(block)
    endianness = "<" if int.from_bytes(block[:4], "little") == size else ">"
    return _HEADERS[size][0](block, endianness=endianness, check=False)


def _checked_shape(path: Path, header: _Header) -> tuple[int, ...]:
    """Return the whole shape: three axes, and further ones of length one."""
    axes = int(header["dim"][0])
    shape = tuple(int(n) for n in header["dim"][1 : 1 + max(0, axes)])
    if not 1 <= axes <= 7 or min(shape) < 1:
        raise InputError(
            f"{path}: the header's dimensions {header['dim'].tolist()} make no image; the file is "
            "damaged, copy or download it again"
        )
    if axes < 3:
        raise InputError(f"{path}: is a {axes}D image ({_times(shape)}); give a 3D scan")
    if math.prod(shape[3:]) > 1:
        raise InputError(
            f"{path}: holds {math.prod(shape[3:])} volumes ({_times(shape)}); split it and give "
            "one 3D scan"
        )
    return shape


def _checked_dtype(path: Path, header: _Header) -> np.dtype:
    try:
        dtype = np.dtype(header.get_data_dtype())
    except (KeyError, ValueError):
        dtype = np.dtype("V")
    if dtype.kind not in "iuf":
        kind = "RGB" if dtype.names else {"c": "complex"}.get(dtype.kind, "unknown")
        raise InputError(
            f"{path}: voxels are of {kind} type (NIfTI code {int(header['datatype'])}); convert it "
            "to int16 or float32"
        )
    return dtype


def _affine_and_grid(
    path: Path, header: _Header, block: bytes, full_shape: tuple[int, ...]
) -> tuple[np.ndarray, _NiftiGrid]:
    """Return the affine to use, in mm, and the grid of the header."""
    sform = header.get_sform().astype(np.float64)
    qform = _qform(header)
    codes = int(header["sform_code"]), int(header["qform_code"])
    unit, factor = _UNITS.get(int(header["xyzt_units"]) & 7, ("unknown", 1.0))
    size = factor * float(np.abs(header["pixdim"][1:4]).max())
    if factor != 1 and not 0.01 <= size <= 50:
        logger.warning(
            "%s: voxels of %.3g mm are impossible; ignoring the unit %s", path, size, unit
        )
        factor = 1.0
    disk = _NiftiGrid(path, full_shape, sform, codes[0], qform, codes[1], unit, block)
    to_mm = np.diag([factor, factor, factor, 1.0])
    sform, qform = to_mm @ sform, to_mm @ qform
    sform_ok = codes[0] > 0 and geometry.is_usable_affine(sform)
    qform_ok = codes[1] > 0 and geometry.is_usable_affine(qform)
    if sform_ok:
        if qform_ok:
            distance = geometry.max_corner_distance_mm(sform, qform, full_shape)
            if distance > TOLERANCE_MM:
                logger.warning(
                    "%s: sform and qform disagree by up to %.3g mm; using the sform", path, distance
                )
        return sform, disk
    if qform_ok:
        if codes[0] > 0:
            logger.warning("%s: the sform is unusable (zero, NaN or flat); using the qform", path)
        return qform, disk
    base = to_mm @ header.get_base_affine()
    if codes[0] <= 0 and codes[1] <= 0 and geometry.is_usable_affine(base):
        logger.warning(
            "%s: the header gives no orientation (sform and qform codes are 0); assuming %s",
            path,
            geometry.orientation(base),
        )
        return base, disk
    raise InputError(
        f"{path}: the header's affine is unusable ({geometry.affine_problem(base)}); export the "
        "scan again or repair its sform"
    )


def _qform(header: _Header) -> np.ndarray:
    """Return the affine of the qform by the standard's formula, in header units; NaN if invalid."""
    quaternion = [float(header[f"quatern_{letter}"]) for letter in "bcd"]
    offsets = [float(header[f"qoffset_{letter}"]) for letter in "xyz"]
    affine = np.full((4, 4), np.nan)
    affine[3] = (0, 0, 0, 1)
    norm = math.fsum(q * q for q in quaternion)
    if not norm <= 1 + 1e-4:
        return affine
    if norm > 1:  # by rounding of float32; the real part is zero
        quaternion = [q / math.sqrt(norm) for q in quaternion]
    zooms = np.abs(header["pixdim"][1:4].astype(np.float64))
    if header["pixdim"][0] < 0:
        zooms[2] *= -1
    affine[:3, :3] = quat2mat(fillpositive(quaternion)) * zooms
    affine[:3, 3] = offsets
    return affine


def encoded(
    array: np.ndarray,
    affine: np.ndarray,
    *,
    slope: float = 1,
    inter: float = 0,
    is_map: bool = False,
) -> bytes:
    """Return a small array as the bytes of a NIfTI-1 file, not compressed.

    Args:
        array: (x, y, z) uint8, sides below 2**15.
        affine: (4, 4), from voxel indices to mm in NIfTI's RAS+ world.
        slope: stored value * slope + inter is the value in HU.
        inter: see `slope`.
        is_map: whether the values are labels; the header says so (NIFTI_INTENT_LABEL).
    """
    header = _new_header(Volume(array, affine))
    header["intent_code"] = 1002 if is_map else 0
    header.set_data_dtype(array.dtype)
    header["scl_slope"], header["scl_inter"] = slope, inter
    header["vox_offset"] = 352
    return header.binaryblock.ljust(352, b"\0") + array.tobytes(order="F")


def _write(
    path: Path,
    array: np.ndarray,
    like: Volume,
    dtype: np.dtype,
    slope: float = 1.0,
    inter: float = 0.0,
    *,
    extension: bytes = b"",
    kind: str,
    overwrite: bool,
) -> None:
    """Write an array on the grid of `like.native`; `extension` is the text of a Caret extension."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: the name of the output must end in .nii or .nii.gz; rename it")
    disk = like.disk
    if disk is not None:
        check_output(path, kind, inputs=[disk.path], overwrite=overwrite)
    x, y, z = array.shape
    if disk is not None and disk.shape[:3] != (x, y, z):
        raise ValueError(f"array {array.shape} is not on the grid {disk.shape} of {disk.path}")
    header = _parse(disk.header) if isinstance(disk, _NiftiGrid) else _new_header(like)
    header.set_data_dtype(dtype)
    header["scl_slope"], header["scl_inter"] = slope, inter
    header["cal_min"] = header["cal_max"] = 0
    header["intent_code"] = 0
    header["intent_name"] = header["aux_file"] = b""
    header["descrip"] = b"spinejax"
    first = _HEADERS[int(header["sizeof_hdr"])][2]
    # Its length, its code, its text; whole blocks of 16 bytes.
    length = -(-(8 + len(extension)) // 16) * 16 if extension else 0
    header["vox_offset"] = first + length
    block = header.binaryblock
    # The first of four bytes after the header says whether there is an extension.
    block += bytes([bool(extension)]) + bytes(first - len(block) - 1)
    if extension:
        order = ">" if header.endianness == ">" else "<"
        block += struct.pack(f"{order}ii", length, _LABEL_TABLE) + extension.ljust(
            length - 8, b"\0"
        )
    layout = Layout((x, y, z), header.get_data_dtype(), slope, inter)
    voxels.write(path, block, array, layout, kind=kind, overwrite=overwrite)


def _label_table(names: Mapping[int, str]) -> bytes:
    """Return names and colours of labels as the XML of a Caret extension."""
    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(volume, "LabelTable")
    for label, name in sorted(names.items()):
        rgb = labels.RGB.get(label, (255, 255, 255))
        row = ElementTree.SubElement(table, "Label", {"Key": str(label), "Alpha": "1"})
        for part, value in zip(("Red", "Green", "Blue"), rgb, strict=True):
            row.set(part, f"{value / 255:.6g}")
        row.text = name
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    return ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)


def _new_header(like: Volume) -> _Header:
    """Return a header for a volume of another module; NIfTI-2 if a side is too long for NIfTI-1."""
    disk = like.disk
    shape = disk.shape if disk is not None else like.native.shape
    header = Nifti1Header() if max(shape) < 2**15 else Nifti2Header()
    header.set_data_shape(shape)
    if disk is not None:
        if np.isfinite(disk.qform).all():
            header.set_qform(disk.qform, 0)
        header["qform_code"] = disk.qform_code
        header.set_sform(disk.sform, disk.sform_code)
        header.set_xyzt_units(disk.units)
        return header
    header.set_qform(like.native_affine, 1)
    header.set_sform(like.native_affine, 1)
    header.set_xyzt_units("mm")
    # A qform cannot hold shear, and none is better than a wrong one.
    if geometry.max_corner_distance_mm(_qform(header), like.native_affine, shape) > 0.01:
        header["qform_code"] = 0
    return header


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
