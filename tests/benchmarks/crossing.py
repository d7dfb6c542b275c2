"""Bytes that come to the host while a network reads a scan in windows.

    python -m tests.benchmarks.crossing

Prints the table of `docs/scaling.md`. The networks give probabilities in no time; what they read
and give has the size of real ones. The device is whatever jax finds: the bytes are the same on all.
"""

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from spinejax import labels
from spinejax.inference import devices, windows2d, windows3d

SHAPE, WINDOW, OVERLAP = (128, 128, 288), (96, 96, 96), 0.25
STACK, SLICE_WINDOW = (100, 512, 512), (256, 256)


def counted(work: Callable[[], Any]) -> int:
    """Return the bytes of all arrays that come to the host while the work is done."""
    total = 0

    def fetch(array: Any) -> np.ndarray:
        nonlocal total
        total += array.nbytes if isinstance(array, jax.Array) else 0
        return devices.fetch(array)

    with (
        mock.patch.object(windows2d, "fetch", fetch),
        mock.patch.object(windows3d, "fetch", fetch),
    ):
        work()
    return total


def row(shape: windows3d.Size, window: windows3d.Size, *, offsets: bool) -> tuple[int, int, int]:
    """Return the number of windows, and bytes to the host if it joins them and if the device does.

    Args:
        shape: voxels of the scan on the network's grid.
        window: voxels of a window.
        offsets: whether the network gives the offset to the vertebra's centre, too.
    """
    channels = labels.NUM_CLASSES + (3 if offsets else 0)

    def probability(variables: Any, image: jax.Array, spine: jax.Array, stats: jax.Array) -> Any:
        return jnp.full((*image.shape, channels), 1 / labels.NUM_CLASSES)

    predict, rows = windows3d.make_cube_predictor(probability, {}, batch_size=1)
    image = np.zeros(shape, np.int16)
    host, device = (
        counted(
            lambda where=where: windows3d.predict_classes(
                predict,
                image,
                None,
                np.zeros(4, np.float32),
                window=window,
                overlap=OVERLAP,
                batch_size=rows,
                fill=0,
                offsets=offsets,
                on_device=where,
            )
        )
        for where in (False, True)
    )
    how: dict[str, Any] = dict(shifts=1, window=window, overlap=OVERLAP)
    return windows3d.count_windows(shape, None, **how), host, device


def row_of_slices(shape: tuple[int, int, int], window: tuple[int, int]) -> tuple[int, int, int]:
    """Return the same three numbers for a network of slices.

    Args:
        shape: slices of the scan and their pixels.
        window: pixels of a window.
    """
    read = []

    def predict(batch: np.ndarray) -> jax.Array:
        read.append(len(batch))
        return jnp.full(batch.shape, 0.5, jnp.float32)

    stack = np.zeros(shape, np.int16)
    how: dict[str, Any] = dict(window=window, overlap=OVERLAP, batch_size=1, fill=0)
    host, device = (
        counted(lambda where=where: windows2d.predict_stack(predict, stack, on_device=where, **how))
        for where in (False, True)
    )
    return sum(read) // 2, host, device


def main() -> int:
    """Print the table."""
    rows = [
        ("names", row(SHAPE, WINDOW, offsets=False)),
        ("names and offsets", row(SHAPE, WINDOW, offsets=True)),
        ("spine, in slices", row_of_slices(STACK, SLICE_WINDOW)),
    ]
    print("| network | windows | joined by the host | joined on the device |")
    print("| --- | ---: | ---: | ---: |")
    for name, (windows, host, device) in rows:
        print(f"| {name} | {windows} | {host / 1e6:,.0f} MB | {device / 1e6:,.0f} MB |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
