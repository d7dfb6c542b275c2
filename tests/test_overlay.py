import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from spinejax import overlay


def test_window_maps_ends_and_middle():
    grey = overlay.window(np.array([-1000.0, -200.0, 300.0, 800.0, 3000.0, np.nan]), (-200, 800))
    assert grey.tolist() == [0, 0, 128, 255, 255, 0]
    assert grey.dtype == np.uint8


def test_window_refuses_an_empty_range():
    with pytest.raises(ValueError, match="low < high"):
        overlay.window(np.zeros(3), (100, 100))


def test_outline_of_a_square_is_its_rim():
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    edge = overlay.outline(mask)
    assert edge.sum() == 25 - 9
    assert not edge[3:6, 3:6].any()


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_outline_of_a_mask_is_mask_minus_erosion(mask):
    eroded = ndimage.binary_erosion(mask, border_value=1)
    np.testing.assert_array_equal(overlay.outline(mask), mask & ~eroded)


def test_outline_keeps_touching_vertebrae_apart():
    labels = np.zeros((6, 12), np.uint8)
    labels[1:5, 1:6] = 20
    labels[1:5, 6:11] = 21
    edge = overlay.outline(labels)
    assert edge[2, 5] and edge[2, 6]
    assert not edge[2, 3]


def test_overlay_colours_prediction_reference_and_both():
    prediction = np.zeros((8, 8), np.uint8)
    reference = np.zeros((8, 8), np.uint8)
    prediction[1, 1], reference[3, 3] = 1, 1
    prediction[5, 5] = reference[5, 5] = 1
    picture = overlay.overlay(np.full((8, 8), 300.0), prediction, reference)
    assert picture.shape == (8, 8, 3) and picture.dtype == np.uint8
    assert tuple(picture[1, 1]) == overlay.PREDICTION_RGB
    assert tuple(picture[3, 3]) == overlay.REFERENCE_RGB
    assert tuple(picture[5, 5]) == overlay.BOTH_RGB
    untouched = np.ones((8, 8), bool)
    untouched[[1, 3, 5], [1, 3, 5]] = False
    assert (picture[untouched] == 128).all()


def test_overlay_without_labels_is_the_grey_picture():
    image = np.linspace(-300, 900, 12).reshape(3, 4)
    picture = overlay.overlay(image, None)
    np.testing.assert_array_equal(picture[..., 0], overlay.window(image))
    assert (picture == picture[..., :1]).all()


def test_wider_outlines_stay_inside_the_region():
    mask = np.zeros((20, 20), bool)
    mask[4:16, 4:16] = True
    picture = overlay.paint(np.zeros((20, 20), np.uint8), mask, None, width=3)
    coloured = picture.any(axis=-1)
    assert coloured.sum() == 144 - 36
    assert not coloured[~mask].any()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        overlay.overlay(np.zeros((4, 4)), np.zeros((4, 5)))
    with pytest.raises(ValueError, match=r"\(h, w\)"):
        overlay.overlay(np.zeros((4, 4, 4)), None)
