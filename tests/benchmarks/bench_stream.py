"""Phantoms drawn on the device, beside the training steps that they feed.

    python tests/benchmarks/bench_stream.py

Slices feed CHASPPRAU-Net of configs/phantom_to_real.py, patches OP-convNet, cubes the MRU-Net of
configs/phantom_vertebrae.py. Each is drawn alone, and the step is run on a batch that lies ready;
all take turns in one run, so that other load meets them alike. Ratio: drawing to the step without
drawing.
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.configs import opconvnet, phantom_to_real, phantom_vertebrae
from spinejax.tasks import build_task
from spinejax.training import optim, parallel, step
from spinejax.training.state import create_state


def drawer(config):
    """Return a function that draws one batch and waits for it."""
    task = build_task(config, axis_name=parallel.AXIS)
    draw, positions = jax.jit(task.stream.draw), jnp.arange(config.train.batch_size)
    counter = iter(range(10**6))
    return lambda: jax.block_until_ready(draw(jax.random.key(next(counter)), positions))


def stepper(config, drawn):
    """Return a function that runs one update on a batch that lies ready."""
    config.data.source = "verse"
    mapped = parallel.make_parallel("pmap", 1)
    task = build_task(config, axis_name=parallel.AXIS)
    schedule = optim.make_schedule("constant", learning_rate=1e-3, total_steps=100)
    optimizer = optim.make_optimizer("adam", schedule, clip_norm=1.0)
    update = mapped.map(
        step.make_train_step(task, optimizer, schedule, seed=0), sharded=(False, False), donate=True
    )
    state = create_state(jax.jit(task.init)(jax.random.key(0)), optimizer, ema=False)
    holder = [mapped.replicate(state)]
    rows = config.train.batch_size
    batch = jax.device_get(drawn) | {
        "case": np.zeros(rows, np.int32),
        "index": np.arange(rows, dtype=np.int32),
        "position": np.arange(rows, dtype=np.int32),
        "weight": np.ones(rows, np.float32),
    }

    def run():
        holder[0], metrics = update(holder[0], mapped.put(batch))
        return float(metrics["loss"])

    return run


def patches():
    """OP-convNet of configs/opconvnet.py on a stream of sagittal slices at 1 mm."""
    config = opconvnet.get_config()
    config.data.source = "phantom_stream"
    config.data.plane = "sagittal"
    config.data.preprocess.mode = "resample"
    config.data.size = (160, 160)
    return config


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    runs, kinds = {}, {}
    kinds["slices"] = phantom_to_real.get_config()
    kinds["patches"] = patches()
    kinds["cubes"] = phantom_vertebrae.get_config()
    for name, config in kinds.items():
        draw = drawer(config)
        runs[f"{name} drawn"], runs[f"{name} step"] = draw, stepper(config, draw())
    for run in runs.values():
        run()
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    kind = f"{jax.local_devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    for name, config in kinds.items():
        drawn, update = median[f"{name} drawn"], median[f"{name} step"]
        rows, size = config.train.batch_size, tuple(config.data.size)
        of = {"slices": f"of {size}", "patches": f"from slices of {size}"}.get(
            name, f"of {tuple(config.data.cube.size)}"
        )
        print(
            f"{name} {of} drawn: {drawn * 1000:.0f} ms for {rows}, {rows / drawn:,.0f} {name}/s "
            f"on {kind}; the step they feed: {update * 1000:.0f} ms ({drawn / update:.2f} x the "
            "step)"
        )


if __name__ == "__main__":
    main()
