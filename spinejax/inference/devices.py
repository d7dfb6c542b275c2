"""Running a network on arrays that are divided among all local devices.

A call returns before the device has computed. `behind` lets the host work on one call's results
while the device works on the next, and `fetch` is where results come to the host.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")


def fetch(array: Any) -> np.ndarray:
    """Return an array on the host, after the device has computed it."""
    return np.asarray(array)


def first_device(array: Any) -> jax.Device | None:
    """Return the first device that holds a part of an array; None if the host holds it."""
    if not isinstance(array, jax.Array):
        return None
    return min(array.devices(), key=lambda device: device.id)


def rounded_up(side: int, step: int = 32) -> int:
    """Return a multiple of `step` that holds a side, so that a program fits several scans."""
    return -(-side // step) * step


@partial(jax.jit, donate_argnums=0)
def add_windows(
    sums: jax.Array, weights: jax.Array, found: jax.Array, corners: jax.Array, count: jax.Array
) -> jax.Array:
    """Return sums to which weighted windows are added where they lie, one after the other.

    Args:
        sums: of any number of axes; its buffer is donated.
        weights: of the elements of a window, with as many axes as `sums`.
        found: (b, *window), of which the first `count` windows are added.
        corners: (b, k) where each window begins along the first k axes of `sums`; along the others
            all begin at 0.
        count: how many windows there are.
    """
    others = (0,) * (sums.ndim - corners.shape[1])

    def add(i: jax.Array, sums: jax.Array) -> jax.Array:
        corner = (*corners[i], *others)
        before = jax.lax.dynamic_slice(sums, corner, found.shape[1:])
        more = jnp.where(i < count, weights * found[i], 0)
        return jax.lax.dynamic_update_slice(sums, before + more, corner)

    return jax.lax.fori_loop(0, len(found), add, sums)


def behind(parts: Iterator[T], count: int = 1) -> Iterator[T]:
    """Yield each part after the next `count` were made, so that the device has these to work on."""
    waiting: deque[T] = deque()
    for part in parts:
        waiting.append(part)
        if len(waiting) > count:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def over_local_devices(
    function: Callable[..., jax.Array], variables: Mapping[str, Any], batch_size: int
) -> tuple[Callable[..., jax.Array], int]:
    """Compile a network for all local devices, or on CPUs for at most `batch_size` of them.

    Args:
        function: (variables, *arrays (b, ...)) -> (b, ...).
        variables: of the network; every device holds a copy.
        batch_size: rows in one call.

    Returns:
        The compiled function of the arrays, which does not wait for its result, and the number of
        rows that it takes: `batch_size` rounded up to a multiple of the number of devices. The
        arrays must not change afterwards.
    """
    devices = np.array(jax.local_devices())
    if jax.default_backend() == "cpu":
        devices = devices[:batch_size]
    mesh = Mesh(devices, ("data",))
    divided = NamedSharding(mesh, PartitionSpec("data"))
    held = jax.device_put(dict(variables), NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(function)

    def call(*arrays: np.ndarray) -> jax.Array:
        return compiled(held, *jax.device_put(arrays, divided))

    return call, -(-batch_size // len(devices)) * len(devices)


def one_each(
    function: Callable[..., jax.Array], variables: Mapping[str, Any]
) -> tuple[Callable[..., jax.Array], int]:
    """Compile a function that each local device applies to one element of its arguments.

    Args:
        function: (variables, *elements) -> element.
        variables: every device holds a copy.

    Returns:
        The compiled function of arrays (devices, ...), which gives (devices, ...) without waiting
        for it, and the number of devices. Arrays of the host must not change afterwards.
    """
    mesh = Mesh(np.array(jax.local_devices()), ("data",))
    divided, whole = PartitionSpec("data"), PartitionSpec()
    held = jax.device_put(dict(variables), NamedSharding(mesh, whole))

    def of_first(held: Any, arrays: tuple[jax.Array, ...]) -> jax.Array:
        return function(held, *(array[0] for array in arrays))[None]

    compiled = jax.jit(
        jax.shard_map(
            of_first, mesh=mesh, in_specs=(whole, divided), out_specs=divided, check_vma=False
        )
    )

    def call(*arrays: np.ndarray | jax.Array) -> jax.Array:
        return compiled(held, jax.device_put(arrays, NamedSharding(mesh, divided)))

    return call, mesh.size
