"""Freed memory stays in the process, and the user's settings stay as they are."""

import os
import platform
import subprocess
import sys

import pytest

# Page faults of an array of 64 MB that is made, filled and freed 20 times; none if pages stay.
FAULTS = """
import resource, sys
import numpy as np
from spinejax import allocator
kept = allocator.keep_memory() if "keep" in sys.argv else False
def work():
    np.ones(2**26, np.uint8)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(*words, **environment):
    """Return what the script printed: whether memory is kept, and the number of faults."""
    variables = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | environment
    command = [sys.executable, "-c", FAULTS, *words]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_freed_is_not_given_back():
    _, before = run()
    kept, after = run("keep")
    assert kept
    assert after < before / 10


def test_the_tunables_of_the_user_stay():
    assert run("keep", GLIBC_TUNABLES="glibc.malloc.tcache_count=7")[0] is False


def test_another_c_library_is_left_alone(monkeypatch):
    from spinejax import allocator

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert allocator.keep_memory() is False
