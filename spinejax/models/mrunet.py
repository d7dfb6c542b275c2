"""3D MRU-Net: the vertebra recognition network of paper A, section 3.8, figure 7.

Three MobileNetV2 encoders read the sagittal, the coronal and the axial slices of a cube. Their maps
are joined to 3D maps and decoded as by the 3D U-Net. Where the paper leaves a choice open there is
a field, or a comment. "Each orthogonal slice was trained on an individual CNN model" has two
readings (`views`): one network that learns as a whole, or three networks of slices that each learn
by their own loss, and a decoder that fuses what they found. Tables 4 and 6 are `residual=False,
dropout=0`, Table 7 is `residual=True, dropout=0`, Table 8 is the default.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.errors import InputError
from spinejax.labels import NUM_CLASSES
from spinejax.models.layers import (
    Depth,
    ExpandingLevel,
    Logits,
    Network,
    NormKind,
    Rate,
    normed,
    rematerialised,
)
from spinejax.models.mobilenet import (
    DEPTHS,
    EXPANSIONS,
    STEM_WIDTH,
    STRIDES,
    WIDTHS,
    Multiplier,
    Strides,
    encoder_of,
    stage_strides,
)
from spinejax.volume import PLANES

Views = Literal["joint", "separate"]

STAGES = 5  # of MobileNetV2's 7: the last one at stride 16


def slices_of(x: jax.Array, axis: int) -> jax.Array:
    """Return the slices of cubes `x` (b, x, y, z, c) along spatial axis 0, 1 or 2.

    The result is `(b, n, h, w, c)`: n is the side of that axis, h and w are the other two in order.
    """
    return jnp.moveaxis(x, axis + 1, 1)


def join_slices(maps: jax.Array, axis: int, stride: int) -> jax.Array:
    """Undo `slices_of` for maps `(b, n, h / stride, w / stride, c)` of slices.

    Neighbouring slices are averaged, `stride` at a time, so that the result, `(b, x / stride,
    y / stride, z / stride, c)`, has one grid whatever the axis ("similar in size", section 3.8).
    """
    b, n, h, w, c = maps.shape
    return jnp.moveaxis(maps.reshape(b, n // stride, stride, h, w, c).mean(axis=2), 1, axis + 1)


class SliceLogits(nn.Module):
    """Logits of slices from the maps of an encoder: 1x1 convolutions, added from coarse to fine.

    The paper does not say what an individual CNN ends with; this is the head of Long et al. (CVPR
    2015), "FCN", on every stride.
    """

    out_channels: int

    @nn.compact
    def __call__(self, maps: list[jax.Array]) -> jax.Array:
        """Map (b, n, h / s, w / s, c), s = 2, 4, ..., to float32 (b, n, h, w, out_channels)."""
        y = jnp.zeros((), jnp.float32)
        for level in reversed(range(len(maps))):
            y = y + Logits(self.out_channels, name=f"level{level + 2}")(maps[level])
            b, n, h, w, c = y.shape
            y = jax.image.resize(y, (b, n, 2 * h, 2 * w, c), "linear")
        return y


class MRUNet(Network):
    """3D MRU-Net over cubes (b, x, y, z, c), whose axes are those of a canonical volume.

    The intermediates are the joined maps at strides 2, 4, ... (`encoder2`, ...), a third of the
    channels for each view in the order of `volume.PLANES`; and `decoder4` down to `decoder1`, at
    stride 1. With separate views there are also `sagittal_logits` and so on, those of the slices.
    Classes are those of `labels.to_contiguous`.

    Attributes:
        width_multiplier: factor of MobileNetV2's widths; the default yields the sizes of paper A,
            Table 11.
        stem_width: channels of the first convolution, before the multiplier.
        widths: channels of MobileNetV2's stages, before the multiplier.
        depths: inverted residuals of each stage.
        expansions: factor of the channels within the inverted residuals of each stage.
        strides: stride of each stage.
        decoder_widths: channels of each level of the decoder, from coarse to fine.
        views: whether encoders and decoder learn together ("joint"), or the encoder of each view by
            itself, by the loss of its own slices ("separate"); the decoder then learns from maps
            that it cannot change.
        share_views: one encoder for all views; the paper's are "not connected", section 3.8.
        residual: a residual block after each stage of MobileNetV2, section 4.3.2.
        norm: norm after each convolution; the paper does not name it.
        dropout: dropout rate of whole channels, after each decoder level, section 4.3.3.
    """

    out_channels: int = NUM_CLASSES
    width_multiplier: Multiplier = 0.35
    stem_width: int = STEM_WIDTH
    widths: tuple[int, ...] = WIDTHS[:STAGES]
    depths: tuple[Depth, ...] = DEPTHS[:STAGES]
    expansions: tuple[int, ...] = EXPANSIONS[:STAGES]
    strides: Strides = STRIDES[:STAGES]
    decoder_widths: tuple[int, ...] = (88, 48, 24, 16)
    views: Views = "joint"
    share_views: bool = False
    residual: bool = True
    norm: NormKind = "group"
    dropout: Rate = 0.3

    SEES = "cubes"
    PER_STAGE = ("widths", "depths", "expansions", "strides")

    @property
    def stride(self) -> int:
        """Sides of the input must be multiples of this."""
        return stage_strides(self.strides)[-1]

    def _levels(self) -> list[int]:
        """Return the strides at which maps are joined: 2, 4, ..."""
        return [2**level for level in range(1, self.stride.bit_length())]

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Raise InputError unless cubes (b, x, y, z, c) fit, and the decoder fits the stages."""
        super().check_input(shape)
        levels = self._levels()
        # If the first stage halves the sides, too, no map has stride 2.
        if self.strides[0] != 1 or len(self.decoder_widths) != len(levels):
            raise InputError(
                f"model.strides = {self.strides} and model.decoder_widths = {self.decoder_widths} "
                f"do not fit: the first stage must have stride 1, and a stride of {self.stride} in "
                f"all needs {len(levels)} decoder widths"
            )

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of cubes `x` (b, x, y, z, c)."""
        self.check_input(x.shape)
        levels = self._levels()
        # The map of a stride is the output of its last stage.
        last = {stride: index for index, stride in enumerate(stage_strides(self.strides))}
        common = normed(self)
        x = x.astype(self.dtype)
        shared = encoder_of(self, "encoder") if self.share_views else None
        joined: dict[int, list[jax.Array]] = {stride: [] for stride in levels}
        out: dict[str, jax.Array] = {}
        for view, axis in PLANES.items():
            # Slices stay an axis of one large batch: XLA's convolutions in a loop are slow on CPUs.
            maps = (shared or encoder_of(self, view))(slices_of(x, axis), train=train)
            maps = [maps[last[stride]] for stride in levels]
            if self.views == "separate":
                head = SliceLogits(self.out_channels, name=f"{view}_logits")
                out[f"{view}_logits"] = jnp.moveaxis(head(maps), 1, axis + 1)
                maps = jax.lax.stop_gradient(maps)
            for stride, each in zip(levels, maps, strict=True):
                joined[stride].append(join_slices(each, axis, stride))

        # The cube itself is the skip at stride 1, where no encoder has a map.
        skips = [x]
        for level, stride in enumerate(levels, 2):
            skips.append(jnp.concatenate(joined[stride], axis=-1))
            out[f"encoder{level}"] = skips[-1]
        x = skips.pop()
        decoder = rematerialised(ExpandingLevel, self, train=3)
        for width in self.decoder_widths:
            name = f"decoder{len(skips)}"
            x = decoder(
                width=width,
                up_width=width,
                up_bias=True,
                dropout=self.dropout,
                **common,
                name=name,
            )(x, skips.pop(), train)
            out[name] = x
        return Logits(self.out_channels, name="logits")(x), out
