"""Classifying every pixel of a slice by the patch around it: without cutting patches, and with.

    python tests/benchmarks/bench_patch_scan.py [--rounds 5]

OP-convNet of table 1 with random weights (time does not depend on them) scans an axial slice of a
phantom's chest, 512 x 512 pixels of 0.7 mm: soft tissue with noise, contrast-filled heart, ribs,
air; preprocessed as paper B does. Batches of patches are timed for a band of rows through the
spine, for several batch sizes, with the package's network and with one of plain Flax layers, and
the fastest of them all is the measure. All take turns in each round, so that other load meets them
alike, and the fastest of the rounds is kept.

On a machine that is busy with other work the processor time, printed too, is the fairer measure.
"""

import argparse
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from spinejax.data import normalise, preprocess
from spinejax.inference import patch_scan
from spinejax.models.opconvnet import OPConvNet
from spinejax.phantom import anatomy, centroids
from spinejax.phantom.scanner import acquisition
from spinejax.volume import Volume

SIDE, SPACING_MM, PATCH = 512, 0.7, 32
BATCHES = (32, 64, 128, 256)
BAND = 2  # rows of the slice that batches of patches are timed for
BLOCK = 128  # side of the square that the scan without skipping is timed for: its tiles are alike


class PlainNet(nn.Module):
    """The network of table 1, with the same parameters, from Flax's own layers."""

    @nn.compact
    def __call__(self, x, *, train=False):
        for index, (width, stride, pool, pool_stride) in enumerate(
            ((64, 2, 3, 2), (128, 1, 3, 1), (256, 1, 2, 1)), 1
        ):
            padding = "SAME" if index == 3 else "VALID"
            conv = nn.Conv(width, (3, 3), stride, padding=padding, name=f"conv_{index}")
            x = nn.max_pool(nn.relu(conv(x)), (pool, pool), (pool_stride, pool_stride))
        x = x.reshape(len(x), -1)
        x = nn.relu(nn.Dense(1024, name="fc_1")(x))
        x = nn.relu(nn.Dense(256, name="fc_2")(x))
        return nn.Dense(2, name="fc_3")(x), {}


def chest_slice(how):
    """(SIDE, SIDE) int16, preprocessed: an axial slice through T7."""
    parameters = jax.jit(anatomy)(jax.random.key(2))
    ids, origins = (np.asarray(value) for value in centroids(parameters))
    shape = (SIDE, SIDE, 1)
    affine = np.diag([SPACING_MM, SPACING_MM, 1.0, 1.0])
    affine[:3, 3] = origins[list(ids).index(14)] - [SIDE * SPACING_MM / 2, 240, 0]
    hu, _ = acquisition.render_volume(parameters, shape, affine, 0.5)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(hu.shape[:2]), 0.6)
    image = np.clip(hu + 25.0 * (noise / noise.std())[..., None], -1024, 3071)
    volume = Volume(np.round(image).astype(np.int16), acquisition.LPS_TO_RAS @ affine)
    return next(preprocess.preprocess_slabs(volume, how))[1][0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="the fastest of so many is printed")
    options = parser.parse_args()
    how = preprocess.SlicePreprocess(
        plane="axial", intensity="op_window", clamp_hu=(100.0, 1500.0), mode="native"
    )
    image = chest_slice(how)
    model = OPConvNet()
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, PATCH, PATCH, 1)))
    common = dict(
        patch=PATCH,
        to_input=lambda hu, stats: normalise.network_input(hu, "unit", how.range_hu, stats),
        fill_hu=how.fill_hu,
        padding="zero",
    )

    def scanner(model, batch_size=128, **options):
        return patch_scan.make_slice_logits(
            model, variables, batch_size=batch_size, **common, **options
        )

    block = image[(SIDE - BLOCK) // 2 :, (SIDE - BLOCK) // 2 :][:BLOCK, :BLOCK]
    band = image[(SIDE - BAND) // 2 :][:BAND]
    runs = {
        f"batches of {size} patches, {name}": (
            scanner(network, size, skip_empty=False, without_patches=False),
            band,
        )
        for name, network in (("spinejax", model), ("plain Flax", PlainNet()))
        for size in BATCHES
    }
    peers = list(runs)
    runs["without cutting patches"] = scanner(model, skip_empty=False), block
    runs["and empty patches once"] = scanner(model), image
    stats = np.zeros(4, np.float32)
    ours, theirs = (runs[name][0](band, stats) for name in (peers[0], peers[-1]))
    if not np.allclose(ours, theirs, atol=1e-4):
        raise RuntimeError("the two networks differ")
    seconds = {name: np.full(2, np.inf) for name in runs}
    for index in range(options.rounds + 1):
        for name, (run, part) in runs.items():
            start = np.array([time.perf_counter(), time.process_time()])
            run(part, stats)
            if index:  # the first compiles
                spent = np.array([time.perf_counter(), time.process_time()]) - start
                seconds[name] = np.minimum(seconds[name], spent)
    rates = {name: part.size / seconds[name] for name, (_, part) in runs.items()}
    best = np.max([rates[name] for name in peers], axis=0)
    padded = patch_scan.pad_slice(image, PATCH, how.fill_hu, "zero")
    empty = 1 - patch_scan.patches_with_content(padded, PATCH, how.fill_hu).mean()
    kind = jax.local_devices()[0].device_kind
    print(f"OP-convNet, slice of {SIDE} x {SIDE}, {empty:.0%} of its patches empty, on {kind}")
    for name, (wall, processor) in rates.items():
        print(
            f"{name}: {wall:,.0f} patches/s, {wall / best[0]:.1f} x the fastest batches "
            f"(of processor time {processor:,.0f}/s, {processor / best[1]:.1f} x)"
        )


if __name__ == "__main__":
    main()
