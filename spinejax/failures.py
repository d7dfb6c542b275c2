"""Work on many scans in which the failure of one scan is that scan's alone."""

import logging
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

from spinejax.errors import InputError, MachineError, describe, is_of_machine

logger = logging.getLogger("spinejax")

T = TypeVar("T")
R = TypeVar("R")
Read = TypeVar("Read")
Made = TypeVar("Made")


def each(
    items: Mapping[str, T], work: Callable[[str, T], R], *, alone: bool | None = None
) -> tuple[dict[str, R], dict[str, str]]:
    """Do the work on every item, whatever happens to the others.

    A failure is logged at once. The failure of a lone item is raised.

    Args:
        items: by name.
        work: gets name and item.
        alone: whether the item is a lone one; None tells by the number of items.

    Returns:
        The results and the reasons of the failures, by name.

    Raises:
        MachineError: the machine failed, so all further items would fail, too.
        InputError: a lone item failed.
    """
    results: dict[str, R] = {}
    failed: dict[str, str] = {}
    lone = len(items) == 1 if alone is None else alone
    for name, item in items.items():
        try:
            results[name] = work(name, item)
        except Exception as error:
            _note_of_many(name, error, failed, lone, bool(results))
    return results, failed


def in_stages(
    items: Mapping[str, T],
    read: Callable[[str, T], Read],
    work: Callable[[str, Read], Made],
    write: Callable[[str, Made], R],
    *,
    alone: bool | None = None,
) -> tuple[dict[str, R], dict[str, str]]:
    """As `each`, but while one item is worked on, the next is read and the last is written.

    `read` and `write` each run in a thread of their own, one item after the other. So at most
    three items are in memory.

    Args:
        items: by name.
        read: gets name and item.
        work: gets the name and what `read` returned.
        write: gets the name and what `work` returned.
        alone: see `each`.

    Returns:
        What `write` returned and the reasons of the failures, by name, in the order of the items.

    Raises:
        MachineError: see `each`.
        InputError: a lone item failed.
    """
    results: dict[str, R] = {}
    failed: dict[str, str] = {}
    lone = len(items) == 1 if alone is None else alone

    def write_one(name: str, made: Made) -> None:
        try:
            results[name] = write(name, made)
        except Exception as error:
            _note_of_many(name, error, failed, lone, bool(results))

    # On leaving, also by an error, both threads end what they have begun.
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for name, reading in _read_ahead(reader, read, items):
            try:
                made = work(name, reading.result())
            except Exception as error:
                _note_of_many(name, error, failed, lone, writing is not None)
                continue
            if writing is not None:
                writing.result()
            writing = writer.submit(write_one, name, made)
        if writing is not None:
            writing.result()
    return results, {name: failed[name] for name in items if name in failed}


def _read_ahead(
    reader: Executor, read: Callable[[str, T], Read], items: Mapping[str, T]
) -> Iterator[tuple[str, Future[Read]]]:
    """Yield each item's name and its reading; that of the next item has begun by then."""
    begun: deque[tuple[str, Future[Read]]] = deque()
    for name, item in items.items():
        begun.append((name, reader.submit(read, name, item)))
        if len(begun) > 1:
            yield begun.popleft()
    while begun:
        yield begun.popleft()


def _note_of_many(
    name: str, error: Exception, failed: dict[str, str], lone: bool, some_done: bool
) -> None:
    """Note a failure; raise MachineError if every item fails for want of the device's memory."""
    note(name, error, failed, alone=lone)
    if not some_done and len(failed) > 1 and set(failed.values()) == {DEVICE_MEMORY}:
        raise MachineError(f"{DEVICE_MEMORY}; no scan was done") from error


def note(name: str, error: Exception, failed: dict[str, str], *, alone: bool = False) -> None:
    """Log the failure of an item, and add its reason to `failed`.

    Call it where an exception is handled.

    Args:
        name: of the item.
        error: what its work raised.
        failed: the reasons so far, by name.
        alone: raise the failure instead.

    Raises:
        MachineError: the machine failed, not the item.
        InputError: `alone`.
    """
    reason = describe(error)
    if "RESOURCE_EXHAUSTED" in str(error):  # how XLA says it
        reason = DEVICE_MEMORY
    if is_of_machine(error):
        raise MachineError(reason) from error
    logger.debug("%s", traceback.format_exc())
    if alone:
        raise InputError(reason) from error
    logger.error("%s", _line(name, reason))
    failed[name] = reason


def _line(name: str, reason: str) -> str:
    return reason if reason.startswith(name) else f"{name}: {reason}"


DEVICE_MEMORY = (
    "the device has not enough memory; stop other programs on it, choose a device with more, or "
    "set JAX_PLATFORMS=cpu"
)


def summary(failed: Mapping[str, str], total: int, rest: str, what: str = "scans") -> InputError:
    """Return the error that ends work of which some failed; log the reasons if there are several.

    Args:
        failed: the reasons of the failures, by name.
        total: number of items.
        rest: what became of the other items, e.g. "the rest are done".
        what: the items.
    """
    lines = [_line(name, reason) for name, reason in failed.items()]
    others = ""
    if len(lines) > 1:
        others = "; see above for the others"
        for line in lines:
            logger.error("failed: %s", line)
    return InputError(f"{len(lines)} of {total} {what} failed: {lines[0]} ({rest}{others})")
