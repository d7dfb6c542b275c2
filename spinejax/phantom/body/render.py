"""Draw a phantom at any set of points: `render(parameters, points_mm) -> (HU, label)`.

A slice is the same plane of the volume. For speed, points are drawn in blocks that lie close to
each other, and a block leaves out the vertebrae and bones that are too far away to show in it. So a
few points may differ by some HU: see `spinejax.phantom.once`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from spinejax.phantom.body import bones, column, marrow, scene, shapes, tissues
from spinejax.phantom.body.warp import warp
from spinejax.phantom.once import in_steps, kept, when

Array = jax.Array
RIM_MM = 0.3
"""Distance of labels beyond the surface of bone. Annotators include the blurred rim: on real CT the
median is about 380 HU just inside masks and 80 HU just outside (`spinejax phantom --compare`)."""

BLOCK = 640
"""Points that are evaluated together: smaller blocks meet fewer vertebrae, larger ones make fewer
turns. Of 256 to 1024, this draws batches of slices fastest on two CPU cores."""


def render_block(
    p: Array, parameters: dict[str, Any], edge: Any, distractors: bool = True
) -> tuple[Array, Array]:
    """HU and label (n,) of points (n, 3) close together; parts out of reach are skipped."""
    t, spine = parameters["tissue"], parameters["spine"]
    points, p = p, warp(p, parameters)
    x, y, z = p[:, 0], p[:, 1], p[:, 2]
    soft = tissues.texture(x, y, z, parameters["soft"])
    fine = tissues.texture(x, y, z, parameters["texture"], edge)
    p, soft, fine = kept(points, (p, soft, fine))
    hu, rib = scene.soft(p, parameters, edge, soft, fine, distractors)
    spare = tissues.spare(edge)
    v = column.vertebrae(p, spine, spare)
    d = v["nearest"]
    near = jnp.any(d < 60.0)

    def near_column() -> Array:
        # Between bone and muscle lies a rim of fat with tendons; in front of the bodies lie a
        # ligament and the crura instead.
        front = jax.nn.sigmoid(-0.5 * (v["y"] + 6.0))
        rim = t["rim"] * (1.0 - 0.75 * front) * jax.nn.sigmoid(1.6 * (2.6 + 1.6 * soft - d))
        drawn = hu + rim * (jnp.minimum(hu, t["fat"] + 20.0) - hu)
        drawn = _canal(drawn, v, parameters, edge, soft)
        filled = marrow.disc(v, parameters, fine, soft)
        return tissues.over(drawn, filled, v["disc"], edge)

    hu = when(near, near_column, hu)
    # Other bones lie over the last disc, for the sacrum's endplate, and under the column's bone.
    if distractors:
        other = bones.bones(p, parameters, spare)
        hu = tissues.over(hu, t["epidural"], other.holes, edge)
        bone = parameters["marrow"]
        # A joint's gap lies between the column and what articulates with it.
        apart_mm = jnp.maximum(jnp.minimum(rib, other.distance), t["joint"] - d)
        inner = bone["cancellous"] + bone["grain"] * fine + 12.0 * soft
        # The upper sacrum is like vertebrae: HU do not tell them apart.
        like = bone["sacral"] + bone["sacral_grain"] * fine + bone["sacral_blotch"] * soft
        inner = inner + other.like * (like - inner) + other.dense
        # The dural sac continues from the canal of the column into that of the sacrum.
        hu = tissues.over(hu, t["cord"] + 3.0 * soft, other.sac, edge)
        hu = tissues.bone(hu, apart_mm, other.shell, bone["cortical"], inner, edge)

    def vertebra() -> tuple[Array, Array]:
        # A joint between two vertebrae takes half of its width from each.
        apart = jnp.maximum(d, 0.5 * (d - v["second"] + t["joint"]))
        shell, cortical, inner = marrow.vertebra(v, parameters, fine, soft)
        drawn = tissues.bone(hu, apart, shell, cortical, inner, edge)
        return drawn, jnp.where(d < RIM_MM, spine["id"][v["slot"]], 0)

    hu, label = when(near, vertebra, (hu, jnp.zeros(hu.shape, jnp.int32)))
    if distractors:
        all_in = jnp.full_like(hu, -shapes.FAR)
        hu = scene.things(
            p, hu, parameters["implants"], all_in, edge, soft, fine, parameters["fibres"]
        )
    return hu, label


def _canal(
    hu: Array, v: dict[str, Array], parameters: dict[str, Any], edge: Any, soft: Array
) -> Array:
    """The canal with its fat and sac, and fat with a nerve root in the foramina beside it."""
    t, size = parameters["tissue"], parameters["spine"]["size"]
    slot = v["slot"]
    side = jnp.abs(v["x"])
    y = v["y"] - size["canal_y"][slot]
    out = side - size["cw"][slot]
    beside = jnp.maximum(jnp.maximum(-out - 2.0, out - 9.0), jnp.abs(y + 1.0) - 8.0)
    beside = jnp.maximum(beside, v["canal"] - 11.0)
    hu = tissues.over(hu, t["fat"] + 25.0 + 8.0 * soft, beside, edge)
    z = v["z"] + size["h"][slot] - 2.0 + 0.5 * out
    root = jnp.sqrt((y + 2.0) ** 2 + z * z + 1e-6) - 2.6
    root = jnp.maximum(root, jnp.maximum(-out - 4.0, out - 30.0))
    hu = tissues.over(hu, t["muscle"] - 10.0, root, edge)
    hu = tissues.over(hu, t["epidural"] + 8.0 * soft, v["canal"], edge)
    return tissues.over(hu, t["cord"] + 3.0 * soft, v["canal"] + 1.6 + 0.8 * soft, edge)


def render(
    parameters: dict[str, Any],
    points_mm: Array,
    *,
    edge_mm: float | Array = 0.6,
    distractors: bool = True,
) -> tuple[Array, Array]:
    """Draw a phantom at points.

    Args:
        parameters: From `anatomy`; one person (vmap for several).
        points_mm: (..., 3), canonical LPS mm: x to the left, y to posterior, z to superior.
        edge_mm: Standard deviation of the blur at every edge; half a voxel is a good choice.
        distractors: Draw other bones, organs, vessels, implants and the table, too. Without them
            vertebrae, discs and canal lie in skin, fat and muscle. A static switch.

    Returns:
        HU (...) float32 without noise, and VerSe labels (...) int32, 0 for background. Every
        vertebra is labelled; `view.whole_vertebrae` returns those that a field of view keeps.
    """
    points_mm = jnp.asarray(points_mm, jnp.float32)
    if not in_steps():
        hu, label = render_block(points_mm.reshape(-1, 3), parameters, edge_mm, distractors)
        return hu.reshape(points_mm.shape[:-1]), label.reshape(points_mm.shape[:-1])
    if points_mm.ndim > 2:
        # Level by level: the last axis of sagittal slices and of cubes runs along the body.
        points_mm = jnp.moveaxis(points_mm, -2, 0)
    shape = points_mm.shape[:-1]
    p = points_mm.reshape(-1, 3)
    n = p.shape[0]
    block = min(BLOCK, n)
    pad = -n % block
    # Points near the spine come first, in their order, then the others.
    far = ~jnp.any(column.reaches(p, parameters["spine"]), 0)
    index = jnp.arange(n, dtype=jnp.int32)
    before = jnp.cumsum(far, dtype=jnp.int32)
    place = jnp.where(far, n - before, index - before)
    order = jnp.zeros(n, jnp.int32).at[place].set(index, unique_indices=True)
    order = jnp.concatenate([order, jnp.broadcast_to(order[-1:], (pad,))])
    hu, label = lax.map(
        lambda q: render_block(q, parameters, edge_mm, distractors), p[order].reshape(-1, block, 3)
    )
    hu, label = (a.reshape(-1)[place].reshape(shape) for a in (hu, label))
    if points_mm.ndim > 2:
        hu, label = jnp.moveaxis(hu, 0, -1), jnp.moveaxis(label, 0, -1)
    return hu, label
