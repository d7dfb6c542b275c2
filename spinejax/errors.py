"""Exceptions for bad input, in one line; exit statuses; suggestions for typing errors."""

import difflib
import errno
from collections.abc import Collection

EXIT_INTERRUPTED = 75
"""Exit status of a run that a signal stopped after it saved (EX_TEMPFAIL): run it again."""


class InputError(ValueError):
    """Bad input: a file, a folder, a flag or a config value.

    The message is one line that says what is wrong, where, and what to do next. The command line
    prints it without a traceback and exits with status 1; library users catch it like any
    ValueError.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # names of files may hold newlines


class MachineError(InputError):
    """The machine fails, not one input: a full disk, a folder that cannot be written.

    Every other scan would fail in the same way, so a loop over scans ends with this error.
    """


_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def is_of_machine(error: BaseException) -> bool:
    """Return whether the machine failed, so that any other work would fail, too."""
    return isinstance(error, MachineError) or (
        isinstance(error, OSError) and error.errno in _MACHINE
    )


def is_disk_full(error: BaseException) -> bool:
    """Return whether a file could not be written for want of room, in the words of any library."""
    words = ("No space left", "Disk quota exceeded", "Error writing", "handle is closed")
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or any(
        word in str(error) for word in words
    )


def describe(error: BaseException) -> str:
    """Return on one line what failed, whatever it was."""
    if isinstance(error, InputError):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = "not enough memory; close other programs, or crop or resample the scan"
    elif isinstance(error, OSError):
        text = describe_os_error(error)
    else:
        text = (
            f"unexpected {type(error).__name__}: {str(error)[:300]}; SPINEJAX_DEBUG=1 in the "
            "environment shows where"
        )
    return " ".join(text.split())


def describe_os_error(error: OSError) -> str:
    """Return the path, what is wrong and the remedy, on one line."""
    where = f"{error.filename}: " if error.filename else ""
    advice = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again",
        errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
        errno.EACCES: "permission denied; choose a folder that you may read and write",
        errno.EPERM: "not permitted; choose a folder that you may read and write",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOENT: "no such file or folder; check the path",
        errno.ENOTDIR: "a part of the path is a file, not a folder; check the path",
        errno.EISDIR: "this is a folder; name a file",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
        errno.ELOOP: "the link leads to itself; remove it, or link to a file",
    }
    return where + advice.get(error.errno or 0, error.strerror or str(error))


def did_you_mean(name: str, choices: Collection[str]) -> str:
    """Return "; did you mean 'x'?" with the choice that is closest to `name`, "" without any."""
    close = difflib.get_close_matches(name, choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def shown(value: object) -> str:
    """Return what Python prints for a value, on one line and cut after 100 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:100]}..."


def check_choice(field: str, value: object, choices: Collection[str]) -> None:
    """Raise InputError unless `value` is one of `choices`; the message lists them.

    Args:
        field: name of the field or flag, for the message.
        value: what the user gave.
        choices: what is allowed.
    """
    if not isinstance(value, str) or value not in choices:
        hint = did_you_mean(str(value), choices)
        raise InputError(
            f"{field} = {shown(value)} is unknown: choose one of {sorted(choices)}{hint}"
        )
