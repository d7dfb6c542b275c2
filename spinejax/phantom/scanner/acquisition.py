"""Volumes as a scanner stores them: voxels, thick slices, the signal, the type on disk.

What a scan looks like is decided in `scanner`, for slices of the training stream and for volumes
alike; here points become grids, and blocks of them a whole volume.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spinejax.phantom.body.render import render_block
from spinejax.phantom.body.warp import unwarp
from spinejax.phantom.scanner import noise_field, physics

Array = jax.Array
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Phantoms live in LPS millimetres, files in NIfTI's RAS+ world."""

_TILE = (16, 16, 8)  # voxels of one block
_TILES = 64  # blocks of one compiled call
_CORE = 48  # voxels along each side of a block that gets its signal
_MARGIN_MM = 14.0  # around a vertebra's outermost points: canal, discs and the blur of its edges
_SUB_SLICE_MM = 1.0


@dataclass(frozen=True)
class Storage:
    """How a volume lies on disk.

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
    """Settings of one scan of a phantom.

    Attributes:
        shape: Voxels along the canonical (L, P, S) axes.
        affine: (4, 4), index -> canonical LPS mm.
        orientation: Axes on disk, e.g. "PIR".
        protocol: From `scanner.protocol`; its corners are the outermost voxels' centres.
        storage: Type on disk.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    orientation: str
    protocol: physics.Protocol
    storage: Storage


@partial(jax.jit, static_argnames=("max_voxels", "region"))
def _protocol(
    key: Array, parameters: Any, limits: dict[str, float], max_voxels: int, region: str
) -> physics.Protocol:
    return physics.protocol(key, parameters, max_voxels=max_voxels, region=region, **limits)


def plan_scan(
    key: Array,
    rng: np.random.Generator,
    parameters: Any,
    orientations: tuple[str, ...],
    limits: Mapping[str, Any],
) -> Scan:
    """Choose a scan of a person.

    Args:
        key: Of the scanner's choices.
        rng: Source of what only files have: orientation and type on disk.
        parameters: From `anatomy`.
        orientations: Codes to choose the axes on disk from.
        limits: min_spacing_mm, max_spacing_mm, min_extent_mm, max_extent_mm, max_voxels and, if
            wanted, region; see `scanner.protocol`.
    """
    numbers = {k: float(v) for k, v in limits.items() if k.endswith("_mm")}
    region = limits.get("region", "any")
    protocol = dict(_protocol(key, parameters, numbers, int(limits["max_voxels"]), region))
    lower, upper, spacing = (
        np.asarray(protocol[name], np.float64) for name in ("lower", "upper", "spacing")
    )
    spacing = np.round(spacing, 4)
    x, y, z = (int(n) for n in np.maximum(np.round((upper - lower) / spacing), 8))
    affine = np.diag([*spacing, 1.0])
    half = 0.5 * spacing * (np.array([x, y, z]) - 1)
    affine[:3, 3] = 0.5 * (lower + upper) - half
    protocol["lower"] = jnp.asarray(affine[:3, 3], jnp.float32)
    protocol["upper"] = jnp.asarray(affine[:3, 3] + 2.0 * half, jnp.float32)
    storage = _STORAGES[int(rng.choice(len(_STORAGES), p=_STORAGE_ODDS))]
    if rng.random() < 0.1:
        storage = Storage(storage.dtype, storage.slope, storage.inter, compressed=False)
    orientation = str(rng.choice(np.array(orientations)))
    return Scan((x, y, z), affine, orientation, protocol, storage)


def _points(index: Array, affine: Array) -> Array:
    """Millimetres (..., 3) from voxel indices.

    By plain arithmetic: products of matrices may round on accelerators.
    """
    index = index.astype(jnp.float32)
    return affine[:3, 3] + sum(index[..., i : i + 1] * affine[:3, i] for i in range(3))


@jax.jit
def _tiles(
    parameters: Any,
    protocol: physics.Protocol,
    boxes: tuple[Array, Array],
    starts: Array,
    affine: Array,
    edge_mm: Array,
    sub: dict[str, Array],
) -> tuple[Array, Array]:
    """HU and labels of blocks of voxels that begin at `starts` (n, 3)."""
    offset = jnp.stack(jnp.meshgrid(*map(jnp.arange, _TILE), indexing="ij"), -1).reshape(-1, 3)
    spine = parameters["spine"]

    def one(start: Array) -> tuple[Array, Array]:
        points = _points(start + offset, affine)

        def slice_of(k: Array, sofar: tuple[Array, Array]) -> tuple[Array, Array]:
            shift = (k - 0.5 * (sub["count"] - 1)) * sub["step"]
            p = physics.where(points + shift, protocol)
            # Vertebrae out of reach count as absent: most of a block's time is theirs.
            low, high = jnp.min(p, 0), jnp.max(p, 0)
            near = jnp.all((high >= boxes[0]) & (low <= boxes[1]), -1)
            ids = jnp.where(near, spine["id"], 0)
            hu, label = render_block(p, {**parameters, "spine": {**spine, "id": ids}}, edge_mm)
            middle = k == sub["count"] // 2
            return sofar[0] + hu, jnp.where(middle, label, sofar[1])

        zero = jnp.zeros(len(offset))
        hu, label = lax.fori_loop(0, sub["count"], slice_of, (zero, zero.astype(jnp.int32)))
        return hu / sub["count"], label.astype(jnp.uint8)

    return lax.map(one, starts)


def render_volume(
    parameters: Any,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    edge_mm: float,
    *,
    protocol: physics.Protocol | None = None,
    slice_axis: int = 2,
    slice_mm: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a phantom on a grid.

    Args:
        parameters: From `anatomy`.
        shape: Voxels along each axis.
        affine: (4, 4), index -> canonical LPS mm.
        edge_mm: See `render`.
        protocol: Of a scan whose motion and tilt displace points.
        slice_axis: Array axis across slices.
        slice_mm: Thickness of slices: each is the mean of thinner ones, about a millimetre apart.

    Returns:
        HU (x, y, z) float32 and VerSe labels (x, y, z) uint8, all vertebrae, without noise.
    """
    counts = [-(-n // t) for n, t in zip(shape, _TILE, strict=True)]
    starts = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), -1).reshape(-1, 3)
    starts = starts * np.array(_TILE)
    padded = np.concatenate([starts, np.repeat(starts[-1:], -len(starts) % _TILES, 0)])
    matrix, edge = jnp.asarray(affine, jnp.float32), jnp.float32(edge_mm)
    # An odd number, so that labels are those of the middle.
    count = 2 * int(np.ceil(0.5 * (slice_mm / _SUB_SLICE_MM - 1.0))) + 1 if slice_mm > 0 else 1
    count = max(count, 1)
    direction = affine[:3, slice_axis] / np.linalg.norm(affine[:3, slice_axis])
    sub = {
        "count": jnp.int32(count),
        "step": jnp.asarray(direction * slice_mm / count, jnp.float32),
    }
    still = physics.at_rest() if protocol is None else protocol
    boxes = _boxes(parameters)

    def draw(first: int) -> tuple[np.ndarray, np.ndarray]:
        part = jnp.asarray(padded[first : first + _TILES])
        hu, label = _tiles(parameters, still, boxes, part, matrix, edge, sub)
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


@jax.jit
def _boxes(parameters: Any) -> tuple[Array, Array]:
    """Corners (26, 3) of boxes beyond which nothing is seen of each vertebra."""
    points = support_points(parameters)
    return jnp.min(points, 1) - _MARGIN_MM, jnp.max(points, 1) + _MARGIN_MM


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
    protocol: physics.Protocol | None = None,
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
        points = physics.shown_at(points, protocol)
    within = (points >= lower_mm) & (points <= upper_mm)
    whole = jnp.all(within[..., 2], -1) & (jnp.mean(jnp.all(within, -1), -1) >= share)
    return whole & (parameters["spine"]["id"] > 0)


def keep_labels(labels: Array, ids: Array, kept: Array) -> Array:
    """Labels with those of vertebrae that are not `kept` (26,) set to 0; ids as in `anatomy`."""
    table = jnp.zeros(32, labels.dtype).at[ids].set(jnp.where(kept, ids, 0).astype(labels.dtype))
    return table.at[0].set(0)[labels]


@jax.jit
def _signal(
    key: Array,
    hu: Array,
    start: Array,
    affine: Array,
    parameters: Any,
    protocol: physics.Protocol,
) -> Array:
    """Stored HU of the core of a block that begins at voxel `start` and has a rim."""
    rim = noise_field.DETAIL_RADIUS
    first = start - rim
    index = jnp.stack(jnp.meshgrid(*map(jnp.arange, hu.shape), indexing="ij"), -1)
    points = _points(index + first, affine)
    stored = physics.signal(
        key, hu, points, parameters, protocol, 1.0, smoothing_mm=0.0,
        first=(first[0], first[1], first[2]),
    )  # fmt: skip
    return stored[rim:-rim, rim:-rim, rim:-rim]


def scanned(
    key: Array,
    hu: np.ndarray,
    affine: np.ndarray,
    parameters: Any,
    protocol: physics.Protocol,
) -> np.ndarray:
    """What the scanner stores of a clean volume (x, y, z): `scanner.signal`, block by block.

    Args:
        key: Random key of the noise.
        hu: From `render_volume`.
        affine: (4, 4), index -> canonical LPS mm.
        parameters: From `anatomy`.
        protocol: From `scanner.protocol`.

    Returns:
        (x, y, z) float32.
    """
    rim = noise_field.DETAIL_RADIUS
    out = np.empty(hu.shape, np.float32)
    pad = [(rim, rim + -n % _CORE) for n in hu.shape]
    padded = np.pad(hu, pad, mode="edge")
    matrix = jnp.asarray(affine, jnp.float32)

    def fill(start: tuple[int, ...]) -> None:
        block = padded[tuple(slice(i, i + _CORE + 2 * rim) for i in start)]
        values = _signal(key, jnp.asarray(block), jnp.asarray(start), matrix, parameters, protocol)
        part = out[tuple(slice(i, i + _CORE) for i in start)]
        part[...] = np.asarray(values)[tuple(slice(0, n) for n in part.shape)]

    with ThreadPoolExecutor(2) as pool:
        grid = np.ndindex(*(-(-n // _CORE) for n in hu.shape))
        list(pool.map(fill, [tuple(_CORE * i for i in at) for at in grid]))
    return out


def acquire(key: Array, parameters: Any, scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """One scan: HU (x, y, z), int16 or what its storage holds, and labels (x, y, z) uint8."""
    protocol = scan.protocol
    axis, thickness = int(protocol["slice_axis"]), float(protocol["slice_mm"])
    fine = float(np.min(np.diag(scan.affine)[:3]))
    edge = float(np.hypot(np.hypot(protocol["plane_blur"], protocol["gradual"]), 0.29 * fine))
    hu, labels = render_volume(
        parameters, scan.shape, scan.affine, edge,
        protocol=protocol, slice_axis=axis, slice_mm=thickness,
    )  # fmt: skip
    stored = scanned(key, hu, scan.affine, parameters, protocol)
    if scan.storage.dtype == "float32":
        return stored, labels
    return np.round(stored).astype(np.int16), labels
