"""3D MRU-Net: the vertebra recognition network of paper A, section 3.8, figure 7.

Three MobileNetV2 encoders look at a cube slice by slice, one at its sagittal, one at its coronal
and one at its axial slices; their maps, joined to 3D maps, are decoded as by the 3D U-Net. What the
paper leaves open is a field, or said where it is decided. Tables 4 and 6 are `residual=False,
dropout=0`, Table 7 is `residual=True, dropout=0`, Table 8 is the default.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.errors import InputError, check_choice
from spinejax.labels import NUM_CLASSES
from spinejax.models.layers import NORMS, Dtype, ExpandingLevel, Logits, check_cube
from spinejax.models.mobilenet import (
    DEPTHS,
    EXPANSIONS,
    STEM_WIDTH,
    STRIDES,
    WIDTHS,
    MobileNetEncoder,
    stage_strides,
)
from spinejax.volume import PLANES

STAGES = 5  # of MobileNetV2's 7: the last one at stride 16


def slices_of(x: jax.Array, axis: int) -> jax.Array:
    """Return the slices of cubes `x` (b, x, y, z, c) along spatial axis 0, 1 or 2.

    Result: `(b, n, h, w, c)`, n the side of that axis, h and w the two others in their order.
    """
    return jnp.moveaxis(x, axis + 1, 1)


def join_slices(maps: jax.Array, axis: int, stride: int) -> jax.Array:
    """Undo `slices_of` for maps `(b, n, h / stride, w / stride, c)` of slices.

    Neighbouring slices are averaged, `stride` at a time, so that the result, `(b, x / stride,
    y / stride, z / stride, c)`, has one grid whatever the axis ("similar in size", section 3.8).
    """
    b, n, h, w, c = maps.shape
    return jnp.moveaxis(maps.reshape(b, n // stride, stride, h, w, c).mean(axis=2), 1, axis + 1)


class MRUNet(nn.Module):
    """3D MRU-Net over cubes; see the module docstring.

    `apply(variables, x, train=...)` maps `x` (b, x, y, z, c) float32, its axes those of a canonical
    volume, to logits (b, x, y, z, out_channels) float32 and a dict of named intermediates:
    `encoder2` and so on, the joined maps at strides 2, 4, ..., whose channels are thirds of the
    views in the order of `volume.PLANES`; `decoder4` and so on down to `decoder1` at stride 1.
    Training needs `rngs={"dropout": key}` where dropout is on, and `mutable=["batch_stats"]` with
    norm "batch". Classes are those of `labels.to_contiguous`.
    """

    out_channels: int = NUM_CLASSES  # to be read through a softmax; 1: binary, through a sigmoid
    width_multiplier: float = 0.35  # of MobileNetV2; the sizes of paper A, see Table 11
    stem_width: int = STEM_WIDTH
    widths: tuple[int, ...] = WIDTHS[:STAGES]  # of MobileNetV2's stages, before the multiplier
    depths: tuple[int, ...] = DEPTHS[:STAGES]
    expansions: tuple[int, ...] = EXPANSIONS[:STAGES]
    strides: tuple[int, ...] = STRIDES[:STAGES]
    decoder_widths: tuple[int, ...] = (88, 48, 24, 16)  # of each level, from coarse to fine
    share_views: bool = False  # one encoder for all views; "not connected", section 3.8
    residual: bool = True  # blocks added to MobileNetV2, section 4.3.2
    norm: str = "group"  # "group" | "batch" | "none"; not named in the paper
    dropout: float = 0.3  # of whole channels, after each decoder level; the rate of section 4.3.3
    axis_name: str | None = None  # device axis over which norm "batch" is synchronised
    dtype: Dtype = jnp.float32  # of computation; parameters and logits are float32
    remat: bool = False  # compute each stage and level again in the backward pass: less memory

    PER_STAGE = ("widths", "depths", "expansions", "strides")

    @property
    def stride(self) -> int:
        """Sides of the input must be multiples of this."""
        return stage_strides(self.strides)[-1]

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of cubes `x` (b, x, y, z, c)."""
        check_choice("model.norm", self.norm, NORMS)
        check_cube(x, self.stride)
        strides = stage_strides(self.strides)
        # What a stride's last stage gives is its map.
        last = {stride: index for index, stride in enumerate(strides)}
        # The first stage may halve the sides, too: then nothing has stride 2.
        levels = [2**level for level in range(1, self.stride.bit_length())]
        if list(last) != levels or len(self.decoder_widths) != len(levels):
            raise InputError(
                f"model.strides = {self.strides} and model.decoder_widths = {self.decoder_widths} "
                f"do not fit: the first stage must have stride 1, and a stride of {self.stride} in "
                f"all needs {len(levels)} decoder widths"
            )
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        x = x.astype(self.dtype)

        def encoder(name: str) -> MobileNetEncoder:
            return MobileNetEncoder(
                self.width_multiplier,
                self.stem_width,
                self.widths,
                self.depths,
                self.expansions,
                self.strides,
                self.residual,
                **common,
                remat=self.remat,
                name=name,
            )

        shared = encoder("encoder") if self.share_views else None
        joined: dict[int, list[jax.Array]] = {stride: [] for stride in levels}
        for view, axis in PLANES.items():
            # Slices stay an axis of one large batch: XLA's convolutions in a loop are slow on CPUs.
            maps = (shared or encoder(view))(slices_of(x, axis), train=train)
            for stride in levels:
                joined[stride].append(join_slices(maps[last[stride]], axis, stride))

        # The cube itself is the skip at stride 1, where no encoder has a map.
        skips = [x]
        out: dict[str, jax.Array] = {}
        for level, stride in enumerate(levels, 2):
            skips.append(jnp.concatenate(joined[stride], axis=-1))
            out[f"encoder{level}"] = skips[-1]
        x = skips.pop()
        decoder = nn.remat(ExpandingLevel, static_argnums=(3,)) if self.remat else ExpandingLevel
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
