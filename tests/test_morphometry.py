"""Morphometry of drawn bodies with known sizes and tilts, of phantoms and of real masks."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinejax import geometry, labels, morphometry
from spinejax.io import scanfile
from spinejax.metrics.body_centres import body_centres
from spinejax.volume import Volume

LPS = geometry.LPS_TO_RAS


def spine(
    sizes, *, spacing=(1.0, 1.0, 1.0), tilts=None, sides=None, first=20, hu=None, distance=36.0
):
    """Draw boxes with an arch behind: labels and scan.

    Args:
        sizes: (anterior, posterior) height of each body from head to foot, mm.
        spacing: voxel size, mm.
        tilts: forward lean of each, degrees.
        sides: lean to the left of each, degrees.
        first: VerSe id of the highest.
        hu: HU of each body.
        distance: from centre to centre, mm.
    """
    count = len(sizes)
    shape = np.ceil(np.array([90, 110, distance * (count + 1) + 20]) / spacing).astype(int)
    axes = [np.arange(n) * side for n, side in zip(shape, spacing, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    array, scan = np.zeros(shape, np.uint8), np.full(shape, 40, np.int16)
    for place, (front, behind) in enumerate(sizes):
        centre = np.array([45.0, 40.0, shape[2] * spacing[2] - 15 - distance * (place + 0.7)])
        u, v, w = x - centre[0], y - centre[1], z - centre[2]
        lean = math.radians(0.0 if tilts is None else tilts[place])
        # The upper end moves forwards, which is towards smaller y.
        v, w = v * math.cos(lean) + w * math.sin(lean), w * math.cos(lean) - v * math.sin(lean)
        side = math.radians(0.0 if sides is None else sides[place])
        u, w = u * math.cos(side) - w * math.sin(side), w * math.cos(side) + u * math.sin(side)
        half = 0.25 * (front + behind) - 0.25 * (front - behind) * v / 16.0
        body = (np.abs(u) <= 20) & (np.abs(v) <= 16) & (np.abs(w) <= half)
        pedicle = (np.abs(np.abs(u) - 13) <= 3) & (v >= 10) & (v <= 34) & (np.abs(w - 3) <= 4)
        lamina = (np.abs(u) <= 16) & (v >= 32) & (v <= 38) & (np.abs(w) <= 8)
        spinous = (np.abs(u) <= 3) & (v >= 36) & (v <= 58) & (np.abs(w + 2) <= 7)
        array[body | pedicle | lamina | spinous] = first + place
        scan[body] = 150 if hu is None else hu[place]
    return array, Volume(scan, LPS @ np.diag([*spacing, 1.0]))


def measured(array, scan, **more):
    return morphometry.measure(array, scan, body_centres(array, scan.steps_mm), **more)


def test_heights_depth_and_volume_are_those_of_the_drawing():
    sizes = [(28.0, 28.0), (20.0, 28.0), (28.0, 24.0)]
    array, scan = spine(sizes, hu=[150, 80, 220])
    found = measured(array, scan)
    assert list(found) == [20, 21, 22]
    for (label, one), (front, behind), hu in zip(found.items(), sizes, (150, 80, 220), strict=True):
        # Bands end before the walls: a wedge is less steep between them than between the walls.
        mean, slope = 0.5 * (front + behind), front - behind
        assert one.height_anterior_mm == pytest.approx(mean + 0.325 * slope, abs=0.5)
        assert one.height_middle_mm == pytest.approx(mean, abs=0.5)
        assert one.height_posterior_mm == pytest.approx(mean - 0.325 * slope, abs=0.5)
        assert one.wedge == pytest.approx(one.height_anterior_mm / one.height_posterior_mm)
        assert one.depth_mm == pytest.approx(33.0, abs=1.0)
        assert one.volume_ml == pytest.approx(np.count_nonzero(array == label) / 1000)
        assert one.hu_mean == one.hu_median == hu


@pytest.mark.parametrize(
    "spacing",
    [(1.0, 1.0, 0.35), (1.0, 0.35, 0.5), (0.7, 0.5, 0.3), (1.0, 1.0, 1.0), (1.5, 1.5, 2.5)],
    ids=str,
)
def test_heights_and_depths_of_upright_bodies_end_where_their_voxels_end(spacing):
    array, scan = spine([(24.3, 24.3), (25.6, 25.6)], spacing=spacing)
    found = measured(array, scan)
    for label, one in found.items():
        voxels = np.argwhere(array == label)
        column = voxels[voxels[:, 0] == round(45 / spacing[0])]
        height = np.ptp(column[column[:, 1] == round(40 / spacing[1])][:, 2]) + 1
        level = column[column[:, 2] == round(column[:, 2].mean())][:, 1]
        depth = np.flatnonzero(np.diff(level) > 1)[0] + 1  # up to the canal
        for name in ("anterior", "middle", "posterior"):
            height_mm = getattr(one, f"height_{name}_mm")
            assert height_mm == pytest.approx(height * spacing[2], abs=0.05)
        assert one.depth_mm == pytest.approx(depth * spacing[1], abs=0.05)


@pytest.mark.parametrize("first", [4, 20])
@pytest.mark.parametrize("scale", [0.15, 0.2, 0.22, 0.25, 0.28, 0.4])
def test_a_body_that_is_too_small_has_reasons_in_place_of_numbers(first, scale):
    array, scan = spine([(28.0, 28.0)], first=first)
    small = Volume(scan.array, LPS @ np.diag([scale, scale, scale, 1.0]))
    one = measured(array, small)[first]
    for name in morphometry.NUMBERS:
        value = getattr(one, name)
        assert (value is None) == (name in one.not_measured), name
        assert value is None or math.isfinite(value), name


@given(
    front=st.floats(14, 30),
    behind=st.floats(20, 30),
    lean=st.floats(-30, 30),
    side=st.floats(-20, 20),
    spacing=st.sampled_from([(1.0, 1.0, 1.0), (1.5, 1.5, 1.5), (0.8, 0.8, 2.0), (2.0, 1.0, 1.0)]),
)
@settings(max_examples=12, deadline=None)
def test_a_tilted_body_has_the_heights_of_the_upright_one(front, behind, lean, side, spacing):
    array, scan = spine([(front, behind)], tilts=[lean], sides=[side], spacing=spacing)
    one = measured(array, scan)[20]
    voxel = max(spacing)
    assert one.height_middle_mm == pytest.approx(0.5 * (front + behind), abs=1.0 * voxel)
    slope = 0.325 * (front - behind)
    assert one.height_anterior_mm - one.height_posterior_mm == pytest.approx(
        2 * slope, abs=1.2 * voxel
    )


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "SAL"])
def test_measures_do_not_depend_on_the_order_of_the_axes(orientation):
    array, scan = spine([(28, 26), (24, 26)], tilts=[8, -5])
    turned, affine = geometry.reorient(scan.array, scan.affine, orientation)
    again = Volume(np.ascontiguousarray(turned), affine)
    native, _ = geometry.reorient(array, scan.affine, orientation)
    labels_again = again.to_canonical(np.ascontiguousarray(native))
    first, second = measured(array, scan), measured(labels_again, again)
    for label, one in first.items():
        for name in morphometry.NUMBERS:
            value, other = getattr(one, name), getattr(second[label], name)
            assert value == other if value is None else value == pytest.approx(other, rel=1e-5)


def test_angles_are_those_between_the_drawn_bodies():
    array, scan = spine([(27, 27)] * 5, tilts=[-12, -6, 0, 10, 20], sides=[9, 4, 0, -5, -8])
    found = measured(array, scan)
    assert [one.angle_below_deg is None for one in found.values()] == [False] * 4 + [True]
    assert found[20].distance_below_mm == pytest.approx(36.0, abs=0.7)
    angles = morphometry.cobb_angles(found)
    assert angles["lumbar_lordosis"].cobb_deg == pytest.approx(32.0, abs=2.5)
    assert angles["coronal"].cobb_deg == pytest.approx(17.0, abs=2.5)
    assert (angles["coronal"].upper, angles["coronal"].lower) == ("L1", "L5")
    assert angles["thoracic_kyphosis"].cobb_deg is None
    assert angles["thoracic_kyphosis"].not_measured == "T4 is not in the labels"


def test_a_kyphosis_bends_forwards_and_is_positive():
    count = labels.id_of("T12") - labels.id_of("T4") + 1
    tilts = np.linspace(20, -16, count)
    array, scan = spine([(20, 20)] * count, tilts=tilts, first=11, distance=30.0)
    angle = morphometry.cobb_angles(measured(array, scan))["thoracic_kyphosis"]
    assert angle.cobb_deg == pytest.approx(36.0, abs=2.5)


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.0, 0), (0.19, 0), (0.2, 1), (0.25, 2), (0.39, 2), (0.4, 3), (0.9, 3)]
)
def test_grades_begin_at_their_limits(loss, expected):
    assert morphometry.grade(loss) == expected


def test_a_wedge_and_a_crushed_body_are_graded_and_their_neighbours_are_not():
    array, scan = spine([(28, 28), (14, 28), (28, 28), (16, 16), (28, 28)], first=18)
    found = measured(array, scan)
    assert [one.genant for one in found.values()] == [0, 2, 0, 3, 0]
    assert found[21].crush == pytest.approx(16 / 28, abs=0.03)


@pytest.mark.parametrize(("name", "graded"), [("T3", False), ("T13", True), ("L5", False)])
def test_vertebrae_from_t4_to_l4_are_graded_with_t13_between(name, graded):
    array, scan = spine([(14, 28)], first=labels.id_of(name))
    (one,) = measured(array, scan).values()
    assert one.wedge < 0.75
    assert (one.genant, one.not_measured.get("genant")) == (
        (2, None) if graded else (None, "the grade is defined from T4 to L4")
    )


def test_a_body_that_the_scan_ends_is_not_measured_and_the_reason_is_said():
    array, scan = spine([(28, 28), (28, 28)])
    end = int(np.flatnonzero((array == 20).any(axis=(0, 1)))[-1]) - 12
    cut, shorter = array[:, :, :end], Volume(scan.array[:, :, :end], scan.affine)
    found = measured(cut, shorter, cut=[20])
    assert found[20].height_middle_mm is None and found[20].volume_ml is None
    assert found[20].not_measured["height_middle_mm"] == "the scan's edge cuts the body"
    assert found[20].not_measured["volume_ml"] == "the scan's edge cuts the vertebra"
    assert found[21].height_middle_mm == pytest.approx(28, abs=0.6)
    assert found[21].not_measured["crush"] == "no neighbour was measured"


@pytest.mark.parametrize("first", [1, 14, 22])
def test_every_none_has_a_reason(first):
    array, scan = spine([(28, 28), (20, 24)], first=first)
    for one in measured(array, scan).values():
        absent = {name for name in morphometry.NUMBERS if getattr(one, name) is None}
        assert absent == set(one.not_measured)


def test_the_atlas_has_no_body_and_the_axis_no_upper_end_plate():
    array, scan = spine([(20, 20), (20, 20), (18, 18)], first=1)
    found = measured(array, scan)
    assert found[1].not_measured["height_middle_mm"] == "C1 has no body"
    assert found[2].not_measured["height_middle_mm"] == "the dens hides the upper end plate"
    assert found[2].lower is not None and found[2].upper is None
    assert found[3].height_middle_mm == pytest.approx(18, abs=0.6)


@pytest.mark.parametrize("what", ["a ball", "a plate", "a voxel"])
def test_what_is_no_vertebra_is_not_measured(what):
    array = np.zeros((60, 60, 60), np.uint8)
    x, y, z = np.indices(array.shape) - 30
    if what == "a ball":
        array[x**2 + y**2 + z**2 < 2**2] = 20
    elif what == "a plate":
        array[(np.abs(z) < 1)] = 20
    else:
        array[30, 30, 30] = 20
    scan = Volume(np.zeros(array.shape, np.int16), LPS)
    one = measured(array, scan)[20]
    assert one.height_middle_mm is None and one.genant is None
    assert one.not_measured["height_middle_mm"]


def test_metal_in_the_core_gives_no_hu():
    array, scan = spine([(28, 28)], hu=[150])
    middle = np.argwhere(array == 20).mean(0).round().astype(int)
    scan.array[middle[0] - 3 : middle[0] + 4, 30:45, middle[2] - 3 : middle[2] + 4] = 3000
    one = measured(array, scan)[20]
    assert one.hu_mean is None and one.not_measured["hu_mean"] == "metal lies in the body's core"


def test_an_empty_mask_has_no_measures():
    array = np.zeros((20, 20, 20), np.uint8)
    found = morphometry.measure(array, Volume(array.astype(np.int16), LPS), {})
    assert found == {}
    angle = morphometry.cobb_angles(found)["coronal"]
    assert angle.cobb_deg is None and "fewer than two" in angle.not_measured


def test_a_real_lumbar_spine_has_plausible_bodies(real_data):
    folder = real_data / "verse"
    (path,) = folder.glob("derivatives/sub-verse014/*_msk.nii.gz")
    scan = scanfile.read_volume(folder / "rawdata/sub-verse014/sub-verse014_ct.nii.gz")
    array = scanfile.read_volume(path).array.astype(np.uint8)
    found = measured(array, scan)
    assert [labels.name(i) for i in found] == ["L1", "L2", "L3", "L4", "L5"]
    for one in found.values():
        for name in ("anterior", "middle", "posterior"):
            assert 22 < getattr(one, f"height_{name}_mm") < 32
        assert 22 < one.depth_mm < 40 and 40 < one.hu_median < 300
        assert one.genant in (0, None)
    assert 25 < morphometry.cobb_angles(found)["lumbar_lordosis"].cobb_deg < 80


def test_a_real_fracture_is_graded(real_data):
    """L1 of sub-verse004 has less than half the height of its neighbours."""
    (path,) = (real_data / "verse").glob("derivatives/sub-verse004/*_msk.nii.gz")
    mask = scanfile.read_volume(path)
    array = mask.array.astype(np.uint8)
    found = measured(array, mask)
    grades = {labels.name(i): one.genant for i, one in found.items()}
    assert grades["L1"] == 3
    assert all(grade == 0 for name, grade in grades.items() if name not in ("L1", "L5"))


def test_real_centres_agree_with_the_annotators(real_data):
    folder = real_data / "verse" / "derivatives" / "sub-verse014"
    (path,) = folder.glob("*_msk.nii.gz")
    (points,) = folder.glob("*_ctd.json")
    mask = scanfile.read_volume(path)
    found = measured(mask.array.astype(np.uint8), mask)
    for point in json.loads(points.read_text())[1:]:
        at = mask.native_affine @ [point["X"], point["Y"], point["Z"], 1.0]
        assert np.linalg.norm(found[point["label"]].centre - at[:3]) < 6.0
