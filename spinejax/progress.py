"""Progress of long work: a bar on a terminal, a line every half minute elsewhere, or nothing.

Functions that take long have an argument `progress`. They call it with a title, the amount of work
and its unit, and advance the result:

    with progress("sub-verse014", 40, "slice") as bar:
        bar.advance(8)
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from tqdm import tqdm

EVERY_S = 30.0
"""Seconds between two lines where the output is no terminal, such as a log file."""


class Bar(Protocol):
    """Shows the progress of one piece of work."""

    def advance(self, count: int = 1, text: str = "") -> None:
        """Count `count` more units as done; `text` replaces what stands behind the bar."""

    def say(self, text: str) -> None:
        """Show a line of text without disturbing the bar."""


Progress = Callable[[str, int, str], AbstractContextManager[Bar]]
"""progress(title, total, unit) -> context of a `Bar`; `total` 0 means unknown."""


class _Silent:
    def advance(self, count: int = 1, text: str = "") -> None:
        pass

    def say(self, text: str) -> None:
        pass


class _Terminal:
    def __init__(self, bar: tqdm) -> None:
        self._bar = bar

    def advance(self, count: int = 1, text: str = "") -> None:
        if text:
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(count)

    def say(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)


class _Lines:
    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done, self._began = 0, time.monotonic()
        self._shown = self._began

    def advance(self, count: int = 1, text: str = "") -> None:
        self._done += count
        now = time.monotonic()
        if now - self._shown < EVERY_S:
            return
        self._shown = now
        of = f" of {self._total}" if self._total else ""
        line = f"{self._title}: {self._done}{of} {self._unit}s in {now - self._began:.0f} s"
        self.say(f"{line}, {text}" if text else line)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def silent(title: str, total: int, unit: str) -> Iterator[Bar]:
    """Show nothing."""
    yield _Silent()


@contextmanager
def bars(title: str, total: int, unit: str) -> Iterator[Bar]:
    """Show a bar on standard error if that is a terminal, else a line every `EVERY_S` seconds."""
    if not sys.stderr.isatty():
        yield _Lines(title, total, unit)
        return
    with tqdm(total=total or None, desc=title, unit=unit, leave=False, dynamic_ncols=True) as bar:
        yield _Terminal(bar)
