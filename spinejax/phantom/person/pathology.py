"""Age and its effects: brittle bone, worn discs, osteophytes, fractures, slips.

Everything depends on the person's age, so wear, loss of bone and kyphosis occur together, as in
patients. Frequencies are round numbers for adults who get a CT, with more wear than in the
population, since a network learns only what phantoms show.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom.draws import Draws
from spinejax.phantom.person import levels
from spinejax.phantom.person.levels import SLOTS

Array = jax.Array

YOUNGEST, OLDEST = 12.0, 92.0
_SLOT = np.arange(SLOTS)
_CERVICAL = _SLOT < levels.T1
_LUMBAR = _SLOT >= levels.L1
_THORACIC = ~_CERVICAL & ~_LUMBAR


def _by_slot(values: dict[int, float]) -> np.ndarray:
    """A number per slot, straight lines between those given."""
    return np.interp(_SLOT, list(values), list(values.values())).astype(np.float32)


# Wear of the disc below a slot beyond the mean: most at C5-C7 and from L4 downwards.
_WEAR = _by_slot({1: -0.4, 3: 0.0, 4: 0.2, 5: 0.2, 7: -0.2, 14: -0.05, 20: 0.0, 23: 0.2, 25: 0.25})
# Fractures gather where the stiff chest ends (T12, L1) and in the middle of the kyphosis.
_BREAKS = _by_slot({7: 0.0, 10: 0.2, 13: 0.6, 15: 0.4, 17: 0.9, 18: 1.5, 20: 1.5, 22: 0.7, 25: 0.3})
_SCHMORL = _by_slot({8: 0.0, 12: 0.05, 16: 0.12, 20: 0.12, 23: 0.05, 25: 0.02})


def person(draws: Draws) -> dict[str, Array]:
    """Scalars: `age` in years, `scale` (1 for a middle-sized adult), `worn` and `brittle` (0-1)."""
    age = YOUNGEST + (OLDEST - YOUNGEST) * draws.uniform("age") ** 0.65
    male = draws.uniform("male") < 0.5
    child = jnp.clip((18.0 - age) / 6.0, 0.0, 1.0)
    scale = jnp.where(male, 1.07, 0.985) * (1.0 + 0.035 * draws.normal("scale"))
    scale = scale * (1.0 - 0.17 * child)
    worn = jnp.clip((age - 28.0) / 60.0 + 0.22 * draws.normal("worn"), 0.0, 1.0)
    brittle = jnp.clip((age - 45.0) / 50.0 + 0.28 * draws.normal("brittle"), 0.0, 1.0)
    return {"age": age, "scale": scale, "worn": worn, "brittle": brittle}


def _fractures(draws: Draws, who: dict[str, Array], rate: float) -> dict[str, Array]:
    """Lost share of the height in front, in the middle and behind, and the Genant grade."""
    chance = 0.03 * rate * jnp.asarray(_BREAKS) * (0.15 + 3.0 * who["brittle"] ** 2)
    broken = draws.uniform("broken", SLOTS) < chance
    u = draws.uniform("grade", SLOTS)
    grade = 1 + (u > 0.5).astype(jnp.int32) + (u > 0.82)
    v = draws.uniform("loss", SLOTS)
    # Genant: mild 20-25 %, moderate 25-40 %, severe above.
    low = jnp.array([0.20, 0.25, 0.40])[grade - 1]
    loss = low + jnp.array([0.05, 0.15, 0.22])[grade - 1] * v
    kind = draws.uniform("kind", SLOTS)
    wedge, biconcave = kind < 0.55, (kind >= 0.55) & (kind < 0.8)
    front = loss * jnp.where(wedge, 1.0, jnp.where(biconcave, 0.25, 0.9))
    middle = loss * jnp.where(wedge, 0.65, 1.0)
    behind = loss * jnp.where(wedge, 0.08, jnp.where(biconcave, 0.2, 0.85))
    zero = jnp.zeros(SLOTS)
    return {
        "grade": jnp.where(broken, grade, 0),
        "front": jnp.where(broken, front, zero),
        "middle": jnp.where(broken, middle, zero),
        "behind": jnp.where(broken, behind, zero),
    }


def _rims(draws: Draws, wear: Array, bridge: Array) -> Array:
    """Osteophytes at one rim, (26, 4): mean, along x, along y (mm), and lip (mm per mm)."""
    size = jnp.where(jnp.asarray(_CERVICAL), 2.2, 4.2) * wear**1.8
    size = size * (0.25 + draws.uniform("size", SLOTS))
    # Azimuth from the front (-y): mostly forward and to a side; in the chest mostly to the right,
    # since the aorta lies on the left.
    azimuth = 1.2 * draws.normal("azimuth", SLOTS) - jnp.where(_THORACIC, 0.6, 0.0)
    narrow = 0.2 + 0.9 * draws.uniform("beak", SLOTS)  # a larger part of it in one direction
    beak = size * narrow
    lip = 0.25 + 0.35 * draws.uniform("lip", SLOTS)
    reach = jnp.maximum(beak, 3.0 + 2.0 * draws.uniform("bridge", SLOTS))
    beak = jnp.where(bridge > 0, reach, beak)
    # The sum of mean and beak is cut off at zero, so that beaks are one-sided.
    mean = 0.5 * size * (1.0 - narrow) + 0.15 * draws.normal("mean", SLOTS)
    lip = jnp.where(bridge > 0, bridge / jnp.maximum(beak + mean, 1.0), lip)
    return jnp.stack([mean, beak * jnp.sin(azimuth), -beak * jnp.cos(azimuth), lip], 1)


def pathology(
    draws: Draws, who: dict[str, Array], present: Array, fractures: float
) -> dict[str, Any]:
    """Draw the deviations from a healthy young spine.

    Args:
        draws: Random numbers.
        who: From `person`.
        present: (26,) which slots are filled.
        fractures: Frequency of compression fractures; with 1, one in seven of the most exposed
            vertebrae (T12, L1) of the most brittle spines is broken.

    Returns:
        Arrays by slot: `wear` of the disc below (0-1), `narrow` (share of its height that is lost),
        `gas` (half thickness of a vacuum in it, mm, negative for none), `sclerosis` (HU added at
        the endplates), `top` and `bottom` rims (26, 4), `band` (mm; how far a rim's bone spreads
        over the wall), `schmorl_top` and `schmorl_bottom` (26, 4): x, y, depth, 1 / width; `facet`
        (growth of the articular processes), `slip` (mm forwards over the next) and `fracture`.
    """
    worn = who["worn"]
    wear = worn + jnp.asarray(_WEAR) * worn + 0.22 * draws.normal("wear", SLOTS)
    wear = jnp.clip(wear, 0.0, 1.0)
    narrow = 0.65 * wear**2 * (0.4 + 0.6 * draws.uniform("narrow", SLOTS))
    gas = (wear > 0.55) & (draws.uniform("gas", SLOTS) < 0.45) & ~_CERVICAL
    gas = jnp.where(gas, 0.4 + 1.2 * draws.uniform("gas thickness", SLOTS), -9.0)
    sclerosis = 260.0 * jnp.maximum(wear - 0.35, 0.0) * draws.uniform("sclerosis", SLOTS)
    # The last discs collapse: bone nearly meets bone, and is dense on both sides.
    last = jnp.asarray(_SLOT >= levels.L1 + 3)
    collapsed = last & (draws.uniform("collapsed", SLOTS) < 0.6 * wear**2)
    flat, dense = draws.uniform("collapse", SLOTS), draws.uniform("collapse sclerosis", SLOTS)
    narrow = jnp.where(collapsed, 0.65 + 0.3 * flat, narrow)
    sclerosis = jnp.where(collapsed, 120.0 + 350.0 * dense, sclerosis)
    # Flowing ossification in front of at least four thoracic vertebrae, of the old: DISH.
    dish = (draws.uniform("DISH") < 0.22 * worn) & (who["age"] > 45)
    first = 11 + (4 * draws.uniform("DISH first")).astype(jnp.int32)
    flows = dish & (jnp.asarray(_SLOT) >= first) & (jnp.asarray(_SLOT) < first + 8)
    bridges = ((wear > 0.6) & (draws.uniform("bridge", SLOTS) < 0.22)) | flows
    bridges &= jnp.asarray(_SLOT > levels.C2)
    half = 3.2 - 2.0 * narrow  # mm: beyond half of the disc the next vertebra's bone begins
    below = jnp.where(bridges, half, 0.0)
    # The rim above belongs to the disc of the next filled slot further up.
    above = jnp.roll(below, 1).at[0].set(0.0)
    upper_wear = jnp.roll(wear, 1)
    knot = draws.uniform("knot", 2, SLOTS)
    place = draws.normal("knot place", 2, SLOTS, 2)
    depth = 2.0 + 3.0 * draws.uniform("knot depth", 2, SLOTS)
    width = 3.0 + 2.5 * draws.uniform("knot width", 2, SLOTS)

    def schmorl(i: int) -> Array:
        # At all ages, more often in worn discs.
        there = knot[i] < jnp.asarray(_SCHMORL) * (0.6 + worn)
        d = jnp.where(there, depth[i], 0.0)
        return jnp.stack([4.5 * place[i, :, 0], 2.5 * place[i, :, 1], d, 1.0 / width[i]], 1)

    slips = (draws.uniform("slips", SLOTS) < 0.16 * wear) & jnp.asarray(_LUMBAR | _CERVICAL)
    slip = draws.normal("slip", SLOTS) * jnp.where(_LUMBAR, 3.2, 1.2)
    slip = jnp.where(slips, jnp.where(_LUMBAR, jnp.abs(slip) + 1.0, slip), 0.0)
    return {
        "wear": wear,
        "narrow": narrow,
        "gas": gas,
        "sclerosis": sclerosis,
        "top": _rims(draws.of("upper rim"), upper_wear, above),
        "bottom": _rims(draws.of("lower rim"), wear, below),
        "band": jnp.where(flows, 9.0, 3.0 + draws.uniform("band", SLOTS)),
        "schmorl_top": schmorl(0),
        "schmorl_bottom": schmorl(1),
        "facet": 1.0 + 0.30 * wear * draws.uniform("facet", SLOTS),
        "slip": jnp.where(present, slip, 0.0),
        "fracture": _fractures(draws.of("fracture"), who, fractures),
    }
