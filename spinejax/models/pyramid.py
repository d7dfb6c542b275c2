"""Pyramids of atrous convolutions: ASPP and CHASPP.

Paper A, sections 3.4-3.5 and figures 3-4. The exact layers of CHASPP (Lian et al., Pattern
Recognition 110:107622, 2021) are not public; this reads paper A's words so: two cascaded
stages, each a root atrous convolution whose output feeds branch convolutions of small rates, so
that the samples inside the wide field of the root become dense.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.errors import check_choice
from spinejax.models.layers import ConvNorm, Dtype

PYRAMIDS = ("chaspp", "aspp", "none")


class CHASPPStage(nn.Module):
    """One stage: for each root rate a root convolution and its branches; all fused by a 1x1."""

    root_rates: tuple[int, ...] = (6,)
    branch_rates: tuple[int, ...] = (1, 2, 3)
    mid_div: int = 4  # root and branches have channels // mid_div channels
    norm: str = "group"
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, c)`."""
        channels = x.shape[-1]
        middle = max(1, channels // self.mid_div)
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
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


class CHASPP(nn.Module):
    """`stages` cascaded stages of identical structure; the input is added to the result."""

    root_rates: tuple[int, ...] = (6,)
    branch_rates: tuple[int, ...] = (1, 2, 3)
    stages: int = 2
    mid_div: int = 4
    norm: str = "group"
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, c)`."""
        y = x
        for stage in range(self.stages):
            y = CHASPPStage(
                self.root_rates,
                self.branch_rates,
                self.mid_div,
                self.norm,
                self.axis_name,
                self.dtype,
                name=f"stage{stage + 1}",
            )(y, train=train)
        return x + y


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (paper A, section 3.4): parallel rates and a global mean.

    The rates are 1 (a 1x1 convolution) and every product of a root and a branch rate, so that
    CHASPP and ASPP of one config see fields of like size: (6,) and (1, 2, 3) give DeepLab's
    6, 12, 18.
    """

    root_rates: tuple[int, ...] = (6,)
    branch_rates: tuple[int, ...] = (1, 2, 3)
    mid_div: int = 4
    norm: str = "group"
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, c)`."""
        channels = x.shape[-1]
        middle = max(1, channels // self.mid_div)
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        rates = sorted({root * branch for root in self.root_rates for branch in self.branch_rates})
        parts = [ConvNorm(middle, 1, **common, name="point")(x, train=train)]
        parts += [
            ConvNorm(middle, rate=rate, **common, name=f"rate{rate}")(x, train=train)
            for rate in rates
        ]
        # No norm here: over one pixel a group norm would leave little but signs.
        context = ConvNorm(middle, 1, norm="none", dtype=self.dtype, name="context")(
            x.mean(axis=(1, 2), keepdims=True), train=train
        )
        parts.append(jnp.broadcast_to(context, parts[0].shape))
        return x + ConvNorm(channels, 1, **common, name="fuse")(
            jnp.concatenate(parts, axis=-1), train=train
        )


class Pyramid(nn.Module):
    """The pyramid named by `kind`; "none" is the identity."""

    kind: str = "chaspp"  # one of PYRAMIDS
    root_rates: tuple[int, ...] = (6,)
    branch_rates: tuple[int, ...] = (1, 2, 3)
    stages: int = 2  # of "chaspp"
    mid_div: int = 4
    norm: str = "group"
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map `(b, h, w, c)` to `(b, h, w, c)`."""
        rates = (tuple(self.root_rates), tuple(self.branch_rates))
        common: dict[str, Any] = dict(
            mid_div=self.mid_div, norm=self.norm, axis_name=self.axis_name, dtype=self.dtype
        )
        if self.kind == "chaspp":
            return CHASPP(*rates, stages=self.stages, **common, name="chaspp")(x, train=train)
        if self.kind == "aspp":
            return ASPP(*rates, **common, name="aspp")(x, train=train)
        check_choice("model.pyramid", self.kind, PYRAMIDS)
        return x
