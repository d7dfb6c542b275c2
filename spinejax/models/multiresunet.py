"""MultiResUNet (Ibtehaz and Rahman, Neural Networks 121, 2020), a network of paper B's Table 3.

Published: the blocks, the paths, their widths, and batch norm after every convolution but the
transposed ones. With 3 channels in and 1 out the network has 7,262,750 numbers, as published:
7,238,228 parameters and 24,522 running statistics. Paper B names no variant, so this is the one.

Chosen here: first weights (He normal), epsilon and momentum of the batch norms, as in the other
networks of this package.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.models.layers import (
    Dtype,
    Network,
    Upsample,
    conv2d,
    max_pool,
    rematerialised,
)

ALPHA = 1.67  # makes the network about as large as a U-Net of the same widths
SHARES = (0.167, 0.333, 0.5)  # of ALPHA times the width, for the convolutions of a block


def block_widths(width: int) -> tuple[int, ...]:
    """Return the channels of the three convolutions of a MultiRes block; none is below 1."""
    return tuple(max(1, int(share * ALPHA * width)) for share in SHARES)


class Block(nn.Module, kw_only=True):
    """Base class of the blocks.

    Attributes:
        axis_name: device axis over which batch norm shares its statistics.
        dtype: of computation.
    """

    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    def norm(self, x: jax.Array, train: bool, name: str, *, scale: bool = True) -> jax.Array:
        """Return the batch norm of `(b, h, w, c)`, with a learned offset, and a scale if `scale`.

        `Norm` always has a scale; after a convolution this network has none.
        """
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            use_scale=scale,
            axis_name=self.axis_name,
            dtype=self.dtype,
            name=name,
        )(x)

    def conv(self, x: jax.Array, width: int, kernel: int, train: bool, name: str) -> jax.Array:
        """Return a convolution without bias and its batch norm, which has no scale."""
        x = conv2d(
            x, width, kernel, use_bias=False, dtype=self.dtype, train=train, name=f"{name}_conv"
        )
        return self.norm(x, train, f"{name}_norm", scale=False)


class MultiResBlock(Block):
    """Three 3x3 convolutions in a chain, whose outputs are concatenated, and a 1x1 shortcut.

    Each convolution sees further: together they see what 3x3, 5x5 and 7x7 convolutions see.
    """

    width: int  # of a U-Net's level; the output has `sum(block_widths(width))` channels

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, sum(block_widths(width)))`."""
        widths = block_widths(self.width)
        shortcut = self.conv(x, sum(widths), 1, train, "shortcut")
        parts = []
        for index, width in enumerate(widths, 1):
            x = nn.relu(self.conv(x, width, 3, train, f"step{index}"))
            parts.append(x)
        x = self.norm(jnp.concatenate(parts, axis=-1), train, "norm1")
        return self.norm(nn.relu(x + shortcut), train, "norm2")


class ResPath(Block):
    """The way of a skip: `length` 3x3 convolutions, each with a 1x1 shortcut."""

    width: int
    length: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, width)`."""
        for index in range(1, self.length + 1):
            shortcut = self.conv(x, self.width, 1, train, f"shortcut{index}")
            x = nn.relu(self.conv(x, self.width, 3, train, f"step{index}"))
            x = self.norm(nn.relu(x + shortcut), train, f"norm{index}")
        return x


class Head(Block):
    """1x1 convolution to logits and its batch norm, in float32."""

    out_channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to float32 `(b, h, w, out_channels)`."""
        return self.conv(x, self.out_channels, 1, train, "logits")


class MultiResUNet(Network):
    """U-Net over slices of MultiRes blocks, with residual paths on its skips.

    The path of the first level has as many steps as there are skips, that of the next one fewer,
    and so on. Even the logits have a batch norm, so training needs batches of several slices.

    Attributes:
        widths: of the levels of a U-Net of about the same size; a block of width U has
            int(0.167 W) + int(0.333 W) + int(0.5 W) channels, W = 1.67 U.
        in_channels: a grey slice is repeated to this many channels. The published count needs 3.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    in_channels: int = 1

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
        block = rematerialised(MultiResBlock, self, train=2)
        path = rematerialised(ResPath, self, train=2)
        common: dict[str, Any] = dict(axis_name=self.axis_name, dtype=self.dtype)

        out: dict[str, jax.Array] = {}
        x = x.astype(self.dtype)
        skips: list[jax.Array] = []
        for level, width in enumerate(self.widths, 1):
            if level > 1:
                name, length = f"path{level - 1}", len(self.widths) - (level - 1)
                skip = path(self.widths[level - 2], length, **common, name=name)(x, train)
                out[name] = skip
                skips.append(skip)
                x = max_pool(x)
            x = block(width, **common, name=f"encoder{level}")(x, train)
            out[f"encoder{level}"] = x
        for level in reversed(range(1, len(self.widths))):
            width = self.widths[level - 1]
            x = Upsample(width, self.dtype, name=f"up{level}")(x)
            x = jnp.concatenate([x, skips[level - 1]], axis=-1)
            x = block(width, **common, name=f"decoder{level}")(x, train)
            out[f"decoder{level}"] = x
        return Head(self.out_channels, axis_name=self.axis_name, name="head")(x, train), out
