"""Bytes that come to the host while a network of cubes reads a scan.

    python -m tests.benchmarks.crossing

Prints the table of `docs/scaling.md`. The network gives probabilities in no time; what it reads and
gives has the size of real ones. The device is whatever jax finds: the bytes are the same on all.
"""

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from spinejax import labels
from spinejax.inference import devices, windows3d

SHAPE, WINDOW, OVERLAP = (128, 128, 288), (96, 96, 96), 0.25


def counted(work: Callable[[], Any]) -> int:
    """Return the bytes of all arrays that come to the host while the work is done."""
    total = 0

    def fetch(array: Any) -> np.ndarray:
        nonlocal total
        total += array.nbytes if isinstance(array, jax.Array) else 0
        return devices.fetch(array)

    with mock.patch.object(windows3d, "fetch", fetch):
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


def main() -> int:
    """Print the table."""
    print("| network | windows | joined by the host | joined on the device |")
    print("| --- | ---: | ---: | ---: |")
    for offsets, name in ((False, "names"), (True, "names and offsets")):
        windows, host, device = row(SHAPE, WINDOW, offsets=offsets)
        print(f"| {name} | {windows} | {host / 1e6:,.0f} MB | {device / 1e6:,.0f} MB |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
