"""What surrounds a spine: outline of the body, chest, pelvis, head, shoulders, organs, vessels.

They are distractors: bright structures that are not vertebrae, and soft tissue of every shade. All
sizes are rough adult values, varied per person; nothing here is measured.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.data.phantom import levels
from spinejax.data.phantom.draws import Draws

Array = jax.Array

KNOTS = 96
ORGANS = 40
SOLID_ORGANS = 9  # the first ones; the others are loops of bowel
WAVES = 8
METALS = 24

# Outline by height. Anchors are (slot whose centroid gives the height, mm above it). Columns, mm:
# half width and half depth of the body, distance of the spine's centroid from the back's skin,
# relative thickness of fat under the skin; half of the chest: its centre's distance from the
# midline, half width and half depth, and the centre's depth before the spine; radius of the aorta,
# its offset to the left and to the front; the same for the vein, which lies right.
PROFILE = (
    "width", "depth", "back", "fat", "cx", "ca", "cb", "cy",
    "ar", "ax", "ay", "vr", "vx", "vy", "windpipe",
)  # fmt: skip
_C1, _T1, _L1, _S1 = levels.C1, levels.T1, levels.L1, levels.SLOTS
# fmt: off
_ANCHORS = [
    (_C1, 200.0, 30, 40, 70, 0.3, 60, 20, 20, 30, 0, 10, 30, 0, -10, 30, 0),
    (_C1, 130.0, 74, 92, 80, 0.3, 60, 20, 20, 30, 0, 10, 30, 0, -10, 30, 0),
    (_C1,  60.0, 78, 98, 82, 0.3, 60, 20, 20, 30, 3, 22, 14, 4, -24, 10, 0),
    (_C1,   0.0, 70, 92, 74, 0.4, 60, 20, 20, 30, 3, 24, 12, 4, -28, 10, 8),
    (3,     0.0, 62, 66, 58, 0.5, 60, 20, 20, 30, 3, 24, 16, 5, -27, 14, 9),
    (5,     0.0, 64, 62, 60, 0.6, 60, 20, 20, 30, 3, 22, 18, 5, -26, 18, 9),
    (6,     0.0, 90, 66, 66, 0.8, 50, 18, 20, 25, 4, 20, 24, 6, -26, 24, 9),
    (_T1,   0.0, 165, 78, 74, 0.8, 46, 26, 26, 24, 4, 18, 28, 6, -28, 30, 9),
    (8,     0.0, 195, 92, 78, 0.8, 52, 42, 46, 26, 5, 16, 30, 7, -28, 36, 9),
    (10,    0.0, 190, 104, 80, 0.9, 64, 54, 66, 30, 11, 20, 14, 9, -26, 50, 8),
    (12,    0.0, 172, 110, 80, 0.9, 70, 60, 78, 34, 11, 20, 12, 9, -28, 60, 0),
    (14,    0.0, 164, 112, 78, 0.9, 74, 62, 84, 38, 11, 18, 14, 10, -30, 60, 0),
    (16,    0.0, 158, 112, 78, 1.0, 74, 64, 84, 38, 11, 14, 18, 11, -26, 50, 0),
    (_L1,   0.0, 154, 112, 80, 1.2, 74, 62, 82, 40, 10, 9, 27, 11, -22, 28, 0),
    (22,    0.0, 156, 112, 84, 1.6, 70, 60, 80, 40, 9, 8, 28, 11, -18, 28, 0),
    (24,    0.0, 168, 114, 92, 2.0, 70, 60, 80, 40, 7, 18, 26, 9, -22, 26, 0),
    (_S1, -40.0, 178, 116, 84, 2.2, 70, 60, 80, 40, 5, 40, 20, 6, -42, 18, 0),
    (_S1, -120.0, 180, 108, 70, 2.2, 70, 60, 80, 40, 5, 50, 40, 5, -50, 40, 0),
    (_S1, -260.0, 172, 90, 70, 2.0, 70, 60, 80, 40, 5, 70, 50, 5, -70, 50, 0),
]
# fmt: on

# Parts of bones near the ends, as capsules (see shapes.capsule), mirrored at the midline.
_HEAD = [  # in the frame of the atlas
    (17, -1, 17, 15, 3, 19, 7, 10, 4.5, 1.0),  # occipital condyle
    (0, -22, 26, 0, -50, 34, 14, 8, 7, 0.9),  # base of the skull
    (52, -20, 14, 40, -72, -34, 4, 8, 12, 0.9),  # mandible
    (40, -72, -34, 0, -92, -40, 5, 5, 12, 1.0),
    (24, -62, -14, 0, -84, -16, 4, 4, 9, 1.0),  # teeth
    (26, -60, 2, 0, -80, 8, 6, 8, 8, 1.0),  # palate, maxilla
    (48, -2, 22, 50, 4, 8, 8, 9, 9, 0.8),  # mastoid
    (0, -46, -62, 14, -30, -60, 2, 3, 2, 1.0),  # hyoid
]
_SHOULDER = [  # in the frame of T2
    (14, -62, -18, 80, -40, 18, 6, 6, 6, 0.9),  # clavicle
    (80, -40, 18, 150, 0, 30, 6, 6, 6, 1.1),
    (60, 52, 20, 148, 14, 28, 5, 6, 9, 1.0),  # spine of the scapula
    (66, 46, 10, 80, 56, -100, 3.2, 3.0, 14, 0.8),  # blade
    (90, 44, 10, 100, 48, -60, 14, 2.6, 16, 0.6),
    (166, -4, 10, 168, -2, 8, 23, 23, 23, 1.0),  # head of the humerus
    (172, 0, 0, 182, 4, -110, 12, 12, 12, 0.9),
]
_PELVIS = [  # upright at S1: x left, y back, z up
    (94, -22, -88, 95, -22, -88, 23, 23, 23, 1.0),  # head of the femur
    (104, -18, -96, 138, -8, -112, 15, 14, 16, 1.1),
    (142, -6, -112, 150, -4, -260, 15, 15, 15, 0.9),
    (74, -6, -70, 80, 22, -96, 10, 15, 20, 0.9),  # behind the socket
    (78, 20, -96, 58, 22, -146, 10, 13, 14, 1.1),  # ischium
    (78, -44, -72, 12, -72, -112, 8, 8, 9, 0.9),  # upper ramus of the pubis
    (12, -72, -112, 56, 12, -150, 6, 6, 8, 1.0),
    (100, -28, -58, 90, -14, -50, 9, 20, 12, 1.0),  # roof of the socket
]
_SACRUM = [  # in the frame of S1
    (0, -1, 0, 0, 3, -22, 23, 15, 13, 0.74),  # S1, S2
    (0, 4, -28, 0, 4, -62, 15, 9, 12, 0.7),
    (0, 2, -66, 0, -12, -92, 9, 6, 9, 0.7),  # S5, coccyx
    (0, -14, -96, 0, -28, -112, 5, 4, 7, 0.7),
    (20, 3, 0, 44, 16, -10, 9, 13, 14, 1.0),  # ala
    (42, 16, -14, 26, 12, -52, 9, 9, 12, 0.7),
    (10, 30, -4, 6, 26, -50, 5, 4, 11, 0.7),  # back wall
    (0, 34, -6, 0, 29, -52, 3, 4, 8, 0.8),  # crest
    (20, 22, 6, 20, 26, -8, 6, 6, 8, 1.0),  # articular process
]


def _jitter(draws: Draws, rows: Sequence[Sequence[float]], scale: Array, sd: float) -> Array:
    rows_array = jnp.asarray(np.array(rows, np.float32))
    sizes = jnp.where(jnp.arange(10) < 9, scale, 1.0)
    brush = (jnp.arange(10) >= 6) & (jnp.arange(10) < 9)
    noise = draws.normal(*rows_array.shape)
    return rows_array * sizes * jnp.where(brush, 1.0 + sd * noise, 1.0)


def _interpolate(at: Array, heights: Array, values: Array) -> Array:
    """Piecewise linear columns of `values` (n, c), known at falling `heights` (n,), at (m,)."""
    step = jnp.maximum(heights[:-1] - heights[1:], 1e-3)
    share = jnp.clip((at[:, None] - heights[1:]) / step, 0.0, 1.0)
    return values[-1] + jnp.matmul(share, values[:-1] - values[1:], precision="highest")


def _profile(
    draws: Draws, heights: Array, spine: Array, count: Array, scale: Array
) -> dict[str, Any]:
    """Rows by height on a regular grid, for linear interpolation."""
    z = jnp.stack([heights[slot] + up * scale for slot, up, *_ in _ANCHORS])
    values = jnp.asarray(np.array([row[2:] for row in _ANCHORS], np.float32)) * scale
    girth = 1.0 + 0.10 * draws.normal(2)
    trunk = jnp.asarray(np.array([float(row[0] >= _T1) for row in _ANCHORS], np.float32))
    factor = jnp.ones_like(values)
    for column in (0, 1):
        factor = factor.at[:, column].set(1.0 + trunk * (girth[column] - 1.0))
    fat = jnp.exp(0.45 * draws.normal())
    factor = factor.at[:, 3].set(12.0 * fat / scale)
    vessel = 1.0 + 0.12 * draws.normal(values.shape[1])
    factor = factor.at[:, 8:14].multiply(vessel[8:14])
    values = values * factor
    low, high = z[-1], z[0]
    knots = jnp.linspace(low, high, KNOTS)
    outline = _interpolate(knots, z, values)
    # The spine's own course; places without a vertebra are put far below.
    filled = jnp.arange(spine.shape[0]) <= count
    heights = jnp.where(filled, spine[:, 2], -1e4 - jnp.arange(spine.shape[0]))
    course = _interpolate(knots, heights, jnp.where(filled[:, None], spine, spine[count])[:, :2])
    rows = jnp.concatenate([outline, course], 1)
    smooth = jnp.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9.0
    padded = jnp.concatenate([rows[:1]] * 2 + [rows] + [rows[-1:]] * 2)
    rows = jnp.sum(jnp.stack([smooth[i] * padded[i : i + KNOTS] for i in range(5)]), 0)
    return {"low": low, "step": (high - low) / (KNOTS - 1), "rows": rows}


def _ribs(draws: Draws, heights: Array, present: Array, scale: Array) -> dict[str, Array]:
    # T1..T12 and T13; the rib sits at the upper edge of its vertebra.
    slope = np.array([10, 15, 19, 22, 24, 26, 27, 28, 28, 27, 26, 24, 22], np.float32)
    last = np.array([2.7, 2.5, 2.4, 2.35, 2.3, 2.25, 2.2, 2.1, 1.9, 1.7, 1.25, 0.55, 0.1])
    end = np.array([2.9, 3.0, 3.05, 3.05, 3.05, 3.05, 3.0, 2.8, 2.5, 2.2, 1.3, 0.6, 0.15])
    first = np.array([-0.95] * 9 + [-0.85, -0.7, -0.6, -0.55])
    exists = present[levels.T1 : levels.T13 + 1]
    length = 1.0 + 0.05 * draws.normal(13)
    last_angle = jnp.where(exists, jnp.asarray(last, jnp.float32) * length, -9.0)
    return {
        "z": heights[levels.T1 : levels.T13 + 1] + 7.0 * scale,
        "slope": jnp.asarray(slope) * scale,
        "first": jnp.asarray(first, jnp.float32),
        "last": last_angle,
        "end": jnp.where(exists, jnp.asarray(end, jnp.float32), -9.0),
        "radius": 70.0 * scale,
    }


def _organs(draws: Draws, heights: Array, at: Any, scale: Array) -> dict[str, Array]:
    """Ellipsoids of the chest and belly: (40,) centres, radii, HU; later over earlier."""
    contrast = draws.uniform() ** 1.5
    oral = (draws.uniform() < 0.35).astype(jnp.float32)
    fixed = [  # slot, x, y (from the spine's centroid), z, radii, HU
        (13, 22, -78, 6, 52, 44, 58, 40 + 140 * contrast),  # heart
        (17, -70, -55, 20, 72, 82, 72, 55 + 50 * contrast),  # liver
        (17, -20, -80, 10, 70, 50, 42, 55 + 50 * contrast),
        (17, 88, -5, 12, 30, 44, 48, 50 + 70 * contrast),  # spleen
        (20, 62, 16, 0, 26, 24, 52, 32 + 150 * contrast),  # kidneys
        (21, -62, 16, 0, 26, 24, 52, 32 + 150 * contrast),
        (20, 56, 14, 0, 8, 9, 26, 10 + 500 * contrast * contrast),  # their pelves
        (21, -56, 14, 0, 8, 9, 26, 10 + 500 * contrast * contrast),
        (20, 20, -60, 0, 58, 12, 12, 40 + 60 * contrast),  # pancreas, duodenum
    ]
    rows = []
    for slot, x, y, z, a, b, c, hu in fixed:
        centre = at(slot) + jnp.array([x, y, z], jnp.float32) * scale
        rows.append(jnp.concatenate([centre, jnp.array([a, b, c]) * scale, jnp.asarray(hu)[None]]))
    first = jnp.stack(rows)
    n = ORGANS - SOLID_ORGANS
    u = draws.uniform(n, 3)
    loop_z = heights[levels.T12] + u[:, 2] * (heights[-1] - 70.0 - heights[levels.T12])
    loop_x = (u[:, 0] - 0.5) * 230.0 * scale
    loop_y = at(levels.L5)[1] - (48.0 + 85.0 * u[:, 1]) * scale
    radii = (9.0 + 20.0 * draws.uniform(n, 3) ** 1.5) * scale
    kind = draws.uniform(n)
    bright = 120.0 + 400.0 * draws.uniform(n)
    hu = jnp.where(kind < 0.28, -880.0, jnp.where(kind < 0.28 + 0.3 * oral, bright, 25.0))
    loops = jnp.concatenate([jnp.stack([loop_x, loop_y, loop_z], 1), radii, hu[:, None]], 1)
    rows_all = jnp.concatenate([first, loops])
    shift = 5.0 * draws.normal(ORGANS, 3)
    grow = 1.0 + 0.10 * draws.normal(ORGANS, 3)
    return {
        "centre": rows_all[:, :3] + shift,
        "radii": rows_all[:, 3:6] * grow,
        "hu": rows_all[:, 6],
        "contrast": contrast,
    }


def _waves(draws: Draws, shortest_mm: float, longest_mm: float) -> dict[str, Array]:
    """Plane waves of random direction, length and phase: a texture that is a pure function."""
    direction = draws.normal(WAVES, 3)
    direction /= jnp.linalg.norm(direction, axis=1, keepdims=True) + 1e-6
    ratio = longest_mm / shortest_mm
    length = shortest_mm * ratio ** draws.uniform(WAVES, 1)
    phase = 2 * jnp.pi * draws.uniform(WAVES)
    return {"wave": 2 * jnp.pi * direction / length, "phase": phase}


def surroundings(
    draws: Draws,
    spine: dict[str, Any],
    sacrum: dict[str, Array],
    present: Array,
    origin: Array,
    count: Array,
    scale: Array,
) -> dict[str, Any]:
    """Everything but the vertebrae.

    Args:
        draws: Random numbers.
        spine: As in `anatomy`, filled places first.
        sacrum: Origin (3,) and rotation (3, 3) of its first segment.
        present: (26,) which slots are filled.
        origin: (27, 3) centroids, filled places first, the sacrum at index `count`.
        count: How many places are filled.
        scale: Size of the person, 1 on average.

    Returns:
        profile, ribs, organs, sacrum, pelvis, head, shoulder, tissue, soft and bone textures.
    """
    # Place in `origin` of each slot; an empty slot takes that of the next filled one below.
    place = jnp.append(jnp.cumsum(present) - present, count)

    def at(slot: int) -> Array:
        return origin[place[slot]]

    heights = origin[place, 2]
    upright = jnp.eye(3)
    wing = jnp.array([[0.80, 0.58, 0.16], [0.60, -0.80, 0.0], [0.0, 0.0, 1.0]])
    normal = wing[0] / jnp.linalg.norm(wing[0])
    along = wing[1] - jnp.dot(wing[1], normal) * normal
    along /= jnp.linalg.norm(along)
    u = draws.uniform(10)
    n = draws.normal(10)
    organs = _organs(draws, heights, at, scale)
    return {
        "profile": _profile(draws, heights, origin, count, scale),
        "ribs": _ribs(draws, heights, present, scale),
        "organs": organs,
        "sacrum": {**sacrum, "parts": _jitter(draws, _SACRUM, scale, 0.05)},
        "pelvis": {
            "origin": sacrum["origin"],
            "rotation": upright,
            "parts": _jitter(draws, _PELVIS, scale, 0.06),
            "wing": {
                "centre": jnp.array([84.0, -8.0, -16.0]) * scale,
                "normal": normal,
                "along": along,
                "across": jnp.cross(normal, along),
                "radii": jnp.array([70.0, 62.0]) * scale,
                "thickness": 5.0 * scale,
                "bend": 0.0022,
            },
        },
        "head": {
            "origin": spine["origin"][0],
            "rotation": upright,
            "parts": _jitter(draws, _HEAD, scale, 0.06),
            "skull": jnp.array([70.0, 88.0, 74.0]) * scale,
            "centre": jnp.array([0.0, -18.0, 88.0]) * scale,
        },
        "shoulder": {
            "origin": at(8),
            "rotation": upright,
            "parts": _jitter(draws, _SHOULDER, scale, 0.06),
        },
        "tissue": {
            "fat": -100.0 + 6.0 * n[0],
            "muscle": 55.0 + 7.0 * n[1],
            "streaks": 0.75 * u[0],  # fat within muscle
            "blood": 42.0 + 330.0 * organs["contrast"] * u[1],
            "vein": 42.0 + 150.0 * organs["contrast"] * u[2],
            "lung": -850.0 + 30.0 * n[2],
            "disc": 85.0 + 12.0 * n[3],
            "cord": 36.0 + 5.0 * n[4],
            "calcified": 0.9 * u[3] ** 2,  # share of the aorta's wall that is calcified
            "trabeculae": 45.0 + 25.0 * u[4],
            "table": 22.0 * u[5],  # mm between back and table
        },
        "metal": {"centre": jnp.zeros((METALS, 3)), "strength": jnp.zeros(METALS)},
        "soft": _waves(draws, 9.0, 60.0),
        "texture": _waves(draws, 2.5, 9.0),
    }
