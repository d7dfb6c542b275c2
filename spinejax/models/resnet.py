"""ResNet (He, Zhang, Ren and Sun, CVPR 2016), one of the classifiers of paper B, table 2.

Paper B names neither the variant nor its changes for 32 x 32 patches; its authors used a laptop.
The default is ResNet-20, the smallest that ResNet's authors publish for 32 x 32 images (section
4.2, table 6: 0.27 million parameters). Larger ones there, with 6 n + 2 layers, are
`depths=(n, n, n)`: 0.46 million for n = 5, 0.66 for 7, 0.85 for 9, 1.7 for 18.

The published networks for 224 x 224 pixels, 3 channels and 1000 classes:
    large = dict(widths=(64, 128, 256, 512), stem="7x7", shortcut="projection")
    ResNet-18: `ResNet(1000, depths=(2, 2, 2, 2), **large)`, 11,689,512 parameters
    ResNet-50: `ResNet(1000, depths=(3, 4, 6, 3), block="bottleneck", **large)`, 25,557,032
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.models.layers import (
    ConvNorm,
    Depth,
    MaxPool,
    Network,
    Normed,
    NormKind,
    StemKind,
    normed,
    rematerialised,
)

Kind = Literal["basic", "bottleneck"]
Shortcut = Literal["pad", "projection"]
EXPANSION = 4  # channels out of a bottleneck, in widths


class Block(Normed):
    """Residual block: two 3x3 convolutions, or 1x1, 3x3 and 1x1 ("bottleneck"), and a shortcut.

    Where sides or channels change, the shortcut is a 1x1 convolution with a norm ("projection",
    the paper's option B) or takes every `stride`-th pixel and adds channels of zeros ("pad",
    option A, without parameters).
    """

    width: int
    stride: int
    kind: Kind
    shortcut: Shortcut

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h / stride, w / stride, channels)`, rounded up."""
        common = normed(self)
        if self.kind == "bottleneck":
            channels = EXPANSION * self.width
            y = ConvNorm(self.width, 1, **common, name="conv1")(x, train=train)
            # The paper strides in the 1x1. Strides in the 3x3, usual since, lose no pixel.
            y = ConvNorm(self.width, 3, **common, stride=self.stride, name="conv2")(y, train=train)
            last = ConvNorm(channels, 1, **common, activate=False, name="conv3")
        else:
            channels = self.width
            y = ConvNorm(self.width, 3, **common, stride=self.stride, name="conv1")(x, train=train)
            last = ConvNorm(channels, 3, **common, activate=False, name="conv2")
        y = last(y, train=train)
        if self.stride > 1 or x.shape[-1] != channels:
            if self.shortcut == "projection":
                project = ConvNorm(
                    channels, 1, **common, activate=False, stride=self.stride, name="shortcut"
                )
                x = project(x, train=train)
            else:
                x = x[:, :: self.stride, :: self.stride, :channels]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])))
        return nn.relu(x + y)


class ResNet(Network):
    """Classifier of patches: a stem, stages of residual blocks, the mean over pixels, one layer.

    Every stage but the first halves the sides. The intermediates are the outputs of stem and
    stages, `stem`, `stage1` and so on.

    Attributes:
        depths: blocks of each stage.
        widths: channels of each stage, before a bottleneck's expansion.
        block: two 3x3 convolutions, or 1x1, 3x3 and 1x1.
        shortcut: how a block's input is fitted to its output: channels of zeros, or a convolution.
        stem: first convolution; "7x7" quarters the sides.
        norm: norm after each convolution; the published network has "batch".
    """

    out_channels: int = 2
    depths: tuple[Depth, ...] = (3, 3, 3)
    widths: tuple[int, ...] = (16, 32, 64)
    block: Kind = "basic"
    shortcut: Shortcut = "pad"
    stem: StemKind = "3x3"
    norm: NormKind = "batch"

    SEES = "patches"
    PER_STAGE = ("widths", "depths")

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of patches `x` (b, h, w, channels)."""
        common = normed(self)
        block = rematerialised(Block, self, train=2)

        x = x.astype(self.dtype)
        if self.stem == "7x7":
            x = ConvNorm(self.widths[0], 7, **common, stride=2, name="stem")(x, train=train)
            x = MaxPool(3, 2, padding=1, name="pool")(x)
        else:
            x = ConvNorm(self.widths[0], 3, **common, name="stem")(x, train=train)
        out = {"stem": x}
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            for index in range(1, depth + 1):
                x = block(
                    width,
                    2 if stage > 1 and index == 1 else 1,
                    self.block,
                    self.shortcut,
                    **common,
                    name=f"stage{stage}_block{index}",
                )(x, train)
            out[f"stage{stage}"] = x
        x = x.mean((1, 2))
        return nn.Dense(self.out_channels, dtype=jnp.float32, name="logits")(x), out
