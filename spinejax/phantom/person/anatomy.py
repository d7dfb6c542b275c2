"""A random person: all numbers that `render` draws from, as a pure function of one key.

`anatomy(key)` is a pure function with fixed shapes: `jax.vmap(anatomy)(keys)` makes a batch.
Coordinates are canonical LPS millimetres (x to the left, y to posterior, z to superior) with the
origin at the middle of the spine.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.errors import InputError, check_choice
from spinejax.phantom.draws import Draws, draw
from spinejax.phantom.once import stacked
from spinejax.phantom.person import bone, curve, levels, pathology, posterior, surroundings, waves
from spinejax.phantom.person.levels import COLUMNS, SLOTS

Array = jax.Array
Parameters = dict[str, Any]

_TABLE = levels.table()
# Relative spread (one standard deviation) of each size between persons; lengths of processes vary
# most, the canal and the body least.
_SPREAD = np.array(
    [0.11 if c in ("tx", "ty", "sy", "sz", "sh", "iz", "uz", "lean") else 0.06 for c in COLUMNS]
)


def _sizes(draws: Draws, scale: Array) -> dict[str, Array]:
    """Sizes of all slots, name -> (26,)."""
    shared = 1.0 + _SPREAD * draws.normal("shared", len(COLUMNS))
    own = 1.0 + 0.035 * draws.normal("own", SLOTS, len(COLUMNS))
    # In some persons cervical vertebrae are large, in others lumbar ones.
    along = jnp.linspace(-1.0, 1.0, SLOTS)[:, None] * 0.04 * draws.normal("along")
    lengths = jnp.asarray(np.array([0.0 if c == "lean" else 1.0 for c in COLUMNS]))
    size = jnp.where(lengths > 0, scale * (1.0 + along), 1.0)
    values = draws.settled(jnp.asarray(_TABLE) * shared * own * size)
    sizes = {name: values[:, i] for i, name in enumerate(COLUMNS)}
    # The last spinous process is often small, sometimes only a ridge.
    small, flat = draws.uniform("last spinous length"), draws.uniform("last spinous height")
    low = jnp.arange(SLOTS) >= levels.L5
    sizes["sy"] = sizes["sy"] * jnp.where(low, 1.0 - 0.35 * small**2, 1.0)
    sizes["sh"] = sizes["sh"] * jnp.where(low, 1.0 - 0.6 * flat**2, 1.0)
    return sizes


def _forms(draws: Draws, size: dict[str, Array], who: dict[str, Array]) -> dict[str, Array]:
    """Deviations of bodies and arches from the plain form, by slot."""

    def own(name: str) -> Array:
        return draws.normal(f"own {name}", SLOTS)

    def both(name: str, between: float, within: float) -> Array:
        return between * draws.normal(name) + within * own(name)

    cervical = jnp.arange(SLOTS) < levels.T1
    thoracic = ~cervical & (jnp.arange(SLOTS) < levels.L1)
    axis = jnp.arange(SLOTS) == levels.C2
    waist = jnp.where(cervical, 0.05, 0.10) * (1.0 + both("waist", 0.2, 0.15))
    return {
        "waist": waist,
        "taper": jnp.where(thoracic, 0.13, 0.0) + both("taper", 0.04, 0.02),
        "square": jnp.clip(1.0 + both("square", 0.45, 0.2), 0.1, 2.4),
        "tip": 0.35 * own("tip"),
        "skew": 0.15 * own("skew"),
        "bow": both("bow", 0.02, 0.05),
        "slant": 0.03 * own("slant"),
        "yaw": 0.03 * own("yaw"),
        "stout": 0.5 * own("stout"),
        # The axis has its centroid above its drum, since the dens belongs to it.
        "bz": jnp.where(axis, -levels.AXIS_DROP_MM * who["scale"], 0.0),
    }


def _deformed(
    size: dict[str, Array], ill: dict[str, Any], draws: Draws
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Sizes after compression fractures and wear."""
    f, h = ill["fracture"], size["h"]
    mean = 0.5 * (f["front"] + f["behind"])
    broken = f["grade"] > 0
    size = dict(size)
    size["h"] = h * (1.0 - mean)
    size["wedge"] = size["wedge"] - 0.5 * h * (f["front"] - f["behind"])
    size["conc"] = size["conc"] + h * jnp.maximum(f["middle"] - mean, 0.0)
    # A crushed body bulges.
    wider = 1.0 + 0.15 * mean
    size["a"], size["b"] = size["a"] * wider, size["b"] * wider
    # Mostly the upper endplate gives way.
    skew = jnp.where(broken, 0.8 * draws.uniform("skew", SLOTS), size["skew"])
    dense = jnp.where(broken, 70.0 * draws.uniform("dense", SLOTS), 0.0)
    return {**size, "skew": skew}, {"dense": dense}


def _ordered(draws: Draws, values: dict[str, Array], order: Array) -> dict[str, Array]:
    """Arrays by slot (26, ...) put in order, all at once."""
    columns = [c for v in values.values() for c in v.reshape(SLOTS, -1).T]
    joined = draws.settled(stacked(columns, 1)[order])
    ends = np.cumsum([v.size // SLOTS for v in values.values()])
    parts = np.split(np.arange(len(columns)), ends[:-1])
    return {
        n: joined[:, i[0] : i[-1] + 1].reshape(v.shape)
        for (n, v), i in zip(values.items(), parts, strict=True)
    }


def _filled(draws: Draws, t13: float, l6: float, no_t12: float, no_l5: float) -> Array:
    """Draw the slots that exist, (26,) bool: T13 excludes a missing T12, and L6 a missing L5."""
    lacks_t12, lacks_l5 = draws.uniform("no T12") < no_t12, draws.uniform("no L5") < no_l5
    slot = jnp.arange(SLOTS)
    present = (slot != levels.T13) | ((draws.uniform("T13") < t13) & ~lacks_t12)
    present &= (slot != levels.L6) | ((draws.uniform("L6") < l6) & ~lacks_l5)
    return present & ((slot != levels.T12) | ~lacks_t12) & ((slot != levels.L5) | ~lacks_l5)


def _reach(parts: Array, size: dict[str, Array], centre_y: Array) -> Array:
    """Radius about the point `centre_y` behind the body that holds all of a vertebra, (26,)."""
    centre = jnp.stack([0 * centre_y, centre_y, 0 * centre_y], -1)[:, None]
    brush = jnp.max(parts[:, :, 6:9], -1) * jnp.maximum(1.0, parts[:, :, 9])
    brush = brush * (1.0 + 0.5 * jnp.abs(parts[:, :, 10]))
    ends = [jnp.linalg.norm(parts[:, :, i : i + 3] - centre, axis=-1) + brush for i in (0, 3)]
    arch = jnp.max(jnp.concatenate(ends, 1), 1)
    low = size["h"] + size["disc"] - jnp.minimum(size["bz"], 0.0)
    body = jnp.sqrt(low**2 + (size["b"] + centre_y) ** 2 + (0.5 * size["a"]) ** 2)
    # Beyond it: blur, the compact shell, osteophytes, and the bow of the arch.
    return jnp.maximum(arch, body) + 5.0


_SPARE_MM = 10.0  # beyond a vertebra for its blur, its osteophytes and the fat around it


def _span(parts: Array, size: dict[str, Array]) -> tuple[Array, Array]:
    """Lowest and highest heights (26,) of a vertebra over its body's centroid, in its own frame.

    The disc below belongs to it, up to the hollow endplate of the next vertebra.
    """
    tall = (parts[:, :, 8] * jnp.maximum(1.0, parts[:, :, 9]))[..., None]
    tilt = jnp.abs(size["slant"])[:, None, None] * jnp.abs(parts[:, :, [0, 3]])
    ends = parts[:, :, [2, 5]]
    half = size["h"] + jnp.abs(size["bz"]) + jnp.abs(size["wedge"]) + jnp.abs(size["tip"])
    low = jnp.minimum(jnp.min(ends - tall - tilt, (1, 2)), -half - size["disc"] - 4.0)
    return low - _SPARE_MM, jnp.maximum(jnp.max(ends + tall + tilt, (1, 2)), half) + _SPARE_MM


RATES = (
    "t13", "l6", "no_t12", "no_l5", "cervical_ribs", "sacralised", "fractures", "scoliosis"
)  # fmt: skip
"""Frequencies that `anatomy` takes."""


def check_rates(rates: Mapping[str, float]) -> dict[str, float]:
    """Return the frequencies as numbers.

    Raises:
        InputError: an unknown name, or a number that is no probability. `fractures` may exceed 1,
            since it is relative to the usual frequency.
    """
    for name, rate in rates.items():
        check_choice("rate", name, RATES)
        if not 0.0 <= float(rate) <= (1000.0 if name == "fractures" else 1.0):
            raise InputError(f"rate {name}={rate}: give a probability from 0 to 1")
    return {name: float(rate) for name, rate in rates.items()}


def anatomy(
    key: Array,
    *,
    t13: float = 0.025,
    l6: float = 0.19,
    no_t12: float = 0.036,
    no_l5: float = 0.025,
    cervical_ribs: float = 0.01,
    sacralised: float = 0.08,
    fractures: float = 1.0,
    scoliosis: float = 0.12,
) -> Parameters:
    """Draw a person.

    The defaults of `t13`, `l6` and `no_t12` are the shares in VerSe'20's training set: 2 of the 80
    scans that show T12, 16 of 83 that show L5, 3 of 83 that reach the place of T12. That set
    collects variants; they are rarer in the population.

    Args:
        key: Random key.
        t13: Probability of a thirteenth thoracic vertebra (VerSe id 28).
        l6: Probability of a sixth lumbar vertebra (25); excludes a missing L5.
        no_t12: Probability that T12 (19) is missing; excludes T13.
        no_l5: Probability that L5 (24) is missing.
        cervical_ribs: Probability of ribs at C7, whose transverse processes are then longer.
        sacralised: Probability that the last vertebra's transverse processes are broad and reach
            the sacrum.
        fractures: Frequency of compression fractures, relative to the usual one.
        scoliosis: Probability of a marked scoliosis (10 to 60 degrees).

    Returns:
        Pytree of arrays whose shapes do not depend on the key. `["spine"]["id"]` (26,) holds the
        VerSe ids from top to bottom, then 0 for empty places. `["spine"]["origin"]` (26, 3) holds
        the body centroids before the displacement `["warp"]`; `centroids` returns them after it.
        `["person"]` holds scalars: age, scale, worn, brittle, cervical_ribs, sacralised.
    """
    return draw(
        key, _person, t13=t13, l6=l6, no_t12=no_t12, no_l5=no_l5, cervical_ribs=cervical_ribs,
        sacralised=sacralised, fractures=fractures, scoliosis=scoliosis,
    )  # fmt: skip


def _person(
    draws: Draws, *, t13: float, l6: float, no_t12: float, no_l5: float, cervical_ribs: float,
    sacralised: float, fractures: float, scoliosis: float,
) -> Parameters:  # fmt: skip
    """`anatomy`, given random numbers."""
    who = pathology.person(draws.of("person"))
    present = _filled(draws.of("variants"), t13, l6, no_t12, no_l5)
    count = jnp.sum(present)
    order = jnp.argsort(~present, stable=True)
    who, present, count, order = draws.settled((who, present, count, order))
    scale = who["scale"]
    real = jnp.arange(SLOTS) < count
    slot = jnp.arange(SLOTS)
    atlas = slot == levels.C1

    size = _sizes(draws.of("sizes"), scale)
    ribs = draws.uniform("cervical ribs") < cervical_ribs
    broad = draws.uniform("sacralised") < sacralised
    size["tx"] = jnp.where(ribs & (slot == levels.C7), 1.12 * size["tx"], size["tx"])
    last = broad & (slot == order[count - 1])
    for name, factor in {"trz": 1.6, "trx": 1.5, "tx": 1.08}.items():
        size[name] = jnp.where(last, factor * size[name], size[name])
    size["tz"] = jnp.where(last, size["tz"] - 7.0, size["tz"])
    ill = pathology.pathology(draws.of("pathology"), who, present, fractures)
    parts = posterior.parts(size, scale, ill["facet"], draws.of("posterior"))
    forms = _forms(draws.of("forms"), size, who)
    size, scars = _deformed({**size, **forms}, ill, draws.of("fractured"))
    parts = draws.settled(parts)
    line = curve.curve(draws.of("curve"), who, order, count, size, ill, scoliosis)
    line = draws.settled(line)

    size["canal_d"] = 0.5 * size["cd"] + 0.6
    size["canal_y"] = size["b"] + 0.5 * size["cd"]
    for name, value in {"cw": 13.2, "canal_d": 13.0, "canal_y": 6.8}.items():
        size[name] = jnp.where(atlas, value * scale, size[name])
    for name in ("top", "bottom", "band", "schmorl_top", "schmorl_bottom"):
        size[name] = ill[name]
    size = _ordered(draws, size, order)
    size["disc"] = line["disc"]

    cancellous, cortical = bone.density(draws.of("density"), who)
    centre_y = 0.4 * (size["b"] + size["sy"])
    by_slot = {
        "has_body": jnp.where(atlas, 0.0, 1.0),
        "cancellous": jnp.clip(cancellous + scars["dense"], 30.0, 350.0),
        "cortical": cortical,
        # The disc below each vertebra, and sclerosis of the bone around it.
        "wear": ill["wear"],
        "gas": ill["gas"],
        "sclerosis": ill["sclerosis"],
        "grade": ill["fracture"]["grade"].astype(jnp.float32),
    }
    spine: dict[str, Any] = {
        "id": jnp.where(real, jnp.asarray(levels.SLOT_IDS)[order], 0),
        "origin": jnp.where(real[:, None], line["origin"][:-1], 1e5),
        "rotation": line["axes"][:-1],
        "size": size,
        **_ordered(draws, by_slot, order),
        "parts": parts[order],
        "centre_y": centre_y,
    }
    # The whole vertebra lies in this ball about a point behind its body, between these heights.
    spine["reach"] = _reach(spine["parts"], size, centre_y)
    spine["low"], spine["high"] = _span(spine["parts"], size)
    sacrum = {"origin": line["origin"][count], "rotation": line["axes"][count]}
    others = surroundings.surroundings(draws, spine, sacrum, present, line["origin"], count, scale)
    about = {name: who[name] for name in ("age", "scale", "worn", "brittle")}
    about.update(cervical_ribs=ribs, sacralised=broad)
    displaced = waves.displacement(draws.of("warp"))
    return {"spine": spine, "warp": displaced, "person": about, **others}
