"""HU from distances: blurred edges, bone with its shell, textures.

Every edge is drawn as a plane edge after a Gaussian of standard deviation `edge_mm`. So a compact
shell thinner than the blur loses contrast as in a scan (partial volume), without a convolution.
"""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
AIR_HU = -1000.0


def inside(d: Array, edge_mm: Any) -> Array:
    """Share of a blurred point that lies inside: 1 deep in, 1/2 on the surface.

    Args:
        d: Signed distance, mm.
        edge_mm: Standard deviation of the blur; the normal distribution is approximated by the
            logistic one (within 0.01).
    """
    return jax.nn.sigmoid(-1.702 * d / edge_mm)


def spare(edge_mm: Any) -> Array:
    """How far, in mm, a blurred edge still shows beyond the 3 mm that all margins allow for it.

    Four standard deviations from a surface, a thousandth of the blurred part is left.
    """
    return jnp.maximum(4.0 * edge_mm - 3.0, 0.0)


def over(hu: Array, new_hu: Any, d: Array, edge_mm: Any) -> Array:
    """Lay `new_hu` over `hu` where `d` is negative."""
    return hu + (new_hu - hu) * inside(d, edge_mm)


def bone(hu: Array, d: Array, shell_mm: Any, cortical: Any, cancellous: Any, edge_mm: Any) -> Array:
    """Lay bone over `hu`: a shell of compact bone around cancellous bone."""
    outer, inner = inside(d, edge_mm), inside(d + shell_mm, edge_mm)
    return hu * (1.0 - outer) + cortical * (outer - inner) + cancellous * inner


def sine(x: Array) -> Array:
    """Sine of moderate angles, to 3e-5.

    A polynomial: on CPUs the library's sine takes ten times as long, since it is called number by
    number, and points spend much of their time on waves.
    """
    t = x * (0.5 / jnp.pi)
    t = t - jnp.round(t)
    s = t * t
    odd = 6.28305581 + s * (-41.3312149 + s * (81.3668242 + s * (-74.4780536 + s * 32.7814902)))
    return t * odd


def texture(x: Array, y: Array, z: Array, waves: dict[str, Array], edge_mm: Any = 0.0) -> Array:
    """Smooth random pattern from plane waves, standard deviation about 1 before it is blurred.

    A Gaussian of standard deviation `edge_mm` weakens a wave of wave number k by
    exp(-(k edge_mm)^2 / 2), so that coarse scans lack fine patterns.
    """
    weight = jnp.exp(-0.5 * jnp.sum(waves["wave"] ** 2, -1) * edge_mm**2)
    total = jnp.zeros_like(x)
    count = waves["phase"].shape[0]
    for i in range(count):
        w = waves["wave"][i]
        total += weight[i] * sine(x * w[0] + y * w[1] + z * w[2] + waves["phase"][i])
    return total * (2.0 / count) ** 0.5
