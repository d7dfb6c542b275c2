"""Pieces of a label map: the curve through the spine, and where pieces are split."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spinejax.inference.instances import find_instances
from spinejax.inference.pieces import STEP_MM, Axis


def test_the_curve_measures_along_the_spine():
    z = np.arange(200)
    mask = np.zeros((40, 260, 200), bool)
    for k in z:
        mask[10:30, int(20 + k) : int(40 + k), k] = True  # 45 degrees
    axis = Axis(mask, np.array([1.0, 1.0, 1.0]))
    low, high = axis.along(np.array([[20.0, 80, 50], [20, 180, 150]]))
    assert high - low == pytest.approx(100 * math.sqrt(2), rel=0.02)
    assert STEP_MM.shape == (26,)


def test_two_bodies_grown_together_are_parted():
    x, y, _ = np.ogrid[:30, :30, :50]
    tube = np.broadcast_to(np.hypot(x - 15, y - 15) < 11, (30, 30, 50)).copy()
    tube[:, :, :8] = tube[:, :, -8:] = False  # 68 mm long, and nowhere a waist
    found = find_instances(np.where(tube, 21, 0).astype(np.uint8), (2.0, 2.0, 2.0))
    upper, lower = found.items
    assert upper.volume_ml == pytest.approx(lower.volume_ml, rel=0.1)
    assert upper.centroid_mm[2] - lower.centroid_mm[2] == pytest.approx(34, abs=3)


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
