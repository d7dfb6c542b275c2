"""Surfaces of labels as binary STL files, for 3D printing, CAD and finite elements.

STL (3D Systems, 1989) is a header of 80 bytes, the number of triangles, and 50 bytes a triangle. It
has no field for units or axes. Coordinates here are mm in LPS+ (x grows to the patient's left, y to
posterior), as 3D Slicer reads and writes them; the header says so in Slicer's words.
"""

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from spinejax import geometry
from spinejax.files import StrPath, atomic_path, expanded

_HEADER = b"spinejax SPACE=LPS"
_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
# Smaller triangles would show the edges of the voxels.
_FINEST_MM = 1.0
# Values so close to the level would make triangles without area; a share of the level.
_LEAST_OFF = 0.05
_HALVINGS = 9
"""Steps in which the level is found."""


def surface(mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the smooth closed surface of a mask.

    Marching cubes (Lewiner et al. 2003, Journal of Graphics Tools 8(2)) on the mask, blurred by a
    Gaussian whose standard deviation is a voxel or, of finer ones, as many as fit into 1 mm. A
    fixed level would shrink convex parts, so that level is taken at which the surface encloses as
    much as the voxels. What lies beyond the array counts as outside, so a mask at its border is
    closed, too.

    Args:
        mask: (x, y, z) bool, some of it true.
        affine: (4, 4) from voxel indices to RAS mm.

    Returns:
        Corners (n, 3) float64 in LPS mm, and triangles (m, 3) of indices into them, in the order
        that is anticlockwise from outside.
    """
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    steps = np.maximum(1, (_FINEST_MM / np.array(geometry.spacing_mm(affine))).astype(int))
    border = 5 * steps
    field = np.pad(mask[box].astype(np.float32), [(side, side) for side in border])
    field = ndimage.gaussian_filter(field, steps, mode="constant", truncate=4.0)
    field = field[tuple(slice(None, None, step) for step in steps)]
    target = np.count_nonzero(mask[box]) / float(np.prod(steps))
    low, high = 0.0, float(field.max())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        corners, triangles = _cubes(field, middle)
        low, high = (low, middle) if _volume(corners[triangles]) < target else (middle, high)
    first = np.array([side.start for side in box]) - border
    to_lps = geometry.LPS_TO_RAS @ affine
    placed = geometry.voxel_to_world(to_lps, corners * steps + first)
    return placed, triangles if np.linalg.det(to_lps[:3, :3]) > 0 else triangles[:, ::-1]


def _cubes(field: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (n, 3) and the triangles (m, 3) of the surface at a level of a field."""
    from skimage import measure

    off = field - level
    off = np.copysign(np.maximum(np.abs(off), _LEAST_OFF * level), off)
    corners, triangles, _, _ = measure.marching_cubes(off, 0.0)
    return corners.astype(np.float64), triangles[:, ::-1]  # scikit-image's are clockwise


def _volume(placed: np.ndarray) -> float:
    """Return the volume in a closed surface of triangles (m, 3, 3), by the divergence theorem."""
    return float(np.einsum("ij,ij->", placed[:, 0], np.cross(placed[:, 1], placed[:, 2]))) / 6


def write_meshes(
    paths: Mapping[int, StrPath],
    array: np.ndarray,
    affine: np.ndarray,
    *,
    overwrite: bool = False,
) -> None:
    """Write the surface of each label as a binary STL file.

    Each file appears whole or not at all.

    Args:
        paths: label -> file. Every label is in `array`.
        array: (x, y, z) uint8.
        affine: (4, 4) from voxel indices to RAS mm.
        overwrite: replace files that this program did not write, too.

    Raises:
        InputError: a file may not be replaced.
        OSError: the folder cannot be written, or the disk is full.
    """
    boxes = geometry.label_boxes(array)
    for label, path in paths.items():
        box = boxes[label]
        shifted = affine.copy()
        shifted[:3, 3] = geometry.voxel_to_world(affine, np.array([side.start for side in box]))
        content = _binary(*surface(array[box] == label, shifted))
        with atomic_path(expanded(path), "mesh", overwrite=overwrite) as temporary:
            temporary.write_bytes(content)


def _binary(corners: np.ndarray, triangles: np.ndarray) -> bytes:
    """Return the content of a STL file."""
    found = np.zeros(len(triangles), _TRIANGLE)
    found["corners"] = placed = corners[triangles]
    normals = np.cross(placed[:, 1] - placed[:, 0], placed[:, 2] - placed[:, 0])
    found["normal"] = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    return _HEADER.ljust(80) + np.uint32(len(found)).astype("<u4").tobytes() + found.tobytes()
