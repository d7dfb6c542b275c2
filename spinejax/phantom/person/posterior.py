"""The posterior elements of all vertebrae, as brushes drawn along segments (`shapes.capsule`)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom.draws import Draws
from spinejax.phantom.once import stacked
from spinejax.phantom.person import levels
from spinejax.phantom.person.levels import SLOTS

Array = jax.Array


def parts(s: dict[str, Array], scale: Array, facet: Array, draws: Draws) -> Array:
    """Capsules of the posterior elements, (26, 8, 11).

    Args:
        s: Sizes of all slots, name -> (26,), see `levels.COLUMNS`.
        scale: Size of the person.
        facet: (26,) growth of the articular processes.
        draws: Random numbers: each part of each vertebra is a little unlike its neighbours'.
    """
    zero = jnp.zeros(SLOTS)
    wall, back = s["b"], s["b"] + s["cd"]
    pillar = jnp.maximum(s["cw"] + 0.6 * s["prx"], s["ux"] - 2.0)
    pillar_y = wall + 0.62 * s["uy"] + 1.0
    cervical = jnp.arange(SLOTS) < levels.T1

    def cap(*numbers: Any) -> list[Array]:
        return [jnp.broadcast_to(jnp.asarray(n, jnp.float32), (SLOTS,)) for n in numbers]

    fr = s["fr"] * facet
    flat = jnp.where(cervical, 0.7, 1.0) * fr  # cervical facets lie like tiles
    pedicle = cap(
        0.72 * s["a"], wall - 2.5, s["pz"], pillar, pillar_y, s["pz"],
        s["prx"], s["prx"] + 0.5, s["prz"], 1.0, 0.0,
    )  # fmt: skip
    superior = cap(
        pillar, pillar_y, s["pz"], s["ux"], wall + s["uy"], s["uz"] - 0.8 * fr,
        fr, 0.9 * flat, fr, 0.86, -0.15,
    )  # fmt: skip
    inferior = cap(
        jnp.where(cervical, pillar, 0.8 * pillar), wall + 0.8 * s["iy"], s["lz"] * 0.4,
        s["ix"], wall + s["iy"], s["iz"] + 0.85 * fr,
        fr, flat, fr, 0.86, -0.15,
    )  # fmt: skip
    # Laminae lie like tiles of a roof: the lower edge further back than the upper one.
    lamina = cap(
        0.86 * s["cw"] + 1.0, back - 0.28 * s["cd"], 0.4 * s["lz"], 1.5, back + 2.6, s["lz"],
        3.6, s["lt"], s["lh"], 0.95, s["lean"],
    )  # fmt: skip
    # The tip's brush must end at the stated span, so its half width is subtracted.
    transverse = cap(
        pillar + 0.5, pillar_y, jnp.where(cervical, s["tz"], s["pz"] - 1.0),
        s["tx"] - 0.8 * s["trz"], wall + s["ty"], s["tz"],
        jnp.maximum(s["trx"], 0.8 * s["trz"]), s["trx"], s["trz"], 0.9, 0.0,
    )  # fmt: skip
    # The process is tall and thin; its lower edge lies further back in the chest.
    spinous = cap(
        zero, back + 3.0, s["lz"] - 1.5, s["bif"], wall + s["sy"] - 6.0, s["sz"],
        s["sr"], 6.0 * scale, s["sh"], 1.05, 0.6 * s["lean"],
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
        2.6, 2.6, 3.0, 1.0, 0.0,
    )  # fmt: skip
    uncinate = cap(
        jnp.where(cervical, s["a"] - 1.5, pillar), jnp.where(cervical, -2.0, pillar_y),
        jnp.where(cervical, 0.6 * s["h"], 0.0),
        jnp.where(cervical, s["a"] - 0.5, 0.9 * pillar), jnp.where(cervical, 4, wall + s["iy"] - 3),
        jnp.where(cervical, s["h"] + 0.8, s["lz"]),
        jnp.where(cervical, 2.2, 3.8), jnp.where(cervical, 3.0, 3.8), jnp.where(cervical, 2.6, 6.0),
        1.0, 0.0,
    )  # fmt: skip
    columns = [*pedicle, *superior, *inferior, *lamina, *transverse, *spinous, *root, *uncinate]
    plain = stacked(columns, 1).reshape(SLOTS, 8, 11)
    lengths = jnp.where(jnp.arange(11) < 9, scale, 1.0)
    slot = np.arange(SLOTS)[:, None, None]
    plain = jnp.where(slot == levels.C1, levels.ATLAS * lengths, plain)
    plain = jnp.where(slot == levels.C2, levels.AXIS * lengths, plain)
    # The two brushes that cross the midline must not leave it.
    free = np.full((8, 6), 0.7, np.float32)
    free[5, [0, 3]] = 0.0
    ends = free * scale * draws.normal("ends", SLOTS, 8, 6)
    brush = 0.08 * draws.normal("brush", SLOTS, 8, 3)
    brush = jnp.pad(brush, ((0, 0), (0, 0), (6, 2)))
    return plain * (1.0 + brush) + jnp.pad(ends, ((0, 0), (0, 0), (0, 5)))
