"""The random choices of a scan of a person. No other part of scanner/ draws random numbers.

Field of view, voxels, slices, kernel, noise, motion, errors of calibration; for files also the axes
and the type on disk.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom.body import scene
from spinejax.phantom.draws import Draws, draw

Array = jax.Array
Protocol = dict[str, Array]

LARGEST_HU = 3071.0  # of 12 bits
_WHITE = 0.282  # white noise of voxels of 1 mm is as strong at low frequencies as this Gaussian's

# Kinds of scan: probability; slice axis (0 sagittal, 2 axial, 3 all axes alike); spacing in the
# plane and of slices, mm; extents along x, y, z, mm.
# fmt: off
_KINDS = np.array([
    (0.24, 0, 0.3, 1.1, 1.5, 3.5, 60, 110, 130, 230, 170, 520),  # reformatted for the spine
    (0.18, 2, 0.25, 0.7, 0.6, 3.0, 110, 240, 110, 240, 100, 420),  # small fields, axial
    (0.18, 2, 0.6, 1.0, 0.8, 3.5, 300, 450, 260, 420, 180, 560),  # chest or abdomen
    (0.10, 2, 0.6, 1.0, 3.5, 5.5, 300, 450, 260, 420, 180, 560),  # the same in thick slices
    (0.10, 3, 0.8, 1.5, 0.8, 1.5, 80, 130, 100, 140, 76, 140),  # one vertebra cut out
    (0.20, 3, 1.0, 3.0, 1.0, 3.0, 200, 420, 180, 360, 180, 700),  # trunk, resampled
], np.float32)
# fmt: on
_TRUNK = np.array([False, False, True, True, False, True])
REGIONS = {
    "any": (0.7, 0.8, 1.5),
    "cervical": (1.0, 0.0, 0.0),
    "thoracic": (0.0, 1.0, 0.0),
    "lumbar": (0.0, 0.0, 1.0),
}
"""Weights of each cervical, thoracic and lumbar vertebra as the centre of a scan, by region. Lumbar
and thoracic scans are more common than cervical ones."""
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
    max_voxels: float = math.inf,
    region: str | Array = "any",
) -> Protocol:
    """Draw how a person is scanned.

    Args:
        key: Random key.
        parameters: From `anatomy`.
        min_spacing_mm: Finest voxel size.
        max_spacing_mm: Coarsest voxel size.
        min_extent_mm: Least height of the field of view.
        max_extent_mm: Longest side of the field of view.
        max_voxels: Number of voxels that the field of view is made to fit: its extent gives way
            first, then the spacing.
        region: One of `REGIONS`, where the middle of the field of view lies, or the weights (3,)
            that `REGIONS` holds.

    Returns:
        Arrays, lengths in mm: `lower` and `upper` (3,) corners of the field of view in canonical
        LPS; `spacing` (3,) of voxels; `slice_axis` () 0 to 2; `slice_mm` () thickness of slices,
        more or less than their spacing (overlap, gaps); `axial_mm` and `pitch_mm` () thickness and
        distance of the axial slices that were acquired; standard deviations of blur: `plane_blur`
        () of the kernel, `gradual` () of bone's own edges, `blur` () of edges in a scan's voxels
        before preprocessing, for `render`, `axial_edge` () the same within an axial slice alone;
        `noise` () standard deviation of the noise, HU, after `physics.SMOOTHING_MM`, in the middle
        of a trunk; `noise_seed` (2,) uint32 of the noise and of its streaks; and the numbers that
        `view.where` and `physics.signal` need.
    """
    spacing_mm, extent_mm = (min_spacing_mm, max_spacing_mm), (min_extent_mm, max_extent_mm)
    weights = jnp.asarray(REGIONS[region] if isinstance(region, str) else region)
    return draw(key, _protocol, parameters, spacing_mm, extent_mm, max_voxels, weights)


def _protocol(
    draws: Draws,
    parameters: dict[str, Any],
    spacing_mm: tuple[float, float],
    extent_mm: tuple[float, float],
    max_voxels: float,
    weights: Array,
) -> Protocol:
    """`protocol`, given random numbers; the limits are (least, most)."""
    uniform, clipped = draws.uniform, draws.clipped
    kinds = jnp.asarray(_KINDS)
    kind = jnp.sum(uniform("kind") > jnp.cumsum(kinds[:, 0])[:-1])
    row = kinds[kind]
    fine = row[2] * (row[3] / row[2]) ** uniform("pixel")
    thick = jnp.maximum(row[4] * (row[5] / row[4]) ** uniform("slice"), fine)
    axis = row[1].astype(jnp.int32)
    stacked = axis == 2  # axial slices as they were reconstructed
    extent = _between(uniform("extent", 3), row[6:12:2], row[7:12:2])
    square = (row[1] == 2) & (uniform("square") < 0.6)
    extent = extent.at[1].set(jnp.where(square, extent[0], extent[1]))
    extent = extent.at[2].set(jnp.maximum(extent[2], extent_mm[0]))
    extent = jnp.minimum(extent, extent_mm[1])
    spacing = jnp.where(jnp.arange(3) == axis, thick, fine)
    spacing = jnp.clip(spacing, *spacing_mm)
    least = jnp.stack([jnp.asarray(96.0), jnp.asarray(106.0), jnp.asarray(extent_mm[0])])
    extent, spacing = _fitted(extent, spacing, least, spacing_mm[1], max_voxels)
    axis = jnp.where(axis > 2, 2, axis)
    # Slices are as thick as their spacing, thicker (overlap), or thinner (gaps).
    u, overlap = uniform("thickness"), _between(uniform("overlap"), 1.0, 2.0)
    thickness = jnp.where(u < 0.5, 1.0, jnp.where(u < 0.8, overlap, 0.6))
    slice_mm = spacing[axis] * thickness
    trunk = jnp.asarray(_TRUNK)[kind]
    middle = _middle(draws.of("middle"), parameters, extent, trunk, weights)
    half = 0.5 * extent

    # Kernels from soft to sharp; a sharp one's noise is high-pass, and edges overshoot.
    sharp = uniform("sharp") ** 1.3
    plane = jnp.maximum(_between(1.0 - sharp, 0.30, 0.75), 0.35 * jnp.min(spacing))
    # Scanners acquire axial slices, whatever is made of them afterwards.
    axial_mm = jnp.maximum(_between(uniform("axial"), 0.6, 1.5), spacing[2])
    axial_mm = jnp.where(axis == 2, slice_mm, axial_mm)
    # Some of the scans that were resampled have thick slices behind them.
    coarse = uniform("coarse") < jnp.where(stacked, 0.0, jnp.where(axis == 2, 0.35, 0.12))
    slabs = _between(uniform("coarse slices"), 2.0, 5.0)
    axial_mm = jnp.where(coarse, jnp.maximum(axial_mm, slabs), axial_mm)
    kernel = jnp.stack([plane, plane, 0.29 * axial_mm])
    kernel = jnp.where(jnp.arange(3) == axis, jnp.hypot(kernel, 0.29 * slice_mm), kernel)
    # Resampling to the grid of the network blurs by a triangle of the voxel's size. Bone ends
    # gradually, and most scans were reformatted before: on real CT edges are softer than a kernel
    # makes them, while noise is not (`measures.detail`).
    gradual = 2.0 * uniform("gradual") ** 2
    spread = kernel**2 + spacing**2 / 12.0
    blur = jnp.sqrt(jnp.mean(spread) + gradual**2)
    grain_mm = jnp.maximum(jnp.stack([0.8, 0.8, 1.0]) * kernel, _WHITE * spacing)
    # Motion: seldom, and of a few millimetres.
    moves = uniform("moves") < 0.06
    tilted = uniform("tilted") < 0.10
    # Pillows and reformatting along the column turn the body most in the sagittal plane, and more
    # in short scans, which follow a part of the column, than in long ones.
    nod = 11.0 * jnp.minimum(1.0, 200.0 / extent[2])
    turn = jnp.deg2rad(jnp.stack([nod, jnp.asarray(1.5), jnp.asarray(2.5)]) * clipped("turn", 3))
    wide = jnp.maximum(extent[0], extent[1])
    waves = clipped("shading", 2, 4) * jnp.array([0.03, 0.03, 0.02, 3.0])
    circle = (uniform("circle") < 0.3) & trunk
    far_off = (uniform("far off") < 0.05) & ~trunk
    highpass = jnp.where(uniform("smooth noise") < 0.2, 0.0, 0.72 * sharp**0.5)
    u, v = uniform("clip"), uniform("outside")
    return {
        "lower": middle - half,
        "upper": middle + half,
        "spacing": spacing,
        "slice_axis": axis,
        "slice_mm": slice_mm,
        "plane_blur": plane,
        "axial_mm": axial_mm,
        "pitch_mm": jnp.where(coarse, axial_mm, spacing[2]),
        "blur": blur,
        "axial_edge": jnp.sqrt(jnp.mean(spread[:2]) + gradual**2),
        "gradual": gradual,
        "grain": grain_mm,
        "wide_grain": jnp.hypot(grain_mm, jnp.maximum(1.05, 0.7 * spacing)),
        "highpass": jnp.array([1.0, 1.0, 0.0]) * highpass,
        "noise": jnp.clip(jnp.exp(jnp.log(7.0) + 0.7 * clipped("noise") + 0.9 * sharp), 2.0, 70.0),
        "noise_seed": draws.seed("noise seed", 2),
        "modulation": uniform("modulation"),
        "starvation": 0.8 * uniform("starvation"),
        "sharpness": jnp.where(uniform("plain edges") < 0.3, 0.0, 1.4 * sharp),
        "sharp_mm": _between(uniform("overshoot"), 0.7, 1.4),
        # The tube's voltage makes bone and iodine brighter or darker.
        "voltage": jnp.exp(0.10 * clipped("voltage")),
        "offset": 6.0 * clipped("offset"),
        "cupping": 9.0 * clipped("cupping"),
        "shading": 4.0 * uniform("shading strength"),
        "shading_wave": waves,
        "metal_gain": _between(uniform("metal"), 0.3, 1.2),
        "metal_angle": 2 * jnp.pi * uniform("metal angle"),
        "clip": jnp.where(u < 0.85, LARGEST_HU, jnp.where(u < 0.93, 2000.0, 8000.0)),
        "circle_mm": jnp.where(circle, _between(uniform("circle size"), 0.5, 0.56) * wide, 1e5)
        - jnp.where(far_off, 1e5 - 0.68 * wide, 0.0),
        "outside": jnp.where(v < 0.85, -1024.0, jnp.where(v < 0.95, -2048.0, 0.0)),
        "motion_mm": jnp.where(moves, 1.0 * jnp.abs(clipped("motion")), 0.0),
        "motion_wave": 2 * jnp.pi / _between(uniform("motion wave"), 25.0, 90.0),
        "motion_phase": 2 * jnp.pi * uniform("motion phase"),
        "tilt": jnp.where(tilted, jnp.tan(jnp.deg2rad(9.0 * clipped("tilt"))), 0.0),
        "turn": turn,
    }


def _fitted(
    extent: Array, spacing: Array, least: Array, max_spacing_mm: Any, max_voxels: float
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


def _middle(
    draws: Draws, parameters: dict[str, Any], extent: Array, trunk: Array, weights: Array
) -> Array:
    """Middle of the field of view: a random vertebra's height, and the spine or body there.

    A share of the scans of the trunk reaches to the hips instead.
    """
    uniform, spine = draws.uniform, parameters["spine"]
    ids, origins = spine["id"], spine["origin"]
    cervical, thoracic, lumbar = weights
    thorax = (ids < 20) | (ids == 28)
    weight = jnp.where(ids < 8, cervical, jnp.where(thorax, thoracic, lumbar)) * (ids > 0)
    share = jnp.cumsum(weight) / jnp.sum(weight)
    z = origins[jnp.sum(uniform("vertebra") > share[:-1]), 2] + 20.0 * (uniform("z") - 0.5)
    inside = (jnp.abs(origins[:, 2] - z) < 0.5 * extent[2]) & (ids > 0)
    count = jnp.maximum(jnp.sum(inside), 1)
    spot = jnp.sum(jnp.where(inside[:, None], origins[:, :2], 0.0), 0) / count
    room = jnp.maximum(extent - jnp.array([90.0, 112.0, 0.0]), 0.0)
    x = spot[0] + 0.4 * (uniform("x") - 0.5) * jnp.minimum(room[0], 80.0)
    # Wide fields show more of the front; those of the trunk are centred on the body.
    y = spot[1] + 14.0 - 0.5 * uniform("front") * room[1]
    sacrum = parameters["sacrum"]["origin"][2]
    below = jnp.minimum(
        _between(uniform("below"), 40.0, 170.0), extent[2] - 60.0
    )  # L5 stays in view
    pelvis = trunk & (uniform("pelvis") < jnp.where(lumbar > 0, _WITH_PELVIS, 0.0))
    z = jnp.where(pelvis, sacrum - below + 0.5 * extent[2], z)
    row = scene.outline(z[None], parameters["profile"])
    body = row["y"][0] + 40.0 * (uniform("y") - 0.5)
    return jnp.stack([x, jnp.where(trunk, body, y), z])


@dataclass(frozen=True)
class Storage:
    """The storage of a volume on disk.

    Attributes:
        dtype: Of the stored values.
        slope: Stored value * slope + inter is HU.
        inter: See `slope`.
        compressed: .nii.gz rather than .nii.
    """

    dtype: str = "int16"
    slope: float = 1.0
    inter: float = 0.0
    compressed: bool = True


_STORAGES = (
    Storage(),
    Storage("uint16", 1.0, -8192.0),
    Storage("int16", 0.5, 1024.0),
    Storage("int32"),
    Storage("float32"),
)
_STORAGE_ODDS = (0.66, 0.12, 0.06, 0.08, 0.08)


@dataclass(frozen=True, eq=False)
class Scan:
    """One scan of a phantom.

    Attributes:
        shape: Voxels along the canonical (L, P, S) axes.
        affine: (4, 4), index -> canonical LPS mm.
        orientation: Axes on disk, e.g. "PIR".
        protocol: From `protocol`; its corners are the outermost voxels' centres.
        storage: Type on disk.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    orientation: str
    protocol: Protocol
    storage: Storage


def plan_scan(rng: np.random.Generator, protocol: Protocol, orientations: tuple[str, ...]) -> Scan:
    """Draw how files hold a scan.

    Args:
        rng: Draws orientation and type on disk, which only files have.
        protocol: From `protocol`.
        orientations: Codes to choose the axes on disk from.
    """
    chosen = dict(protocol)
    lower, upper, spacing = (
        np.asarray(chosen[name], np.float64) for name in ("lower", "upper", "spacing")
    )
    spacing = np.round(spacing, 4)
    x, y, z = (int(n) for n in np.maximum(np.round((upper - lower) / spacing), 8))
    affine = np.diag([*spacing, 1.0])
    half = 0.5 * spacing * (np.array([x, y, z]) - 1)
    affine[:3, 3] = 0.5 * (lower + upper) - half
    chosen["lower"] = jnp.asarray(affine[:3, 3], jnp.float32)
    chosen["upper"] = jnp.asarray(affine[:3, 3] + 2.0 * half, jnp.float32)
    storage = _STORAGES[int(rng.choice(len(_STORAGES), p=_STORAGE_ODDS))]
    if rng.random() < 0.1:
        storage = Storage(storage.dtype, storage.slope, storage.inter, compressed=False)
    orientation = str(rng.choice(np.array(orientations)))
    return Scan((x, y, z), affine, orientation, chosen, storage)
