"""Contents of the trunk: heart, vessels, organs, bowel, arms, tubes, as a list of capsules.

A capsule is a brush drawn along a segment (see `shapes.capsule`), with a wall and a core. Places
are relative to the spine, so that contents follow its course. HU come from a palette of the person,
much wider than physiology: no HU may tell tissues apart. Sizes are rough adult values, not
measured.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom.draws import Draws
from spinejax.phantom.once import stacked
from spinejax.phantom.person import levels

Array = jax.Array

PALETTE = (
    "artery", "vein", "right heart", "vena cava", "liver", "spleen", "kidney", "urine", "bladder",
    "wall", "content", "gas", "stool", "muscle", "fat", "cortical", "yellow marrow", "lung vessel",
    "plastic", "gland", "gastric", "portal", "water", "heart", "thyroid", "plaque",
)  # fmt: skip
_S1 = levels.SLOTS
_GROUPS = 14

# Columns: slot and x y z (mm from its centroid) of the start, then of the end; radii of the brush;
# growth towards the end; wall (mm); kinds of wall and core; share of gas dots in the core; group
# (its members move and grow together); 1 if mirrored at the midline; probability.
# fmt: off
_TABLE: list[tuple[Any, ...]] = [
    (14, 30, -76, -10, 14, 34, -78, -14, 44, 38, 42, 1, 4, "fat", "heart", 0, 0, 0, 1),
    (14, 40, -74, -12, 14, 46, -84, -26, 18, 17, 26, 0.8, 1, "heart", "artery", 0, 0, 0, 1),
    (13, 8, -48, 0, 14, 4, -48, 6, 25, 17, 20, 1, 1.5, "heart", "artery", 0, 0, 0, 1),
    (14, -26, -74, 4, 14, -22, -78, -14, 19, 20, 22, 1, 1.5, "heart", "right heart", 0, 0, 0, 1),
    (14, 4, -106, -16, 13, 20, -104, 6, 24, 15, 22, 0.7, 2, "heart", "right heart", 0, 0, 0, 1),
    (12, 20, -84, 4, 12, -38, -58, -6, 11, 11, 11, 0.8, 1, "wall", "right heart", 0, 0, 0, 1),
    (12, 20, -84, 4, 12, 46, -44, -2, 11, 11, 11, 0.8, 1, "wall", "right heart", 0, 0, 0, 1),
    (13, -10, -84, 0, 11, -10, -76, -6, 15, 15, 15, 1, 1, "wall", "artery", 0, 0, 0, 1),
    (11, -10, -76, -6, 10, 6, -50, -6, 14, 14, 14, 0.95, 1, "wall", "artery", 0, 0, 0, 1),
    (10, 6, -50, -6, 11, 18, -22, -4, 13, 13, 13, 0.9, 1, "wall", "artery", 0, 0, 0, 1),
    (13, -26, -70, 0, 10, -24, -72, 0, 9, 9, 9, 1, 1, "wall", "vena cava", 0, 0, 0, 1),
    (10, -24, -72, 0, 8, 26, -84, -10, 6, 6, 6, 1, 1, "wall", "vena cava", 0, 0, 0, 1),
    (8, 26, -84, -10, 8, 118, -30, 10, 5, 5, 5, 1, 1, "wall", "vena cava", 0, 0, 0, 0.6),
    (8, -26, -80, -10, 8, -118, -30, 10, 5, 5, 5, 1, 1, "wall", "vein", 0, 0, 0, 0.8),
    (10, 12, -56, 0, 3, 25, -22, 0, 4.5, 4.5, 4.5, 0.8, 0.8, "wall", "artery", 0, 1, 1, 1),
    (9, 0, -24, 0, 16, 8, -30, 0, 10, 7, 7, 1, 3.5, "wall", "content", 0.4, 1, 0, 1),
    (11, -9, -23, 0, 17, -6, -22, 0, 3.5, 3.5, 3.5, 0.7, 0, "vein", "vein", 0, 1, 0, 1),
    (6, 17, -36, 12, 7, 15, -36, 0, 9, 9, 10, 0.9, 0, "thyroid", "thyroid", 0, 1, 1, 0.95),
    # upper belly
    (17, -70, -55, 10, 18, -74, -50, -10, 66, 78, 56, 0.95, 0, "liver", "liver", 0, 2, 0, 1),
    (17, -20, -84, 8, 17, 10, -88, 10, 50, 40, 38, 0.6, 0, "liver", "liver", 0, 2, 0, 1),
    (18, -20, -45, 20, 17, -90, -50, 20, 5, 5, 5, 0.4, 0, "portal", "portal", 0, 2, 0, 1),
    (18, -20, -45, 20, 18, -80, -90, -10, 5, 5, 5, 0.4, 0, "portal", "portal", 0, 2, 0, 1),
    (19, -40, -60, 0, 18, -100, -40, -10, 6, 6, 6, 0.4, 0, "portal", "portal", 0, 2, 0, 1),
    (21, -46, -90, 5, 20, -40, -82, 5, 14, 15, 18, 0.7, 2, "wall", "water", 0, 2, 0, 0.8),
    (21, -46, -84, 0, 21, -46, -82, 2, 5, 5, 5, 1, 2, "plaque", "content", 0, 2, 0, 0.08),
    (17, 86, -2, 14, 18, 92, -14, -10, 26, 40, 34, 0.8, 0, "spleen", "spleen", 0, 3, 0, 1),
    (18, 62, -78, 14, 20, 30, -92, 10, 38, 34, 34, 0.6, 5, "wall", "gastric", 0.15, 3, 0, 1),
    (18, 62, -106, 14, 19, 40, -110, 4, 30, 11, 24, 0.7, 0, "gas", "gas", 0, 3, 0, 0.7),
    (20, 62, 14, 16, 21, 58, 10, 2, 25, 23, 32, 1, 0, "kidney", "kidney", 0, 4, 0, 0.97),
    (20, 55, 10, 10, 21, 50, 4, 4, 9, 9, 17, 1, 4, "fat", "urine", 0, 4, 0, 0.97),
    (21, -62, 14, 14, 22, -58, 10, 4, 25, 23, 32, 1, 0, "kidney", "kidney", 0, 5, 0, 0.97),
    (21, -55, 10, 8, 22, -50, 4, 8, 9, 9, 17, 1, 4, "fat", "urine", 0, 5, 0, 0.97),
    (20, 66, 18, -8, 20, 67, 18, -9, 3, 3, 4, 1, 0, "plaque", "plaque", 0, 4, 0, 0.08),
    (21, 74, 28, 8, 21, 74, 28, 9, 14, 13, 14, 1, 0, "water", "water", 0, 4, 1, 0.15),
    (21, 48, 0, -14, 23, 36, -8, 0, 2.6, 2.6, 2.6, 1, 0, "urine", "urine", 0, 4, 1, 1),
    (23, 36, -8, 0, _S1, 44, -14, -20, 2.4, 2.4, 2.4, 1, 0, "urine", "urine", 0, 4, 1, 1),
    (_S1, 44, -14, -20, _S1, 24, -52, -84, 2.4, 2.4, 2.4, 1, 0, "urine", "urine", 0, 6, 1, 1),
    (20, -24, -62, 0, 20, 40, -44, 10, 13, 11, 13, 0.8, 0, "gland", "gland", 0, 6, 0, 1),
    (20, -38, -52, -6, 22, -30, -44, 0, 13, 11, 12, 1, 2.5, "wall", "content", 0.3, 6, 0, 1),
    (22, -30, -44, 0, 22, 30, -52, 4, 12, 8, 9, 1, 2.5, "wall", "content", 0.2, 6, 0, 1),
    # vessels of the belly
    (20, 9, -27, 0, 20, 6, -52, -6, 4, 4, 4, 1, 0.7, "wall", "artery", 0, 6, 0, 1),
    (20, 6, -52, -6, 23, 2, -66, 0, 4, 4, 4, 0.8, 0.7, "wall", "artery", 0, 6, 0, 1),
    (20, -10, -58, 0, 23, -10, -66, 0, 5.5, 5.5, 5.5, 0.9, 0, "portal", "portal", 0, 6, 0, 1),
    (20, -10, -58, 5, 18, -44, -58, 0, 7, 7, 7, 1, 0, "portal", "portal", 0, 6, 0, 1),
    (20, -10, -58, 5, 19, 62, -26, 10, 4.5, 4.5, 4.5, 0.8, 0, "portal", "portal", 0, 6, 0, 1),
    (21, 9, -26, 6, 21, 50, 2, 2, 3, 3, 3, 0.9, 0.6, "wall", "artery", 0, 7, 1, 1),
    (21, 46, 0, 2, 21, 12, -40, 2, 5, 5, 5, 1, 0, "vein", "vein", 0, 7, 0, 1),
    (21, 12, -40, 2, 21, -16, -28, 0, 5, 5, 5, 1, 0, "vein", "vein", 0, 7, 0, 1),
    (21, -46, 0, 2, 21, -22, -24, 2, 5, 5, 5, 1, 0, "vein", "vein", 0, 7, 0, 1),
    (23, 6, -28, -12, _S1, 34, -26, -12, 5.5, 5.5, 5.5, 0.9, 0.8, "wall", "artery", 0, 8, 1, 1),
    (_S1, 34, -26, -12, _S1, 50, -46, -60, 5, 5, 5, 0.95, 0.8, "wall", "artery", 0, 8, 1, 1),
    (_S1, 50, -46, -60, _S1, 60, -74, -120, 4.8, 4.8, 4.8, 1, 0.8, "wall", "artery", 0, 8, 1, 1),
    (_S1, 34, -26, -12, _S1, 46, 4, -70, 3.4, 3.4, 3.4, 0.8, 0.6, "wall", "artery", 0, 8, 1, 1),
    (24, -14, -22, -6, _S1, 32, -14, -16, 7, 7, 6, 0.9, 0, "vein", "vein", 0, 8, 0, 1),
    (24, -14, -22, -6, _S1, -34, -14, -16, 7, 7, 6, 0.9, 0, "vein", "vein", 0, 8, 0, 1),
    (_S1, 33, -14, -16, _S1, 48, -36, -62, 6.5, 6.5, 6.5, 1, 0, "vein", "vein", 0, 8, 1, 1),
    (_S1, 48, -36, -62, _S1, 52, -70, -120, 6, 6, 6, 1, 0, "vein", "vein", 0, 8, 1, 1),
    # muscles in the fat behind the belly
    (18, 10, -20, 0, 21, 9, -18, 0, 6, 5, 5, 0.5, 0, "muscle", "muscle", 0, 9, 1, 1),
    (19, 44, 24, 0, 24, 56, 22, 0, 12, 8, 10, 1.1, 0, "muscle", "muscle", 0, 9, 1, 1),
    (24, 62, -16, 0, _S1, 74, -36, -70, 13, 15, 14, 0.9, 0, "muscle", "muscle", 0, 9, 1, 1),
    (_S1, 60, 44, -50, _S1, 100, 40, -120, 34, 18, 40, 1, 0, "muscle", "muscle", 0, 9, 1, 1),
    # large bowel, bladder
    (24, -88, -34, -10, 21, -86, -30, 0, 22, 22, 20, 1, 2, "wall", "stool", 0.8, 10, 0, 1),
    (21, -84, -52, -10, 22, -20, -100, 0, 18, 18, 18, 0.8, 2, "wall", "stool", 0.9, 10, 0, 1),
    (22, -20, -100, 0, 20, 84, -60, 0, 18, 20, 18, 0.8, 2, "wall", "gas", 0, 10, 0, 0.9),
    (20, 92, -20, -5, 24, 92, -26, 0, 14, 14, 14, 0.9, 2, "wall", "stool", 0.5, 11, 0, 1),
    (24, 90, -26, 0, _S1, 60, -34, -40, 13, 13, 13, 1, 2.5, "wall", "stool", 0.4, 11, 0, 1),
    (_S1, 60, -34, -40, _S1, 4, -22, -36, 13, 13, 13, 1, 2.5, "wall", "gas", 0, 11, 0, 0.8),
    (_S1, 4, -14, -36, _S1, 2, 14, -66, 14, 13, 13, 1.2, 3, "wall", "stool", 0.6, 11, 0, 1),
    (_S1, 2, 14, -66, _S1, 0, 6, -118, 18, 16, 16, 0.7, 3, "wall", "stool", 0.6, 11, 0, 1),
    (_S1, 0, -70, -74, _S1, 0, -68, -82, 38, 32, 28, 1, 3, "wall", "bladder", 0, 12, 0, 1),
    (_S1, 0, -40, -84, _S1, 0, -50, -110, 22, 18, 18, 0.9, 0, "gland", "gland", 0, 12, 0, 1),
    # tubes: of the trachea and stomach, catheters, drains
    (3, 0, -30, 0, 10, 0, -40, 0, 5.5, 5.5, 5.5, 1, 1.5, "plastic", "gas", 0, 13, 0, 0.05),
    (3, 4, -25, 0, 17, 10, -32, 0, 3, 3, 3, 1, 1, "plastic", "gas", 0, 13, 0, 0.08),
    (8, -40, -86, 0, 13, -24, -72, 0, 2, 2, 2, 1, 0.7, "plaque", "plaque", 0, 13, 0, 0.1),
    (_S1, 0, -70, -74, _S1, 0, -70, -150, 4, 4, 4, 1, 1.4, "plastic", "water", 0, 13, 0, 0.08),
    (21, 60, -40, 0, _S1, 80, -70, -40, 4, 4, 4, 1, 1.2, "plastic", "gas", 0, 13, 0, 0.06),
]
# Arms beside the trunk, in mm from T2: flesh, then bones. Drawn last, and not cut by the skin.
_ARM = [
    ((186, 20, -20), (226, 30, -270), 52, 40, 0.9, 9, "fat", "muscle"),
    ((226, 30, -270), (206, -30, -500), 38, 34, 0.7, 6, "fat", "muscle"),
    ((182, 6, -60), (222, 26, -280), 12, 12, 1.1, 4, "cortical", "yellow marrow"),
    ((230, 30, -290), (214, -26, -500), 8, 8, 0.8, 3, "cortical", "yellow marrow"),
    ((214, 22, -290), (194, -30, -500), 7, 7, 1.1, 3, "cortical", "yellow marrow"),
]
# fmt: on
_LOOPS, _LUNG, _MESENTERY, _SPECKS, _LEADS = 34, 40, 14, 14, 6


def _palette(draws: Draws, tissue: dict[str, Array]) -> Array:
    """HU of each kind of PALETTE."""
    uniform, normal = draws.uniform, draws.normal
    contrast, phase = tissue["contrast"], tissue["phase"]  # phase: 0 arterial ... 1 late
    kidney = 32.0 + contrast * (90.0 + 130.0 * uniform("kidney"))
    late = jnp.clip(2.5 * phase - 1.2, 0.0, 1.0)
    urine = 8.0 + 1400.0 * contrast * late * uniform("urine")
    oral = jnp.where(uniform("oral") < 0.22, 90.0 + 500.0 * uniform("oral HU"), 20.0)
    organ = 1.0 - 0.6 * jnp.abs(phase - 0.55)
    spleen = 0.6 + 0.6 * uniform("spleen contrast")
    return stacked(
        [
            tissue["blood"],
            tissue["vein"],
            tissue["blood"] * (0.6 + 0.9 * uniform("mixed")) + 10.0 * normal("right heart"),
            tissue["blood"] + contrast * (1.0 - phase) * 900.0 * uniform("vena cava") ** 2,
            52.0 + 14.0 * normal("liver") + 70.0 * contrast * organ,
            48.0 + 8.0 * normal("spleen") + 90.0 * contrast * organ * spleen,
            kidney,
            urine,
            jnp.where(uniform("layered") < 0.6, 6.0 + 4.0 * normal("bladder"), 0.5 * urine),
            45.0 + 10.0 * normal("wall") + 60.0 * contrast * uniform("wall contrast"),
            oral,
            -940.0 + 30.0 * normal("gas"),
            jnp.maximum(oral, 35.0 + 20.0 * normal("stool")),
            tissue["muscle"],
            tissue["fat"],
            tissue["cortical"],
            40.0 * normal("yellow marrow") - 20.0,
            tissue["blood"],
            150.0 + 120.0 * normal("plastic"),
            42.0 + 10.0 * normal("gland") + 55.0 * contrast * organ,
            jnp.where(uniform("drunk") < 0.5, oral, 30.0 + 15.0 * normal("gastric")),
            tissue["vein"] + 10.0 * normal("portal"),
            10.0 + 8.0 * normal("water"),
            45.0 + 8.0 * normal("heart") + 60.0 * contrast * uniform("heart contrast"),
            95.0 + 25.0 * normal("thyroid") + 60.0 * contrast,
            650.0 + 700.0 * uniform("plaque"),
        ]
    )


def _rows(table: list[tuple[Any, ...]]) -> dict[str, np.ndarray]:
    """The table as arrays, mirrored rows doubled; groups of the right side are their own."""
    rows = []
    for row in table:
        rows.append((*row, 1.0))
        if row[17]:
            rows.append((*row, -1.0))
    kind = {name: i for i, name in enumerate(PALETTE)}
    return {
        "slot": np.array([[r[0], r[4]] for r in rows]),
        "ends": np.array(
            [[np.r_[r[-1] * r[1], r[2:4]], np.r_[r[-1] * r[5], r[6:8]]] for r in rows]
        ),
        "brush": np.array([r[8:11] for r in rows]),
        "taper": np.array([r[11] for r in rows]),
        "wall_mm": np.array([r[12] for r in rows]),
        "kinds": np.array([[kind[r[13]], kind[r[14]]] for r in rows]),
        "spots": np.array([r[15] for r in rows]),
        "group": np.array([r[16] for r in rows]),
        "chance": np.array([r[18] for r in rows]),
    }


_ROWS = _rows(_TABLE)
_KIND = {name: i for i, name in enumerate(PALETTE)}


def _fixed(draws: Draws, at: Array, scale: Array) -> dict[str, Array]:
    """The organs and vessels of the table."""
    n = len(_ROWS["taper"])
    shift = 6.0 * draws.normal("shift", _GROUPS, 1, 3)[_ROWS["group"]]
    grow = (1.0 + 0.12 * draws.normal("growth", _GROUPS))[_ROWS["group"], None]
    ends = at[_ROWS["slot"]] + jnp.asarray(_ROWS["ends"], jnp.float32) * scale + shift
    brush = jnp.asarray(_ROWS["brush"], jnp.float32) * scale * grow
    brush = brush * (1.0 + 0.10 * draws.normal("brush", n, 3))
    there = draws.uniform("there", n) < _ROWS["chance"]
    kinds = jnp.asarray(_ROWS["kinds"])
    # Stretches of bowel hold gas, fluid or stool; the table names the likeliest.
    bowel = np.isin(_ROWS["kinds"][:, 1], [_KIND[k] for k in ("stool", "gas", "content")])
    u = draws.uniform("bowel", n)
    other = jnp.where(u < 0.2, _KIND["gas"], jnp.where(u < 0.45, _KIND["content"], kinds[:, 1]))
    core = jnp.where(jnp.asarray(bowel), other, kinds[:, 1])
    return {
        "ends": ends.reshape(n, 6),
        "brush": jnp.where(there[:, None], brush, 0.0),
        "taper": jnp.asarray(_ROWS["taper"], jnp.float32),
        "wall_mm": jnp.asarray(_ROWS["wall_mm"], jnp.float32),
        "wall": kinds[:, 0],
        "core": core,
        "spots": jnp.where(core == _KIND["stool"], 0.6, jnp.asarray(_ROWS["spots"], jnp.float32)),
        "wobble": 0.05 * brush.min(1) * jnp.asarray(_ROWS["brush"].min(1) > 8.0),
        "free": jnp.zeros(n),
    }


def _random(draws: Draws, at: Array, scale: Array) -> dict[str, Array]:
    """Loops of small bowel, vessels of lungs and mesentery, calcified specks, leads: at random."""
    n = _LOOPS + _LUNG + _MESENTERY + _SPECKS + _LEADS
    a, b = draws.uniform("place", n, 3), draws.normal("step", n, 3)
    thick, u = draws.uniform("radius", n), draws.uniform("kind", n)
    first, second, fourth = at[19], at[_S1], at[levels.C7 + 5]
    parts = np.repeat(np.arange(5), (_LOOPS, _LUNG, _MESENTERY, _SPECKS, _LEADS))
    side = jnp.where(jnp.arange(n) % 2 == 0, 1.0, -1.0)
    box = jnp.asarray(
        np.array([[200, 84, 0], [60, 76, 110], [110, 60, 0], [90, 26, 0], [260, 10, 0]], np.float32)
    )[parts]
    middle = jnp.asarray(
        np.array([[0, -88, -20], [0, -50, -20], [0, -74, 0], [0, -32, 0], [0, -150, 0]], np.float32)
    )[parts]
    t = a[:, 2:]
    belly = first + t * (second - first + jnp.array([0.0, 0.0, -70.0]))
    lungs = at[12] + jnp.array([46.0, 0.0, 0.0]) * side[:, None]
    chest = fourth + t * (at[17] - fourth)
    base = jnp.where((parts == 1)[:, None], lungs, jnp.where((parts == 4)[:, None], chest, belly))
    start = base + (middle + (a - 0.5) * box) * scale
    reach = jnp.asarray(np.array([26.0, 34.0, 24.0, 3.0, 60.0], np.float32))[parts][:, None]
    step = jnp.where((parts == 1)[:, None], b * jnp.array([0.5, 0.9, 1.3]), b) * reach
    outward = jnp.stack([18.0 * side, 6.0 * side * 0.0, 0.0 * side], 1)
    end = start + step * scale + jnp.where((parts == 1)[:, None], outward, 0.0)
    radius = jnp.stack(
        [
            10.0 + 7.0 * thick,
            1.2 + 3.0 * thick**3,
            1.2 + 2.0 * thick,
            1.0 + 2.5 * thick**3,
            1.2 + 1.0 * thick,
        ],
        1,
    )[jnp.arange(n), parts]
    loop = jnp.where(
        u < 0.15,
        _KIND["gas"],
        jnp.where(u < 0.3, _KIND["wall"], jnp.where(u < 0.4, _KIND["stool"], _KIND["content"])),
    )
    vessel = jnp.where(u < 0.5, _KIND["artery"], _KIND["vein"])
    core = jnp.stack(
        [loop, vessel, vessel, jnp.full(n, _KIND["plaque"]), jnp.full(n, _KIND["plaque"])], 1
    )[jnp.arange(n), parts]
    rare = jnp.array([1.0, 1.0, 1.0, 0.5, 0.12])
    # A person has many leads or specks, or none.
    person = draws.uniform("person", 5)[parts] < rare[parts]
    bowel = jnp.asarray(parts == 0)
    return {
        "ends": jnp.concatenate([start, end], 1),
        "brush": jnp.where(person[:, None], radius[:, None] * (1.0 + 0.15 * b), 0.0) * scale,
        "taper": jnp.where(bowel, 1.0, 0.8),
        "wall_mm": jnp.where(bowel, 2.2, 0.0),
        "wall": jnp.where(bowel, _KIND["wall"], core),
        "core": core,
        "spots": jnp.where(bowel & (core == _KIND["stool"]), 0.8, 0.0),
        "wobble": jnp.where(bowel, 1.2, 0.0),
        "free": jnp.asarray(parts == 4, jnp.float32),
    }


def _arms(draws: Draws, at: Array, scale: Array, width: Array, down: Array) -> dict[str, Array]:
    """Both arms beside the trunk, where they are not raised."""
    side = np.repeat([1.0, -1.0], len(_ARM))
    rows = _ARM * 2
    places = np.array([[np.array(r[0]), np.array(r[1])] for r in rows], np.float32)
    ends = jnp.asarray(places) * scale
    # From the side of the trunk, so that arms of stout persons lie further out.
    ends = ends.at[:, :, 0].add(width - 196.0 * scale) * jnp.asarray(
        np.stack([side, np.ones_like(side), np.ones_like(side)], 1)[:, None], jnp.float32
    )
    swing = 14.0 * draws.normal("swing", 2, 1, 2, 3).repeat(len(_ARM), 1).reshape(-1, 2, 3)
    radii = np.array([[r[2], r[3], max(r[2], r[3])] for r in rows], np.float32)
    n = len(rows)
    return {
        "ends": (at[8] + ends + swing).reshape(n, 6),
        "brush": jnp.asarray(radii) * scale * down,
        "taper": jnp.asarray(np.array([r[4] for r in rows], np.float32)),
        "wall_mm": jnp.asarray(np.array([r[5] for r in rows], np.float32)),
        "wall": jnp.asarray(np.array([_KIND[r[6]] for r in rows])),
        "core": jnp.asarray(np.array([_KIND[r[7]] for r in rows])),
        "spots": jnp.zeros(n),
        "wobble": jnp.zeros(n),
        "free": jnp.ones(n),
    }


def boxed(items: dict[str, Array]) -> dict[str, Array]:
    """A list of capsules with the box that bounds each: `low` and `high` (n, 3)."""
    ends = items["shape"][:, :6].reshape(-1, 2, 3)
    brush = items["shape"][:, 6:9]
    reach = brush * jnp.maximum(items["shape"][:, 9:], 1.0) + 2.0 * items["wobble"][:, None] + 3.0
    # A capsule of radius 0 is absent.
    there = jnp.all(brush > 0.0, 1, keepdims=True)
    low = jnp.where(there, ends.min(1) - reach, jnp.inf)
    high = jnp.where(there, ends.max(1) + reach, -jnp.inf)
    return {**items, "low": low, "high": high}


def contents(
    draws: Draws, at: Array, scale: Array, tissue: dict[str, Array], width: Array
) -> dict[str, Array]:
    """All contents of a trunk.

    Args:
        draws: Random numbers.
        at: (27, 3) centroid of each slot (of the next filled one below where empty), then S1.
        scale: Size of the person, 1 on average.
        tissue: HU of fat, muscle, blood, vein and cortical; contrast and phase; down: 1 where
            the arms lie beside the trunk.
        width: Half width of the trunk at the shoulders, mm.

    Returns:
        Mapping: shape (n, 10) capsules, wall_mm, wall and core HU, spots (share of gas dots),
        wobble (mm, how uneven), free (1: not cut by the skin), low and high (n, 3).
    """
    lists = [
        _fixed(draws.of("fixed"), at, scale),
        _random(draws.of("random"), at, scale),
        _arms(draws.of("arms"), at, scale, width, tissue["down"]),
    ]
    items = {name: jnp.concatenate([one[name] for one in lists]) for name in lists[0]}
    palette = draws.settled(_palette(draws.of("palette"), tissue))
    shape = jnp.concatenate([items["ends"], items["brush"], items["taper"][:, None]], 1)
    shape = draws.settled(shape)
    own = 1.0 + 0.08 * draws.normal("HU", shape.shape[0])
    return boxed(
        {
            "shape": shape,
            "wall_mm": items["wall_mm"],
            "wall": palette[items["wall"]] * own,
            "core": palette[items["core"]] * own,
            "spots": items["spots"],
            "wobble": items["wobble"],
            "free": items["free"],
        }
    )
