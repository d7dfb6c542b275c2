"""Pyramids of atrous convolutions: ASPP and CHASPP.

Paper A, sections 3.4-3.5 and figures 3-4. The exact layers of CHASPP (Lian et al., Pattern
Recognition 110:107622, 2021) are not public. Here they follow paper A's words: there are two
cascaded stages; in each, a root atrous convolution feeds branch convolutions of small rates, which
sample the wide field of the root densely.
"""

from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.models.layers import ConvNorm, Normed, normed
from spinejax.schema import Choice

PYRAMIDS = ("chaspp", "aspp", "none")
PyramidKind = Annotated[str, Choice(PYRAMIDS)]


class CHASPPStage(Normed):
    """One stage: for each root rate a root convolution and its branches; all fused by a 1x1."""

    root_rates: tuple[int, ...] = (6,)
    branch_rates: tuple[int, ...] = (1, 2, 3)
    mid_div: int = 4  # root and branches have channels // mid_div channels

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, c)`."""
        channels = x.shape[-1]
        middle = max(1, channels // self.mid_div)
        common = normed(self)
        parts = [x]
        for root_rate in self.root_rates:
            root = ConvNorm(middle, rate=root_rate, **common, name=f"root{root_rate}")(
                x, train=train
            )
            parts += [
                ConvNorm(middle, rate=rate, **common, name=f"root{root_rate}_branch{rate}")(
                    root, train=train
                )
                for rate in self.branch_rates
            ]
        return ConvNorm(channels, 1, **common, name="fuse")(
            jnp.concatenate(parts, axis=-1), train=train
        )


class CHASPP(Normed):
    """`stages` cascaded stages of identical structure; the input is added to the result."""

    root_rates: tuple[int, ...] = (6,)
    branch_rates: tuple[int, ...] = (1, 2, 3)
    stages: int = 2
    mid_div: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, c)`."""
        y = x
        for stage in range(self.stages):
            y = CHASPPStage(
                self.root_rates,
                self.branch_rates,
                self.mid_div,
                **normed(self),
                name=f"stage{stage + 1}",
            )(y, train=train)
        return x + y


class ASPP(Normed):
    """Atrous spatial pyramid pooling (paper A, section 3.4): parallel rates and a global mean.

    The rates are 1 (a 1x1 convolution) and every product of a root and a branch rate, so that
    CHASPP and ASPP of one config have fields of view of similar size: (6,) and (1, 2, 3) give
    DeepLab's 6, 12, 18.
    """

    root_rates: tuple[int, ...] = (6,)
    branch_rates: tuple[int, ...] = (1, 2, 3)
    mid_div: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, c)`."""
        channels = x.shape[-1]
        middle = max(1, channels // self.mid_div)
        common = normed(self)
        rates = sorted({root * branch for root in self.root_rates for branch in self.branch_rates})
        parts = [ConvNorm(middle, 1, **common, name="point")(x, train=train)]
        parts += [
            ConvNorm(middle, rate=rate, **common, name=f"rate{rate}")(x, train=train)
            for rate in rates
        ]
        # No norm here: over one pixel, a group norm keeps little more than signs.
        context = ConvNorm(middle, 1, norm="none", dtype=self.dtype, name="context")(
            x.mean(axis=(1, 2), keepdims=True), train=train
        )
        parts.append(jnp.broadcast_to(context, parts[0].shape))
        return x + ConvNorm(channels, 1, **common, name="fuse")(
            jnp.concatenate(parts, axis=-1), train=train
        )


class Pyramid(Normed):
    """The pyramid named by `kind`; "none" is the identity."""

    kind: str = "chaspp"  # one of PYRAMIDS
    root_rates: tuple[int, ...] = (6,)
    branch_rates: tuple[int, ...] = (1, 2, 3)
    stages: int = 2  # of "chaspp"
    mid_div: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, c)`."""
        rates = (tuple(self.root_rates), tuple(self.branch_rates))
        common: dict[str, Any] = dict(mid_div=self.mid_div, **normed(self))
        if self.kind == "chaspp":
            return CHASPP(*rates, stages=self.stages, **common, name="chaspp")(x, train=train)
        if self.kind == "aspp":
            return ASPP(*rates, **common, name="aspp")(x, train=train)
        return x
