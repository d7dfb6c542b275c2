"""Votes for centres: real masks and columns are split into their vertebrae."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinejax import labels
from spinejax.errors import InputError
from spinejax.inference.instances import find_instances
from spinejax.io import scanfile
from tests.support.cubes import ways

MASKS = {
    "verse004": "verse/derivatives/sub-verse004/sub-verse004_seg-vert_msk.nii.gz",
    "verse014": "verse/derivatives/sub-verse014/sub-verse014_seg-vert_msk.nii.gz",
    "gl003": "verse/derivatives/sub-gl003/sub-gl003_dir-ax_seg-vert_msk.nii.gz",
    "totalsegmentator": "totalsegmentator/example_vertebrae_verse-ids.nii.gz",
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("noise_mm", [0.0, 4.0])
def test_a_spine_of_one_class_falls_into_its_vertebrae(real_data, name, noise_mm):
    """No names at all, voxels of 5 mm: where each voxel sees its centre is enough."""
    volume = scanfile.read_labels(real_data / MASKS[name])
    array = volume.array
    fine = volume.spacing_mm
    steps = [max(1, round(5.0 / mm)) for mm in fine]
    array = np.ascontiguousarray(array[tuple(slice(s // 2, None, s) for s in steps)])
    spacing = tuple(float(a * b) for a, b in zip(fine, steps, strict=True))
    one = np.where(array > 0, 20, 0).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, noise_mm, (*array.shape, 3))
    found = find_instances(one, spacing, offsets_mm=ways(array, spacing) + noise)
    wanted = sorted((i for i in np.unique(array) if i), key=labels.order)
    assert len(found.items) == len(wanted)
    for place, label in enumerate(wanted, start=1):
        own, true = found.array == place, array == label
        assert 2 * (own & true).sum() / (own.sum() + true.sum()) > (0.9 if noise_mm else 0.999)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 9),
    apart=st.floats(14.0, 40.0),
    mm=st.floats(1.0, 6.0),
    noise=st.floats(0.0, 0.12),
    seed=st.integers(0, 99),
)
def test_columns_are_parted_into_as_many_as_voted_for(count, apart, mm, noise, seed):
    """Blocks that touch, all of one class: noise up to an eighth of their height does not mix."""
    height = max(2, round(apart / mm))
    side = round(30.0 / mm)
    array = np.zeros((side + 2, side + 2, height * count + 4), np.uint8)
    for i in range(count):
        array[1:-1, 1:-1, 2 + i * height : 2 + (i + 1) * height] = count - i
    offsets = ways(array, [mm] * 3)
    offsets += np.random.default_rng(seed).normal(0, noise * height * mm, offsets.shape)
    one = np.where(array > 0, 7, 0).astype(np.uint8)
    found = find_instances(one, (mm, mm, mm), offsets_mm=offsets, speck_ml=0.0, min_ml=0.0)
    volumes = np.array([item.volume_ml for item in found.items])
    real = volumes > 0.2 * volumes.max()  # a few strays may gather
    assert real.sum() == count
    assert (found.array == array)[array > 0].mean() > 0.95


def test_votes_that_blur_are_parted_by_class():
    """Two vertebrae of a neck whose votes lie half a vertebra apart, as coarse voxels make them."""
    array = np.zeros((12, 12, 14), np.uint8)
    array[1:-1, 1:-1, 2:7], array[1:-1, 1:-1, 7:12] = 5, 4
    offsets = ways(array, [3.0] * 3)
    offsets[array == 5, 2] += 3.5
    offsets[array == 4, 2] -= 3.5
    offsets += np.random.default_rng(0).normal(0, 3.0, offsets.shape)
    one = find_instances(np.where(array > 0, 4, 0).astype(np.uint8), (3.0,) * 3, offsets_mm=offsets)
    two = find_instances(array, (3.0,) * 3, offsets_mm=offsets)
    assert len(one.items) == 1 and len(two.items) == 2
    assert (two.array == np.array([0, 0, 0, 0, 1, 2])[array])[array > 0].mean() > 0.9


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_a_vertebra_whose_votes_go_to_both_neighbours_stays_one(slope):
    """The middle of three, in a straight and in a bent neck; its halves are pulled apart."""
    array = np.zeros((12, 26, 19), np.uint8)
    for z in range(2, 17):
        y = 1 + round(slope * (16 - z) * 0.8)
        array[1:-1, y : y + 10, z] = 6 - (z - 2) // 5
    offsets = ways(array, [3.0] * 3)
    z = np.indices(array.shape)[2]
    axis = np.array([0.0, -0.8 * slope, 1.0])
    pull = np.select([array == 6, array == 4, z > 9, z < 9], [4.0, -4.0, 4.0, -4.0], 0.0)
    offsets += pull[..., None] * axis
    offsets += np.random.default_rng(0).normal(0, 2.5, offsets.shape)
    found = find_instances(array, (3.0,) * 3, offsets_mm=offsets)
    assert len(found.items) == 3
    assert (found.array == np.array([0, 0, 0, 0, 1, 2, 3])[array])[array > 0].mean() > 0.9


@pytest.mark.parametrize("name", MASKS)
def test_a_name_that_slips_within_a_vertebra_does_not_part_it(real_data, name):
    """The upper half of every vertebra is called as the one above."""
    volume = scanfile.read_labels(real_data / MASKS[name])
    array = volume.array
    steps = [max(1, round(5.0 / mm)) for mm in volume.spacing_mm]
    array = np.ascontiguousarray(array[tuple(slice(s // 2, None, s) for s in steps)])
    spacing = tuple(float(a * b) for a, b in zip(volume.spacing_mm, steps, strict=True))
    offsets = ways(array, spacing)
    classes = labels.to_contiguous(array).astype(np.uint8)
    slipped = np.where((offsets[..., 2] < 0) & (classes > 1), classes - 1, classes)
    assert (slipped != classes)[classes > 1].mean() > 0.3
    offsets += np.random.default_rng(0).normal(0, 3.0, offsets.shape)
    found = find_instances(slipped, spacing, offsets_mm=offsets)
    assert len(found.items) == len(np.unique(array)) - 1


def test_specks_of_votes_go_to_the_next_centre():
    array = np.zeros((8, 8, 20), np.uint8)
    array[:, :, :10], array[:, :, 10:] = 2, 1
    offsets = ways(array, [5.0] * 3)
    offsets[0, 0, :2] = 200.0  # two voxels that see a centre far away
    one = np.full(array.shape, 9, np.uint8)
    found = find_instances(one, (5.0, 5.0, 5.0), offsets_mm=offsets)
    assert len(found.items) == 2
    wild = np.random.default_rng(0).normal(0, 1e4, offsets.shape)
    find_instances(one, (5.0, 5.0, 5.0), offsets_mm=wild)  # ends, with whatever result


def test_offsets_of_another_shape_are_refused():
    with pytest.raises(InputError, match="three for each voxel"):
        find_instances(
            np.ones((2, 3, 4), np.uint8), (1.0, 1.0, 1.0), offsets_mm=np.zeros((2, 3, 4))
        )
