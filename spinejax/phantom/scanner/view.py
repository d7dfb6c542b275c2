"""The view of a scan: displacement by motion and tilt, and the vertebrae that it shows whole."""

from typing import Any

import jax
import jax.numpy as jnp

from spinejax.phantom.body.tissues import sine
from spinejax.phantom.body.warp import unwarp
from spinejax.phantom.once import when
from spinejax.phantom.scanner.scan_plan import Protocol

Array = jax.Array


def at_rest() -> Protocol:
    """The part of a protocol that `where` needs, without any displacement."""
    still = {name: jnp.zeros(()) for name in ("motion_mm", "motion_wave", "motion_phase", "tilt")}
    return {**still, **{name: jnp.zeros(3) for name in ("lower", "upper", "turn")}}


def _turn(protocol: Protocol) -> tuple[Array, Array]:
    """Cosines and sines (3,) of the angles, computed once for all points."""
    turn, zero = protocol["turn"], jnp.zeros(3)
    return when(turn[0] < jnp.inf, lambda: (jnp.cos(turn), jnp.sin(turn)), (zero, zero))


def where(points: Array, protocol: Protocol) -> Array:
    """Points of the body that a scan shows at `points` (..., 3).

    The patient is turned a little; a gantry's tilt that the file lacks shears the image; motion
    shifts axial slices against each other.
    """
    middle = 0.5 * (protocol["lower"] + protocol["upper"])
    x, y, z = (points[..., i] - middle[i] for i in range(3))
    wave = sine(protocol["motion_wave"] * z + protocol["motion_phase"])
    y = y + protocol["tilt"] * z + protocol["motion_mm"] * wave
    x = x + 0.4 * protocol["motion_mm"] * wave
    cos, sin = _turn(protocol)
    y, z = y * cos[0] - z * sin[0], y * sin[0] + z * cos[0]
    z, x = z * cos[1] - x * sin[1], z * sin[1] + x * cos[1]
    x, y = x * cos[2] - y * sin[2], x * sin[2] + y * cos[2]
    return jnp.stack([x, y, z], -1) + middle


def shown_at(points: Array, protocol: Protocol) -> Array:
    """Points where a scan shows `points` (..., 3) of the body: the inverse of `where`."""
    middle = 0.5 * (protocol["lower"] + protocol["upper"])
    x, y, z = (points[..., i] - middle[i] for i in range(3))
    cos, sin = _turn(protocol)
    x, y = x * cos[2] + y * sin[2], y * cos[2] - x * sin[2]
    z, x = z * cos[1] + x * sin[1], x * cos[1] - z * sin[1]
    y, z = y * cos[0] + z * sin[0], z * cos[0] - y * sin[0]
    wave = protocol["motion_mm"] * sine(protocol["motion_wave"] * z + protocol["motion_phase"])
    return jnp.stack([x - 0.4 * wave, y - protocol["tilt"] * z - wave, z], -1) + middle


def support_points(parameters: Any) -> Array:
    """Outermost points of each vertebra, roughly: (26, n, 3), canonical LPS mm."""
    spine = parameters["spine"]
    parts, size = spine["parts"], spine["size"]
    sides = jnp.array([1.0, -1.0])[:, None] * jnp.array([1.0, 0.0, 0.0]) + jnp.array([0.0, 1, 1])
    brush = parts[:, :, 6:9]
    end = parts[:, :, 3:6]
    local = [end + reach * brush for reach in (jnp.eye(3)[2], -jnp.eye(3)[2], jnp.eye(3)[1])]
    local.append(end + jnp.eye(3)[0] * brush)
    a, b, h = size["a"], size["b"], size["h"]
    body = [
        jnp.stack([0 * a, y * b, size["bz"] + z * (h - y * size["wedge"])], -1)[:, None]
        for y in (-1, 1)
        for z in (-1, 1)
    ]
    body = [jnp.where(spine["has_body"][:, None, None] > 0, p, 0.0) for p in body]
    points = jnp.concatenate([*local, *body], 1)
    points = jnp.concatenate([points * s for s in sides], 1)
    turned = jnp.einsum("vij,vnj->vni", spine["rotation"], points, precision="highest")
    return unwarp(spine["origin"][:, None] + turned, parameters)


def whole_vertebrae(
    parameters: Any,
    lower_mm: Array,
    upper_mm: Array,
    *,
    protocol: Protocol | None = None,
    share: float = 0.8,
) -> Array:
    """Find the vertebrae that a field of view shows whole: VerSe annotates no others.

    Args:
        parameters: From `anatomy`.
        lower_mm: (3,) corner of the field of view, canonical LPS mm.
        upper_mm: (3,) opposite corner.
        protocol: From `scan_plan.protocol`, if points were displaced by `where`.
        share: A vertebra is whole if the field of view does not cut it above or below, and holds at
            least this share of its outermost points (VerSe annotates narrow sagittal scans, which
            cut transverse processes).

    Returns:
        (26,) bool, in the order of `parameters["spine"]["id"]`.
    """
    points = support_points(parameters)
    if protocol is not None:
        points = shown_at(points, protocol)
    within = (points >= lower_mm) & (points <= upper_mm)
    whole = jnp.all(within[..., 2], -1) & (jnp.mean(jnp.all(within, -1), -1) >= share)
    return whole & (parameters["spine"]["id"] > 0)


def keep_labels(labels: Array, ids: Array, kept: Array) -> Array:
    """Labels with those of vertebrae that are not `kept` (26,) set to 0; ids as in `anatomy`."""
    table = jnp.zeros(32, labels.dtype).at[ids].set(jnp.where(kept, ids, 0).astype(labels.dtype))
    return table.at[0].set(0)[labels]
