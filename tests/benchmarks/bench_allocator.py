"""A training step with the allocator's settings of the `Makefile`, beside the C library's own.

The settings hold for a whole process, so each side runs in processes of its own, in turns. Only the
GNU C library knows them.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np

from tests.benchmarks import timing
from tests.benchmarks.__main__ import HERE

VARIABLE = "GLIBC_TUNABLES"
ROOT = HERE.parents[1]


def settings():
    """Return the value of VARIABLE in the Makefile."""
    found = re.search(rf"^ALLOCATOR := {VARIABLE}=(\S+)$", (ROOT / "Makefile").read_text(), re.M)
    if found is None:
        raise RuntimeError(f"the Makefile sets no {VARIABLE}")
    return found[1]


def network(toy):
    """Return the name of the network; a toy run only shows that all of it runs."""
    return "U-Net" if toy else "CHASPPRAU-Net"


def step_times(toy):
    """Print wall and processor time of each of some training steps, as JSON."""
    from spinejax.training import parallel
    from tests.benchmarks import bench_networks

    parallel.use_cores()
    fields, shape = bench_networks.networks(toy)[network(toy)]
    _, step = bench_networks.ours(*bench_networks.example(fields, shape))
    times = timing.interleaved({"step": step}, 2 if toy else 15, warm_up=2)["step"]
    print(json.dumps([times.wall.tolist(), times.processor.tolist()]))


def rows(toy=False):
    """Return the rows of the table; `toy` sizes only show that all of it runs."""
    variables = {"with": settings(), "without": ""}
    found = {name: [] for name in variables}
    for _ in range(1 if toy else 3):
        for name, value in variables.items():
            done = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.bench_allocator", *["--toy"] * toy],
                cwd=ROOT,
                env=os.environ | {VARIABLE: value},
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found[name].append(json.loads(done.stdout))
    times = {
        # one round for each process
        name: timing.Times(*np.median(np.array(runs), axis=2).T)
        for name, runs in found.items()
    }
    work = f"{network(toy)}, training step, allocator of the Makefile"
    return [timing.versus(work, times["with"], "the C library's", times["without"])]


if __name__ == "__main__":
    step_times("--toy" in sys.argv)
