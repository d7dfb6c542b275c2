"""The plain 2D U-Net of paper A's Table 11 (Kim et al., 2020): 1,941,105 parameters.

The count holds with 3 input channels and 1 output; the tests list it layer by layer.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.models.layers import (
    Logits,
    Network,
    Norm,
    Normed,
    NormKind,
    Rate,
    SpatialDropout,
    Upsample,
    conv2d,
    max_pool,
    normed,
    rematerialised,
)


class UNetLevel(Normed):
    """Twice 3x3 convolution with bias (none before a norm), norm, ReLU."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, width)`."""
        for index in (1, 2):
            x = conv2d(
                x,
                self.width,
                3,
                use_bias=self.norm == "none",
                dtype=self.dtype,
                train=train,
                name=f"conv{index}",
            )
            x = Norm(**normed(self), name=f"norm{index}")(x, train=train)
            x = nn.relu(x)
        return x


class UNet(Network):
    """U-Net over slices: 2x2 max pooling, 2x2 transposed convolutions, concatenated skips.

    Attributes:
        widths: channels of each level.
        in_channels: a grey slice is repeated to this many channels. The published count needs 3,
            so Kim et al. evidently did the same.
        norm: norm after each convolution; the published network has none.
        dropout: dropout rate of whole channels, after each decoder level.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    in_channels: int = 1
    norm: NormKind = "none"
    dropout: Rate = 0.0

    @property
    def stride(self) -> int:
        """Sides of the input must be multiples of this."""
        return 2 ** (len(self.widths) - 1)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of slices `x` (b, h, w, c)."""
        self.check_input(x.shape)
        if x.shape[-1] == 1 and self.in_channels > 1:
            x = jnp.repeat(x, self.in_channels, axis=-1)
        block = rematerialised(UNetLevel, self, train=2)
        common = normed(self)

        out: dict[str, jax.Array] = {}
        x = x.astype(self.dtype)
        skips = []
        for level, width in enumerate(self.widths):
            if level:
                skips.append(x)
                x = max_pool(x)
            x = block(width, **common, name=f"encoder{level + 1}")(x, train)
            out[f"encoder{level + 1}"] = x
        for level in reversed(range(len(skips))):
            x = Upsample(self.widths[level], self.dtype, name=f"up{level + 1}")(x)
            x = jnp.concatenate([skips[level], x], axis=-1)
            x = block(self.widths[level], **common, name=f"decoder{level + 1}")(x, train)
            if self.dropout:
                x = SpatialDropout(self.dropout, name=f"dropout{level + 1}")(x, train=train)
            out[f"decoder{level + 1}"] = x
        return Logits(self.out_channels, name="logits")(x), out
