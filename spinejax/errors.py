"""The one exception that means: what the user gave cannot be used; and exit statuses."""

import errno
import re

EXIT_INTERRUPTED = 75
"""Exit status of what was stopped with everything saved (EX_TEMPFAIL): run it again."""


class InputError(ValueError):
    """Bad input: a file, a folder, a flag or a config value.

    The message is one line that says what is wrong, where, and what to do next. The command line
    prints it without a traceback and exits with status 1; library users catch it like any
    ValueError.
    """


def describe_os_error(error: OSError) -> str:
    """Return the path, what is wrong and the remedy, on one line."""
    # Files are written under a temporary name first, which says nothing to anybody.
    where = re.sub(r"\.tmp-[0-9a-f]{8}-", "", f"{error.filename}: ") if error.filename else ""
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
    }
    return where + advice.get(error.errno or 0, error.strerror or str(error))
