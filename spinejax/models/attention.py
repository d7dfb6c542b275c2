"""Attention on the skip connections of a decoder.

Paper A, section 3.3, figure 2. The paper cites a residual attention network but writes down dot
products of queries and keys (equations 1-2), and its figures fit both. The field `attention`
chooses one of three readings. Each maps the skip feature and the upsampled decoder feature, both
`(b, h, w, c)`, to the attended skip feature.
"""

import dataclasses
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.models.layers import ConvNorm, Dtype, Normed, average_pool_to, normed
from spinejax.schema import Choice

QUERY_CHUNK = 512  # on CPUs, scores of at most this many queries are in memory at once


def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """Return q k^T / sqrt(d) in float32: `(b, n, d)`, `(b, m, d)` to `(b, n, m)`."""
    query = query * query.shape[-1] ** -0.5
    return jnp.einsum("bnd,bmd->bnm", query, key, preferred_element_type=jnp.float32)


def _forward(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return attention of one chunk and log(sum(exp(scores))), float32 `(b, n, 1)`."""
    scores = _scores(query, key)
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    # A one beside the values sums the weights in the same product.
    ones = jnp.ones_like(value[..., :1])
    sums = jnp.einsum(
        "bnm,bme->bne",
        weights.astype(value.dtype),
        jnp.concatenate([value, ones], axis=-1),
        preferred_element_type=jnp.float32,
    )
    total = sums[..., -1:]
    return (sums[..., :-1] / total).astype(value.dtype), top + jnp.log(total)


def _split(x: jax.Array) -> jax.Array:
    """`(b, n, d)` to `(chunks, b, chunk, d)`: the largest chunks that divide n evenly."""
    b, n, d = x.shape
    chunk = next(size for size in range(min(n, QUERY_CHUNK), 0, -1) if n % size == 0)
    return x.reshape(b, n // chunk, chunk, d).swapaxes(0, 1)


def _join(x: jax.Array) -> jax.Array:
    """Undo `_split`."""
    chunks, b, chunk, d = x.shape
    return x.swapaxes(0, 1).reshape(b, chunks * chunk, d)


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Return softmax(q k^T / sqrt(d)) v for q `(b, n, d)`, k and v `(b, m, d)`.

    Paper A, equations (1) and (2); the factor 1 / sqrt(d) keeps the scores of order one at the
    start of training. Softmax is over the m keys, in float32.

    CPUs compute it in chunks (`attend_in_chunks`), GPUs and TPUs at once (`attend_at_once`).
    """
    return jax.lax.platform_dependent(
        query, key, value, cpu=attend_in_chunks, default=attend_at_once
    )


@jax.checkpoint
def attend_at_once(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Return the same by `jax.nn.dot_product_attention`, with one head.

    The backward pass computes the scores again. So those of one attention are in memory at a time,
    and not those of all attentions of a network.
    """
    heads = [x[:, :, None] for x in (query, key, value)]
    return jax.nn.dot_product_attention(*heads)[:, :, 0]


@jax.custom_vjp
def attend_in_chunks(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Return the same from chunks of the queries, one after the other.

    A slice of 256 x 256 has 65,536 queries; for 1,024 keys that is 268 MB of scores, so queries go
    through in chunks and the backward pass computes each chunk's scores again, from the saved
    normaliser (Rabe and Staats, 2021; Dao et al., FlashAttention, 2022).
    """
    return _attend_forward(query, key, value)[0]


def _attend_forward(
    query: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    out, normaliser = jax.lax.map(lambda chunk: _forward(chunk, key, value), _split(query))
    out = _join(out)
    return out, (query, key, value, out, _join(normaliser))


def _attend_backward(
    saved: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    query, key, value, out, normaliser = saved
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def chunk(
        sums: tuple[jax.Array, jax.Array], x: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        query, out, normaliser, cotangent = x
        weights = jnp.exp(_scores(query, key) - normaliser)
        # d(scores) = weights * (g v^T - g . out), the subtraction as one more column.
        along = jnp.sum(cotangent * out, axis=-1, keepdims=True)
        d_scores = weights * product(
            "bne,bme->bnm",
            jnp.concatenate([cotangent, -along], axis=-1),
            jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1),
        )
        d_scores, weights = d_scores.astype(key.dtype), weights.astype(value.dtype)
        # The sums are (b, d, m). As (b, m, d) the wide matrix would be the left operand, and the
        # product would take ten times as long on CPUs.
        d_key = sums[0] + product("bnd,bnm->bdm", query, d_scores)
        d_value = sums[1] + product("bne,bnm->bem", cotangent, weights)
        return (d_key, d_value), product("bnm,bmd->bnd", d_scores, key).astype(query.dtype)

    zeros = [jnp.zeros(x.swapaxes(1, 2).shape, jnp.float32) for x in (key, value)]
    (d_key, d_value), d_query = jax.lax.scan(
        chunk, (zeros[0], zeros[1]), tuple(map(_split, (query, out, normaliser, cotangent)))
    )
    scale = query.shape[-1] ** -0.5
    return (
        _join(d_query) * scale,
        (d_key.swapaxes(1, 2) * scale).astype(key.dtype),
        d_value.swapaxes(1, 2).astype(value.dtype),
    )


attend_in_chunks.defvjp(_attend_forward, _attend_backward)


class DotProductAttention(nn.Module):
    """Queries of the decoder at full resolution; keys and values of the pooled skip.

    The result, projected back to the skip's width, is added to the skip.
    """

    key_size: int = 16  # keys and values are averaged to at most this many pixels a side
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
        attended = attend(query, key, value)
        return skip + dense(c, name="out")(attended).reshape(b, h, w, c)


class GateAttention(Normed):
    """Additive attention gate (Oktay et al., 2018): one weight in (0, 1) per pixel of the skip."""

    @nn.compact
    def __call__(self, skip: jax.Array, gate: jax.Array, *, train: bool) -> jax.Array:
        """Gate: `(b, h, w, c)` and `(b, h, w, g)` to `(b, h, w, c)`."""
        inner = max(1, skip.shape[-1] // 2)
        common = dict(**normed(self), activate=False)
        from_skip = ConvNorm(inner, 1, **common, name="skip")(skip, train=train)
        from_gate = ConvNorm(inner, 1, **common, name="gate")(gate, train=train)
        weight = nn.Conv(1, (1, 1), dtype=self.dtype, name="weight")(nn.relu(from_skip + from_gate))
        return skip * nn.sigmoid(weight)


class ResidualAttention(Normed):
    """(1 + M) * T with T the skip and M a mask in (0, 1) (Wang et al., 2017, paper A's [38]).

    M is computed from both features at half resolution (their shallowest mask branch) and upsampled
    bilinearly. If a side is odd, it is computed at full resolution.
    """

    @nn.compact
    def __call__(self, skip: jax.Array, gate: jax.Array, *, train: bool) -> jax.Array:
        """Attend: `(b, h, w, c)` and `(b, h, w, g)` to `(b, h, w, c)`."""
        b, h, w, c = skip.shape
        common = normed(self)
        both = jnp.concatenate([skip, gate], axis=-1)
        both = ConvNorm(max(1, c // 2), 1, **common, name="reduce")(both, train=train)
        half = both if h % 2 or w % 2 else nn.avg_pool(both, (2, 2), (2, 2))
        half = ConvNorm(max(1, c // 2), **common, name="conv")(half, train=train)
        mask = nn.Conv(c, (1, 1), dtype=self.dtype, name="mask")(half)
        mask = jax.image.resize(mask, (b, h, w, c), "bilinear")
        return (1 + nn.sigmoid(mask)) * skip


ATTENTIONS: dict[str, type[nn.Module] | None] = {
    "dot_product": DotProductAttention,
    "gate": GateAttention,
    "residual": ResidualAttention,
    "none": None,
}
"""Name -> module, called with (skip, gate, train=...). A module gets the fields of `Attention` that
it also has."""

AttentionKind = Annotated[str, Choice(ATTENTIONS)]


class Attention(Normed):
    """The attention named by `kind`; "none" returns the skip as it is."""

    kind: str = "dot_product"  # one of ATTENTIONS
    key_size: int = 16  # of "dot_product"

    @nn.compact
    def __call__(self, skip: jax.Array, gate: jax.Array, *, train: bool) -> jax.Array:
        """Attend to `skip` (b, h, w, c), asked by the decoder feature `gate` (b, h, w, g)."""
        kind = ATTENTIONS[self.kind]
        if kind is None:
            return skip
        common = dict(key_size=self.key_size, **normed(self))
        known = {field.name for field in dataclasses.fields(kind)}
        fields: dict[str, Any] = {k: v for k, v in common.items() if k in known}
        return kind(**fields, name=self.kind)(skip, gate, train=train)
