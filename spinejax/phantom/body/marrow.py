"""What bone is made of: shell, trabeculae, endplates, lesions; and the state of each disc.

Compact shells of vertebral bodies are 0.2 to 0.7 mm thin, so that a scan shows half of their HU or
less; those of arches are thicker. Marrow ranges from fat (osteoporosis) to sclerosis.
"""

from typing import Any

import jax
import jax.numpy as jnp

from spinejax.phantom.body.tissues import sine
from spinejax.phantom.person.draws import Draws, stacked
from spinejax.phantom.person.levels import SLOTS

Array = jax.Array

COLUMNS = (
    "cancellous", "cortical", "shell", "arch_shell", "arch", "upper", "lower", "depth", "plate",
    "grain", "blotch", "lx", "ly", "lz", "radius", "lesion", "struts",
    "a", "b", "h", "bz", "wedge", "conc", "cw", "canal_y",
)  # fmt: skip
"""What is known of each vertebra, see `marrow`."""


def marrow(draws: Draws, spine: dict[str, Any]) -> dict[str, Array]:
    """Draw the bone of a person.

    Args:
        draws: Random numbers.
        spine: As in `anatomy`; its sizes are taken over.

    Returns:
        Mapping: "vertebra" (26, len(COLUMNS)); "disc" (26, 3): HU of the disc below each, half
        height (mm) and HU of a cleft in it; "cortical", "shell", "cancellous", "grain" and
        "dense" (HU more where they bear most weight) of other bones; "sacral" (HU), its "_grain",
        "_blotch" and "_shell" of the upper sacrum, and where that carries the column its "_end" (mm
        more of shell), "_plate" (HU more below it) and "_depth" (mm, of these); "voltage", by how
        much bone is brighter than usual.
    """
    u, n = draws.uniform(16), draws.normal(8)
    own, v = draws.normal(6, SLOTS), draws.uniform(12, SLOTS)
    one = jnp.ones(SLOTS)
    # Tube voltage and calibration scale all bone.
    voltage = 0.8 + 0.5 * u[0]
    between = 0.08 + 0.28 * u[12] ** 2  # in some spines one vertebra is twice as dense as the next
    cancellous = voltage * spine["cancellous"] * jnp.exp(0.42 * n[0] + between * own[0] - 0.5)
    cortical = voltage * spine["cortical"] * (1.10 + 0.15 * n[1])
    # Degeneration makes bone under endplates dense.
    worn = spine["wear"]
    dense = voltage * (spine["sclerosis"] * (0.6 + 0.8 * v[0]) + 40.0 * v[1])
    upper, lower = jnp.append(dense[:1] * 0.0, dense[:-1]), dense
    # The denser, the deeper: up to half of a body (Modic's third type).
    share = 1.2 / (400.0 * voltage)
    deep = 1.0 + jnp.minimum(share * jnp.maximum(upper, lower), 1.2)
    last = jnp.sum(spine["id"] > 0) - 1

    # Lesions: of bone islands and haemangiomas each vertebra has its chance, of metastases persons.
    ill = u[2] < 0.05
    kind = jnp.where(ill & (v[4] < 0.4), jnp.where(v[5] < 0.5, 1, 2), 0)  # lytic, blastic
    kind = jnp.where(v[6] < 0.025, 3, kind)  # haemangioma
    kind = jnp.where(v[6] > 0.975, 4, kind)  # island
    choose = [0.0 * one, 30.0 + 40.0 * v[7], 450.0 + 500.0 * v[7], 20.0 + 40.0 * v[7], 950.0 * one]
    radii = [0.0 * one, 4.0 + 10.0 * v[8], 4.0 + 12.0 * v[8], 7.0 + 8.0 * v[8], 1.5 + 2.5 * v[8]]
    lesion = sum(jnp.where(kind == i, value, 0.0) for i, value in enumerate(choose))
    radius = sum(jnp.where(kind == i, value, 0.0) for i, value in enumerate(radii))
    size = spine["size"]
    columns = {
        "cancellous": cancellous,
        "cortical": cortical,
        "shell": jnp.clip(0.50 + 0.16 * n[2] + 0.05 * own[2], 0.2, 1.1),
        # Of joints and laminae, wear makes solid compact bone.
        "arch_shell": jnp.clip(
            1.0 + 0.30 * n[3] + 0.15 * own[3] + 2.4 * u[11] ** 3 * (0.3 + worn), 0.5, 4.0
        ),
        "arch": voltage * jnp.clip(50.0 + 60.0 * n[4] + 25.0 * own[4], 0.0, 500.0),
        "upper": upper,
        "lower": lower,
        "depth": (1.5 + 5.0 * v[9]) * deep,
        "plate": (0.15 + 0.45 * u[3]) * (0.8 + 0.4 * v[10]),
        # At a millimetre and above, single trabeculae are gone: a regular pattern would be what
        # a network learns to look for.
        "grain": cancellous * 0.10 * u[4] ** 2 + voltage * 7.0 * u[5],
        "blotch": cancellous * (0.05 + 0.20 * u[6]) + 8.0,
        "lx": 0.6 * size["a"] * jnp.sin(6.3 * v[11]),
        "ly": 0.7 * size["b"] * jnp.cos(9.0 * v[11]),
        "lz": 0.5 * size["h"] * jnp.sin(29.0 * v[11]),
        "radius": radius,
        "lesion": lesion * voltage,
        "struts": jnp.where(kind == 3, 260.0 * voltage, 0.0),
    }
    columns |= {name: size[name] for name in COLUMNS[-8:]}

    # Discs: from fresh to worn out, with gas or chalk.
    w = draws.uniform(5, SLOTS)
    disc = 92.0 + 16.0 * n[5] + 9.0 * own[5] - 25.0 * worn * w[0]
    gas = spine["gas"] > 0.0
    chalk = w[1] > 1.0 - 0.12 * worn
    cleft = jnp.where(gas, 0.4 + 1.3 * w[2], jnp.where(chalk, 0.4 + 1.4 * w[2], 0.0))
    inner = jnp.where(gas, -350.0 - 500.0 * w[3], 250.0 + 500.0 * w[3])
    return {
        "vertebra": draws.settled(stacked([columns[name] * one for name in COLUMNS], 1)),
        "disc": jnp.stack([disc, cleft, inner], 1),
        "cortical": jnp.mean(cortical) * (0.8 + 0.35 * u[7]),
        "shell": 0.4 + 1.4 * u[8],
        # Fatty marrow is common in the pelvis: a dark core within a bright shell.
        "cancellous": jnp.mean(cancellous) * (0.05 + 1.15 * u[9]),
        "grain": voltage * 14.0 * u[10],
        "sacral": cancellous[last] * jnp.exp(0.15 + 0.3 * n[6]),
        "sacral_grain": columns["grain"][last],
        "sacral_blotch": columns["blotch"][last],
        "sacral_shell": columns["shell"][last] * (1.0 + 0.4 * n[7] ** 2),
        "sacral_end": columns["plate"][last] * (0.6 + 0.8 * u[15]),
        "sacral_plate": dense[last] * (0.6 + 0.8 * u[13]),
        "sacral_depth": (2.0 + 5.0 * u[14]) * (1.0 + jnp.minimum(share * dense[last], 1.2)),
        "dense": voltage * 320.0 * u[1],
        "voltage": voltage,
    }


def vertebra(
    v: dict[str, Array], parameters: dict[str, Any], fine: Array, soft: Array
) -> tuple[Array, Array, Array]:
    """Shell thickness (mm), HU of the shell and HU of what it holds, at points.

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
    # Lytic lesions eat the shell, too.
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
