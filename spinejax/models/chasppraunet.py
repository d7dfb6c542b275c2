"""CHASPPRAU-Net: the spine segmentation network of paper A, sections 3.2-3.7, figures 1-6.

A U-Net over slices with residual blocks and CHASPP in the encoder and attention in the decoder.
Where the paper leaves a choice open there is a field.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.models.attention import Attention, AttentionKind
from spinejax.models.layers import (
    ConvBlock,
    Depth,
    Logits,
    Network,
    Normed,
    NormKind,
    Rate,
    SpatialDropout,
    Upsample,
    max_pool,
    normed,
    rematerialised,
)
from spinejax.models.pyramid import Pyramid, PyramidKind


class EncoderLevel(Normed):
    """Pyramids, then a (residual) block; the caller pools."""

    width: int
    pyramids: int
    residual: bool
    pyramid: dict[str, Any]  # fields of Pyramid, without those of Normed

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, width)`."""
        common = normed(self)
        for index in range(self.pyramids):
            x = Pyramid(**self.pyramid, **common, name=f"pyramid{index + 1}")(x, train=train)
        return ConvBlock(self.width, self.residual, **common, name="block")(x, train=train)


class DecoderLevel(Normed):
    """Upsample, attend to the skip, concatenate, two convolutions, dropout."""

    width: int
    attention: str
    key_size: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Map `(b, h, w, c)` and `(b, 2h, 2w, width)` to the level's output and attended skip."""
        common = normed(self)
        x = Upsample(self.width, self.dtype, name="up")(x)
        skip = Attention(self.attention, self.key_size, **common, name="attention")(
            skip, x, train=train
        )
        x = jnp.concatenate([skip, x], axis=-1)
        x = ConvBlock(self.width, False, **common, name="block")(x, train=train)
        return SpatialDropout(self.dropout, name="dropout")(x, train=train), skip


class CHASPPRAUNet(Network):
    """CHASPPRAU-Net over slices (b, h, w, c).

    Attributes:
        widths: channels of each level; the default gives paper A's size, see Table 11.
        attention: attention on the skips; equations 1-2 describe "dot_product".
        attention_key_size: largest side in pixels of the keys and values of "dot_product"; 32
            doubles the time of a step on a CPU.
        pyramid: pyramid of dilated convolutions after each pooling.
        root_rates: dilations of the root convolutions; the paper says "one root", not its rate.
        branch_rates: dilations of the branch convolutions.
        stages: cascaded stages of a CHASPP.
        mid_div: divisor of the width within the pyramid.
        chaspp_per_pool: number of pyramids after each pooling; the paper's "three CHASPP layers"
            are one after each of three poolings.
        residual: residual blocks in the encoder; the skips start from them.
        norm: norm after each convolution; the paper does not name it.
        dropout: dropout rate of whole channels, after each decoder level, section 4.3.3.
    """

    widths: tuple[int, ...] = (24, 48, 96, 192)
    attention: AttentionKind = "dot_product"
    attention_key_size: int = 16
    pyramid: PyramidKind = "chaspp"
    root_rates: tuple[int, ...] = (6,)
    branch_rates: tuple[int, ...] = (1, 2, 3)
    stages: Depth = 2
    mid_div: int = 4
    chaspp_per_pool: Depth = 1
    residual: bool = True
    norm: NormKind = "group"
    dropout: Rate = 0.3

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
        common = normed(self)
        pyramid: dict[str, Any] = dict(
            kind=self.pyramid,
            root_rates=tuple(self.root_rates),
            branch_rates=tuple(self.branch_rates),
            stages=self.stages,
            mid_div=self.mid_div,
        )
        encoder = rematerialised(EncoderLevel, self, train=2)
        decoder = rematerialised(DecoderLevel, self, train=3)

        out: dict[str, jax.Array] = {}
        x = x.astype(self.dtype)
        skips = []
        for level, width in enumerate(self.widths):
            if level:
                skips.append(x)
                x = max_pool(x)
            x = encoder(
                width=width,
                pyramids=self.chaspp_per_pool if level else 0,
                residual=self.residual,
                pyramid=pyramid,
                **common,
                name=f"encoder{level + 1}",
            )(x, train)
            out[f"encoder{level + 1}"] = x
        for level in reversed(range(len(skips))):
            x, attended = decoder(
                width=self.widths[level],
                attention=self.attention,
                key_size=self.attention_key_size,
                dropout=self.dropout,
                **common,
                name=f"decoder{level + 1}",
            )(x, skips[level], train)
            out[f"attention{level + 1}"] = attended
            out[f"decoder{level + 1}"] = x
        return Logits(self.out_channels, name="logits")(x), out
