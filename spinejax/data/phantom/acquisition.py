"""What a scanner makes of a phantom: field of view, voxels, blur, noise, orientation.

Blur is part of rendering (`edge_mm`); here is chosen how much of it, where the voxels lie, which
vertebrae the field of view keeps whole, and what is added afterwards.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import ndimage

from spinejax.data.phantom import scanner
from spinejax.data.phantom.render import render_block
from spinejax.data.phantom.warp import unwarp

Array = jax.Array
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Phantoms live in LPS millimetres, files in NIfTI's RAS+ world."""

_TILE = (16, 16, 8)  # voxels of one block
_TILES = 64  # blocks of one compiled call


@dataclass(frozen=True, eq=False)
class Scan:
    """Settings of one scan of a phantom.

    Attributes:
        shape: Voxels along the canonical (L, P, S) axes.
        affine: (4, 4), index -> canonical LPS mm.
        orientation: Axes on disk, e.g. "PIR".
        edge_mm: Blur, standard deviation.
        noise_hu: Standard deviation of the noise.
        grain_voxels: Standard deviation of the noise's correlation, voxels; 0 is white noise.
        circle: Whether the reconstruction circle is seen in the axial plane.
        outside_hu: Value outside of it.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    orientation: str
    edge_mm: float
    noise_hu: float
    grain_voxels: float
    circle: bool
    outside_hu: int


def plan_scan(
    rng: np.random.Generator,
    ids: np.ndarray,
    origins_mm: np.ndarray,
    orientations: tuple[str, ...],
    *,
    min_spacing_mm: float,
    max_spacing_mm: float,
    min_extent_mm: float,
    max_extent_mm: float,
    max_voxels: int,
) -> Scan:
    """Choose a field of view around a random vertebra, and the rest of a scan's settings.

    Args:
        rng: Source of every choice.
        ids: (26,) VerSe ids, 0 where there is none.
        origins_mm: (26, 3) body centroids, canonical LPS mm.
        orientations: Codes to choose the axes on disk from.
        min_spacing_mm: Finest voxel size in the plane.
        max_spacing_mm: Coarsest voxel size along any axis.
        min_extent_mm: Least height (S-I) of the field of view. The taller it is, the fewer of its
            vertebrae are cut.
        max_extent_mm: Longest side of the field of view.
        max_voxels: Number of voxels that the field of view is made to fit: the extent gives way
            first, then the spacing.
    """
    fine = float(np.exp(rng.uniform(np.log(min_spacing_mm), np.log(max_spacing_mm))))
    thick = float(rng.uniform(fine, max_spacing_mm))
    axis = rng.choice(4, p=[0.35, 0.1, 0.25, 0.3])  # thick slices: sagittal, coronal, axial, none
    spacing = np.full(3, max(fine, min(0.75, max_spacing_mm)) if axis == 3 else fine)
    if axis < 3:
        spacing[axis] = thick
    low = np.minimum([96.0, 106.0, min_extent_mm], max_extent_mm)
    high = np.maximum(low, np.minimum([300.0, 260.0, 520.0], max_extent_mm))
    extent = low + (high - low) * rng.uniform(size=3) ** np.array([1.6, 1.3, 0.8])
    for _ in range(40):
        if np.prod(extent / spacing) <= max_voxels:
            break
        if axis < 3:
            spacing[axis] = max_spacing_mm
        if np.all(extent <= low * 1.01):
            spacing = np.minimum(spacing * 1.08, max_spacing_mm)
        extent = np.maximum(extent * 0.93, low)
    shape = np.maximum(np.round(extent / spacing), 8).astype(int)
    present = np.flatnonzero(ids)
    # Lumbar and thoracic scans are more common than cervical ones.
    weight = np.where(ids[present] < 8, 0.6, np.where(ids[present] < 20, 0.8, 1.6))
    middle = origins_mm[rng.choice(present, p=weight / weight.sum())].copy()
    middle[2] += rng.uniform(-10, 10)
    inside = np.abs(origins_mm[present][:, 2] - middle[2]) < 0.5 * extent[2]
    middle[:2] = origins_mm[present][inside][:, :2].mean(0)
    room = np.maximum(extent[:2] - low[:2], 0.0)
    middle[0] += rng.uniform(-0.25, 0.25) * min(room[0], 80.0)
    middle[1] += 14.0 - rng.uniform(0.0, 0.5) * room[1]  # wide fields show more of the front
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = middle - spacing * (shape - 1) / 2
    sharp = rng.uniform(0.8, 1.5)
    return Scan(
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        affine=affine,
        orientation=str(rng.choice(np.array(orientations))),
        edge_mm=float(max(0.3, 0.42 * np.prod(spacing) ** (1 / 3) * sharp)),
        # Sharp kernels and fine voxels are noisy (10 to 90 HU).
        noise_hu=float(np.clip(rng.gamma(2.2, 14.0) / sharp + 6.0, 8.0, 90.0)),
        grain_voxels=float(rng.choice([0.0, 0.6, 0.9])),
        circle=bool(rng.random() < 0.15),
        outside_hu=int(rng.choice([-1024, -2048])),
    )


@jax.jit
def _tiles(parameters: Any, starts: Array, affine: Array, edge_mm: Array) -> tuple[Array, Array]:
    """HU and labels of blocks of voxels that begin at `starts` (n, 3)."""
    offset = jnp.stack(jnp.meshgrid(*map(jnp.arange, _TILE), indexing="ij"), -1).reshape(-1, 3)

    def one(start: Array) -> tuple[Array, Array]:
        index = (start + offset).astype(jnp.float32)
        # Millimetres from index by plain arithmetic: a matrix product may round on accelerators.
        points = affine[:3, 3] + sum(index[:, i : i + 1] * affine[:3, i] for i in range(3))
        hu, label = render_block(points, parameters, edge_mm)
        return hu, label.astype(jnp.uint8)

    return lax.map(one, starts)


def render_volume(
    parameters: Any, shape: tuple[int, int, int], affine: np.ndarray, edge_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a phantom on a grid.

    Args:
        parameters: From `anatomy`.
        shape: Voxels along each axis.
        affine: (4, 4), index -> canonical LPS mm.
        edge_mm: See `render`.

    Returns:
        HU (x, y, z) float32 and VerSe labels (x, y, z) uint8, all vertebrae, without noise.
    """
    counts = [-(-n // t) for n, t in zip(shape, _TILE, strict=True)]
    starts = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), -1).reshape(-1, 3)
    starts = starts * np.array(_TILE)
    padded = np.concatenate([starts, np.repeat(starts[-1:], -len(starts) % _TILES, 0)])
    matrix, edge = jnp.asarray(affine, jnp.float32), jnp.float32(edge_mm)

    def draw(first: int) -> tuple[np.ndarray, np.ndarray]:
        hu, label = _tiles(parameters, jnp.asarray(padded[first : first + _TILES]), matrix, edge)
        return np.asarray(hu), np.asarray(label)

    # Each call runs on one core (its blocks are small): two at a time.
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(draw, range(0, len(padded), _TILES)))

    def assemble(blocks: np.ndarray) -> np.ndarray:
        grid = blocks[: len(starts)].reshape(*counts, *_TILE).transpose(0, 3, 1, 4, 2, 5)
        full = grid.reshape([c * t for c, t in zip(counts, _TILE, strict=True)])
        return np.ascontiguousarray(full[: shape[0], : shape[1], : shape[2]])

    return assemble(np.concatenate([p[0] for p in parts])), assemble(
        np.concatenate([p[1] for p in parts])
    )


def support_points(parameters: Any) -> Array:
    """Points near the outermost reaches of each vertebra: (26, n, 3), canonical LPS mm."""
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
    protocol: scanner.Protocol | None = None,
    share: float = 0.8,
) -> Array:
    """Which vertebrae a field of view shows whole: VerSe annotates no others.

    Args:
        parameters: From `anatomy`.
        lower_mm: (3,) corner of the field of view, canonical LPS mm.
        upper_mm: (3,) opposite corner.
        protocol: From `scanner.protocol`, if points were displaced by `scanner.where`.
        share: A vertebra counts as whole if nothing of it is cut above or below, and at most
            1 - share of its outermost points is cut at the sides (narrow sagittal scans, whose
            transverse processes are cut, are annotated in VerSe).

    Returns:
        (26,) bool, in the order of `parameters["spine"]["id"]`.
    """
    points = support_points(parameters)
    if protocol is not None:
        points = scanner.shown_at(points, protocol)
    within = (points >= lower_mm) & (points <= upper_mm)
    whole = jnp.all(within[..., 2], -1) & (jnp.mean(jnp.all(within, -1), -1) >= share)
    return whole & (parameters["spine"]["id"] > 0)


def keep_labels(labels: Array, ids: Array, kept: Array) -> Array:
    """Labels with those of vertebrae that are not `kept` (26,) set to 0; ids as in `anatomy`."""
    table = jnp.zeros(32, labels.dtype).at[ids].set(jnp.where(kept, ids, 0).astype(labels.dtype))
    return table.at[0].set(0)[labels]


def acquire(rng: np.random.Generator, hu: np.ndarray, scan: Scan) -> np.ndarray:
    """Noise, the reconstruction circle and rounding: (x, y, z) int16 on the canonical grid."""
    noise = rng.standard_normal(hu.shape, np.float32)
    if scan.grain_voxels > 0:
        noise = ndimage.gaussian_filter(noise, scan.grain_voxels)
        noise /= noise.std() + 1e-6
    out = np.clip(hu + scan.noise_hu * noise, -1024, 3071)
    if scan.circle:
        x, y = (np.linspace(-1, 1, n) for n in hu.shape[:2])
        # Fields of view are cut from the circle, so that only corners lie outside.
        out[x[:, None] ** 2 + y[None] ** 2 > 1.6] = scan.outside_hu
    return np.round(out).astype(np.int16)
