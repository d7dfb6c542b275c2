"""The whole training step of CHASPPRAU-Net, beside that of the plain U-Net.

    python tests/benchmarks/bench_train.py

A step is what the loop runs: host to device, augmentation, network, loss, gradient, Adam. Both take
the same batches in the same run, alternating, so that other load meets both alike.
"""

import argparse
import time

import jax
import numpy as np

from configs import chasppraunet, unet
from spinejax.tasks import build_task
from spinejax.train import optim, parallel, step
from spinejax.train.state import create_state


def stepper(config, batch):
    """Return a function that runs one update and waits for it."""
    mapped = parallel.make_parallel("pmap")
    task = build_task(config, axis_name=parallel.AXIS)
    schedule = optim.make_schedule("constant", learning_rate=1e-3, total_steps=100)
    optimizer = optim.make_optimizer("adam", schedule, clip_norm=1.0)
    update = mapped.map(
        step.make_train_step(task, optimizer, schedule, seed=0), sharded=(False, False), donate=True
    )
    state = create_state(jax.jit(task.init)(jax.random.key(0)), optimizer, ema=False)
    holder = [mapped.replicate(state)]

    def run():
        holder[0], metrics = update(holder[0], mapped.put(batch))
        return float(metrics["loss"])

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    shape = (options.batch, options.side, options.side)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(-1000, 800, shape).astype(np.int16),
        "label": rng.integers(0, 2, shape).astype(np.uint8),
        "stats": np.tile(np.array([-200, 300, -1000, 800], np.float32), (shape[0], 1)),
        "case": np.zeros(shape[0], np.int32),
        "slice": np.arange(shape[0], dtype=np.int32),
        "position": np.arange(shape[0], dtype=np.int32),
        "weight": np.ones(shape[0], np.float32),
    }
    runs = {}
    for name, module in (("CHASPPRAU-Net", chasppraunet), ("U-Net", unet)):
        config = module.get_config()
        config.data.size = shape[1:]
        runs[name] = stepper(config, batch)
        for _ in range(2):
            runs[name]()
    seconds = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    kind = jax.local_devices()[0].device_kind
    for name, median in medians.items():
        print(
            f"training step, {name}: {median * 1000:.0f} ms for {shape[0]} slices of "
            f"{shape[1]} x {shape[2]}, {shape[0] / median:.1f} slices/s on {kind} "
            f"({median / medians['U-Net']:.2f} x the U-Net)"
        )


if __name__ == "__main__":
    main()
