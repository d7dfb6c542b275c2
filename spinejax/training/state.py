"""The state of a training between two updates."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """Everything that the next update needs besides config and data; a pytree of arrays.

    step: () int32, number of updates so far, which is also the position in the data.
    params: parameters, float32.
    batch_stats: running statistics of BatchNorm, {} without BatchNorm.
    opt_state: optax state.
    ema: exponential moving average of `params`; None if the config switches it off.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any


def initial_variables(
    init: Callable[[jax.Array], dict[str, Any]], key: jax.Array
) -> dict[str, Any]:
    """Return what `init` draws, with the numbers of `jax.jit(init)(key)`.

    The program runs once, and the compiler's optimisations take longer than all of it.
    """
    return jax.jit(init, compiler_options={"xla_backend_optimization_level": 1})(key)


def create_state(
    variables: dict[str, Any], optimizer: optax.GradientTransformation, *, ema: bool
) -> TrainState:
    """Return the state before the first update.

    `variables` comes from linen's `init`: "params" and, with BatchNorm, "batch_stats".
    """
    params = variables["params"]
    # A copy: the step donates its input, and one buffer cannot be donated twice.
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ema=average,
    )


def inference_variables(variables: dict[str, Any]) -> dict[str, Any]:
    """Return {"params", "batch_stats"} for prediction: the moving average if there is one."""
    ema = variables.get("ema")
    return {
        "params": variables["params"] if ema is None else ema,
        "batch_stats": variables["batch_stats"],
    }
