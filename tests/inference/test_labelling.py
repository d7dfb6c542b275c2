"""From label maps to named vertebrae: real masks, broken in the ways in which networks break them.

The real masks are known to be right, so that what is repaired can be told by Dice.
"""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spinejax import geometry, labels
from spinejax.errors import InputError
from spinejax.inference.instances import Instance, Instances, find_instances
from spinejax.inference.pieces import STEP_MM, VOLUME_ML, Axis
from spinejax.inference.sequence import UNCERTAIN_MARGIN, label_instances
from spinejax.io import nifti
from tests.support.nifti_files import one_line

FILES = {
    "verse004": "verse/derivatives/sub-verse004/sub-verse004_seg-vert_msk.nii.gz",
    "verse014": "verse/derivatives/sub-verse014/sub-verse014_seg-vert_msk.nii.gz",
    "gl003": "verse/derivatives/sub-gl003/sub-gl003_dir-ax_seg-vert_msk.nii.gz",
    "totalsegmentator": "totalsegmentator/example_vertebrae_verse-ids.nii.gz",
}
_READ = {}


@pytest.fixture
def real(real_data):
    """name -> (canonical VerSe ids, cut to what is there along x and y; spacing)."""

    def read(name):
        if name not in _READ:
            volume = nifti.read_labels(real_data / FILES[name])
            array = volume.array
            spacing = volume.spacing_mm
            if name == "gl003":  # 0.29 mm
                array, spacing = array[::4, ::4], (4 * spacing[0], 4 * spacing[1], spacing[2])
            x, y, _ = geometry.bounding_box(array > 0)
            _READ[name] = np.ascontiguousarray(array[x, y]), spacing
        array, spacing = _READ[name]
        return array.copy(), spacing

    return read


def label_vertebrae(classes, spacing_mm, *, spine=None, beyond_mm=(0.0, 0.0), **how):
    """Instances of a label map, named."""
    found = find_instances(classes, spacing_mm, spine=spine, beyond_mm=beyond_mm)
    return label_instances(found, **how)


def ids_of(array):
    return tuple(sorted((int(i) for i in np.unique(array) if i), key=labels.order))


def dice(one, other):
    return {
        i: 2 * ((one == i) & (other == i)).sum() / ((one == i).sum() + (other == i).sum())
        for i in ids_of(other)
    }


def labelled(array, spacing, **how):
    return label_vertebrae(labels.to_contiguous(array), spacing, **how)


def repaired(broken, array, spacing, least):
    result = labelled(broken, spacing)
    assert result.record.labels == ids_of(array)
    scores = dice(result.array, array)
    assert min(scores.values()) > least, scores
    return result


@pytest.mark.parametrize("name", FILES)
def test_a_right_map_stays_as_it_is(real, name):
    array, spacing = real(name)
    before = array.copy()
    result = repaired(array, array, spacing, 0.999)
    np.testing.assert_array_equal(array, before)
    assert result.array.dtype == np.uint8 and result.array.shape == array.shape
    # Nothing changes but cavities, which are filled.
    changed = result.array != array
    assert not array[changed].any()
    record = result.record
    assert record.margin > UNCERTAIN_MARGIN and len(record.margins) == len(record.labels)
    assert not record.reversed and record.anomalies == record.skipped == record.dropped == ()
    assert list(result.centroids_mm) == list(record.labels)
    for i, point in result.centroids_mm.items():
        middle = np.array(ndimage.center_of_mass(array == i)) * spacing
        np.testing.assert_allclose(point, middle, atol=0.3)


def test_volumes_and_cuts_are_those_of_the_mask(real):
    array, spacing = real("totalsegmentator")
    found = find_instances(labels.to_contiguous(array), spacing)
    ids = ids_of(array)
    for item, i in zip(found.items, ids, strict=True):
        assert item.volume_ml == pytest.approx((array == i).sum() * 0.027, rel=0.01)
        assert item.counts[labels.VERSE_IDS.index(i)] == (array == i).sum()
    assert [i for item, i in zip(found.items, ids, strict=True) if item.cut_head] == [18, 19]
    assert not any(item.cut_foot for item in found.items)
    assert found.room_mm == (0.0, pytest.approx(3.0 * 42))
    # The map may be a part of the scan: then nothing is cut there.
    inside = find_instances(labels.to_contiguous(array), spacing, beyond_mm=(30.0, 0.0))
    assert not any(item.cut_head for item in inside.items) and inside.room_mm[0] == 30


def test_cut_vertebrae_are_named_and_dropped_on_request(real):
    array, spacing = real("totalsegmentator")
    kept, dropped = labelled(array, spacing), labelled(array, spacing, drop_cut=True)
    assert kept.record.labels == dropped.record.labels and kept.record.dropped == ()
    assert dropped.record.dropped == (18, 19)
    assert ids_of(dropped.array) == tuple(dropped.centroids_mm) == tuple(range(20, 25))
    array, spacing = real("verse004")
    array = np.ascontiguousarray(array[:, :, 80:270])  # through L5 and L4, T9, T10 and T11
    result = repaired(array, array, spacing, 0.99)
    foot = ids_of(array[:, :, 0])
    head = ids_of(array[:, :, -1])
    assert foot and head
    assert labelled(array, spacing, drop_cut=True).record.dropped == (*head, *foot)
    assert result.record.dropped == ()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("shift", [-1, 1])
def test_one_vertebra_with_its_neighbours_label_is_corrected(real, name, shift):
    # It touches that neighbour: one connected piece of one label, twice as long as a vertebra.
    array, spacing = real(name)
    ids = ids_of(array)
    for wrong in ids[2:5:2]:
        broken = array.copy()
        broken[array == wrong] = wrong + shift
        result = repaired(broken, array, spacing, 0.6)
        assert np.mean(list(dice(result.array, array).values())) > 0.92


@pytest.mark.parametrize("name", ["verse004", "gl003", "totalsegmentator"])
def test_half_a_vertebra_with_another_label_is_joined(real, name):
    array, spacing = real(name)
    wrong = ids_of(array)[4]
    for axis, label in itertools.product((0, 1, 2), (wrong - 1, wrong + 1)):
        broken = array.copy()
        places = np.nonzero(array == wrong)
        half = places[axis] > np.median(places[axis])
        broken[tuple(p[half] for p in places)] = label
        repaired(broken, array, spacing, 0.6)


def test_patches_of_other_labels_specks_and_holes_are_repaired(real):
    array, spacing = real("verse004")
    rng = np.random.default_rng(0)
    broken = array.copy()
    bone = np.argwhere(array > 0)
    for x, y, z in bone[rng.choice(len(bone), 60)]:  # within vertebrae
        at = (slice(x - 1, x + 2), slice(y - 2, y + 3), slice(z - 2, z + 3))
        broken[at] = np.where(broken[at] > 0, rng.integers(1, 26), 0)
    for x, y, z in bone[rng.choice(len(bone), 60)]:
        broken[x, y, z : z + 2] = 0
    for x, y, z in np.stack([rng.integers(2, n - 2, 300) for n in array.shape], axis=1):
        if not array[x - 2 : x + 2, y - 2 : y + 2, z - 2 : z + 2].any():
            broken[x - 1 : x + 1, y - 1 : y + 1, z - 1 : z + 1] = rng.integers(1, 26)
    result = repaired(broken, array, spacing, 0.97)
    before = (broken > 0) & (array == 0)
    assert ((result.array > 0) & before).sum() < 0.05 * before.sum()


def test_a_spine_of_one_label_falls_into_its_vertebrae(real):
    array, spacing = real("verse014")
    one = np.where(array > 0, 22, 0).astype(np.uint8)
    found = find_instances(one, spacing)
    assert len(found.items) == 5
    for number, i in enumerate(ids_of(array), start=1):
        own = found.array == number
        assert 2 * (own & (array == i)).sum() / (own.sum() + (array == i).sum()) > 0.85


def test_a_vertebra_that_was_not_found_is_a_gap(real):
    array, spacing = real("verse004")
    for missing in (17, 20, 22):
        broken = np.where(array == missing, 0, array)
        record = repaired(broken, broken, spacing, 0.99).record
        assert record.skipped == (missing,) and record.anomalies == ()


@pytest.mark.parametrize("name", FILES)
def test_a_scan_upside_down_is_noticed_and_its_header_followed(real, name):
    array, spacing = real(name)
    result = labelled(np.ascontiguousarray(array[:, :, ::-1]), spacing)
    assert result.record.reversed
    heights = [point[2] for point in result.centroids_mm.values()]
    assert heights == sorted(heights, reverse=True)
    assert not labelled(np.ascontiguousarray(array[::-1]), spacing).record.reversed


def test_sums_of_probabilities_take_the_place_of_counts(real):
    array, spacing = real("verse014")
    found = find_instances(labels.to_contiguous(array), spacing)
    sums = np.zeros((5, 26))
    sums[np.arange(5), np.arange(17, 22)] = 1e4  # T11 to L3
    result = label_instances(found, class_sums=sums)
    assert result.record.labels == tuple(range(18, 23))
    assert ids_of(result.array) == tuple(range(18, 23))
    with pytest.raises(InputError, match="class_sums") as error:
        label_instances(found, class_sums=sums[:4])
    one_line(error)


@pytest.mark.parametrize("scale", [0.66, 1.0])
def test_six_lumbar_vertebrae_end_with_l6_even_of_a_small_person(scale):
    """The upper ones are known by their ribs, the lower ones by the sacrum; they do not agree."""
    ids = (18, 19, 20, 21, 22, 23, 24, 25)
    at = [labels.VERSE_IDS.index(i) for i in ids]
    one_up = [0.0, 0.0, 0.0, 0.0, 0.1, 0.6, 0.8, 1.0]  # how much of each looks as the one above it
    sums = np.zeros((8, 26))
    for row, (place, share) in enumerate(zip(at, one_up, strict=True)):
        sums[row, place] += 1 - share
        sums[row, labels.VERSE_IDS.index(ids[row - 1])] += share
    heights = -scale * np.cumsum([0.0, *STEP_MM[at[:-1]]])
    items = tuple(
        Instance(np.array([0.0, 0.0, z]), float(scale**3 * VOLUME_ML[place]), row, False, False)
        for z, place, row in zip(heights, at, sums, strict=True)
    )
    spine = Instances(np.zeros((1, 1, 1), np.uint8), items, (6.0,) * 3, (0.0, 45.0))
    record = label_instances(spine).record
    assert record.labels == ids and record.anomalies == ("L6",)
    assert label_instances(spine, anomalies=()).record.labels != ids


def test_a_piece_that_is_no_vertebra_is_left_out_and_counted(real):
    array, spacing = real("totalsegmentator")
    low = min(np.argwhere(array == 24)[:, 2])
    middle = np.argwhere(array == 24).mean(0).astype(int)
    sacrum = array.copy()
    sacrum[middle[0] - 6 : middle[0] + 6, middle[1] - 4 : middle[1] + 4, low - 8 : low - 1] = 24
    result = labelled(sacrum, spacing)
    assert result.record.labels == ids_of(array) and result.record.unnamed == 1
    assert len(result.record.margins) == len(result.record.labels)
    assert list(result.centroids_mm) == list(ids_of(array)) and result.record.anomalies == ()
    assert not result.array[(sacrum == 24) & (array == 0)].any()


@pytest.mark.parametrize("name, scale", [("verse014", 0.8), ("totalsegmentator", 0.7)])
def test_a_child_keeps_all_vertebrae(real, name, scale):
    array, spacing = real(name)
    result = labelled(array, tuple(scale * mm for mm in spacing))
    assert result.record.labels == ids_of(array) and result.record.unnamed == 0


def test_the_mask_of_stage_one_decides_what_is_vertebra(real):
    array, spacing = real("verse014")
    spine = array > 0
    thick = ndimage.grey_dilation(array, size=(3, 5, 5))
    thin = np.where(ndimage.binary_erosion(spine, iterations=2), array, 0)
    for classes in (thick, thin):
        result = labelled(classes, spacing, spine=spine)
        assert result.record.labels == ids_of(array)
        outside = (result.array > 0) & ~spine
        assert not outside[~ndimage.binary_fill_holes(spine)].any()
        assert (result.array[spine] > 0).mean() > 0.9
    assert not labelled(array, spacing, spine=np.zeros_like(spine)).array.any()


def ball(shape, centre, radius, spacing):
    grids = np.ogrid[tuple(slice(0, n) for n in shape)]
    return (
        sum(((g - c) * s) ** 2 for g, c, s in zip(grids, centre, spacing, strict=True)) < radius**2
    )


def column(count, first=20, step=30, radius=14.5, tilt=0.0):
    """Balls for vertebrae, one below the other, the first one at the top; 2 mm voxels."""
    shape = (50, 50 + int(tilt * step * count / 2), count * step // 2 + 10)
    array = np.zeros(shape, np.uint8)
    for k in range(count):
        place = (25, 20 + tilt * k * step / 2, shape[2] - 12 - k * step / 2)
        array[ball(shape, place, radius, (2, 2, 2))] = first + k
    return array, (2.0, 2.0, 2.0)


def test_a_tilted_spine_is_ordered_along_itself():
    array, spacing = column(5, tilt=1.0)
    result = label_vertebrae(labels.to_contiguous(array), spacing)
    assert result.record.labels == (20, 21, 22, 23, 24)


def test_a_blob_is_no_vertebra_but_a_cut_one_is():
    array, spacing = column(4)
    array[2:5, 2:5, 30:34] = 24
    assert ids_of(label_vertebrae(array, spacing).array) == (20, 21, 22, 23)
    low = array[:, :, 8:]  # the last ball, cut
    ids = label_vertebrae(np.ascontiguousarray(low), spacing, drop_cut=True).record
    assert ids.labels == (20, 21, 22, 23) and ids.dropped == (23,)


def test_two_bodies_grown_together_are_parted():
    x, y, _ = np.ogrid[:30, :30, :50]
    tube = np.broadcast_to(np.hypot(x - 15, y - 15) < 11, (30, 30, 50)).copy()
    tube[:, :, :8] = tube[:, :, -8:] = False  # 68 mm long, and nowhere a waist
    found = find_instances(np.where(tube, 21, 0).astype(np.uint8), (2.0, 2.0, 2.0))
    upper, lower = found.items
    assert upper.volume_ml == pytest.approx(lower.volume_ml, rel=0.1)
    assert upper.centroid_mm[2] - lower.centroid_mm[2] == pytest.approx(34, abs=3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (30, 30, 1), (1, 40, 40)])
def test_empty_and_flat_maps(shape):
    empty = label_vertebrae(np.zeros(shape, np.uint8), (1, 1, 1))
    assert empty.record.labels == () and empty.record.margin == math.inf
    assert empty.centroids_mm == {} and not empty.array.any()
    full = np.full(shape, 20, np.uint8)
    result = label_vertebrae(full, (1.0, 1.0, 1.0))
    assert result.record.labels == ((20,) if full.size > 300 else ())
    assert label_vertebrae(full, (1.0, 1.0, 1.0), drop_cut=True).record.dropped == (
        (20,) if full.size > 300 else ()
    )


def test_specks_only_are_nothing():
    rng = np.random.default_rng(0)
    noise = (rng.random((40, 40, 40)) > 0.99) * rng.integers(1, 27, (40, 40, 40))
    assert label_vertebrae(noise, (1, 1, 1)).record.labels == ()


def test_noise_everywhere_is_labelled_somehow():
    noise = np.random.default_rng(0).integers(0, 27, (16, 16, 16)).astype(np.uint8)
    coarse = np.kron(noise, np.ones((3, 3, 3), np.uint8))
    result = label_vertebrae(coarse, (2.0, 2.0, 2.0))
    assert set(ids_of(result.array)) == set(result.record.labels)


@pytest.mark.parametrize(
    "classes, spacing, how, text",
    [
        (np.zeros((4, 4), np.uint8), (1, 1, 1), {}, "x, y, z"),
        (np.zeros((4, 4, 0), np.uint8), (1, 1, 1), {}, "shape"),
        (np.zeros((4, 4, 4)), (1, 1, 1), {}, "float64"),
        (np.full((4, 4, 4), 28, np.uint8), (1, 1, 1), {}, "contiguous"),
        (np.full((4, 4, 4), -1), (1, 1, 1), {}, "contiguous"),
        (np.zeros((4, 4, 4), np.uint8), (1, 1), {}, "spacing"),
        (np.zeros((4, 4, 4), np.uint8), (1, 0, 1), {}, "spacing"),
        (np.zeros((4, 4, 4), np.uint8), (1, math.nan, 1), {}, "spacing"),
        (np.zeros((4, 4, 4), np.uint8), (1, 1, 1), {"spine": np.ones((4, 4, 5))}, "same grid"),
        (np.zeros((4, 4, 4), np.uint8), (1, 1, 1), {"anomalies": ["L7"]}, "L6"),
    ],
)
def test_bad_arguments_are_named_in_one_line(classes, spacing, how, text):
    with pytest.raises(InputError, match=text) as error:
        label_vertebrae(classes, spacing, **how)
    one_line(error)


def test_memory_is_a_few_bytes_for_each_voxel():
    array = np.zeros((200, 200, 200), np.uint8)
    array[:9, :9, :9] = 5
    array[-9:, -9:, -9:] = 9  # the box of both is the whole array
    array[95:105, 95:105, 95:105] = 7
    tracemalloc.start()
    label_vertebrae(array, (1.0, 1.0, 1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9.5 * array.size


def test_the_curve_measures_along_the_spine():
    z = np.arange(200)
    mask = np.zeros((40, 260, 200), bool)
    for k in z:
        mask[10:30, int(20 + k) : int(40 + k), k] = True  # 45 degrees
    axis = Axis(mask, np.array([1.0, 1.0, 1.0]))
    low, high = axis.along(np.array([[20.0, 80, 50], [20, 180, 150]]))
    assert high - low == pytest.approx(100 * math.sqrt(2), rel=0.02)
    assert STEP_MM.shape == (26,)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(4, 26)),
    label=st.integers(1, 26),
    holes=st.floats(0, 0.5),
    mm=st.floats(2.0, 9.0),
    seed=st.integers(0, 999),
)
@example(size=(9, 4, 22), label=1, holes=0.3, mm=6.0, seed=8)  # once parted without end
def test_ragged_pieces_of_coarse_maps_are_parted_and_numbered(size, label, holes, mm, seed):
    array = np.full(size, label, np.uint8)
    array[np.random.default_rng(seed).random(size) < holes] = 0
    array = np.pad(array, 2)
    found = find_instances(array, (mm, mm, mm), speck_ml=0.0, min_ml=0.0)
    # Fragments farther than 6 mm from any instance may go; nothing is invented.
    assert not found.array[~ndimage.binary_fill_holes(array > 0)].any()
    numbers = set(np.unique(found.array[found.array > 0]).tolist())
    assert numbers == set(range(1, len(found.items) + 1))
