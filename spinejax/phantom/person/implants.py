"""Metal and cement: pedicle screws with rods, vertebroplasty, prostheses, leads, clips, fillings.

A few persons in a hundred have each kind. Implants are drawn last, over bone. Labels ignore them,
since annotators outline a vertebra together with its screws.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom.draws import Draws
from spinejax.phantom.person import levels
from spinejax.phantom.person.contents import boxed

Array = jax.Array

LEVELS = 6  # most vertebrae that one set of screws joins
METALS = 2 * LEVELS + 6
"""Length of `parameters["metal"]`: screws, hips, shoulder, pacemaker, fillings of either side."""

RATES = {
    "screws": 0.06, "cement": 0.035, "hip": 0.04, "pacemaker": 0.03, "fillings": 0.5,
    "clips": 0.05, "wires": 0.03, "plate": 0.015, "leads": 0.01, "shoulder": 0.01,
}  # fmt: skip
"""Share of persons with each kind; for hips, of each side."""

_TITANIUM, _STEEL, _CEMENT = (2800.0, 6500.0), (5000.0, 12000.0), (1300.0, 2900.0)


def _placed(spine: dict[str, Any], index: Array, local: Array) -> Array:
    """World coordinates of points (m, n, 3) in the frames of vertebrae `index` (m,)."""
    turned = jnp.einsum("mij,mnj->mni", spine["rotation"][index], local, precision="highest")
    return spine["origin"][index][:, None] + turned


def _capsules(start: Array, end: Array, radius: Any, taper: float = 1.0) -> Array:
    n = start.shape[0]
    brush = jnp.broadcast_to(jnp.asarray(radius, jnp.float32).reshape(-1, 1), (n, 3))
    return jnp.concatenate([start, end, brush, jnp.full((n, 1), taper)], 1)


def _screws(
    draws: Draws, spine: dict[str, Any], there: Array, count: Array
) -> tuple[Array, Array, Array]:
    """Capsules of screws, their heads, rods, and cages of 2 to LEVELS vertebrae.

    Returns:
        (6 LEVELS - 2 + LEVELS, 10) capsules (no brush where there is nothing), and centres
        (2 LEVELS, 3) of the screws with whether each is there.
    """
    jitter = 1.2 * draws.normal("jitter", LEVELS, 2, 3)
    # Most sets end at the last vertebrae.
    many = 2 + jnp.floor((LEVELS - 1) * draws.uniform("count") ** 2).astype(jnp.int32)
    last = count - 1 - jnp.floor(9.0 * draws.uniform("last") ** 2).astype(jnp.int32)
    index = last - jnp.arange(LEVELS)
    fitted = (jnp.arange(LEVELS) < many) & (index > levels.T1) & there
    index = jnp.clip(index, 0, levels.SLOTS - 1)
    size = {k: spine["size"][k][index] for k in ("a", "b", "h", "cw", "prx", "pz", "uy", "disc")}
    side = jnp.array([1.0, -1.0])
    entry = jnp.stack(
        [size["cw"] + size["prx"] + 2.5, size["b"] + size["uy"] + 3.0, size["pz"] + 1.0], 1
    )
    tip = jnp.stack([0.5 * size["a"], -0.4 * size["b"], size["pz"] - 1.0], 1)
    points = jnp.stack([entry, tip, entry + jnp.array([1.5, 7.0, 0.5])], 1)  # (L, 3, 3)
    mirror = jnp.stack([side, jnp.ones(2), jnp.ones(2)], 1)
    both = jnp.concatenate([points * mirror[0], points * mirror[1]], 1)
    world = _placed(spine, index, both).reshape(LEVELS, 2, 3, 3)
    world = world.at[:, :, 1].add(jitter)
    start, end, head = (world[:, :, i].reshape(-1, 3) for i in range(3))
    on = jnp.repeat(fitted, 2)
    thick = draws.uniform("thick")
    screws = _capsules(start, end, jnp.where(on, 2.6 + 0.8 * thick, 0.0), 0.8)
    heads = _capsules(start, head, jnp.where(on, 5.2, 0.0))
    pair = on[2:]  # screws of one side are two places apart
    rods = _capsules(head[:-2], head[2:], jnp.where(pair, 2.8, 0.0))
    # A cage in the disc below all but the lowest.
    below = -(size["h"] + 0.5 * (size["disc"] - size["h"]))
    corner = jnp.stack([8.0 * jnp.ones(LEVELS), -0.2 * size["b"], below], 1)
    cage = _placed(spine, index, corner[:, None] * mirror)
    caged = fitted & (jnp.arange(LEVELS) > 0) & (thick > 0.5)
    cages = _capsules(cage[:, 0], cage[:, 1], jnp.where(caged, 3.0, 0.0))
    return jnp.concatenate([screws, heads, rods, cages]), 0.5 * (start + end), on


def _world(frame: dict[str, Any], local: Any) -> Array:
    return frame["origin"] + jnp.matmul(
        jnp.asarray(local, jnp.float32), frame["rotation"].T, precision="highest"
    )


def implants(
    draws: Draws, spine: dict[str, Any], frames: dict[str, Any], at: Array, count: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Draw a person's implants.

    Args:
        draws: Random numbers.
        spine: As in `anatomy`, filled places first.
        frames: Frames of pelvis, head and shoulder.
        at: (27, 3) centroids of the slots (of the next filled one below where empty), then S1.
        count: How many vertebrae there are.

    Returns:
        A list of capsules as from `contents`, and `metal`: "centre" (METALS, 3), mm before
        displacement, and "strength" (METALS,), 0 where there is none, about 1 for a screw.
    """
    has = {name: draws.uniform(name) < RATES[name] for name in RATES}
    screws, screw_centre, screw_on = _screws(draws.of("screw"), spine, has["screws"], count)

    # Cement: two lobes in one to three neighbouring bodies, mostly about T12-L1.
    lowest = jnp.floor(8.0 * draws.uniform("cement level")).astype(jnp.int32)
    first = jnp.clip(levels.T11 - 3 + lowest, 0, count - 1)
    index = jnp.clip(first + jnp.arange(3), 0, count - 1)
    filled = has["cement"] & (jnp.arange(3) < 1 + jnp.floor(2.4 * draws.uniform("cemented")))
    a, h = spine["size"]["a"][index], spine["size"]["h"][index]
    lobe = jnp.stack([0.35 * a, -3.0 * jnp.ones(3), -0.2 * h], 1)[:, None]
    lobe = lobe * jnp.array([[1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]])
    lobe = lobe + 3.0 * draws.normal("lobe", 3, 2, 3)
    lobes = _placed(spine, index, lobe).reshape(-1, 3)
    ends = lobes + 5.0 * draws.normal("lobe end", 6, 3)
    radius = 4.0 + 4.0 * draws.uniform("lobe radius")
    cement = _capsules(lobes, ends, jnp.where(jnp.repeat(filled, 2), radius, 0.0), 0.8)

    pelvis, skull, shoulder = frames["pelvis"], frames["head"], frames["shoulder"]
    # Hips: head with cup, then the stem in the shaft.
    both = np.array([[1, 1, 1], [-1, 1, 1]], np.float32)
    sockets = _world(pelvis, pelvis["parts"][0, :3] * both)
    necks = _world(pelvis, pelvis["parts"][1, 3:6] * both)
    stems = _world(pelvis, (pelvis["parts"][2, :3] * 0.35 + pelvis["parts"][2, 3:6] * 0.65) * both)
    replaced = jnp.stack([has["hip"], draws.uniform("other hip") < RATES["hip"]])
    hips = jnp.concatenate(
        [
            _capsules(sockets, sockets + 0.5, jnp.where(replaced, 17.0, 0.0)),
            _capsules(sockets, necks, jnp.where(replaced, 7.0, 0.0)),
            _capsules(necks, stems, jnp.where(replaced, 8.0, 0.0), 0.6),
        ]
    )
    joint = _world(shoulder, shoulder["parts"][5, :3])[None]
    arm = _world(shoulder, shoulder["parts"][6, 3:6])[None]
    joints = jnp.concatenate(
        [
            _capsules(joint, joint + 0.5, jnp.where(has["shoulder"], 20.0, 0.0)),
            _capsules(joint, arm, jnp.where(has["shoulder"], 6.0, 0.0), 0.7),
        ]
    )

    # Pacemaker in the left breast, its lead through the great vein to the heart.
    path = at[np.array([9, 8, 10, 13, 14])] + jnp.array(
        [[92, -92, 0], [60, -70, 8], [-24, -72, 0], [-26, -72, 0], [14, -104, -24]], jnp.float32
    )
    lead = _capsules(path[:-1], path[1:], jnp.where(has["pacemaker"], 1.3, 0.0))
    can = _capsules(path[:1], path[:1] + 0.5, 1.0)
    can = can.at[:, 6:9].set(jnp.where(has["pacemaker"], jnp.array([22.0, 5.0, 20.0]), 0.0))

    # Fillings and crowns along both rows of teeth.
    arch = np.array([[24, -62, -10], [21, -72, -10], [13, -81, -10], [5, -85, -10]], np.float32)
    teeth = _world(skull, np.concatenate([arch, arch * [-1, 1, 1]]) + np.float32(1))
    teeth = teeth + draws.normal("tooth", 8, 3)
    some = has["fillings"] & (draws.uniform("filled", 8) < 0.5)
    ends = teeth + 2.0 * draws.normal("filling end", 8, 3)
    fillings = _capsules(teeth, ends, jnp.where(some, 2.6, 0.0))

    where = at[np.array([20, 21, 22, levels.SLOTS, 12, 13])] + jnp.array(
        [[-40, -80, 0], [-50, -85, 0], [0, -60, 0], [40, -40, -60], [40, -90, 0], [0, -90, 0]],
        jnp.float32,
    )
    clip = where + 14.0 * draws.normal("clip", 6, 3)
    ends = clip + 3.0 * draws.normal("clip end", 6, 3)
    clips = _capsules(clip, ends, jnp.where(has["clips"], 1.1, 0.0))
    # Wires of a sawn breastbone, a plate on the neck, leads in the canal.
    breast = at[np.array([11, 12, 13, 14])] + jnp.asarray(frames["sternum"])
    wires = _capsules(
        breast - jnp.array([11.0, 0, 0]), breast + jnp.array([11.0, 0, 2]),
        jnp.where(has["wires"], 0.9, 0.0),
    )  # fmt: skip
    neck = _placed(
        spine, jnp.array([4, 5, 6]), jnp.array([[[7, -10, 0], [6, 4, 0], [-7, -10, 0]]] * 3) * 1.0
    )
    on = jnp.where(has["plate"], 1.9, 0.0)
    plate = jnp.concatenate(
        [
            _capsules(neck[:, 0], neck[:, 1], on),
            _capsules(neck[:, 2], neck[:, 1], on),
            _capsules(neck[:-1, 0], neck[1:, 0], on),
            _capsules(neck[:-1, 2], neck[1:, 2], on),
        ]
    )
    tail = jnp.stack([0.0 * spine["size"]["b"], spine["size"]["b"] + 9.0, 0.0 * spine["size"]["b"]])
    tail = _placed(spine, jnp.array([13, 15, 17]), tail.T[jnp.array([13, 15, 17])][:, None])[:, 0]
    leads = _capsules(tail[:-1], tail[1:], jnp.where(has["leads"], 0.9, 0.0))

    light, heavy = draws.uniform("titanium"), draws.uniform("steel")
    titanium = _TITANIUM[0] + (_TITANIUM[1] - _TITANIUM[0]) * light
    steel = _STEEL[0] + (_STEEL[1] - _STEEL[0]) * heavy
    white = _CEMENT[0] + (_CEMENT[1] - _CEMENT[0]) * draws.uniform("cement HU")
    groups = [
        (screws, titanium), (cement, white), (hips, steel), (joints, steel), (lead, titanium),
        (can, titanium), (fillings, steel), (clips, titanium), (wires, steel), (plate, titanium),
        (leads, titanium),
    ]  # fmt: skip
    shape = draws.settled(jnp.concatenate([rows for rows, _ in groups]))
    hu = jnp.concatenate([jnp.full(rows.shape[0], 1.0) * value for rows, value in groups])
    soft_edge = np.concatenate(
        [np.full(rows.shape[0], 1.6 if i == 1 else 0.0) for i, (rows, _) in enumerate(groups)]
    )
    zero = jnp.zeros(shape.shape[0])
    items = boxed(
        {
            "shape": shape, "wall_mm": zero, "wall": hu, "core": hu, "spots": zero,
            "wobble": jnp.asarray(soft_edge, jnp.float32), "free": zero + 1.0,
        }
    )  # fmt: skip
    half = jnp.array([0.4, 0.6])
    centre = jnp.concatenate(
        [
            screw_centre, sockets, joint, path[:1],
            half[0] * teeth[:1] + half[1] * teeth[1:2], half[0] * teeth[4:5] + half[1] * teeth[5:6],
        ]
    )  # fmt: skip
    strength = jnp.concatenate(
        [
            jnp.where(screw_on, 0.6 + 0.8 * light, 0.0),
            jnp.where(replaced, 1.5 * (heavy + 2.0), 0.0),
            jnp.where(has["shoulder"], heavy + 2.0, 0.0)[None],
            jnp.where(has["pacemaker"], 1.2, 0.0)[None],
            jnp.where(jnp.stack([some[:4].any(), some[4:].any()]), 0.5 * (heavy + 2.0), 0.0),
        ]
    )
    return items, {"centre": centre, "strength": strength}
