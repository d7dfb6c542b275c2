"""Everything but the column at points: outline, soft tissue, organs, vessels and other bones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from spinejax.data.phantom import shapes, tissues
from spinejax.data.phantom.shapes import FAR, local
from spinejax.data.phantom.surroundings import PROFILE, SOLID_ORGANS

Array = jax.Array
AIRWAY_HU = -950.0


def _when(needed: Array, value: Callable[[], Any], otherwise: Any) -> Any:
    """`value()` if needed; truly skipped otherwise, under vmap too if no member needs it."""
    return lax.fori_loop(0, needed.astype(jnp.int32), lambda _, __: value(), otherwise)


def _row(z: Array, profile: dict[str, Any]) -> dict[str, Array]:
    """The outline's numbers at heights z (n,)."""
    rows = profile["rows"]
    at = jnp.clip((z - profile["low"]) / profile["step"], 0.0, rows.shape[0] - 1.001)
    i = at.astype(jnp.int32)
    t = (at - i)[:, None]
    values = (rows[i] * (1.0 - t) + rows[i + 1] * t).T
    return dict(zip((*PROFILE, "sx", "sy"), values, strict=True))


def _round_box(u: Array, v: Array, a: Array, b: Array) -> Array:
    """Distance to a closed curve between an ellipse and a box."""
    uu, vv = (u / a) ** 2, (v / b) ** 2
    r = jnp.sqrt(jnp.sqrt(uu * uu + uu * vv + vv * vv) + 1e-12)
    gx = (uu + 0.5 * vv) * u / (a * a)
    gy = (vv + 0.5 * uu) * v / (b * b)
    slope = jnp.sqrt(gx * gx + gy * gy) / jnp.maximum(r**3, 1e-3)
    return (r - 1.0) / jnp.maximum(slope, 0.5 / (a + b))


def bones(p: Array, parameters: dict[str, Any]) -> Array:
    """Distance to bones beyond the spine and ribs: sacrum, pelvis, skull, shoulders."""
    far = jnp.full(p.shape[:1], FAR)

    def near(frame: dict[str, Any], low: float, high: float) -> Array:
        z = p[:, 2] - frame["origin"][2]
        return jnp.any((z > low) & (z < high))

    def sacrum() -> Array:
        x, y, z = local(p, parameters["sacrum"])
        d = shapes.capsules(x, y, z, parameters["sacrum"]["parts"], 5.0)
        top = z - 11.0  # the plate that carries L5
        canal = shapes.ellipsoid(x, y - 21.0 - 0.08 * z, 0.0 * z, (13.0, 6.0, FAR))
        return shapes.smooth_max(
            shapes.smooth_max(d, jnp.where(y < 16, top, -FAR), 2.0), -canal, 2.0
        )

    def pelvis() -> Array:
        frame = parameters["pelvis"]
        x, y, z = local(p, frame)
        d = shapes.capsules(x, y, z, frame["parts"][1:], 6.0)
        d = shapes.smooth_min(d, shapes.plate(x, y, z, frame["wing"]), 8.0)
        head = shapes.capsule(jnp.abs(x), y, z, frame["parts"][0])
        # The head of the femur sits in its socket behind a narrow gap.
        return jnp.minimum(shapes.smooth_max(d, 2.5 - head, 2.0), head)

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

    d = _when(near(parameters["sacrum"], -150.0, 60.0), sacrum, far)
    for name, draw, low, high in (
        ("pelvis", pelvis, -400.0, 75.0),
        ("head", head, -90.0, 400.0),
        ("shoulder", shoulder, -160.0, 80.0),
    ):
        d = jnp.minimum(d, _when(near(parameters[name], low, high), draw, far))
    return d


def soft(
    p: Array, parameters: dict[str, Any], edge: Any, noise: Array, distractors: bool = True
) -> tuple[Array, Array]:
    """HU of everything but bone, and distance to the bone of ribs and sternum.

    Without distractors there is skin, fat and muscle alone.
    """
    t = parameters["tissue"]
    x0, y0, z = p[:, 0], p[:, 1], p[:, 2]
    row = _row(z, parameters["profile"])
    x, y = x0 - row["sx"], y0 - row["sy"]
    skin = _round_box(
        x0 - 0.4 * row["sx"], y - row["back"] + row["depth"], row["width"], row["depth"]
    )
    rows = parameters["profile"]["rows"]
    board = jnp.max(rows[:, -1] + rows[:, PROFILE.index("back")]) + 6.0 + t["table"]
    table = jnp.abs(y0 - board - 12.0 + x0 * x0 / 1800.0) - 12.0
    hu = jnp.full_like(z, tissues.AIR_HU)
    if distractors:
        hu = tissues.over(hu, -860.0, table, edge)
        hu = tissues.over(hu, 20.0, jnp.abs(table + 1.5) - 1.5, edge)
    hu = tissues.over(hu, t["fat"] + 6.0 * noise, skin, edge)
    hu = tissues.over(hu, 10.0, jnp.abs(skin + 1.0) - 1.0, edge)  # skin
    streak = jax.nn.sigmoid(5.0 * (noise - 1.7 + t["streaks"]))
    muscle = t["muscle"] + 5.0 * noise - 110.0 * streak
    hu = tissues.over(hu, muscle, skin + row["fat"] + 2.0 * noise, edge)
    if not distractors:
        return hu, jnp.full_like(z, FAR)

    # The chest: two halves, each an ellipse; ribs lie on its wall, a lung inside.
    ribs = parameters["ribs"]
    side = jnp.abs(x)
    u, v = (side - row["cx"]) / row["ca"], (y + row["cy"]) / row["cb"]
    k = jnp.sqrt(u * u + v * v + 1e-9)
    k1 = jnp.sqrt((u / row["ca"]) ** 2 + (v / row["cb"]) ** 2 + 1e-9)
    wall = k * (k - 1.0) / k1
    psi = jnp.arctan2(u, v)
    psi = jnp.where(psi < -1.7, psi + 2.0 * jnp.pi, psi)
    far = jnp.full_like(z, FAR)
    chest = (z < ribs["z"][0] + 40.0) & (z > ribs["z"][11] - 110.0)
    rib, cartilage = _when(jnp.any(chest), lambda: shapes.ribs(wall, psi, z, ribs), (far, far))
    front = y + row["cy"] + 0.93 * row["cb"]
    sternum = jnp.maximum(jnp.abs(x) - 17.0, jnp.abs(front) - 5.5)
    sternum = jnp.maximum(sternum, jnp.maximum(z - ribs["z"][1] + 30.0, ribs["z"][8] - 15.0 - z))
    rib = jnp.minimum(rib, sternum)

    # Belly: fat between wall and organs, sparing the muscles beside the spine.
    floor = ribs["z"][9] - 8.0 + 45.0 * jnp.clip(1.0 - 0.8 * k * k, 0.0, 1.0) - 18.0 * v
    psoas = jnp.sqrt((side - 36.0) ** 2 + (y - 2.0) ** 2) - 21.0
    cavity = jnp.maximum(skin + row["fat"] + 18.0, y - 34.0 + 0.1 * side)
    cavity = jnp.maximum(cavity, 30.0 - jnp.sqrt(x * x + (y - 16.0) ** 2))
    cavity = jnp.maximum(jnp.maximum(cavity, -psoas), z - ribs["z"][8])
    hu = tissues.over(hu, t["fat"] + 10.0 * noise, cavity, edge)
    lung = jnp.maximum(wall + 8.0, floor - z)
    spare = jnp.maximum(26.0 - side, 0.0) + jnp.maximum(wall + 8.0, -4.0)
    lung = jnp.maximum(lung, jnp.minimum(spare, 24.0 - side))
    hu = tissues.over(hu, t["lung"] + 260.0 * jax.nn.relu(noise - 1.1), lung, edge)

    organs = parameters["organs"]

    def draw_organ(i: Array, below: Array) -> Array:
        c, r = organs["centre"][i], organs["radii"][i]
        q = jnp.sqrt(
            ((x0 - c[0]) / r[0]) ** 2 + ((y0 - c[1]) / r[1]) ** 2 + ((z - c[2]) / r[2]) ** 2
        )
        d = (q - 1.0 + 0.06 * noise) * jnp.minimum(jnp.minimum(r[0], r[1]), r[2])
        d = jnp.maximum(d, skin + row["fat"] + 4.0)
        # Loops of bowel have a wall.
        below = tissues.over(below, 45.0, d - jnp.where(i >= SOLID_ORGANS, 2.0, 0.0), edge)
        return tissues.over(below, organs["hu"][i] + 5.0 * noise, d, edge)

    count = organs["hu"].shape[0] * jnp.any((z < ribs["z"][4]) & (skin < -10.0))
    hu = lax.fori_loop(0, count, draw_organ, hu)
    aorta = jnp.sqrt((x - row["ax"]) ** 2 + (y + row["ay"]) ** 2) - row["ar"]
    vein = jnp.sqrt((x + row["vx"]) ** 2 + (y + row["vy"]) ** 2) - row["vr"]
    hu = tissues.over(hu, t["vein"], vein, edge)
    hu = tissues.over(hu, t["blood"], aorta, edge)
    plaque = jnp.maximum(jnp.abs(aorta + 0.5) - 1.3, 4.0 * (2.4 - 2.0 * t["calcified"] - noise))
    hu = tissues.over(hu, 750.0, plaque, edge)
    pipe = jnp.sqrt(x * x + (y + 30.0 + 0.08 * row["ar"] ** 2) ** 2) - row["windpipe"]
    hu = tissues.over(hu, AIRWAY_HU, pipe, edge)
    hu = tissues.over(hu, 95.0, cartilage, edge)
    head = parameters["head"]
    qx, qy, qz = local(p, head)
    c = head["centre"]
    brain = shapes.ellipsoid(qx - c[0], qy - c[1], qz - c[2], head["skull"]) + 7.0
    return tissues.over(hu, 34.0, brain, edge), rib
