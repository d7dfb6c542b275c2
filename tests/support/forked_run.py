"""Runs of `tiny_run` in processes of their own that need not import anything.

A server imports what a training needs, once, and starts neither devices nor trainings. It forks for
each run. A process that begins from nothing imports for two seconds.
"""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
import orbax.checkpoint  # noqa: F401 - for the processes that are forked

import spinejax.training.loop  # noqa: F401
from tests.support import tiny_run


def start(words: Sequence[str], output: Path, devices: int = 1) -> BaseProcess:
    """Start `tiny_run` with `words` on so many CPU devices; append what it prints to `output`."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    process = server.Process(target=_run, args=(list(words), output, devices), daemon=True)
    process.start()
    return process


def _run(words: list[str], output: Path, devices: int) -> None:
    with open(output, "a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    # jax reads the variables of these two when it is imported.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    status = tiny_run.main(words)
    jax.distributed.shutdown()  # jax would do it in an exit function, which forked processes skip
    sys.exit(status)
