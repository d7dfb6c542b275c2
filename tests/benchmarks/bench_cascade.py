"""Both stages of the pipeline on one scan: seconds of each, peak memory beside the scan's own size.

    python tests/benchmarks/bench_cascade.py [--shape 512 512 1000]

The networks of `configs/cascade.py:phantom` with random weights. The scan is noise, its spine a
column through it, which is given to the second stage as if the first had found it: time and memory
hang on sizes alone. The peak is of the whole process, Python, JAX and the networks included.
"""

import argparse
import resource
import time

import jax
import numpy as np

from spinejax import labels, predictor
from spinejax.configs import cascade as pipeline
from spinejax.inference import cascade, masks, windows3d
from spinejax.tasks import build_task
from spinejax.volume import Volume

SPACING_MM = (0.7, 0.7, 0.7)
COLUMN_MM = (90.0, 90.0)  # of a spine with its processes, lateral and front to back


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def noise(shape):
    """Noise in the shape of a scan, written row by row: no float copy of the whole."""
    rng = np.random.default_rng(0)
    array = np.empty(shape, np.int16)
    for part in array:
        part[...] = rng.normal(0, 100, part.shape)
    return array


def networks():
    """Return what segments and what names, each as a function of a scan (and a mask)."""
    first = pipeline.get_config("phantom")
    task = build_task(first)
    predict = task.stack_predictor(jax.jit(task.init)(jax.random.key(0)))
    scans = predictor.scan_settings(first, task)
    second = build_task(first.vertebrae)
    classes, rows = windows3d.make_cube_predictor(
        second.class_probability,
        jax.jit(second.init)(jax.random.key(1)),
        batch_size=first.vertebrae.predict.batch_size,
    )
    cubes = predictor.cube_settings(first.vertebrae, second, rows)
    return (
        lambda volume: masks.predict_scan(predict, volume, scans),
        lambda volume, mask: cascade.label_scan(classes, volume, mask, cubes),
        lambda volume: max(
            masks.estimate_bytes(volume, scans),
            cascade.estimate_bytes(volume, cubes, labels.NUM_CLASSES),
        ),
    )


def spine(shape):
    """Mask of a column through the whole scan."""
    mask = np.zeros(shape, bool)
    half = [int(0.5 * mm / step) for mm, step in zip(COLUMN_MM, SPACING_MM, strict=False)]
    x, y = (slice(n // 2 - h, n // 2 + h) for n, h in zip(shape, half, strict=False))
    mask[x, y] = True
    return mask


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(400, 400, 500))
    options = parser.parse_args()
    segment, name, estimate = networks()
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    small = (128, 128, 160)
    name(Volume(noise(small), affine), segment(Volume(noise(small), affine)) | spine(small))
    before = peak_bytes()
    shape = tuple(options.shape)
    volume, mask = Volume(noise(shape), affine), spine(shape)
    start = time.perf_counter()
    segment(volume)
    middle = time.perf_counter()
    name(volume, mask)
    end = time.perf_counter()
    added = peak_bytes() - before
    print(
        f"pipeline on {'x'.join(map(str, shape))} voxels: {middle - start:.1f} s for the spine, "
        f"{end - middle:.1f} s for the names, {end - start:.1f} s in all; memory added "
        f"{added / 2**30:.2f} GiB = {added / (4 * volume.array.size):.2f} x the scan in float32 "
        f"({(estimate(volume) + volume.array.nbytes) / 2**30:.2f} GiB announced with the scan), "
        f"process peak {peak_bytes() / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    main()
