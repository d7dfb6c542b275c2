"""Host CPU time of a call, by pmap and by shard_map, in a run of two processes.

    python -m tests.benchmarks.processes

Prints the table of `docs/scaling.md`. Two processes of one CPU device each call a function that
adds 1 to each array of a state. The arrays have four numbers, so the time is that of the host's
work for a call: it grows with the number of arrays, not with their size. The state of MRU-Net in
training has 1,428 arrays: parameters, the two moments of Adam, and counters.
"""

import json
import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from spinejax.training import parallel

LEAVES = (100, 500, 1428)
CALLS = 100
PROCESSES = 2


def cpu_ms(kind: str, leaves: int, calls: int = CALLS) -> float:
    """Return the CPU milliseconds of a call in this process, over all its threads."""
    mapped = parallel.Parallel(kind, tuple(jax.devices()))

    def update(state: list[jax.Array], batch: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        return [leaf + 1 for leaf in state], jax.lax.psum(batch.sum(), parallel.AXIS)

    run = mapped.map(update, sharded=(False, False), donate=True)
    state = mapped.replicate([np.zeros(4, np.float32)] * leaves)
    began = 0.0
    for call in range(-5, calls):
        if call == 0:
            began = time.process_time()
        state, total = run(state, mapped.put(np.ones((mapped.local_count, 1), np.float32)))
        total.block_until_ready()
    ends = {float(leaf[0]) for leaf in parallel.host_copy(state)}
    if ends != {calls + 5.0}:
        raise RuntimeError(f"{kind}: the state should be {calls + 5} and is {ends}")
    return 1000 * (time.process_time() - began) / calls


def _worker(process: int, port: int, leaves: list[int], calls: int) -> None:
    parallel.initialize_distributed(
        coordinator_address=f"127.0.0.1:{port}", num_processes=PROCESSES, process_id=process
    )
    rows = [[n, *(cpu_ms(kind, n, calls) for kind in ("pmap", "shard_map"))] for n in leaves]
    if process == 0:
        print(json.dumps(rows))


def measure(leaves: tuple[int, ...] = LEAVES, calls: int = CALLS) -> list[list[float]]:
    """Return rows of the number of arrays and milliseconds by pmap and by shard_map."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-m", "tests.benchmarks.processes"]
    workers = [
        subprocess.Popen(
            [*command, json.dumps([process, port, leaves, calls])],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(PROCESSES)
    ]
    (rows, _), *_ = results = [worker.communicate(timeout=600) for worker in workers]
    if any(worker.returncode for worker in workers):
        raise RuntimeError("\n".join(errors[-2000:] for _, errors in results))
    return json.loads(rows.splitlines()[-1])


def main(argv: list[str]) -> int:
    """Print the table, or be one of the processes."""
    if argv:
        _worker(*json.loads(argv[0]))
        return 0
    print(f"jax {jax.__version__}")
    print("| arrays | pmap, ms of CPU | shard_map, ms of CPU |\n| ---: | ---: | ---: |")
    for leaves, *times in measure():
        print(f"| {leaves:,} | " + " | ".join(f"{t:.1f}" for t in times) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
