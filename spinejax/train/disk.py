"""Noticing a full disk before writing to it.

Orbax and tensorboardX write in background threads, which print tracebacks of their own when the
disk is full, so they are not let near it.
"""

import shutil
from pathlib import Path

from spinejax.errors import InputError

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
