"""Training 8 settings of OP-convNet at once, beside 8 runs one after the other.

    python tests/benchmarks/bench_search.py [--members 8 --batch 128 --width 1.0]

A step is what training runs: host to device, augmentation, network, loss, gradient, SGD, on the
paper's configuration with its widths times --width. Both ways make the same updates of the same
number of members on the same batches, in the same process, alternating, so that other load meets
both alike; compilation, which a run of its own needs once more for every member, is shown apart.
"""

import argparse
import time

import jax
import numpy as np

from spinejax.configs import opconvnet
from spinejax.tasks import build_task
from spinejax.training import parallel, search, step
from spinejax.training.search import Setting
from spinejax.training.state import create_state

STEPS = dict(total_steps=1000, steps_per_epoch=100)


def batch_of(config, count):
    """Return noise in the shape of a batch, with the margin that augmentation draws from."""
    side = config.data.patches.size + 30
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 1500, (count, side, side)).astype(np.int16),
        "label": rng.integers(0, 2, (count, side, side)).astype(np.uint8),
        "stats": np.tile(np.array([200, 300, 0, 1500], np.float32), (count, 1)),
        "case": np.zeros(count, np.int32),
        "index": np.arange(count, dtype=np.int32),
        "position": np.arange(count, dtype=np.int32),
        "weight": np.ones(count, np.float32),
    }


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ways(config, settings, batch):
    """Return two functions that update every member once and wait: alone, and at once."""
    mapped = parallel.make_parallel("pmap", 1)
    task = build_task(config, axis_name=parallel.AXIS)
    variables = parallel.host_copy(jax.jit(task.init)(jax.random.key(0)))

    update, optimizer = step.from_config(config, task, **STEPS, **settings[0]._asdict())
    single = mapped.map(update, sharded=(False, False), donate=True)
    states = [mapped.replicate(create_state(variables, optimizer, ema=False)) for _ in settings]

    def in_sequence():
        for k in range(len(states)):
            states[k], metrics = single(states[k], mapped.put(batch))
            float(metrics["loss"])

    train_step, begin = search.population_step(task, config, **STEPS)
    several = mapped.map(train_step, sharded=(False, False), donate=True)
    members = [mapped.replicate(begin(settings, variables))]

    def at_once():
        members[0], metrics = several(members[0], mapped.put(batch))
        np.asarray(metrics["loss"])

    return in_sequence, at_once


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=float, default=1.0, help="times the paper's widths")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    config = opconvnet.get_config()
    for field in ("widths", "fc_widths"):
        config.model[field] = tuple(max(1, round(options.width * w)) for w in config.model[field])
    rates = np.geomspace(1e-3, 1e-2, options.members)
    settings = [Setting(float(rate), 0.9, 1e-4) for rate in rates]
    in_sequence, at_once = ways(config, settings, batch_of(config, options.batch))
    compiled = {"in sequence": timed(in_sequence), "at once": timed(at_once)}
    for run in (in_sequence, at_once):
        run()
    seconds = {"in sequence": [], "at once": []}
    for _ in range(options.repeats):
        seconds["in sequence"].append(timed(in_sequence))
        seconds["at once"].append(timed(at_once))
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    patches = options.members * options.batch
    kind = jax.local_devices()[0].device_kind
    print(
        f"{options.members} members of OP-convNet, widths {tuple(config.model.widths)}, batches of "
        f"{options.batch}, on {kind}"
    )
    for name, median in medians.items():
        low, high = min(seconds[name]), max(seconds[name])
        print(
            f"training {name}: {patches / median:,.0f} patches/s over all members "
            f"({patches / high:,.0f}-{patches / low:,.0f})"
        )
    ratios = np.array(seconds["in sequence"]) / np.array(seconds["at once"])
    print(
        f"at once / in sequence: {np.median(ratios):.2f} x the throughput "
        f"({ratios.min():.2f}-{ratios.max():.2f})"
    )
    first = compiled["in sequence"] - medians["in sequence"]
    together = compiled["at once"] - medians["at once"]
    print(
        f"compilation: {together:.1f} s for all at once, {first:.1f} s for each run of its own "
        f"({options.members * first:.0f} s for {options.members})"
    )


if __name__ == "__main__":
    main()
