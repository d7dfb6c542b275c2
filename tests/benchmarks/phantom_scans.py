"""Scans of phantoms for the benchmarks."""

import jax
import jax.numpy as jnp
import numpy as np

from spinejax import geometry
from spinejax.phantom import anatomy, centroids
from spinejax.phantom.scanner import acquisition, scan_plan
from spinejax.volume import Volume


def spine(shape, spacing_mm, seed=0):
    """Return a person, the affine of a field of view about the spine, and a scan's protocol."""
    key = jax.random.key(seed)
    person = jax.jit(anatomy)(key)
    ids, points = (np.asarray(value) for value in centroids(person))
    middle = points[ids > 0].mean(0) + [0.0, 0.0, -20.0]  # the sacrum lies below the last vertebra
    affine = np.diag([*[spacing_mm] * 3, 1.0])
    reach = (np.array(shape) - 1) * spacing_mm
    affine[:3, 3] = middle - reach / 2
    protocol = dict(jax.jit(scan_plan.protocol)(jax.random.fold_in(key, 1), person))
    protocol["lower"] = jnp.asarray(affine[:3, 3], jnp.float32)
    protocol["upper"] = protocol["lower"] + jnp.asarray(reach, jnp.float32)
    return person, affine, protocol


FINER = 4  # each voxel of a large scan is repeated so often along each axis


def coarse_and_fine(shape, spacing_mm):
    """Return one scan twice: with voxels FINER times larger, to warm up with, and as asked.

    The fine scan repeats the voxels of the coarse one, since drawing all of them takes minutes.
    """
    small = tuple(n // FINER for n in shape)
    person, affine, protocol = spine(small, FINER * spacing_mm)
    hu, _ = acquisition.render_volume(person, small, affine, 0.6, protocol=protocol)
    hu = np.clip(acquisition.scanned(hu, affine, person, protocol), -1024, 3071).astype(np.int16)
    affine = geometry.LPS_TO_RAS @ affine
    large = np.empty([n for side in small for n in (side, FINER)], np.int16)
    large[...] = hu[:, None, :, None, :, None]
    fine = affine @ np.diag([1 / FINER, 1 / FINER, 1 / FINER, 1.0])
    return Volume(hu, affine), Volume(large.reshape([FINER * n for n in small]), fine)
