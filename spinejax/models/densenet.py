"""DenseNet-BC (Huang, Liu, van der Maaten and Weinberger, CVPR 2017), of paper B's table 2.

Paper B names neither the variant nor its changes for 32 x 32 patches; its authors used a laptop.
The default is the smallest DenseNet-BC that DenseNet's authors publish for 32 x 32 images (table 2:
100 layers, growth 12, 0.8 million parameters). `depths=(n, n, n)` has 6 n + 4 layers;
`depths=(6, 6, 6)`, 40 layers, is a common smaller network.

The published DenseNet-121 for 224 x 224 pixels, 3 channels and 1000 classes, 7,978,856 parameters:
    `DenseNet(1000, depths=(6, 12, 24, 16), growth=32, stem="7x7")`
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
    Norm,
    Normed,
    NormKind,
    Rate,
    StemKind,
    check_patch,
    normed,
    rematerialised,
)

BOTTLENECK = 4  # channels between the two convolutions of a layer, in growths ("B")
COMPRESSION = 2  # a transition divides the channels by this ("C")


class NormConv(Normed):
    """Norm, ReLU, convolution; a bias only with norm "none"."""

    width: int
    kernel: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, width)`."""
        x = nn.relu(Norm(**normed(self), name="norm")(x, train=train))
        return nn.Conv(
            self.width,
            (self.kernel, self.kernel),
            use_bias=self.norm == "none",
            kernel_init=HE_NORMAL,
            dtype=self.dtype,
            name="conv",
        )(x)


class DenseLayer(Normed):
    """1x1 convolution to a few channels, then 3x3 to `growth` channels beside the input's."""

    growth: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, c + growth)`."""
        common = normed(self)
        y = x
        for index, (width, kernel) in enumerate(((BOTTLENECK * self.growth, 1), (self.growth, 3))):
            y = NormConv(width, kernel, **common, name=f"conv{index + 1}")(y, train=train)
            y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(Network):
    """Classifier of patches: dense blocks with transitions between them, the mean over pixels.

    Every transition halves channels and sides. The intermediates are the outputs of stem and
    blocks, `stem`, `stage1` and so on.

    Attributes:
        depths: layers of each block, two convolutions each.
        growth: channels that each layer adds.
        stem: first convolution, to 2 * growth channels; "7x7" quarters the sides.
        dropout: dropout rate after each convolution; the authors use 0.2 without augmentation.
        norm: norm before each convolution; the published network has "batch".
    """

    out_channels: int = 2
    depths: tuple[Depth, ...] = (16, 16, 16)
    growth: int = 12
    stem: StemKind = "3x3"
    dropout: Rate = 0.0
    norm: NormKind = "batch"

    SEES = "patches"

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise InputError unless patches (b, h, w, c) leave a pixel for the last block."""
        least = 2 ** (len(self.depths) - 1) * (4 if self.stem == "7x7" else 1)
        check_patch(shape[1], shape[2], least, "densenet")

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of patches `x` (b, h, w, channels)."""
        self.check_input(x.shape)
        common = normed(self)
        layer = rematerialised(DenseLayer, self, train=2)

        x = x.astype(self.dtype)
        if self.stem == "7x7":
            x = ConvNorm(2 * self.growth, 7, **common, stride=2, name="stem")(x, train=train)
            x = MaxPool(3, 2, padding=1, name="pool")(x)
        else:  # its norm is that of the first layer
            x = nn.Conv(
                2 * self.growth,
                (3, 3),
                use_bias=self.norm == "none",
                kernel_init=HE_NORMAL,
                dtype=self.dtype,
                name="stem",
            )(x)
        out = {"stem": x}
        for stage, depth in enumerate(self.depths, 1):
            if stage > 1:
                name = f"transition{stage - 1}"
                x = NormConv(x.shape[-1] // COMPRESSION, 1, **common, name=name)(x, train=train)
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for index in range(1, depth + 1):
                x = layer(self.growth, self.dropout, **common, name=f"stage{stage}_layer{index}")(
                    x, train
                )
            out[f"stage{stage}"] = x
        x = nn.relu(Norm(**normed(self), name="norm")(x, train=train))
        x = x.mean((1, 2))
        return nn.Dense(self.out_channels, dtype=jnp.float32, name="logits")(x), out
