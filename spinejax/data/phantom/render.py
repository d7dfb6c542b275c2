"""Draw a phantom at any set of points: `render(parameters, points_mm) -> (HU, label)`.

The value at a point depends on that point alone, so a slice is the same plane of the volume. For
speed, points are sorted into blocks that are close to each other, and a block evaluates only the
vertebrae and bones that reach it; the result does not depend on how points fall into blocks.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from spinejax.data.phantom import scene, tissues
from spinejax.data.phantom import spine as spine_at
from spinejax.data.phantom.warp import warp

Array = jax.Array
JOINT_MM = 1.0  # width of the gap seen between two vertebrae that touch
BLOCK = 2048


def render_block(
    p: Array, parameters: dict[str, Any], edge: Any, distractors: bool = True
) -> tuple[Array, Array]:
    """HU and label (n,) of points (n, 3) close together: what reaches none of them is skipped."""
    t, spine = parameters["tissue"], parameters["spine"]
    p = warp(p, parameters)
    x, y, z = p[:, 0], p[:, 1], p[:, 2]
    soft = tissues.texture(x, y, z, parameters["soft"])
    fine = tissues.texture(x, y, z, parameters["texture"])
    hu, rib = scene.soft(p, parameters, edge, soft, distractors)
    if distractors:
        other = jnp.minimum(rib, scene.bones(p, parameters))
        marrow = 140.0 + t["trabeculae"] * fine
        hu = tissues.bone(hu, other, 1.3, 950.0, marrow, edge)

    v = spine_at.vertebrae(p, spine)
    hu = tissues.over(hu, t["fat"] + 40.0, v["canal"], edge)
    hu = tissues.over(hu, t["cord"], v["canal"] + 2.2, edge)
    hu = tissues.over(hu, t["disc"] + 5.0 * soft, v["disc"], edge)
    d = v["nearest"]
    # Where two vertebrae meet, a joint: half its width is taken from each.
    d = jnp.maximum(d, 0.5 * (d - v["second"] + JOINT_MM))
    posterior = jax.nn.sigmoid(1.5 * (v["drum"] - v["nearest"] - 1.5))
    shell = 0.6 + 0.55 * posterior
    marrow = spine["cancellous"][v["slot"]] + t["trabeculae"] * fine
    marrow = marrow + 70.0 * posterior
    hu = tissues.bone(hu, d, shell, spine["cortical"][v["slot"]], marrow, edge)
    label = jnp.where(v["nearest"] < 0.0, spine["id"][v["slot"]], 0)
    return hu, label


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
        edge_mm: Standard deviation of the blur at every edge: half a voxel is a good choice.
        distractors: Draw all that is not spine, too: other bones, organs, vessels, implants, table.
            Without (static switch), vertebrae, discs and canal lie in skin, fat and muscle alone.

    Returns:
        HU (...) float32 without noise, and VerSe labels (...) int32, 0 for background. Every
        vertebra is labelled; `acquisition.whole_vertebrae` tells which ones a field of view keeps.
    """
    shape = points_mm.shape[:-1]
    p = jnp.asarray(points_mm, jnp.float32).reshape(-1, 3)
    n = p.shape[0]
    block = min(BLOCK, n)
    pad = -n % block
    # Points near the spine first, from top to bottom, then the others.
    far = ~jnp.any(spine_at.reaches(p, parameters["spine"]), -1)
    order = jnp.argsort(-p[:, 2] + jnp.where(far, 1e4, 0.0))
    order = jnp.concatenate([order, jnp.broadcast_to(order[-1:], (pad,))])
    hu, label = lax.map(
        lambda q: render_block(q, parameters, edge_mm, distractors), p[order].reshape(-1, block, 3)
    )
    back = jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n + pad, dtype=jnp.int32))
    return hu.reshape(-1)[back].reshape(shape), label.reshape(-1)[back].reshape(shape)
