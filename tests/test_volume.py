"""What a volume says of itself."""

import dataclasses

import numpy as np
import pytest

from spinejax import geometry
from spinejax.volume import CANONICAL, PLANES, LabelVolume, Volume


def test_a_volume_knows_its_shape_spacing_and_orientation():
    # Index 0 grows to the left, 1 to posterior, 2 to superior: the canonical LPS.
    volume = Volume(np.zeros((4, 5, 6), np.int16), np.diag([-0.5, -0.75, 2, 1]))
    assert volume.shape == (4, 5, 6)
    assert volume.spacing_mm == (0.5, 0.75, 2)
    assert volume.orientation == "LPS" == CANONICAL


def test_the_planes_are_named_by_the_world_axis_they_fix():
    pairs = {plane: CANONICAL[axis] for plane, axis in PLANES.items()}
    assert pairs == {"sagittal": "L", "coronal": "P", "axial": "S"}
    assert CANONICAL in geometry.ALL_ORIENTATIONS


def test_volumes_cannot_be_changed_in_place_and_labels_are_volumes():
    labels = LabelVolume(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    assert isinstance(labels, Volume)
    with pytest.raises(dataclasses.FrozenInstanceError):
        labels.affine = np.eye(4)  # type: ignore[misc]
