"""Surroundings of a spine: outline of the body, HU of its tissues, and its contents.

These are distractors: bright structures that are not vertebrae, and soft tissue of every shade.
Sizes are rough adult values, not measured, and vary between persons.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom.draws import Draws
from spinejax.phantom.person import bone, contents, implants, levels, skeleton, waves

Array = jax.Array

KNOTS = 96

# Outline by height. Anchors are (slot whose centroid gives the height, mm above it). Columns, mm:
# half width and half depth of the body, distance of the spine's centroid from the back's skin,
# relative thickness of fat under the skin; half of the chest: its centre's distance from the
# midline, half width and half depth, and the centre's distance in front of the spine; radius of the
# aorta, its offset to the left and to the front; the same for the vein, which lies to the right.
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
    (10,    0.0, 190, 104, 80, 0.9, 64, 54, 66, 30, 11, 24, 12, 9, -26, 50, 8),
    (12,    0.0, 172, 110, 80, 0.9, 70, 60, 78, 34, 11, 25, 12, 9, -28, 60, 0),
    (14,    0.0, 164, 112, 78, 0.9, 74, 62, 84, 38, 11, 23, 16, 10, -30, 60, 0),
    (16,    0.0, 158, 112, 78, 1.0, 74, 64, 84, 38, 11, 16, 22, 11, -26, 50, 0),
    (_L1,   0.0, 154, 112, 80, 1.2, 74, 62, 82, 40, 10, 9, 27, 11, -22, 28, 0),
    (22,    0.0, 156, 112, 84, 1.6, 70, 60, 80, 40, 9, 8, 28, 11, -18, 28, 0),
    (24,    0.0, 168, 114, 92, 2.0, 70, 60, 80, 40, 7, 18, 26, 9, -22, 26, 0),
    (_S1, -40.0, 178, 116, 84, 2.2, 70, 60, 80, 40, 5, 40, 20, 6, -42, 18, 0),
    (_S1, -120.0, 180, 108, 70, 2.2, 70, 60, 80, 40, 5, 50, 40, 5, -50, 40, 0),
    (_S1, -260.0, 172, 90, 70, 2.0, 70, 60, 80, 40, 5, 70, 50, 5, -70, 50, 0),
]
# fmt: on


def _interpolate(at: Array, heights: Array, values: Array) -> Array:
    """Piecewise linear columns of `values` (n, c), known at falling `heights` (n,), at (m,)."""
    step = jnp.maximum(heights[:-1] - heights[1:], 1e-3)
    share = jnp.clip((at[:, None] - heights[1:]) / step, 0.0, 1.0)
    return values[-1] + jnp.matmul(share, values[:-1] - values[1:], precision="highest")


def _profile(
    draws: Draws, heights: Array, spine: Array, count: Array, scale: Array
) -> dict[str, Any]:
    """Rows by height on a regular grid, for linear interpolation."""
    above = np.array([row[1] for row in _ANCHORS], np.float32)
    z = heights[np.array([row[0] for row in _ANCHORS])] + above * scale
    values = jnp.asarray(np.array([row[2:] for row in _ANCHORS], np.float32)) * scale
    girth = 1.0 + 0.10 * draws.normal("girth", 2)
    trunk = np.array([row[0] >= _T1 for row in _ANCHORS])[:, None]
    column = np.arange(values.shape[1])
    fat = jnp.exp(0.45 * draws.normal("fat"))
    vessel = 1.0 + 0.12 * draws.normal("vessels", values.shape[1])
    factor = jnp.where((column >= 8) & (column < 14), vessel, 1.0)
    factor = jnp.where(column == 3, 12.0 * fat / scale, factor)
    factor = jnp.where(trunk & (column == 0), girth[0], factor)
    factor = jnp.where(trunk & (column == 1), girth[1], factor)
    values = values * factor
    # A wide aorta lies further to the left and to the front, beside the bodies.
    ar, ax, ay = (PROFILE.index(name) for name in ("ar", "ax", "ay"))
    wider = values[:, ar] * (jnp.exp(0.2 * draws.normal("wide aorta")) - 1.0)
    further = values[:, ar] * 0.4 * draws.uniform("aorta to the left")
    values = values.at[:, ar].add(wider)
    values = values.at[:, ax].add(0.8 * wider + further).at[:, ay].add(0.6 * wider - 0.3 * further)
    low, high = z[-1], z[0]
    knots = jnp.linspace(low, high, KNOTS)
    outline = _interpolate(knots, z, values)
    # The course of the spine; empty places are put far below.
    filled = jnp.arange(spine.shape[0]) <= count
    heights = jnp.where(filled, spine[:, 2], -1e4 - jnp.arange(spine.shape[0]))
    course = _interpolate(knots, heights, jnp.where(filled[:, None], spine, spine[count])[:, :2])
    rows = jnp.concatenate([outline, course], 1)
    smooth = jnp.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9.0
    padded = jnp.concatenate([rows[:1]] * 2 + [rows] + [rows[-1:]] * 2)
    rows = jnp.sum(jnp.stack([smooth[i] * padded[i : i + KNOTS] for i in range(5)]), 0)
    return {"low": low, "step": (high - low) / (KNOTS - 1), "rows": rows}


def _tissue(draws: Draws, bone: Array) -> dict[str, Array]:
    """HU and other numbers of soft tissue, in wider ranges than physiology has.

    Args:
        draws: Random numbers.
        bone: Factor by which bone and contrast are brighter than usual (tube voltage).
    """
    uniform, normal = draws.uniform, draws.normal
    # Half of the scans are without contrast; phase: 0 arterial ... 1 late.
    contrast = jnp.where(uniform("plain") < 0.5, 0.0, 0.25 + 0.75 * uniform("contrast")) * bone
    phase = uniform("phase")
    muscle = 52.0 + 10.0 * normal("muscle") + 15.0 * contrast * uniform("muscle contrast")
    blood = 90.0 + 480.0 * (1.0 - phase) * jnp.sqrt(uniform("blood contrast"))
    blood = 42.0 + 6.0 * normal("blood") + contrast * blood
    vein = 20.0 + 150.0 * jnp.sqrt(phase) * uniform("vein contrast")
    blanket = 3.0 + 14.0 * uniform("blanket")
    calcified = jnp.where(uniform("young aorta") < 0.3, 0.0, uniform("calcified") ** 1.5)
    return {
        "fat": -100.0 + 14.0 * normal("fat"),
        "muscle": muscle,
        "streaks": 1.1 * uniform("streaks"),  # fat within muscle
        "contrast": contrast,
        "phase": phase,
        "blood": blood,
        "vein": 42.0 + 6.0 * normal("vein") + contrast * vein,
        "lung": -850.0 + 50.0 * normal("lung"),
        # Fluid behind this plane (mm behind the centroids) in the chest: seldom.
        "effusion": jnp.where(uniform("effusion") < 0.12, 45.0 * uniform("level") - 5.0, 1e3),
        "fluid": 5.0 + 45.0 * uniform("fluid"),
        "pleura": 7.0 * uniform("pleura") ** 1.5,  # mm between the bodies' sides and the lungs
        "behind": 2.0 + 18.0 * uniform("behind") ** 2,  # mm behind the centroids: fat beside bodies
        "recess": 4.0 + 28.0 * uniform("recess") ** 2,  # mm from the midline to the right lung
        "cord": 32.0 + 9.0 * normal("cord"),
        "joint": 0.3 + 1.1 * uniform("joint"),  # mm between bones that touch
        "epidural": -60.0 + 30.0 * normal("epidural"),
        "calcified": calcified,  # share of the aorta's wall that is calcified
        "plaque": 450.0 + 700.0 * uniform("plaque"),
        # Cartilage of ribs: calcified in the elderly.
        "cartilage": 95.0 + 20.0 * normal("cartilage"),
        "chalk": jnp.where(uniform("soft cartilage") < 0.5, 0.0, 500.0 * uniform("chalk")),
        "table": 22.0 * uniform("table") - 4.0,  # mm between back and table
        # Boards of the table: 0 none in view, 1 curved, 2 flat, 3 curved and padded.
        "board": jnp.floor(4.0 * uniform("board")),
        "blanket": jnp.where(uniform("uncovered") < 0.6, 0.0, blanket),  # mm
        "rim": 0.95 * uniform("rim"),  # share of fat between the column and the muscles
        "fascia": 0.5 + 0.35 * normal("fascia"),  # half thickness of fat between muscles, mm
    }


def surroundings(
    draws: Draws,
    spine: dict[str, Any],
    sacrum: dict[str, Array],
    present: Array,
    origin: Array,
    count: Array,
    scale: Array,
) -> dict[str, Any]:
    """Draw everything but the vertebrae.

    Args:
        draws: Random numbers.
        spine: As in `anatomy`, filled places first.
        sacrum: As for `skeleton.frames`.
        present: (26,) which slots are filled.
        origin: (27, 3) centroids, filled places first, the sacrum at index `count`.
        count: How many places are filled.
        scale: Size of the person, 1 on average.

    Returns:
        profile, ribs, contents, implants, metal, sacrum, pelvis, head, shoulder, tissue, marrow,
        textures.
    """
    # Place in `origin` of each slot; an empty slot takes the place of the next filled one below.
    place = jnp.append(jnp.cumsum(present) - present, count)
    at = draws.settled(origin[place])
    profile = _profile(draws.of("profile"), at[:, 2], origin, count, scale)
    rows = profile["rows"] = draws.settled(profile["rows"])
    step = jnp.clip((at[levels.T1 : levels.T13 + 1, 2] - profile["low"]) / profile["step"], 0.0)
    near = rows[jnp.round(step).astype(jnp.int32)].T
    outline = dict(zip((*PROFILE, "sx", "sy"), near, strict=True))

    inner = bone.material(draws.of("bone"), spine)
    tissue = _tissue(draws.of("tissue"), inner["voltage"])
    down = (draws.uniform("arms down") < 0.4).astype(jnp.float32)
    bones = skeleton.frames(draws, spine, sacrum, at, scale, down)
    sternum = jnp.stack([0.0 * scale, -outline["cy"][5] - 0.93 * outline["cb"][5], 0.0 * scale])
    frames = {**bones, "sternum": sternum}
    implanted, metal = implants.implants(draws.of("implant"), spine, frames, at, count)
    shade = {**tissue, "cortical": inner["cortical"].mean(), "down": down}
    width = jnp.max(rows[:, 0])
    return {
        "profile": profile,
        "ribs": skeleton.ribs(draws.of("ribs"), spine, place, present, outline, at, scale),
        "contents": contents.contents(draws.of("contents"), at, scale, shade, width),
        "implants": implanted,
        "metal": metal,
        **bones,
        "tissue": tissue,
        "marrow": inner,
        "soft": waves.texture(draws.of("soft"), 9.0, 60.0),
        "fibres": waves.texture(draws.of("fibres"), 3.5, 16.0, 9.0),
        "texture": waves.texture(draws.of("texture"), 1.8, 7.0, 2.5),
    }
