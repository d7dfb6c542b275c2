"""All random numbers of a person from two calls of the generator.

Each call of jax.random compiles to a few hundred operations; fifty of them would make `anatomy`
take a quarter of a minute to compile.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

T = TypeVar("T")

_NORMALS = 10000
_UNIFORMS = 5000
LIMIT = 2.2  # standard deviations at which normal numbers are cut off


def stacked(values: Sequence[jax.Array], axis: int = -1) -> jax.Array:
    """As `jnp.stack` of arrays of one shape, in a form that compiles to one kernel.

    XLA on CPUs makes a kernel of every row of a stack of more than eight.
    """
    shape = jnp.broadcast_shapes(*(jnp.shape(v) for v in values))
    out = jnp.zeros((), jnp.result_type(*values))
    axis %= len(shape) + 1
    place = np.arange(len(values)).reshape([-1] + [1] * (len(shape) - axis))
    for i, v in enumerate(values):
        out = jnp.where(place == i, jnp.expand_dims(jnp.broadcast_to(v, shape), axis), out)
    return out


class Draws:
    """Hands out independent numbers; the order of the calls decides who gets which."""

    def __init__(self, key: jax.Array) -> None:
        normal, uniform = jax.random.split(key)
        self._normals = jax.random.truncated_normal(normal, -LIMIT, LIMIT, (_NORMALS,))
        self._uniforms = jax.random.uniform(uniform, (_UNIFORMS,))
        self._used = {"normal": 0, "uniform": 0}
        # Always 1, which no compiler can know.
        self._once = (self._uniforms[0] < 2.0).astype(jnp.int32)
        self._normals, self._uniforms = self.settled((self._normals, self._uniforms))

    def _take(self, name: str, pool: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        first = self._used[name]
        self._used[name] = last = first + math.prod(shape)
        if last > pool.shape[0]:
            raise ValueError(f"out of {name} numbers: enlarge the pool of {pool.shape[0]}")
        return pool[first:last].reshape(shape)

    def normal(self, *shape: int) -> jax.Array:
        """Standard normal numbers, cut off at LIMIT."""
        return self._take("normal", self._normals, shape)

    def uniform(self, *shape: int) -> jax.Array:
        """Numbers in [0, 1)."""
        return self._take("uniform", self._uniforms, shape)

    def settled(self, values: T) -> T:
        """`values` unchanged, kept by the compiler: what follows reads them.

        Otherwise it repeats the arithmetic that leads to a number in all that uses the number, and
        most of the time to compile `anatomy` goes there. Barriers of XLA are dropped on CPUs before
        operations are fused; the result of a loop is not.
        """
        empty = jax.tree.map(jnp.zeros_like, values)
        return lax.fori_loop(0, self._once, lambda _, __: values, empty)
