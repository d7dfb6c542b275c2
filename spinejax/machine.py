"""What this process may take of the machine: memory and cores."""

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from spinejax.errors import InputError

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def cores() -> int:
    """Return the number of cores that this process may use; all cores if the system cannot tell."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def open_files() -> int:
    """Return how many files this process may have open at once; 4096 if there is no lower limit."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if soft == resource.RLIM_INFINITY else min(4096, soft)


def available_bytes() -> int | None:
    """Return how many bytes this process may still take; None if the system does not tell.

    The least of: the machine's free memory; what every cgroup around the process (versions 1 and 2)
    leaves, where its file cache counts as free; and the limits of address space and data
    (RLIMIT_AS, RLIMIT_DATA) minus what the process uses of them.
    """
    known = [*_machine(), *_cgroups(), *_limits()]
    return max(0, min(known)) if known else None


def peak_bytes() -> int:
    """Return the most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def require(needed: int, what: str) -> None:
    """Check that `needed` bytes can be taken.

    Args:
        needed: number of bytes.
        what: begins the error, e.g. the path of a scan.

    Raises:
        InputError: there are fewer.
    """
    available = available_bytes()
    if available is not None and needed > available:
        raise InputError(
            f"{what}: needs about {needed / 2**30:.2g} GiB of memory and {available / 2**30:.2g} "
            "GiB are free for this process; crop or resample the scan, or give the job more memory"
        )


def _machine() -> Iterator[int]:
    fields = _fields(_PROC / "meminfo", ":")
    if "MemAvailable" in fields:
        # A kernel without swap reports 0.
        yield 1024 * (fields["MemAvailable"] + fields.get("SwapFree", 0))
        return
    try:
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return


def _cgroups() -> Iterator[int]:
    """Yield the bytes that each cgroup from the process's own to the root leaves."""
    for line in _text(_PROC / "self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            root, limit, used = _CGROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root = _CGROUPS / "memory"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # In a container the root may show the container's own group, and lack the path to it.
        own = root / group.lstrip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(root):
                break
            most, now = _number(folder / limit), _number(folder / used)
            if most is not None and now is not None:
                # The kernel drops cached files before it refuses memory.
                fields = _fields(folder / "memory.stat")
                prefix = "total_" if "total_inactive_file" in fields else ""
                names = (f"{prefix}inactive_file", f"{prefix}active_file")
                yield most - now + sum(fields.get(name, 0) for name in names)


def _limits() -> Iterator[int]:
    used = _fields(_PROC / "self/status", ":")
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft = resource.getrlimit(limit)[0]
        if soft != resource.RLIM_INFINITY:
            yield soft - 1024 * used.get(name, 0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """Return the number in a file; None if there is none, e.g. for "max"."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _fields(path: Path, separator: str | None = None) -> dict[str, int]:
    """Return the whole numbers of a file of lines "name number"."""
    found = {}
    for line in _text(path).splitlines():
        name, *words = line.split(separator, 1)
        number = words[0].split()[0] if words and words[0].split() else ""
        if number.isdecimal():
            found[name] = int(number)
    return found
