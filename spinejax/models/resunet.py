"""The 2D network of SpineParseNet (Pang et al., IEEE TMI 40(1), 2021): a residual U-Net.

Layers and widths are those of the public code: 11,784,852 parameters for 21 channels and 20
classes, 11,779,074 for 3 and 2. There it refines what the 3D network (`models.spineparsenet`)
found: it sees a slice and, as further channels, the coarse logits of each class. By
itself, this network sees the slice alone.

Chosen here: group norm, which has the parameters of the published batch norm.
"""

import flax.linen as nn
import jax

from spinejax.models.layers import (
    HE_NORMAL,
    ConvNorm,
    Logits,
    Network,
    Normed,
    NormKind,
    max_pool,
    normed,
    rematerialised,
)


class Level(Normed):
    """3x3 convolution, norm and ReLU; then two more, to which their input is added before ReLU."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, width)`."""
        common = normed(self)
        x = ConvNorm(self.width, **common, name="conv1")(x, train=train)
        y = ConvNorm(self.width, **common, name="conv2")(x, train=train)
        y = ConvNorm(self.width, **common, activate=False, name="conv3")(y, train=train)
        return nn.relu(x + y)


class ResUNet(Network):
    """Residual U-Net over slices whose decoder adds the skips instead of concatenating them.

    Attributes:
        widths: channels of each level.
        norm: norm after each convolution; the published network has "batch".
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    norm: NormKind = "group"

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
        block = rematerialised(Level, self, train=2)
        common = normed(self)

        out: dict[str, jax.Array] = {}
        x = x.astype(self.dtype)
        skips = []
        for level, width in enumerate(self.widths, 1):
            if level > 1:
                skips.append(x)
                x = max_pool(x)
            x = block(width, **common, name=f"encoder{level}")(x, train)
            out[f"encoder{level}"] = x
        for level in reversed(range(1, len(self.widths))):
            width = self.widths[level - 1]
            up = nn.ConvTranspose(
                width,
                (3, 3),
                strides=(2, 2),
                padding=((1, 2), (1, 2)),
                kernel_init=HE_NORMAL,
                dtype=self.dtype,
                name=f"up{level}",
            )
            x = block(width, **common, name=f"decoder{level}")(up(x) + skips[level - 1], train)
            out[f"decoder{level}"] = x
        return Logits(self.out_channels, name="logits")(x), out
