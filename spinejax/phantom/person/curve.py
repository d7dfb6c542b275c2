"""The places of the vertebrae: lordosis, kyphosis, scoliosis with rotation, slips."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom.draws import Draws
from spinejax.phantom.person import levels
from spinejax.phantom.person.levels import SLOTS

Array = jax.Array

_REGION = np.r_[np.zeros(7), np.ones(13), np.full(6, 2)].astype(np.int32)


def rotation(lean: Array, side: Array, turn: Array) -> Array:
    """Rotation matrices (..., 3, 3), columns = a vertebra's x, y, z axes.

    Args:
        lean: Forward tilt, radians: the upper end towards anterior.
        side: Sideways tilt, radians: the upper end towards the left.
        turn: Rotation about the vertical axis, radians.
    """
    one, zero = jnp.ones_like(lean), jnp.zeros_like(lean)

    def stack(rows: list[list[Array]]) -> Array:
        return jnp.stack([jnp.stack(r, -1) for r in rows], -2)

    c, s = jnp.cos(lean), jnp.sin(lean)
    x = stack([[one, zero, zero], [zero, c, -s], [zero, s, c]])
    c, s = jnp.cos(side), jnp.sin(side)
    y = stack([[c, zero, s], [zero, one, zero], [-s, zero, c]])
    c, s = jnp.cos(turn), jnp.sin(turn)
    z = stack([[c, -s, zero], [s, c, zero], [zero, zero, one]])
    return y @ x @ z


def _bend(draws: Draws, who: dict[str, Array]) -> Array:
    """Curvature of cervical, thoracic and lumbar spine, (3,), about 1."""
    bend = 1.0 + jnp.array([0.35, 0.20, 0.22]) * draws.normal("bend", 3)
    flat = jnp.array([0.14, 0.05, 0.10 + 0.15 * who["worn"]])
    bend = jnp.where(draws.uniform("flat", 3) < flat, 0.25 * bend, bend)  # straightened
    hunched = jnp.where(draws.uniform("hyperkyphosis") < 0.06, 0.6, 0.0)
    bend = bend.at[1].multiply(0.85 + 0.35 * who["brittle"] + hunched)
    # The cervical and the lumbar spine compensate the thoracic one.
    return bend + jnp.array([0.4, 0.0, 0.5]) * jnp.maximum(bend[1] - 1.0, 0.0)


def _hollow(draws: Draws) -> Array:
    """Hyperlordosis: the bend that it adds to each slot, (26,).

    In a few lumbar spines the lordosis is twice as deep. The sacrum follows little: the last
    vertebra is then as steep as the sacrum, and only its place in the row tells them apart.
    """
    hollow = draws.uniform("hyperlordosis") < 0.15
    more = jnp.where(hollow, 0.3 + 1.2 * draws.uniform("how hollow"), 0.0)
    slot = jnp.arange(SLOTS)
    return more * jnp.where(slot < levels.L1, 0.0, jnp.where(slot < levels.L5, 1.0, -0.3))


def _scoliosis(draws: Draws, chance: float) -> tuple[Array, Array]:
    """Sideways tilt and turn of each place, radians: slight in everybody, marked in some."""
    t = jnp.linspace(0.0, 1.0, SLOTS + 1)
    # Half of Cobb's angle: some degrees, or 5 to 30.
    marked = draws.uniform("marked") < chance
    size = jnp.where(marked, 5.0 + 25.0 * draws.uniform("marked angle") ** 2, 0.0)
    size = 1.8 * jnp.abs(draws.normal("angle", 2)) + size * jnp.array([0.25, 1.0])
    phase = 2 * jnp.pi * draws.uniform("phase", 2)
    waves = jnp.sin(jnp.array([1.0, 2.0]) * 2 * jnp.pi * t[:, None] + phase)
    curve = (jnp.deg2rad(size) * waves).sum(1)
    # Vertebrae turn most at the apex, where the tilt passes zero, into the convexity.
    apex = (jnp.roll(curve, -1) - jnp.roll(curve, 1)).at[0].set(0.0).at[-1].set(0.0)
    lean = jnp.deg2rad(1.5) * draws.normal("lean")
    return curve + lean, 2.2 * (0.5 + draws.uniform("turn")) * apex


def curve(
    draws: Draws,
    who: dict[str, Array],
    order: Array,
    count: Array,
    size: dict[str, Array],
    ill: dict[str, Any],
    scoliosis: float,
) -> dict[str, Array]:
    """Centroids and axes of the vertebrae from top to bottom, and of the sacrum after the last.

    Args:
        draws: Random numbers.
        who: From `pathology.person`.
        order: (26,) slots from top to bottom, the filled ones first.
        count: How many are filled.
        size: Sizes by slot, with `h` as it is after fractures.
        ill: From `pathology.pathology`.
        scoliosis: Probability of a marked curve.

    Returns:
        `origin` (27, 3), `axes` (27, 3, 3), and `disc` (26,): height of the disc below each place.
    """
    scale = who["scale"]
    # Tilt accumulates, so that a strong kyphosis meets a flat neck without a step.
    step = np.diff(levels.TILT_DEG) * 1.0
    bend = _bend(draws, who)
    steps = jnp.asarray(step) * (bend[jnp.asarray(_REGION)] + _hollow(draws))
    steps = steps + jnp.asarray(levels.STEP_SD_DEG) * draws.normal("step", SLOTS)
    # A wedge leans everything above it forwards; discs compensate a part.
    broken = ill["fracture"]
    height = size["h"] / jnp.maximum(1.0 - 0.5 * (broken["front"] + broken["behind"]), 0.3)
    wedge = 2.0 * height * (broken["front"] - broken["behind"]) / (2.0 * size["b"])
    wedge = 0.5 * jnp.rad2deg(wedge)
    steps = steps - 0.5 * (wedge + jnp.roll(wedge, -1).at[-1].set(0.0))
    tilt = jnp.concatenate([jnp.zeros(1), jnp.cumsum(steps)])
    # Patients lie on their back: even a bent column is nearly level as a whole, and is level in the
    # middle of the lumbar spine.
    level = 0.5 * (jnp.mean(tilt) - 4.0) + 0.5 * tilt[levels.L1 + 2]
    tilt = tilt - level + 2.5 * draws.normal("level")
    lean = jnp.append(tilt[:-1][order], 0.0)
    # Sacra differ less than lumbar spines: 30 to 50 degrees of slope in most adults.
    slope = levels.SACRAL_SLOPE_DEG + 0.45 * (tilt[-1] - levels.TILT_DEG[-1])
    lean = lean.at[count].set(jnp.maximum(slope, lean[count - 1]))
    side, turn = _scoliosis(draws.of("scoliosis"), scoliosis)
    side, turn = (wave.at[count].multiply(0.4) for wave in (side, turn))  # the pelvis lies level
    # Each vertebra is off the curve a little.
    own = jnp.deg2rad(jnp.array([1.6, 1.2, 1.8])) * draws.normal("own tilt", SLOTS + 1, 3)
    axes = rotation(jnp.deg2rad(lean) + own[:, 0], side + own[:, 1], turn + own[:, 2])

    # Discs, narrowed by wear.
    h, table = size["h"], jnp.asarray(levels.table())
    h0 = table[:, levels.COLUMNS.index("h")]
    drop = jnp.zeros(SLOTS).at[levels.C2].set(levels.AXIS_DROP_MM)  # its drum lies below the dens
    h0_next = jnp.append(h0[1:], levels.SACRUM_MM).at[levels.T12].set(h0[levels.L1])
    gap0 = (jnp.asarray(levels.DISTANCES_MM) - h0 - drop - h0_next) * scale
    factor = 1.0 + 0.12 * draws.normal("gap") + 0.07 * draws.normal("own gap", SLOTS)
    gap = jnp.maximum(gap0 * factor * (1 - ill["narrow"]), 1.3)
    upper = (h + drop * scale)[order]
    h_next = jnp.append(h[order][1:], 0.0).at[count - 1].set(levels.SACRUM_MM * scale)
    distance = upper + gap[order] + h_next

    middle = axes[:-1, :, 2] + axes[1:, :, 2]
    middle = middle / jnp.linalg.norm(middle, axis=-1, keepdims=True)
    forwards = -axes[:-1, :, 1]
    down = -middle * distance[:, None] - forwards * ill["slip"][order][:, None]
    below = jnp.cumsum(down.at[0].set(0.0), 0)
    origin = jnp.concatenate([jnp.zeros((1, 3)), below])  # the axis is at zero, row 1
    off = 0.5 * draws.normal("off the curve", SLOTS + 1, 3) * jnp.array([1.0, 1.0, 0.4])
    origin = origin + off.at[:2].set(0.0)
    atlas = axes[1] @ (jnp.array([0.0, 9.8, 14.2]) * scale)
    origin = origin.at[0].set(atlas)
    real = jnp.arange(SLOTS) < count
    mean = jnp.sum(jnp.where(real[:, None], origin[:-1], 0.0), 0) / count
    return {"origin": origin - mean, "axes": axes, "disc": gap[order] + 1.0}
