"""How the drawing of phantoms is laid out for its device: in steps on CPUs, at once elsewhere.

In steps: points come in blocks, samples one after the other, and what does not reach a block is
skipped by loops whose length depends on the data. XLA on CPUs makes a kernel of every output of a
loop's body and of every row of a stack, repeats the arithmetic that kernels share, and repeats a
cheap value in all that use it. Barriers are dropped before operations are fused; only the result of
a loop that runs once or never is kept.

At once: all points of all samples form one block, everything is computed, and `jnp.where` chooses.
A GPU waits for the host wherever the length of a loop depends on data, and starts a kernel for each
operation of each turn, however few points there are; so few large operations are what it needs.

Both give the same labels, and nearly the same HU: a block leaves out what lies too far away to show
in it (`tissues.spare`), so a few points in 10,000 differ by more than 2 HU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
T = TypeVar("T")

_backend: ContextVar[str | None] = ContextVar("backend", default=None)


@contextmanager
def drawn_for(backend: str) -> Iterator[None]:
    """Trace phantoms for a backend ("cpu", "gpu" or "tpu") instead of the one that jax runs on."""
    token = _backend.set(backend)
    try:
        yield
    finally:
        _backend.reset(token)


def in_steps() -> bool:
    """Return whether phantoms are traced in steps, for a CPU.

    `lax.platform_dependent` would trace the long program of a phantom in both forms.
    """
    return (_backend.get() or jax.default_backend()) == "cpu"


def turns(
    first: Array | int, last: Array | int, most: int, body: Callable[[Array, T], T], start: T
) -> T:
    """Return what `lax.fori_loop(first, last, body, start)` does; `last` is `most` at most."""
    if in_steps():
        return lax.fori_loop(first, last, body, start)
    i = jnp.arange(most)
    return each((i >= first) & (i < last), body, start)


def each(hit: Array, body: Callable[[Array, T], T], start: T) -> T:
    """Apply `body(i, sofar)` to `start` for each i where `hit` (n,) is True, in ascending order."""
    n = hit.shape[0]

    def masked(i: Array, sofar: T) -> T:
        return jax.tree.map(lambda new, old: jnp.where(hit[i], new, old), body(i, sofar), sofar)

    def following(_: Array, at: tuple[Array, T]) -> tuple[Array, T]:
        i = jnp.min(jnp.where(hit & (jnp.arange(n) > at[0]), jnp.arange(n), n))
        return i, body(i, at[1])

    if not in_steps():
        return lax.fori_loop(0, n, masked, start)
    return lax.fori_loop(0, jnp.sum(hit), following, (jnp.int32(-1), start))[1]


def when(needed: Array, value: Callable[[], Any], otherwise: Any) -> Any:
    """Return `value()` if needed, else `otherwise`.

    In steps, it is skipped where it is not needed; under vmap, where no member needs it.
    """
    if not in_steps():
        return jax.tree.map(lambda new, old: jnp.where(needed, new, old), value(), otherwise)
    return lax.fori_loop(0, needed.astype(jnp.int32), lambda _, __: value(), otherwise)


def kept(p: Array, values: T) -> T:
    """Return `values` unchanged, but computed once for all that use them.

    Args:
        p: Array of finite numbers whose values the compiler cannot know.
        values: Pytree of arrays.
    """
    if not in_steps():
        return values
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
