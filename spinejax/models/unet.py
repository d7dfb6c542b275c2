"""The plain 2D U-Net of paper A's Table 11 (Kim et al., 2020): 1,941,105 parameters.

The count holds with 3 input channels and 1 output; the tests list it layer by layer.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.errors import check_choice
from spinejax.models.layers import (
    HE_NORMAL,
    NORMS,
    Dtype,
    Logits,
    Norm,
    SpatialDropout,
    Upsample,
    check_sides,
    max_pool,
)


class UNetLevel(nn.Module):
    """Twice 3x3 convolution with bias (none before a norm), norm, ReLU."""

    width: int
    norm: str = "none"
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, width)`."""
        for index in (1, 2):
            x = nn.Conv(
                self.width,
                (3, 3),
                use_bias=self.norm == "none",
                kernel_init=HE_NORMAL,
                dtype=self.dtype,
                name=f"conv{index}",
            )(x)
            x = Norm(self.norm, self.axis_name, self.dtype, name=f"norm{index}")(x, train=train)
            x = nn.relu(x)
        return x


class UNet(nn.Module):
    """U-Net over slices: 2x2 max pooling, 2x2 transposed convolutions, concatenated skips.

    `apply` is as for CHASPPRAU-Net. `in_channels` > 1 repeats a single input channel, as Kim et
    al. evidently did with grey images, since the published count needs 3.
    """

    out_channels: int = 1  # 1: binary, to be read through a sigmoid; else softmax
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)  # per level
    in_channels: int = 1  # a 1-channel input is repeated to this many
    norm: str = "none"  # "group" | "batch" | "none"; the published network has none
    dropout: float = 0.0  # of whole channels, after each decoder level
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
        check_choice("model.norm", self.norm, NORMS)
        check_sides(x.shape[1], x.shape[2], self.stride)
        if x.shape[-1] == 1 and self.in_channels > 1:
            x = jnp.repeat(x, self.in_channels, axis=-1)
        block = nn.remat(UNetLevel, static_argnums=(2,)) if self.remat else UNetLevel
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)

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
