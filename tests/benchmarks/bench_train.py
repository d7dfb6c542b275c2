"""The whole training step of paper A's networks, beside those of the plain U-Nets.

    python tests/benchmarks/bench_train.py

CHASPPRAU-Net beside the U-Net in slices, 3D MRU-Net beside the 3D U-Net in cubes. A step is what
the loop runs: host to device, augmentation, network, loss, gradient, Adam. Both of a pair take the
same batches in the same run, alternating, so that other load meets both alike.
"""

import argparse
import time

import jax
import numpy as np

from spinejax.configs import chasppraunet, mrunet, unet, unet3d
from spinejax.tasks import build_task
from spinejax.training import optim, parallel, step
from spinejax.training.state import create_state


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


def make_batch(shape, top):
    """A batch of noise (b, ...), with labels 0 to `top`."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(-1000, 800, shape).astype(np.int16),
        "label": rng.integers(0, top + 1, shape).astype(np.uint8),
        "stats": np.tile(np.array([-200, 300, -1000, 800], np.float32), (shape[0], 1)),
        "case": np.zeros(shape[0], np.int32),
        "index": np.arange(shape[0], dtype=np.int32),
        "position": np.arange(shape[0], dtype=np.int32),
        "weight": np.ones(shape[0], np.float32),
    }


def compare(modules, batch, word, repeats):
    """Time a step of each network, and print it beside that of the last."""
    shape = batch["image"].shape
    runs = {}
    for name, module in modules.items():
        config = module.get_config()
        if len(shape) == 3:
            config.data.size = shape[1:]
        else:
            config.data.cube.size = shape[1:]
        runs[name] = stepper(config, batch)
        for _ in range(2):
            runs[name]()
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    kind = jax.local_devices()[0].device_kind
    last, peer = list(medians.items())[-1]
    for name, median in medians.items():
        print(
            f"training step, {name}: {median * 1000:.0f} ms for {shape[0]} {word} of "
            f"{' x '.join(map(str, shape[1:]))}, {shape[0] / median:.1f} {word}/s on {kind} "
            f"({median / peer:.2f} x the {last})",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--cube", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    slices = make_batch((options.batch, options.side, options.side), 1)
    pair = {"CHASPPRAU-Net": chasppraunet, "U-Net": unet}
    compare(pair, slices, "slices", options.repeats)
    cubes = make_batch((1, *[options.cube] * 3), 24)  # C1 to L5
    compare({"MRU-Net": mrunet, "3D U-Net": unet3d}, cubes, "cubes", options.repeats)


if __name__ == "__main__":
    main()
