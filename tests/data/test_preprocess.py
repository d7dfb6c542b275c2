"""Slices against scipy on the whole volume, against closed forms, and there and back again."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spinejax import geometry, schema
from spinejax.data.preprocess import (
    SlicePreprocess,
    preprocess_box,
    preprocess_slabs,
    restore_slices,
    slice_geometry,
)
from spinejax.errors import InputError
from spinejax.volume import CANONICAL, PLANES, LabelVolume, Volume, slice_view

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
PLAIN = {"smoothing_sigma_mm": 0.0, "clamp_hu": (-2000, 4000)}


def volume_of(array, spacing=(1.0, 1.0, 1.0), orientation=CANONICAL):
    """`array` is canonical; the volume is the same scan stored in `orientation`."""
    affine = LPS @ np.diag([*spacing, 1.0])
    return Volume(*geometry.reorient(array, affine, orientation))


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(-1024, 2000, shape).astype(np.int16)


def ball(shape, spacing, radius_mm):
    centre = [(n - 1) / 2 for n in shape]
    grid = np.indices(shape)
    squares = [((g - c) * s) ** 2 for g, c, s in zip(grid, centre, spacing, strict=True)]
    return (sum(squares) <= radius_mm**2).astype(np.uint8)


def dice(a, b):
    return 2 * np.sum(a & b) / (np.sum(a) + np.sum(b))


def all_labels(volume, labels, how, **options):
    return np.concatenate([mark for _, _, mark in preprocess_slabs(volume, how, labels, **options)])


def preprocess_scan(volume, how):
    return np.concatenate([image for _, image, _ in preprocess_slabs(volume, how)])


def put_back(slices, volume, plane):
    """Slices as an array on the volume's grid, as predictions are made."""
    output = np.zeros(volume.shape, slices.dtype)
    slice_view(output, plane)[:] = slices
    return output


@pytest.mark.parametrize("mode", ["resample", "isotropic"])
@pytest.mark.parametrize("plane", PLANES)
def test_agrees_with_scipy_on_the_whole_volume(plane, mode):
    spacing = (0.7, 1.4, 2.3)
    scan = noise((31, 24, 19))
    how = SlicePreprocess(plane=plane, spacing_mm=1.0, mode=mode)
    smooth = ndimage.gaussian_filter(
        scan.astype(float), [0.75 / s for s in spacing], mode="nearest", truncate=4.0
    )
    clamped = np.clip(smooth, -1000, 800)
    wanted = [round(n * s) for n, s in zip(scan.shape, spacing, strict=True)]
    if mode == "resample":
        wanted[PLANES[plane]] = scan.shape[PLANES[plane]]
    zoom = [m / n for m, n in zip(wanted, scan.shape, strict=True)]
    expected = ndimage.zoom(clamped, zoom, order=1, mode="nearest", grid_mode=True)
    expected = np.moveaxis(expected, PLANES[plane], 0)
    got = preprocess_scan(volume_of(scan, spacing), how)
    assert got.dtype == np.int16 and got.shape == expected.shape
    assert np.abs(got - expected).max() <= 0.51  # rounding to whole HU


def test_smoothing_is_in_millimetres_on_every_axis():
    spacing, sigma = (0.5, 1.0, 0.8), 1.5
    scan = np.zeros((41, 31, 35), np.float32)
    scan[20, 15, 17] = 30000
    how = SlicePreprocess(
        smoothing_sigma_mm=sigma, clamp_hu=(-1000, 30000), mode="resize", size=(31, 35)
    )
    weights = preprocess_scan(volume_of(scan, spacing), how).astype(float)
    weights /= weights.sum()
    for axis, (centre, step) in enumerate(zip((20, 15, 17), spacing, strict=True)):
        offset = (np.arange(scan.shape[axis]) - centre) * step
        profile = weights.sum(axis=tuple({0, 1, 2} - {axis}))
        assert np.sqrt(profile @ offset**2) == pytest.approx(sigma, rel=0.05)


def test_smoothing_comes_before_the_clamp():
    """Metal at 3000 HU: smoothed and then clamped it bleeds more than clamped and then smoothed."""
    scan = np.full((9, 9, 9), -1000, np.int16)
    scan[4, 4, 4] = 3000
    got = preprocess_scan(volume_of(scan), SlicePreprocess(smoothing_sigma_mm=1.0))
    peak = ndimage.gaussian_filter(scan.astype(float), 1.0)[4, 4, 4]
    assert got[4, 4, 4] == round(peak)
    assert got.min() == -1000


def test_equal_spacing_only_clamps():
    scan = noise((7, 12, 9))
    got = preprocess_scan(volume_of(scan), SlicePreprocess(smoothing_sigma_mm=0.0))
    np.testing.assert_array_equal(got, np.clip(scan, -1000, 800))


def test_smoothing_below_a_tenth_of_a_voxel_is_skipped():
    scan = noise((6, 12, 9))
    how = SlicePreprocess(
        smoothing_sigma_mm=0.4, clamp_hu=(-2000, 4000), mode="resize", size=(12, 9)
    )
    got = preprocess_scan(volume_of(scan, (4.1, 0.9, 0.9)), how)
    expected = ndimage.gaussian_filter(
        scan.astype(float), [0, 0.4 / 0.9, 0.4 / 0.9], mode="nearest"
    )
    assert np.abs(got - expected).max() <= 0.51


@pytest.mark.parametrize("mode", ["resample", "resize"])
def test_a_ramp_in_millimetres_stays_that_ramp(mode):
    """Interior pixels of a linear image keep their value at their place: the grids are aligned."""
    spacing = (3.0, 0.6, 1.7)
    shape = (3, 60, 40)
    y = (np.arange(60) + 0.5) * spacing[1]
    z = (np.arange(40) + 0.5) * spacing[2]
    scan = np.broadcast_to(10 * y[:, None] + 5 * z, shape).astype(np.float32)
    how = SlicePreprocess(mode=mode, spacing_mm=0.9, size=(50, 33), **PLAIN)
    volume = volume_of(scan, spacing)
    grid = slice_geometry(volume, how)
    y_out = (np.arange(grid.shape[0]) + 0.5) * grid.spacing_mm[0]
    z_out = (np.arange(grid.shape[1]) + 0.5) * grid.spacing_mm[1]
    expected = 10 * y_out[:, None] + 5 * z_out
    got = preprocess_scan(volume, how)
    assert np.abs(got - expected)[:, 2:-2, 2:-2].max() <= 0.51


def test_extent_is_kept_and_spacing_is_close_to_the_wanted_one():
    volume = volume_of(noise((4, 101, 53)), (2.0, 0.72, 1.9))
    grid = slice_geometry(volume, SlicePreprocess(spacing_mm=1.0))
    for n, s, m, t in zip(
        grid.native_shape, grid.native_spacing_mm, grid.shape, grid.spacing_mm, strict=True
    ):
        assert n * s == pytest.approx(m * t)
        assert t == pytest.approx(1.0, rel=0.5 / m)
    assert grid.zooms == pytest.approx((grid.shape[0] / 101, grid.shape[1] / 53))


def test_isotropic_slices_keep_the_extent_and_take_the_nearest_label():
    scan = noise((9, 20, 30))
    marks = np.random.default_rng(1).integers(0, 25, scan.shape).astype(np.uint8)
    volume = volume_of(scan, (4.0, 1.5, 0.5))
    how = SlicePreprocess(mode="isotropic", spacing_mm=2.0)
    grid = slice_geometry(volume, how)
    assert (grid.n_slices, *grid.shape) == (18, 15, 8)
    assert (grid.native_slices, grid.slice_spacing_mm) == (9, 2.0)
    _, _, got = next(preprocess_slabs(volume, how, LabelVolume(marks, volume.affine)))
    # Voxels of 4 mm are two of 2 mm each; along z the middle of each fourth pair is an edge.
    np.testing.assert_array_equal(got[::2], got[1::2])
    for axis in range(3):
        middles = (np.arange(got.shape[axis]) + 0.5) * (marks.shape[axis] / got.shape[axis])
        marks = np.take(marks, np.floor(middles).astype(int), axis)
    np.testing.assert_array_equal(got, marks)


@pytest.mark.parametrize("plane", PLANES)
def test_planes_cut_the_canonical_axes_whatever_the_file_order(plane):
    scan = noise((5, 6, 7))
    how = SlicePreprocess(plane=plane, **PLAIN)
    got = preprocess_scan(volume_of(scan, orientation="PIR"), how)
    np.testing.assert_array_equal(got, np.moveaxis(scan, PLANES[plane], 0))


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 4)] * 3),
    slab=st.integers(1, 16),
    plane=st.sampled_from(sorted(PLANES)),
    dtype=st.sampled_from([np.int16, np.float32]),
    mode=st.sampled_from(schema.choices("data.preprocess.mode")),
    intensity=st.sampled_from(schema.choices("data.preprocess.intensity")),
    clamp=st.sampled_from([(-1000, 800), (100, 1500), (-900, -200)]),
)
def test_slab_size_changes_no_number(shape, spacing, slab, plane, dtype, mode, intensity, clamp):
    volume = volume_of(noise(shape).astype(dtype), spacing)
    labels = LabelVolume((volume.array > 0).astype(np.uint8), volume.affine)
    how = SlicePreprocess(plane=plane, mode=mode, size=(9, 11), intensity=intensity, clamp_hu=clamp)
    whole = [list(part) for part in preprocess_slabs(volume, how, labels, slab_slices=100)]
    assert len(whole) == 1
    parts = list(preprocess_slabs(volume, how, labels, slab_slices=slab))
    assert [start for start, _, _ in parts] == list(range(0, len(whole[0][1]), slab))
    np.testing.assert_array_equal(np.concatenate([image for _, image, _ in parts]), whole[0][1])
    np.testing.assert_array_equal(np.concatenate([label for _, _, label in parts]), whole[0][2])
    low, high = how.range_hu
    assert low <= whole[0][1].min() and whole[0][1].max() <= high
    assert low <= how.fill_hu <= high


@given(
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 4)] * 3),
    corner=st.tuples(*[st.floats(0, 0.999)] * 3),
    extent=st.tuples(*[st.floats(0, 1)] * 3),
    plane=st.sampled_from(sorted(PLANES)),
    mode=st.sampled_from(schema.choices("data.preprocess.mode")),
    intensity=st.sampled_from(schema.choices("data.preprocess.intensity")),
)
def test_a_box_has_the_numbers_of_the_whole(shape, spacing, corner, extent, plane, mode, intensity):
    volume = volume_of(noise(shape), spacing)
    how = SlicePreprocess(plane=plane, mode=mode, size=(9, 11), intensity=intensity)
    whole = preprocess_scan(volume, how)
    starts = [int(share * n) for share, n in zip(corner, whole.shape, strict=True)]
    box = tuple(
        slice(start, start + 1 + int(share * (n - start - 1)))
        for start, share, n in zip(starts, extent, whole.shape, strict=True)
    )
    np.testing.assert_array_equal(preprocess_box(volume, how, box), whole[box])


@pytest.mark.parametrize("intensity", schema.choices("data.preprocess.intensity"))
def test_memory_is_bounded_by_the_slab(intensity):
    volume = volume_of(np.zeros((160, 200, 220), np.int16), orientation="RAS")
    how = SlicePreprocess(intensity=intensity)
    tracemalloc.start()
    try:
        for _, image, _ in preprocess_slabs(volume, how, slab_slices=8):
            assert len(image) <= 8
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    slab = (8 + 2 * 3) * 200 * 220 * 4
    assert peak < 4 * slab < 0.5 * volume.array.size * 4


@pytest.mark.parametrize("orientation", geometry.ALL_ORIENTATIONS)
def test_labels_return_exactly_in_every_orientation(orientation):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 29, (5, 7, 6)).astype(np.uint8)
    volume = volume_of(labels.astype(np.int16), orientation=orientation)
    stored = LabelVolume(volume.native.astype(np.uint8), volume.native_affine)
    for plane in PLANES:
        how = SlicePreprocess(plane=plane)
        grid = slice_geometry(volume, how)
        slices = all_labels(volume, stored, how, slab_slices=2)
        np.testing.assert_array_equal(slices, np.moveaxis(labels, PLANES[plane], 0))
        restored = np.rint(restore_slices(slices.astype(np.float32), grid)).astype(np.uint8)
        np.testing.assert_array_equal(put_back(restored, volume, plane), stored.array)


@pytest.mark.parametrize("spacing", [(2.0, 0.8, 1.25), (1.0, 0.7, 0.7), (3.0, 1.3, 1.0)])
@pytest.mark.parametrize("plane", PLANES)
def test_resampled_labels_return_with_dice_above_97_percent(spacing, plane):
    shape = tuple(int(60 / s) for s in spacing)
    mask = ball(shape, spacing, 22.0)
    volume = volume_of(mask.astype(np.int16), spacing, "RAS")
    labels = LabelVolume(volume.native.astype(np.uint8), volume.native_affine)
    how = SlicePreprocess(plane=plane, spacing_mm=1.0)
    slices = all_labels(volume, labels, how)
    restored = restore_slices(slices.astype(np.float32), slice_geometry(volume, how)) > 0.5
    back = put_back(restored, volume, plane)
    assert dice(back, labels.array.astype(bool)) > 0.97


def test_labels_keep_ids_and_centre_of_mass_when_resized():
    labels = np.zeros((1, 90, 120), np.uint8)
    labels[0, 30:60, 40:80] = 28
    volume = volume_of(labels.astype(np.int16))
    how = SlicePreprocess(mode="resize", size=(45, 40))
    slices = all_labels(volume, LabelVolume(labels, volume.affine), how)
    assert set(np.unique(slices)) == {0, 28}
    got = (np.array(ndimage.center_of_mass(slices[0])) + 0.5) * (2, 3)
    assert got == pytest.approx((45, 60), abs=1.0)


def test_restoring_refuses_another_grid():
    grid = slice_geometry(volume_of(noise((3, 8, 8))), SlicePreprocess())
    with pytest.raises(ValueError, match="foreground"):
        restore_slices(np.zeros((1, 9, 8), np.float32), grid)


def test_labels_of_another_shape_are_refused():
    volume = volume_of(noise((3, 8, 8)))
    labels = LabelVolume(np.zeros((3, 8, 9), np.uint8), volume.affine)
    with pytest.raises(ValueError, match="labels"):
        next(preprocess_slabs(volume, SlicePreprocess(), labels))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"plane": "sagital"}, "did you mean 'sagittal'"),
        ({"mode": "crop"}, "mode"),
        ({"smoothing_sigma_mm": -1.0}, "smoothing_sigma_mm"),
        ({"smoothing_sigma_mm": float("nan")}, "smoothing_sigma_mm"),
        ({"spacing_mm": 0.0}, "spacing_mm"),
        ({"clamp_hu": (800, -1000)}, "clamp_hu"),
        ({"clamp_hu": (-1000.5, 800)}, "clamp_hu"),
        ({"clamp_hu": (-1000, 1e6)}, "clamp_hu"),
        ({"size": (0, 256)}, "size"),
        ({"intensity": "op_windw"}, "data.preprocess.intensity.*did you mean 'op_window'"),
        ({"mode": "nativ"}, "did you mean 'native'"),
        ({"smoothing_sigma_px": -0.1}, "smoothing_sigma_px"),
        ({"smoothing_sigma_px": float("nan")}, "smoothing_sigma_px"),
        ({"smoothing_kernel_px": 4}, "smoothing_kernel_px=4 must be an odd whole number"),
        ({"smoothing_kernel_px": 0}, "smoothing_kernel_px"),
        ({"smoothing_kernel_px": 3.5}, "smoothing_kernel_px"),
    ],
)
def test_unusable_settings_name_the_field(fields, named):
    with pytest.raises(InputError, match=named) as error:
        SlicePreprocess(**fields)
    assert "\n" not in str(error.value)


def test_identity_ignores_fields_that_the_mode_does_not_use():
    assert SlicePreprocess(size=(8, 8)).identity() == SlicePreprocess(size=[9, 9]).identity()
    assert SlicePreprocess(spacing_mm=2.0).identity() != SlicePreprocess().identity()
    resize = SlicePreprocess(mode="resize")
    assert SlicePreprocess(mode="resize", spacing_mm=2.0).identity() == resize.identity()
    assert SlicePreprocess(mode="resize", size=(8, 8)).identity() != resize.identity()
    native = SlicePreprocess(mode="native")
    assert SlicePreprocess(mode="native", size=(8, 8), spacing_mm=2.0).identity() == (
        native.identity()
    )


def test_real_scan_keeps_its_bone(real_data):
    """Labelled voxels of an anisotropic scan stay bright, and Dice survives the trip."""
    from spinejax.io import scanfile

    folder = real_data / "totalsegmentator"
    scan, labels = scanfile.read_pair(
        folder / "example_ct.nii.gz", folder / "example_vertebrae_verse-ids.nii.gz"
    )
    how = SlicePreprocess(spacing_mm=1.0)
    slices = all_labels(scan, labels, how)
    image = preprocess_scan(scan, how)
    native = scan.array[labels.array > 0]
    assert np.median(image[slices > 0]) == pytest.approx(np.median(native), abs=25)
    restored = restore_slices((slices > 0).astype(np.float32), slice_geometry(scan, how)) > 0.5
    back = put_back(restored, scan, "sagittal")
    assert dice(back, labels.array > 0) > 0.97


def test_a_scan_that_would_become_gigantic_is_refused():
    nothing = np.broadcast_to(np.zeros((), np.int16), (512, 512, 600))
    volume = Volume(nothing, np.diag([-5.0, -5, 4, 1]))
    with pytest.raises(InputError, match=r"512 x 2560 x 2400 voxels.*5 x 5 x 4 mm"):
        slice_geometry(volume, SlicePreprocess())
    assert slice_geometry(volume, SlicePreprocess(mode="native")).n_slices == 512
