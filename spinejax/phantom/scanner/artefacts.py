"""Shading, streaks of metal, and noise by the thickness of the body."""

from typing import Any

import jax
import jax.numpy as jnp

from spinejax.phantom.body.tissues import sine
from spinejax.phantom.body.warp import unwarp
from spinejax.phantom.once import each

Array = jax.Array

BANDS = 5  # streaks of one piece of metal
METAL_HU = 420.0  # of a strong piece's streak, beside it


def frame(points: Array, pixel_mm: Any) -> dict[str, Array]:
    """Directions (ndim, 3) and steps (ndim,), mm, of a grid's axes.

    Args:
        points: (..., 3) of the grid.
        pixel_mm: Steps along axes of length one, a number or one per axis.
    """
    ndim = points.ndim - 1
    pixel = jnp.broadcast_to(jnp.asarray(pixel_mm, jnp.float32), (ndim,))
    origin = points[(0,) * ndim]
    directions, steps = [], []
    for axis in range(ndim):
        if points.shape[axis] > 1:
            at = tuple(int(i == axis) for i in range(ndim))
            step = points[at] - origin
            length = jnp.linalg.norm(step)
        else:
            step, length = jnp.eye(3)[axis], pixel[axis]
        directions.append(step / jnp.maximum(jnp.linalg.norm(step), 1e-6))
        steps.append(length)
    return {"direction": jnp.stack(directions), "step": jnp.stack(steps)}


def attenuation(
    points: Array, body: dict[str, Array], protocol: dict[str, Array]
) -> dict[str, Array]:
    """Effects of the body's thickness: factors of the noise and of its streaks, and shading.

    In wide and flat parts (shoulders, pelvis) few photons reach the detector along x. The exponent
    is below that of water (half of 0.02 per mm), since the tube's current follows the body.

    Returns:
        `noise` and `streaks` factors of the noise, `shade` HU.
    """
    lateral, frontal = 2.0 * body["width"], 2.0 * body["depth"]
    base = jnp.exp(0.006 * protocol["modulation"] * (0.5 * (lateral + frontal) - 270.0))
    starved = jnp.maximum(jnp.exp(0.013 * (lateral - frontal - 100.0)) - 1.0, 0.0)
    starved = protocol["starvation"] * starved
    x, y = points[..., 0] - body["x"], points[..., 1] - body["y"]
    q = (x / body["width"]) ** 2 + (y / body["depth"]) ** 2
    bowl = 1.0 / (1.0 + q * q)
    wave = protocol["shading_wave"]
    cloud = sum(
        sine(points[..., 0] * w[0] + points[..., 1] * w[1] + points[..., 2] * w[2] + w[3])
        for w in wave
    )
    shade = protocol["cupping"] * (0.5 - bowl) - 10.0 * starved * bowl
    return {
        "noise": base * (0.45 + 0.6 * bowl),
        "streaks": starved * bowl,
        "shade": shade + protocol["shading"] * cloud,
    }


def metal(points: Array, parameters: dict[str, Any], protocol: dict[str, Array]) -> Array:
    """HU that metal adds around it: dark and bright bands in its axial plane.

    Bands run through each piece in random directions and fade with the distance. A dark band joins
    it to the nearest other piece at its height, as between two screws of one vertebra.
    """
    centre, strength = parameters["metal"]["centre"], parameters["metal"]["strength"]
    centre = unwarp(centre, parameters)
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    height = 2.0 + 0.5 * protocol["axial_mm"]
    # Pieces whose plane the points touch come first.
    far = jnp.maximum(jnp.min(z) - centre[:, 2], centre[:, 2] - jnp.max(z))
    reach = (strength > 0) & (far < 4.0 * height)

    def add(i: Array, total: Array) -> Array:
        c = centre[i]
        dx, dy, beside = x - c[0], y - c[1], (z - c[2]) / height
        r = jnp.sqrt(dx * dx + dy * dy + 1.0)
        fall = strength[i] * METAL_HU / (1.0 + r / 14.0) / (1.0 + beside**2) ** 3
        fall = fall * jnp.minimum(r / 6.0, 1.0) ** 2  # not on the metal itself

        def band(u: Array, width: float) -> Array:
            across = (dx * u[1] - dy * u[0]) / (width + 0.03 * r)
            return 1.0 / (1.0 + across**2) ** 2

        turn = protocol["metal_angle"] + 2.4 * i + 0.62832 * jnp.arange(BANDS)
        turn = turn + 0.5 * jnp.sin(7.0 * turn + i)
        sign = jnp.cos(9.0 * turn + i)
        value = sum(
            sign[j] * band(jnp.stack([jnp.cos(turn[j]), jnp.sin(turn[j])]), 1.6)
            for j in range(BANDS)
        )
        away = centre - c
        flat = jnp.hypot(away[:, 0], away[:, 1])
        mate = strength * jnp.exp(-((away[:, 2] / 8.0) ** 2)) / (1.0 + flat / 60.0)
        mate = jnp.where((flat > 8.0) & (flat < 250.0), mate, 0.0)
        other = jnp.argmax(mate)
        towards = away[other, :2] / jnp.maximum(flat[other], 1e-3)
        return total + fall * (value - 1.6 * mate[other] * band(towards, 3.5))

    return each(reach, add, jnp.zeros_like(x))
