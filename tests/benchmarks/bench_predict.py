"""Prediction of one large scan: slices per second and peak memory, beside the scan's own size.

    python tests/benchmarks/bench_predict.py [--shape 512 512 300]

The demo's network with random weights segments a scan of noise: time and memory do not depend on
what is in it. The peak is of the whole process, Python, JAX and the network included.
"""

import argparse
import resource
import time

import jax
import numpy as np

from spinejax import predictor
from spinejax.configs import demo
from spinejax.inference import masks
from spinejax.tasks import build_task
from spinejax.volume import Volume


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 200))
    options = parser.parse_args()
    config = demo.get_config()
    variables = jax.jit(build_task(config).init)(jax.random.key(0))
    task = build_task(config)
    predict, settings = task.stack_predictor(variables), predictor.scan_settings(config, task)
    small = Volume(np.zeros((32, 96, 96), np.int16), np.diag([-2.0, -2.0, 2.0, 1.0]))
    masks.predict_scan(predict, small, settings)
    before = peak_bytes()
    rng = np.random.default_rng(0)
    array = np.empty(options.shape, np.int16)
    for part in array:  # row by row: no float copy of the whole
        part[...] = rng.normal(0, 100, part.shape)
    volume = Volume(array, np.diag([-0.8, -0.8, 1.0, 1.0]))
    estimate = masks.estimate_bytes(volume, settings)
    start = time.perf_counter()
    masks.predict_scan(predict, volume, settings)
    seconds = time.perf_counter() - start
    added = peak_bytes() - before
    shape = "x".join(map(str, options.shape))
    print(
        f"prediction of {shape} voxels: {seconds:.1f} s, {options.shape[0] / seconds:.1f} sagittal "
        f"slices/s; memory added {added / 2**30:.2f} GiB = {added / array.nbytes:.2f} x the scan "
        f"({estimate / 2**30:.2f} GiB announced), process peak {peak_bytes() / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    main()
