"""V-Net (Milletari, Navab and Ahmadi, 3DV 2016), the network of a row of paper A's Table 11.

65,171,858 parameters with one input channel, two outputs and without the slopes of the PReLUs, of
which each channel has one of its own.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.errors import check_choice
from spinejax.labels import NUM_CLASSES
from spinejax.models.layers import (
    NORMS,
    Conv3D,
    Downsample3D,
    Dtype,
    Logits,
    Norm,
    SpatialDropout,
    Upsample,
    check_cube,
)

KERNEL = 5  # side of the convolutions, section 2


class PReLU(nn.Module):
    """ReLU that keeps a learned share of negative values, one share per channel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `(b, x, y, z, c)`."""
        slope = self.param("slope", nn.initializers.constant(0.25), x.shape[-1:])
        return jnp.where(x >= 0, x, slope.astype(x.dtype) * x)


class Stage(nn.Module):
    """`depth` convolutions; the stage's input is added to the last before its PReLU.

    The first stage has more channels than the cube: the cube's are repeated.
    """

    width: int
    depth: int
    norm: str
    axis_name: str | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, x, y, z, c)`, c at most `width`, to `(b, x, y, z, width)`."""
        copies = -(-self.width // x.shape[-1])
        shortcut = jnp.concatenate([x] * copies, axis=-1)[..., : self.width]
        for index in range(1, self.depth + 1):
            bias = self.norm == "none"
            x = Conv3D(self.width, KERNEL, bias, self.dtype, name=f"conv{index}")(x)
            x = Norm(self.norm, self.axis_name, self.dtype, name=f"norm{index}")(x, train=train)
            if index == self.depth:
                x = x + shortcut
            x = PReLU(name=f"prelu{index}")(x)
        return x


class VNet(nn.Module):
    """V-Net over cubes: residual stages of 5x5x5 convolutions, strided ones between them.

    `apply` is as for the 3D U-Net. On the way up a stage works on the concatenation of skip and
    upsampled map, twice as wide as the stage beside it.
    """

    out_channels: int = NUM_CLASSES  # to be read through a softmax; 1: binary, through a sigmoid
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)  # channels of each stage
    depths: tuple[int, ...] = (1, 2, 3, 3, 3)  # convolutions of each stage
    norm: str = "none"  # "group" | "batch" | "none"; the published network has none
    dropout: float = 0.0  # of whole channels, after each stage on the way up
    axis_name: str | None = None  # device axis over which norm "batch" is synchronised
    dtype: Dtype = jnp.float32  # of computation; parameters and logits are float32
    remat: bool = False  # compute each stage again in the backward pass: less memory

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
        check_choice("model.norm", self.norm, NORMS)
        check_cube(x, self.stride)
        stage = nn.remat(Stage, static_argnums=(2,)) if self.remat else Stage
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        bias = self.norm == "none"

        def activate(x: jax.Array, name: str) -> jax.Array:
            norm = Norm(self.norm, self.axis_name, self.dtype, name=f"{name}_norm")
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
