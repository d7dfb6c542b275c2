"""DenseNet-BC (Huang, Liu, van der Maaten and Weinberger, CVPR 2017), of paper B's table 2.

Paper B names neither the member nor how it was fitted to 32 x 32 patches; its authors trained on
a laptop. The default is the smallest DenseNet-BC that DenseNet's authors publish for 32 x 32 images
(table 2: 100 layers, growth 12, 0.8 million parameters). `depths=(n, n, n)` has 6 n + 4 layers;
where it is too slow, depths=(6, 6, 6), 40 layers, is a common smaller one.

The published DenseNet-121 for 224 x 224 pixels, 3 channels and 1000 classes, 7,978,856 parameters:
    `DenseNet(1000, depths=(6, 12, 24, 16), growth=32, stem="7x7")`
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.errors import check_choice
from spinejax.models.layers import (
    HE_NORMAL,
    NORMS,
    STEMS,
    ConvNorm,
    Dtype,
    MaxPool,
    Norm,
    check_patch,
)

BOTTLENECK = 4  # channels between the two convolutions of a layer, in growths ("B")
COMPRESSION = 2  # a transition divides the channels by this ("C")


class NormConv(nn.Module):
    """Norm, ReLU, convolution; no bias unless there is no norm."""

    width: int
    kernel: int
    norm: str
    axis_name: str | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, width)`."""
        x = nn.relu(Norm(self.norm, self.axis_name, self.dtype, name="norm")(x, train=train))
        return nn.Conv(
            self.width,
            (self.kernel, self.kernel),
            use_bias=self.norm == "none",
            kernel_init=HE_NORMAL,
            dtype=self.dtype,
            name="conv",
        )(x)


class DenseLayer(nn.Module):
    """1x1 to a few channels, 3x3 to `growth` more, which are added to the channels of the input."""

    growth: int
    dropout: float
    norm: str
    axis_name: str | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, c + growth)`."""
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        y = x
        for index, (width, kernel) in enumerate(((BOTTLENECK * self.growth, 1), (self.growth, 3))):
            y = NormConv(width, kernel, **common, name=f"conv{index + 1}")(y, train=train)
            y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(nn.Module):
    """Classifier of patches: dense blocks with transitions between them, the mean over pixels.

    Every transition halves channels and sides. `apply(variables, x, train=...)` takes patches
    (b, h, w, channels) and returns float32 logits (b, out_channels) and what stem and blocks give,
    `stem`, `stage1` and so on. With norm "batch", `mutable=["batch_stats"]` while training, and
    with `dropout` the key "dropout".
    """

    out_channels: int = 2  # classes, to be read through a softmax
    depths: tuple[int, ...] = (16, 16, 16)  # layers of each block, two convolutions each
    growth: int = 12  # channels that each layer adds
    stem: str = "3x3"  # "3x3" | "7x7", which quarters the sides; 2 * growth channels
    dropout: float = 0.0  # after each convolution; the authors take 0.2 without augmentation
    norm: str = "batch"  # "group" | "batch" | "none"
    axis_name: str | None = None  # device axis over which norm "batch" is synchronised
    dtype: Dtype = jnp.float32  # of computation; parameters and logits are float32
    remat: bool = False  # compute each layer again in the backward pass: less memory

    @property
    def stride(self) -> int:
        """Any patch that is large enough will do."""
        return 1

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of patches `x` (b, h, w, channels)."""
        check_choice("model.norm", self.norm, NORMS)
        check_choice("model.stem", self.stem, STEMS)
        least = 2 ** (len(self.depths) - 1)  # one pixel for the last block
        check_patch(x.shape[1], x.shape[2], least if self.stem == "3x3" else 4 * least, "densenet")
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        layer = nn.remat(DenseLayer, static_argnums=(2,)) if self.remat else DenseLayer

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
        x = nn.relu(Norm(self.norm, self.axis_name, self.dtype, name="norm")(x, train=train))
        x = x.mean((1, 2))
        return nn.Dense(self.out_channels, dtype=jnp.float32, name="logits")(x), out
