"""Bones beside the column: ribs that articulate with it, sacrum, pelvis, skull, shoulders.

Sizes are rough adult values, not measured, and vary between persons.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom.draws import Draws
from spinejax.phantom.person import levels

Array = jax.Array
RIBS = 13
ANGLE = -0.32
"""Where a rib meets the chest's wall, radians about the axis of that half of the chest."""

# Parts of bones near the ends, as capsules (see shapes.capsule), mirrored at the midline.
_HEAD = [  # in the frame of the atlas
    (17, -1, 17, 15, 3, 19, 7, 10, 4.5, 1.0),  # occipital condyle
    (0, -22, 26, 0, -50, 34, 14, 8, 7, 0.9),  # base of the skull
    (52, -20, 14, 40, -72, -34, 4, 8, 12, 0.9),  # mandible
    (40, -72, -34, 0, -92, -40, 5, 5, 12, 1.0),
    (24, -62, -14, 0, -84, -16, 4, 4, 9, 1.0),  # teeth
    (26, -60, 2, 0, -80, 8, 6, 8, 8, 1.0),  # palate, maxilla
    (48, -2, 22, 50, 4, 8, 8, 9, 9, 0.8),  # mastoid
    (0, -46, -62, 14, -30, -60, 2, 3, 2, 1.0),  # hyoid
]
_SHOULDER = [  # in the frame of T2
    (14, -62, -18, 80, -40, 18, 6, 6, 6, 0.9),  # clavicle
    (80, -40, 18, 150, 0, 30, 6, 6, 6, 1.1),
    (60, 52, 20, 148, 14, 28, 5, 6, 9, 1.0),  # spine of the scapula
    (66, 46, 10, 80, 56, -100, 3.2, 3.0, 14, 0.8),  # blade
    (90, 44, 10, 100, 48, -60, 14, 2.6, 16, 0.6),
    (166, -4, 10, 168, -2, 8, 23, 23, 23, 1.0),  # head of the humerus
    (172, 0, 0, 182, 4, -110, 12, 12, 12, 0.9),
]
_PELVIS = [  # upright at S1: x left, y back, z up
    (94, -22, -88, 95, -22, -88, 23, 23, 23, 1.0),  # head of the femur
    (104, -18, -96, 138, -8, -112, 15, 14, 16, 1.1),
    (142, -6, -112, 150, -4, -260, 15, 15, 15, 0.9),
    (74, -6, -70, 80, 22, -96, 10, 15, 20, 0.9),  # behind the socket
    (78, 20, -96, 58, 22, -146, 10, 13, 14, 1.1),  # ischium
    (78, -44, -72, 12, -72, -112, 8, 8, 9, 0.9),  # upper ramus of the pubis
    (12, -72, -112, 56, 12, -150, 6, 6, 8, 1.0),
    (100, -28, -58, 90, -14, -50, 9, 20, 12, 1.0),  # roof of the socket
    (57, 38, -4, 60, 32, -44, 7, 14, 13, 1.0),  # behind the sacroiliac joint
]
_SACRUM = [  # in the frame of S1: what is added to bodies, side masses and back wall
    (20, 3, 0, 52, 18, -14, 10, 18, 18, 1.0),  # ala, up to the sacroiliac joint
    (48, 24, -24, 36, 20, -50, 10, 16, 16, 0.8),  # side of the second and third segment
    (36, 20, -50, 20, 14, -84, 7, 9, 12, 0.7),
    (24, 18, 14, 20, 26, -8, 5.5, 5, 7, 1.0),  # articular process, beside and before that of L5
]


def _jitter(draws: Draws, rows: Sequence[Sequence[float]], scale: Array) -> Array:
    rows_array = jnp.asarray(np.array(rows, np.float32))
    sizes = jnp.where(jnp.arange(10) < 9, scale, 1.0)
    brush = (jnp.arange(10) >= 6) & (jnp.arange(10) < 9)
    noise = draws.normal("parts", *rows_array.shape)
    return rows_array * sizes * jnp.where(brush, 1.0 + 0.08 * noise, 1.0)


def ribs(
    draws: Draws,
    spine: dict[str, Any],
    place: Array,
    present: Array,
    outline: dict[str, Array],
    at: Array,
    scale: Array,
) -> dict[str, Array]:
    """Ribs of T1-T13: head and neck are capsules from the vertebra, the rest a band on the wall.

    Args:
        draws: Random numbers.
        spine: As in `anatomy`, filled places first.
        place: Place in `spine` of each slot.
        present: (26,) which slots are filled.
        outline: The chest's cx, ca, cb, cy, sx, sy at the heights of T1-T13, each (13,).
        at: (27, 3) centroids of the slots, then S1.
        scale: Size of the person, 1 on average.
    """
    slots = np.arange(levels.T1, levels.T13 + 1)
    index, exists = place[slots], present[slots]
    size = {k: spine["size"][k][index] for k in ("a", "b", "h", "tx", "ty", "tz", "trx")}
    low = jnp.asarray(np.isin(slots, [levels.T11, levels.T12, levels.T13]))

    # Head at the upper corner of the body (of the whole side on the lowest ribs), tubercle before
    # the tip of the transverse process; the lowest ribs float free of it.
    head = jnp.stack([size["a"] + 2.0, 0.75 * size["b"], jnp.where(low, 0.35, 0.85) * size["h"]], 1)
    tip = jnp.maximum(size["tx"], 27.0 * scale)
    tubercle = jnp.stack(
        [tip - 1.0, size["b"] + size["ty"] - size["trx"] - 4.5, size["tz"] + 2.0], 1
    )
    mirror = jnp.array([[1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]])
    local = jnp.stack([head, tubercle], 1)[:, None] * mirror[:, None]  # (13, 2 sides, 2, 3)
    world = spine["origin"][index][:, None, None] + jnp.einsum(
        "rij,rspj->rspi", spine["rotation"][index], local, precision="highest"
    )
    world = world.at[:, :, 1].add(0.8 * draws.normal("tubercle", RIBS, 2, 3))
    world = world.at[:, :, 0].add(1.2 * draws.normal("head", RIBS, 2, 3))
    world = draws.settled(world)
    middle = world[:, :, 1, 2].mean(1)
    corner = jnp.stack(
        [
            outline["sx"][:, None]
            + mirror[:, 0] * (outline["cx"] + outline["ca"] * jnp.sin(ANGLE))[:, None],
            jnp.broadcast_to(
                (outline["sy"] - outline["cy"] + outline["cb"] * np.cos(ANGLE))[:, None], (RIBS, 2)
            ),
            jnp.broadcast_to(middle[:, None], (RIBS, 2)),
        ],
        -1,
    )

    def caps(start: Array, end: Array, brush: tuple[float, ...], taper: float) -> Array:
        rows = jnp.broadcast_to(jnp.asarray([*brush, taper], jnp.float32), (*start.shape[:2], 4))
        sizes = jnp.append(jnp.full(3, scale), 1.0)
        return jnp.concatenate([start, end, rows * sizes], -1)

    necks = caps(world[:, :, 0], world[:, :, 1], (4.4, 4.2, 5.4), 0.85)
    necks = necks.at[..., 6:9].multiply(1.0 + 0.1 * draws.normal("neck", RIBS, 2, 3))
    angles = caps(world[:, :, 1], corner, (4.0, 3.6, 5.4), 1.1)
    there = exists[:, None, None]
    shape = (
        jnp.stack([necks, angles], 2).at[..., 6:9].multiply(jnp.where(there, 1.0, 0.0)[..., None])
    )
    shape = draws.settled(shape.reshape(-1, 10))
    ends, reach = shape[:, :6].reshape(-1, 2, 3), 1.2 * shape[:, 6:9] + 3.0
    real = jnp.all(shape[:, 6:9] > 0, 1, keepdims=True)

    slope = np.array([10, 15, 19, 22, 24, 26, 27, 28, 28, 27, 26, 24, 22], np.float32)
    last = np.array([2.7, 2.5, 2.4, 2.35, 2.3, 2.25, 2.2, 2.1, 1.9, 1.7, 1.25, 0.55, 0.1])
    end = np.array([2.9, 3.0, 3.05, 3.05, 3.05, 3.05, 3.0, 2.8, 2.5, 2.2, 1.3, 0.6, 0.15])
    length = 1.0 + 0.05 * draws.normal("length", RIBS)
    return {
        "shape": shape,
        "low": jnp.where(real, ends.min(1) - reach, jnp.inf),
        "high": jnp.where(real, ends.max(1) + reach, -jnp.inf),
        "z": jnp.where(exists, middle, -1e5),
        "slope": jnp.asarray(slope) * scale * (1.0 + 0.12 * draws.normal("slope", RIBS)),
        "last": jnp.where(exists, jnp.asarray(last, jnp.float32) * length, -9.0),
        "end": jnp.where(exists, jnp.asarray(end, jnp.float32), -9.0),
        "radius": 70.0 * scale,
        # Heights: of the lungs' floor and tops, of the waist, and the ends of the sternum.
        "floor": at[levels.T1 + 9, 2] - (26.0 + 17.0 * draws.normal("breath")) * scale,
        "waist": at[levels.T12, 2],
        "top": at[levels.T1, 2] + 42.0 * scale,
        "breast": at[np.array([levels.T1 + 1, levels.T1 + 8]), 2]
        + jnp.array([-24.0, -8.0]) * scale,
        "thick": 3.0 + 0.8 * draws.uniform("thick"),
        "tall": 5.6 + 1.6 * draws.uniform("tall"),
    }


def frames(
    draws: Draws,
    spine: dict[str, Any],
    sacrum: dict[str, Array],
    at: Array,
    scale: Array,
    down: Array,
) -> dict[str, Any]:
    """Sacrum, pelvis, head, shoulder: parts in frames of their own, mirrored at the midline.

    Args:
        draws: Random numbers.
        spine: As in `anatomy`, filled places first.
        sacrum: Origin (3,) and rotation (3, 3) of its first segment.
        at: (27, 3) centroids of the slots, then S1.
        scale: Size of the person, 1 on average.
        down: 1 where the arms lie beside the trunk, 0 where they are raised.
    """
    pelvis, sacral = draws.of("pelvis"), draws.of("sacrum")
    upright = jnp.eye(3)
    gaps = jnp.array([[1.8, -0.4], [1.5, -0.5], [1.3, -0.8], [1.0, -0.7]])
    # The wing's normal in the plane of the upright pelvis.
    opening = 0.63 + 0.08 * pelvis.normal("opening")
    normal = jnp.stack([jnp.cos(opening), jnp.sin(opening), jnp.full((), 0.16)])
    normal /= jnp.linalg.norm(normal)
    along = jnp.stack([jnp.sin(opening), -jnp.cos(opening), jnp.zeros(())])
    along -= jnp.dot(along, normal) * normal
    along /= jnp.linalg.norm(along)
    # The pelvis tilts with the sacrum, but less.
    slope = jnp.arctan2(-sacrum["rotation"][1, 2], sacrum["rotation"][2, 2])
    lean = 0.6 * (slope - np.deg2rad(levels.SACRAL_SLOPE_DEG)) + 0.10 * pelvis.normal("tilt")
    c, s = jnp.cos(lean), jnp.sin(lean)
    tilt = upright.at[1, 1].set(c).at[1, 2].set(-s).at[2, 1].set(s).at[2, 2].set(c)
    shoulder = _jitter(draws.of("shoulder"), _SHOULDER, scale)
    raised = jnp.array([[172, -6, 20, 196, -30, 140]], jnp.float32) * scale
    shoulder = shoulder.at[6, :6].set(jnp.where(down > 0, shoulder[6, :6], raised[0]))
    bend = jnp.clip(0.0045 + 0.0018 * sacral.normal("bend"), 0.001, 0.009)
    return {
        "sacrum": {
            **sacrum,
            "parts": _jitter(sacral, _SACRUM, scale).at[3, 2].add(4.0 * sacral.normal("process")),
            # From nearly straight to a bend of about 90 degrees.
            "bend": jnp.stack([0.10 + 30.0 * bend + 0.06 * sacral.normal("lean"), bend]),
            "width": (24.0 + 1.2 * sacral.normal("width")) * scale,
            "depth": 16.0 * scale * (1.0 + 0.06 * sacral.normal("depth")),
            "top": 11.5 * scale,
            # Half height of the remnants of discs, mm; the lower ones are mostly fused.
            "gaps": gaps[:, 0] * sacral.uniform("gaps", 4) + gaps[:, 1],
            "inset": 0.55 + 0.5 * sacral.uniform("inset"),
            "crest": 5.0 + 6.0 * sacral.uniform("crest"),
            "sac": (12.0 + 36.0 * sacral.uniform("sac")) * scale,  # how deep it ends: at S1 to S3
            "foramen": (3.0 + 2.4 * sacral.uniform("foramen")) * scale,
            "scale": scale,
        },
        "pelvis": {
            "origin": sacrum["origin"] + 3.0 * pelvis.normal("origin", 3),
            "rotation": tilt,
            "parts": _jitter(pelvis, _PELVIS, scale * (1.0 + 0.04 * pelvis.normal("size"))),
            "wing": {
                "centre": jnp.array([84.0, -8.0, -16.0]) * scale,
                "normal": normal,
                "along": along,
                "across": jnp.cross(normal, along),
                "radii": jnp.array([70.0, 62.0]) * scale * (1.0 + 0.05 * pelvis.normal("wing")),
                "thickness": (4.2 + 2.0 * pelvis.uniform("wing thickness")) * scale,
                "bend": 0.0015 + 0.0016 * pelvis.uniform("wing bend"),
            },
        },
        "head": {
            "origin": spine["origin"][0],
            "rotation": upright,
            "parts": _jitter(draws.of("head"), _HEAD, scale),
            "skull": jnp.array([70.0, 88.0, 74.0]) * scale,
            "centre": jnp.array([0.0, -18.0, 88.0]) * scale,
        },
        "shoulder": {"origin": at[8], "rotation": upright, "parts": shoulder},
    }
