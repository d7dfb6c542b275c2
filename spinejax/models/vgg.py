"""VGG (Simonyan and Zisserman, ICLR 2015), one of the classifiers of paper B, table 2.

Paper B names neither the variant nor its changes for 32 x 32 patches; its authors used a laptop.
The default is the smallest, VGG-11 (configuration A): its five pools leave one pixel of a 32 x 32
patch, so all convolutions are used as published. The published fully connected layers, 4096 wide
for maps of 7 x 7, would then hold twice the weights of all convolutions for a single pixel; they
are cut to the 512 channels that reach them. 9,745,666 parameters for one channel and two classes.

The published networks, for 224 x 224 pixels, 3 channels and 1000 classes:
    VGG-11: `VGG(1000, fc_widths=(4096, 4096))`, 132,863,336 parameters
    VGG-16: `VGG(1000, depths=(2, 2, 3, 3, 3), fc_widths=(4096, 4096))`, 138,357,544 parameters
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.models.layers import (
    HE_NORMAL,
    ConvNorm,
    Depth,
    MaxPool,
    Network,
    Normed,
    NormKind,
    Rate,
    check_patch,
    normed,
    rematerialised,
)


class Stage(Normed):
    """`depth` 3x3 convolutions with ReLU, then a 2x2 pool."""

    depth: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h / 2, w / 2, width)`, rounded down."""
        for index in range(self.depth):
            x = ConvNorm(self.width, **normed(self), name=f"conv{index + 1}")(x, train=train)
        return MaxPool(name="pool")(x)


class VGG(Network):
    """Classifier of patches: stages of 3x3 convolutions and a pool, then connected layers.

    No side of a patch may be shorter than 2 to the power of the number of stages. The intermediates
    are the outputs of the stages, `stage1` and so on.

    Attributes:
        depths: convolutions of each stage.
        widths: channels of each stage.
        fc_widths: widths of the hidden connected layers.
        dropout: dropout rate after each hidden connected layer.
        norm: norm after each convolution; the published network has none.
    """

    out_channels: int = 2
    depths: tuple[Depth, ...] = (1, 1, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    fc_widths: tuple[int, ...] = (512, 512)
    dropout: Rate = 0.5
    norm: NormKind = "none"

    SEES = "patches"
    PER_STAGE = ("widths", "depths")

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise InputError unless the pools leave a pixel of patches (b, h, w, c)."""
        check_patch(shape[1], shape[2], 2 ** len(self.widths), "vgg")

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of patches `x` (b, h, w, channels)."""
        self.check_input(x.shape)
        stage = rematerialised(Stage, self, train=2)

        out: dict[str, jax.Array] = {}
        x = x.astype(self.dtype)
        for index, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            name = f"stage{index}"
            x = stage(depth, width, **normed(self), name=name)(x, train)
            out[name] = x
        x = x.reshape(x.shape[0], -1)
        for index, width in enumerate(self.fc_widths, 1):
            x = nn.Dense(width, kernel_init=HE_NORMAL, dtype=self.dtype, name=f"fc{index}")(x)
            x = nn.relu(x)
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout{index}")(x)
        return nn.Dense(self.out_channels, dtype=jnp.float32, name="logits")(x), out
