"""VGG (Simonyan and Zisserman, ICLR 2015), one of the classifiers of paper B, table 2.

Paper B names neither the member nor how it was fitted to 32 x 32 patches; its authors trained on
a laptop. The default is the smallest member, VGG-11 (configuration A): its five pools leave one
pixel of a 32 x 32 patch, so all convolutions are used as published. The published fully connected
layers, 4096 wide for maps of 7 x 7, would then hold twice the weights of all convolutions for a
single pixel; they are cut to the 512 channels that reach them. 9,745,666 parameters for one channel
and two classes.

The published networks, for 224 x 224 pixels, 3 channels and 1000 classes:
    VGG-11: `VGG(1000, fc_widths=(4096, 4096))`, 132,863,336 parameters
    VGG-16: `VGG(1000, depths=(2, 2, 3, 3, 3), fc_widths=(4096, 4096))`, 138,357,544 parameters
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.errors import check_choice
from spinejax.models.layers import HE_NORMAL, NORMS, ConvNorm, Dtype, MaxPool, check_patch


class Stage(nn.Module):
    """`depth` 3x3 convolutions with ReLU, then a 2x2 pool."""

    depth: int
    width: int
    norm: str
    axis_name: str | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h / 2, w / 2, width)`, rounded down."""
        for index in range(self.depth):
            x = ConvNorm(
                self.width,
                norm=self.norm,
                axis_name=self.axis_name,
                dtype=self.dtype,
                name=f"conv{index + 1}",
            )(x, train=train)
        return MaxPool(name="pool")(x)


class VGG(nn.Module):
    """Classifier of patches: stages of 3x3 convolutions and a pool, then connected layers.

    `apply(variables, x, train=..., rngs={"dropout": key})` takes patches (b, h, w, channels), no
    side shorter than 2 to the power of the number of stages, and returns float32 logits
    (b, out_channels) and what each stage gives, `stage1` and so on. The key is needed while
    training only.
    """

    out_channels: int = 2  # classes, to be read through a softmax
    depths: tuple[int, ...] = (1, 1, 2, 2, 2)  # convolutions of each stage
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)  # channels of each stage
    fc_widths: tuple[int, ...] = (512, 512)  # hidden connected layers
    dropout: float = 0.5  # after each hidden connected layer
    norm: str = "none"  # "group" | "batch" | "none"; the published network has none
    axis_name: str | None = None  # device axis over which norm "batch" is synchronised
    dtype: Dtype = jnp.float32  # of computation; parameters and logits are float32
    remat: bool = False  # compute each stage again in the backward pass: less memory

    PER_STAGE = ("widths", "depths")

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
        check_patch(x.shape[1], x.shape[2], 2 ** len(self.widths), "vgg")
        stage = nn.remat(Stage, static_argnums=(2,)) if self.remat else Stage

        out: dict[str, jax.Array] = {}
        x = x.astype(self.dtype)
        for index, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            name = f"stage{index}"
            x = stage(depth, width, self.norm, self.axis_name, self.dtype, name=name)(x, train)
            out[name] = x
        x = x.reshape(x.shape[0], -1)
        for index, width in enumerate(self.fc_widths, 1):
            x = nn.Dense(width, kernel_init=HE_NORMAL, dtype=self.dtype, name=f"fc{index}")(x)
            x = nn.relu(x)
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout{index}")(x)
        return nn.Dense(self.out_channels, dtype=jnp.float32, name="logits")(x), out
