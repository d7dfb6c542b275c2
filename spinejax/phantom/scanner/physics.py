"""What a scanner makes of a phantom: field of view, blur, noise, streaks, offsets, in pure JAX.

`protocol(key, parameters)` chooses how a person is scanned, `where` displaces points as motion and
a tilted gantry do, `signal` turns clean HU into what a scanner would have stored. All are for one
person and of fixed shapes: the training stream maps them over slices, `acquisition` over the blocks
of a volume, so that both show the same world.

A scan that is read is smoothed and resampled before a network sees it. `signal` makes slices as
they look afterwards (`smoothing_mm`), and volumes as they are stored (`smoothing_mm=0`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom.body.once import when
from spinejax.phantom.body.tissues import sine
from spinejax.phantom.scanner import artefacts, noise_field

Array = jax.Array
Protocol = dict[str, Array]

SMOOTHING_MM = 0.75  # what scans undergo before a network sees them, see data/preprocess.py
LARGEST_HU = 3071.0  # of 12 bits
WHITE = 0.282  # white noise of voxels of 1 mm is as strong at low frequencies as this Gaussian's

# Kinds of scan: probability; slice axis (0 sagittal, 2 axial, 3 all axes alike); spacing in the
# plane and of slices, mm; extents along x, y, z, mm.
# fmt: off
_KINDS = np.array([
    (0.26, 0, 0.3, 1.1, 1.5, 3.5, 60, 110, 130, 230, 170, 520),  # reformatted for the spine
    (0.20, 2, 0.25, 0.7, 0.6, 3.0, 110, 240, 110, 240, 100, 420),  # small fields, axial
    (0.20, 2, 0.6, 1.0, 0.8, 5.0, 300, 450, 260, 420, 180, 560),  # chest or abdomen
    (0.10, 3, 0.8, 1.5, 0.8, 1.5, 80, 130, 100, 140, 76, 140),  # one vertebra cut out
    (0.24, 3, 1.0, 3.0, 1.0, 3.0, 200, 420, 180, 360, 180, 700),  # trunk, resampled
], np.float32)
# fmt: on
_TRUNK = np.array([False, False, True, False, True])
REGIONS = {
    "any": (0.7, 0.8, 1.5),
    "cervical": (1.0, 0.0, 0.0),
    "thoracic": (0.0, 1.0, 0.0),
    "lumbar": (0.0, 0.0, 1.0),
}
"""Region that a scan is of: how often a scan is centred on each cervical, thoracic and lumbar
vertebra. Lumbar and thoracic scans are more common than cervical ones."""
_WITH_PELVIS = 0.4  # share of the scans of the trunk that end below the hips, not about a vertebra


def _between(u: Array, low: Any, high: Any) -> Array:
    return low + (high - low) * u


def protocol(
    key: Array,
    parameters: dict[str, Any],
    *,
    min_spacing_mm: float = 0.25,
    max_spacing_mm: float = 5.0,
    min_extent_mm: float = 0.0,
    max_extent_mm: float = 700.0,
    max_voxels: int | None = None,
    region: str = "any",
) -> Protocol:
    """Choose how a person is scanned.

    Args:
        key: Random key.
        parameters: From `anatomy`.
        min_spacing_mm: Finest voxel size.
        max_spacing_mm: Coarsest voxel size.
        min_extent_mm: Least height of the field of view.
        max_extent_mm: Longest side of the field of view.
        max_voxels: Number of voxels that the field of view is made to fit: its extent gives way
            first, then the spacing.
        region: One of `REGIONS`, where the middle of the field of view lies.

    Returns:
        Arrays, lengths in mm: `lower` and `upper` (3,) corners of the field of view in canonical
        LPS; `spacing` (3,) of voxels; `slice_axis` () 0 to 2; `slice_mm` () thickness of slices,
        more or less than their spacing (overlap, gaps); `plane_blur` () standard deviation of the
        kernel's blur; `gradual` () that of bone's own edges; `blur` () that of edges in voxels of
        a scan, for `render`, without that of preprocessing; `noise` () standard deviation of the
        noise, HU, after `SMOOTHING_MM`, in the middle of a trunk; and what `where` and `signal`
        need.
    """
    keys = jax.random.split(key)
    u = jax.random.uniform(keys[0], (64,))
    n = jnp.clip(jax.random.normal(keys[1], (32,)), -2.5, 2.5)
    kinds = jnp.asarray(_KINDS)
    kind = jnp.sum(u[0] > jnp.cumsum(kinds[:, 0])[:-1])
    row = kinds[kind]
    fine = row[2] * (row[3] / row[2]) ** u[1]
    thick = jnp.maximum(row[4] * (row[5] / row[4]) ** u[2], fine)
    axis = row[1].astype(jnp.int32)
    extent = _between(u[5:8], row[6:12:2], row[7:12:2])
    square = (row[1] == 2) & (u[8] < 0.6)
    extent = extent.at[1].set(jnp.where(square, extent[0], extent[1]))
    extent = extent.at[2].set(jnp.maximum(extent[2], min_extent_mm))
    extent = jnp.minimum(extent, max_extent_mm)
    spacing = jnp.where(jnp.arange(3) == axis, thick, fine)
    spacing = jnp.clip(spacing, min_spacing_mm, max_spacing_mm)
    if max_voxels is not None:
        least = jnp.stack([jnp.asarray(96.0), jnp.asarray(106.0), jnp.asarray(min_extent_mm)])
        extent, spacing = _fitted(extent, spacing, least, max_spacing_mm, max_voxels)
    axis = jnp.where(axis > 2, 2, axis)
    # Slices are as thick as their spacing, thicker (overlap), or thinner (gaps).
    thickness = jnp.where(u[3] < 0.5, 1.0, jnp.where(u[3] < 0.8, _between(u[4], 1.0, 2.0), 0.6))
    slice_mm = spacing[axis] * thickness
    middle = _middle(parameters, u[9:16], extent, jnp.asarray(_TRUNK)[kind], region)
    half = 0.5 * extent

    # Kernels from soft to sharp; a sharp one's noise is high-pass, and edges overshoot.
    sharp = u[16] ** 1.3
    plane = jnp.maximum(_between(1.0 - sharp, 0.30, 0.75), 0.35 * jnp.min(spacing))
    # Scanners acquire axial slices, whatever is made of them afterwards.
    axial_mm = jnp.where(axis == 2, slice_mm, jnp.maximum(_between(u[33], 0.6, 1.5), spacing[2]))
    kernel = jnp.stack([plane, plane, 0.29 * axial_mm])
    kernel = jnp.where(jnp.arange(3) == axis, jnp.hypot(kernel, 0.29 * slice_mm), kernel)
    # Resampling to the grid of the network blurs by a triangle of the voxel's size.
    # Bone ends gradually, and most scans were reformatted before: on real CT edges are softer than
    # a kernel makes them, while noise is not (`detail` in statistics.py).
    gradual = 2.0 * u[35] ** 2
    blur = jnp.sqrt(jnp.mean(kernel**2 + spacing**2 / 12.0) + gradual**2)
    grain_mm = jnp.maximum(jnp.stack([0.8, 0.8, 1.0]) * kernel, WHITE * spacing)
    # Motion: seldom, and of a few millimetres.
    moves = u[17] < 0.06
    tilted = u[18] < 0.10
    # Pillows and reformatting along the column turn the body most in the sagittal plane, and more
    # in short scans, which follow a part of the column, than in long ones.
    nod = 11.0 * jnp.minimum(1.0, 200.0 / extent[2])
    turn = jnp.deg2rad(jnp.stack([nod, jnp.asarray(1.5), jnp.asarray(2.5)]) * n[0:3])
    wide = jnp.maximum(extent[0], extent[1])
    waves = n[10:18].reshape(2, 4) * jnp.array([0.03, 0.03, 0.02, 3.0])
    circle = (u[19] < 0.3) & jnp.asarray(_TRUNK)[kind]
    far_off = (u[20] < 0.05) & ~jnp.asarray(_TRUNK)[kind]
    return {
        "lower": middle - half,
        "upper": middle + half,
        "kind": kind,
        "spacing": spacing,
        "slice_axis": axis,
        "slice_mm": slice_mm,
        "plane_blur": plane,
        "axial_mm": axial_mm,
        "blur": blur,
        "gradual": gradual,
        "grain": grain_mm,
        "wide_grain": jnp.hypot(grain_mm, jnp.maximum(1.05, 0.7 * spacing)),
        "highpass": jnp.array([1.0, 1.0, 0.0]) * jnp.where(u[21] < 0.2, 0.0, 0.72 * sharp**0.5),
        "noise": jnp.clip(jnp.exp(jnp.log(7.0) + 0.7 * n[3] + 0.9 * sharp), 2.0, 70.0),
        "modulation": u[22],
        "starvation": 0.8 * u[23],
        "sharpness": jnp.where(u[24] < 0.3, 0.0, 1.4 * sharp),
        "sharp_mm": _between(u[25], 0.7, 1.4),
        "voltage": jnp.exp(0.10 * n[4]),  # of the tube: bone and iodine brighter or darker
        "offset": 6.0 * n[5],
        "cupping": 9.0 * n[6],
        "shading": 4.0 * u[26],
        "shading_wave": waves,
        "metal_gain": _between(u[27], 0.3, 1.2),
        "metal_angle": 2 * jnp.pi * u[34],
        "clip": jnp.where(u[28] < 0.85, LARGEST_HU, jnp.where(u[28] < 0.93, 2000.0, 8000.0)),
        "circle_mm": jnp.where(circle, _between(u[29], 0.5, 0.56) * wide, 1e5)
        - jnp.where(far_off, 1e5 - 0.68 * wide, 0.0),
        "outside": jnp.where(u[30] < 0.85, -1024.0, jnp.where(u[30] < 0.95, -2048.0, 0.0)),
        "motion_mm": jnp.where(moves, 1.0 * jnp.abs(n[7]), 0.0),
        "motion_wave": 2 * jnp.pi / _between(u[31], 25.0, 90.0),
        "motion_phase": 2 * jnp.pi * u[32],
        "tilt": jnp.where(tilted, jnp.tan(jnp.deg2rad(9.0 * n[8])), 0.0),
        "turn": turn,
    }


def _fitted(
    extent: Array, spacing: Array, least: Array, max_spacing_mm: Any, max_voxels: int
) -> tuple[Array, Array]:
    """Extent and spacing of at most that many voxels, where the limits allow it."""
    least = jnp.minimum(extent, least)
    for _ in range(5):  # what one axis cannot give, the others must
        excess = jnp.maximum(jnp.prod(extent / spacing) / max_voxels, 1.0)
        extent = jnp.maximum(extent * excess ** (-1.0 / 3.0), least)
    for _ in range(3):
        excess = jnp.maximum(jnp.prod(extent / spacing) / max_voxels, 1.0)
        spacing = jnp.minimum(spacing * excess ** (1.0 / 3.0), max_spacing_mm)
    return extent, spacing


def at_rest() -> Protocol:
    """As much of a protocol as `where` needs, of a scan without any displacement."""
    still = {name: jnp.zeros(()) for name in ("motion_mm", "motion_wave", "motion_phase", "tilt")}
    return {**still, **{name: jnp.zeros(3) for name in ("lower", "upper", "turn")}}


def _middle(
    parameters: dict[str, Any], u: Array, extent: Array, trunk: Array, region: str
) -> Array:
    """Middle of the field of view: a random vertebra's height, and the spine or body there.

    A share of the scans of the trunk reaches to the hips instead.
    """
    spine = parameters["spine"]
    ids, origins = spine["id"], spine["origin"]
    cervical, thoracic, lumbar = REGIONS[region]
    thorax = (ids < 20) | (ids == 28)
    weight = jnp.where(ids < 8, cervical, jnp.where(thorax, thoracic, lumbar)) * (ids > 0)
    share = jnp.cumsum(weight) / jnp.sum(weight)
    z = origins[jnp.sum(u[0] > share[:-1]), 2] + 20.0 * (u[1] - 0.5)
    inside = (jnp.abs(origins[:, 2] - z) < 0.5 * extent[2]) & (ids > 0)
    count = jnp.maximum(jnp.sum(inside), 1)
    spot = jnp.sum(jnp.where(inside[:, None], origins[:, :2], 0.0), 0) / count
    room = jnp.maximum(extent - jnp.array([90.0, 112.0, 0.0]), 0.0)
    x = spot[0] + 0.4 * (u[2] - 0.5) * jnp.minimum(room[0], 80.0)
    # Wide fields show more of the front; those of the trunk are centred on the body.
    y = spot[1] + 14.0 - 0.5 * u[3] * room[1]
    sacrum = parameters["sacrum"]["origin"][2]
    below = jnp.minimum(_between(u[5], 40.0, 170.0), extent[2] - 60.0)  # L5 stays in view
    pelvis = trunk & (u[6] < (_WITH_PELVIS if lumbar else 0.0))
    z = jnp.where(pelvis, sacrum - below + 0.5 * extent[2], z)
    row = artefacts.outline(z[None], parameters["profile"])
    body = row["y"][0] + 40.0 * (u[4] - 0.5)
    return jnp.stack([x, jnp.where(trunk, body, y), z])


def _turn(protocol: Protocol) -> tuple[Array, Array]:
    """Cosines and sines (3,) of the angles, computed once rather than for every point."""
    turn, zero = protocol["turn"], jnp.zeros(3)
    return when(turn[0] < jnp.inf, lambda: (jnp.cos(turn), jnp.sin(turn)), (zero, zero))


def where(points: Array, protocol: Protocol) -> Array:
    """Points of the body that a scan shows at `points` (..., 3): turned, tilted, moving.

    The patient lies a little askew; a tilted gantry whose tilt was lost shears the image; motion
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
    """Where a scan shows points (..., 3) of the body: the inverse of `where`."""
    middle = 0.5 * (protocol["lower"] + protocol["upper"])
    x, y, z = (points[..., i] - middle[i] for i in range(3))
    cos, sin = _turn(protocol)
    x, y = x * cos[2] + y * sin[2], y * cos[2] - x * sin[2]
    z, x = z * cos[1] + x * sin[1], x * cos[1] - z * sin[1]
    y, z = y * cos[0] + z * sin[0], z * cos[0] - y * sin[0]
    wave = protocol["motion_mm"] * sine(protocol["motion_wave"] * z + protocol["motion_phase"])
    return jnp.stack([x - 0.4 * wave, y - protocol["tilt"] * z - wave, z], -1) + middle


def noise_level(protocol: Protocol, smoothing_mm: Any) -> Array:
    """Standard deviation of the noise, HU, after smoothing of that much; see `protocol`."""
    ratio = noise_field.energy(protocol, smoothing_mm) / noise_field.energy(protocol, SMOOTHING_MM)
    return jnp.minimum(protocol["noise"] * jnp.sqrt(jnp.prod(ratio)), 160.0)


def signal(
    key: Array,
    hu: Array,
    points: Array,
    parameters: dict[str, Any],
    protocol: Protocol,
    pixel_mm: Any,
    *,
    smoothing_mm: float = SMOOTHING_MM,
    first: tuple[Any, ...] = (0, 0, 0),
) -> Array:
    """What a scanner stores of clean HU.

    Args:
        key: Random key of the noise; the same one for all blocks of a volume.
        hu: (h, w) or (d, h, w), from `render` at `where(points, protocol)`.
        points: The grid, (*hu.shape, 3), canonical LPS mm, axes along x, y or z.
        parameters: From `anatomy`.
        protocol: From `protocol`.
        pixel_mm: Distance of neighbours, a number or one per axis, for axes of a single pixel.
        smoothing_mm: Standard deviation of the smoothing that the scan has undergone since.
        first: Index of the block's first pixel, for blocks of a volume.

    Returns:
        HU (*hu.shape) float32; what lies beyond the field of view is -1024.
    """
    frame = artefacts.frame(points, pixel_mm)
    hu = hu + (protocol["voltage"] - 1.0) * jnp.maximum(hu, 0.0)
    # Kernels work in the axial plane: along z, only slices are thick.
    share = 1.0 - frame["direction"][:, 2] ** 2
    hu = hu + protocol["sharpness"] * noise_field.detail(
        hu, share * protocol["sharp_mm"] / frame["step"]
    )
    body = artefacts.outline(points[..., 2], parameters["profile"])
    body = artefacts.attenuation(points, body, protocol)
    hu = hu + body["shade"] + protocol["offset"]
    hu = hu + protocol["metal_gain"] * artefacts.metal(points, parameters, protocol)
    seeds = jax.random.bits(key, (2,))

    def noise(seed: Array, streaks: bool) -> Array:
        return noise_field.noise(
            seed, hu.shape, first, frame, protocol, smoothing_mm, streaks=streaks
        )

    streaks = when(
        jnp.any(body["streaks"] > 0.02),
        lambda: body["streaks"] * noise(seeds[1], True),
        jnp.zeros_like(hu),
    )
    hu = hu + noise_level(protocol, smoothing_mm) * (
        body["noise"] * noise(seeds[0], False) + streaks
    )
    hu = jnp.clip(hu, -1024.0, protocol["clip"])
    middle = 0.5 * (protocol["lower"] + protocol["upper"])
    off = jnp.hypot(points[..., 0] - middle[0], points[..., 1] - middle[1])
    hu = jnp.where(off > protocol["circle_mm"], protocol["outside"], hu)
    slack = 0.51 * jnp.max(frame["step"])
    seen = (points >= protocol["lower"] - slack) & (points <= protocol["upper"] + slack)
    return jnp.where(jnp.all(seen, -1), hu, -1024.0)
