"""Layers in the form that `spinejax.models.layers` chooses on CPUs, beside flax's own.

Both compute the same, which the tests of the layers show. A gradient is that of a sum of squares,
by the layer's input and by its parameters. These rows say which forms still pay with a new version
of jax.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from spinejax.models import layers
from tests.benchmarks import timing

SAME = dict(padding="SAME", use_bias=False)


def choices():
    """Return name -> (shape of the input, our layer, flax's), with or without a gradient."""
    product = dict(kernel=3, stride=1, padding="same", use_bias=False)
    return {
        "convolution, 1 to 12 channels": (
            (8, 80, 128, 1),
            nn.Conv(12, (3, 3), conv_general_dilated=layers.narrow_on_cpus, **SAME),
            nn.Conv(12, (3, 3), **SAME),
            True,
        ),
        "convolution, 3 to 16 channels": (
            (8, 128, 128, 3),
            layers.ProductConv(16, **product),
            nn.Conv(16, (3, 3), **SAME),
            True,
        ),
        "convolution of maps smaller than its kernel": (
            (64, 2, 2, 256),
            layers.ProductConv(256, **product),
            nn.Conv(256, (3, 3), **SAME),
            True,
        ),
        "convolution, 12 to 12 channels": (
            (8, 80, 128, 12),
            nn.Conv(12, (3, 3), conv_general_dilated=layers.narrow_on_cpus, **SAME),
            nn.Conv(12, (3, 3), **SAME),
            True,
        ),
        "convolution, 32 to 16 channels": (
            (8, 128, 128, 32),
            nn.Conv(16, (3, 3), conv_general_dilated=layers.narrow_on_cpus, **SAME),
            nn.Conv(16, (3, 3), **SAME),
            True,
        ),
        "convolution, 3 to 3 channels, rate 6": (
            (8, 40, 64, 3),
            layers.PlanesConv(3, 3, 6, use_bias=False),
            nn.Conv(3, (3, 3), kernel_dilation=6, **SAME),
            False,  # only outside of training
        ),
        "3D convolution, 64 to 64 channels": (
            (1, 24, 24, 24, 64),
            layers.Conv3D(64, use_bias=False),
            nn.Conv(64, (3, 3, 3), **SAME),
            True,
        ),
        "transposed convolution, 64 to 32 channels": (
            (8, 32, 32, 64),
            layers.Upsample(32),
            nn.ConvTranspose(32, (2, 2), (2, 2)),
            True,
        ),
        "group norm, 12 channels": (
            (8, 80, 128, 12),
            layers.GroupNorm(4),
            nn.GroupNorm(4),
            True,
        ),
        "max pooling": (
            (8, 128, 128, 16),
            layers.max_pool,
            lambda x: nn.max_pool(x, (2, 2), (2, 2)),
            True,
        ),
    }


def calls_of(layer, x):
    """Return the layer's forward pass and its gradient, which wait for their results."""
    if isinstance(layer, nn.Module):
        variables = layer.init(jax.random.key(0), x)
        apply = layer.apply
    else:
        variables = {}

        def apply(_, x):
            return layer(x)

    forward = jax.jit(lambda v, x: nn.relu(apply(v, x)))
    gradient = jax.jit(jax.grad(lambda v, x: jnp.square(apply(v, x)).sum(), argnums=(0, 1)))
    return {
        "forward": lambda: jax.block_until_ready(forward(variables, x)),
        "gradient": lambda: jax.block_until_ready(gradient(variables, x)),
    }


def rows(toy=False):
    """Return the rows of the table; `toy` sizes only show that all of it runs."""
    rng = np.random.default_rng(0)
    found = []
    for name, (shape, ours, theirs, trained) in choices().items():
        if toy:
            shape = (1, *(min(side, 8) for side in shape[1:-1]), shape[-1])
        x = jnp.asarray(rng.normal(size=shape).astype(np.float32))
        both = {"ours": calls_of(ours, x), "flax": calls_of(theirs, x)}
        for work in ("forward", "gradient")[: 1 + trained]:
            calls = {who: one[work] for who, one in both.items()}
            times = timing.interleaved(calls, 1 if toy else 15, warm_up=2)
            text = f"{name}, {' x '.join(map(str, shape[1:-1]))}: {work}"
            found.append(timing.versus(text, times["ours"], "flax", times["flax"]))
    return found
