"""D-TVNet (Lyu et al., Comput. Med. Imaging Graph. 89, 2021), a network of paper B's Table 3.

"TV" are transverse vertebrae: the network was made for ultrasound. Only its abstract could be had.

Published: a U-Net as main stream; an auxiliary network that learns the contour, whose features are
fused into the main stream; at the end of the main down-sampling ASPP, which also gets the end of
the auxiliary down-sampling.

Chosen here: both streams are U-Nets of the same widths, with group norm; the deepest maps are
concatenated before ASPP, whose rates are 1, 6, 12 and 18 beside a global mean; at each level the
main decoder gets the map of the auxiliary decoder, concatenated with its own skip; the contour is
that of the mask (`losses.contour`); `loss.auxiliary_weight` weighs its loss.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.models.layers import (
    ConvNorm,
    Logits,
    Network,
    Normed,
    NormKind,
    Rate,
    SpatialDropout,
    Upsample,
    max_pool,
    normed,
    rematerialised,
)
from spinejax.models.pyramid import ASPP


class Level(Normed):
    """Twice 3x3 convolution, norm, ReLU."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, width)`."""
        x = ConvNorm(self.width, **normed(self), name="conv1")(x, train=train)
        return ConvNorm(self.width, **normed(self), name="conv2")(x, train=train)


class DTVNet(Network):
    """Two U-Nets over slices: one finds the contour and helps the other to find the mask.

    The intermediate "auxiliary" (b, h, w, 1) holds the float32 logits of the contour. The names of
    the maps begin with `main_` and `auxiliary_`.

    Attributes:
        widths: channels of each level, the same in both streams.
        norm: norm after each convolution.
        dropout: dropout rate of whole channels, after each level of the main decoder.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    norm: NormKind = "group"
    dropout: Rate = 0.0

    AUXILIARY = True

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

        def apply(name: str, level: int, x: jax.Array) -> jax.Array:
            out[name] = block(self.widths[level], **common, name=name)(x, train)
            return out[name]

        def encode(stream: str, x: jax.Array) -> list[jax.Array]:
            maps: list[jax.Array] = []
            for level in range(len(self.widths)):
                x = max_pool(maps[-1]) if level else x
                maps.append(apply(f"{stream}_encoder{level + 1}", level, x))
            return maps

        x = x.astype(self.dtype)
        main, auxiliary = encode("main", x), encode("auxiliary", x)
        bottom = jnp.concatenate([main[-1], auxiliary[-1]], axis=-1)
        levels = list(reversed(range(len(self.widths) - 1)))

        y, contour = auxiliary[-1], {}
        for level in levels:
            y = Upsample(self.widths[level], self.dtype, name=f"auxiliary_up{level + 1}")(y)
            y = jnp.concatenate([auxiliary[level], y], axis=-1)
            y = contour[level] = apply(f"auxiliary_decoder{level + 1}", level, y)
        out["auxiliary"] = Logits(1, name="auxiliary_logits")(y)

        x = out["aspp"] = ASPP(**common, name="aspp")(bottom, train=train)
        for level in levels:
            x = Upsample(self.widths[level], self.dtype, name=f"main_up{level + 1}")(x)
            x = jnp.concatenate([main[level], contour[level], x], axis=-1)
            x = apply(f"main_decoder{level + 1}", level, x)
            x = SpatialDropout(self.dropout, name=f"dropout{level + 1}")(x, train=train)
        return Logits(self.out_channels, name="logits")(x), out
