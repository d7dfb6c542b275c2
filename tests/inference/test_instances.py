"""From label maps to vertebrae: real maps, broken as networks break them, and repaired.

The real masks are correct, so that Dice tells how well a map was repaired.
"""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from spinejax import labels
from spinejax.errors import InputError
from spinejax.inference.instances import find_instances
from tests.support.label_maps import FILES, ids_of, label_vertebrae, labelled, repaired
from tests.support.nifti_files import one_line


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
    assert record.certain and len(record.margins) == len(record.labels)
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


@pytest.mark.parametrize(("foot", "ids"), [(4, (20, 21, 22)), (-4, (20, 21, 22, 24))])
def test_a_sliver_at_the_end_is_a_vertebra_below_the_last_one_and_none_beside_it(foot, ids):
    array, spacing = column(3)
    lowest = int(np.nonzero(array)[2].min())
    array = np.ascontiguousarray(array[:, :, lowest + foot :])  # cuts L3, or ends 8 mm below it
    array[23:29, 36:42, :2] = 24  # 0.6 ml
    assert ids_of(label_vertebrae(array, spacing).array) == ids


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
