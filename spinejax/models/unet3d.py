"""The 3D U-Net of Cicek et al. (MICCAI 2016), a row of paper A's Table 11: 19,069,955 parameters.

That count holds with 3 input channels, 3 outputs and norm "none": the published one counts the
biases of the convolutions, which stand before a batch norm there, and not the norm's own
parameters. Here a norm replaces the biases.

Cicek et al. use no padding and crop the skips; here the maps keep their sides, so that a cube's
logits cover the cube.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.errors import check_choice
from spinejax.labels import NUM_CLASSES
from spinejax.models.layers import (
    NORMS,
    ConvNorm3D,
    Dtype,
    ExpandingLevel,
    Logits,
    check_cube,
    max_pool,
)


class AnalysisLevel(nn.Module):
    """Two 3x3x3 convolutions; the first gives half the width, "to avoid bottlenecks"."""

    width: int
    norm: str
    axis_name: str | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, x, y, z, c)` to `(b, x, y, z, width)`."""
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        x = ConvNorm3D(max(1, self.width // 2), **common, name="conv1")(x, train=train)
        return ConvNorm3D(self.width, **common, name="conv2")(x, train=train)


class UNet3D(nn.Module):
    """3D U-Net over cubes; see the module docstring.

    `apply(variables, x, train=...)` maps `x` (b, x, y, z, c) float32 to logits (b, x, y, z,
    out_channels) float32 and a dict of named intermediates. Training needs `rngs={"dropout":
    key}` where dropout is on, and `mutable=["batch_stats"]` with norm "batch".
    """

    out_channels: int = NUM_CLASSES  # to be read through a softmax; 1: binary, through a sigmoid
    widths: tuple[int, ...] = (64, 128, 256, 512)  # channels out of each level
    norm: str = "group"  # "group" | "batch", as published | "none"
    dropout: float = 0.0  # of whole channels, after each level of the expanding path
    axis_name: str | None = None  # device axis over which norm "batch" is synchronised
    dtype: Dtype = jnp.float32  # of computation; parameters and logits are float32
    remat: bool = False  # compute each level again in the backward pass: less memory

    @property
    def stride(self) -> int:
        """Sides of the input must be multiples of this."""
        return 2 ** (len(self.widths) - 1)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of cubes `x` (b, x, y, z, c)."""
        check_choice("model.norm", self.norm, NORMS)
        check_cube(x, self.stride)
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        down, up = AnalysisLevel, ExpandingLevel
        if self.remat:
            # Argument 0 is the module itself.
            down = nn.remat(AnalysisLevel, static_argnums=(2,))
            up = nn.remat(ExpandingLevel, static_argnums=(3,))

        out: dict[str, jax.Array] = {}
        x = x.astype(self.dtype)
        skips = []
        for level, width in enumerate(self.widths):
            if level:
                skips.append(x)
                x = max_pool(x)
            x = down(width, **common, name=f"encoder{level + 1}")(x, train)
            out[f"encoder{level + 1}"] = x
        for level in reversed(range(len(skips))):
            x = up(
                width=self.widths[level],
                up_width=x.shape[-1],
                up_bias=False,  # the published count has none
                dropout=self.dropout,
                **common,
                name=f"decoder{level + 1}",
            )(x, skips[level], train)
            out[f"decoder{level + 1}"] = x
        return Logits(self.out_channels, name="logits")(x), out
