"""MobileNetV2 (Sandler et al., CVPR 2018): inverted residuals and linear bottlenecks.

The encoder of paper A's 3D MRU-Net (sections 3.1 and 3.8). Paper A's Table 1 is Sandler et al.'s
Table 2 with slips: its first convolution is listed as two (n = 2), the stride is headed "a", the
last convolution of 1280 channels is missing, and of its 17 bottlenecks the text makes 19.

With 3 channels and norm "batch" the standard network has 1,824, 15,792, 55,488, 239,360, 542,528,
1,337,792 and 1,811,712 parameters up to the end of each stage, 2,223,872 with the last convolution
and 3,504,872 with 1000 classes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.errors import InputError, check_choice
from spinejax.models.layers import HE_NORMAL, NORMS, ConvBlock, ConvNorm, Dtype, Norm

# Of the standard network, Sandler et al., Table 2.
STEM_WIDTH = 32
WIDTHS = (16, 24, 32, 64, 96, 160, 320)
DEPTHS = (1, 2, 3, 4, 3, 3, 1)
EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
STRIDES = (1, 2, 2, 2, 1, 2, 1)

DEPTHWISE = "depthwise"  # the name below


def scale_width(width: int, multiplier: float) -> int:
    """Return `multiplier` times `width`, rounded to a multiple of 8 but never below 90 % of it.

    The rounding of Sandler et al.'s own code; 8 at least.
    """
    scaled = multiplier * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def stage_strides(strides: Sequence[int]) -> tuple[int, ...]:
    """Return the stride of each stage's map to the image; the stem halves the sides before them.

    Raises:
        InputError: a stage's own stride is neither 1 nor 2.
    """
    if not set(strides) <= {1, 2}:
        raise InputError(f"model.strides = {tuple(strides)} must be 1 or 2 for each stage")
    total, found = 2, []
    for stride in strides:
        total *= stride
        found.append(total)
    return tuple(found)


class DepthwiseConv(nn.Module):
    """3x3 convolution of each channel by itself, written as nine shifted multiply-adds.

    The function and the parameters are those of `nn.Conv` with as many groups as channels, for
    which XLA has no fast code on CPUs. Milliseconds of CPU time, forward and with its gradient (2
    busy cores, jax 0.10.2):

        slices, channels       48 x 48^2, 16   48 x 24^2, 48   the same, stride 2   96 x 6^2, 192
        nn.Conv, grouped            95 / 193        35 /  95             10 / 136         18 / 71
        this                       1.4 /  52       1.0 /  38            1.3 /  10        0.7 /  9

    A gradient written by hand was hardly faster: most of it is the sums over pixels for the kernel.
    """

    stride: int = 1
    use_bias: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `(..., h, w, c)` to `(..., h', w', c)`, h' being h / stride rounded up."""
        kernel = self.param("kernel", HE_NORMAL, (3, 3, 1, x.shape[-1])).astype(self.dtype)
        x = depthwise(x.astype(self.dtype), kernel, self.stride)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
            x = x + bias.astype(self.dtype)
        return x


# As a function of its own in the trace it keeps its name, by which `summary.flops` knows it.
@partial(jax.jit, static_argnums=2)
def depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Return `x` (..., h, w, c) convolved with `kernel` (n, n, 1, c), zeros around."""
    n, sides = kernel.shape[0], x.shape[-3:-1]
    margin = (n // 2, n // 2)
    x = jnp.pad(x, (*[(0, 0)] * (x.ndim - 3), margin, margin, (0, 0)))
    # Index of the last place of the kernel along h and w, plus one.
    last = [(side - 1) // stride * stride + 1 for side in sides]
    y = jnp.zeros((), x.dtype)
    for row in range(n):
        rows = jax.lax.slice_in_dim(x, row, row + last[0], stride, axis=-3)
        for column in range(n):
            tap = jax.lax.slice_in_dim(rows, column, column + last[1], stride, axis=-2)
            y = y + tap * kernel[row, column, 0]
    return y


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise and linear 1x1 projection, each with a norm.

    Section 3.3: ReLU6 after the first two; the input is added where stride and width allow;
    without an expansion (1) there is no first convolution.
    """

    width: int
    stride: int
    expansion: int
    norm: str
    axis_name: str | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(..., h, w, c)` to `(..., h', w', width)`, h' being h / stride rounded up."""
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        linear = dict(activate=False, **common)
        y = x
        if self.expansion > 1:
            y = ConvNorm(self.expansion * x.shape[-1], 1, **linear, name="expand")(y, train=train)
            y = nn.relu6(y)
        y = DepthwiseConv(self.stride, self.norm == "none", self.dtype, name="depthwise")(y)
        y = Norm(self.norm, self.axis_name, self.dtype, name="norm")(y, train=train)
        y = ConvNorm(self.width, 1, **linear, name="project")(nn.relu6(y), train=train)
        return x + y if x.shape == y.shape else y


class Stage(nn.Module):
    """`depth` inverted residuals of one width, the first with the stride, as named in Table 2.

    With `residual` a residual block of two full 3x3 convolutions follows (paper A, sections 3.8 and
    4.3.2, which say that blocks were added to MobileNetV2, and not where).
    """

    width: int
    depth: int
    stride: int
    expansion: int
    residual: bool
    norm: str
    axis_name: str | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(..., h, w, c)` to `(..., h', w', width)`, h' being h / stride rounded up."""
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        for index in range(self.depth):
            stride = 1 if index else self.stride
            block = InvertedResidual(
                self.width, stride, self.expansion, **common, name=f"block{index + 1}"
            )
            x = block(x, train)
        if self.residual:
            x = ConvBlock(self.width, True, **common, name="residual")(x, train=train)
        return x


class MobileNetEncoder(nn.Module):
    """MobileNetV2 up to the end of its last stage, for slices or for stacks of them.

    A group norm takes its statistics over a whole stack: a slice of air stays fainter than one of
    bone.
    """

    width_multiplier: float
    stem_width: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    expansions: tuple[int, ...]
    strides: tuple[int, ...]
    residual: bool
    norm: str
    axis_name: str | None
    dtype: Dtype
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """Map `(b, h, w, c)` or `(b, n, h, w, c)` to the map of each stage."""
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        stage = nn.remat(Stage, static_argnums=(2,)) if self.remat else Stage

        width = scale_width(self.stem_width, self.width_multiplier)
        stem = ConvNorm(width, **common, activate=False, stride=2, name="stem")
        x = nn.relu6(stem(x.astype(self.dtype), train=train))
        maps = []
        rows = zip(self.widths, self.depths, self.strides, self.expansions, strict=True)
        for index, (width, depth, stride, expansion) in enumerate(rows, 1):
            x = stage(
                scale_width(width, self.width_multiplier),
                depth,
                stride,
                expansion,
                self.residual,
                **common,
                name=f"stage{index}",
            )(x, train)
            maps.append(x)
        return maps


class MobileNetV2(nn.Module):
    """Classifier of patches: the encoder, a wide 1x1 convolution, the mean over pixels, one layer.

    `apply(variables, x, train=..., rngs={"dropout": key})` takes patches (b, h, w, channels) of any
    size and returns float32 logits (b, out_channels) and what each stage gives, `stage1` and so on.
    The key is needed while training with dropout only; with norm "batch", so is
    `mutable=["batch_stats"]`.
    """

    out_channels: int = 2  # classes, to be read through a softmax
    width_multiplier: float = 1.0
    stem_width: int = STEM_WIDTH
    widths: tuple[int, ...] = WIDTHS
    depths: tuple[int, ...] = DEPTHS  # inverted residuals of each stage
    expansions: tuple[int, ...] = EXPANSIONS
    strides: tuple[int, ...] = STRIDES
    head_width: int = 1280  # not narrowed by a multiplier below 1 (section 4.1)
    residual: bool = False  # paper A's block after each stage
    dropout: float = 0.0  # before the last layer
    norm: str = "group"  # "group" | "batch", as published | "none"
    axis_name: str | None = None  # device axis over which norm "batch" is synchronised
    dtype: Dtype = jnp.float32  # of computation; parameters and logits are float32
    remat: bool = False  # compute each stage again in the backward pass: less memory

    PER_STAGE = ("widths", "depths", "expansions", "strides")

    @property
    def stride(self) -> int:
        """Any patch will do."""
        return 1

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of patches `x` (b, h, w, channels)."""
        check_choice("model.norm", self.norm, NORMS)
        stage_strides(self.strides)
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        maps = MobileNetEncoder(
            self.width_multiplier,
            self.stem_width,
            self.widths,
            self.depths,
            self.expansions,
            self.strides,
            self.residual,
            **common,
            remat=self.remat,
            name="encoder",
        )(x, train=train)
        out = {f"stage{index}": map_ for index, map_ in enumerate(maps, 1)}

        width = scale_width(self.head_width, max(1.0, self.width_multiplier))
        x = ConvNorm(width, 1, **common, activate=False, name="head")(maps[-1], train=train)
        x = nn.relu6(x).mean((1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        return nn.Dense(self.out_channels, dtype=jnp.float32, name="logits")(x), out
