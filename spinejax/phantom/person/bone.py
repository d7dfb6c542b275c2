"""Numbers of bone and discs: HU of marrow and compact bone, shells, endplates, lesions, clefts.

Compact shells of vertebral bodies are 0.2 to 0.7 mm thin, so that a scan shows at most half of
their HU; shells of arches are thicker. Marrow ranges from fat (osteoporosis) to sclerosis.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom.draws import Draws
from spinejax.phantom.once import stacked
from spinejax.phantom.person import levels
from spinejax.phantom.person.levels import SLOTS

Array = jax.Array

COLUMNS = (
    "cancellous", "cortical", "shell", "arch_shell", "arch", "upper", "lower", "depth", "plate",
    "grain", "blotch", "lx", "ly", "lz", "radius", "lesion", "struts",
    "a", "b", "h", "bz", "wedge", "conc", "cw", "canal_y",
)  # fmt: skip
"""Columns of `material`'s "vertebra"; the last eight are sizes (`levels.COLUMNS`)."""

# HU of cancellous bone above that of lumbar vertebrae.
_ABOVE_LUMBAR = np.repeat([70.0, 18.0, 0.0], np.diff([levels.C1, levels.T1, levels.L1, SLOTS]))


def density(draws: Draws, who: dict[str, Array]) -> tuple[Array, Array]:
    """HU of cancellous and of compact bone per slot, from osteoporotic to sclerotic."""
    mean = 235.0 - 1.6 * (who["age"] - 20.0) - 55.0 * who["brittle"] + 38.0 * draws.normal("mean")
    # Now and then bone is dense throughout (renal disease, metastases, osteopetrosis).
    dense = draws.uniform("dense throughout") < 0.05
    mean = mean + jnp.where(dense, 60.0 + 140.0 * draws.uniform("how dense"), 0.0)
    cancellous = mean + jnp.asarray(_ABOVE_LUMBAR) + 14.0 * draws.normal("own", SLOTS)
    cortical = 820.0 - 130.0 * who["brittle"] + 110.0 * draws.normal("compact")
    cortical = cortical + 40.0 * draws.normal("own compact", SLOTS)
    return jnp.clip(cancellous, 30.0, 350.0), jnp.clip(cortical, 500.0, 1150.0)


def material(draws: Draws, spine: dict[str, Any]) -> dict[str, Array]:
    """Draw the bone and the discs of a person.

    Args:
        draws: Random numbers.
        spine: As in `anatomy`; its sizes are taken over.

    Returns:
        Mapping: "vertebra" (26, len(COLUMNS)); "disc" (26, 3): HU of the disc below each, half
        height (mm) and HU of a cleft in it; "cortical", "shell", "cancellous", "grain" and "dense"
        (HU added where they bear most weight) of other bones; "sacral" (HU), "sacral_grain",
        "sacral_blotch" and "sacral_shell" of the upper sacrum; under the column, "sacral_end" (mm
        added to the shell), "sacral_plate" (HU added below it) and "sacral_depth" (mm, of these);
        "voltage", the factor by which bone is brighter.
    """
    uniform, normal = draws.uniform, draws.normal
    one = jnp.ones(SLOTS)
    # Tube voltage and calibration scale all bone.
    voltage = 0.8 + 0.5 * uniform("voltage")
    # In some spines one vertebra is twice as dense as the next.
    between = 0.08 + 0.28 * uniform("spread between vertebrae") ** 2
    factor = jnp.exp(0.42 * normal("density") + between * normal("own density", SLOTS) - 0.5)
    cancellous = voltage * spine["cancellous"] * factor
    cortical = voltage * spine["cortical"] * (1.10 + 0.15 * normal("compact"))
    # Degeneration makes bone under endplates dense.
    worn = spine["wear"]
    dense = spine["sclerosis"] * (0.6 + 0.8 * uniform("sclerosis", SLOTS))
    dense = voltage * (dense + 40.0 * uniform("endplate", SLOTS))
    upper, lower = jnp.append(dense[:1] * 0.0, dense[:-1]), dense
    # Denser sclerosis reaches deeper, up to half of a body (Modic's third type).
    share = 1.2 / (400.0 * voltage)
    deep = 1.0 + jnp.minimum(share * jnp.maximum(upper, lower), 1.2)
    last = jnp.sum(spine["id"] > 0) - 1

    # Lesions: a vertebra has a chance of a bone island or haemangioma, a person of metastases.
    ill = uniform("metastases") < 0.05
    blastic = uniform("blastic", SLOTS) >= 0.5
    kind = jnp.where(ill & (uniform("metastatic", SLOTS) < 0.4), jnp.where(blastic, 2, 1), 0)
    benign = uniform("benign lesion", SLOTS)
    kind = jnp.where(benign < 0.025, 3, kind)  # haemangioma
    kind = jnp.where(benign > 0.975, 4, kind)  # island
    v = uniform("lesion HU", SLOTS)
    choose = [0.0 * one, 30.0 + 40.0 * v, 450.0 + 500.0 * v, 20.0 + 40.0 * v, 950.0 * one]
    v = uniform("lesion radius", SLOTS)
    radii = [0.0 * one, 4.0 + 10.0 * v, 4.0 + 12.0 * v, 7.0 + 8.0 * v, 1.5 + 2.5 * v]
    lesion = sum(jnp.where(kind == i, value, 0.0) for i, value in enumerate(choose))
    radius = sum(jnp.where(kind == i, value, 0.0) for i, value in enumerate(radii))
    place = uniform("lesion place", SLOTS)
    # Wear makes solid compact bone of joints and laminae.
    solid = 2.4 * uniform("solid joints") ** 3 * (0.3 + worn)
    arch_shell = 1.0 + 0.30 * normal("arch shell") + 0.15 * normal("own arch shell", SLOTS) + solid
    arch = 50.0 + 60.0 * normal("arch") + 25.0 * normal("own arch", SLOTS)
    thick = 0.50 + 0.16 * normal("shell") + 0.05 * normal("own shell", SLOTS)
    size = spine["size"]
    columns = {
        "cancellous": cancellous,
        "cortical": cortical,
        "shell": jnp.clip(thick, 0.2, 1.1),
        "arch_shell": jnp.clip(arch_shell, 0.5, 4.0),
        "arch": voltage * jnp.clip(arch, 0.0, 500.0),
        "upper": upper,
        "lower": lower,
        "depth": (1.5 + 5.0 * uniform("sclerosis depth", SLOTS)) * deep,
        "plate": (0.15 + 0.45 * uniform("plate")) * (0.8 + 0.4 * uniform("own plate", SLOTS)),
        # Weak, since voxels of a millimetre do not show single trabeculae, and a network would
        # learn to look for the pattern.
        "grain": cancellous * 0.10 * uniform("grain") ** 2 + voltage * 7.0 * uniform("grain HU"),
        "blotch": cancellous * (0.05 + 0.20 * uniform("blotch")) + 8.0,
        "lx": 0.6 * size["a"] * jnp.sin(6.3 * place),
        "ly": 0.7 * size["b"] * jnp.cos(9.0 * place),
        "lz": 0.5 * size["h"] * jnp.sin(29.0 * place),
        "radius": radius,
        "lesion": lesion * voltage,
        "struts": jnp.where(kind == 3, 260.0 * voltage, 0.0),
    }
    columns |= {name: size[name] for name in COLUMNS[-8:]}

    # Discs: from fresh to worn out, with gas or chalk.
    disc = 92.0 + 16.0 * normal("disc") + 9.0 * normal("own disc", SLOTS)
    disc = disc - 25.0 * worn * uniform("worn disc", SLOTS)
    gas = spine["gas"] > 0.0
    chalk = uniform("chalk", SLOTS) > 1.0 - 0.12 * worn
    v = uniform("cleft", SLOTS)
    cleft = jnp.where(gas, 0.4 + 1.3 * v, jnp.where(chalk, 0.4 + 1.4 * v, 0.0))
    v = uniform("cleft HU", SLOTS)
    inner = jnp.where(gas, -350.0 - 500.0 * v, 250.0 + 500.0 * v)
    sacral_depth = 2.0 + 5.0 * uniform("sacral depth")
    return {
        "vertebra": draws.settled(stacked([columns[name] * one for name in COLUMNS], 1)),
        "disc": jnp.stack([disc, cleft, inner], 1),
        "cortical": jnp.mean(cortical) * (0.8 + 0.35 * uniform("other compact")),
        "shell": 0.4 + 1.4 * uniform("other shell"),
        # Fatty marrow is common in the pelvis: a dark core within a bright shell.
        "cancellous": jnp.mean(cancellous) * (0.05 + 1.15 * uniform("other cancellous")),
        "grain": voltage * 14.0 * uniform("other grain"),
        "sacral": cancellous[last] * jnp.exp(0.15 + 0.3 * normal("sacral")),
        "sacral_grain": columns["grain"][last],
        "sacral_blotch": columns["blotch"][last],
        "sacral_shell": columns["shell"][last] * (1.0 + 0.4 * normal("sacral shell") ** 2),
        "sacral_end": columns["plate"][last] * (0.6 + 0.8 * uniform("sacral end")),
        "sacral_plate": dense[last] * (0.6 + 0.8 * uniform("sacral plate")),
        "sacral_depth": sacral_depth * (1.0 + jnp.minimum(share * dense[last], 1.2)),
        "dense": voltage * 320.0 * uniform("weight bearing"),
        "voltage": voltage,
    }
