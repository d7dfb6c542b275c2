"""Work on many scans in which the failure of one scan is that scan's alone."""

import logging
import traceback
from collections.abc import Callable, Mapping
from typing import TypeVar

from spinejax.errors import InputError, MachineError, describe, is_of_machine

logger = logging.getLogger("spinejax")

T = TypeVar("T")
R = TypeVar("R")


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
    for name, item in items.items():
        try:
            results[name] = work(name, item)
        except Exception as error:
            note(name, error, failed, alone=len(items) == 1 if alone is None else alone)
            if not results and len(failed) > 1 and set(failed.values()) == {DEVICE_MEMORY}:
                raise MachineError(f"{DEVICE_MEMORY}; no scan was done") from error
    return results, failed


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
