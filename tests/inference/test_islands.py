"""Islands: on real masks of the spine, on bent columns of balls, in every orientation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinejax.inference.masks import without_islands
from spinejax.io import scanfile

MASKS = [
    "verse/derivatives/sub-verse004/sub-verse004_seg-vert_msk.nii.gz",
    "verse/derivatives/sub-verse014/sub-verse014_seg-vert_msk.nii.gz",
    "verse/derivatives/sub-gl003/sub-gl003_dir-ax_seg-vert_msk.nii.gz",
    "totalsegmentator/example_vertebrae_verse-ids.nii.gz",
]


def ball(shape, spacing, centre, radius):
    grids = np.ogrid[tuple(slice(n) for n in shape)]
    return (
        sum((g * mm - c) ** 2 for g, mm, c in zip(grids, spacing, centre, strict=True)) < radius**2
    )


@pytest.mark.parametrize("path", MASKS)
def test_real_vertebrae_stay_and_balls_at_the_hips_go(real_data, path):
    volume = scanfile.read_labels(real_data / path, None)
    array, spacing = volume.array, volume.spacing_mm
    if min(spacing) < 0.4:  # gl003: a quarter of its resolution shows the same, 16 times as fast
        array, spacing = array[::4, ::4], (4 * spacing[0], 4 * spacing[1], spacing[2])
    # The arches of one vertebra are often apart from its body, and vertebrae from each other.
    spine = array > 0
    np.testing.assert_array_equal(without_islands(spine, spacing), spine)
    # A vertebra that was not found leaves the two parts of the column where they are.
    ids = [i for i in np.unique(array) if i > 0]
    gap = spine & (array != ids[len(ids) // 2])
    np.testing.assert_array_equal(without_islands(gap, spacing), gap)
    # Heads of the femora: 90 mm to the sides of the last vertebra and 100 mm below it.
    side, below = round(110 / spacing[0]), round(140 / spacing[2])
    wide = np.pad(spine, ((side, side), (0, 0), (below, 0)))
    x, y, z = np.mean(np.argwhere(np.pad(array, ((side, side), (0, 0), (below, 0))) == ids[-1]), 0)
    last = np.multiply((x, y, z), spacing)
    hips = [ball(wide.shape, spacing, last + (way * 90, 0, -100), 24) for way in (-1, 1)]
    np.testing.assert_array_equal(without_islands(wide | hips[0] | hips[1], spacing), wide)


@settings(max_examples=25, deadline=None)
@given(
    side=st.floats(-25, 25),
    front=st.floats(-40, 40),
    missing=st.integers(3, 8),
    spacing=st.sampled_from([(2.0, 2.0, 2.0), (4.0, 1.5, 1.5), (2.5, 2.5, 5.0)]),
)
def test_a_bent_column_with_a_gap_stays_whole(side, front, missing, spacing):
    extent = (160.0, 160.0, 320.0)
    shape = tuple(int(e / mm) for e, mm in zip(extent, spacing, strict=True))
    mask = np.zeros(shape, bool)
    for k in range(10):
        if k == missing:
            continue
        turn = np.pi * k / 9
        centre = (80 + side * np.sin(turn), 80 + front * np.sin(turn), 20 + 30 * k)
        mask |= ball(shape, spacing, centre, 13.0)
    np.testing.assert_array_equal(without_islands(mask, spacing), mask)
    beside = ball(shape, spacing, (80 - np.sign(side or 1) * 68, 10, 20 + 30 * missing), 9)
    np.testing.assert_array_equal(without_islands(mask | beside, spacing), mask)


def test_nothing_and_one_piece_are_returned_as_they_are():
    empty = np.zeros((4, 5, 6), bool)
    assert not without_islands(empty, (1, 1, 1)).any()
    one = empty.copy()
    one[2, 2, 1:5] = True
    np.testing.assert_array_equal(without_islands(one, (1, 1, 1)), one)
    before = one.copy()
    one[0, 0, 0] = before[0, 0, 0] = True
    without_islands(one, (1, 1, 1))
    np.testing.assert_array_equal(one, before)
