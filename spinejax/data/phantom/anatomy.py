"""A random person: every number that decides what `render` draws, from one key.

`anatomy(key)` is a pure function with fixed shapes: `jax.vmap(anatomy)(keys)` makes a batch.
Coordinates are canonical LPS millimetres (x to the left, y to posterior, z to superior) with the
origin at the middle of the spine.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.data.phantom import levels, surroundings
from spinejax.data.phantom.draws import Draws
from spinejax.data.phantom.levels import COLUMNS, SLOTS
from spinejax.data.phantom.warp import draw as draw_warp
from spinejax.data.phantom.warp import unwarp, warp

__all__ = ["anatomy", "centroids", "rotation", "unwarp", "warp"]

Array = jax.Array
Parameters = dict[str, Any]

_TABLE = levels.table()
# Relative spread (one standard deviation) of each size between persons; lengths of processes vary
# most, the canal and the body least.
_SPREAD = np.array(
    [0.08 if c in ("tx", "ty", "sy", "sz", "sh", "iz", "uz") else 0.05 for c in COLUMNS]
)


def rotation(lean: Array, side: Array, turn: Array) -> Array:
    """Rotation matrices (..., 3, 3), columns = a vertebra's x, y, z axes.

    Args:
        lean: Forward tilt, radians: the upper end towards anterior.
        side: Sideways tilt, radians: the upper end towards the left.
        turn: Rotation about the vertical axis, radians.
    """
    one, zero = jnp.ones_like(lean), jnp.zeros_like(lean)

    def stack(rows: list[list[Array]]) -> Array:
        return jnp.stack([jnp.stack(r, -1) for r in rows], -2)

    c, s = jnp.cos(lean), jnp.sin(lean)
    x = stack([[one, zero, zero], [zero, c, -s], [zero, s, c]])
    c, s = jnp.cos(side), jnp.sin(side)
    y = stack([[c, zero, s], [zero, one, zero], [-s, zero, c]])
    c, s = jnp.cos(turn), jnp.sin(turn)
    z = stack([[c, -s, zero], [s, c, zero], [zero, zero, one]])
    return y @ x @ z


def _sizes(draws: Draws, scale: Array) -> dict[str, Array]:
    """Sizes of all slots, name -> (26,)."""
    shared = 1.0 + _SPREAD * draws.normal(len(COLUMNS))
    own = 1.0 + 0.025 * draws.normal(SLOTS, len(COLUMNS))
    values = jnp.asarray(_TABLE) * shared * own * scale
    return {name: values[:, i] for i, name in enumerate(COLUMNS)}


def _parts(s: dict[str, Array], scale: Array) -> Array:
    """Capsules of the posterior elements, (26, 8, 10), from the sizes; see `levels.ATLAS`."""
    zero = jnp.zeros(SLOTS)
    wall, back = s["b"], s["b"] + s["cd"]
    pillar = jnp.maximum(s["cw"] + 0.6 * s["prx"], s["ux"] - 2.0)
    pillar_y = wall + 0.62 * s["uy"] + 1.0
    slot = jnp.arange(SLOTS)
    cervical = slot < levels.T1

    def cap(*numbers: Any) -> Array:
        return jnp.stack(
            [jnp.broadcast_to(jnp.asarray(n, jnp.float32), (SLOTS,)) for n in numbers], 1
        )

    fr = s["fr"]
    flat = jnp.where(cervical, 0.7, 1.0) * fr  # cervical facets lie like tiles
    pedicle = cap(
        0.72 * s["a"], wall - 2.5, s["pz"], pillar, pillar_y, s["pz"],
        s["prx"], s["prx"] + 0.5, s["prz"], 1.0,
    )  # fmt: skip
    superior = cap(
        pillar, pillar_y, s["pz"], s["ux"], wall + s["uy"], s["uz"] - 0.8 * fr,
        fr, flat, fr, 0.86,
    )  # fmt: skip
    inferior = cap(
        jnp.where(cervical, pillar, 0.8 * pillar), wall + 0.8 * s["iy"], s["lz"] * 0.4,
        s["ix"], wall + s["iy"], s["iz"] + 0.85 * fr,
        fr, flat, fr, 0.86,
    )  # fmt: skip
    lamina = cap(
        0.86 * s["cw"] + 1.0, back - 0.28 * s["cd"], 0.4 * s["lz"], 1.5, back + 2.2, s["lz"],
        3.2, 3.2, s["lh"], 0.95,
    )  # fmt: skip
    # The tip's brush must end at the stated span, hence the subtraction of its half width.
    transverse = cap(
        pillar + 0.5, pillar_y, jnp.where(cervical, s["tz"], s["pz"] - 1.0),
        s["tx"] - 0.8 * s["trz"], wall + s["ty"], s["tz"],
        jnp.maximum(s["trx"], 0.8 * s["trz"]), s["trx"], s["trz"], 0.9,
    )  # fmt: skip
    spinous = cap(
        zero, back + 3.0, s["lz"] - 1.5, s["bif"], wall + s["sy"] - 5.0, s["sz"],
        s["sr"], 5.0 * scale, s["sh"], 1.0,
    )  # fmt: skip
    # Cervical: the anterior root of the transverse process, which closes its foramen, and the
    # uncinate process. Elsewhere: mamillary process, and the root of the transverse process.
    root = cap(
        jnp.where(cervical, s["a"] - 1.0, s["ux"]),
        jnp.where(cervical, -1.0, wall + s["uy"] + 2.0),
        jnp.where(cervical, 0.0, s["uz"] - 2.2 * fr),
        jnp.where(cervical, s["tx"] - 4.5, s["ux"] + 1.5),
        jnp.where(cervical, wall - 5.0, wall + s["uy"] + 3.5),
        jnp.where(cervical, s["tz"], s["uz"] - 1.8 * fr),
        2.6, 2.6, 3.0, 1.0,
    )  # fmt: skip
    uncinate = cap(
        jnp.where(cervical, s["a"] - 1.5, pillar), jnp.where(cervical, -2.0, pillar_y),
        jnp.where(cervical, 0.6 * s["h"], 0.0),
        jnp.where(cervical, s["a"] - 0.5, 0.9 * pillar), jnp.where(cervical, 4, wall + s["iy"] - 3),
        jnp.where(cervical, s["h"] + 0.8, s["lz"]),
        jnp.where(cervical, 2.2, 3.5), jnp.where(cervical, 3.0, 3.5), jnp.where(cervical, 2.6, 5.0),
        1.0,
    )  # fmt: skip
    parts = jnp.stack([pedicle, superior, inferior, lamina, transverse, spinous, root, uncinate], 1)
    lengths = jnp.where(jnp.arange(10) < 9, scale, 1.0)
    parts = parts.at[levels.C1].set(levels.ATLAS * lengths)
    return parts.at[levels.C2].set(levels.AXIS * lengths)


def _filled(draws: Draws, t13: float, l6: float, no_t12: float) -> Array:
    """Which slots exist, (26,) bool: T13 and a missing T12 exclude each other."""
    u = draws.uniform(3)
    lacks_t12 = u[2] < no_t12
    slot = jnp.arange(SLOTS)
    present = (slot != levels.T13) | ((u[0] < t13) & ~lacks_t12)
    present &= (slot != levels.L6) | (u[1] < l6)
    return present & ((slot != levels.T12) | ~lacks_t12)


def _curve(draws: Draws, order: Array, count: Array, scale: Array) -> dict[str, Array]:
    """Centroids and axes of the vertebrae from top to bottom, and of the sacrum after the last."""
    region = jnp.asarray(np.r_[np.zeros(7), np.ones(13), np.full(6, 2), 2].astype(np.int32))
    bend = 1.0 + 0.22 * draws.normal(3)
    tilt = jnp.asarray(levels.TILT_DEG) * bend[region] + 4.0 * draws.normal()
    lean = jnp.deg2rad(jnp.append(tilt[:-1][order], 0.0).at[count].set(tilt[-1]))
    t = jnp.linspace(0.0, 1.0, SLOTS + 1)
    phase = 2 * jnp.pi * draws.uniform(2)
    size = jnp.deg2rad(2.2 * jnp.abs(draws.normal(2)))
    waves = size * jnp.sin(jnp.array([1.0, 2.0]) * 2 * jnp.pi * t[:, None] + phase)
    side = waves.sum(1) + jnp.deg2rad(1.5) * draws.normal()
    turn = -0.8 * waves.sum(1)  # vertebrae of a scoliotic curve turn with it
    axes = rotation(lean, side, turn)
    step = jnp.asarray(levels.DISTANCES_MM)[order] * scale
    mean = axes[:-1, :, 2] + axes[1:, :, 2]
    mean = mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)
    below = -jnp.cumsum((mean * step[:, None]).at[0].set(0.0), 0)
    origin = jnp.concatenate([jnp.zeros((1, 3)), below])  # the axis is at zero, row 1
    atlas = axes[1] @ (jnp.array([0.0, 9.8, 14.2]) * scale)
    origin = origin.at[0].set(atlas)
    real = jnp.arange(SLOTS) < count
    middle = jnp.sum(jnp.where(real[:, None], origin[:-1], 0.0), 0) / count
    return {"origin": origin - middle, "axes": axes}


def anatomy(key: Array, *, t13: float = 0.02, l6: float = 0.06, no_t12: float = 0.02) -> Parameters:
    """Draw a person.

    Args:
        key: Random key.
        t13: Probability of a thirteenth thoracic vertebra (VerSe id 28).
        l6: Probability of a sixth lumbar vertebra (25).
        no_t12: Probability that T12 (19) is missing; excludes T13.

    Returns:
        Pytree of arrays whose shapes do not depend on the key. `["spine"]["id"]` (26,) holds the
        VerSe ids from top to bottom, 0 for places that are not filled (all at the end), and
        `["spine"]["origin"]` (26, 3) the body centroids before everything is displaced by
        `["warp"]`: `centroids` tells where they are in a scan.
    """
    draws = Draws(key)
    scale = 1.0 + 0.05 * draws.normal()
    present = _filled(draws, t13, l6, no_t12)
    count = jnp.sum(present)
    order = jnp.argsort(~present, stable=True)
    curve = _curve(draws, order, count, scale)
    real = jnp.arange(SLOTS) < count

    size = _sizes(draws, scale)
    parts = _parts(size, scale)
    axis = jnp.arange(SLOTS) == levels.C2
    size["waist"] = jnp.where(jnp.arange(SLOTS) < levels.T1, 0.04, 0.10)
    # The axis: the drum below the dens. Its centroid is that of both.
    size["bz"] = jnp.where(axis, -7.6 * scale, 0.0)
    size["canal_d"] = 0.5 * size["cd"] + 0.6
    size["canal_y"] = size["b"] + 0.5 * size["cd"]
    atlas = jnp.arange(SLOTS) == levels.C1
    for name, value in {"cw": 13.2, "canal_d": 13.0, "canal_y": 6.8}.items():
        size[name] = jnp.where(atlas, value * scale, size[name])
    # A compressed vertebra now and then: lower, and lower still in front.
    crushed = draws.uniform(SLOTS) < 0.015
    crushed &= jnp.arange(SLOTS) > levels.T1 + 2
    size["wedge"] = jnp.where(crushed, size["wedge"] - 0.14 * size["h"], size["wedge"])
    size["conc"] = jnp.where(crushed, size["conc"] + 1.0, size["conc"])
    size["h"] = jnp.where(crushed, 0.80 * size["h"], size["h"])
    # A disc fills what lies between two bodies.
    size["disc"] = jnp.asarray(levels.DISTANCES_MM) * scale - 2.0 * size["h"] + 1.0

    spread = draws.normal(2)
    own = draws.normal(2, SLOTS)
    spine = {
        "id": jnp.where(real, jnp.asarray(levels.SLOT_IDS)[order], 0),
        "origin": jnp.where(real[:, None], curve["origin"][:-1], 1e5),
        "rotation": curve["axes"][:-1],
        "size": {name: value[order] for name, value in size.items()},
        "parts": parts[order],
        "has_body": jnp.where(atlas, 0.0, 1.0)[order],
        # Everything of a vertebra lies in this ball about a point behind its body.
        "centre_y": 0.4 * (size["b"] + size["sy"])[order],
        "reach": (1.04 * jnp.maximum(jnp.hypot(size["tx"], 8.0), 0.62 * size["sy"] + 24.0) + 6.0)[
            order
        ],
        "cancellous": jnp.clip(135.0 + 45.0 * spread[0] + 12.0 * own[0], 40.0, 260.0)[order],
        "cortical": jnp.clip(790.0 + 110.0 * spread[1] + 40.0 * own[1], 550.0, 1150.0)[order],
    }
    sacrum = {"origin": curve["origin"][count], "rotation": curve["axes"][count]}
    others = surroundings.surroundings(draws, spine, sacrum, present, curve["origin"], count, scale)
    return {"spine": spine, "warp": draw_warp(draws), **others}


def centroids(parameters: Parameters) -> tuple[Array, Array]:
    """VerSe ids (26,), 0 where there is none, and body centroids (26, 3) in canonical mm."""
    spine = parameters["spine"]
    return spine["id"], unwarp(spine["origin"], parameters)
