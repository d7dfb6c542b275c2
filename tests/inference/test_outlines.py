"""Outlining named vertebrae: grids, borders, neighbours that touch, and what stays."""

import numpy as np
import pytest
from scipy import ndimage

from spinejax import geometry
from spinejax.data.preprocess import SlicePreprocess
from spinejax.inference import outlines
from spinejax.volume import Volume
from tests.inference.test_cascade import STEP, as_scan, blocks

SIZE, SHIFT_MM = (32, 40, 24), (8.0, -2.0)


def settings(**fields):
    how = SlicePreprocess(
        smoothing_sigma_mm=0.0, clamp_hu=(0.0, 1000.0), mode="isotropic", spacing_mm=1.5
    )
    values = dict(
        preprocess=how, normalise="sym", size=SIZE, shift_mm=SHIFT_MM, batch_size=2, threshold=0.5
    )
    return outlines.OutlineSettings(**{**values, **fields})


def look_up(cubes, stats):
    """A network that reads off the HU what has the label of the marked voxel."""
    at = [round((n - 1) / 2 - s / 1.5) for n, s in zip(SIZE, (0.0, *SHIFT_MM), strict=True)]
    marked = cubes[:, at[0], at[1], at[2]][:, None, None, None]
    return (np.abs(cubes - marked) <= STEP / 2).astype(np.float32) * (marked > STEP / 2)


def centres(array):
    ids = [int(i) for i in np.unique(array) if i]
    middles = ndimage.center_of_mass(array > 0, array, ids)
    return {i: np.array(middle) for i, middle in zip(ids, middles, strict=True)}


def dice(found, true):
    return min(
        2 * ((found == i) & (true == i)).sum() / ((found == i).sum() + (true == i).sum())
        for i in np.unique(true)
        if i
    )


def eroded(array):
    """Earlier outlines that miss the rim of every vertebra."""
    return array * ndimage.minimum_filter(array > 0, 5)


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.9, 3.0), (2.0, 1.5, 1.0)])
def test_a_perfect_network_gives_the_truth_on_the_scans_own_grid(code, spacing):
    """Within interpolation: half a voxel of the network on every side."""
    shape = tuple(int(n / mm) for n, mm in zip((70, 80, 150), spacing, strict=True))
    array = np.zeros(shape, np.uint8)
    for place, label in enumerate((19, 20, 21)):
        box = ((15, 51), (24, 56), (110 - 32 * place, 136 - 32 * place))
        array[tuple(slice(*np.round(np.array(s) / mm).astype(int)) for s, mm in
                    zip(box, spacing, strict=True))] = label  # fmt: skip
    volume, true = as_scan(array, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]), code)
    found, places = outlines.outline(
        look_up, volume, eroded(true), centres(true), settings(size=SIZE)
    )
    assert found.shape == volume.shape and found.dtype == np.uint8
    assert dice(found, true) > 0.93 > dice(eroded(true), true)
    assert places.keys() == centres(true).keys()
    for label, place in places.items():
        assert np.abs((place - centres(true)[label]) * volume.spacing_mm).max() < 2.0


def test_vertebrae_that_touch_stay_apart():
    array, affine = blocks()
    for place, label in enumerate((19, 20, 21, 22)):  # close the gaps
        top = array.shape[2] - 12 - 32 * place
        array[17:53, 24:56, top - 32 : top] = label
    volume, true = as_scan(array, affine)
    found, _ = outlines.outline(look_up, volume, eroded(true), centres(true), settings())
    assert dice(found, true) > 0.93
    mistaken = (found != true) & (found > 0) & (true > 0)
    assert mistaken.sum() < 0.03 * (true > 0).sum()


def test_the_most_probable_vertebra_takes_a_voxel_in_any_order():
    """Two vertebrae whose cubes overlap: probability falls with the distance from each."""
    array, affine = blocks((19, 20))
    volume, true = as_scan(array, affine)
    near = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SIZE), indexing="ij")

    def fading(cubes, stats):
        apart = sum((a + s / 1.5) ** 2 for a, s in zip(near, (0.0, *SHIFT_MM), strict=True))
        return np.tile(np.exp(-np.sqrt(apart) / 40).astype(np.float32), (len(cubes), 1, 1, 1))

    places = centres(true)
    found, _ = outlines.outline(fading, volume, true, places, settings())
    turned = dict(reversed(places.items()))
    again, _ = outlines.outline(fading, volume, true, turned, settings(batch_size=1))
    np.testing.assert_array_equal(found, again)
    middle = (places[19][2] + places[20][2]) / 2
    levels = np.arange(array.shape[2])
    assert not (found[..., levels > middle + 1.5] == 20).any()
    assert not (found[..., levels < middle - 1.5] == 19).any()


@pytest.mark.parametrize("corner", [(0, 0, 0), (34, 48, 124)])
def test_a_cube_may_reach_beyond_the_scan(corner):
    array = np.zeros((70, 80, 150), np.uint8)
    array[tuple(slice(c, c + n) for c, n in zip(corner, (36, 32, 26), strict=True))] = 24
    volume, true = as_scan(array, np.diag([-1.0, -1.0, 1.0, 1.0]))
    found, _ = outlines.outline(look_up, volume, eroded(true), centres(true), settings())
    assert dice(found, true) > 0.93


def test_where_the_network_finds_nothing_the_earlier_outline_stays():
    volume, true = as_scan(*blocks())
    before = eroded(true)

    def only(wanted):
        def predict(cubes, stats):
            marked = look_up(cubes, stats)
            return marked * (np.abs(cubes.max((1, 2, 3)) - wanted) < STEP)[:, None, None, None]

        return predict

    for nothing in (only(-100), lambda cubes, stats: np.zeros(cubes.shape, np.float32)):
        found, places = outlines.outline(nothing, volume, before, centres(true), settings())
        np.testing.assert_array_equal(found, before)
        assert places.keys() == centres(true).keys()


def test_no_vertebra_is_lost_to_its_neighbours():
    """A network that takes all for the first vertebra does not change the set of names."""
    volume, true = as_scan(*blocks())
    first = []

    def greedy(cubes, stats):
        sure = 1.0 if not first else 0.9
        first.append(True)
        return np.full(cubes.shape, sure, np.float32)

    found, places = outlines.outline(greedy, volume, true, centres(true), settings(batch_size=1))
    assert set(np.unique(found)) == {0, 19, 20, 21, 22} and places.keys() == centres(true).keys()


def test_outside_the_cube_the_earlier_outline_stays():
    array, affine = blocks((22,))
    array[2:17, 38:42, 120:126] = 22  # a process that reaches beyond the cube
    volume, true = as_scan(array, affine)
    places = {22: np.array([35.0, 40.0, 125.0])}
    found, _ = outlines.outline(look_up, volume, true, places, settings())
    np.testing.assert_array_equal(found[:10], true[:10])


def test_without_vertebrae_nothing_is_read():
    volume = Volume(np.zeros((8, 8, 8), np.int16), geometry.as_affine(np.eye(4), "a scan"))
    empty = np.zeros((8, 8, 8), np.uint8)
    found, places = outlines.outline(None, volume, empty, {}, settings())
    assert not found.any() and places == {}
