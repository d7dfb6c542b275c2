"""The inside of vertebrae and discs at points: shell, trabeculae, endplates, lesions, clefts."""

from typing import Any

import jax
import jax.numpy as jnp

from spinejax.phantom.body.tissues import sine
from spinejax.phantom.person.bone import COLUMNS
from spinejax.phantom.person.levels import SLOTS

Array = jax.Array


def vertebra(
    v: dict[str, Array], parameters: dict[str, Any], fine: Array, soft: Array
) -> tuple[Array, Array, Array]:
    """Thickness of the shell (mm), HU of the shell and HU inside it, at points.

    Args:
        v: From `spine.vertebrae`.
        parameters: From `anatomy`.
        fine: Texture of trabeculae, standard deviation 1.
        soft: Coarser texture.
    """
    row = dict(zip(COLUMNS, parameters["marrow"]["vertebra"][v["slot"]].T, strict=True))
    x, y, z = v["x"], v["y"], v["z"] - row["bz"]
    arch = jax.nn.sigmoid(1.5 * (v["drum"] - v["nearest"] - 1.5))
    body = 1.0 - arch
    s, t = x / row["a"], y / row["b"]
    hollow = row["conc"] * jnp.maximum(1.0 - s * s - t * t, 0.0)
    half = row["h"] - row["wedge"] * t - hollow
    top, bottom = jnp.maximum(half - z, 0.0), jnp.maximum(half + z, 0.0)
    hu = row["cancellous"] + row["arch"] * arch + row["grain"] * fine + row["blotch"] * soft
    above = row["upper"] * jnp.exp(-top / row["depth"])
    sclerosis = above + row["lower"] * jnp.exp(-bottom / row["depth"])
    hu = hu + body * sclerosis * jnp.maximum(1.0 + 0.35 * soft, 0.0)
    shell = row["shell"] + (row["arch_shell"] - row["shell"]) * arch
    shell = shell + body * row["plate"] * jnp.exp(-((jnp.minimum(top, bottom) / 2.0) ** 2))
    # Where the veins leave the back of the body there is neither shell nor bone.
    vein = jnp.exp(-((x / 5.0) ** 2) - ((y - row["b"]) / 8.0) ** 2 - (z / 2.4) ** 2) * body
    shell = shell * (1.0 - 0.9 * vein)
    hu = hu + vein * (20.0 - hu)
    off = jnp.sqrt((x - row["lx"]) ** 2 + (y - row["ly"]) ** 2 + (z - row["lz"]) ** 2 + 1e-6)
    share = jax.nn.sigmoid(-1.6 * (off - row["radius"] + 1.2 * soft)) * (row["radius"] > 0.0)
    struts = row["struts"] * jax.nn.relu(sine(1.9 * x) * sine(1.9 * y) - 0.1)
    hu = hu + share * (row["lesion"] + struts + 20.0 * fine - hu)
    # Lytic lesions destroy the shell, too.
    shell = shell * (1.0 - 0.9 * share * (row["lesion"] < 150.0) * (row["struts"] == 0.0))
    return shell, row["cortical"], hu


def disc(v: dict[str, Array], parameters: dict[str, Any], fine: Array, soft: Array) -> Array:
    """HU of the disc at points that lie in one; see `vertebra`."""
    spine = parameters["spine"]
    below = v["z"] < 0.0
    index = jnp.clip(v["slot"] - jnp.where(below, 0, 1), 0, SLOTS - 1)
    state = parameters["marrow"]["disc"][index].T
    half = spine["size"]["h"][v["slot"]]
    gap = spine["size"]["disc"][index] - spine["size"]["h"][index]
    middle = jnp.abs(jnp.abs(v["z"] - spine["size"]["bz"][v["slot"]]) - half - 0.5 * gap)
    rim = jnp.sqrt((v["x"] / 20.0) ** 2 + ((v["y"]) / 15.0) ** 2)
    cleft = state[1] - 1.4 * rim * state[1] + 0.5 * soft - middle
    share = jax.nn.sigmoid(3.0 * cleft) * (state[1] > 0.0)
    hu = state[0] + 7.0 * soft + 3.0 * fine
    return hu + share * (state[2] - hu)
