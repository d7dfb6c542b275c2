"""Measures of a scan in closed form: sizes, distances, HU by layer, noise, detail."""

import numpy as np
import pytest
from scipy import ndimage

from spinejax import geometry
from spinejax.phantom import measures
from spinejax.volume import LabelVolume, Volume

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def grid(x: float, y: float, z: float) -> np.ndarray:
    """Affine of canonical axes with these voxel sizes."""
    return LPS @ np.diag([x, y, z, 1.0])


def two_boxes() -> np.ndarray:
    """L1 of 4x5x6 voxels over L2 of 6x5x4, nothing at the border."""
    mask = np.zeros((12, 12, 20), np.uint8)
    mask[4:8, 3:8, 11:17] = 20
    mask[3:9, 3:8, 3:7] = 21
    return mask


# Sizes and distances.


@pytest.mark.parametrize("orientation", ["LPS", "PIR", "RAS", "SAL"])
def test_sizes_are_those_of_boxes_in_any_orientation(orientation):
    mask, affine = geometry.reorient(two_boxes(), grid(1.0, 2.0, 3.0), orientation)
    found = measures.measure_labels(LabelVolume(mask, affine))
    assert found["volume_ml"] == pytest.approx({"L1": 120 * 6 / 1000, "L2": 120 * 6 / 1000})
    assert found["right_left_mm"] == pytest.approx({"L1": 4 * 1, "L2": 6 * 1})
    assert found["front_back_mm"] == pytest.approx({"L1": 5 * 2, "L2": 5 * 2})
    assert found["height_mm"] == pytest.approx({"L1": 6 * 3, "L2": 4 * 3})
    # Middles at z = 13.5 and 4.5, at x = 5.5 both.
    assert found["mask_distance_mm"] == pytest.approx({"L1-L2": 9 * 3})
    assert found["scan"] == pytest.approx({"cut_share": 0, "labelled_height": 14 / 20})


def test_vertebrae_cut_above_or_below_are_counted_but_not_measured():
    mask = two_boxes()[:, :, :15]
    found = measures.measure_labels(LabelVolume(mask, LPS))
    assert set(found["volume_ml"]) == {"L2"}
    assert "mask_distance_mm" not in found
    assert found["scan"] == pytest.approx({"cut_share": 1 / 2, "labelled_height": 12 / 15})


def test_an_extent_that_the_side_of_the_scan_ends_is_left_out():
    found = measures.measure_labels(LabelVolume(two_boxes()[3:], LPS))
    assert set(found["volume_ml"]) == {"L1", "L2"}
    assert set(found["right_left_mm"]) == {"L1"}
    assert set(found["front_back_mm"]) == {"L1", "L2"}


def test_body_distances_are_between_successive_levels_only():
    points = {1: [0, 0, 90], 2: [0, 0, 80], 4: [0, 0, 60], 18: [3, 4, 30], 20: [3, 0, 27]}
    points = {label: np.array(point, float) for label, point in points.items()}
    found = measures.measure_labels(LabelVolume(two_boxes(), grid(1.0, 1.0, 2.0)), points)
    # C2-C4 skips one; T11-L1 are neighbours in a spine without T12.
    assert found["body_distance_mm"] == pytest.approx({"C1-C2": 20, "T11-L1": np.hypot(4, 6)})


# HU.


def cube(size: int = 9) -> np.ndarray:
    mask = np.zeros((30, 30, 30), np.uint8)
    mask[10 : 10 + size, 10 : 10 + size, 10 : 10 + size] = 22
    return mask


def test_layers_of_a_cube_have_the_voxels_that_geometry_says():
    _, parts, depth = measures.layers(cube(), np.ones(3))
    assert parts["inside"].sum() == 9**3
    assert parts["shell"].sum() == 9**3 - 7**3
    assert parts["deep"].sum() == 5**3
    # Six faces of 9x9 three deep, and along edges and at corners what lies within 3 mm.
    quarter = sum(a * a + b * b <= 9 for a in range(1, 4) for b in range(1, 4))
    eighth = sum(
        a * a + b * b + c * c <= 9 for a in range(1, 4) for b in range(1, 4) for c in range(1, 4)
    )
    assert parts["around"].sum() == 6 * 81 * 3 + 12 * 9 * quarter + 8 * eighth
    assert depth[parts["shell"]].max() == depth.max(where=parts["inside"], initial=-9) == -0.5
    assert depth[parts["around"]].min() == 0.5


def test_the_border_of_a_scan_is_no_surface():
    _, parts, _ = measures.layers(np.ones((6, 6, 6), np.uint8), np.ones(3))
    assert parts["deep"].all() and not parts["shell"].any()


def test_grey_values_of_each_layer_are_found_again():
    mask = cube()
    hu = np.full(mask.shape, -100.0, np.float32)
    _, parts, _ = measures.layers(mask, np.ones(3))
    hu[mask > 0] = 300
    hu[11:18, 11:18, 11:18] = 200
    hu[12:17, 12:17, 12:17] = 100
    found, histograms = measures.measure_hu(Volume(hu, LPS), mask)
    assert set(found["shell_hu"].values()) == {300.0}
    assert set(found["deep_hu"].values()) == {100.0}
    assert set(found["around_hu"].values()) == {-100.0}
    # 125 voxels of 100, 218 of 200, 386 of 300.
    assert found["inside_hu"] == {"5": 100.0, "25": 200.0, "50": 300.0, "75": 300.0, "95": 300.0}
    # The innermost 28 voxels are too few.
    inside = {"-2.5": 100.0, "-1.5": 200.0, "-0.5": 300.0}
    outside = dict.fromkeys(("+0.5", "+1.5", "+2.5", "+3.5"), -100.0)
    assert found["depth_hu"] == inside | outside
    assert histograms["shell"].sum() == pytest.approx(1)
    assert measures.BINS_HU[histograms["shell"].argmax()] == 300


def test_bright_elsewhere_is_the_share_of_bright_voxels_without_label():
    mask = cube()
    hu = np.where(mask > 0, 151, 0)
    hu[0, 0, :27] = 151
    hu[1, 0, :10] = 150  # not above
    found, _ = measures.measure_hu(Volume(hu, LPS), mask)
    assert found["scan"]["bright_elsewhere"] == pytest.approx(27 / (27 + 729))


# Noise.


def muscle(sd: float, *, grain: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((72, 72, 72)).astype(np.float32)
    if grain:
        noise = ndimage.gaussian_filter(noise, grain, mode="wrap")
        noise /= noise.std()
    return 50 + sd * noise


@pytest.mark.parametrize("sd", [5.0, 20.0, 90.0])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5), (3.0, 3.0, 3.0)])
def test_white_noise_is_measured_as_it_is(sd, spacing):
    hu = muscle(sd)
    found = measures.noise(hu, np.zeros(hu.shape, bool), np.array(spacing))
    assert found["noise_hu"] == pytest.approx(sd, rel=0.03)


def test_grainy_noise_is_measured_and_outlives_smoothing():
    nothing = np.zeros((72, 72, 72), bool)
    fine, coarse = (measures.noise(muscle(20, grain=g), nothing, np.ones(3)) for g in (0, 0.8))
    assert coarse["noise_hu"] == pytest.approx(20, rel=0.08)
    # A Gaussian of 0.75 voxels leaves of white noise (2 sqrt(pi) 0.75)^-1.5 = 0.23, less what the
    # local mean takes.
    assert fine["noise_prepared_hu"] == pytest.approx(20 * 0.23, rel=0.1)
    assert coarse["noise_prepared_hu"] > 2 * fine["noise_prepared_hu"]


def test_bone_fat_and_air_do_not_count_as_noise():
    hu = muscle(20)
    plain = measures.noise(hu, np.zeros(hu.shape, bool), np.ones(3))["noise_hu"]
    hu[:20] += 600
    hu[-15:] -= 150
    hu[30:34, 30:34] = -1000
    assert measures.noise(hu, np.zeros(hu.shape, bool), np.ones(3))["noise_hu"] == pytest.approx(
        plain, rel=0.05
    )


def test_a_few_vessels_in_muscle_hardly_change_the_noise():
    hu = muscle(20)
    hu[10, 10] += 60
    hu[40, 50] += 60
    found = measures.noise(hu, np.zeros(hu.shape, bool), np.ones(3))
    assert found["noise_hu"] == pytest.approx(20, rel=0.03)


def test_without_muscle_there_is_no_noise():
    hu = muscle(20) + 300
    assert measures.noise(hu, np.zeros(hu.shape, bool), np.ones(3)) == {}
    assert measures.noise(muscle(20), np.ones(hu.shape, bool), np.ones(3)) == {}


def test_tall_scans_give_the_noise_of_their_middle(monkeypatch):
    monkeypatch.setattr(measures, "_MOST_VOXELS", 72 * 72 * 24)
    hu = muscle(20)
    hu[:, :, :20] = hu[:, :, -20:] = 50
    found = measures.noise(hu, np.zeros(hu.shape, bool), np.ones(3))
    assert found["noise_hu"] == pytest.approx(20, rel=0.05)


def test_detail_is_the_share_of_structure_finer_than_two_millimetres():
    x, y, z = np.meshgrid(*(np.arange(48.0),) * 3, indexing="ij")
    near = np.ones(x.shape, bool)

    def of(wave_mm):
        return measures.detail(200 * np.sin(2 * np.pi * y / wave_mm), near, (1.0, 1.0, 1.0))

    # A Gaussian of s mm leaves exp(-(2 pi s / wave)^2 / 2) of a wave; ends of the array disturb it.
    for wave in (8.0, 16.0):
        left = np.exp(-((2 * np.pi * 2.0 / wave) ** 2) / 2)
        assert of(wave) == pytest.approx(1 - left, abs=0.04)
    assert of(6.0) > of(12.0) > of(24.0)
