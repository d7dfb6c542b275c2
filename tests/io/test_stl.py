"""Meshes of labels against closed forms: volumes, places, closed surfaces; the bytes of STL."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spinejax import geometry
from spinejax.errors import InputError
from spinejax.io import scanfile, stl
from spinejax.predictor import Segmentation
from spinejax.volume import Volume
from tests.support.nifti_files import oblique_affine


def read(path):
    """The corners (triangles, 3, 3) and normals of a binary STL file, as the format is defined."""
    data = path.read_bytes()
    (count,) = struct.unpack_from("<I", data, 80)
    assert len(data) == 84 + 50 * count
    numbers = [struct.unpack_from("<12f", data, 84 + 50 * k) for k in range(count)]
    found = np.array(numbers).reshape(count, 4, 3)
    return found[:, 1:], found[:, 0]


def volume(placed):
    """The divergence theorem: positive if triangles are anticlockwise from outside."""
    return np.einsum("ij,ij->", placed[:, 0], np.cross(placed[:, 1], placed[:, 2])) / 6


def is_closed(triangles):
    """Whether each edge belongs to two triangles, which run through it in opposite directions."""
    edges = [tuple(edge) for k in range(3) for edge in triangles[:, [k, (k + 1) % 3]].tolist()]
    return len(set(edges)) == len(edges) and {(b, a) for a, b in edges} == set(edges)


def ellipsoid(radii, centre, affine, shape):
    """The voxels whose centres lie in an ellipsoid along the axes of the world, LPS mm."""
    index = np.stack(np.indices(shape), axis=-1)
    lps = geometry.voxel_to_world(np.diag([-1.0, -1, 1, 1]) @ affine, index)
    return (((lps - centre) / radii) ** 2).sum(axis=-1) <= 1


def affine_of(spacing, *, flipped=False):
    affine = np.diag([*spacing, 1.0]) @ np.diag([-1.0 if flipped else 1.0, 1, 1, 1])
    affine[:3, 3] = (7, -90, 400)
    return affine


@pytest.mark.parametrize("radii", [(15, 15, 15), (20, 12, 9)], ids=["sphere", "ellipsoid"])
@pytest.mark.parametrize(
    "affine",
    [
        affine_of((1, 1, 1)),
        affine_of((1, 1, 1), flipped=True),
        affine_of((0.4, 0.4, 1)),
        affine_of((0.5, 0.5, 2)),
        oblique_affine((0.9, 1.0, 1.2)),
    ],
    ids=["1 mm", "flipped", "fine", "thick slices", "oblique"],
)
def test_volume_and_place_are_those_of_the_body(radii, affine):
    shape = tuple((np.array([52, 52, 52]) / geometry.spacing_mm(affine)).astype(int))
    middle = (np.array(shape) - 1) / 2
    centre = geometry.voxel_to_world(np.diag([-1.0, -1, 1, 1]) @ affine, middle)
    mask = ellipsoid(radii, centre, affine, shape)
    corners, triangles = stl.surface(mask, affine)
    assert is_closed(triangles)
    voxels_mm3 = np.count_nonzero(mask) * geometry.voxel_ml(affine) * 1000
    assert volume(corners[triangles]) == pytest.approx(voxels_mm3, rel=0.005)
    truth = 4 / 3 * np.pi * np.prod(radii)
    assert volume(corners[triangles]) == pytest.approx(truth, rel=0.02)
    # Each corner lies on the ellipsoid, to a part of a voxel's diagonal.
    along = np.linalg.norm((corners - centre) / radii, axis=1)
    off = np.abs(along - 1) * np.linalg.norm(corners - centre, axis=1) / along
    assert off.max() < 0.5 * np.linalg.norm(geometry.spacing_mm(affine))
    np.testing.assert_allclose(corners.max(axis=0) + corners.min(axis=0), 2 * centre, atol=0.5)


def test_a_sphere_has_no_stairs():
    """Normals point away from the centre, where a voxel's sides would be up to 55 degrees off."""
    index = np.stack(np.indices((40, 40, 40)), axis=-1) - 19.5
    corners, triangles = stl.surface((index**2).sum(axis=-1) <= 15**2, np.diag([-1.0, -1, 1, 1]))
    placed = corners[triangles]
    normals = np.cross(placed[:, 1] - placed[:, 0], placed[:, 2] - placed[:, 0])
    areas = np.linalg.norm(normals, axis=1)
    out = placed.mean(axis=1) - 19.5
    cosine = np.einsum("ij,ij->i", normals, out) / areas / np.linalg.norm(out, axis=1)
    degrees = np.degrees(np.arccos(cosine.clip(-1, 1)))
    assert np.average(degrees, weights=areas) < 5 and np.percentile(degrees, 99) < 20


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 2), st.sampled_from([1.0, 0.3, 3.0]))
def test_any_mask_has_a_closed_surface_of_distinct_corners(seed, smooth, spacing):
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(9, 8, 7)), smooth) > 0
    mask[tuple(rng.integers(0, mask.shape))] = True
    corners, triangles = stl.surface(mask, affine_of((1, 1, spacing)))
    assert is_closed(triangles) and volume(corners[triangles]) > 0
    single = np.unique(corners.astype(np.float32), axis=0)
    assert len(single) == len(corners)  # programs that join equal corners keep the surface closed


def test_a_mask_at_all_borders_and_one_of_one_voxel_are_closed():
    corners, triangles = stl.surface(np.ones((12, 10, 8), bool), affine_of((1, 1, 1)))
    assert is_closed(triangles)
    assert volume(corners[triangles]) == pytest.approx(12 * 10 * 8, rel=0.01)
    one = np.zeros((3, 3, 3), bool)
    one[0, 2, 1] = True
    corners, triangles = stl.surface(one, affine_of((1, 1, 1)))
    assert is_closed(triangles)
    np.testing.assert_allclose(corners.mean(axis=0), (-7, 88, 401), atol=1e-3)


def test_files_hold_the_triangles_in_lps_and_normals_to_the_outside(tmp_path):
    affine = oblique_affine((1, 1, 1))
    array = np.zeros((30, 30, 40), np.uint8)
    array[3:20, 5:25, 2:14], array[3:20, 5:25, 14:30] = 19, 20  # they touch
    paths = {19: tmp_path / "m/T12.stl", 20: tmp_path / "m/L1.stl"}
    stl.write_meshes(paths, array, affine)
    for label, path in paths.items():
        assert b"SPACE=LPS" in path.read_bytes()[:80] and not path.read_bytes().startswith(b"solid")
        placed, normals = read(path)
        corners, triangles = stl.surface(array == label, affine)
        np.testing.assert_allclose(placed, corners[triangles], atol=1e-3)
        assert volume(placed) == pytest.approx(np.count_nonzero(array == label), rel=0.01)
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
        made = np.cross(placed[:, 1] - placed[:, 0], placed[:, 2] - placed[:, 0])
        assert (np.einsum("ij,ij->i", made, normals) > 0).all()
        _, same = np.unique(placed.reshape(-1, 3), axis=0, return_inverse=True)
        assert is_closed(same.reshape(-1, 3))  # as a program that reads the file sees it
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/T12.stl").write_text("mine")
    with pytest.raises(InputError, match="did not write this file"):
        stl.write_meshes({19: tmp_path / "mine/T12.stl"}, array, affine)


def test_save_writes_a_file_a_vertebra_and_removes_those_of_before(tmp_path):
    scan = Volume(np.zeros((20, 20, 30), np.int16), np.diag([-1.0, -1, 1, 1]))
    mask = np.zeros(scan.shape, np.uint8)
    mask[4:16, 4:16, 3:12], mask[4:16, 4:16, 16:27] = 21, 20
    upper = np.where(mask == 20, mask, 0)
    arguments = {"picture": False, "page": False, "formats": ["stl"]}

    def written(array, name="a", named=True):
        paths = Segmentation(array, scan, "a", named).save(tmp_path, name, **arguments)
        found = {path.name for path in (tmp_path / f"{name}_meshes").glob("*.stl")}
        assert found == {path.name for path in paths if path.suffix == ".stl"}
        return found

    assert written(mask) == {"L1.stl", "L2.stl"}
    (tmp_path / "a_meshes/L5.stl").write_text("mine")
    Segmentation(upper, scan, "a", True).save(tmp_path, **arguments)
    names = {path.name for path in (tmp_path / "a_meshes").glob("*.stl")}
    assert names == {"L1.stl", "L5.stl"}  # that of somebody else stays
    assert written((mask > 0).view(np.uint8), "b", named=False) == {"spine.stl"}
    assert written(np.zeros_like(mask), "c") == set()


def test_meshes_of_real_vertebrae(real_data):
    """VerSe's sub-verse014: closed, and of the volume of their voxels."""
    folder = real_data / "verse/derivatives/sub-verse014"
    mask = scanfile.read_labels(folder / "sub-verse014_seg-vert_msk.nii.gz")
    for label in (20, 22, 24):
        one = mask.array == label
        corners, triangles = stl.surface(one, mask.affine)
        assert is_closed(triangles)
        voxels_mm3 = np.count_nonzero(one) * mask.voxel_ml * 1000
        assert volume(corners[triangles]) == pytest.approx(voxels_mm3, rel=0.01)
