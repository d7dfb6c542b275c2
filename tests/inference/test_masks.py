"""Cleaning masks: against brute force, scipy on padded arrays, and shapes with known answers."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from spinejax.inference import masks
from spinejax.io import nifti

SPACINGS = st.sampled_from([0.4, 0.5, 0.7, 1.0, 2.5])


def opened_by_hand(mask, spacing, radius, axis):
    """Union of the elements that fit into the mask, which goes on beyond the border as it ends.

    Loops over the element's voxels: no box, no slabs, no scipy.
    """
    pad = 13
    reach = range(-6, 7)
    element = [
        offset
        for offset in itertools.product(reach, reach, reach)
        if sum((o * s) ** 2 for o, s in zip(offset, spacing, strict=True)) <= radius**2 + 1e-9
        and (axis is None or offset[axis] == 0)
    ]
    wide = np.pad(mask, pad, mode="edge")
    fits = np.ones_like(wide)
    for offset in element:  # rolled ends reach no farther than 12 voxels in: not into the mask
        fits &= np.roll(wide, [-o for o in offset], (0, 1, 2))
    covered = np.zeros_like(wide)
    for offset in element:
        covered |= np.roll(fits, offset, (0, 1, 2))
    return covered[pad:-pad, pad:-pad, pad:-pad]


@settings(max_examples=80, deadline=None)
@given(
    mask=hnp.arrays(
        bool,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=9),
        elements=st.sampled_from([True, True, True, True, False]),
        fill=st.nothing(),
    ),
    spacing=st.tuples(SPACINGS, SPACINGS, SPACINGS),
    radius=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0, 1.1, 1.5, 2.0]),
    axis=st.sampled_from([None, 0, 1, 2]),
)
def test_opening_is_the_union_of_the_elements_that_fit(mask, spacing, radius, axis):
    before = mask.copy()
    result = masks.opening(mask, spacing_mm=spacing, radius_mm=radius, axis=axis)
    np.testing.assert_array_equal(result, opened_by_hand(mask, spacing, radius, axis))
    np.testing.assert_array_equal(mask, before)
    assert not (result & ~mask).any()


def smooth(shape, seed=0):
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5) > 0.02


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("order", ["C", "F"])
def test_slabs_change_nothing(axis, order, monkeypatch):
    mask = np.asarray(smooth((30, 25, 40)), order=order)
    how = dict(spacing_mm=(0.5, 0.4, 0.8), radius_mm=1.0, axis=axis)
    whole = masks.opening(mask, **how)
    monkeypatch.setattr(masks, "_SLAB_VOXELS", 1)
    np.testing.assert_array_equal(masks.opening(mask, **how), whole)
    assert whole.sum() < mask.sum()


@pytest.mark.parametrize("axis", range(3))
def test_one_and_a_half_pixels_are_a_square_of_three(axis):
    mask = np.zeros((24, 26, 22), bool)
    mask[3:-3, 3:-3, 3:-3] = smooth((18, 20, 16))
    result = masks.opening(mask, spacing_mm=(0.35, 0.35, 0.35), radius_mm=0.525, axis=axis)
    for one, other in zip(np.moveaxis(mask, axis, 0), np.moveaxis(result, axis, 0), strict=True):
        np.testing.assert_array_equal(other, ndimage.binary_opening(one, np.ones((3, 3))))


@pytest.mark.parametrize("radius_mm, axis", [(0.0, None), (0.49, None), (0.99, 1), (1.9, 0)])
def test_a_radius_that_reaches_no_neighbour_changes_nothing(radius_mm, axis):
    mask = smooth((9, 9, 9))
    spacing = (0.5, 2.0, 2.0) if axis == 0 else (1.0, 0.5, 1.0)
    assert masks.opening(mask, spacing_mm=spacing, radius_mm=radius_mm, axis=axis) is mask
    empty = np.zeros((4, 4, 4), bool)
    assert not masks.opening(empty, spacing_mm=(1, 1, 1), radius_mm=3.0, axis=axis).any()


@pytest.mark.parametrize("spacing", [0.25, 0.5])
def test_the_same_millimetres_go_on_every_grid(spacing):
    grid = (np.arange(int(16 / spacing)) + 0.5) * spacing
    x, y, z = np.meshgrid(grid, grid, grid, indexing="ij")
    ball = (x - 8) ** 2 + (y - 8) ** 2 + (z - 8) ** 2 < 5**2
    plate = np.abs(y - 8) < 0.5  # 1 mm thick
    result = masks.opening(ball | plate, spacing_mm=(spacing,) * 3, radius_mm=1.0, axis=None)
    assert not result[np.abs(x - 8) > 6.5].any()
    assert (result & ball).sum() > 0.98 * ball.sum()


def test_what_the_border_of_the_scan_cuts_is_not_eaten():
    mask = np.zeros((20, 20, 20), bool)
    mask[5:15, 5:15, :] = True  # runs out at both ends
    mask[:2, :5, :] = True  # the corner of something larger outside
    for axis in (None, 0, 1, 2):
        result = masks.opening(mask, spacing_mm=(1, 1, 1), radius_mm=1.5, axis=axis)
        np.testing.assert_array_equal(result, mask)
    mask[:, 18, 10] = True  # thin, from border to border: not thicker for being cut
    mask[0, 10, 0] = True
    result = masks.opening(mask, spacing_mm=(1, 1, 1), radius_mm=1.5, axis=2)
    assert not result[:, 18].any() and not result[0, 10, 0]


def test_opening_takes_the_stated_memory(monkeypatch):
    monkeypatch.setattr(masks, "_SLAB_VOXELS", 2**17)
    mask = np.zeros((160, 160, 160), bool)
    mask[:12, :12, :12] = mask[-12:, -12:, -12:] = True
    for axis in (None, 2):
        tracemalloc.start()
        masks.opening(mask, spacing_mm=(1, 1, 1), radius_mm=1.0, axis=axis)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < mask.size + 8 * 2**17


def test_small_components_go_by_volume_not_by_voxels():
    mask = np.zeros((20, 20, 20), bool)
    mask[2:6, 2:6, 2:6] = True  # 64 voxels
    mask[10:12, 10:12, 10:12] = True  # 8 voxels
    mask[12, 12, 12] = True  # touches by a corner: the same component, 9 voxels
    keep = masks.remove_small_components(mask, spacing_mm=(5, 5, 5), min_ml=1.125)
    np.testing.assert_array_equal(keep, mask)  # 9 x 0.125 ml
    keep = masks.remove_small_components(mask, spacing_mm=(5, 5, 5), min_ml=1.126)
    assert keep.sum() == 64
    keep = masks.remove_small_components(mask, spacing_mm=(1, 1, 1), min_ml=1.0)
    assert not keep.any()


def test_components_of_a_mask_with_voxels_in_every_corner_take_the_stated_memory():
    mask = np.zeros((160, 160, 160), bool)
    mask[:12, :12, :12] = mask[-12:, -12:, -12:] = True  # 1.7 ml each
    mask[80, 80, 80] = True
    tracemalloc.start()
    keep = masks.remove_small_components(mask, spacing_mm=(1, 1, 1), min_ml=1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert keep.sum() == 2 * 12**3
    assert peak < 5.5 * mask.size


def test_cavities_are_filled_only_where_enclosed():
    mask = np.zeros((9, 9, 9), bool)
    mask[2:7, 2:7, 2:7] = True
    hollow = mask.copy()
    hollow[4, 4, 4] = False
    np.testing.assert_array_equal(masks.fill_cavities(hollow), mask)
    hollow[4, 4, 5:] = False  # a canal to the outside
    np.testing.assert_array_equal(masks.fill_cavities(hollow), hollow)


def cleaned(mask, **how):
    fields = dict(
        spacing_mm=(1, 1, 1), opening_mm=0, min_component_ml=0, fill_holes=False, slice_axis=2
    )
    return masks.clean(mask, **{**fields, **how})


def spine(shape=(40, 40, 60)):
    """A tube around a canal, 8 mm wide, that runs through the scan; a hollow in its wall."""
    x, y, _ = np.ogrid[tuple(slice(0, n) for n in shape)]
    distance = np.hypot(x - 20, y - 20)
    tube = np.broadcast_to((distance > 4) & (distance < 12), shape).copy()
    hollow = tube.copy()
    hollow[28, 20, 30:33] = False
    return hollow, tube


def test_the_canal_stays_open_although_each_slice_encloses_it():
    hollow, tube = spine()
    by_slice = [ndimage.binary_fill_holes(one) for one in np.moveaxis(hollow, 2, 0)]
    assert by_slice[5][20, 20]
    np.testing.assert_array_equal(cleaned(hollow, fill_holes=True), tube)
    # Also where the scan shows only a part of the tube, or the tube ends within the scan.
    tube[:, :, :10] = hollow[:, :, :10] = False
    np.testing.assert_array_equal(cleaned(hollow, fill_holes=True), tube)
    np.testing.assert_array_equal(cleaned(hollow), hollow)


def test_the_canal_of_a_real_spine_stays_open(real_data):
    folder = real_data / "verse" / "derivatives" / "sub-verse014"
    volume = nifti.read_labels(folder / "sub-verse014_seg-vert_msk.nii.gz")
    mask = volume.array > 0
    axial = next(axis for axis, letter in enumerate(volume.orientation) if letter in "IS")
    slices = np.moveaxis(mask, axial, 0)
    enclosed = sum((ndimage.binary_fill_holes(one) & ~one).sum() for one in slices)
    result = cleaned(
        mask,
        spacing_mm=volume.spacing_mm,
        opening_mm=1.5,
        min_component_ml=1.0,
        fill_holes=True,
        slice_axis=axial,
    )
    assert enclosed > 1000
    assert (result & ~mask).sum() < 0.1 * enclosed
    assert 2 * (result & mask).sum() / (result.sum() + mask.sum()) > 0.95


def test_opening_comes_before_components_and_these_before_filling():
    hollow, tube = spine()
    mask = hollow.copy()
    mask[34:38, 18:22, 20:24] = True  # 64 voxels
    mask[32:34, 20, 22] = True  # and the bridge that ties them to the tube
    how = dict(opening_mm=1.5, min_component_ml=0.1)
    assert cleaned(mask, min_component_ml=0.1)[35, 20, 22]
    result = cleaned(mask, **how, fill_holes=True)
    assert not result[33:].any()
    opened = masks.opening(tube, spacing_mm=(1, 1, 1), radius_mm=1.5, axis=2)
    np.testing.assert_array_equal(result, opened)


def test_empty_masks_stay_empty():
    empty = np.zeros((5, 6, 7), bool)
    assert not cleaned(empty, opening_mm=2, min_component_ml=1, fill_holes=True).any()
