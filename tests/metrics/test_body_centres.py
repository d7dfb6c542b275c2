"""Centres of vertebral bodies, from masks of whole vertebrae."""

import numpy as np
import pytest

from spinejax.io import scanfile
from spinejax.io.centroid_json import read_centroids
from spinejax.metrics.body_centres import body_centres


def test_thickest_part_of_a_body_with_an_arch():
    x, y, z = np.meshgrid(*(np.arange(n, dtype=float) for n in (60, 80, 40)), indexing="ij")
    body = ((x - 30) / 18) ** 2 + ((y - 24) / 14) ** 2 <= 1
    array = np.where(body & (abs(z - 20) < 11), 21, 0).astype(np.uint8)
    array[27:34, 40:75, 15:25] = 21  # a spinous process
    centre = body_centres(array, (1.0, 1.0, 1.0))[21]
    np.testing.assert_allclose(centre, (30, 24, 20), atol=1.5)
    whole = np.argwhere(array == 21).mean(0)
    assert whole[1] - 24 > 3  # what it is not


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.4, 0.4, 3.0), (2.0, 0.5, 1.0)])
def test_spacing_does_not_move_the_centre(spacing):
    size_mm = np.array((50.0, 50.0, 40.0))
    grids = [np.arange(0, s, mm) for s, mm in zip(size_mm, spacing, strict=True)]
    x, y, z = np.meshgrid(*grids, indexing="ij")
    ball = (x - 24) ** 2 + (y - 26) ** 2 + ((z - 21) * 1.3) ** 2 < 15**2
    centre = body_centres((ball * 9).astype(np.uint8), spacing)[9]
    np.testing.assert_allclose(centre * spacing, (24, 26, 21), atol=1.6)


def test_the_atlas_has_its_centre_of_mass_and_slivers_have_one():
    ring = np.zeros((40, 40, 6), np.uint8)
    ring[5:35, 5:35] = 1
    ring[12:28, 10:30] = 0
    ring[0, 0, 0] = 3  # a voxel
    centres = body_centres(ring, (1.0, 1.0, 1.0))
    np.testing.assert_allclose(centres[1], np.argwhere(ring == 1).mean(0))
    np.testing.assert_array_equal(centres[3], (0, 0, 0))
    assert body_centres(np.zeros((3, 3, 3), np.uint8), (1.0, 1.0, 1.0)) == {}


@pytest.mark.parametrize("subject", ["verse004", "verse014", "gl003"])
def test_agrees_with_centroids_that_verse_marks(real_data, subject):
    folder = real_data / "verse" / "derivatives" / f"sub-{subject}"
    (mask,), (points,) = folder.glob("*msk.nii.gz"), folder.glob("*ctd.json")
    volume = scanfile.read_labels(mask, None)
    true = read_centroids(points, volume)
    found = body_centres(volume.array, volume.spacing_mm)
    apart = [np.linalg.norm((found[k] - true[k]) * volume.spacing_mm) for k in true if k in found]
    assert len(apart) >= 5
    assert np.median(apart) < 1.5 and max(apart) < 8.0
