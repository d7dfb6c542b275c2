"""Whole volumes, block by block: clean HU and labels on a grid, thick slices, the scanner's signal.

`physics.signal` makes the same signal of slices of the training stream and of volumes.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from spinejax import numerics
from spinejax.phantom.body import tissues
from spinejax.phantom.body.render import render_block
from spinejax.phantom.once import turns
from spinejax.phantom.scanner import noise_field, physics, view
from spinejax.phantom.scanner.scan_plan import Protocol, Scan

Array = jax.Array

_TILE = (16, 16, 8)  # voxels of one block
_TILES = 64  # blocks of one compiled call
_CORE = 48  # voxels along each side of a block that gets its signal
_MARGIN_MM = 14.0  # around a vertebra's outermost points: canal, discs and the blur of its edges
_SUB_SLICE_MM = 1.0


def _points(index: Array, affine: Array) -> Array:
    """Millimetres (..., 3) from voxel indices.

    By plain arithmetic: products of matrices may round on accelerators.
    """
    index = index.astype(jnp.float32)
    return affine[:3, 3] + sum(index[..., i : i + 1] * affine[:3, i] for i in range(3))


@jax.jit
def _tiles(
    parameters: Any,
    protocol: Protocol,
    boxes: tuple[Array, Array],
    starts: Array,
    count: Array,
    affine: Array,
    edge_mm: Array,
    sub: dict[str, Array],
) -> tuple[Array, Array]:
    """HU and labels of blocks of voxels that begin at the first `count` of `starts` (n, 3)."""
    offset = jnp.stack(jnp.meshgrid(*map(jnp.arange, _TILE), indexing="ij"), -1).reshape(-1, 3)
    spine, spare = parameters["spine"], tissues.spare(edge_mm)

    def one(start: Array) -> tuple[Array, Array]:
        points = _points(start + offset, affine)

        def slice_of(k: Array, sofar: tuple[Array, Array]) -> tuple[Array, Array]:
            shift = (k - 0.5 * (sub["count"] - 1)) * sub["step"]
            p = view.where(points + shift, protocol)
            # Vertebrae out of reach are left out, since they take most of a block's time.
            low, high = jnp.min(p, 0), jnp.max(p, 0)
            near = jnp.all((high >= boxes[0] - spare) & (low <= boxes[1] + spare), -1)
            ids = jnp.where(near, spine["id"], 0)
            hu, label = render_block(p, {**parameters, "spine": {**spine, "id": ids}}, edge_mm)
            middle = k == sub["count"] // 2
            return sofar[0] + hu, jnp.where(middle, label, sofar[1])

        zero = jnp.zeros(len(offset))
        hu, label = lax.fori_loop(0, sub["count"], slice_of, (zero, zero.astype(jnp.int32)))
        return hu / sub["count"], label.astype(jnp.uint8)

    def fill(i: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        hu, label = one(starts[i])
        return found[0].at[i].set(hu), found[1].at[i].set(label)

    shape = (len(starts), len(offset))
    return turns(0, count, len(starts), fill, (jnp.zeros(shape), jnp.zeros(shape, jnp.uint8)))


def render_volume(
    parameters: Any,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    edge_mm: float,
    *,
    protocol: Protocol | None = None,
    slice_axis: int = 2,
    slice_mm: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a phantom on a grid, without noise.

    Args:
        parameters: From `anatomy`.
        shape: Voxels along each axis.
        affine: (4, 4), index -> canonical LPS mm.
        edge_mm: See `render`.
        protocol: From `scan_plan.protocol`, for motion and tilt; None for none.
        slice_axis: Array axis across slices.
        slice_mm: Thickness of slices: each is the mean of thinner ones, about a millimetre apart.

    Returns:
        HU (x, y, z) float32 and VerSe labels (x, y, z) uint8 of all vertebrae.
    """
    counts = [-(-n // t) for n, t in zip(shape, _TILE, strict=True)]
    starts = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), -1).reshape(-1, 3)
    starts = starts * np.array(_TILE)
    padded = np.concatenate([starts, np.repeat(starts[-1:], -len(starts) % _TILES, 0)])
    matrix, edge = jnp.asarray(affine, jnp.float32), jnp.float32(edge_mm)
    # An odd number, so that one slice lies in the middle and gives the labels.
    count = 2 * int(np.ceil(0.5 * (slice_mm / _SUB_SLICE_MM - 1.0))) + 1 if slice_mm > 0 else 1
    count = max(count, 1)
    direction = affine[:3, slice_axis] / np.linalg.norm(affine[:3, slice_axis])
    sub = {
        "count": jnp.int32(count),
        "step": jnp.asarray(direction * slice_mm / count, jnp.float32),
    }
    still = view.at_rest() if protocol is None else protocol
    boxes = _boxes(parameters)

    @numerics.fixed()  # in each thread
    def draw(first: int) -> tuple[np.ndarray, np.ndarray]:
        part = jnp.asarray(padded[first : first + _TILES])
        left = jnp.int32(min(_TILES, len(starts) - first))
        hu, label = _tiles(parameters, still, boxes, part, left, matrix, edge, sub)
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
    """Corners (26, 3) of boxes that hold each vertebra with its blur."""
    points = view.support_points(parameters)
    return jnp.min(points, 1) - _MARGIN_MM, jnp.max(points, 1) + _MARGIN_MM


@jax.jit
def _signal(hu: Array, start: Array, affine: Array, parameters: Any, protocol: Protocol) -> Array:
    """Stored HU of the core of a block that begins at voxel `start` and has a rim."""
    rim = noise_field.DETAIL_RADIUS
    first = start - rim
    index = jnp.stack(jnp.meshgrid(*map(jnp.arange, hu.shape), indexing="ij"), -1)
    points = _points(index + first, affine)
    stored = physics.signal(
        hu, points, parameters, protocol, 1.0, smoothing_mm=0.0,
        first=(first[0], first[1], first[2]),
    )  # fmt: skip
    return stored[rim:-rim, rim:-rim, rim:-rim]


def scanned(hu: np.ndarray, affine: np.ndarray, parameters: Any, protocol: Protocol) -> np.ndarray:
    """Apply `physics.signal` to a clean volume (x, y, z), block by block.

    Args:
        hu: From `render_volume`.
        affine: (4, 4), index -> canonical LPS mm.
        parameters: From `anatomy`.
        protocol: From `scan_plan.protocol`.

    Returns:
        (x, y, z) float32.
    """
    rim = noise_field.DETAIL_RADIUS
    out = np.empty(hu.shape, np.float32)
    pad = [(rim, rim + -n % _CORE) for n in hu.shape]
    padded = np.pad(hu, pad, mode="edge")
    matrix = jnp.asarray(affine, jnp.float32)

    @numerics.fixed()
    def fill(start: tuple[int, ...]) -> None:
        block = padded[tuple(slice(i, i + _CORE + 2 * rim) for i in start)]
        values = _signal(jnp.asarray(block), jnp.asarray(start), matrix, parameters, protocol)
        part = out[tuple(slice(i, i + _CORE) for i in start)]
        part[...] = np.asarray(values)[tuple(slice(0, n) for n in part.shape)]

    with ThreadPoolExecutor(2) as pool:
        grid = np.ndindex(*(-(-n // _CORE) for n in hu.shape))
        list(pool.map(fill, [tuple(_CORE * i for i in at) for at in grid]))
    return out


def acquire(parameters: Any, scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """Make one scan: HU (x, y, z), int16 or float32 by its storage, and labels (x, y, z) uint8."""
    protocol = scan.protocol
    axis, thickness = int(protocol["slice_axis"]), float(protocol["slice_mm"])
    fine = float(np.min(np.diag(scan.affine)[:3]))
    edge = float(np.hypot(np.hypot(protocol["plane_blur"], protocol["gradual"]), 0.29 * fine))
    hu, labels = render_volume(
        parameters, scan.shape, scan.affine, edge,
        protocol=protocol, slice_axis=axis, slice_mm=thickness,
    )  # fmt: skip
    height = float(scan.affine[2, 2])
    if physics.thick(height, protocol):  # the volume was resampled
        z = jnp.asarray(scan.affine[2, 3] + height * np.arange(hu.shape[2]), jnp.float32)
        hu = np.asarray(physics.axial_slices(jnp.asarray(hu), z, height, protocol))
    stored = scanned(hu, scan.affine, parameters, protocol)
    if scan.storage.dtype == "float32":
        return stored, labels
    return np.round(stored).astype(np.int16), labels
