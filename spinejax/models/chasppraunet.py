"""CHASPPRAU-Net: the spine segmentation network of paper A, sections 3.2-3.7, figures 1-6.

A U-Net over slices with residual blocks and CHASPP in the encoder and attention in the decoder.
What the paper leaves open is a field; the comment beside each says why the default is what it is.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.errors import check_choice
from spinejax.models.attention import ATTENTIONS, Attention
from spinejax.models.layers import (
    NORMS,
    ConvBlock,
    Dtype,
    Logits,
    SpatialDropout,
    Upsample,
    check_sides,
    max_pool,
)
from spinejax.models.pyramid import PYRAMIDS, Pyramid


class EncoderLevel(nn.Module):
    """Pyramids, then a (residual) block; the caller pools."""

    width: int
    pyramids: int
    residual: bool
    pyramid: dict  # fields of Pyramid but norm, axis_name and dtype
    norm: str
    axis_name: str | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, width)`."""
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        for index in range(self.pyramids):
            x = Pyramid(**self.pyramid, **common, name=f"pyramid{index + 1}")(x, train=train)
        return ConvBlock(self.width, self.residual, **common, name="block")(x, train=train)


class DecoderLevel(nn.Module):
    """Upsample, attend to the skip, concatenate, two convolutions, dropout."""

    width: int
    attention: str
    key_size: int
    dropout: float
    norm: str
    axis_name: str | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Map `(b, h, w, c)` and `(b, 2h, 2w, width)` to the level's output and attended skip."""
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        x = Upsample(self.width, self.dtype, name="up")(x)
        skip = Attention(self.attention, self.key_size, **common, name="attention")(
            skip, x, train=train
        )
        x = jnp.concatenate([skip, x], axis=-1)
        x = ConvBlock(self.width, False, **common, name="block")(x, train=train)
        return SpatialDropout(self.dropout, name="dropout")(x, train=train), skip


class CHASPPRAUNet(nn.Module):
    """CHASPPRAU-Net; see the module docstring.

    `apply(variables, x, train=...)` maps `x` (b, h, w, c) float32 to logits (b, h, w,
    out_channels) float32 and a dict of named intermediates. Training needs `rngs={"dropout":
    key}`, and `mutable=["batch_stats"]` with norm "batch".
    """

    out_channels: int = 1  # 1: binary, to be read through a sigmoid; else softmax
    widths: tuple[int, ...] = (24, 48, 96, 192)  # per level; gives paper A's size, see Table 11
    attention: str = "dot_product"  # the one that equations 1-2 write down
    attention_key_size: int = 16  # largest side of the keys of "dot_product"
    pyramid: str = "chaspp"  # "chaspp" | "aspp" | "none"
    root_rates: tuple[int, ...] = (6,)  # "one root", its rate not given
    branch_rates: tuple[int, ...] = (1, 2, 3)
    stages: int = 2  # cascaded stages in one CHASPP
    mid_div: int = 4  # inside the pyramid the width is divided by this
    chaspp_per_pool: int = 1  # "three CHASPP layers": one after each of three poolings
    residual: bool = True  # residual blocks in the encoder; skips leave from them
    norm: str = "group"  # "group" | "batch" | "none"; not named in the paper
    dropout: float = 0.3  # of whole channels, after each decoder level; the rate of section 4.3.3
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
        """Return logits and intermediates of slices `x` (b, h, w, c)."""
        check_choice("model.attention", self.attention, ATTENTIONS)
        check_choice("model.pyramid", self.pyramid, PYRAMIDS)
        check_choice("model.norm", self.norm, NORMS)
        check_sides(x.shape[1], x.shape[2], self.stride)
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        pyramid: dict[str, Any] = dict(
            kind=self.pyramid,
            root_rates=tuple(self.root_rates),
            branch_rates=tuple(self.branch_rates),
            stages=self.stages,
            mid_div=self.mid_div,
        )
        encoder, decoder = EncoderLevel, DecoderLevel
        if self.remat:
            # Argument 0 is the module itself.
            encoder = nn.remat(EncoderLevel, static_argnums=(2,))
            decoder = nn.remat(DecoderLevel, static_argnums=(3,))

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
