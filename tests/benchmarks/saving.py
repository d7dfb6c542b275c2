"""How long a save of a checkpoint keeps the training waiting.

    python -m tests.benchmarks.saving

Prints the table of `docs/scaling.md`: seconds until `Checkpoints.save` returns, and until the state
is on disk with its checksums. The state is that of a network with Adam; its values are random.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from spinejax.training.checkpoint import Checkpoints, Meta
from spinejax.training.state import TrainState, create_state

MILLIONS = (1, 10, 30)
"""Parameters."""
LEAVES, SAVES = 100, 3


def state_of(millions: int) -> TrainState:
    """Return a state of LEAVES arrays and their two moments."""
    size = millions * 10**6 // LEAVES
    keys = jax.random.split(jax.random.key(0), LEAVES)
    params = {f"layer{i}": jax.random.normal(key, (size,)) for i, key in enumerate(keys)}
    return create_state({"params": params, "batch_stats": {}}, optax.adam(1e-3), ema=False)


def seconds(state: TrainState, *, best: bool) -> tuple[float, float]:
    """Return the medians of the seconds until `save` returns and until all is on disk."""
    returned, written = [], []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder)) as checkpoints:
        for step in range(1, SAVES + 1):
            begin = time.perf_counter()
            checkpoints.save(
                state.replace(step=jnp.int32(step)), Meta(step, True, float(step), 1), best=best
            )
            returned.append(time.perf_counter() - begin)
            checkpoints.wait()
            written.append(time.perf_counter() - begin)
    return statistics.median(returned), statistics.median(written)


def main() -> int:
    """Print the table."""
    print("| parameters | saved as | training waits | on disk after |")
    print("| ---: | --- | ---: | ---: |")
    for millions in MILLIONS:
        for best in (False, True):
            waits, done = seconds(state_of(millions), best=best)
            kind = "best and latest" if best else "latest"
            print(f"| {millions} million | {kind} | {1000 * waits:.0f} ms | {done:.2f} s |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
