"""Running a network on batches that are divided among all local devices."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def over_local_devices(
    function: Callable[..., jax.Array], variables: Mapping[str, Any], batch_size: int
) -> tuple[Callable[..., np.ndarray], int]:
    """Compile a network for all local devices, or on CPUs for at most `batch_size` of them.

    Args:
        function: (variables, *arrays (b, ...)) -> (b, ...).
        variables: of the network; every device holds a copy.
        batch_size: rows in one call.

    Returns:
        The compiled function of the arrays, and the number of rows that it takes: `batch_size`
        rounded up to a multiple of the number of devices.
    """
    devices = np.array(jax.local_devices())
    if jax.default_backend() == "cpu":
        devices = devices[:batch_size]
    mesh = Mesh(devices, ("data",))
    divided = NamedSharding(mesh, PartitionSpec("data"))
    held = jax.device_put(dict(variables), NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(function)

    def call(*arrays: np.ndarray) -> np.ndarray:
        return np.asarray(compiled(held, *jax.device_put(arrays, divided)))

    return call, -(-batch_size // len(devices)) * len(devices)
