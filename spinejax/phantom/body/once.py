"""What XLA is to compute at most once: parts that are skipped, and values that are kept.

On a CPU every output of a loop's body is a kernel of its own, which repeats the arithmetic that it
shares with the others, and a cheap producer is repeated in all that uses it. A loop that runs once
or not at all is the one thing that ends this.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
T = TypeVar("T")


def when(needed: Array, value: Callable[[], Any], otherwise: Any) -> Any:
    """`value()` if needed; truly skipped otherwise, under vmap too if no member needs it."""
    return lax.fori_loop(0, needed.astype(jnp.int32), lambda _, __: value(), otherwise)


def kept(p: Array, values: T) -> T:
    """`values` unchanged, computed once: XLA would repeat cheap arithmetic in each of its uses.

    Args:
        p: Array. That its first number is finite is what the compiler cannot know.
        values: Pytree of arrays.
    """
    return when(p.ravel()[0] < jnp.inf, lambda: values, jax.tree.map(jnp.zeros_like, values))
