"""Building blocks of networks over cubes: convolution, strided convolution, the expanding path.

Arrays are `(b, x, y, z, c)`. Norms, pooling, upsampling, dropout and logits are those of `layers`.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.errors import InputError
from spinejax.models.layers import HE_NORMAL, Dtype, Norm, SpatialDropout, Upsample


def check_cube(x: jax.Array, stride: int) -> None:
    """Raise InputError unless `x` is (b, x, y, z, c) with sides that are multiples of `stride`."""
    if x.ndim != 5:
        raise InputError(
            f"a network of cubes needs arrays (b, x, y, z, c), not one of shape {x.shape}; choose "
            "another task, or a network of slices (config field model.name)"
        )
    sides: Sequence[int] = x.shape[1:4]
    if any(side % stride or not side for side in sides):
        up = tuple(max(1, math.ceil(side / stride)) * stride for side in sides)
        raise InputError(
            f"cube sides {tuple(sides)} must be multiples of the network's stride {stride}; use "
            f"for example {up} (config field data.cube.size)"
        )


class Conv3D(nn.Module):
    """3D convolution at stride 1 with zeros around, written as one 2D convolution.

    The function and the parameters are those of `nn.Conv` with padding "SAME". Each plane of x is
    laid beside its neighbours along that axis, as channels, for XLA has fast 2D convolutions on
    CPUs and slow 3D ones. Milliseconds of CPU time of one 3x3x3 layer, forward and with its
    gradient (2 busy cores, jax 0.10.2):

        cube, channels          48^3, 17 to 16   24^3, 64 to 64   12^3, 144 to 96
        nn.Conv                     302 / 900        113 / 387          36 / 148
        3 convolutions, summed       44 / 131         33 / 109          14 /  47
        this                         39 / 134         35 / 104          15 /  45

    In a chain of four layers, this took 0.65 to 0.95 of the sum's time and 0.8 of its memory.
    """

    width: int  # channels out
    kernel: int = 3  # side in taps, odd
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `(b, x, y, z, c)` to `(b, x, y, z, width)`."""
        b, depth, height, width, c = x.shape
        n = self.kernel
        kernel = self.param("kernel", HE_NORMAL, (n, n, n, c, self.width))
        x, weights = x.astype(self.dtype), kernel.astype(self.dtype)

        x = jnp.pad(x, ((0, 0), (n // 2, n // 2), (0, 0), (0, 0), (0, 0)))
        x = jnp.concatenate([x[:, tap : tap + depth] for tap in range(n)], axis=-1)
        x = jax.lax.conv_general_dilated(
            x.reshape(b * depth, height, width, n * c),
            # (x, y, z, in, out) -> (y, z, (x, in), out)
            weights.transpose(1, 2, 0, 3, 4).reshape(n, n, n * c, self.width),
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.width,))
            x = x + bias.astype(self.dtype)
        return x.reshape(b, depth, height, width, self.width)


class ConvNorm3D(nn.Module):
    """3D convolution and norm, then ReLU; a bias only where no norm follows."""

    width: int  # channels out
    norm: str = "group"
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(b, x, y, z, c)` to `(b, x, y, z, width)`."""
        bias = self.norm == "none"
        x = Conv3D(self.width, use_bias=bias, dtype=self.dtype, name="conv")(x)
        return nn.relu(Norm(self.norm, self.axis_name, self.dtype, name="norm")(x, train=train))


class Downsample3D(nn.Module):
    """2x2x2 convolution with stride 2, as a reshape and a dense layer: `Upsample` turned round."""

    width: int
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `(b, 2x, 2y, 2z, c)` to `(b, x, y, z, width)`."""
        b, *sides, c = x.shape
        halves = [side // 2 for side in sides]
        x = x.reshape(b, halves[0], 2, halves[1], 2, halves[2], 2, c)
        x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, *halves, 8 * c)
        dense = nn.Dense(
            self.width,
            use_bias=self.use_bias,
            kernel_init=HE_NORMAL,
            dtype=self.dtype,
            name="conv",
        )
        return dense(x)


class ExpandingLevel(nn.Module):
    """One level up the expanding path of the 3D U-Net: upsample, concatenate, convolve twice.

    Cicek et al., MICCAI 2016, section 2; dropout of whole channels follows where it is asked for.
    """

    width: int  # channels out
    up_width: int  # channels of the upsampled map
    up_bias: bool
    dropout: float
    norm: str
    axis_name: str | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array, train: bool) -> jax.Array:
        """Map `(b, x, y, z, c)` and the skip `(b, 2x, 2y, 2z, s)` to `(b, 2x, 2y, 2z, width)`."""
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        x = Upsample(self.up_width, self.dtype, self.up_bias, name="up")(x)
        x = jnp.concatenate([skip, x], axis=-1)
        for index in (1, 2):
            x = ConvNorm3D(self.width, **common, name=f"conv{index}")(x, train=train)
        return SpatialDropout(self.dropout, name="dropout")(x, train=train)
