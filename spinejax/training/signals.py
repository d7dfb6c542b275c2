"""Requests to stop: from Slurm, from the user, from another thread."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spinejax.training import parallel

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that ask a run to save and stop."""


class Stop:
    """Tells whether a run was asked to stop."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._asked = 0

    def __bool__(self) -> bool:
        return self._event.is_set()

    def request(self) -> None:
        """Ask the run to save and stop at the next step."""
        self._event.set()

    def agreed(self, at: int) -> bool:
        """Return whether all processes stop at step `at`; each must ask at the same steps."""
        self._asked += 1
        if parallel.process_count() > 1:
            # jax counts one by one to the call at which all stop; steps may leave numbers out.
            return parallel.reached_preemption(self._asked)
        return bool(self)


@contextmanager
def listen(stop: Stop) -> Iterator[None]:
    """Turn SIGNALS into a request to `stop`; a second Ctrl-C has its usual effect.

    The other signals may arrive twice: from the cluster, and from the process that started the run.

    In a run of several processes jax handles SIGTERM itself and tells all of them (`Stop.agreed`);
    a handler here would stop one process and leave the others waiting. Outside the main thread
    Python allows no handlers.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if parallel.process_count() > 1 or not in_main:
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            # None stands for a handler that Python did not install.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def handle(number: int, frame: Any) -> None:
        stop.request()
        interrupt = before[signal.SIGINT]
        signal.signal(signal.SIGINT, signal.SIG_DFL if interrupt is None else interrupt)

    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
