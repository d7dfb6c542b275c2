"""Preprocessed scans on disk, memory-mapped, with the content of the source files as the key.

Each scan has a folder, named by a digest of the preprocessing settings and the *contents* of the
image and label files. So a changed setting, mask or scan makes another entry; a moved file does
not.

    <cache_dir>/
      digests.json             path -> size, times, digest: unchanged files are not read again
      <key>/image.npy          (n, h, w) int16 HU
      <key>/label.npy          (n, h, w) uint8 VerSe ids; 0 and 1 of binary labels
      <key>/meta.json          settings, grid, statistics, foreground pixels, checksums
      <key>/<name>.npz         what follows from the labels and takes long to find (`kept`)
      .spinejax-tmp-<host>-<pid>-*/    an entry being written

An entry is written in a temporary folder which is then renamed, so it exists whole or not at all:
after an interruption the same call continues with the missing entries. If two processes make the
same entry at once, both succeed and the first rename wins. So nothing here needs locks, which
network file systems may lack. The bytes of an entry are compared with its checksums whenever it is
prepared; a damaged entry is made again.
"""

import errno
import hashlib
import io
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from spinejax import failures, machine, plausible, records
from spinejax.data.normalise import ScanStats
from spinejax.data.preprocess import SlicePreprocess, preprocess_slabs, slice_geometry
from spinejax.datasets import copies
from spinejax.datasets.verse import Case
from spinejax.errors import InputError, MachineError
from spinejax.files import StrPath, change_signature, crc32, open_regular, write_json
from spinejax.io import grids, scanfile
from spinejax.labels import likely_schemes, likely_words, reserved_note
from spinejax.progress import Progress, silent
from spinejax.volume import LabelVolume, Volume

logger = logging.getLogger("spinejax")

FORMAT = 2
"""Version of the results of `preprocess` and of the files here. Raise it when either changes."""

_DIGESTS = "digests.json"
_FILES = ("image.npy", "label.npy", "meta.json")  # of an entry
_KEPT = re.compile(r"[a-z0-9-]+\.npz")  # names of further files of an entry
_TEMPORARY = re.compile(r"\.spinejax-tmp-(?P<host>.+)-(?P<process>\d+)-[0-9a-f]{16}")
_DAMAGED = "damaged"  # an entry that is being removed, in a temporary folder
_IMAGE, _LABEL = np.dtype("<i2"), np.dtype("u1")
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True, eq=False)
class CachedCase:
    """One preprocessed scan. It is small and picklable: its arrays are opened on access.

    Attributes:
        id: id of the case.
        path: folder of the entry.
        settings: the preprocessing.
        shape: (n, h, w) of image and label.
        stats: (4,) float32 mean, std, min, max of the image in HU.
        foreground_counts: (n,) int32, labelled pixels per slice.
        spacing_mm: in-plane spacing of the slices along h and w.
        slice_spacing_mm: distance between slices.
        doubts: why the scan may be no CT in HU (`plausible.check`).
        reserved: labels of the mask that are no vertebrae (`labels.drop_reserved`).
    """

    id: str
    path: Path
    settings: SlicePreprocess
    shape: tuple[int, int, int]
    stats: np.ndarray
    foreground_counts: np.ndarray
    spacing_mm: tuple[float, float]
    slice_spacing_mm: float
    doubts: tuple[str, ...] = ()
    reserved: tuple[int, ...] = ()

    @property
    def image(self) -> np.ndarray:
        """(n, h, w) int16 HU, memory-mapped and read-only."""
        return _open_array(str(self.path / "image.npy"))

    @property
    def label(self) -> np.ndarray:
        """(n, h, w) uint8 VerSe ids, or 0 and 1, memory-mapped and read-only."""
        return _open_array(str(self.path / "label.npy"))


# Two threads must not parse the headers of arrays at the same time: Python before 3.11.8 and 3.12.1
# may then raise SystemError (CPython issue 106905).
_ONE_HEADER = threading.Lock()


def _memory_map(path: StrPath) -> np.ndarray:
    with _ONE_HEADER:
        return np.load(path, mmap_mode="r")


# Every open map holds a file descriptor. VerSe's 374 scans have 748 files; a common limit is 1024.
@lru_cache(maxsize=machine.open_files() // 2)
def _open_array(path: str) -> np.ndarray:
    try:
        return _memory_map(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cache file {path} cannot be read ({error}); delete its folder and run again"
        ) from error


def kept(case: CachedCase, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return an array that follows from a scan, and keep it beside the scan.

    It is made once for all runs and processes that use the cache. Where it cannot be written, it is
    made each time.

    Args:
        case: the scan.
        name: says what the array is and what it depends on besides the scan, with the version of
            the code that makes it: small letters, digits and hyphens.
        make: returns the array.
    """
    path = case.path / f"{name}.npz"
    if _KEPT.fullmatch(path.name) is None:
        raise ValueError(f"{path.name} is no name of a file of an entry")
    # A damaged archive may seem to be encrypted, or of a later version: RuntimeError.
    errors = (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
    with suppress(*errors):
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            content = io.BytesIO(archive.read("array.npy"))  # and compares it with its checksum
        with _ONE_HEADER:
            return np.lib.format.read_array(content, allow_pickle=False)
    array = make()
    with suppress(OSError):
        temporary = _temporary_folder(case.path.parent)
        try:
            np.savez_compressed(temporary / path.name, array=array)
            os.replace(temporary / path.name, path)
        finally:
            _remove_temporary(temporary)
    return array


def _is_record(value: Any) -> bool:
    digest = value[-1] if isinstance(value, list) and len(value) in (3, 4) else None
    return isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest) is not None


class ContentDigests:
    """Content digests of files, remembered by path, size and times of change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = {}
        known = records.read_or_empty(path)
        if all(map(_is_record, known.values())):  # else all files are read again
            self._known = known
        # Older versions did not list this file as theirs. Its content shows whose it is.
        self._is_known = bool(self._known)
        self._changed = False

    def of(self, path: Path) -> str:
        """Return the hexadecimal SHA-256 of a file.

        Raises:
            InputError: the file cannot be read.
        """

        def digest(file: BinaryIO) -> str:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]

        return self._remembered(path, "", digest)

    def of_voxels(self, path: Path) -> str:
        """Return the `copies.voxel_digest` of a scan.

        Raises:
            InputError: the scan cannot be read.
        """

        def digest(_: BinaryIO) -> str:
            logger.disabled = True  # what is odd about the file is said when it is prepared
            try:
                return copies.voxel_digest(scanfile.read_volume(path))
            finally:
                logger.disabled = False

        # Voxels of MetaImage and NRRD may lie apart from the header, those of DICOM in many files.
        *others, last = scanfile.parts(path)
        what = f" voxels of {path.name}"
        if path.is_dir():
            together = "".join(map(self.of, others)).encode()
            what += f" {hashlib.sha256(together).hexdigest()}"
        return self._remembered(last, what, digest)

    def _remembered(self, path: Path, what: str, digest: Callable[[BinaryIO], str]) -> str:
        name = f"{path.absolute()}{what}"
        try:
            with open_regular(path) as file:
                status = os.fstat(file.fileno())
                signature, is_settled = change_signature(status)
                known = self._known.get(name)
                if known is not None and known[:3] == [*signature]:
                    return str(known[3])
                found = digest(file)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
            ) from error
        if is_settled:
            self._known[name] = [*signature, found]
            self._changed = True
        return found

    def save(self) -> None:
        """Write the new digests; if that fails, files are only read again later."""
        if self._changed and self._path.parent.is_dir():
            try:
                # Other processes may have written theirs meanwhile.
                now = records.read_or_empty(self._path)
                others = now if all(map(_is_record, now.values())) else {}
                known = dict(sorted((others | self._known).items()))
                write_json(self._path, known, "digests", overwrite=self._is_known or bool(others))
            except (OSError, InputError):
                pass


def seen_from(
    cache_dir: str | os.PathLike[str], entries: Sequence[CachedCase], *, wait_s: float = 90.0
) -> list[CachedCase]:
    """Return entries that other processes prepared, as this process reaches them.

    A network file system may show a new folder to other hosts only after a while, by default up to
    a minute on NFS; this waits for it.

    Args:
        cache_dir: the folder of the cache, under its name on this host.
        entries: as `prepare` returned them elsewhere.
        wait_s: the longest time to wait, in seconds.

    Raises:
        InputError: an entry did not appear.
    """
    root = Path(cache_dir).absolute()
    found = [replace(entry, path=root / entry.path.name) for entry in entries]
    until = time.monotonic() + wait_s
    while missing := [entry for entry in found if not _is_there(entry.path)]:
        if time.monotonic() > until:
            raise InputError(
                f"cache folder {root}: does not show case {missing[0].id} here, which another "
                "process has prepared; set data.cache_dir to a folder that all hosts share"
            )
        time.sleep(0.5)
        with suppress(OSError):
            os.listdir(root)  # a reason for the file system to ask its server
    return found


def _is_there(entry: Path) -> bool:
    try:
        return all((entry / name).exists() for name in _FILES)
    except OSError:  # such as ESTALE
        return False


def digests_in(cache_dir: str | os.PathLike[str]) -> ContentDigests:
    """Return the digests that a cache folder remembers."""
    return ContentDigests(Path(cache_dir).absolute() / _DIGESTS)


def prepare(
    cases: Sequence[Case],
    settings: SlicePreprocess,
    cache_dir: str | os.PathLike[str],
    *,
    labels: str = "verse",
    workers: int | None = None,
    progress: Progress = silent,
) -> list[CachedCase]:
    """Preprocess every case that the cache does not hold yet, and return all of them in order.

    Threads do the work: decompression, filtering and hashing run outside Python's global lock, a
    killed run leaves no child process behind, and callers need no `__main__` guard.

    Args:
        cases: with image and labels (`verse.usable`).
        settings: the preprocessing.
        cache_dir: folder of the cache; made if missing.
        labels: what the label files hold: "verse" (ids; other numbers are an error) or "binary"
            (numbers above 0 are stored as 1: masks of the CSI data have 100, 200, ...).
        workers: number of scans in work, and in memory, at once; None for one for each core that
            the process may use, at most 8.
        progress: shows how many scans are done.

    Raises:
        InputError: the cache folder cannot be written, the disk is full, or cases cannot be used
            (each is logged with its reason). Cases that succeeded stay in the cache.
    """
    root = Path(cache_dir).absolute()
    for case in cases:
        if case.image is None or case.labels is None:
            missing = "image" if case.image is None else "label file"
            raise InputError(f"case {case.id} has no {missing}; leave it out or complete it")
    if workers is None:
        workers = min(machine.cores(), 8)
    if workers < 1:
        raise InputError(f"workers {workers} must be at least 1")
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale(root)
    except OSError as error:
        raise MachineError(_folder_problem(root, error)) from error
    digests = digests_in(root)
    results: dict[int, CachedCase] = {}
    failed: dict[str, str] = {}
    pool = ThreadPoolExecutor(workers, thread_name_prefix="spinejax-prepare")
    with progress("preparing", len(cases), "scan") as bar:
        try:
            tasks: dict[Future[CachedCase], int] = {
                pool.submit(_prepare_case, case, settings, root, digests, labels): i
                for i, case in enumerate(cases)
            }
            for task in as_completed(tasks):
                try:
                    results[tasks[task]] = task.result()
                except Exception as error:
                    failures.note(cases[tasks[task]].id, error, failed)
                bar.advance()
        finally:
            # An interruption finishes the scans in work (seconds) and drops the waiting ones.
            pool.shutdown(wait=True, cancel_futures=True)
            digests.save()
    done = [results[i] for i in sorted(results)]
    _say([cases[i] for i in sorted(results)], done)
    if failed:
        rest = "correct or remove them and run again; the rest are prepared"
        in_order = {case.id: failed[case.id] for case in cases if case.id in failed}
        raise failures.summary(in_order, len(cases), rest)
    return done


def _say(cases: Sequence[Case], prepared: Sequence[CachedCase]) -> None:
    """Log what is odd about the scans, also about those that were prepared earlier."""
    for case, entry in zip(cases, prepared, strict=True):
        for doubt in entry.doubts:
            logger.warning("%s: %s", case.image, doubt)
    note = reserved_note({entry.id: entry.reserved for entry in prepared})
    if note is not None:
        logger.warning("%s", note)


def _prepare_case(
    case: Case, settings: SlicePreprocess, root: Path, digests: ContentDigests, kind: str
) -> CachedCase:
    image, labels = Path(case.image or ""), Path(case.labels or "")
    numbers = scanfile.numbering(labels, kind)
    key = _entry_key(settings, _digest(digests, image), _digest(digests, labels), numbers)
    entry = root / key
    cached = _read_entry(case.id, entry, settings)
    if cached is not None:
        return cached
    meta = records.read_or_empty(entry / "meta.json")
    if entry.exists() and (not meta or "crc32" in meta):  # older versions wrote no checksums
        logger.warning(
            "case %s: its preprocessed scan %s was damaged and is made again", case.id, entry
        )
        _open_array.cache_clear()  # it may hold the damaged files
    valid = scanfile.valid_labels(kind)
    scan, marks = scanfile.read_pair(image, labels, valid=valid)
    if valid is None:
        np.minimum(marks.array, 1, out=marks.array)
    likely = () if valid is None else likely_schemes(marks.found, kind)
    hint = ""
    if likely:
        hint = f"its numbers look like {likely_words(likely)}: set data.labels={likely[0]}"
    if not marks.array.any():
        what = hint or "complete the mask or leave the case out"
        raise InputError(f"{labels}: no voxel is labelled; {what}")
    doubts = plausible.check(scan, str(image)) + [f"the mask {labels}: {hint}"] * bool(hint)
    notes = {"doubts": doubts, "reserved": list(marks.reserved)}
    try:
        _write_entry(grids.straight(scan), grids.straight(marks), entry, settings, notes)
    except OSError as error:  # the scan is in memory, so only the disk of the cache can fail
        raise MachineError(_folder_problem(root, error)) from error
    cached = _read_entry(case.id, entry, settings)
    if cached is None:
        raise InputError(f"cache entry {entry} vanished while it was written; run again")
    return cached


def _write_entry(
    scan: Volume,
    marks: LabelVolume,
    entry: Path,
    settings: SlicePreprocess,
    notes: Mapping[str, Any],
) -> None:
    grid = slice_geometry(scan, settings)
    shape = (grid.n_slices, *grid.shape)
    stats, counts = ScanStats(), np.zeros(grid.n_slices, np.int32)
    temporary = _temporary_folder(entry.parent)
    try:
        with (
            _npy(temporary / "image.npy", shape, _IMAGE) as image_file,
            _npy(temporary / "label.npy", shape, _LABEL) as label_file,
        ):
            for start, slab, label in preprocess_slabs(scan, settings, marks):
                # Plain writes: on a full disk they fail with an error, where writing through a
                # memory map would kill the process.
                image_file.write(np.ascontiguousarray(slab, _IMAGE).data)
                ids = np.ascontiguousarray(label, _LABEL)
                label_file.write(ids.data)
                stats.update(slab)
                counts[start : start + len(slab)] = np.count_nonzero(ids, axis=(1, 2))
            for file in (image_file, label_file):
                file.flush()
                os.fsync(file.fileno())
        meta: dict[str, Any] = {
            "format": FORMAT,
            "settings": asdict(settings),
            "shape": list(shape),
            "spacing_mm": list(grid.spacing_mm),
            "slice_spacing_mm": grid.slice_spacing_mm,
            "stats": [float(value) for value in stats.result()],
            "foreground_counts": counts.tolist(),
            **notes,
        }
        meta["crc32"] = {name: crc32(temporary / name) for name in _FILES[:2]}
        meta["crc32"]["meta.json"] = _meta_crc32(meta)
        (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        _publish(temporary, entry, settings)
    finally:
        _remove_temporary(temporary)


def _digest(digests: ContentDigests, path: Path) -> str:
    """Return the digest of all files that hold the image: MetaImage and DICOM have several."""
    return "+".join(digests.of(part) for part in scanfile.parts(path))


def _entry_key(
    settings: SlicePreprocess, image_digest: str, labels_digest: str, kind: str = "verse"
) -> str:
    parts = {
        "format": FORMAT,
        "settings": settings.identity(),
        "image": image_digest,
        "labels": labels_digest,
    }
    if kind != "verse":  # so the keys of VerSe entries do not depend on the choice
        parts["kind"] = kind
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


_META = {
    "shape": [int],
    "foreground_counts": [int],
    "stats": [float],
    "spacing_mm": [float],
    "slice_spacing_mm": float,
    "crc32": {"image.npy": int, "label.npy": int, "meta.json": int},
}


def _meta_crc32(meta: Mapping[str, Any]) -> int:
    """Return the CRC-32 of the facts of an entry beside the checksums."""
    facts = {name: value for name, value in meta.items() if name != "crc32"}
    return zlib.crc32(json.dumps(facts).encode())


def _read_entry(case_id: str, entry: Path, settings: SlicePreprocess) -> CachedCase | None:
    """Return the entry; None if it is missing or damaged (it is then made anew).

    All bytes are compared with their checksums: 4 GB/s a thread where the files are in memory, and
    else as fast as the disk, from which training reads the same files next.
    """
    try:
        meta = records.read(entry / "meta.json", _META, "")
        if meta["crc32"]["meta.json"] != _meta_crc32(meta):
            return None
        n, h, w = meta["shape"]
        counts = np.array(meta["foreground_counts"], np.int32)
        stats = np.array(meta["stats"], np.float32)
        spacing = (float(meta["spacing_mm"][0]), float(meta["spacing_mm"][1]))
        slice_spacing = float(meta["slice_spacing_mm"])
        doubts = tuple(str(doubt) for doubt in meta["doubts"])
        reserved = tuple(int(label) for label in meta["reserved"])
        for name, dtype in (("image.npy", _IMAGE), ("label.npy", _LABEL)):
            # First, because opening a FIFO, as np.load would, waits forever.
            if meta["crc32"][name] != crc32(entry / name):
                return None
            array = _memory_map(entry / name)
            if array.shape != (n, h, w) or array.dtype != dtype:
                return None
    except (OSError, ValueError):
        return None
    if counts.shape != (n,) or stats.shape != (4,):
        return None
    return CachedCase(
        id=case_id,
        path=entry,
        settings=settings,
        shape=(n, h, w),
        stats=stats,
        foreground_counts=counts,
        spacing_mm=spacing,
        slice_spacing_mm=slice_spacing,
        doubts=doubts,
        reserved=reserved,
    )


def _publish(temporary: Path, entry: Path, settings: SlicePreprocess) -> None:
    """Rename a finished temporary folder to its entry; a complete entry that exists stays."""
    for _ in range(3):
        try:
            os.rename(temporary, entry)
            return
        except FileNotFoundError:
            # A network file system may rename, lose the answer, try again and find nothing.
            if _read_entry("", entry, settings) is None:
                raise
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        if _read_entry("", entry, settings) is not None:
            return  # another process was first
        if not entry.is_dir() or not all(map(_is_ours, os.listdir(entry))):
            raise InputError(
                f"{entry}: is damaged, and holds what no entry of a cache holds; move it away and "
                "run again"
            )
        damaged = _temporary_folder(entry.parent)
        try:
            os.rename(entry, damaged / _DAMAGED)
        except FileNotFoundError:
            pass  # another process moved it away
        finally:
            _remove_temporary(damaged)


def _is_ours(name: str) -> bool:
    """Whether a file of an entry has this name."""
    return name in _FILES or _KEPT.fullmatch(name) is not None


def _npy(path: Path, shape: tuple[int, int, int], dtype: np.dtype) -> BinaryIO:
    """Open a .npy file and write its header; the caller writes the data in C order."""
    file = open(path, "wb")  # noqa: SIM115 - the caller's `with` closes it
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file


def _temporary_folder(root: Path) -> Path:
    # tempfile.mkdtemp makes folders that are private to the user, but a cache may be shared.
    folder = root / f".spinejax-tmp-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
    folder.mkdir()
    return folder


def _remove_stale(root: Path) -> None:
    """Remove temporary folders of processes that have ended."""
    for folder in root.iterdir():
        found = _TEMPORARY.fullmatch(folder.name)
        if found is None:
            continue
        try:
            age = time.time() - folder.stat().st_mtime
        except OSError:
            continue
        here = found["host"] == socket.gethostname()
        # Only its age tells whether a folder of another host is stale.
        if age > _STALE_SECONDS or (here and not _is_alive(int(found["process"]))):
            _remove_temporary(folder)


def _remove_temporary(folder: Path) -> None:
    """Remove a temporary folder and the entry in it; anything else in it stays."""
    for inner in (folder / _DAMAGED, folder):
        with suppress(OSError):
            for name in filter(_is_ours, os.listdir(inner)):
                with suppress(OSError):
                    (inner / name).unlink()
            inner.rmdir()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _folder_problem(root: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"cache folder {root}: the disk is full; free space or set data.cache_dir to another "
            "disk, then run again to continue"
        )
    return (
        f"cache folder {root} cannot be written ({error.strerror or error}); set data.cache_dir "
        "to another"
    )
