"""The 3D U-Net of Cicek et al. (MICCAI 2016), a row of paper A's Table 11: 19,069,955 parameters.

That count holds with 3 input channels, 3 outputs and norm "none": the published count includes the
biases of the convolutions, which a batch norm follows there, and leaves out the norm's own
parameters. Here a norm replaces the biases.

Cicek et al. use no padding and crop the skips. Here the maps keep their sides, so that a cube's
logits cover the cube.

With `fold` n the network reads blocks of n x n x n voxels as one voxel of more channels, and writes
the logits of a block likewise: it outlines fine voxels at the price of coarse ones.
"""

from typing import Annotated

import flax.linen as nn
import jax

from spinejax.labels import NUM_CLASSES
from spinejax.models.layers import (
    ConvNorm3D,
    ExpandingLevel,
    Logits,
    Network,
    Normed,
    NormKind,
    Rate,
    folded,
    max_pool,
    normed,
    rematerialised,
)
from spinejax.schema import Whole


class AnalysisLevel(Normed):
    """Two 3x3x3 convolutions; the first gives half the width, "to avoid bottlenecks"."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, x, y, z, c)` to `(b, x, y, z, width)`."""
        common = normed(self)
        x = ConvNorm3D(max(1, self.width // 2), **common, name="conv1")(x, train=train)
        return ConvNorm3D(self.width, **common, name="conv2")(x, train=train)


class UNet3D(Network):
    """3D U-Net over cubes (b, x, y, z, c).

    Attributes:
        widths: channels out of each level.
        norm: norm after each convolution; the published network has "batch".
        dropout: dropout rate of whole channels, after each level of the expanding path.
        fold: side of the blocks of voxels that are folded into channels; 1 as published.
    """

    out_channels: int = NUM_CLASSES
    widths: tuple[int, ...] = (64, 128, 256, 512)
    norm: NormKind = "group"
    dropout: Rate = 0.0
    fold: Annotated[int, Whole(1, 4)] = 1

    SEES = "cubes"

    @property
    def stride(self) -> int:
        """Sides of the input must be multiples of this."""
        return self.fold * 2 ** (len(self.widths) - 1)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of cubes `x` (b, x, y, z, c)."""
        self.check_input(x.shape)
        common = normed(self)
        down = rematerialised(AnalysisLevel, self, train=2)
        up = rematerialised(ExpandingLevel, self, train=3)

        out: dict[str, jax.Array] = {}
        x = folded(x.astype(self.dtype), self.fold)
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
        return Logits(self.out_channels, self.fold, name="logits")(x), out
