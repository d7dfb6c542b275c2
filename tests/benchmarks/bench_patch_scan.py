"""Classifying every pixel of a slice by the patch around it: without cutting patches, and with.

OP-convNet of table 1 with random weights (time does not depend on them) scans an axial slice of a
phantom's chest, 512 x 512 pixels of 0.7 mm: soft tissue with noise, contrast-filled heart, ribs,
air; preprocessed as paper B does. Batches of patches are timed for a band of rows through the
spine, for several batch sizes, with the package's network and with one of plain Flax layers. The
fastest of them all is the peer.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from spinejax import geometry
from spinejax.data import normalise, preprocess
from spinejax.inference import patch_scan
from spinejax.models.opconvnet import OPConvNet
from spinejax.phantom import anatomy, centroids
from spinejax.phantom.scanner import acquisition
from spinejax.volume import Volume
from tests.benchmarks import timing

SPACING_MM, PATCH = 0.7, 32
BATCHES = (64, 256)
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


def chest_slice(side, how):
    """(side, side) int16, preprocessed: an axial slice through T7."""
    parameters = jax.jit(anatomy)(jax.random.key(2))
    ids, origins = (np.asarray(value) for value in centroids(parameters))
    shape = (side, side, 1)
    affine = np.diag([SPACING_MM, SPACING_MM, 1.0, 1.0])
    affine[:3, 3] = origins[list(ids).index(14)] - [side * SPACING_MM / 2, 240, 0]
    hu, _ = acquisition.render_volume(parameters, shape, affine, 0.5)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(hu.shape[:2]), 0.6)
    image = np.clip(hu + 25.0 * (noise / noise.std())[..., None], -1024, 3071)
    volume = Volume(np.round(image).astype(np.int16), geometry.LPS_TO_RAS @ affine)
    return next(preprocess.preprocess_slabs(volume, how))[1][0]


def rows(toy=False):
    """Return the rows of the table; `toy` sizes only show that all of it runs."""
    side = 64 if toy else 512
    how = preprocess.SlicePreprocess(
        plane="axial", intensity="op_window", clamp_hu=(100.0, 1500.0), mode="native"
    )
    image, stats = chest_slice(side, how), np.zeros(4, np.float32)
    model = OPConvNet()
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, PATCH, PATCH, 1)))

    def scanner(model, batch_size=128, **options):
        return patch_scan.make_slice_logits(
            model,
            variables,
            batch_size=batch_size,
            patch=PATCH,
            to_input=lambda hu, stats: normalise.network_input(hu, "unit", how.range_hu, stats),
            fill_hu=how.fill_hu,
            padding="zero",
            **options,
        )

    block = image[(side - BLOCK) // 2 :, (side - BLOCK) // 2 :][:BLOCK, :BLOCK]
    band = image[(side - BAND) // 2 :][:BAND]
    runs = {
        (network, size): (scanner(network(), size, skip_empty=False, without_patches=False), band)
        for network in (OPConvNet, PlainNet)
        for size in BATCHES
    }
    cut = list(runs)
    runs["without cutting patches"] = scanner(model, skip_empty=False), block
    runs["and empty patches once"] = scanner(model), image
    ours, theirs = (runs[key][0](band, stats) for key in (cut[0], cut[-1]))
    if not np.allclose(ours, theirs, atol=1e-4):
        raise RuntimeError("the two networks differ")
    calls = {key: lambda run=run, part=part: run(part, stats) for key, (run, part) in runs.items()}
    times = timing.interleaved(calls, 1 if toy else 5)
    times = {key: times[key].per(part.size) for key, (_, part) in runs.items()}
    fastest = min((times[key] for key in cut), key=lambda one: np.median(one.wall))
    return [
        timing.versus(f"OP-convNet on a pixel, {name}", times[name], "batches of patches", fastest)
        for name in list(runs)[len(cut) :]
    ]
