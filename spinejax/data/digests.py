"""Digests of file contents, without reading unchanged files again."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from spinejax.errors import InputError
from spinejax.files import write_json

# A file that changed so recently may change again within the resolution of its time stamp.
_RACY_NS = 2 * 10**9


class ContentDigests:
    """Content digests of files, remembered by path, size and time of change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = {}
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(known, dict):
                self._known = known
        except (OSError, ValueError):
            pass  # nothing remembered: files are read again
        self._changed = False

    def of(self, path: Path) -> str:
        """Return the hexadecimal SHA-256 of a file.

        Raises:
            InputError: the file cannot be read.
        """
        try:
            status = path.stat()
            signature = [status.st_size, status.st_mtime_ns]
            known = self._known.get(str(path.absolute()))
            if isinstance(known, list) and known[:2] == signature and len(known) == 3:
                return str(known[2])
            now = time.time_ns()
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
            ) from error
        if now - status.st_mtime_ns > _RACY_NS:
            self._known[str(path.absolute())] = [*signature, digest]
            self._changed = True
        return digest

    def save(self) -> None:
        """Write what was learnt; a cache folder that cannot take it only costs time later."""
        if self._changed:
            try:
                write_json(self._path, dict(sorted(self._known.items())))
            except OSError:
                pass
