"""A volume: canonical whatever it is made of, and the way back."""

import dataclasses

import numpy as np
import pytest

from spinejax import geometry
from spinejax.errors import InputError
from spinejax.volume import (
    CANONICAL,
    PLANES,
    LabelVolume,
    Volume,
    check_neighbours,
    slice_view,
    with_neighbours,
)


def test_a_volume_knows_its_shape_spacing_and_orientation():
    # Index 0 grows to the left, 1 to posterior, 2 to superior: the canonical LPS.
    volume = Volume(np.zeros((4, 5, 6), np.int16), np.diag([-0.5, -0.75, 2, 1]))
    assert volume.shape == (4, 5, 6)
    assert volume.spacing_mm == (0.5, 0.75, 2)
    assert volume.orientation == "LPS" == CANONICAL


@pytest.mark.parametrize("code", geometry.ALL_ORIENTATIONS)
def test_any_orientation_becomes_canonical_and_goes_back(code):
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    affine = np.diag([-0.5, -0.75, 2, 1]) + np.eye(4, k=1) * 0.01
    stored, stored_affine = geometry.reorient(array, affine, code)
    volume = Volume(stored, stored_affine)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-12)
    assert (volume.orientation, volume.shape) == (code, (4, 5, 6))
    np.testing.assert_array_equal(volume.native, stored)
    np.testing.assert_array_equal(volume.native_affine, stored_affine)
    np.testing.assert_array_equal(volume.to_canonical(stored), array)
    # A view: what is written into it is written into the original.
    labels = np.zeros(volume.shape, np.uint8)
    volume.to_native(labels)[...] = stored
    np.testing.assert_array_equal(labels, array)
    index = volume.native_index(np.array([1, 2, 3]))
    assert stored[tuple(np.rint(index).astype(int))] == array[1, 2, 3]


@pytest.mark.parametrize("plane", PLANES)
def test_slices_of_a_plane_are_views_along_its_axis(plane):
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    view = slice_view(array, plane)
    assert np.shares_memory(view, array)
    np.testing.assert_array_equal(view[2], np.take(array, 2, PLANES[plane]))


@pytest.mark.parametrize("n", [0, 1, 2, 6])
@pytest.mark.parametrize(("start", "stop"), [(0, 5), (0, 1), (4, 5), (1, 3)])
def test_neighbours_are_those_of_a_scan_whose_ends_are_repeated(n, start, stop):
    slices = np.arange(5 * 3 * 2).reshape(5, 3, 2)
    padded = np.pad(slices, ((n, n), (0, 0), (0, 0)), "edge")
    expected = np.stack([padded[k : k + 5] for k in range(2 * n + 1)], axis=-1)[start:stop]
    found = with_neighbours(slices, start, stop, n)
    np.testing.assert_array_equal(found, expected if n else expected[..., 0])


def test_a_single_slice_has_no_neighbours():
    for count, neighbours in ((1, 0), (2, 1), (2, 5)):
        check_neighbours("ct", count, "axial", neighbours)
    with pytest.raises(InputError, match="^ct: a scan of a single axial slice.*data.neighbours=0"):
        check_neighbours("ct", 1, "axial", 2)


def test_the_planes_are_named_by_the_world_axis_they_fix():
    pairs = {plane: CANONICAL[axis] for plane, axis in PLANES.items()}
    assert pairs == {"sagittal": "L", "coronal": "P", "axial": "S"}
    assert CANONICAL in geometry.ALL_ORIENTATIONS


def test_volumes_cannot_be_changed_in_place_and_labels_are_volumes():
    labels = LabelVolume(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    assert isinstance(labels, Volume)
    with pytest.raises(dataclasses.FrozenInstanceError):
        labels.affine = np.eye(4)  # type: ignore[misc]


def test_a_volume_is_shown_in_one_line():
    volume = Volume(np.zeros((2, 3, 4), np.int16), np.diag([0.5, 1, 2, 1]))
    assert repr(volume) == "<Volume of 2 x 3 x 4 voxels, 0.5 x 1 x 2 mm>"


@pytest.mark.parametrize(
    ("shape", "affine", "words"),
    [
        ((4, 5), np.eye(4), "give \\(x, y, z\\)"),
        ((4, 5, 6), np.full((4, 4), np.nan), "NaN"),
        ((4, 5, 6), np.eye(3), "not 4 x 4"),
        ((4, 5, 6), np.zeros((4, 4)), "voxels of 0 x 0 x 0 mm"),
        ((4, 5, 6), np.ones((4, 4)), "flat"),
        ((4, 5, 6), "x", "not 4 x 4 real numbers"),
        ((4, 5, 6), None, "affine is"),
        ((4, 5, 6), np.eye(4) * 1j, "not 4 x 4 real numbers"),
        ((4, 5, 6), [[1, 2], [3]], "not 4 x 4 real numbers"),
    ],
)
def test_what_is_no_scan_is_refused_in_one_line(shape, affine, words):
    with pytest.raises(InputError, match=words) as error:
        Volume(np.zeros(shape, np.int16), affine)
    assert "\n" not in str(error.value)
