"""The voxels of a file, slab by slab: opening, checking, converting and writing them.

This module knows gzip, types, slope and intercept. The modules of the formats know headers.
Voxels are stored with the first axis fastest, so that a slab along the last axis is contiguous.
"""

import errno
import gzip
import logging
import lzma
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from spinejax import geometry
from spinejax.errors import InputError, MachineError, shown
from spinejax.files import atomic_path, open_regular
from spinejax.machine import available_bytes
from spinejax.volume import DiskGrid, Volume

logger = logging.getLogger("spinejax")

AIR_HU = -1024
"""HU of air, the lowest value of a calibrated CT. Lower values, NaN and infinities become it."""

ANY_NUMBER = (
    "use data.labels=binary (--labels=binary of score), which takes any number for vertebra"
)
"""What to do about a mask with other numbers, for messages."""

_SLAB_VOXELS = 2**21
# A deflate stream expands at most by this factor (zlib's technical notes).
MAX_DEFLATE_RATIO = 1032
_COMPRESSION = 4
# The corners outside of a circle that touches all sides are 21 % of a slice.
_MOST_LOST = 0.25


@dataclass(frozen=True)
class Layout:
    """The layout of voxels in a stream; a value is stored * slope + inter."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    slope: float = 1.0
    inter: float = 0.0

    @property
    def nbytes(self) -> int:
        """The bytes of all voxels."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def scaled(self) -> bool:
        """Whether values differ from the stored numbers."""
        return (self.slope, self.inter) != (1.0, 0.0)


class Source(NamedTuple):
    """An open scan file; the stream is at the first voxel."""

    stream: BinaryIO
    layout: Layout
    affine: np.ndarray
    disk: DiskGrid


def voxel_file(header: Path, name: str) -> Path:
    """Return the file that holds the voxels of a header, below the folder of the header.

    Args:
        header: the header's file.
        name: of the voxel file, as the header gives it.

    Raises:
        InputError: there is no such file, or it is a scan with a header of its own.
    """
    path = header.parent / name
    # A header that names any other file of the machine is damaged, or not to be trusted.
    if Path(name).is_absolute() or ".." in Path(name).parts or not os.path.lexists(path):
        raise InputError(
            f"{header}: its voxel file {shown(name)} is not beside it; copy both, under their own "
            "names"
        )
    if path.is_dir():
        raise InputError(
            f"{header}: its voxel file {shown(name)} is a folder, not a regular file; export the "
            "scan again"
        )
    if name.lower().endswith((".mha", ".mhd", ".nrrd", ".nhdr", ".nii", ".nii.gz")):
        raise InputError(
            f"{header}: its voxel file {shown(name)} is a scan with a header of its own; export "
            "the scan again"
        )
    return path


@contextmanager
def opened(path: Path, *, whole: bool = True) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file; give its decompressed stream and the largest number of bytes that it can hold.

    If the stream is read as a `whole`, its checksum is compared.

    The first bytes tell whether it is gzipped. Errors while reading from the stream become
    InputErrors that name the file.
    """
    with opened_regular(path) as (raw, size):
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not zipped:
            yield raw, size
            return
        with gzip.GzipFile(fileobj=raw) as stream:
            yield cast(BinaryIO, stream), size * MAX_DEFLATE_RATIO
            if whole:
                # gzip compares its checksum at the end of the stream.
                drain(cast(BinaryIO, stream))


@contextmanager
def opened_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file that is not empty; give its stream and its size in bytes.

    Errors while reading from it become InputErrors that name the file.
    """
    with reporting(path), open_regular(path) as raw:
        size = os.fstat(raw.fileno()).st_size
        if size == 0:
            raise InputError(f"{path}: the file is empty; copy or download it again")
        yield raw, size


@contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Turn errors while reading a file into InputErrors that name it."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except PermissionError:
        raise InputError(f"{path}: permission denied; check the rights on the file") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile):
        raise InputError(
            f"{path}: truncated or damaged compressed file; copy or download it again"
        ) from None
    except MemoryError:
        raise InputError(f"{path}: not enough memory to read it; crop or resample it") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and the disk"
        ) from None


def drain(stream: BinaryIO) -> None:
    """Read a compressed stream to its end, where its checksum is compared.

    At most 64 MB are read: a damaged stream may continue after the last voxel.
    """
    for _ in range(64):
        if not stream.read(1 << 20):
            break


def check_claim(path: Path, layout: Layout, offset: int, limit: int) -> None:
    """Check that the voxels that a header claims fit into its file and into memory.

    Args:
        path: named in the error.
        layout: the claim of the header.
        offset: bytes before the voxels.
        limit: the largest number of bytes that the (decompressed) file can hold.

    Raises:
        InputError: they do not fit.
    """
    claim = f"{' x '.join(map(str, layout.shape))} voxels of {layout.dtype.name}"
    if offset + layout.nbytes > limit:
        raise InputError(
            f"{path}: the header claims {claim}, {layout.nbytes:.4g} bytes, but the file can hold "
            f"at most {limit:.4g}; it is truncated or damaged, copy or download it again"
        )
    available = available_bytes()
    if available is not None and 2 * math.prod(layout.shape) > available:
        raise InputError(
            f"{path}: the header claims {claim}, too many for the {available:.4g} bytes of memory "
            "that are free; crop or resample it"
        )


def skip(path: Path, stream: BinaryIO, count: int) -> None:
    """Read past `count` bytes, in small steps because `count` comes from the header."""
    while count > 0:
        got = len(stream.read(min(count, 1 << 20)))
        if got == 0:
            raise InputError(f"{path}: truncated before the voxels; copy or download it again")
        count -= got


def intensities(path: Path, stream: BinaryIO, layout: Layout) -> np.ndarray:
    """Return the values of a CT, (x, y, z): int16 if all are whole numbers that fit, else float32.

    NaN, infinities and values below AIR_HU become AIR_HU.

    Raises:
        InputError: the stream ends too early, or no value is finite.
    """
    out = np.empty(layout.shape, np.int16, order="F")
    some_finite, lost = False, 0
    for start, stored in _slabs(path, stream, layout):
        stop = start + stored.shape[2]
        if stored.dtype.kind in "iu" and not layout.scaled:
            values = stored
            some_finite = True
            if stored.dtype.kind == "i":
                np.maximum(values, max(AIR_HU, np.iinfo(stored.dtype).min), out=values)
        else:
            values = _scaled(stored, layout)
            # A value that is too large for float32 counts as infinite.
            good = np.abs(values) <= np.finfo(np.float32).max
            some_finite = some_finite or bool(good.any())
            lost += good.size - int(np.count_nonzero(good))
            good &= values >= AIR_HU
            values[~good] = AIR_HU
        if out.dtype == np.int16 and not _is_int16(values):
            out = out.astype(np.float32)
        out[:, :, start:stop] = values
    if not some_finite:
        raise InputError(f"{path}: no voxel is a finite number; export the scan again")
    if lost > _MOST_LOST * out.size:
        logger.warning(
            "%s: %.0f %% of the voxels are NaN or infinite and count as air; if they do not lie "
            "outside of the scan circle, export the scan again",
            path,
            100 * lost / out.size,
        )
    return out


def from_array(
    array: np.ndarray,
    affine: np.ndarray,
    disk: DiskGrid | None = None,
    path: Path = Path("the array"),
) -> Volume:
    """Return an array as a CT; its values are cleaned like those of a file.

    Args:
        array: (x, y, z) HU, integers or floats, in any orientation.
        affine: (4, 4) from voxel indices to mm in NIfTI's RAS+ world.
        disk: the grid on which labels will be written; None takes the grid of `affine`.
        path: the name of the array in errors.

    Raises:
        InputError: the array is not 3D, has no finite number, or has another type; or the affine
            is unusable.
    """
    affine = geometry.as_affine(affine, str(path))
    if array.ndim != 3 or not array.size or array.dtype.kind not in "iuf":
        raise InputError(
            f"{path}: {array.dtype} of shape {array.shape} is no scan; give numbers (x, y, z)"
        )
    if not geometry.is_usable_affine(affine):
        raise InputError(
            f"{path}: the affine is unusable ({geometry.affine_problem(affine)}); give that of the "
            "scan, from voxel indices to mm"
        )
    x, y, z = array.shape
    stream = BytesIO(array.tobytes(order="F"))
    return Volume(intensities(path, stream, Layout((x, y, z), array.dtype)), affine, disk)


def label_values(path: Path, stream: BinaryIO, layout: Layout, *, wrap: bool) -> np.ndarray:
    """Return labels, (x, y, z) uint8.

    If `wrap` is true, numbers above 255 are wrapped into 1 to 255. That keeps foreground and
    background apart, and also labels in the usual steps of 1 or 100.

    Raises:
        InputError: the stream ends too early; or a value is negative, above 255 without `wrap`, or
            no whole number (to 0.01, or to half a step of the stored numbers if they are scaled).
    """
    slack = 0.01
    if layout.scaled and layout.dtype.kind in "iu":
        # Writers that quantise floats move a label by up to half a step from its whole number.
        slack = max(slack, min(0.1, 0.51 * abs(layout.slope)))
    out = np.empty(layout.shape, np.uint8, order="F")
    for start, stored in _slabs(path, stream, layout):
        values = stored
        if stored.dtype.kind == "f" or layout.scaled:
            exact = _scaled(stored, layout)
            values = np.rint(exact)
            with np.errstate(invalid="ignore"):
                wrong = ~(np.abs(exact - values) <= slack)
            if wrong.any():
                raise InputError(
                    f"{path}: value {exact[wrong][0]:g} is no label, labels are whole numbers; "
                    "is this the mask, and was it resampled without interpolation?"
                )
        low, high = values.min(), values.max()
        if low < 0:
            raise InputError(
                f"{path}: label {float(low):g} is out of range; labels are not negative"
            )
        if high > 255 and not wrap:
            raise InputError(
                f"{path}: label {float(high):g} is out of range; allowed are 0 to 255; renumber "
                f"the mask, or {ANY_NUMBER}"
            )
        if high > 255:
            values = np.where(values > 255, (values - 1) % 255 + 1, values)
        out[:, :, start : start + values.shape[2]] = values
    return out


def write(
    path: Path, header: bytes, array: np.ndarray, layout: Layout, *, kind: str, overwrite: bool
) -> None:
    """Write a header and the voxels of an array (x, y, z).

    Both are gzipped if the name ends in .gz, and the voxels alone if it ends in .nrrd. The file
    appears whole or not at all, see `files.atomic_path` for `kind` and `overwrite`. The same input
    gives the same bytes.

    Raises:
        InputError: the file may not be replaced, the folder cannot be written, or the disk is full.
    """
    with (
        _writing(path),
        atomic_path(path, kind, overwrite=overwrite) as temporary,
        temporary.open("wb") as raw,
    ):
        name = path.name.lower()
        if name.endswith(".nrrd"):
            raw.write(header)
            header = b""
        if name.endswith((".gz", ".nrrd")):
            with gzip.GzipFile(
                filename="", mode="wb", compresslevel=_COMPRESSION, fileobj=raw, mtime=0
            ) as stream:
                _write_voxels(cast(BinaryIO, stream), header, array, layout)
        else:
            _write_voxels(raw, header, array, layout)


def _slabs(path: Path, stream: BinaryIO, layout: Layout) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first index and the stored values (x, y, slab) of slabs along the last axis.

    The values have native byte order, and the caller may overwrite them.
    """
    nx, ny, nz = layout.shape
    step = max(1, _SLAB_VOXELS // (nx * ny))
    for start in range(0, nz, step):
        slab = np.empty((min(step, nz - start), ny, nx), layout.dtype)
        view = slab.view(np.uint8).reshape(-1).data
        done = 0
        while done < len(view):
            got = stream.readinto(view[done : done + (1 << 24)])  # type: ignore[attr-defined]
            if not got:
                raise InputError(
                    f"{path}: truncated, voxels end in slice {start + 1} of {nz}; copy or download "
                    "it again"
                )
            done += got
        yield start, slab.astype(layout.dtype.newbyteorder("="), copy=False).transpose(2, 1, 0)


def _scaled(stored: np.ndarray, layout: Layout) -> np.ndarray:
    """Return values as float64, with NaN and infinities."""
    with np.errstate(all="ignore"):
        values = stored.astype(np.float64)
        if layout.scaled:
            values *= layout.slope
            values += layout.inter
    return values


def _is_int16(values: np.ndarray) -> bool:
    """Return whether finite values are whole numbers that fit int16."""
    bounds = np.iinfo(np.int16)
    if values.min() < bounds.min or values.max() > bounds.max:
        return False
    return values.dtype.kind in "iu" or bool((values == np.rint(values)).all())


def _write_voxels(stream: BinaryIO, header: bytes, array: np.ndarray, layout: Layout) -> None:
    stream.write(header)
    nx, ny, nz = layout.shape
    step = max(1, _SLAB_VOXELS // (nx * ny))
    for start in range(0, nz, step):
        slab = array[:, :, start : start + step].transpose(2, 1, 0)
        if layout.scaled:
            slab = (slab.astype(np.float64) - layout.inter) / layout.slope
        if layout.dtype.kind in "iu" and slab.dtype.kind == "f":
            slab = np.rint(slab)
        stream.write(np.ascontiguousarray(slab, layout.dtype).view(np.uint8).reshape(-1).data)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn errors while writing a file into InputErrors that say why."""
    try:
        yield
    except OSError as error:
        kind: type[InputError] = MachineError
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            problem = "no space left on the disk; free some, or choose another output folder"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            problem = "permission denied; choose an output folder that can be written"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            problem = "a parent is a file, not a folder; choose another output folder"
        elif error.errno == errno.EISDIR:
            problem = "is a folder; give the name of a file"
            kind = InputError
        else:
            problem = f"{error.strerror or error}; choose another output folder"
            kind = InputError
        raise kind(f"{path}: cannot be written: {problem}") from None
