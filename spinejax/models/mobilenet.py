"""MobileNetV2 (Sandler et al., CVPR 2018): inverted residuals and linear bottlenecks.

The encoder of paper A's 3D MRU-Net (sections 3.1 and 3.8). Paper A's Table 1 is Sandler et al.'s
Table 2 with slips: it lists the first convolution as two (n = 2), heads the stride "a", lacks the
last convolution of 1280 channels, and the text counts 19 bottlenecks where the table has 17.

With 3 channels and norm "batch" the standard network has 1,824, 15,792, 55,488, 239,360, 542,528,
1,337,792 and 1,811,712 parameters up to the end of each stage, 2,223,872 with the last convolution
and 3,504,872 with 1000 classes.
"""

import itertools
import operator
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.models.layers import (
    HE_NORMAL,
    ConvBlock,
    ConvNorm,
    Depth,
    Dtype,
    Network,
    Norm,
    Normed,
    NormKind,
    Rate,
    convolve,
    normed,
    rematerialised,
)
from spinejax.schema import Number, Several, Whole

# The standard network (Sandler et al., Table 2).
STEM_WIDTH = 32
WIDTHS = (16, 24, 32, 64, 96, 160, 320)
DEPTHS = (1, 2, 3, 4, 3, 3, 1)
EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
STRIDES = (1, 2, 2, 2, 1, 2, 1)

# Types of fields.
Multiplier = Annotated[float, Number(0, 16, above=True)]
Strides = Annotated[tuple[int, ...], Several(Whole(1, 2))]


def scale_width(width: int, multiplier: float) -> int:
    """Return `multiplier` times `width`, rounded to a multiple of 8 but never below 90 % of it.

    The rounding of Sandler et al.'s own code; 8 at least.
    """
    scaled = multiplier * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def stage_strides(strides: Sequence[int]) -> tuple[int, ...]:
    """Return the stride of each stage's map to the image; the stem halves the sides first."""
    return tuple(itertools.accumulate(strides, operator.mul, initial=2))[1:]


class DepthwiseConv(nn.Module):
    """3x3 convolution of each channel by itself, which CPUs compute as nine shifted multiply-adds.

    The function and the parameters are those of `nn.Conv` with as many groups as channels, and on
    GPUs and TPUs it is `nn.Conv`. XLA computes grouped convolutions slowly on CPUs. Milliseconds of
    CPU time, forward and with its gradient (2 busy cores, jax 0.10.2):

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
        channels = x.shape[-1]
        kernel = self.param("kernel", HE_NORMAL, (3, 3, 1, channels))
        strides = (self.stride, self.stride)
        x = jax.lax.platform_dependent(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            cpu=partial(depthwise, stride=self.stride),
            default=partial(convolve, strides=strides, padding=[(1, 1)] * 2, groups=channels),
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
            x = x + bias.astype(self.dtype)
        return x


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


class InvertedResidual(Normed):
    """1x1 expansion, 3x3 depthwise and linear 1x1 projection, each with a norm.

    Section 3.3: ReLU6 after the first two; the input is added where stride and width allow;
    without an expansion (1) there is no first convolution.
    """

    width: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(..., h, w, c)` to `(..., h', w', width)`, h' being h / stride rounded up."""
        common = normed(self)
        linear = dict(activate=False, **common)
        y = x
        if self.expansion > 1:
            y = ConvNorm(self.expansion * x.shape[-1], 1, **linear, name="expand")(y, train=train)
            y = nn.relu6(y)
        y = DepthwiseConv(self.stride, self.norm == "none", self.dtype, name="depthwise")(y)
        y = Norm(**common, name="norm")(y, train=train)
        y = ConvNorm(self.width, 1, **linear, name="project")(nn.relu6(y), train=train)
        return x + y if x.shape == y.shape else y


class Stage(Normed):
    """`depth` inverted residuals of one width, the first with the stride, as named in Table 2.

    With `residual` a residual block of two full 3x3 convolutions follows (paper A, sections 3.8 and
    4.3.2; the paper says that blocks were added to MobileNetV2, but not where).
    """

    width: int
    depth: int
    stride: int
    expansion: int
    residual: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(..., h, w, c)` to `(..., h', w', width)`, h' being h / stride rounded up."""
        common = normed(self)
        for index in range(self.depth):
            stride = 1 if index else self.stride
            block = InvertedResidual(
                self.width, stride, self.expansion, **common, name=f"block{index + 1}"
            )
            x = block(x, train)
        if self.residual:
            x = ConvBlock(self.width, True, **common, name="residual")(x, train=train)
        return x


class MobileNetEncoder(Normed):
    """MobileNetV2 up to the end of its last stage, for slices or for stacks of them.

    The statistics of a group norm run over a whole stack, so a slice of air stays fainter than a
    slice of bone.
    """

    width_multiplier: float
    stem_width: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    expansions: tuple[int, ...]
    strides: tuple[int, ...]
    residual: bool
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """Map `(b, h, w, c)` or `(b, n, h, w, c)` to the map of each stage."""
        common = normed(self)
        stage = rematerialised(Stage, self, train=2)

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


def encoder_of(network: Any, name: str) -> MobileNetEncoder:
    """Return the encoder with the fields of a network (`MobileNetV2`, `MRUNet`)."""
    return MobileNetEncoder(
        network.width_multiplier,
        network.stem_width,
        network.widths,
        network.depths,
        network.expansions,
        network.strides,
        network.residual,
        network.remat,
        **normed(network),
        name=name,
    )


class MobileNetV2(Network):
    """Classifier of patches: the encoder, a wide 1x1 convolution, the mean over pixels, one layer.

    The intermediates are the outputs of the stages, `stage1` and so on.

    Attributes:
        width_multiplier: factor of all widths.
        stem_width: channels of the first convolution, before the multiplier.
        widths: channels of each stage, before the multiplier.
        depths: inverted residuals of each stage.
        expansions: factor of the channels within the inverted residuals of each stage.
        strides: stride of each stage.
        head_width: channels of the last convolution; a multiplier below 1 leaves it as it is
            (section 4.1).
        residual: paper A's residual block after each stage.
        dropout: dropout rate before the last layer.
        norm: norm after each convolution; the published network has "batch".
    """

    out_channels: int = 2
    width_multiplier: Multiplier = 1.0
    stem_width: int = STEM_WIDTH
    widths: tuple[int, ...] = WIDTHS
    depths: tuple[Depth, ...] = DEPTHS
    expansions: tuple[int, ...] = EXPANSIONS
    strides: Strides = STRIDES
    head_width: int = 1280
    residual: bool = False
    dropout: Rate = 0.0
    norm: NormKind = "group"

    SEES = "patches"
    PER_STAGE = ("widths", "depths", "expansions", "strides")

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of patches `x` (b, h, w, channels)."""
        common = normed(self)
        maps = encoder_of(self, "encoder")(x, train=train)
        out = {f"stage{index}": map_ for index, map_ in enumerate(maps, 1)}

        width = scale_width(self.head_width, max(1.0, self.width_multiplier))
        x = ConvNorm(width, 1, **common, activate=False, name="head")(maps[-1], train=train)
        x = nn.relu6(x).mean((1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        return nn.Dense(self.out_channels, dtype=jnp.float32, name="logits")(x), out
