"""Memory of a training step, as the compiler plans it; nothing is run."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from spinejax.tasks import build_task
from spinejax.train import step
from spinejax.train.parallel import AXIS
from spinejax.train.state import create_state


def step_bytes(config: ConfigDict) -> int | None:
    """Return the bytes that an update of the config's batch needs on one device.

    Parameters, optimiser, batch, and all that is held in between: what XLA reserves for the
    compiled program; None where it does not say. Samples come from a data set, not from a stream of
    phantoms.
    """
    config = config.copy_and_resolve_references()
    config.data.source = "verse"
    task = build_task(config, axis_name=AXIS)
    update, optimizer = step.from_config(config, task, total_steps=1, steps_per_epoch=1)
    averaged = config.optim.ema_decay > 0
    state = jax.eval_shape(
        lambda key: create_state(task.init(key), optimizer, ema=averaged),
        jax.random.key(0),
    )
    rows = config.train.batch_size

    def of(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, rows, *shape), dtype)

    batch = {
        "image": of(jnp.int16, *task.sample_shape),
        "label": of(jnp.uint8, *task.sample_shape),
        "stats": of(jnp.float32, 4),
        "weight": of(jnp.float32),
        **{name: of(jnp.int32) for name in ("case", "slice", "position")},
    }
    # One device of the axis; the state is updated in place, as in training.
    mapped = jax.jit(jax.vmap(update, in_axes=(None, 0), axis_name=AXIS), donate_argnums=0)
    plan = mapped.lower(state, batch).compile().memory_analysis()
    if plan is None:
        return None
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return int(held + plan.temp_size_in_bytes)
