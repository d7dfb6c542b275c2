"""Surface distances and boundary F1 against brute force, scipy, MONAI and closed forms."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from spinejax import geometry
from spinejax.metrics import boundary, surface
from tests.support.surfaces import blobs, with_scipy


@st.composite
def masks_and_spacing(draw):
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=3, max_side=8))
    masks = [draw(hnp.arrays(bool, shape)) for _ in range(2)]
    spacing = [draw(st.floats(0.2, 5, allow_subnormal=False)) for _ in shape]
    return *masks, spacing


def brute_force(prediction, reference, spacing):
    """Both directed distance lists by loops over all voxels: shares nothing with the package."""
    points = []
    for mask in (prediction, reference):
        edge = []
        for index in itertools.product(*map(range, mask.shape)):
            if not mask[index]:
                continue
            for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
                other = list(index)
                other[axis] += step
                outside = not 0 <= other[axis] < mask.shape[axis]
                if outside or not mask[tuple(other)]:
                    edge.append(index)
                    break
        points.append(np.array(edge, float).reshape(-1, mask.ndim) * spacing)
    if not len(points[0]) or not len(points[1]):
        return None
    table = cdist(*points)
    return table.min(axis=1), table.min(axis=0)


def expect(distances, there, back):
    """All metrics of `distances` equal those of plain numpy on the two lists."""
    for percent in (50, 95, 100):
        expected = max(np.percentile(there, percent), np.percentile(back, percent))
        assert surface.hausdorff_mm(distances, percent) == pytest.approx(expected, abs=1e-7)
    both = np.concatenate([there, back])
    assert surface.hd95_mm(distances) == surface.hausdorff_mm(distances, 95)
    assert surface.assd_mm(distances) == pytest.approx(both.mean(), abs=1e-7)
    for tolerance in (0.0, 1.0, 2.5):
        expected = np.mean(both <= tolerance + surface.ROUNDING_MM)
        assert surface.nsd(distances, tolerance) == pytest.approx(expected, abs=1e-12)


@given(masks_and_spacing())
@settings(max_examples=150, deadline=None)
def test_agrees_with_brute_force(case):
    prediction, reference, spacing = case
    distances = surface.surface_distances(prediction, reference, spacing)
    expected = brute_force(prediction, reference, spacing)
    if expected is None:
        assert not distances.defined
    else:
        expect(distances, *expected)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_distances_on_a_sheared_grid_are_those_of_the_world(seed):
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    skew = np.eye(3) + 0.4 * rng.uniform(-1, 1, (3, 3))
    affine[:3, :3] = Rotation.random(rng=rng).as_matrix() @ skew @ np.diag(rng.uniform(0.3, 3, 3))
    masks = [blobs(rng, (9, 10, 8)) for _ in range(2)]
    assume(all(mask.any() for mask in masks))
    points = [
        geometry.voxel_to_world(affine, np.argwhere(mask & ~ndimage.binary_erosion(mask)))
        for mask in masks
    ]
    there, back = (cKDTree(b).query(a)[0] for a, b in (points, points[::-1]))
    expect(surface.surface_distances(*masks, geometry.steps_mm(affine)), there, back)


def test_depth_on_a_sheared_grid_is_that_of_the_world():
    affine = np.eye(4)
    affine[:3, 1] = (0, 0.9, 0.5)
    inside = np.pad(np.ones((3, 4, 3), bool), 1)
    world = geometry.voxel_to_world(affine, np.stack(np.indices(inside.shape), -1))
    depth = surface.depth_mm(inside, geometry.steps_mm(affine))
    assert (depth[~inside] == 0).all()
    expected = cdist(world[inside], world[~inside]).min(axis=1)
    np.testing.assert_allclose(depth[inside], expected)
    straight = surface.depth_mm(inside, (1, 2, 3))
    np.testing.assert_array_equal(straight, ndimage.distance_transform_edt(inside, (1, 2, 3)))


def test_contours_of_sheared_slices_are_compared_in_the_world():
    """A tilt about x leaves axial slices alone, and shears sagittal ones."""
    rng = np.random.default_rng(0)
    masks = [blobs(rng, (12, 14, 10)) for _ in range(2)]
    affine = np.diag([0.8, 0.8, 2.0, 1.0])
    tilted = affine.copy()
    tilted[:3, 1] = (0, 0.8 * np.cos(0.4), 0.8 * np.sin(0.4))
    plain, sheared = geometry.steps_mm(affine), geometry.steps_mm(tilted)
    count = boundary.count_boundary
    axial = [count(*masks, s, tolerance_mm=1.7, slice_axis=2) for s in (plain, sheared)]
    assert axial[0] == axial[1]
    sagittal = count(*masks, sheared, tolerance_mm=1.7, slice_axis=0)
    matched = 0
    for found, true in zip(*masks, strict=True):
        edges = [np.argwhere(one & ~ndimage.binary_erosion(one)) for one in (found, true)]
        a, b = (points @ tilted[:3, 1:3].T for points in edges)
        matched += (
            int((cdist(a, b).min(axis=1) <= 1.7 + surface.ROUNDING_MM).sum()) if len(b) else 0
        )
    assert sagittal.predicted_matched == matched


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_scipy_on_blobs(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(20, 45, 3))
    spacing = rng.uniform(0.3, 3, 3)
    prediction, reference = blobs(rng, shape), blobs(rng, shape)
    expect(
        surface.surface_distances(prediction, reference, spacing),
        *with_scipy(prediction, reference, spacing),
    )


@given(masks_and_spacing())
@settings(max_examples=80, deadline=None)
def test_surface_is_mask_minus_erosion(case):
    mask = case[0]
    assert (surface.surface(mask) == mask & ~ndimage.binary_erosion(mask)).all()
    assert (surface.surface_voxels(mask) == np.argwhere(surface.surface(mask))).all()
    in_plane = np.stack([m & ~ndimage.binary_erosion(m) for m in np.moveaxis(mask, -1, 0)], -1)
    axes = tuple(range(mask.ndim - 1))
    assert (surface.surface(mask, axes) == in_plane).all()


def test_mask_filling_the_image_has_a_surface_at_the_border():
    full = np.ones((5, 5, 5), bool)
    assert surface.surface(full).sum() == 5**3 - 3**3
    distances = surface.surface_distances(full, full, (1, 1, 1))
    assert surface.hd95_mm(distances) == 0
    assert surface.nsd(distances) == 1


def test_two_points_on_an_anisotropic_grid():
    prediction, reference = np.zeros((2, 9, 9, 9), bool)
    prediction[1, 2, 3] = reference[4, 6, 5] = True
    distances = surface.surface_distances(prediction, reference, (0.5, 1.0, 3.0))
    expected = np.sqrt((3 * 0.5) ** 2 + 4**2 + (2 * 3) ** 2)
    for metric in (surface.hd95_mm, surface.assd_mm):
        assert metric(distances) == pytest.approx(expected, abs=1e-8)
    assert surface.nsd(distances, expected) == 1
    assert surface.nsd(distances, expected - 0.01) == 0


def test_shifted_half_spaces_are_apart_by_the_shift():
    """Slabs across the whole image, shifted along their normal: every face point moves by it."""
    prediction, reference = np.zeros((2, 40, 6, 6), bool)
    reference[10:20] = True
    prediction[13:23] = True
    distances = surface.surface_distances(prediction, reference, (0.7, 1, 1))
    assert surface.hausdorff_mm(distances) == pytest.approx(3 * 0.7, abs=1e-8)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 2.0)])
def test_concentric_spheres_are_apart_by_the_difference_of_radii(spacing):
    grid = np.stack(np.meshgrid(*[np.arange(-24, 24 + s / 2, s) for s in spacing], indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    distances = surface.surface_distances(radius <= 20, radius <= 14, spacing)
    size = np.linalg.norm(spacing)
    assert surface.assd_mm(distances) == pytest.approx(6, abs=size / 2)
    assert surface.hd95_mm(distances) == pytest.approx(6, abs=size)
    assert surface.nsd(distances, 6 + size) == 1
    assert surface.nsd(distances, 6 - size) < 0.05


def test_symmetry_and_scaling():
    rng = np.random.default_rng(1)
    prediction, reference = blobs(rng, (20, 20, 20)), blobs(rng, (20, 20, 20))
    one = surface.surface_distances(prediction, reference, (1, 2, 3))
    other = surface.surface_distances(reference, prediction, (1, 2, 3))
    tripled = surface.surface_distances(prediction, reference, (3, 6, 9))
    for metric in (surface.hd95_mm, surface.assd_mm, surface.nsd):
        assert metric(one) == metric(other)
    for metric in (surface.hd95_mm, surface.assd_mm):
        assert metric(tripled) == pytest.approx(3 * metric(one), abs=1e-7)


def test_a_rounded_affine_does_not_move_voxels_across_the_tolerance():
    prediction, reference = np.zeros((2, 12, 12, 12), bool)
    reference[3:9, 3:9, 3:9] = True
    prediction[4:10, 3:9, 3:9] = True
    scores = [
        surface.nsd(surface.surface_distances(prediction, reference, (size, 1, 1)))
        for size in (1, float(np.float32(0.1)) * 10, 1.00000006, 0.99999994)
    ]
    assert scores[0] == 1
    assert scores == [1] * 4


def test_empty_masks():
    empty, box = np.zeros((2, 6, 6, 6), bool)
    box[2:4, 2:4, 2:4] = True
    both = surface.surface_distances(empty, empty, (1, 1, 1))
    assert np.isnan(surface.hd95_mm(both)) and np.isnan(surface.assd_mm(both))
    assert surface.nsd(both) == 1
    for pair in ((empty, box), (box, empty)):
        one = surface.surface_distances(*pair, (1, 1, 1))
        assert np.isnan(surface.hd95_mm(one)) and np.isnan(surface.assd_mm(one))
        assert surface.nsd(one) == 0
        assert boundary.bf_score(boundary.count_boundary(*pair, (1, 1, 1))) == 0
    assert boundary.bf_score(boundary.count_boundary(empty, empty, (1, 1, 1))) == 1


def test_pooled_distances_are_those_of_all_cases_together():
    rng = np.random.default_rng(2)
    lists = [[], []]
    cases = []
    for _ in range(3):
        prediction, reference = blobs(rng, (16, 16, 16), 1.5), blobs(rng, (16, 16, 16), 1.5)
        spacing = rng.uniform(0.5, 2, 3)
        cases.append(surface.surface_distances(prediction, reference, spacing))
        for part, values in zip(lists, with_scipy(prediction, reference, spacing), strict=True):
            part.append(values)
    expect(surface.pool(cases), *map(np.concatenate, lists))
    assert not surface.pool([]).defined


def test_wrong_spacing_is_refused():
    mask = np.ones((3, 3, 3), bool)
    for spacing in ((1, 1), (1, 1, 0), (1, np.nan, 1)):
        with pytest.raises(ValueError, match="spacing_mm"):
            surface.surface_distances(mask, mask, spacing)


# MONAI, where it is installed.


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_monai(seed):
    monai_metrics = pytest.importorskip("monai.metrics", exc_type=ImportError)
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(16, 32, 3 if seed % 2 else 2))
    spacing = rng.uniform(0.3, 3, len(shape)).tolist()
    prediction, reference = blobs(rng, shape), blobs(rng, shape)
    if seed == 4:
        prediction[:], reference[:] = True, False
        reference[2:-2, :-3] = True
    distances = surface.surface_distances(prediction, reference, spacing)
    pair = [torch.from_numpy(mask[None, None].astype(np.uint8)) for mask in (prediction, reference)]
    options = {"include_background": True, "spacing": spacing}
    hd95 = monai_metrics.compute_hausdorff_distance(*pair, percentile=95, **options)
    assd = monai_metrics.compute_average_surface_distance(*pair, symmetric=True, **options)
    nsd = monai_metrics.compute_surface_dice(*pair, class_thresholds=[1.0], **options)
    assert surface.hd95_mm(distances) == pytest.approx(float(hd95), rel=1e-6)
    assert surface.assd_mm(distances) == pytest.approx(float(assd), rel=1e-6)
    assert surface.nsd(distances) == pytest.approx(float(nsd), rel=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_hausdorff_distance_agrees_with_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(9)
    for _ in range(5):
        masks = blobs(rng, (20, 22, 24)), blobs(rng, (20, 22, 24))
        distances = surface.surface_distances(*masks, (1, 1, 1))
        expected = metrics.hausdorff_distance(*map(surface.surface, masks))
        assert surface.hausdorff_mm(distances) == pytest.approx(expected, abs=1e-9)
