"""Everything but the column and other bones, at points: outline, soft tissue, organs, vessels."""

from typing import Any

import jax
import jax.numpy as jnp

from spinejax.phantom.body import bones, shapes, tissues
from spinejax.phantom.body.bones import near
from spinejax.phantom.body.shapes import FAR, local
from spinejax.phantom.body.tissues import inside
from spinejax.phantom.once import each, when
from spinejax.phantom.person.surroundings import PROFILE

Array = jax.Array
AIRWAY_HU = -950.0
_OUTLINE = (PROFILE.index("width"), PROFILE.index("depth"), PROFILE.index("back"))


def _row(z: Array, profile: dict[str, Any]) -> dict[str, Array]:
    """The outline's numbers at heights z (n,)."""
    rows = profile["rows"]
    at = jnp.clip((z - profile["low"]) / profile["step"], 0.0, rows.shape[0] - 1.001)
    i = at.astype(jnp.int32)
    t = (at - i)[:, None]
    values = (rows[i] * (1.0 - t) + rows[i + 1] * t).T
    return dict(zip((*PROFILE, "sx", "sy"), values, strict=True))


def outline(z: Array, profile: dict[str, Array]) -> dict[str, Array]:
    """Half width and half depth of the body, and its middle (x, y), at heights z."""
    rows = profile["rows"]
    rows = jnp.stack([rows[:, i] for i in (*_OUTLINE, rows.shape[1] - 2, rows.shape[1] - 1)])
    at = jnp.clip((z - profile["low"]) / profile["step"], 0.0, rows.shape[1] - 1.001)
    i = at.astype(jnp.int32)
    t = at - i
    width, depth, back, sx, sy = (row[i] * (1.0 - t) + row[i + 1] * t for row in rows)
    return {"width": width, "depth": depth, "x": 0.4 * sx, "y": sy + back - depth}


def _round_box(u: Array, v: Array, a: Array, b: Array) -> Array:
    """Distance to a closed curve between an ellipse and a box."""
    uu, vv = (u / a) ** 2, (v / b) ** 2
    r = jnp.sqrt(jnp.sqrt(uu * uu + uu * vv + vv * vv) + 1e-12)
    gx = (uu + 0.5 * vv) * u / (a * a)
    gy = (vv + 0.5 * uu) * v / (b * b)
    slope = jnp.sqrt(gx * gx + gy * gy) / jnp.maximum(r**3, 1e-3)
    return (r - 1.0) / jnp.maximum(slope, 0.5 / (a + b))


def things(
    p: Array,
    hu: Array,
    items: dict[str, Array],
    inner: Array,
    edge: Any,
    soft: Array,
    fine: Array,
    waves: dict[str, Array],
) -> Array:
    """Lay the capsules that reach the points over `hu`, in their order.

    Args:
        p: Points (n, 3).
        hu: (n,).
        items: As from `contents.contents`.
        inner: Distance (n,) to the space that holds all items that are not free.
        edge: Blur, mm.
        soft: Coarse texture (n,).
        fine: Fine texture (n,).
        waves: Those of another texture, for bubbles.
    """
    x, y, z = p[:, 0], p[:, 1], p[:, 2]
    brushes = shapes.brushes(items["shape"])

    def mixed() -> Array:
        # Bubbles of several sizes: two textures of other directions.
        turned = tissues.texture(0.8 * z + 0.6 * x, 0.8 * y, 0.8 * x - 0.6 * z, waves)
        return 0.6 * fine + 0.7 * turned

    def draw(k: Array, below: Array) -> Array:
        d = shapes.capsule(x, y, z, brushes[k]) + items["wobble"][k] * soft
        d = jnp.where(items["free"][k] > 0, d, jnp.maximum(d, inner))
        wall, core = inside(d, edge), inside(d + items["wall_mm"][k], edge)
        dots = when(
            items["spots"][k] > 0.0,
            lambda: 700.0 * items["spots"][k] * jax.nn.sigmoid(6.0 * (mixed() + soft - 1.1)),
            jnp.zeros_like(soft),
        )
        held = items["core"][k] + 6.0 * soft - dots
        return below * (1.0 - wall) + items["wall"][k] * (wall - core) + held * core

    return each(near(p, items["low"], items["high"], tissues.spare(edge)), draw, hu)


def _back(x: Array, y: Array, thickness: Array) -> Array:
    """Distance to the planes of fat between the muscles of the back."""
    side = jnp.abs(x)
    inner = jnp.sqrt((side / 22.0) ** 2 + ((y - 40.0) / 20.0) ** 2 + 1e-6)
    outer = jnp.sqrt(((side - 38.0) / 19.0) ** 2 + ((y - 38.0) / 20.0) ** 2 + 1e-6)
    seam = jnp.minimum(jnp.abs(inner - 1.0) * 20.0, jnp.abs(outer - 1.0) * 19.0)
    return jnp.maximum(seam - thickness, 22.0 - y)


def _trunk(
    p: Array, row: dict[str, Array], parameters: dict[str, Any], edge: Any, noise: Array, hu: Array
) -> tuple[Array, dict[str, Array]]:
    """Lay skin, fat and muscle over `hu`; also return distances that other tissue refers to."""
    t = parameters["tissue"]
    x0, y0, z = p[:, 0], p[:, 1], p[:, 2]
    x, y = x0 - row["sx"], y0 - row["sy"]
    side = jnp.abs(x)
    skin = _round_box(
        x0 - 0.4 * row["sx"], y - row["back"] + row["depth"], row["width"], row["depth"]
    )
    fat = t["fat"] + 6.0 * noise
    hu = tissues.over(hu, fat, skin, edge)
    hu = tissues.over(hu, 10.0, jnp.abs(skin + 1.0) - 1.0, edge)  # skin
    strands = when(
        jnp.any(skin < 0.0),
        lambda: tissues.texture(p[:, 0], p[:, 1], z, parameters["fibres"], edge),
        jnp.zeros_like(z),
    )
    # Fat lies in strands along the muscles, and in planes between them.
    streak = jax.nn.sigmoid(5.0 * (strands + 0.5 * noise - 2.6 + 1.4 * t["streaks"]))
    seam = inside(_back(x, y, t["fascia"] + 0.3 * strands), edge)
    muscle = t["muscle"] + 5.0 * noise + 3.0 * strands
    muscle = muscle + (t["fat"] - muscle) * jnp.maximum(0.75 * streak, 0.8 * seam)
    hu = tissues.over(hu, muscle, skin + row["fat"] + 2.0 * noise, edge)

    # In the belly, fat lies between wall and organs, not in the muscles beside the spine.
    ribs = parameters["ribs"]
    u, v = (side - row["cx"]) / row["ca"], (y + row["cy"]) / row["cb"]
    k = jnp.sqrt(u * u + v * v + 1e-9)
    floor = ribs["floor"] + 45.0 * jnp.clip(1.0 - 0.8 * k * k, 0.0, 1.0) - 32.0 * v
    grown = jnp.clip((ribs["waist"] - z) / 70.0, 0.3, 1.0)
    psoas = jnp.sqrt((side - 22.0 - 14.0 * grown) ** 2 + (y - 4.0) ** 2) - 20.0 * grown
    below = jnp.clip(parameters["sacrum"]["origin"][2] - z, 0.0, 70.0)
    cavity = jnp.maximum(skin + row["fat"] + 18.0, y - 32.0 + 0.1 * side - 0.45 * below)
    cavity = jnp.maximum(
        cavity, 38.0 + 4.0 * noise - jnp.sqrt(x * x + (y - 18.0 - 0.5 * below) ** 2)
    )
    cavity = jnp.maximum(jnp.maximum(cavity, -psoas + 0.1 * below), z - ribs["floor"] - 40.0)
    hu = tissues.over(hu, fat + 8.0 * noise, cavity, edge)
    return hu, {"x": x, "y": y, "skin": skin, "u": u, "v": v, "k": k, "floor": floor}


def _around(x0: Array, y0: Array, z: Array, parameters: dict[str, Any], edge: Any) -> Array:
    """Air, and the table in it."""
    t, profile = parameters["tissue"], parameters["profile"]
    board = jnp.max(profile["rows"][:, -1] + profile["rows"][:, PROFILE.index("back")])
    curved = jnp.where(t["board"] == 2, 0.0, x0 * x0 / 1800.0)
    away = jnp.where(t["board"] > 0, board + 18.0 + t["table"], 1e4)
    table = jnp.abs(y0 - away + curved) - 12.0
    table = jnp.maximum(table, jnp.abs(x0) - 230.0)
    hu = jnp.full_like(z, tissues.AIR_HU)
    # A pad between the board and the back.
    pad = jnp.maximum(jnp.abs(y0 - away + 17.0 + curved) - 5.0, jnp.abs(x0) - 215.0)
    hu = tissues.over(hu, jnp.where(t["board"] == 3, -930.0, tissues.AIR_HU), pad, edge)
    hu = tissues.over(hu, -880.0, table, edge)
    return tissues.over(hu, -50.0, jnp.abs(table + 1.0) - 1.0, edge)


def soft(
    p: Array,
    parameters: dict[str, Any],
    edge: Any,
    noise: Array,
    fine: Array,
    distractors: bool = True,
) -> tuple[Array, Array]:
    """HU of everything but bone, and distance to the bone of ribs and sternum.

    Without distractors: skin, fat and muscle only.
    """
    t = parameters["tissue"]
    x0, y0, z = p[:, 0], p[:, 1], p[:, 2]
    row = _row(z, parameters["profile"])
    if not distractors:
        hu = jnp.full_like(z, tissues.AIR_HU)
        hu, _ = _trunk(p, row, parameters, edge, noise, hu)
        return hu, jnp.full_like(z, FAR)
    hu = _around(x0, y0, z, parameters, edge)
    hu, at = _trunk(p, row, parameters, edge, noise, hu)
    x, y, skin = at["x"], at["y"], at["skin"]
    cloth = jnp.abs(skin - 7.0 - 3.0 * noise) - 0.5 * t["blanket"]
    hu = hu + 160.0 * inside(cloth, edge) * inside(-skin, edge) * (t["blanket"] > 0.0)

    spare = tissues.spare(edge)
    # The chest: two halves, each an ellipse; ribs lie on its wall, a lung inside.
    ribs = parameters["ribs"]
    side = jnp.abs(x)
    u, v, k = at["u"], at["v"], at["k"]
    k1 = jnp.sqrt((u / row["ca"]) ** 2 + (v / row["cb"]) ** 2 + 1e-9)
    wall = k * (k - 1.0) / k1
    far = jnp.full_like(z, FAR)
    front = y + row["cy"] + 0.93 * row["cb"]

    def chest() -> tuple[Array, Array, Array]:
        psi = jnp.arctan2(u, v)
        psi = jnp.where(psi < -1.7, psi + 2.0 * jnp.pi, psi)
        rib, cartilage = bones.ribs(p, psi, wall, ribs, spare)
        sternum = shapes.smooth_max(side - 17.0, jnp.abs(front) - 5.5, 4.0)
        sternum = jnp.maximum(sternum, jnp.maximum(z - ribs["breast"][0], ribs["breast"][1] - z))
        # Fat between the lungs, then lungs. They reach the sides of the bodies, in front of the
        # necks of the ribs, and the right one often the front of the bodies.
        between = jnp.maximum(-t["recess"] - x, x - row["ax"] - row["ar"] - 3.0)
        between = between + 0.25 * (y + 15.0) + noise
        gutter = shapes.smooth_max((y - 1.9 * side + 29.0) / 2.15, y - 22.0 - 0.2 * side, 8.0)
        gutter = jnp.maximum(jnp.maximum(gutter, side - 45.0), -70.0 - y)
        lung = jnp.maximum(gutter, z - ribs["top"] + 45.0)
        lung = shapes.smooth_min(wall + 8.0, lung, 4.0)
        lung = jnp.maximum(lung, -shapes.smooth_max(between, y - t["behind"], 16.0))
        pleura = t["pleura"] + 1.5 * noise
        lung = jnp.maximum(lung, -shapes.ellipse(x, y - 1.0, 17.0 + pleura, 15.5 + pleura))
        lung = jnp.maximum(lung, at["floor"] - z)
        # The chest's ellipses go on beside the neck, where no lung lies.
        lung = shapes.smooth_max(lung, z - ribs["top"] + 20.0, 8.0)
        between = jnp.maximum(jnp.maximum(between, y - t["behind"]), 12.0 - front)
        between = jnp.maximum(between, jnp.maximum(at["floor"] - z, z - ribs["top"]))
        filled = tissues.over(hu, t["fat"] + 25.0 + 20.0 * noise, between, edge)
        dense = t["lung"] + 200.0 * jax.nn.relu(noise + 0.4 * fine - 1.3)
        dense = tissues.over(dense, t["fluid"], t["effusion"] + 3.0 * noise - y, edge)
        return tissues.over(filled, dense, lung, edge), jnp.minimum(rib, sternum), cartilage

    needed = jnp.any((z < ribs["top"] + 3.0 + spare) & (z > ribs["floor"] - 110.0 - spare))
    hu, rib, cartilage = when(needed, chest, (hu, far, far))

    hu = things(
        p,
        hu,
        parameters["contents"],
        skin + row["fat"] + 3.0,
        edge,
        noise,
        fine,
        parameters["fibres"],
    )

    def vessels() -> Array:
        aorta = jnp.sqrt((x - row["ax"]) ** 2 + (y + row["ay"]) ** 2) - row["ar"]
        vein = jnp.sqrt((x + row["vx"]) ** 2 + (y + row["vy"]) ** 2) - row["vr"]
        out = tissues.over(hu, t["vein"], vein, edge)
        out = tissues.over(out, 45.0, aorta, edge)
        out = tissues.over(out, t["blood"] + 4.0 * noise, aorta + 1.2, edge)
        patch = 4.0 * (2.7 - 2.6 * t["calcified"] - noise)
        plaque = jnp.maximum(jnp.abs(aorta + 0.6) - 0.6 - 1.0 * t["calcified"], patch)
        out = tissues.over(out, t["plaque"], plaque, edge)
        pipe = jnp.sqrt(x * x + (y + 30.0 + 0.08 * row["ar"] ** 2) ** 2) - row["windpipe"]
        out = tissues.over(out, 60.0, pipe - 1.2, edge + jnp.where(row["windpipe"] > 2.0, 0.0, 9.0))
        return tissues.over(out, AIRWAY_HU, pipe, edge)

    hu = when(jnp.any((jnp.abs(x) < 100.0) & (y < 30.0)), vessels, hu)
    hu = tissues.over(hu, t["cartilage"] + t["chalk"] * jax.nn.relu(noise + fine), cartilage, edge)
    head = parameters["head"]

    def brain() -> Array:
        qx, qy, qz = local(p, head)
        c = head["centre"]
        inner = shapes.ellipsoid(qx - c[0], qy - c[1], qz - c[2], head["skull"]) + 7.0
        return tissues.over(hu, 34.0, inner, edge)

    return when(jnp.any(z > head["origin"][2]), brain, hu), rib
