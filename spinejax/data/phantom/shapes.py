"""Signed distances, in millimetres and negative inside, of the parts a body is drawn from.

Nothing here knows of HU or labels. Distances are approximate away from a surface (they are scaled
implicit functions), exact in sign and near-exact within the few millimetres around a surface, which
is what rendering uses.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

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
    # At the centre both vanish: the distance there is minus the smallest radius.
    smallest = jnp.minimum(jnp.minimum(radii[0], radii[1]), radii[2])
    return jnp.where(k1 > 1e-6, k0 * (k0 - 1.0) / jnp.maximum(k1, 1e-6), -smallest)


def capsule(x: Array, y: Array, z: Array, c: Any) -> Array:
    """Distance to a brush drawn along a segment.

    Args:
        x: One coordinate each of the points, mm, in the frame of the segment.
        y: See x.
        z: See x.
        c: Ten numbers: start (3), end (3), semi-axes of the ellipsoidal brush (3), and by how much
            the brush has grown at the end (1 = not at all).
    """
    dx, dy, dz = c[3] - c[0], c[4] - c[1], c[5] - c[2]
    px, py, pz = x - c[0], y - c[1], z - c[2]
    t = (px * dx + py * dy + pz * dz) / (dx * dx + dy * dy + dz * dz + 1e-6)
    t = jnp.clip(t, 0.0, 1.0)
    size = 1.0 + t * (c[9] - 1.0)
    return ellipsoid(px - t * dx, py - t * dy, pz - t * dz, (c[6] * size, c[7] * size, c[8] * size))


def capsules(x: Array, y: Array, z: Array, many: Array, k: float) -> Array:
    """Smooth union of capsules, `many` (n, 10), each drawn on both sides of x = 0."""
    x = jnp.abs(x)
    # A loop, not unrolled: compiling is several times faster and running is not slower.
    return lax.fori_loop(
        1,
        many.shape[0],
        lambda i, d: smooth_min(d, capsule(x, y, z, many[i]), k),
        capsule(x, y, z, many[0]),
    )


def body(x: Array, y: Array, z: Array, size: Any) -> tuple[Array, Array, Array]:
    """Vertebral body: a rounded drum with a waist, hollow endplates and a wedge.

    Args:
        x: Coordinates in the vertebra's frame, mm.
        y: See x.
        z: See x.
        size: Mapping with a, b, h, wedge, conc, waist and bz (height of the drum's middle).

    Returns:
        Distance to the drum; to its side wall alone; to its endplates alone.
    """
    z = z - size["bz"]
    level = jnp.clip(z / size["h"], -1.0, 1.0)
    slim = 1.0 - size["waist"] * (1.0 - level * level)
    u, v = x / (size["a"] * slim), y / (size["b"] * slim)
    uu, vv = u * u, v * v
    # r = (u^4 + c u^2 v^2 + v^4)^(1/4): c = 2 is an ellipse, c = 0 nearly a box.
    c = 1.0
    r = jnp.sqrt(jnp.sqrt(uu * uu + c * uu * vv + vv * vv) + 1e-12)
    inverse = 1.0 / jnp.maximum(r * r * r, 1e-3)
    gx = (uu + 0.5 * c * vv) * u * inverse / (size["a"] * slim)
    gy = (vv + 0.5 * c * uu) * v * inverse / (size["b"] * slim)
    wall = (r - 1.0) / jnp.maximum(jnp.sqrt(gx * gx + gy * gy), 0.5 / (size["a"] + size["b"]))
    hollow = size["conc"] * jnp.maximum(1.0 - r * r, 0.0)
    plates = jnp.abs(z) - (size["h"] - size["wedge"] * y / size["b"] - hollow)
    return smooth_max(wall, plates, 1.6), wall, plates


def vertebra(
    x: Array, y: Array, z: Array, size: Any, parts: Array, has_body: Array
) -> tuple[Array, Array, Array]:
    """One vertebra in its own frame.

    Args:
        x: Coordinates, mm, as in levels.py.
        y: See x.
        z: See x.
        size: Mapping of scalars: those of `body`, and cw, canal_y, canal_d (half depth).
        parts: (8, 10) capsules of the posterior elements.
        has_body: Scalar, 0 for the atlas.

    Returns:
        Distance to the whole vertebra, to the body alone, and to the disc below the body's side
        wall (the slice of space between this body's endplate and `size["disc"]` mm further down).
    """
    drum, wall, plates = body(x, y, z, size)
    drum = jnp.where(has_body > 0, drum, FAR)
    posterior = capsules(x, y, z, parts, 2.0)
    d = smooth_min(drum, posterior, 2.5)
    ax, ay = size["cw"], size["canal_d"]
    canal = ellipsoid(x, y - size["canal_y"], jnp.zeros_like(z), (ax, ay, FAR))
    d = smooth_max(d, -canal, 1.2)
    disc = jnp.maximum(wall - 0.5, plates - size["disc"])
    disc = jnp.where(has_body > 0, jnp.maximum(disc, z - size["bz"]), FAR)
    return d, drum, jnp.maximum(disc, -canal)


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


def ribs(e: Array, psi: Array, z: Array, rows: Any) -> tuple[Array, Array]:
    """Ribs of one side as bands on the wall of the chest.

    Args:
        e: Distance from the chest wall's middle surface, mm, outside positive.
        psi: Angle about the axis of that half of the chest, radians: 0 is the back, pi the front,
            negative values lead to the spine.
        z: Height, mm.
        rows: Mapping of (13,) arrays: z (height at the spine), slope (mm per radian, downwards),
            first and last angle of bone, and last angle of cartilage; `radius` (mm per radian).

    Returns:
        Distance to bone, distance to cartilage.
    """
    psi, e, z = psi[..., None], e[..., None], z[..., None]
    turn = psi - rows["first"]
    # Ribs climb a little to the tubercle and then fall, most steeply at the side.
    height = rows["z"] - rows["slope"] * (turn - 0.35 * jnp.sin(1.6 * turn))
    w = (z - height) * 0.9
    band = (jnp.sqrt((e / 3.4) ** 2 + (w / 6.2) ** 2 + 1e-6) - 1.0) * 3.4
    after = (psi - rows["last"]) * rows["radius"]
    bone = jnp.maximum(jnp.maximum(band, after), -turn * rows["radius"])
    soft = jnp.maximum(jnp.maximum(band, -after), (psi - rows["end"]) * rows["radius"])
    return jnp.min(bone, -1), jnp.min(soft, -1)
