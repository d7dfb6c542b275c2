"""One run at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spinejax.errors import InputError
from spinejax.sweep import LOCK, take_lock
from spinejax.train import parallel


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
