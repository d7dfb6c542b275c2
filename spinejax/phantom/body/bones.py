"""Bones beside the column, at points: ribs, sternum, sacrum, pelvis, skull, shoulders."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spinejax.phantom.body import shapes
from spinejax.phantom.body.shapes import FAR, local
from spinejax.phantom.body.tissues import sine
from spinejax.phantom.once import each, when
from spinejax.phantom.person.skeleton import ANGLE

Array = jax.Array

SACROILIAC_MM = 1.5
"""Width of the gap between sacrum and ilium."""


def near(p: Array, low: Array, high: Array, spare: Any = 0.0) -> Array:
    """Return which boxes (m, 3) the points (n, 3) may meet, bool (m,).

    `spare` mm are added at each side of a box: see `tissues.spare`.
    """
    return jnp.all((p.min(0) < high + spare) & (p.max(0) > low - spare), 1)


class Bones(NamedTuple):
    """Bones beside the spine and the ribs at points (n,), distances in mm."""

    distance: Array
    """To their surface."""
    holes: Array
    """To the canal and the foramina of the sacrum."""
    sac: Array
    """To the sac of the dura in that canal."""
    dense: Array
    """HU added where bone bears the weight of the body."""
    shell: Array
    """Thickness of the compact shell (mm)."""
    like: Array
    """1 where bone is like that of a vertebra (in the bodies of the upper sacrum), 0 elsewhere."""


def _sacrum(p: Array, frame: dict[str, Any], bone: dict[str, Array]) -> Bones:
    """The sacrum; `shell` is what its endplate adds."""
    x, y, z = local(p, frame)
    m = frame["scale"]
    down = jnp.maximum(-z, 0.0)
    middle = frame["bend"][0] * down - frame["bend"][1] * down * down
    width = jnp.maximum(frame["width"] - 0.15 * down, 5.0)
    depth = 4.0 + (frame["depth"] - 4.0) * jnp.exp(-down / (35.0 * m))
    # Bodies, and the remnants of the discs between them.
    off, gap = jnp.full_like(z, FAR), jnp.full_like(z, FAR)
    radial = jnp.sqrt((x / width) ** 2 + ((y - middle) / depth) ** 2 + 1e-6)
    for i, level in enumerate((15.5, 41.0, 63.0, 82.0)):
        height = jnp.abs(z + level * m)
        off = jnp.minimum(off, height)
        plate = height - frame["gaps"][i] - 0.8 * (radial - 0.6)
        gap = jnp.minimum(gap, jnp.maximum(plate, (radial - 1.2 * frame["inset"]) * depth))
    ends = jnp.minimum(off, jnp.abs(z - frame["top"]))
    flare = 1.0 + 0.07 * jnp.exp(-((ends / 5.0) ** 2))
    d = (radial / flare - 1.0) * depth
    top = z - frame["top"] + 1.2 * jnp.maximum(1.0 - radial, 0.0)  # the plate that carries L5
    d = shapes.smooth_max(shapes.smooth_max(d, -z - 116.0 * m, 4.0), top, 2.0)
    # Side masses, back wall and crest.
    side = jnp.abs(x)
    back = middle + depth + (11.0 - 0.05 * down) * m
    mass = jnp.maximum(
        jnp.abs(side - 0.92 * width) - 6.5 * m,
        jnp.abs(y - 0.5 * (middle + back)) - 0.5 * (back - middle),
    )
    mass = jnp.maximum(mass, jnp.maximum(z - 6.0 * m, -z - 92.0 * m))
    wall = jnp.maximum(jnp.abs(y - back) - 2.6 * m, side - (17.0 - 0.08 * down) * m)
    wall = jnp.maximum(wall, jnp.maximum(z + 2.0, -z - 78.0 * m))
    crest = frame["crest"] * (0.75 + 0.25 * sine(0.27 * (z + 8.0 * m) + 0.5 * jnp.pi))
    spine = jnp.maximum(side - 2.6 * m, jnp.abs(y - back - 0.5 * crest) - 0.5 * crest)
    spine = jnp.maximum(spine, jnp.maximum(z + 4.0, -z - 66.0 * m))
    d = shapes.smooth_min(d, shapes.smooth_min(mass, wall, 3.0), 4.0)
    d = shapes.smooth_min(d, spine, 2.0)
    d = shapes.smooth_min(d, shapes.capsules(x, y, z, frame["parts"], 5.0), 5.0)
    hole = middle + depth + (5.5 - 0.02 * down) * m
    canal = shapes.ellipsoid(
        x,
        y - hole,
        0.0 * z,
        (jnp.maximum(13.0 - 0.08 * down, 4.0) * m, jnp.maximum(6.0 - 0.03 * down, 2.5) * m, FAR),
    )
    canal = jnp.maximum(canal, jnp.maximum(-z - 100.0 * m, z - 14.0 * m))
    # Foramina lead outwards to the front, and a narrower part of each backwards.
    out = 0.88 * width + 0.25 * jnp.maximum(hole - y, 0.0)
    pipe = jnp.sqrt((side - out) ** 2 + off * off) - (1.0 - 0.005 * down) * frame["foramen"]
    pipe = pipe + 0.35 * jnp.maximum(y - hole, 0.0)
    # Their filling ends with the bone.
    pipe = jnp.maximum(pipe, d - 1.0)
    holes = jnp.minimum(canal, pipe)
    sac = jnp.maximum(canal + 2.0, -z - frame["sac"])
    d = shapes.smooth_max(d, top - 3.0 * jnp.maximum(y - 0.8 * depth, 0.0), 2.0)
    d = shapes.smooth_max(d, -gap, 1.0)
    under = jnp.maximum(-top, 0.0)
    # Bone is dense where it carries load: under the plate and along the upper rim of the wings.
    rim = 0.8 * jnp.exp(-jnp.abs(d) / (0.5 * bone["sacral_depth"]))
    rim = rim * jax.nn.sigmoid(0.4 * (z + 6.0))
    load = jnp.exp(-under / bone["sacral_depth"]) * (radial < 1.1)
    plate = bone["sacral_plate"] * jnp.maximum(load, rim)
    end = bone["sacral_end"] * jnp.exp(-((under / 2.0) ** 2)) * (radial < 1.1)
    body = jax.nn.sigmoid(6.0 * (1.2 - radial)) * jnp.clip(1.3 - down / (60.0 * m), 0.0, 1.0)
    return Bones(shapes.smooth_max(d, -holes, 1.5), holes, sac, plate, end, body)


def bones(p: Array, parameters: dict[str, Any], spare: Any = 0.0) -> Bones:
    """Sacrum, pelvis, skull, shoulders at points (n, 3); `spare` as in `near`.

    The head of a femur, the roof of its socket, the sacrum under a worn disc and the upper rim of
    its wings are dense.
    """
    far = jnp.full(p.shape[:1], FAR)

    def close(frame: dict[str, Any], low: float, high: float) -> Array:
        z = p[:, 2] - frame["origin"][2]
        return jnp.any((z > low - spare) & (z < high + spare))

    def pelvis() -> tuple[Array, Array]:
        frame = parameters["pelvis"]
        x, y, z = local(p, frame)
        d = shapes.capsules(x, y, z, frame["parts"][1:], 6.0)
        d = shapes.smooth_min(d, shapes.plate(x, y, z, frame["wing"]), 8.0)
        head = shapes.capsule(jnp.abs(x), y, z, shapes.brushes(frame["parts"][0]))
        # The head of the femur sits in its socket behind a narrow gap.
        roof = jnp.exp(-jnp.abs(head) / 6.0) * (z > frame["parts"][0, 2])
        dense = jnp.where(head < 0.0, -head / frame["parts"][0, 6], roof)
        return jnp.minimum(shapes.smooth_max(d, 2.5 - head, 2.0), head), bone["dense"] * dense

    def head() -> Array:
        frame = parameters["head"]
        x, y, z = local(p, frame)
        d = shapes.capsules(x, y, z, frame["parts"], 4.0)
        c = frame["centre"]
        vault = shapes.ellipsoid(x - c[0], y - c[1], z - c[2], frame["skull"])
        d = shapes.smooth_min(d, jnp.abs(vault + 3.5) - 3.5, 3.0)
        hole = jnp.maximum(jnp.sqrt(x * x + (y - 7.0) ** 2) - 15.0, z - c[2])
        return shapes.smooth_max(d, -hole, 2.0)

    def shoulder() -> Array:
        frame = parameters["shoulder"]
        x, y, z = local(p, frame)
        return shapes.capsules(x, y, z, frame["parts"], 4.0)

    sacrum, bone = parameters["sacrum"], parameters["marrow"]
    none = jnp.zeros_like(far)
    os = when(
        close(sacrum, -150.0, 60.0),
        lambda: _sacrum(p, sacrum, bone),
        Bones(far, far, far, none, none, none),
    )
    hip, dense = when(close(parameters["pelvis"], -400.0, 75.0), pelvis, (far, none))
    # The sacroiliac joint lies where both are equally near.
    joint = 0.5 * (SACROILIAC_MM - jnp.abs(os.distance - hip))
    d = jnp.maximum(jnp.minimum(os.distance, hip), joint)
    dense = jnp.where(os.distance < hip, os.dense, dense)
    for name, draw, low, high in (
        ("head", head, -90.0, 400.0),
        ("shoulder", shoulder, -160.0, 180.0),
    ):
        d = jnp.minimum(d, when(close(parameters[name], low, high), draw, far))
    shell = bone["shell"] + os.like * (bone["sacral_shell"] - bone["shell"]) + os.shell
    return Bones(d, os.holes, os.sac, dense, shell, os.like)


def _rib(
    wall: Array, psi: Array, z: Array, ribs: dict[str, Array], row: dict[str, Array]
) -> tuple[Array, Array]:
    """One rib as a band on the wall of the chest: distance to bone, to cartilage.

    Args:
        wall: Distance from the chest wall's middle surface, mm, outside positive.
        psi: Angle about the axis of that half of the chest, radians: 0 is the back, pi the front,
            negative values lead to the spine.
        z: Height, mm.
        ribs: thick and tall (half sizes, mm), radius (mm per radian).
        row: z (height at the start), slope (mm per radian, downwards), last angle of bone, and of
            cartilage.
    """
    turn = psi - ANGLE
    # Ribs climb a little at first and then fall, most steeply at the side.
    height = row["z"] - row["slope"] * (turn - 0.35 * sine(1.6 * turn))
    across = jnp.sqrt((wall / ribs["thick"]) ** 2 + ((z - height) / ribs["tall"]) ** 2 + 1e-6)
    band = (across - 1.0) * ribs["thick"]
    after = (psi - row["last"]) * ribs["radius"]
    bone = jnp.maximum(jnp.maximum(band, after), -turn * ribs["radius"])
    soft = jnp.maximum(jnp.maximum(band, -after), (psi - row["end"]) * ribs["radius"])
    return bone, soft


def ribs(
    p: Array, psi: Array, wall: Array, ribs: dict[str, Array], spare: Any = 0.0
) -> tuple[Array, Array]:
    """Distance to ribs and to their cartilage; their `z` is that of the tubercle.

    `spare` as in `near`.
    """
    far = jnp.full(p.shape[:1], FAR)
    x, y, z = p[:, 0], p[:, 1], p[:, 2]
    brushes = shapes.brushes(ribs["shape"])

    def capsule(i: Array, d: Array) -> Array:
        return jnp.minimum(d, shapes.capsule(x, y, z, brushes[i]))

    bone = each(near(p, ribs["low"], ribs["high"], spare), capsule, far)
    # A rib climbs little, and falls by its slope times its angle.
    hit = z.min() < ribs["z"] + 24.0 + spare
    hit &= z.max() > ribs["z"] - 3.4 * ribs["slope"] - 12.0 - spare
    hit &= jnp.any(jnp.abs(wall) < 12.0 + spare)
    rows = {name: ribs[name] for name in ("z", "slope", "last", "end")}

    def band(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        hard, soft = _rib(wall, psi, z, ribs, jax.tree.map(lambda a: a[i], rows))
        return jnp.minimum(best[0], hard), jnp.minimum(best[1], soft)

    return each(hit, band, (bone, far))
