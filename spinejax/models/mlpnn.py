"""Multi-layer perceptron on features of each voxel, rows of paper A's Table 11.

Zareie et al., Australasian Physical & Engineering Sciences in Medicine 41, 2018,
10.1007/s13246-018-0702-3. MLPNN has seven features and MLPNN1F one.
"""

from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.models.layers import Logits, Network
from spinejax.schema import Choice


def _taps(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the value before, at and after each pixel along an axis; the outermost is repeated."""
    n = x.shape[axis]
    sides = [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)]
    padded = jnp.pad(x, sides, mode="edge")
    before, here, after = (jax.lax.slice_in_dim(padded, at, at + n, axis=axis) for at in range(3))
    return before, here, after


def _mean(x: jax.Array) -> jax.Array:
    for axis in (1, 2):
        before, here, after = _taps(x, axis)
        x = (before + here + after) / 3
    return x


def _deviation(x: jax.Array) -> jax.Array:
    # Values minus the centre's: float32 loses digits where squares are much larger than variances.
    rows = _taps(x, 1)
    shifted = jnp.stack([tap - x for row in rows for tap in _taps(row, 2)])
    return shifted.std(0)


def _gradient(x: jax.Array) -> jax.Array:
    def along(axis: int) -> jax.Array:
        before, _, after = _taps(x, axis)
        a, b, c = _taps(after - before, 3 - axis)
        return (a + 2 * b + c) / 8

    return jnp.hypot(along(1), along(2))


def _minimum(x: jax.Array) -> jax.Array:
    for axis in (1, 2):
        a, b, c = _taps(x, axis)
        x = jnp.minimum(jnp.minimum(a, b), c)
    return x


def _middle(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """Return the median of three."""
    return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))


def _median(x: jax.Array) -> jax.Array:
    # Of nine values in sorted columns, the median is that of three: the largest of the minima, the
    # median of the medians, and the smallest of the maxima.
    column = _taps(x, 1)
    a, b, c = column
    low = jnp.minimum(jnp.minimum(a, b), c)
    high = jnp.maximum(jnp.maximum(a, b), c)
    lows, middles, highs = (_taps(y, 2) for y in (low, _middle(*column), high))
    return _middle(
        jnp.maximum(jnp.maximum(lows[0], lows[1]), lows[2]),
        _middle(*middles),
        jnp.minimum(jnp.minimum(highs[0], highs[1]), highs[2]),
    )


FEATURES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "value": lambda x: x,
    "mean": _mean,
    "deviation": _deviation,
    "gradient": _gradient,
    "median": _median,
    "minimum": _minimum,
    "maximum": lambda x: -_minimum(-x),
}
"""Name -> function of slices (b, h, w) float32 that gives each pixel a feature of its 3 x 3 pixels,
(b, h, w). The outermost pixels are repeated. The gradient is the magnitude of Sobel's, per pixel.
"""


class MLPNN(Network):
    """Perceptron with one hidden layer, applied to each pixel of slices.

    Published, in the abstract: seven features of each voxel, and a multi-layer perceptron that
    classifies it as vertebra or background. Chosen here: which features (`FEATURES`), the hidden
    layer of 20 with tanh, and features of 3 x 3 pixels of a slice. A network of slices is trained
    and tested on the same data as the U-Net of the table; features of 3 x 3 x 3 voxels would need
    another task.

    Attributes:
        features: of each pixel; ("value",) makes the network MLPNN1F.
        hidden: width of the hidden layer.
    """

    features: tuple[Annotated[str, Choice(FEATURES)], ...] = tuple(FEATURES)
    hidden: int = 20

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and intermediates of slices `x` (b, h, w, 1)."""
        self.check_input(x.shape)
        image = x[..., 0].astype(jnp.float32)
        found = jnp.stack([FEATURES[name](image) for name in self.features], axis=-1)
        y = nn.tanh(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(found))
        out = {"features": found, "hidden": y}
        return Logits(self.out_channels, name="logits")(y), out
