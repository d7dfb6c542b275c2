"""Let XLA compute a value once, or not at all.

XLA on CPUs makes a kernel of every output of a loop's body and of every row of a stack, repeats the
arithmetic that kernels share, and repeats a cheap value in all that use it. Barriers are dropped
before operations are fused; only the result of a loop that runs once or never is kept.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
T = TypeVar("T")


def when(needed: Array, value: Callable[[], Any], otherwise: Any) -> Any:
    """Return `value()` if needed, else skip it; under vmap it is skipped if no member needs it."""
    return lax.fori_loop(0, needed.astype(jnp.int32), lambda _, __: value(), otherwise)


def kept(p: Array, values: T) -> T:
    """Return `values` unchanged, but computed once for all that use them.

    Args:
        p: Array of finite numbers whose values the compiler cannot know.
        values: Pytree of arrays.
    """
    return when(p.ravel()[0] < jnp.inf, lambda: values, jax.tree.map(jnp.zeros_like, values))


def stacked(values: Sequence[Array], axis: int = -1) -> Array:
    """Stack arrays of one shape as `jnp.stack` does, in a form that compiles to one kernel."""
    shape = jnp.broadcast_shapes(*(jnp.shape(v) for v in values))
    out = jnp.zeros((), jnp.result_type(*values))
    axis %= len(shape) + 1
    place = np.arange(len(values)).reshape([-1] + [1] * (len(shape) - axis))
    for i, v in enumerate(values):
        out = jnp.where(place == i, jnp.expand_dims(jnp.broadcast_to(v, shape), axis), out)
    return out
