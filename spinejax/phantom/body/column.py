"""The column at points: the nearest vertebra, and the places of discs and the canal.

Points of a block lie close together: only the vertebrae from the first to the last one that reach
the block are evaluated.
"""

from typing import Any

import jax
import jax.numpy as jnp

from spinejax.phantom.body import shapes
from spinejax.phantom.body.shapes import FAR, local
from spinejax.phantom.body.warp import unwarp
from spinejax.phantom.once import kept, turns

Array = jax.Array


def reaches(p: Array, spine: dict[str, Any], spare: Any = 0.0) -> Array:
    """Return whether each vertebra may matter at each point, bool (26, n): see `anatomy`.

    Args:
        p: Points (n, 3).
        spine: As in `anatomy`.
        spare: From `tissues.spare`, mm.
    """
    centre = spine["origin"] + spine["centre_y"][:, None] * spine["rotation"][:, :, 1]
    up = spine["rotation"][:, :, 2]
    x, y, z = (p[:, i] - centre[:, i, None] for i in range(3))
    height = x * up[:, :1] + y * up[:, 1:2] + z * up[:, 2:]  # the centre lies at that of the body
    reach = (spine["reach"] + spare) ** 2 * (spine["id"] > 0)
    near = x * x + y * y + z * z < reach[:, None]
    low, high = spine["low"] - spare, spine["high"] + spare
    return near & (height > low[:, None]) & (height < high[:, None])


def centroids(parameters: dict[str, Any]) -> tuple[Array, Array]:
    """VerSe ids (26,), 0 where there is none, and body centroids (26, 3) in canonical mm."""
    spine = parameters["spine"]
    return spine["id"], unwarp(spine["origin"], parameters)


def vertebrae(p: Array, spine: dict[str, Any], spare: Any = 0.0) -> dict[str, Array]:
    """Nearest and second nearest vertebra, discs and canal, at points (n, 3).

    Under x, y and z: coordinates in the frame of the nearest vertebra. `spare` as in `reaches`.
    """
    hit = jnp.any(reaches(p, spine, spare), 1)
    index = jnp.arange(hit.shape[0])
    first = jnp.min(jnp.where(hit, index, hit.shape[0]))
    last = jnp.max(jnp.where(hit, index, -1)) + 1
    far = jnp.full(p.shape[:1], FAR)
    start = {
        "nearest": far, "second": far, "drum": far, "disc": far, "canal": far,
        "x": far, "y": far, "z": far,
        "slot": jnp.zeros(p.shape[:1], jnp.int32),
    }  # fmt: skip

    def add(i: Array, best: dict[str, Array]) -> dict[str, Array]:
        take = jax.tree.map(lambda a: a[i], spine)
        x, y, z = kept(p, local(p, take))
        size = take["size"]
        at = shapes.vertebra(x, y, z, size, take["parts"], take["has_body"])
        canal = jnp.maximum(at["canal"], jnp.abs(z) - 0.5 * size["disc"] - size["h"] - 2.0)
        d = jnp.where(take["id"] > 0, at["vertebra"], FAR)
        d, drum, disc, canal = kept(p, (d, at["drum"], at["disc"], canal))
        wins = d < best["nearest"]
        return {
            "nearest": jnp.minimum(d, best["nearest"]),
            "second": jnp.where(wins, best["nearest"], jnp.minimum(d, best["second"])),
            "drum": jnp.where(wins, drum, best["drum"]),
            "disc": jnp.minimum(disc, best["disc"]),
            "canal": jnp.minimum(canal, best["canal"]),
            "slot": jnp.where(wins, i, best["slot"]),
            "x": jnp.where(wins, x, best["x"]),
            "y": jnp.where(wins, y, best["y"]),
            "z": jnp.where(wins, z, best["z"]),
        }

    return turns(first, last, hit.shape[0], add, start)
