"""Noticing a full disk before writing to it.

Orbax and tensorboardX write in background threads, which print tracebacks of their own when the
disk is full, so they are not let near it.

One run at a time in a folder.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spinejax.errors import InputError
from spinejax.sweep_state import LOCK, take_lock
from spinejax.train import parallel

RESERVE_BYTES = 2 * 2**20
"""Room that logs and small files may take between two checks."""


def require_room(folder: Path, needed_bytes: int = 0) -> None:
    """Check that `needed_bytes` and a reserve fit on the disk of an existing `folder`.

    Raises:
        InputError: they do not.
    """
    free, needed = shutil.disk_usage(folder).free, needed_bytes + RESERVE_BYTES
    if free < needed:
        raise InputError(
            f"{folder}: the disk is full ({free / 2**20:.1f} MiB free, {needed / 2**20:.1f} MiB "
            "needed); make room and run the same command again, it continues from the last "
            "checkpoint"
        )


@contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """Make `workdir` and hold its lock while the block runs; the first process of a run does.

    The kernel drops it when the process ends, however it ends, so that a killed run leaves nothing
    to clean up. Where the file system knows no locks there is none.

    Raises:
        InputError: another process holds it, or the folder cannot be written.
    """
    if parallel.process_index() != 0:
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / LOCK).open("ab")
    except OSError as error:
        raise InputError(
            f"{workdir}: cannot be written ({error.strerror}); give a --workdir that can"
        ) from error
    with file:
        if not take_lock(file):
            raise InputError(
                f"{workdir}: another `spinejax train` is at work in it; wait until it ends, stop "
                "it, or give another --workdir"
            )
        yield
