"""The true shape of vertebral bodies: their end plates as points, for checks of measurements.

A body is the drum of `shapes.body` without the canal. Its surface is that of the labels, which lie
`render.RIM_MM` beyond the surface of bone.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom.body import shapes
from spinejax.phantom.body.render import RIM_MM
from spinejax.phantom.body.warp import unwarp

_STEP_MM = 0.25
_COLUMNS = 31  # across and along the depth


@dataclass(frozen=True, eq=False)
class Body:
    """A vertebral body in its own frame: x to the left, y to posterior, z to superior.

    Attributes:
        width_mm: of the body at mid height, through its middle.
        depth_mm: of the body at mid height, on the midline.
        across: (n,) places of columns: shares of the half width, from -0.75 to 0.75.
        depth: (m,) shares of the depth, from 0 at the front to 1.
        top: (n, m, 3) points of the upper end plate, mm.
        bottom: (n, m, 3) of the lower one.
    """

    width_mm: float
    depth_mm: float
    across: np.ndarray
    depth: np.ndarray
    top: np.ndarray
    bottom: np.ndarray


@jax.jit
def _distance(x: jax.Array, y: jax.Array, z: jax.Array, size: Any) -> jax.Array:
    drum, _, _ = shapes.body(x, y, z, size)
    canal = shapes.ellipse(x, y - size["canal_y"], size["cw"], size["canal_d"])
    return shapes.smooth_max(drum, -canal, 1.2) - RIM_MM


def body(parameters: dict[str, Any], slot: int) -> Body:
    """Return the true body of a vertebra.

    Args:
        parameters: from `anatomy`.
        slot: its place in `parameters["spine"]["id"]`; not the atlas, which has no body.
    """
    size = jax.tree.map(lambda one: one[slot], parameters["spine"]["size"])
    middle = float(size["bz"])
    along = jnp.arange(0.0, 60.0, _STEP_MM)
    zero = jnp.zeros_like(along)

    def wall(x: jax.Array, y: jax.Array) -> float:
        return _first_outside(_distance(x, y, zero + middle, size)) * _STEP_MM

    front, behind = wall(zero, -along), wall(zero, along)
    at = 0.5 * (behind - front) + zero
    left, right = wall(along, at), wall(-along, at)
    across = np.linspace(-0.75, 0.75, _COLUMNS)
    depth = np.linspace(0.0, 1.0, _COLUMNS)
    x = 0.5 * (left - right) + 0.5 * (left + right) * across
    y = -front + (front + behind) * depth
    grid = jnp.meshgrid(jnp.asarray(x), jnp.asarray(y), along, indexing="ij")
    ends = []
    for sign in (1.0, -1.0):
        height = _first_outside(_distance(grid[0], grid[1], middle + sign * grid[2], size))
        z = middle + sign * height * _STEP_MM
        ends.append(np.stack([*np.meshgrid(x, y, indexing="ij"), z], axis=-1))
    return Body(left + right, front + behind, across, depth, *ends)


def _first_outside(distance: jax.Array) -> Any:
    """Return where the last axis leaves the body, in steps, between the two points around it."""
    d = np.asarray(distance)
    first = np.maximum((d > 0).argmax(axis=-1), 1)[..., None]
    before, after = (np.take_along_axis(d, first + i, -1)[..., 0] for i in (-1, 0))
    found = first[..., 0] - 1 + before / np.minimum(before - after, -1e-6)
    return float(found) if found.ndim == 0 else found


def in_person(points: np.ndarray, parameters: dict[str, Any], slot: int) -> np.ndarray:
    """Return the places of points (..., 3) of a vertebra's frame, canonical LPS mm."""
    spine = parameters["spine"]
    turned = np.asarray(points) @ np.asarray(spine["rotation"][slot], float).T
    place = jnp.asarray(turned + np.asarray(spine["origin"][slot]), jnp.float32)
    return np.asarray(_unwarped(place, parameters["warp"]))


@jax.jit  # otherwise each call compiles a loop of its own
def _unwarped(points: jax.Array, waves: Any) -> jax.Array:
    return unwarp(points, {"warp": waves})
