"""Signed distances to simple shapes, in millimetres, negative inside. No HU, no labels.

Distances are scaled implicit functions: exact in sign and nearly exact within a few millimetres of
a surface, where rendering uses them; approximate further away.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from spinejax.phantom.once import kept

Array = jax.Array
FAR = 1e3


def local(p: Array, frame: dict[str, Any]) -> tuple[Array, Array, Array]:
    """Coordinates of points (n, 3) in a frame."""
    q, r = p - frame["origin"], frame["rotation"]
    return tuple(q[:, 0] * r[0, i] + q[:, 1] * r[1, i] + q[:, 2] * r[2, i] for i in range(3))


def smooth_min(a: Array, b: Array, k: float | Array) -> Array:
    """Minimum that rounds the seam over about `k` mm (polynomial, equal to min beyond)."""
    t = jnp.maximum(k - jnp.abs(a - b), 0.0)
    return jnp.minimum(a, b) - t * t / (4.0 * k)


def smooth_max(a: Array, b: Array, k: float | Array) -> Array:
    """Maximum that rounds the edge over about `k` mm."""
    return -smooth_min(-a, -b, k)


def ellipsoid(x: Array, y: Array, z: Array, radii: Any) -> Array:
    """Distance to an ellipsoid about the origin: k0 (k0 - 1) / k1, first-order exact."""
    u, v, w = x / radii[0], y / radii[1], z / radii[2]
    k0 = jnp.sqrt(u * u + v * v + w * w)
    u, v, w = u / radii[0], v / radii[1], w / radii[2]
    k1 = jnp.sqrt(u * u + v * v + w * w)
    # At the centre both are 0; the distance there is minus the smallest radius.
    smallest = jnp.minimum(jnp.minimum(radii[0], radii[1]), radii[2])
    return jnp.where(k1 > 1e-6, k0 * (k0 - 1.0) / jnp.maximum(k1, 1e-6), -smallest)


def ellipse(x: Array, y: Array, a: Any, b: Any) -> Array:
    """Distance to an upright elliptic tube, as `ellipsoid` without its third axis."""
    u, v = x / a, y / b
    k0 = jnp.sqrt(u * u + v * v)
    u, v = u / a, v / b
    k1 = jnp.sqrt(u * u + v * v)
    return jnp.where(k1 > 1e-6, k0 * (k0 - 1.0) / jnp.maximum(k1, 1e-6), -jnp.minimum(a, b))


def brushes(rows: Array) -> Array:
    """Return what all points of a capsule share, computed once for all of them.

    Args:
        rows: (..., 10 or 11), one a capsule: start (3), end (3), semi-axes of the ellipsoidal
            brush (3), by how much the brush has grown at the end (1 = not at all), and its shear:
            how far its upper parts lie behind, mm per mm (a tile that leans; 0 if left out).

    Returns:
        (..., 13), which `capsule` takes.
    """
    start, end, axes, grown = jnp.split(rows[..., :10], (3, 6, 9), -1)
    along = end - start
    shear = rows[..., 10:] if rows.shape[-1] > 10 else jnp.zeros_like(grown)
    scale = 1.0 / (jnp.sum(along * along, -1, keepdims=True) + 1e-6)
    smallest = jnp.min(axes, -1, keepdims=True)
    numbers = [start, along, 1.0 / axes, scale, grown - 1.0, shear, smallest]
    return jnp.concatenate(numbers, -1)


def capsule(x: Array, y: Array, z: Array, c: Array) -> Array:
    """Distance to a brush drawn along a segment.

    Args:
        x: One coordinate each of the points, mm, in the frame of the segment.
        y: See x.
        z: See x.
        c: A row (13,) of `brushes`.
    """
    px, py, pz = x - c[0], y - c[1], z - c[2]
    t = jnp.clip((px * c[3] + py * c[4] + pz * c[5]) * c[9], 0.0, 1.0)
    # The ellipsoid's formula with divisions taken out: k0 and k1 scale with the brush.
    shrink = 1.0 / (1.0 + t * c[10])
    px, py, pz = px - t * c[3], py - t * c[4], pz - t * c[5]
    py = py - c[11] * pz
    u, v, w = px * c[6], py * c[7], pz * c[8]
    k0 = jnp.sqrt(u * u + v * v + w * w)
    u, v, w = u * c[6], v * c[7], w * c[8]
    k1 = jnp.sqrt(u * u + v * v + w * w)
    d = k0 * (k0 * shrink - 1.0) / jnp.maximum(k1 * shrink, 1e-6)
    return jnp.where(k1 > 1e-6, d, -c[12] / shrink)


def capsules(x: Array, y: Array, z: Array, rows: Array, k: float) -> Array:
    """Smooth union of capsules, `rows` as in `brushes`, each drawn on both sides of x = 0."""
    x, many = jnp.abs(x), brushes(rows)
    # A loop that is not unrolled compiles several times faster and runs as fast.
    return lax.fori_loop(
        1,
        many.shape[0],
        lambda i, d: smooth_min(d, capsule(x, y, z, many[i]), k),
        capsule(x, y, z, many[0]),
    )


def body(x: Array, y: Array, z: Array, size: Any) -> tuple[Array, Array, Array]:
    """Vertebral body: a drum with a waist, hollow endplates, rims and osteophytes.

    Args:
        x: Coordinates in the vertebra's frame, mm.
        y: See x.
        z: See x.
        size: Mapping of scalars: a, b, h, wedge, conc, waist, bz (height of the drum's middle),
            taper (how much narrower in front), square (2 an ellipse, 0 nearly a box), tip (how
            much higher on the left), skew (share by which the upper endplate is deformed more
            than the lower one), band; and of vectors: top and bottom (osteophytes), schmorl_top
            and schmorl_bottom, see `pathology`.

    Returns:
        Distance to the drum; to its side wall alone; to its endplates alone.
    """
    z = z - size["bz"]
    top = z > 0.0
    high = jnp.abs(z)
    level = jnp.clip(z / size["h"], -1.0, 1.0)
    slim = 1.0 - size["waist"] * (1.0 - level * level)
    b = size["b"] * slim
    v = y / b
    a = size["a"] * slim * (1.0 + size["taper"] * jnp.clip(v, -1.2, 1.2))
    u = x / a
    uu, vv = u * u, v * v
    # r = (u^4 + c u^2 v^2 + v^4)^(1/4): c = 2 is an ellipse, c = 0 nearly a box.
    c = size["square"]
    r = jnp.sqrt(jnp.sqrt(uu * uu + c * uu * vv + vv * vv) + 1e-12)
    inverse = 1.0 / jnp.maximum(r * r * r, 1e-3)
    gx = (uu + 0.5 * c * vv) * u * inverse / a
    gy = (vv + 0.5 * c * uu) * v * inverse / b
    wall = (r - 1.0) / jnp.maximum(jnp.sqrt(gx * gx + gy * gy), 0.5 / (size["a"] + size["b"]))

    def of_end(name: str) -> list[Array]:
        upper, lower = size[name + "top"], size[name + "bottom"]
        return [jnp.where(top, upper[i], lower[i]) for i in range(4)]

    # Osteophytes: the rim grows outwards in some directions, and its lip over the disc.
    mean, along_x, along_y, lip = of_end("")
    beak = mean + (along_x * u + along_y * v) * jax.lax.rsqrt(uu + vv + 0.04)
    below = jnp.minimum(high - size["h"], 0.0) / size["band"]
    fall = 1.0 / (1.0 + below * below)
    beak = jnp.maximum(beak, 0.0) * fall * fall
    lift = lip * beak * jnp.clip(4.0 * r - 3.0, 0.0, 1.0)
    # Endplates: hollow within a flat rim, and Schmorl's nodes: pits where a disc broke in.
    node_x, node_y, depth, narrow = of_end("schmorl_")
    e = ((x - node_x) ** 2 + (y - node_y) ** 2) * narrow * narrow
    pit = depth / ((1.0 + e) * (1.0 + e))
    side = jnp.where(top, 1.0 + size["skew"], 1.0 - size["skew"])
    hollow = side * size["conc"] * jnp.maximum(1.0 - 1.2 * r * r, 0.0) + pit
    height = size["h"] - side * size["wedge"] * v - size["tip"] * u * level
    plates = high - (height - hollow + lift)
    wall = wall - beak
    return smooth_max(wall, plates, 2.4), wall, plates


def vertebra(
    x: Array, y: Array, z: Array, size: Any, parts: Array, has_body: Array
) -> dict[str, Array]:
    """One vertebra in its own frame.

    Args:
        x: Coordinates, mm, as in levels.py.
        y: See x.
        z: See x.
        size: Mapping: what `body` takes, and scalars cw, canal_y, canal_d (half depth), disc
            (height of the gap between this body and the next, plus 1), and the asymmetry of the
            arch: bow (mm per mm by which the spinous process leaves the midline), slant and yaw
            (how much higher and further back the left side is, mm per mm), stout (mm by which the
            left side is thicker).
        parts: (n, 11) capsules of the posterior elements.
        has_body: Scalar, 0 for the atlas.

    Returns:
        Distances: `vertebra` to the whole, `drum` to the body alone, `disc` to what lies between
        this body and the next further down, and `canal` to the canal's tube.
    """
    drum, wall, plates = kept(x, body(x, y, z, size))
    drum = jnp.where(has_body > 0, drum, FAR)
    side = x - size["bow"] * jnp.maximum(y - size["b"], 0.0)
    posterior = capsules(side, y - size["yaw"] * x, z - size["slant"] * x, parts, 2.0)
    posterior = posterior - size["stout"] * x / (jnp.abs(x) + 8.0)
    d = smooth_min(drum, posterior, 2.5)
    canal = ellipse(x, y - size["canal_y"], size["cw"], size["canal_d"])
    d = smooth_max(d, -canal, 1.2)
    low = z - size["bz"]
    # The next body's endplate is hollow, too: the disc continues under it, and bone is laid over.
    # Otherwise soft tissue would fill a slit between the two.
    deeper = jnp.clip(-0.4 * wall, 0.0, 8.0)
    disc = jnp.maximum(wall - 0.5, plates - size["disc"] - deeper)
    disc = jnp.where(has_body > 0, jnp.maximum(disc, low), FAR)
    return {"vertebra": d, "drum": drum, "disc": jnp.maximum(disc, -canal), "canal": canal}


def plate(x: Array, y: Array, z: Array, p: Any) -> Array:
    """A curved fan of bone (the wing of the ilium), mirrored at x = 0.

    Args:
        x: Coordinates, mm.
        y: See x.
        z: See x.
        p: Mapping: centre (3), normal (3), along (3), across (3) unit vectors; radii (2),
            thickness, bend (1/mm).
    """
    x = jnp.abs(x)
    px, py, pz = x - p["centre"][0], y - p["centre"][1], z - p["centre"][2]
    n, u, v = p["normal"], p["along"], p["across"]
    s = px * u[0] + py * u[1] + pz * u[2]
    t = px * v[0] + py * v[1] + pz * v[2]
    q = px * n[0] + py * n[1] + pz * n[2] - p["bend"] * s * s
    radial = jnp.sqrt((s / p["radii"][0]) ** 2 + (t / p["radii"][1]) ** 2 + 1e-6)
    edge = (radial - 1.0) * jnp.minimum(p["radii"][0], p["radii"][1])
    # The rim (the iliac crest) is thicker than the middle.
    thickness = p["thickness"] * (0.6 + 0.9 * jnp.clip(radial, 0.0, 1.0) ** 3)
    return smooth_max(jnp.abs(q) - thickness, edge, 4.0)
