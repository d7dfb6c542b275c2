"""A whole spine as a volume of 1 mm: seconds for anatomy, rendering and the scanner's signal.

    python tests/benchmarks/bench_phantom.py [--shape 160 160 640]

Compiling is left out, as it happens once for volumes of all shapes. Ratio: of the wall time to
10 s, which two cores are given for it.
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom import anatomy, centroids
from spinejax.phantom.scanner import acquisition, scan_plan

LIMIT_S = 10.0


def whole_spine(seed, shape):
    """A person, the affine of a field of view about the spine, and a scan's protocol."""
    key = jax.random.key(seed)
    person = jax.jit(anatomy)(key)
    ids, points = (np.asarray(value) for value in centroids(person))
    middle = points[ids > 0].mean(0) + [0.0, 0.0, -20.0]  # the sacrum lies below the last vertebra
    affine = np.eye(4)
    affine[:3, 3] = middle - (np.array(shape) - 1) / 2
    protocol = dict(jax.jit(scan_plan.protocol)(jax.random.fold_in(key, 1), person))
    protocol["lower"] = jnp.asarray(affine[:3, 3], jnp.float32)
    protocol["upper"] = protocol["lower"] + jnp.asarray(shape, jnp.float32) - 1.0
    return person, affine, protocol


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 160, 640))
    shape = tuple(parser.parse_args().shape)
    person, affine, protocol = whole_spine(0, shape)
    small, _ = acquisition.render_volume(person, (8, 8, 8), affine, 0.6, protocol=protocol)
    acquisition.scanned(small, affine, person, protocol)
    start, used = time.perf_counter(), time.process_time()
    hu, label = acquisition.render_volume(person, shape, affine, 0.6, protocol=protocol)
    drawn = time.perf_counter()
    acquisition.scanned(hu, affine, person, protocol)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    size = "x".join(map(str, shape))
    print(
        f"whole spine, {size} voxels, {len(np.unique(label)) - 1} vertebrae: {seconds:.1f} s "
        f"(rendering {drawn - start:.1f} s; {used:.1f} s of processor time on {os.cpu_count()} "
        f"cores), ratio to {LIMIT_S:.0f} s: {seconds / LIMIT_S:.2f}"
    )


if __name__ == "__main__":
    main()
