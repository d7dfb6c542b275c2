"""Sliding windows, and whole scans back on their own grid."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinejax import geometry
from spinejax.data.preprocess import SlicePreprocess
from spinejax.inference import masks, windows2d
from spinejax.volume import Volume


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(3, 70), st.integers(3, 70)),
    window=st.tuples(st.integers(8, 32), st.integers(8, 32)),
    overlap=st.floats(0, 0.8),
    batch_size=st.integers(1, 5),
)
def test_a_pointwise_network_is_unchanged_by_windows(shape, window, overlap, batch_size):
    stack = np.random.default_rng(0).integers(-1000, 800, shape).astype(np.int16)
    shapes = set()

    def network(batch):
        shapes.add(batch.shape)
        return (batch > 150).astype(np.float32)

    result = windows2d.predict_stack(
        network, stack, window=window, overlap=overlap, batch_size=batch_size, fill=-1000
    )
    assert shapes == {(batch_size, *window)}  # compiled once
    np.testing.assert_allclose(result, stack > 150, atol=1e-5)


def test_one_window_has_the_context_of_training():
    # A slice smaller than the window is padded around its centre with air.
    seen = []

    def network(batch):
        seen.append(batch)
        return np.zeros(batch.shape, np.float32)

    windows2d.predict_stack(
        network,
        np.full((1, 2, 3), 7, np.int16),
        window=(6, 5),
        overlap=0.5,
        batch_size=1,
        fill=-1000,
    )
    expected = np.full((6, 5), -1000, np.int16)
    expected[2:4, 1:4] = 7
    np.testing.assert_array_equal(seen[0][0], expected)


def ball_scan(orientation: str, spacing=(1.0, 1.5, 2.0)) -> tuple[Volume, np.ndarray]:
    """A bright ball off centre on a canonical grid, stored in `orientation`."""
    shape = (44, 40, 36)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * spacing
    ball = np.linalg.norm(grid - [18, 32, 40], axis=-1) < 14
    array = np.where(ball, 400, -200).astype(np.int16)
    stored, stored_affine = geometry.reorient(array, affine, orientation)
    return Volume(np.ascontiguousarray(stored), stored_affine), ball


def threshold_network(image, stats):
    return np.clip((image.astype(np.float32) + 200) / 600, 0, 1)


def in_windows(network, window=(32, 24)):
    """A stack predictor of `network(image (3, h, w), stats (3, 4))`."""

    def predict(stack, stats, advance):
        return windows2d.predict_stack(
            lambda batch: network(batch, np.tile(stats, (3, 1))),
            stack,
            window=window,
            overlap=0.25,
            batch_size=3,
            fill=-1000,
            advance=advance,
        )

    return predict


def scan_settings(plane: str, **how) -> masks.ScanSettings:
    return masks.ScanSettings(
        preprocess=SlicePreprocess(plane=plane, **how),
        size=(32, 24),
        normalise="hu",
        threshold=0.5,
        opening_mm=0.0,
        min_component_ml=0.5,
        fill_holes=False,
        drop_islands=False,
    )


@pytest.mark.parametrize("plane", ["sagittal", "coronal", "axial"])
@pytest.mark.parametrize("orientation", geometry.ALL_ORIENTATIONS)
def test_scans_of_every_orientation_come_back_on_their_own_grid(plane, orientation):
    volume, truth = ball_scan(orientation)
    # No smoothing and no resampling: the network is a threshold, so the mask must be exact. Each
    # plane has its own spacings; "resize" to the native size is the identity.
    canonical = [44, 40, 36]
    del canonical[{"sagittal": 0, "coronal": 1, "axial": 2}[plane]]
    how = scan_settings(plane, mode="resize", size=tuple(canonical), smoothing_sigma_mm=0.0)
    done = []
    result = masks.predict_scan(in_windows(threshold_network), volume, how, advance=done.append)
    assert result.dtype == np.uint8 and result.shape == volume.shape
    np.testing.assert_array_equal(result, truth)
    assert sum(done) == {"sagittal": 44, "coronal": 40, "axial": 36}[plane]


def test_resampled_and_smoothed_scans_keep_the_ball():
    volume, truth = ball_scan("PIR")
    for plane in ("sagittal", "coronal", "axial"):
        result = masks.predict_scan(in_windows(threshold_network), volume, scan_settings(plane)) > 0
        dice = 2 * (result & truth).sum() / (result.sum() + truth.sum())
        assert dice > 0.97, plane


def test_many_slices_much_smaller_than_the_window_take_bounded_memory():
    volume = Volume(np.zeros((600, 16, 16), np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]))
    how = masks.ScanSettings(**{**scan_settings("sagittal").__dict__, "size": (256, 256)})
    tracemalloc.start()
    masks.predict_scan(in_windows(threshold_network, (256, 256)), volume, how)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * 2**26


def test_an_empty_prediction_is_all_background():
    volume, _ = ball_scan("LPS")
    result = masks.predict_scan(
        lambda stack, *_: np.zeros(stack.shape, np.float32), volume, scan_settings("axial")
    )
    assert result.shape == volume.shape and not result.any()


def test_statistics_of_the_whole_scan_reach_the_network():
    volume, _ = ball_scan("RAS")
    seen = []

    def network(image, stats):
        seen.append(stats)
        return np.zeros(image.shape, np.float32)

    how = scan_settings("axial", smoothing_sigma_mm=0.0, mode="resize", size=(44, 40))
    how = masks.ScanSettings(**{**how.__dict__, "normalise": "zscore"})
    masks.predict_scan(in_windows(network), volume, how)
    values = volume.array.astype(np.float64)
    expected = [values.mean(), values.std(), values.min(), values.max()]
    for stats in seen:
        np.testing.assert_allclose(stats, np.tile(expected, (3, 1)), rtol=1e-5)


@pytest.mark.parametrize("orientation", ["LPS", "PIR", "RAS", "SAL"])
def test_islands_are_dropped_whatever_the_orientation(orientation):
    volume, spine = ball_scan(orientation)
    hip = np.zeros((44, 40, 36), bool)
    hip[39:43, 2:6, 1:4] = True  # 100 mm away from the ball
    larger = volume.native_affine @ np.diag([3.0, 3.0, 3.0, 1.0])
    bright = volume.to_native(np.where(hip, 400, volume.array).astype(np.int16))
    both = Volume(bright, larger)
    how = scan_settings("axial", mode="resize", size=(44, 40), smoothing_sigma_mm=0.0)
    how = masks.ScanSettings(**{**how.__dict__, "min_component_ml": 0.0})
    found = masks.predict_scan(in_windows(threshold_network), both, how)
    np.testing.assert_array_equal(found, spine | hip)
    how = masks.ScanSettings(**{**how.__dict__, "drop_islands": True})
    found = masks.predict_scan(in_windows(threshold_network), both, how)
    np.testing.assert_array_equal(found, spine)
