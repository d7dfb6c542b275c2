"""Attention on the skip connections of a decoder.

Paper A, section 3.3, figure 2. The paper cites a residual attention network but writes down dot
products of queries and keys (equations 1-2); FACTS 2.3 puts three readings behind one switch.
Each takes the skip feature and the upsampled decoder feature, both `(b, h, w, c)`, and returns the
skip feature attended to.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.choices import check_choice
from spinejax.models.layers import ConvNorm, Dtype, average_pool_to

ATTENTIONS = ("dot_product", "gate", "residual", "none")

QUERY_CHUNK = 4096  # queries whose scores exist at one time


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Return softmax(q k^T / sqrt(d)) v for q `(b, n, d)`, k `(b, m, d)`, v `(b, m, e)`.

    Paper A, equations (1) and (2); the factor 1 / sqrt(d) keeps the scores of order one at the
    start of training. Softmax is over the m keys, in float32.
    """
    scores = jnp.einsum("bnd,bmd->bnm", query, key, preferred_element_type=jnp.float32)
    # The largest score cancels in the quotient; leaving it out of the derivative saves passes
    # over the largest array of the network.
    scores = scores * query.shape[-1] ** -0.5
    scores = scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores)
    # Ones beside the values sum the weights in the same product.
    padded = jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)
    sums = jnp.einsum(
        "bnm,bme->bne", weights.astype(value.dtype), padded, preferred_element_type=jnp.float32
    )
    return (sums[..., :-1] / sums[..., -1:]).astype(value.dtype)


def attend_in_chunks(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`attend` with at most QUERY_CHUNK queries in memory, forward and backward.

    A slice of 256 x 256 has 65,536 queries for 1,024 keys: 268 MB of scores. The backward pass
    computes each chunk's scores again.
    """
    b, n, d = query.shape
    if n <= QUERY_CHUNK or n % QUERY_CHUNK:
        return attend(query, key, value)
    chunks = query.reshape(b, n // QUERY_CHUNK, QUERY_CHUNK, d).swapaxes(0, 1)
    out = jax.lax.map(jax.checkpoint(partial(attend, key=key, value=value)), chunks)
    return out.swapaxes(0, 1).reshape(b, n, value.shape[-1])


class DotProductAttention(nn.Module):
    """Queries of the decoder at full resolution; keys and values of the pooled skip.

    The result, projected back to the skip's width, is added to the skip.
    """

    key_size: int = 32  # keys and values are averaged to at most this many pixels a side
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, skip: jax.Array, gate: jax.Array, *, train: bool) -> jax.Array:
        """Attend: `(b, h, w, c)` and `(b, h, w, g)` to `(b, h, w, c)`."""
        b, h, w, c = skip.shape
        inner = max(1, c // 2)
        dense = partial(nn.Dense, use_bias=False, dtype=self.dtype)
        pooled = average_pool_to(skip, self.key_size).reshape(b, -1, c)
        query = dense(inner, name="query")(gate.reshape(b, h * w, -1))
        key = dense(inner, name="key")(pooled)
        value = dense(inner, name="value")(pooled)
        attended = attend_in_chunks(query, key, value)
        return skip + dense(c, name="out")(attended).reshape(b, h, w, c)


class GateAttention(nn.Module):
    """Additive attention gate (Oktay et al., 2018): one weight in (0, 1) per pixel of the skip."""

    norm: str = "group"
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, skip: jax.Array, gate: jax.Array, *, train: bool) -> jax.Array:
        """Gate: `(b, h, w, c)` and `(b, h, w, g)` to `(b, h, w, c)`."""
        inner = max(1, skip.shape[-1] // 2)
        common: dict[str, Any] = dict(
            norm=self.norm, axis_name=self.axis_name, dtype=self.dtype, activate=False
        )
        from_skip = ConvNorm(inner, 1, **common, name="skip")(skip, train=train)
        from_gate = ConvNorm(inner, 1, **common, name="gate")(gate, train=train)
        weight = nn.Conv(1, (1, 1), dtype=self.dtype, name="weight")(nn.relu(from_skip + from_gate))
        return skip * nn.sigmoid(weight)


class ResidualAttention(nn.Module):
    """(1 + M) * T with T the skip and M a mask in (0, 1) (Wang et al., 2017, paper A's [38]).

    M comes from both features at half resolution (their bottom-up top-down mask branch at its
    shallowest), brought back bilinearly; where a side is odd, at full resolution.
    """

    norm: str = "group"
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, skip: jax.Array, gate: jax.Array, *, train: bool) -> jax.Array:
        """Attend: `(b, h, w, c)` and `(b, h, w, g)` to `(b, h, w, c)`."""
        b, h, w, c = skip.shape
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        both = jnp.concatenate([skip, gate], axis=-1)
        both = ConvNorm(max(1, c // 2), 1, **common, name="reduce")(both, train=train)
        half = both if h % 2 or w % 2 else nn.avg_pool(both, (2, 2), (2, 2))
        half = ConvNorm(max(1, c // 2), **common, name="conv")(half, train=train)
        mask = nn.Conv(c, (1, 1), dtype=self.dtype, name="mask")(half)
        mask = jax.image.resize(mask, (b, h, w, c), "bilinear")
        return (1 + nn.sigmoid(mask)) * skip


class Attention(nn.Module):
    """The attention named by `kind`; "none" returns the skip as it is."""

    kind: str = "dot_product"  # one of ATTENTIONS
    key_size: int = 32  # of "dot_product"
    norm: str = "group"
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, skip: jax.Array, gate: jax.Array, *, train: bool) -> jax.Array:
        """Attend to `skip` (b, h, w, c), asked by the decoder feature `gate` (b, h, w, g)."""
        common: dict[str, Any] = dict(norm=self.norm, axis_name=self.axis_name, dtype=self.dtype)
        if self.kind == "dot_product":
            return DotProductAttention(self.key_size, self.dtype, name="dot_product")(
                skip, gate, train=train
            )
        if self.kind == "gate":
            return GateAttention(**common, name="gate")(skip, gate, train=train)
        if self.kind == "residual":
            return ResidualAttention(**common, name="residual")(skip, gate, train=train)
        check_choice("model.attention", self.kind, ATTENTIONS)
        return skip
