"""A folder of compiled programs, so that a second process need not compile what a first one has.

The command line switches it on. `SPINEJAX_CACHE` in the environment names the folder; "off" or ""
switches it off. By default it is `spinejax` in `$XDG_CACHE_HOME`, or in `~/.cache`. Whoever has set
`JAX_COMPILATION_CACHE_DIR` keeps that folder.

jax reads and writes the entries. If it cannot, it compiles: no state of the folder is an error. An
entry gives the same bits as the program that was compiled when it was written. jax could bound the
folder by itself, but needs a lock for that, and never writes again once a kill has left half an
entry behind. So each command removes the oldest entries before it begins.
"""

import hashlib
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

from spinejax.errors import InputError
from spinejax.files import expanded

SWITCH = "SPINEJAX_CACHE"
FOLDER = "JAX_COMPILATION_CACHE_DIR"
MOST_BYTES = 2**30
"""Largest size of the folder when a command begins."""

# Faster compilations are not kept; they take about as long as reading an entry.
LEAST_SECONDS = 0.1


def switch_on() -> None:
    """Let jax keep compiled programs, unless the user or a program that imported jax decided."""
    if FOLDER in os.environ or "jax" in sys.modules or (root := _root()) is None:
        return
    _shrink(root)
    os.environ[FOLDER] = str(root / _processor())
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(LEAST_SECONDS))
    # XLA's own caches, whose failures are errors.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")


def _root() -> Path | None:
    """Return the folder of all entries; None if it is switched off, or there is no home folder."""
    given = os.environ.get(SWITCH)
    if given is not None and given.strip().lower() in ("", "off"):
        return None
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    default = Path(shared if os.path.isabs(shared) else "~/.cache", "spinejax")
    with suppress(InputError, OSError):  # no home folder, no current folder
        return expanded(default if given is None else given).absolute()
    return None


def _processor() -> str:
    """Return a name for this kind of processor.

    Machines that share a home folder may have different ones, and a program that was compiled for
    another may end the process.
    """
    features = platform.machine() + platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        features += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"cpu-{hashlib.sha256(features.encode()).hexdigest()[:16]}"


def _shrink(root: Path) -> None:
    """Remove empty entries, which a full disk leaves, and the oldest until the rest fit."""
    entries = []
    with suppress(OSError):
        for path in root.glob("cpu-*/*-cache"):
            with suppress(OSError):  # another process may have removed it
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
    total = 0
    for _, size, path in sorted(entries, reverse=True):
        total += size
        if not size or total > MOST_BYTES:
            with suppress(OSError):
                path.unlink()
