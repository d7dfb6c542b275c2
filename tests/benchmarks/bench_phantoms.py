"""Phantoms: a whole spine as a volume, and batches drawn on the device for training.

The volume has voxels of 1 mm; its time covers rendering and the scanner's signal, without
compiling. Batches are drawn alone, beside a whole training step on a batch that lies ready: from
host to device, augmentation, network, loss, gradient, optimiser. Slices feed CHASPPRAU-Net of
`configs/phantom_to_real.py`, patches OP-convNet, cubes the MRU-Net of
`configs/phantom_vertebrae.py`.
"""

from functools import partial
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.configs import opconvnet, phantom_to_real, phantom_vertebrae, unet
from spinejax.phantom import once
from spinejax.phantom.scanner import acquisition
from spinejax.tasks import build_task
from spinejax.training import optim, parallel, step
from spinejax.training.state import create_state
from tests.benchmarks import phantom_scans, timing

GIVEN_S = 10.0  # for the volume on two cores


def volume(shape, rounds):
    """Return the row of a whole spine."""
    person, affine, protocol = phantom_scans.spine(shape, 1.0)

    def draw(shape=shape):
        hu, _ = acquisition.render_volume(person, shape, affine, 0.6, protocol=protocol)
        acquisition.scanned(hu, affine, person, protocol)

    draw((8, 8, 8))
    times = timing.interleaved({"draw": draw}, rounds, warm_up=0)["draw"]
    return timing.within(f"phantom, volume of {' x '.join(map(str, shape))}", times, GIVEN_S)


def drawer(stream, size):
    """Return two functions, each of which waits for what it makes.

    The first one draws. The second one makes a batch of `size` samples from what was drawn before;
    for slices and cubes that is the batch.
    """
    positions, turns, steps = jnp.arange(size), count(), count()
    keys_of = {name: step.named_key(0, name) for name in ("stream", "cut")}
    drawn = jax.jit(stream.draw)

    def draw(turn):
        key, subjects = jax.random.fold_in(keys_of["stream"], turn), []
        if once.in_steps():  # as `loop.putter`
            subjects.append(stream.subjects(key, np.arange(size)))
        return drawn(key, positions, *subjects)

    batch_of = jax.jit(partial(step.streamed, stream, keys_of))
    given = {"position": positions, "drawn": draw(0)}
    return (
        lambda: jax.block_until_ready(draw(next(turns))),
        lambda: jax.block_until_ready(batch_of(next(steps), given)),
    )


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


def rows(toy=False):
    """Return the rows of the table; `toy` sizes only show that all of it runs."""
    kinds = {
        "slices": (phantom_to_real.get_config(), 0.15),
        "patches": (patches(), 1.0),
        "cubes": (phantom_vertebrae.get_config(), 0.15),
    }
    if toy:  # each kind compiles for long, tissue and scanner most of it
        config = phantom_to_real.get_config("debug,step=anatomy")
        config.model = unet.get_config("debug").model
        kinds = {"slices": (config, 0.15)}
    found = [volume((16, 16, 32) if toy else (160, 160, 640), 1 if toy else 3)]
    calls, streams = {}, {}
    for name, (config, _) in kinds.items():
        streams[name] = build_task(config, axis_name=parallel.AXIS).stream
        calls[name, "draw"], calls[name, "batch"] = drawer(streams[name], config.train.batch_size)
        calls[name, "step"] = stepper(config, calls[name, "batch"]())
    times = timing.interleaved(calls, 1 if toy else 7)
    for name, (config, limit) in kinds.items():
        work = f"phantoms, {config.train.batch_size} {name} drawn"
        drawn = times[name, "draw"].per(streams[name].updates) + times[name, "batch"]
        both = drawn, "their training step", times[name, "step"]
        found.append(timing.versus(work, *both, limit=limit))
    return found
