"""The HU that a scanner stores: voltage, kernel, shading, streaks of metal, noise, clipping.

A scan that is read is smoothed and resampled before a network sees it. `signal` makes slices as
they look afterwards (`smoothing_mm`), and volumes as they are stored (`smoothing_mm=0`).
"""

from typing import Any

import jax
import jax.numpy as jnp

from spinejax.phantom.body import scene
from spinejax.phantom.once import when
from spinejax.phantom.scanner import artefacts, noise_field
from spinejax.phantom.scanner.scan_plan import Protocol

Array = jax.Array

SMOOTHING_MM = 0.75
"""Standard deviation of the smoothing before a network sees a scan (data/preprocess.py)."""


def noise_level(protocol: Protocol, smoothing_mm: Any) -> Array:
    """Standard deviation of the noise, HU, after a Gaussian of `smoothing_mm`."""
    ratio = noise_field.energy(protocol, smoothing_mm) / noise_field.energy(protocol, SMOOTHING_MM)
    return jnp.minimum(protocol["noise"] * jnp.sqrt(jnp.prod(ratio)), 160.0)


def thick(pixel_mm: Any, protocol: Protocol) -> Array:
    """Return whether acquired slices lie further apart than pixels along z (bool)."""
    return protocol["pitch_mm"] > pixel_mm + 1e-3


def axial_slices(hu: Array, z: Array, pixel_mm: Any, protocol: Protocol) -> Array:
    """Show a clean image, with z along its last axis, as `thick` axial slices show it.

    Each slice is the mean over its thickness; between slices, resampling interpolates linearly.

    Args:
        hu: (..., n).
        z: (n,) heights, mm.
        pixel_mm: Distance of neighbours along z.
        protocol: From `scan_plan.protocol`.

    Returns:
        HU (..., n); `hu` itself where slices are not thick.
    """
    lower, pitch = protocol["lower"][2], protocol["pitch_mm"]
    half, pixel = 0.5 * jnp.maximum(protocol["axial_mm"], pixel_mm), 0.5 * pixel_mm
    place = (z - lower) / pitch
    below = jnp.floor(place)

    def mean(slices: Array) -> Array:
        middle = jnp.clip(lower + slices * pitch, z[0], z[-1])[:, None]
        top, bottom = jnp.minimum(z + pixel, middle + half), jnp.maximum(z - pixel, middle - half)
        share = jnp.maximum(top - bottom, 0.0)
        return share / jnp.sum(share, 1, keepdims=True)

    upper = (place - below)[:, None]
    weights = (1.0 - upper) * mean(below) + upper * mean(below + 1.0)
    weights = jnp.where(thick(pixel_mm, protocol), weights, jnp.eye(len(z)))
    return jnp.einsum("...i,ji->...j", hu, weights, precision="highest")


def signal(
    hu: Array,
    points: Array,
    parameters: dict[str, Any],
    protocol: Protocol,
    pixel_mm: Any,
    *,
    smoothing_mm: float = SMOOTHING_MM,
    first: tuple[Any, ...] = (0, 0, 0),
) -> Array:
    """Turn clean HU into those that a scanner stores.

    Args:
        hu: (h, w) or (d, h, w), from `render` at `view.where(points, protocol)`.
        points: The grid, (*hu.shape, 3), canonical LPS mm, axes along x, y or z.
        parameters: From `anatomy`.
        protocol: From `scan_plan.protocol`.
        pixel_mm: Distance of neighbours, a number or one per axis, for axes of a single pixel.
        smoothing_mm: Standard deviation of later smoothing.
        first: Index of the block's first pixel, for blocks of a volume.

    Returns:
        HU (*hu.shape) float32, -1024 outside the field of view.
    """
    frame = artefacts.frame(points, pixel_mm)
    hu = hu + (protocol["voltage"] - 1.0) * jnp.maximum(hu, 0.0)
    # Kernels work in the axial plane: along z, only slices are thick.
    share = 1.0 - frame["direction"][:, 2] ** 2
    hu = hu + protocol["sharpness"] * noise_field.detail(
        hu, share * protocol["sharp_mm"] / frame["step"]
    )
    body = scene.outline(points[..., 2], parameters["profile"])
    body = artefacts.attenuation(points, body, protocol)
    hu = hu + body["shade"] + protocol["offset"]
    hu = hu + protocol["metal_gain"] * artefacts.metal(points, parameters, protocol)
    seeds = protocol["noise_seed"]

    def noise(seed: Array, streaks: bool) -> Array:
        return noise_field.noise(
            seed, hu.shape, first, frame, protocol, smoothing_mm, streaks=streaks
        )

    streaks = when(
        jnp.any(body["streaks"] > 0.02),
        lambda: body["streaks"] * noise(seeds[1], True),
        jnp.zeros_like(hu),
    )
    hu = hu + noise_level(protocol, smoothing_mm) * (
        body["noise"] * noise(seeds[0], False) + streaks
    )
    hu = jnp.clip(hu, -1024.0, protocol["clip"])
    middle = 0.5 * (protocol["lower"] + protocol["upper"])
    off = jnp.hypot(points[..., 0] - middle[0], points[..., 1] - middle[1])
    hu = jnp.where(off > protocol["circle_mm"], protocol["outside"], hu)
    slack = 0.51 * jnp.max(frame["step"])
    seen = (points >= protocol["lower"] - slack) & (points <= protocol["upper"] + slack)
    return jnp.where(jnp.all(seen, -1), hu, -1024.0)
