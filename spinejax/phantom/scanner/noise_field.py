"""Noise of a scanner: its kernel correlates it, and wide shoulders draw it out to streaks.

White noise is a hash of a voxel's index: blocks of a volume fit together, and the number of blocks
or of processes changes nothing. Filters are short sums, which fuse on any device.
"""

from typing import Any

import jax
import jax.numpy as jnp

from spinejax.white_noise import white

Array = jax.Array

RADIUS = 5  # pixels at which filters of the noise end
DETAIL_RADIUS = 3  # pixels at which filters of the overshoot end
_REACH = (1, 2, 4, 8)  # distances, pixels, of the neighbours that streaks are averaged over


def _filtered(x: Array, axis: int, taps: Array) -> Array:
    """Weighted sum of neighbours along an axis, which gets shorter by len(taps) - 1."""
    n = x.shape[axis] - taps.shape[0] + 1
    cut = [jax.lax.slice_in_dim(x, i, i + n, axis=axis) for i in range(taps.shape[0])]
    return sum((taps[i] * cut[i] for i in range(1, len(cut))), taps[0] * cut[0])


def _gaussian(sigma: Array, radius: int) -> Array:
    k = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    weight = jnp.exp(-0.5 * (k / jnp.maximum(sigma, 0.05)) ** 2)
    return weight / jnp.sum(weight)


def detail(hu: Array, sigma_px: Array) -> Array:
    """`hu` minus a Gaussian of it with standard deviations (ndim,) in pixels."""
    pad = [(DETAIL_RADIUS, DETAIL_RADIUS)] * hu.ndim
    blurred = jnp.pad(hu, pad, mode="edge")
    for axis in range(hu.ndim):
        blurred = _filtered(blurred, axis, _gaussian(sigma_px[axis], DETAIL_RADIUS))
    return hu - blurred


def energy(protocol: dict[str, Array], smoothing_mm: Any) -> Array:
    """Variance (3,) of noise after its filter along x, y, z, in arbitrary units."""
    a = protocol["grain"] ** 2 + smoothing_mm**2
    b = protocol["wide_grain"] ** 2 + smoothing_mm**2
    r = protocol["highpass"]
    return 0.5 * (a**-0.5 + r * r * b**-0.5) - r * jnp.sqrt(2.0) * (a + b) ** -0.5


def _taps(protocol: dict[str, Array], smoothing_mm: Any, axis: dict[str, Array]) -> Array:
    """Taps along an array axis: a Gaussian minus a wider one, of unit energy."""
    share = axis["direction"] ** 2
    narrow = jnp.sum(share * jnp.sqrt(protocol["grain"] ** 2 + smoothing_mm**2)) / axis["step"]
    wide = jnp.sum(share * jnp.sqrt(protocol["wide_grain"] ** 2 + smoothing_mm**2)) / axis["step"]
    r = jnp.sum(share * protocol["highpass"])
    taps = _gaussian(narrow, RADIUS) - r * _gaussian(wide, RADIUS)
    return taps / jnp.sqrt(jnp.sum(taps**2))


def _streaked(x: Array, axis: int, share: Array) -> Array:
    """Average over neighbours near and far along an axis, which gets shorter by 2 sum(_REACH)."""
    c = 0.25 * share
    for d in _REACH:
        n = x.shape[axis] - 2 * d
        low, middle, high = (jax.lax.slice_in_dim(x, i, i + n, axis=axis) for i in (0, d, 2 * d))
        x = (1.0 - 2.0 * c) * middle + c * (low + high)
    return x


def _spread(x: Array, axis: int, taps: Array) -> Array:
    """As `_filtered`, for many taps: a product with a banded matrix."""
    n = x.shape[axis] - taps.shape[0] + 1
    shift = jnp.arange(x.shape[axis]) - jnp.arange(n)[:, None]
    inside = (shift >= 0) & (shift < taps.shape[0])
    band = jnp.where(inside, taps[jnp.clip(shift, 0, taps.shape[0] - 1)], 0.0)
    return jnp.moveaxis(jnp.tensordot(band, x, (1, axis), precision="highest"), 0, axis)


def noise(
    seed: Array,
    shape: tuple[int, ...],
    first: tuple[Any, ...],
    frame: dict[str, Array],
    protocol: dict[str, Array],
    smoothing_mm: Any,
    *,
    streaks: bool = False,
) -> Array:
    """Noise of standard deviation 1, correlated by the kernel and by later smoothing.

    Args:
        seed: Integer.
        shape: Shape of the result.
        first: Index of its first pixel; equal indices have equal noise.
        frame: From `artefacts.frame`.
        protocol: From `scan_plan.protocol`.
        smoothing_mm: Standard deviation of the later smoothing.
        streaks: Draw the noise out along x, as if few photons passed from side to side.
    """
    reach = RADIUS + streaks * sum(_REACH)
    x = white(seed, tuple(n + 2 * reach for n in shape), tuple(f - reach for f in first))
    scale = jnp.ones(())
    if streaks:
        middle = 2 * sum(_REACH)
        impulse = jnp.zeros(2 * middle + 1).at[middle].set(1.0)
        for axis in range(len(shape)):
            taps = _streaked(impulse, 0, frame["direction"][axis, 0] ** 2)
            x = _spread(x, axis, taps)
            scale = scale * jnp.sum(taps**2)
    for axis in range(len(shape)):
        here = jax.tree.map(lambda a, i=axis: a[i], frame)
        # Streaks have no detail along x: they need no further filter there.
        along = here["direction"][0] ** 2 if streaks else 0.0
        taps = _taps(protocol, smoothing_mm, here)
        taps = taps * (1.0 - along) + along * (jnp.arange(2 * RADIUS + 1) == RADIUS)
        x = _filtered(x, axis, taps)
    return x / jnp.sqrt(scale)
