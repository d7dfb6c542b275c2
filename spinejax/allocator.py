"""The C library's settings that let a process keep the memory of large arrays.

XLA allocates its temporary arrays anew in every call. By default glibc maps each large one and
unmaps it afterwards, so the kernel clears every page of every training step again. With these
settings freed memory stays in the process. They change no result.
"""

import ctypes
import os
import platform

TUNABLES = "GLIBC_TUNABLES"

# The numbers of the parameters in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_LARGEST = 2**31 - 1


def keep_memory() -> bool:
    """Let this process keep the memory that it frees; return whether it does.

    It does nothing with another C library, or if the user has set glibc's tunables. Call it before
    other threads start: a thread that has an arena keeps it.
    """
    if TUNABLES in os.environ or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    one_heap = [(_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST)]
    return all([mallopt(*setting) for setting in one_heap])
