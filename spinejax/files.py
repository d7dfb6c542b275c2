"""Files that appear whole or not at all and replace no file of somebody else; safe reading.

Each folder that this program writes to holds a list of the files that it wrote there,
`.spinejax-files.jsonl`: one JSON object a line with the name, the kind ("labels", "scores", ...)
and the SHA-256 of a file. The line is written before the file gets its name, so that a kill leaves
no file unlisted. A file is replaced or removed only if the list holds its present content under its
name and the same kind. So a mask that a person corrected stays.

A line with the name "." marks the whole folder: that of a run, a search or a sweep (`claim`).
"""

import errno
import hashlib
import json
import os
import secrets
import stat
import time
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from spinejax.errors import InputError, MachineError, shown

StrPath = str | os.PathLike[str]
"""A path as users give it."""

LIST = ".spinejax-files.jsonl"
"""The list of the files of a folder that this program wrote."""

_SETTLED_NS = 2 * 10**9

_FOLDER = "."  # the name under which the list marks its whole folder


def expanded(path: StrPath) -> Path:
    """Return a path that a user gave, with `~` for the home folder.

    Raises:
        InputError: it is no path, or there is no such home folder.
    """
    if not isinstance(path, str | os.PathLike) or "\0" in os.fsdecode(path):
        raise InputError(f"{shown(path)} is no path; give the name of a file or folder")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        if os.path.lexists(path):  # a file whose name begins so
            return Path(path)
        raise InputError(f"{path}: there is no such home folder; write the whole path") from error


# Reading.


def change_signature(status: os.stat_result) -> tuple[tuple[int, int, int], bool]:
    """Return what changes with a file's content, and whether that can be relied on.

    Args:
        status: of the file, before it is read.

    Returns:
        Size and times of change. The time of the last change of the inode also tells of an edit
        that kept size and time of the content. False if the content changed in the last two
        seconds: it may then change again without a new time.
    """
    signature = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return signature, time.time_ns() - status.st_mtime_ns > _SETTLED_NS


def open_regular(path: StrPath) -> BufferedReader:
    """Open a regular file for reading, through links.

    Reading a FIFO, a socket or a device may wait forever or change the device, so this function
    never opens one. All files that users name or that lie in their folders are opened by it.

    Raises:
        InputError: there is something else than a regular file, or a link to nowhere.
        OSError: as for `open`.
    """
    # The status is read before opening, because that already has effects on some devices, and
    # after it, because another program may have exchanged the file in between.
    try:
        _require_regular(path, os.stat(path))
    except FileNotFoundError:
        if os.path.islink(path):
            raise InputError(_broken_link(path)) from None
        raise
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: StrPath) -> str:
    """Return the text of a regular file, UTF-8 with or without a byte order mark.

    Raises:
        InputError: as for `open_regular`.
        OSError: as for `open`.
        UnicodeDecodeError: the file is not UTF-8.
    """
    with open_regular(path) as file:
        return file.read().decode("utf-8-sig")


def crc32(path: StrPath) -> int:
    """Return the CRC-32 of a regular file.

    Raises:
        InputError: as for `open_regular`.
        OSError: as for `open`.
    """
    with open_regular(path) as file:
        found = 0
        while part := file.read(2**22):
            found = zlib.crc32(part, found)
    return found


def _broken_link(link: StrPath) -> str:
    target = os.readlink(link)
    remedy = "restore that file, or remove the link"
    if ".git/annex/objects" in str(target):
        remedy = "get its content with `git annex get` or `datalad get`"
    return f"{os.fspath(link)}: is a link to {target}, which is missing; {remedy}"


def _require_regular(path: StrPath, status: os.stat_result, remedy: str = "give a file") -> None:
    kinds = {
        stat.S_IFLNK: "a link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise InputError(
            f"{os.fspath(path)}: is {kinds.get(kind, 'something else')}, not a regular file; "
            f"{remedy}"
        )


# Writing.


@contextmanager
def atomic_path(
    path: StrPath, kind: str | None = None, *, overwrite: bool | None = None
) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    The temporary name ends like `path` (libraries choose their format by that) and lies in the same
    folder, so that the rename is atomic. On any exception the temporary file is removed and `path`
    is left as it was. Parent folders are made.

    Args:
        path: the file.
        kind: see `check_output`.
        overwrite: see `check_output`.

    Raises:
        InputError: `path` may not be replaced.
    """
    path = Path(path)
    check_output(path, kind, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name[-40:]}")
    try:
        # Not by mkstemp, whose files are private: the final file gets the mode that open() gives.
        # Exclusive, so that two writers never share a file.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        if kind is not None:
            _add(path.parent, {"name": path.name, "kind": kind, "sha256": _digest(temporary)})
        check_output(path, kind, overwrite=overwrite)  # it may have appeared in the meantime
        os.replace(temporary, path)
    except OSError as error:
        if str(error.filename) == str(temporary):
            error.filename = str(path)  # the only name that the user knows
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(
    path: StrPath, text: str, kind: str | None = None, *, overwrite: bool | None = None
) -> None:
    """Write `text` as UTF-8, bytes of file names that are not UTF-8 as codes; see `atomic_path`."""
    with atomic_path(path, kind, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(
    path: StrPath, value: Any, kind: str | None = None, *, overwrite: bool | None = None
) -> None:
    """Write `value` as indented JSON; see `atomic_path`.

    Raises:
        ValueError: `value` holds NaN or infinity, which JSON cannot express.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_text(path, text, kind, overwrite=overwrite)


# What may be written.


def check_output(
    path: StrPath,
    kind: str | None = None,
    *,
    inputs: Iterable[StrPath] = (),
    overwrite: bool | None = None,
) -> None:
    """Refuse a path that may not be written. Nothing is touched.

    Args:
        path: the file.
        kind: what it will hold, such as "labels". None for a file in a folder whose content is
            known to be this program's: an entry of a cache, a step of a checkpoint.
        inputs: files that the command reads, which are never replaced.
        overwrite: replace a file that this program did not write, too; None where the user has no
            such choice.

    Raises:
        InputError: `path` is an input; it exists and is no plain file, or this program did not
            write it as a file of this kind; its folder cannot be written.
    """
    path = Path(path)
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        _check_folder(path)
        if kind is not None:
            _listed(path.parent)  # a new line will be added to it
        return
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {str(error.strerror).lower()}; choose another output"
        ) from error
    _require_regular(path, status, "move it away or choose another output")
    for other in inputs:
        with suppress(OSError):
            if os.path.samestat(status, os.stat(other)):
                raise InputError(f"{path}: is an input of this command; choose another output")
    if not overwrite and kind is not None and not is_ours(path, kind):
        raise InputError(
            f"{path}: spinejax did not write this file, or it was changed since; move it away"
            f"{'' if overwrite is None else ', or add --overwrite'}"
        )


def is_ours(path: StrPath, kind: str) -> bool:
    """Return whether a file holds what this program wrote to it as a file of this kind."""
    path = Path(path)
    try:
        # In this order: whoever writes the file at this moment has listed it before.
        record = {"name": path.name, "kind": kind, "sha256": _digest(path)}
    except (OSError, InputError):
        return False
    return not path.is_symlink() and _line(record) in _listed(path.parent)


def check_claim(folder: Path, kind: str, names: Collection[str], *, known: bool = False) -> None:
    """Refuse a folder that `claim` would refuse; see there. Nothing is touched.

    Raises:
        InputError: an unmarked folder holds somebody else's file or folder of one of the names.
    """
    present = [] if known or _line(_mark(kind)) in _listed(folder) else _present(folder, names)
    if present:
        raise InputError(
            f"{folder / present[0]}: spinejax did not write this, and would write to it; move it "
            "away or choose another folder"
        )


def claim(folder: Path, kind: str, names: Collection[str], *, known: bool = False) -> None:
    """Mark an existing folder as one of this program's, unless it is marked.

    Args:
        folder: that of a run, a search or a sweep.
        kind: of the folder and of its files.
        names: of the files and folders that will be written in it.
        known: whether an unmarked folder with such files is this program's all the same: an older
            version wrote it, or it was copied without its hidden files.

    Raises:
        InputError: as for `check_claim`.
        OSError: the folder cannot be written.
    """
    check_claim(folder, kind, names, known=known)
    if _line(_mark(kind)) in _listed(folder):
        return
    for name in _present(folder, names):
        if (folder / name).is_file():
            _add(folder, {"name": name, "kind": kind, "sha256": _digest(folder / name)})
    _add(folder, _mark(kind))


def _mark(kind: str) -> dict[str, str]:
    return {"name": _FOLDER, "kind": kind}


def _present(folder: Path, names: Collection[str]) -> list[str]:
    return sorted(name for name in names if _holds_something(folder / name))


def _holds_something(path: Path) -> bool:
    """Return whether a path exists and is no empty folder; a user may link one to another disk."""
    return any(path.iterdir()) if path.is_dir() else os.path.lexists(path)


def _check_folder(path: Path) -> None:
    """Refuse a new file whose folder cannot be made or written."""
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise MachineError(
            f"{path}: cannot be written: {folder} is not a folder; choose another output"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MachineError(
            f"{path}: cannot be written: permission denied in {folder}; choose another output"
        )


def _digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(record: dict[str, str]) -> bytes:
    return json.dumps(record).encode()


def _listed(folder: Path) -> list[bytes]:
    """Return the lines of a folder's list, as `_line` makes them.

    They are compared as bytes: in a folder of thousands of results, parsing all lines at each check
    would take minutes.

    Raises:
        MachineError: the file of that name is no such list, so nothing can be written there.
    """
    path = folder / LIST
    try:
        _require_regular(path, path.lstat(), "move it away")
    except InputError as error:
        raise MachineError(str(error)) from error
    except OSError:
        return []
    try:
        with open_regular(path) as file:
            lines = file.read().split(b"\n")
    except OSError:
        return []
    if any(lines) and not any(line.startswith(b'{"name": ') for line in lines):
        raise MachineError(f"{path}: is no list of spinejax's files; move it away")
    return lines


def _add(folder: Path, record: dict[str, str]) -> None:
    """Add a line to the list of a folder, unless it holds that line."""
    if _line(record) in _listed(folder):
        return
    # One write at the end of the file, so that two writers mix no lines. The line begins a new
    # line, since a full disk may have cut off the one before.
    line = b"\n" + _line(record)
    path = folder / LIST
    with open(path, "ab", buffering=0) as file:
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


# Removing.


def remove(path: Path, kind: str) -> None:
    """Remove a file that this program wrote; leave one that is missing or somebody else's."""
    if is_ours(path, kind):
        path.unlink(missing_ok=True)


@contextmanager
def made(folder: Path, results: Iterable[str], leftovers: Iterable[str] = ()) -> Iterator[None]:
    """Make a folder and its parents; remove those made if the block fails without results.

    Args:
        folder: stays if it existed before, or if it then holds files of somebody else.
        results: glob patterns relative to the folder; it also stays if a file matches.
        leftovers: glob patterns of files that are this program's though no list names them.

    Raises:
        InputError: the folder cannot be made.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "it is a file, or lies in one" if is_file else error.strerror
        raise InputError(
            f"{folder}: cannot be written ({reason}); choose another folder"
        ) from error
    try:
        yield
    except BaseException:
        if new and not any(next(folder.glob(pattern), None) for pattern in results):
            for pattern in leftovers:
                for path in folder.glob(pattern):
                    with suppress(OSError):
                        path.unlink()
            _remove_ours(folder)
            for parent in new[1:]:
                with suppress(OSError):  # another program may use the parent by now
                    parent.rmdir()
        raise


def _remove_ours(folder: Path) -> None:
    """Remove the listed files under a folder, and the folders that are then empty."""
    for where, _, names in os.walk(folder, topdown=False):
        here = Path(where)
        with suppress(OSError, InputError):
            kinds = set()
            for line in _listed(here):
                with suppress(ValueError, LookupError):  # a full disk may have cut off a line
                    kinds.add(json.loads(line)["kind"])
            for name in names:
                for kind in kinds:
                    remove(here / name, kind)
            if os.listdir(here) == [LIST]:
                (here / LIST).unlink()
            here.rmdir()
