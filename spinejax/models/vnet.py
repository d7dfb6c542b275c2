"""V-Net (Milletari, Navab and Ahmadi, 3DV 2016), the network of a row of paper A's Table 11.

65,171,858 parameters with one input channel, two outputs and without the slopes of the PReLUs (one
for each channel).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.labels import NUM_CLASSES
from spinejax.models.layers import (
    Conv3D,
    Depth,
    Downsample3D,
    Logits,
    Network,
    Norm,
    Normed,
    NormKind,
    Rate,
    SpatialDropout,
    Upsample,
    normed,
    rematerialised,
)

KERNEL = 5  # side of the convolutions, section 2


class PReLU(nn.Module):
    """ReLU that keeps a learned share of negative values, one share per channel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `(b, x, y, z, c)`."""
        slope = self.param("slope", nn.initializers.constant(0.25), x.shape[-1:])
        return jnp.where(x >= 0, x, slope.astype(x.dtype) * x)


class Stage(Normed):
    """`depth` convolutions; the stage's input is added before the last PReLU.

    The first stage has more channels than the cube; the channels of the cube are repeated.
    """

    width: int
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, x, y, z, c)`, c at most `width`, to `(b, x, y, z, width)`."""
        copies = -(-self.width // x.shape[-1])
        shortcut = jnp.concatenate([x] * copies, axis=-1)[..., : self.width]
        for index in range(1, self.depth + 1):
            bias = self.norm == "none"
            x = Conv3D(self.width, KERNEL, bias, self.dtype, name=f"conv{index}")(x)
            x = Norm(**normed(self), name=f"norm{index}")(x, train=train)
            if index == self.depth:
                x = x + shortcut
            x = PReLU(name=f"prelu{index}")(x)
        return x


class VNet(Network):
    """V-Net over cubes: residual stages of 5x5x5 convolutions, strided convolutions between them.

    A stage on the way up works on the concatenation of skip and upsampled map, twice as wide as the
    stage of the same level on the way down.

    Attributes:
        widths: channels of each stage.
        depths: convolutions of each stage.
        norm: norm after each convolution; the published network has none.
        dropout: dropout rate of whole channels, after each stage on the way up.
    """

    out_channels: int = NUM_CLASSES
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    depths: tuple[Depth, ...] = (1, 2, 3, 3, 3)
    norm: NormKind = "none"
    dropout: Rate = 0.0

    SEES = "cubes"
    PER_STAGE = ("widths", "depths")

    @property
    def stride(self) -> int:
        """Sides of the input must be multiples of this."""
        return 2 ** (len(self.widths) - 1)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of cubes `x` (b, x, y, z, c)."""
        self.check_input(x.shape)
        stage = rematerialised(Stage, self, train=2)
        common = normed(self)
        bias = self.norm == "none"

        def activate(x: jax.Array, name: str) -> jax.Array:
            norm = Norm(**common, name=f"{name}_norm")
            return PReLU(name=f"{name}_prelu")(norm(x, train=train))

        out: dict[str, jax.Array] = {}
        x = x.astype(self.dtype)
        skips = []
        for level, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True), 1):
            if level > 1:
                skips.append(x)
                name = f"down{level}"
                x = activate(Downsample3D(width, bias, self.dtype, name=name)(x), name)
            x = stage(width, depth, **common, name=f"encoder{level}")(x, train)
            out[f"encoder{level}"] = x
        for level in reversed(range(1, len(self.widths))):
            width, depth = self.widths[level - 1], self.depths[level - 1]
            name = f"up{level}"
            x = activate(Upsample(width, self.dtype, bias, name=name)(x), name)
            x = jnp.concatenate([x, skips[level - 1]], axis=-1)
            x = stage(2 * width, depth, **common, name=f"decoder{level}")(x, train)
            x = SpatialDropout(self.dropout, name=f"dropout{level}")(x, train=train)
            out[f"decoder{level}"] = x
        return Logits(self.out_channels, name="logits")(x), out
