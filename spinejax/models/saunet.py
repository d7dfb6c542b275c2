"""SAU-Net (Zhang, Yuan, Wang and Zhang, MIDL 2020, PMLR 121:903-913), a row of paper B's Table 3.

Published (abstract): a densely connected U-Net extracts features within each slice by 2D
convolutions, and an inter-slice attention module uses adjacent slices to refine them, by spatial
attention. The authors segment the spine in 3D MR; their code is not public.

Chosen here, because the abstract gives no sizes: four levels of dense blocks with four layers of
growth 16; a first convolution to two growths and transitions that halve the channels, as in
DenseNet; transposed convolutions in the decoder; one neighbour on each side; the attention of
`InterSliceAttention` on each skip; GroupNorm; Dice with cross entropy as the loss. The weights of
the encoder are shared over the slices, so its parameters do not depend on their number.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.errors import InputError
from spinejax.models.layers import (
    ConvNorm,
    Depth,
    Logits,
    Network,
    Normed,
    NormKind,
    Upsample,
    conv2d,
    max_pool,
    normed,
    rematerialised,
)

COMPRESSION = 2  # a transition divides the channels by this


class DenseBlock(Normed):
    """`depth` times 3x3 convolution, norm, ReLU; each sees the channels of all before it."""

    depth: int
    growth: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, c + depth * growth)`."""
        for index in range(1, self.depth + 1):
            layer = ConvNorm(self.growth, **normed(self), name=f"layer{index}")
            x = jnp.concatenate([x, layer(x, train=train)], axis=-1)
        return x


class InterSliceAttention(Normed):
    """Spatial attention from the neighbours' features: 1x1, then 3x3 convolution, sigmoid."""

    width: int

    @nn.compact
    def __call__(self, neighbours: jax.Array, *, train: bool) -> jax.Array:
        """Map the features of all neighbours `(b, h, w, c)` to weights `(b, h, w, 1)`."""
        x = ConvNorm(self.width, 1, **normed(self), name="conv1")(neighbours, train=train)
        return nn.sigmoid(
            conv2d(x, 1, 3, use_bias=True, dtype=self.dtype, train=train, name="conv2")
        )


class SAUNet(Network):
    """Dense U-Net over a slice whose skips are weighed by what its neighbours show.

    A skip is multiplied by 1 plus the attention, so that a pixel can gain weight and loses none.
    The intermediates of the encoder are those of the slice in the middle.

    Attributes:
        depths: layers of each level's dense block.
        growth: channels that each layer adds.
        norm: norm after each convolution.
    """

    depths: tuple[Depth, ...] = (4, 4, 4, 4)
    growth: int = 16
    norm: NormKind = "group"

    @property
    def stride(self) -> int:
        """Sides of the input must be multiples of this."""
        return 2 ** (len(self.depths) - 1)

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise InputError unless slices (b, h, w, c) have neighbours and fit the stride."""
        if shape[-1] < 3 or shape[-1] % 2 == 0:
            raise InputError(
                "saunet needs a slice with neighbours on both sides and gets "
                f"{shape[-1]} channels; set config field data.neighbours to 1 or more"
            )
        super().check_input(shape)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of `x` (b, h, w, 2n + 1), slices as channels."""
        self.check_input(x.shape)
        block = rematerialised(DenseBlock, self, train=2)
        common = normed(self)
        b, h, w, count = x.shape
        middle = count // 2

        out: dict[str, jax.Array] = {}
        # Slices become samples: the same weights for all, and GroupNorm of each by itself.
        x = jnp.moveaxis(x, -1, 0).reshape(count * b, h, w, 1).astype(self.dtype)
        x = ConvNorm(2 * self.growth, **common, name="stem")(x, train=train)
        skips = []
        for level, depth in enumerate(self.depths[:-1], 1):
            x = block(depth, self.growth, **common, name=f"encoder{level}")(x, train)
            slices = list(x.reshape(count, b, *x.shape[1:]))
            centre = slices.pop(middle)
            attend = InterSliceAttention(x.shape[-1], **common, name=f"attention{level}")
            attention = attend(jnp.concatenate(slices, axis=-1), train=train)
            skips.append((1 + attention) * centre)
            out |= {f"encoder{level}": centre, f"attention{level}": attention}
            name = f"transition{level}"
            x = ConvNorm(x.shape[-1] // COMPRESSION, 1, **common, name=name)(x, train=train)
            x = max_pool(x)
        # The deepest level has no skip: nothing there reads the neighbours.
        x = x.reshape(count, b, *x.shape[1:])[middle]
        levels = len(self.depths)
        x = block(self.depths[-1], self.growth, **common, name=f"encoder{levels}")(x, train)
        out[f"encoder{levels}"] = x
        for level in reversed(range(1, levels)):
            depth = self.depths[level - 1]
            x = Upsample(depth * self.growth, self.dtype, name=f"up{level}")(x)
            x = jnp.concatenate([skips[level - 1], x], axis=-1)
            x = block(depth, self.growth, **common, name=f"decoder{level}")(x, train)
            out[f"decoder{level}"] = x
        return Logits(self.out_channels, name="logits")(x), out
