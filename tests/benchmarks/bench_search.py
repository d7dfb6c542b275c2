"""Training 8 settings of OP-convNet at once, beside 8 runs one after the other.

A step is what training runs: host to device, augmentation, network, loss, gradient, SGD, in the
paper's configuration. Both ways make the same updates of the same number of members on the same
batches. Compiling, which each run of its own needs once more, is left out.
"""

import jax
import numpy as np

from spinejax.configs import opconvnet
from spinejax.tasks import build_task
from spinejax.training import parallel, search, step
from spinejax.training.search import Setting
from spinejax.training.state import create_state
from tests.benchmarks import timing

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


def rows(toy=False):
    """Return the rows of the table; `toy` sizes only show that all of it runs."""
    config = opconvnet.get_config("debug" if toy else None)
    members, size = (2, 4) if toy else (8, 128)
    settings = [Setting(float(rate), 0.9, 1e-4) for rate in np.geomspace(1e-3, 1e-2, members)]
    in_sequence, at_once = ways(config, settings, batch_of(config, size))
    calls = {"in sequence": in_sequence, "at once": at_once}
    times = timing.interleaved(calls, 1 if toy else 7, warm_up=2)
    work = f"search, a step of {members} settings at once, {size} patches"
    both = times["at once"], "one after the other", times["in sequence"]
    return [timing.versus(work, *both)]
