"""Runs a per-device function on all devices of all processes; the only module that knows pmap.

The batch is split over the devices, in their order; everything else is replicated, without a device
axis. A mapped function works on one device's share of the batch, with collectives over `AXIS`.
`pmap` and `shard_map` run the same program.
"""

import json
import math
import os
import pickle
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spinejax import machine, numerics, schema
from spinejax.errors import InputError, check_choice, describe

T = TypeVar("T")

AXIS = "data"
"""Name of the device axis, for psum, pmean and synchronised BatchNorm."""

KINDS = ("pmap", "shard_map")


def initialize_distributed(
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    initialization_timeout_s: int = 300,
    heartbeat_timeout_s: int = 100,
) -> None:
    """Join the processes of one run; call this before any other function of jax.

    Without arguments jax reads Slurm's variables, which exist only under srun. Afterwards all
    processes notice a SIGTERM on any of them (`reached_preemption`).

    Raises:
        InputError: the other processes could not be reached.
    """
    if coordinator_address is not None and not coordinator_address.rpartition(":")[2].isdecimal():
        raise InputError(f"coordinator {coordinator_address!r} has no port; write HOST:PORT")
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=initialization_timeout_s,
            heartbeat_timeout_seconds=heartbeat_timeout_s,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the processes of the run did not find one another ({reason}); give coordinator "
            "address, number of processes and process id, or start them with srun"
        ) from error


def batch_unit(accumulate_steps: int, group: int) -> int:
    """Return the number of which the batch of one device must be a multiple.

    Args:
        accumulate_steps: microbatches of each device.
        group: samples that a device draws together (`online.Stream.group`).
    """
    return math.lcm(accumulate_steps, group)


def use_cores(batches: Sequence[tuple[int, int]] = ()) -> None:
    """Let jax see the processor as several devices; call this before any device is used.

    On a device, XLA computes most convolutions on one core, whatever the number of cores (jax
    0.10.2). So training and prediction are faster with a device for each core.

    Nothing changes after a device has been used, or where JAX_NUM_CPU_DEVICES or XLA_FLAGS says how
    many devices the processor is.

    Args:
        batches: size and `batch_unit` of the batches of each training. The number of devices is the
            largest one, up to the number of cores, among which all of them can be divided.
    """
    given = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if given or getattr(jax.config, "jax_num_cpu_devices", -1) > 0:
        return
    dividing = (
        count
        for count in range(machine.cores(), 0, -1)
        if all(size % (count * unit) == 0 for size, unit in batches)
    )
    with suppress(RuntimeError):  # a device has been used
        jax.config.update("jax_num_cpu_devices", next(dividing, 1))


def device_kinds() -> str:
    """Return the kinds of the devices of all processes, e.g. "NVIDIA A100"."""
    return ", ".join(sorted({device.device_kind for device in jax.devices()}))


def hardware() -> str:
    """Return the machine in words, for records: processor, its cores, kinds of devices."""
    return f"{platform.machine()}, {os.cpu_count()} CPU cores, {device_kinds()}"


@dataclass(frozen=True)
class Parallel:
    """Maps functions by `kind`, one of `KINDS`, over `devices` of all processes."""

    kind: str
    devices: tuple[Any, ...]

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)

    @property
    def count(self) -> int:
        """Number of devices of all processes."""
        return len(self.devices)

    @property
    def platform(self) -> str:
        """Kind of the devices: "cpu", "gpu" or "tpu"."""
        return self.devices[0].platform

    @property
    def local_count(self) -> int:
        """Number of devices of this process."""
        return sum(d.process_index == jax.process_index() for d in self.devices)

    def _sharding(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(Mesh(np.array(self.devices), (AXIS,)), spec)

    def check_batch(
        self, batch_size: int, accumulate_steps: int = 1, group: int = 1, *, begun: bool = False
    ) -> None:
        """Check that a global batch divides over devices and microbatches.

        Args:
            batch_size: samples over all devices.
            accumulate_steps: see `batch_unit`.
            group: see `batch_unit`.
            begun: whether a run has begun with this batch, and must keep it.

        Raises:
            InputError: it does not; the error names the nearest batch sizes that divide, or how
                many devices a run that has begun can use.
        """
        unit = self.count * batch_unit(accumulate_steps, group)
        if batch_size % unit:
            below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
            nearest = f"{below} or {above}" if below else str(above)
            drawn = f" and groups of {group} drawn together" if group > 1 else ""
            remedy = f"use {nearest}"
            if begun:
                most = batch_size // batch_unit(accumulate_steps, group)
                remedy = (
                    "the run in this folder began with this batch and keeps it; use a number of "
                    f"devices that divides {most}"
                )
            raise InputError(
                f"train.batch_size={batch_size} does not divide by {self.count} devices x "
                f"{accumulate_steps} accumulated microbatches (optim.accumulate_steps){drawn}; "
                f"{remedy}"
            )

    def replicate(self, tree: Any) -> Any:
        """Put a copy of a pytree of host or device arrays on every device."""
        return jax.device_put(tree, self._sharding(PartitionSpec()))

    def put(self, batch: Any) -> Any:
        """Put this process's share of a batch, leaves (b_local, ...), on its devices.

        Returns at once; the copies are made in the background. The result is for a mapped function.

        Raises:
            ValueError: b_local is no multiple of the number of local devices.
        """
        n = self.local_count
        sizes = {len(leaf) for leaf in jax.tree.leaves(batch)}
        if any(size % n for size in sizes):
            raise ValueError(f"batches of {sorted(sizes)} rows do not split over {n} local devices")
        if self.kind == "pmap":
            own = [d for d in self.devices if d.process_index == jax.process_index()]
            sharding = NamedSharding(Mesh(np.array(own), (AXIS,)), PartitionSpec(AXIS))
            rows = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)
            return jax.device_put(rows, sharding)
        sharding = self._sharding(PartitionSpec(AXIS))
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
        )

    def map(
        self, function: Callable[..., Any], *, sharded: tuple[bool, ...], donate: bool
    ) -> Callable[..., Any]:
        """Map `function(replicated, batch) -> outputs` over the devices.

        Args:
            function: per-device view; `batch` is one device's share.
            sharded: whether each output is split over the devices along its first axis (read it
                with `local_rows`); otherwise it must be equal on all devices.
            donate: whether the outputs may reuse the buffers of `replicated`.

        Returns:
            A function of (replicated tree, batch made by `put`).
        """
        donated = (0,) if donate else ()
        if self.kind == "pmap":
            return jax.pmap(
                function,
                axis_name=AXIS,
                in_axes=(None, 0),
                out_axes=tuple(0 if s else None for s in sharded),
                devices=None if jax.process_count() > 1 else self.devices,
                donate_argnums=donated,
            )
        split, whole = PartitionSpec(AXIS), PartitionSpec()
        # check_vma=True would silently sum the gradients of replicated parameters over the devices,
        # in addition to the mean that the step takes.
        mapped = jax.shard_map(
            function,
            mesh=Mesh(np.array(self.devices), (AXIS,)),
            in_specs=(whole, split),
            out_specs=tuple(split if s else whole for s in sharded),
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=donated)

    def local_rows(self, array: jax.Array) -> np.ndarray:
        """Return the rows (b_local, ...) of a sharded output that are on this process's devices."""
        shards = sorted(array.addressable_shards, key=lambda s: s.index[0].start or 0)
        rows = np.concatenate([np.asarray(s.data) for s in shards])
        return rows.reshape(-1, *rows.shape[2:]) if self.kind == "pmap" else rows


def make_parallel(kind: str, devices: int | None = None) -> Parallel:
    """Map over all devices of all processes, or over the first `devices` of a single process.

    `kind` is a value of `train.parallel`. "auto" is pmap for one process. With several, pmap
    converts each array of the state at each call, which shard_map does not.

    Raises:
        InputError: there are fewer devices.
    """
    numerics.check_devices()
    schema.check_value("train.parallel", kind)
    several = jax.process_count() > 1
    if kind == "auto":
        kind = "shard_map" if several else "pmap"
    if several and _apart:
        # pmap would run on the devices of all processes.
        kind, available = "shard_map", jax.local_devices()
    else:
        available = jax.devices()
    if devices is None:
        return Parallel(kind, tuple(available))
    if several and not _apart:
        raise ValueError("a run of several processes uses all their devices")
    if devices > len(available):
        raise InputError(f"{devices} devices were asked for, and jax sees {len(available)}")
    return Parallel(kind, tuple(available[:devices]))


def make_parallel_dividing(kind: str, batch_size: int) -> Parallel:
    """Map over the largest number of devices that divides batches of this size.

    For a process that evaluates alone (`apart`) a run which other devices may have trained.
    """
    return make_parallel(kind, math.gcd(batch_size, make_parallel(kind).count))


def host_copy(tree: Any) -> Any:
    """Copy replicated arrays to host memory as numpy, so that they may be donated later."""
    return jax.tree.map(lambda x: np.array(x), jax.device_get(tree))


def process_index() -> int:
    """Return the index of this process in the run; 0 inside `apart`."""
    numerics.check_devices()
    return 0 if _apart else jax.process_index()


def process_count() -> int:
    """Return the number of processes of the run; 1 inside `apart`."""
    numerics.check_devices()
    return 1 if _apart else jax.process_count()


_apart = False  # no context variable: threads that the block starts must see it, too


@contextmanager
def apart() -> Iterator[None]:
    """Let this process work as if it were the only one, on its own devices, while the block runs.

    It waits for no other process, so all of them may work apart on different things at once. They
    meet again in `together`.
    """
    global _apart  # noqa: PLW0603
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def barrier(name: str) -> None:
    """Wait until all processes of the run have reached this call."""
    if process_count() > 1:
        multihost_utils.sync_global_devices(name)


def together(work: Callable[[], T]) -> T:
    """Do the work of this process, and wait until all processes have done theirs.

    If it fails on one of them, it fails on all: a process that went on alone would wait for the
    others for ever.

    Raises:
        InputError: the work failed on another process.
        Exception: what the work raises on this process.
    """
    if process_count() == 1:
        return work()
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failure = error
    reasons = _texts("" if failure is None else describe(failure))
    if failure is not None:
        raise failure
    for number, reason in enumerate(reasons):
        if reason:
            raise InputError(f"process {number} of the run failed: {reason}")
    return result


def from_first(work: Callable[[], T]) -> T:
    """Return on all processes what the work returns on the first; the others wait for it.

    Args:
        work: returns what JSON can hold. Only the first process does it.

    Raises:
        InputError: the work failed on the first process.
        Exception: what the work raises, on the first process.
    """
    if process_count() == 1:
        return work()
    first = process_index() == 0
    text = together(lambda: json.dumps(work()) if first else "")
    return json.loads(_texts(text)[0])


def from_all(work: Callable[[], T]) -> list[T]:
    """Return on all processes what the work returned on each, in their order.

    Args:
        work: returns what can be pickled.

    Raises:
        InputError: the work failed on another process.
        Exception: what the work raises on this process.
    """
    if process_count() == 1:
        return [work()]
    # The processes of a run trust one another.
    return [pickle.loads(data) for data in _gathered(together(lambda: pickle.dumps(work())))]


def _texts(text: str) -> list[str]:
    """Return the texts of all processes, in their order."""
    return [data.decode() for data in _gathered(text.encode())]


def _gathered(content: bytes) -> list[bytes]:
    """Return the bytes of all processes, in their order."""
    data = np.frombuffer(content, np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data), np.int32)).reshape(-1)
    padded = np.zeros(max(1, int(sizes.max())), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]) for row, size in zip(rows, sizes, strict=True)]


def reached_preemption(call: int) -> bool:
    """Return whether any process of the run received SIGTERM; the same answer on all processes.

    All processes must call this equally often, with 1, 2, 3, ... For a single process the answer is
    always no.
    """
    if process_count() == 1:
        return False
    return multihost_utils.reached_preemption_sync_point(call)
