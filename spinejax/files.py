"""Files that appear whole or not at all; folders that are removed after a failure; safe reading."""

import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from spinejax.errors import InputError

StrPath = str | os.PathLike[str]
"""A path as users give it."""


def open_regular(path: StrPath) -> BinaryIO:
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


def _broken_link(link: StrPath) -> str:
    target = os.readlink(link)
    remedy = "restore that file, or remove the link"
    if ".git/annex/objects" in str(target):
        remedy = "get its content with `git annex get` or `datalad get`"
    return f"{os.fspath(link)}: is a link to {target}, which is missing; {remedy}"


def _require_regular(path: StrPath, status: os.stat_result) -> None:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise InputError(
            f"{os.fspath(path)}: is {kinds.get(kind, 'something else')}, not a regular file; give "
            "a file"
        )


@contextmanager
def atomic_path(path: StrPath) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    The temporary name keeps every suffix of `path` (libraries choose their format by it) and lies
    in the same folder, so that the rename is atomic. On any exception the temporary file is
    removed and `path` is left as it was. Parent folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    # Not by mkstemp, whose files are private: the final file gets the mode that open() gives.
    # Exclusive, so that two writers never share a file.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: StrPath, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: StrPath, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused, since JSON has no such number."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def made(folder: Path, results: Iterable[str]) -> Iterator[None]:
    """Make a folder and its parents; remove those made if the block fails without results.

    Args:
        folder: stays if it existed before.
        results: glob patterns relative to the folder; it also stays if a file matches.

    Raises:
        InputError: the folder cannot be made.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    try:
        yield
    except BaseException:
        if new and not any(next(folder.glob(pattern), None) for pattern in results):
            shutil.rmtree(folder, ignore_errors=True)
            for parent in new[1:]:
                with suppress(OSError):  # another program may use the parent by now
                    parent.rmdir()
        raise
