import numpy as np
import pytest
from scipy.integrate import quad

from spinejax.reports import curved

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINE[:3, 3] = 40, 60, -100
BACK, LEFT = (0.0, -1.0, 0.0), (-1.0, 0.0, 0.0)


def bow(z):
    """A spine that bends to the side and to the front, as (x, y) in mm at heights z."""
    return 12 * np.sin(z / 60), 15 * np.cos(z / 70)


def centres(heights):
    return np.stack([*bow(np.asarray(heights, float)), heights], axis=1)


def tube(radius_mm):
    """HU 1000 within a radius of the bow at each height, else 0; on a grid of 1 mm."""
    shape = (80, 120, 200)
    index = np.moveaxis(np.indices(shape), 0, -1)
    x, y, z = np.moveaxis(index @ AFFINE[:3, :3].T + AFFINE[:3, 3], -1, 0)
    at_x, at_y = bow(z)
    return (1000 * (np.hypot(x - at_x, y - at_y) < radius_mm)).astype(np.int16)


@pytest.mark.parametrize("toward", [BACK, LEFT], ids=["side", "front"])
def test_a_bent_tube_is_drawn_as_a_straight_column(toward):
    line = curved.centreline(centres(np.arange(75, -76, -15)), 0.5, 0)
    picture = curved.straighten(tube(8), AFFINE, line, toward, (-20, 20), order=1, fill=-1000)
    assert picture.shape == (len(line.points), 81)
    inside = picture[4:-4] > 500
    offsets = np.linspace(-20, 20, 81)
    middle = (inside * offsets).sum(axis=1) / inside.sum(axis=1)
    assert np.abs(middle).max() < 1  # a voxel
    # 16 mm times the cosine of the bend, up to 3 % less, and 1 mm for the voxels at each side.
    width = inside.sum(axis=1) * 0.5
    assert width.min() >= 14.5 and width.max() <= 17


def test_lengths_along_the_curve_are_true():
    line = curved.centreline(centres(np.arange(75, -76, -15)), 0.5, 10)
    slope = lambda z: np.sqrt(1 + (np.cos(z / 60) / 5) ** 2 + (15 / 70 * np.sin(z / 70)) ** 2)  # noqa: E731
    length = quad(slope, -75, 75)[0] + 20
    assert (len(line.points) - 1) * 0.5 == pytest.approx(length, abs=0.6)
    steps = np.linalg.norm(np.diff(line.points, axis=0), axis=1)
    np.testing.assert_allclose(steps[:-1], 0.5, atol=0.01)
    rows = [line.nearest(point)[0] for point in centres([75, 0, -75])]
    assert rows[0] == pytest.approx(20, abs=1) and rows[0] < rows[1] < rows[2]


def test_along_a_straight_spine_the_picture_is_a_slice():
    array = np.random.default_rng(0).integers(-500, 1000, (21, 31, 41)).astype(np.float32)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    points = np.array([[-10.0, -15.0, z] for z in (30, 20, 10)])
    line = curved.centreline(points, 1.0, 5)
    side = curved.straighten(array, affine, line, BACK, (-5, 5), order=1, fill=0)
    np.testing.assert_allclose(side, array[10, 10:21, 5:36].T[::-1], atol=0.5)
    front = curved.straighten(array, affine, line, LEFT, (-5, 5), order=0, fill=0)
    np.testing.assert_array_equal(front, array[5:16, 15, 5:36].T[::-1])


def test_a_single_vertebra_has_a_line_through_it():
    line = curved.centreline(np.array([[1.0, 2.0, 3.0]]), 1.0, 10)
    np.testing.assert_allclose(line.points[[0, -1]], [[1, 2, 13], [1, 2, -7]])
    np.testing.assert_allclose(line.tangents, np.tile([0, 0, -1.0], (21, 1)))


def test_the_centre_of_a_cut_vertebra_behind_the_bodies_does_not_bend_the_curve():
    bodies = np.array([[0.0, 0.0, -30.0 * n] for n in range(4)])
    cut = np.array([[0.0, -40.0, 5.0]])
    line = curved.centreline(np.concatenate([cut, bodies]), 1.0, 10)
    np.testing.assert_allclose(line.points[:, :2], 0, atol=1e-9)


def test_the_error_of_one_centre_tilts_no_row():
    points = np.array([[0.0, 0.0, -25.0 * n] for n in range(7)])
    points[3, 0] = 5.0
    line = curved.centreline(points, 1.0, 10)
    assert line.tangents[:, 2].max() < -np.cos(np.radians(4))
    exact = np.degrees(np.arctan2(5.0, 25.0))
    assert exact > 11  # the tilt of a curve through all centres
