"""Preprocessing of paper B, section II.A: a window of HU, a Gaussian in pixels, the scan's grid."""

import numpy as np
import pytest
from scipy import ndimage, signal

from spinejax import schema
from spinejax.data.preprocess import (
    SlicePreprocess,
    preprocess_slabs,
    restore_slices,
    slice_geometry,
)
from spinejax.volume import PLANES, slice_view
from tests.data.test_preprocess import noise, preprocess_scan, volume_of

WINDOW = {"intensity": "op_window", "clamp_hu": (100, 1500), "plane": "axial", "mode": "native"}


def test_identity_holds_what_its_intensity_reads():
    """Entries of paper A's settings, written before there was another intensity, stay valid."""
    assert SlicePreprocess(smoothing_sigma_px=2.0, smoothing_kernel_px=9).identity() == {
        "plane": "sagittal",
        "smoothing_sigma_mm": 0.75,
        "clamp_hu": (-1000.0, 800.0),
        "mode": "resample",
        "spacing_mm": 1.0,
    }
    window = SlicePreprocess(**WINDOW)
    assert window.identity() == {
        "plane": "axial",
        "clamp_hu": (100.0, 1500.0),
        "mode": "native",
        "intensity": "op_window",
        "smoothing_sigma_px": 0.7,
        "smoothing_kernel_px": 3,
    }
    assert SlicePreprocess(smoothing_sigma_mm=3.0, **WINDOW).identity() == window.identity()


@pytest.mark.parametrize(
    ("intensity", "clamp", "expected", "fill"),
    [
        ("clamp", (-1000, 800), (-1000, 800), -1000),
        ("op_window", (100, 1500), (0, 1500), 0),
        ("op_window", (-900, -200), (-900, 0), 0),
        ("op_window", (-50, 300), (-50, 300), 0),
    ],
)
def test_range_and_fill(intensity, clamp, expected, fill):
    how = SlicePreprocess(intensity=intensity, clamp_hu=clamp)
    assert how.range_hu == expected
    assert how.fill_hu == fill and isinstance(how.fill_hu, int)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(("sigma", "kernel"), [(0.7, 3), (1.3, 5), (0.7, 1), (0.0, 3)])
def test_window_then_gaussian_within_each_slice(plane, sigma, kernel):
    """Paper B, II.A, against two filters of scipy, of the kernel as a whole and of its axes."""
    scan = noise((9, 14, 11))
    how = SlicePreprocess(
        **WINDOW | {"plane": plane}, smoothing_sigma_px=sigma, smoothing_kernel_px=kernel
    )
    got = preprocess_scan(volume_of(scan, (0.5, 0.9, 3.0), "PIR"), how)
    slices = np.moveaxis(np.where((scan >= 100) & (scan <= 1500), scan, 0), PLANES[plane], 0)
    radius = kernel // 2
    offsets = np.arange(-radius, radius + 1)
    squares = offsets[:, None] ** 2 + offsets**2
    weights = np.exp(-squares / (2 * sigma**2)) if sigma else (squares == 0).astype(float)
    weights /= weights.sum()
    for image, native in zip(got, slices.astype(float), strict=True):
        padded = np.pad(native, radius, mode="edge")
        assert np.abs(image - signal.convolve2d(padded, weights, mode="valid")).max() <= 0.501
        if sigma:
            filtered = ndimage.gaussian_filter(native, sigma, mode="nearest", radius=radius)
            assert np.abs(image - filtered).max() <= 0.501


@pytest.mark.parametrize("mode", schema.choices("data.preprocess.mode"))
def test_window_keeps_its_bounds_and_drops_the_rest(mode):
    values = np.array([[-1024, -1, 0, 99, 99.9, 100, 101, 1500, 1500.1, 1501, 3071]], np.float32)
    how = SlicePreprocess(**WINDOW | {"mode": mode, "size": (1, 11)}, smoothing_sigma_px=0.0)
    got = preprocess_scan(volume_of(values[..., None]), how)
    assert got.tolist() == [[[0, 0, 0, 0, 0, 100, 101, 1500, 0, 0, 0]]]


@pytest.mark.parametrize("mode", schema.choices("data.preprocess.mode"))
@pytest.mark.parametrize("value", [-1024, 40, 3071])
def test_nothing_inside_the_window_leaves_exact_zeros(mode, value):
    scan = np.full((12, 10, 4), value, np.int16)
    how = SlicePreprocess(**WINDOW | {"mode": mode, "size": (7, 15)}, spacing_mm=0.8)
    assert not preprocess_scan(volume_of(scan), how).any()


def test_window_and_smoothing_come_before_resampling():
    spacing, scan = (0.7, 1.4, 2.0), noise((31, 24, 5))
    how = SlicePreprocess(**WINDOW | {"mode": "resample"}, spacing_mm=1.0)
    inside = np.where((scan >= 100) & (scan <= 1500), scan, 0).astype(float)
    smooth = ndimage.gaussian_filter(inside, 0.7, mode="nearest", radius=1, axes=(0, 1))
    zoom = (round(31 * 0.7) / 31, round(24 * 1.4) / 24, 1)
    expected = ndimage.zoom(smooth, zoom, order=1, mode="nearest", grid_mode=True)
    got = preprocess_scan(volume_of(scan, spacing), how)
    assert np.abs(got - np.moveaxis(expected, 2, 0)).max() <= 0.51


@pytest.mark.parametrize("intensity", schema.choices("data.preprocess.intensity"))
@pytest.mark.parametrize("plane", PLANES)
def test_native_keeps_the_grid_of_the_scan(plane, intensity):
    scan = noise((13, 9, 17))
    volume = volume_of(scan, (0.4, 2.5, 0.9), "PIR")
    how = SlicePreprocess(**WINDOW | {"plane": plane, "intensity": intensity})
    grid = slice_geometry(volume, how)
    assert grid.shape == grid.native_shape and grid.zooms == (1.0, 1.0)
    assert grid.spacing_mm == pytest.approx(grid.native_spacing_mm)
    slices = preprocess_scan(volume, how)
    assert slices.shape == np.moveaxis(scan, PLANES[plane], 0).shape
    probabilities = np.random.default_rng(1).random(slices.shape, np.float32)
    np.testing.assert_array_equal(restore_slices(probabilities, grid), probabilities)


def test_real_scan_through_the_window_of_paper_b(real_data):
    """Vertebrae lie inside 100 to 1500 HU almost whole, and less than half of the rest does."""
    from spinejax.io import scanfile

    scan, labels = scanfile.read_pair(
        real_data / "verse/rawdata/sub-verse014/sub-verse014_ct.nii.gz",
        real_data / "verse/derivatives/sub-verse014/sub-verse014_seg-vert_msk.nii.gz",
    )
    how = SlicePreprocess(**WINDOW)
    start, image, label = next(preprocess_slabs(scan, how, labels, slab_slices=10**6))
    native = slice_view(scan.array, "axial")
    bone, inside = label > 0, (native >= 100) & (native <= 1500)
    assert start == 0 and image.shape == native.shape == label.shape
    np.testing.assert_array_equal(label, slice_view(labels.array, "axial"))
    assert image.min() == 0 and image.max() <= 1500
    reached = ndimage.binary_dilation(inside, np.ones((1, 3, 3)))
    assert not image[~reached].any()
    assert (image[bone] > 0).mean() > 0.9 > 0.5 > (image[~bone] > 0).mean()
    middle = np.where(inside, native, 0)[len(native) // 2].astype(float)
    expected = ndimage.gaussian_filter(middle, 0.7, mode="nearest", truncate=1.0)
    assert np.abs(image[len(native) // 2] - expected).max() <= 0.501
