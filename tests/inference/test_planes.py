"""Masks from networks of several planes on one grid, with and without the search.

The network of these tests is a threshold, so the right mask is known.
"""

import logging

import numpy as np
import pytest

from spinejax import geometry
from spinejax.data.preprocess import SlicePreprocess, preprocess_box
from spinejax.errors import InputError
from spinejax.inference import masks, planes
from spinejax.volume import PLANES as PLANES_AXIS
from spinejax.volume import Volume

PLANES = ("sagittal", "coronal", "axial")
SHAPE, SPACING = (70, 66, 60), (3.0, 3.0, 5.0)


def scan_settings(**how) -> masks.ScanSettings:
    preprocess = SlicePreprocess(smoothing_sigma_mm=0.0, **{"spacing_mm": 3.0, **how})
    return masks.ScanSettings(
        preprocess=preprocess,
        size=(24, 32),
        normalise="hu",
        threshold=0.5,
        opening_mm=0.0,
        min_component_ml=0.5,
        fill_holes=False,
        drop_islands=True,
    )


def column(orientation: str = "LPS", hip: bool = False) -> tuple[Volume, np.ndarray]:
    """A bright curved column in a wide scan; `hip` adds a bright ball 90 mm beside it."""
    x, y, z = (
        (np.arange(n) + 0.5) * mm
        for n, mm in zip(SHAPE, SPACING, strict=True)
    )  # fmt: skip
    x, y, z = np.meshgrid(x, y, z, indexing="ij")
    spine = np.hypot(x - 105 - 15 * np.sin(z / 60), y - 120 - z / 10) < 20
    spine &= (z > 40) & (z < 260)
    ball = (x - 190) ** 2 + (y - 130) ** 2 + (z - 60) ** 2 < 15**2
    array = np.where(spine | (ball & hip), 400, -200).astype(np.int16)
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    stored, stored_affine = geometry.reorient(array, affine, orientation)
    volume = Volume(np.ascontiguousarray(stored), stored_affine)
    return volume, spine


def network(plane: str, seen: list | None = None, size=(24, 32)) -> planes.PlaneNetwork:
    """A network that finds what is bright, and notes how many pixels count in `seen`."""

    def predict(stack, stats, advance, within=None):
        advance(len(stack))
        counts = np.ones(stack.shape, bool) if within is None else within
        if seen is not None:
            seen.append(np.count_nonzero(counts))
        # Elsewhere it may say anything.
        return np.where(counts, np.clip((stack.astype(np.float32) + 200) / 600, 0, 1), 0.9)

    return planes.PlaneNetwork(plane, size, 0.25, predict)


def of_neighbours(plane: str, calls: list, n: int = 1) -> planes.PlaneNetwork:
    """A network that finds what is bright in the mean of a slice and its neighbours."""

    def predict(stack, stats, advance, within=None):
        advance(len(stack))
        assert stack.shape[3:] == (2 * n + 1,)
        calls.append(stack.copy())
        counts = np.ones(stack.shape[:3], bool) if within is None else within
        return np.where(counts, np.clip((stack.mean(-1) + 200) / 600, 0, 1), 0.9)

    return planes.PlaneNetwork(plane, (24, 32), 0.25, predict, n)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_neighbours_on_the_common_grid_are_those_of_numpy(plane, search, n):
    volume, _ = column(hip=True)
    how, axis, calls = scan_settings(), PLANES_AXIS[plane], []
    found = planes.predict_scan([of_neighbours(plane, calls, n)], volume, how, search=search)
    # The same network as an average of a scan whose ends are repeated, without the class's help.
    grid = preprocess_box(
        volume,
        SlicePreprocess(smoothing_sigma_mm=0.0, spacing_mm=3.0, mode="isotropic"),
        tuple(slice(0, side) for side in planes.grid_shape(volume, how)),
    )
    slices = np.moveaxis(grid, axis, 0)
    padded = np.pad(slices, ((n, n), (0, 0), (0, 0)), "edge")
    mean = np.mean([padded[k : k + len(slices)] for k in range(2 * n + 1)], axis=0)
    reference = np.moveaxis(np.clip((mean + 200) / 600, 0, 1), 0, axis)
    plain = planes.PlaneNetwork(
        "sagittal", (24, 32), 0.25, lambda stack, *_: reference.astype(np.float32)
    )
    expected = planes.predict_scan([plain], volume, how, search=False)
    np.testing.assert_array_equal(found, expected)
    assert found.any()
    if search:  # 12 mm lie between the slices of the search, and 3 mm between neighbours
        for place, seen in zip(range(2, len(slices), 4), calls[0], strict=True):
            np.testing.assert_array_equal(np.moveaxis(seen, -1, 0), padded[place:][: 2 * n + 1])


def test_networks_with_and_without_neighbours_are_averaged():
    volume, spine = column()
    networks = [of_neighbours("axial", []), network("sagittal"), of_neighbours("coronal", [], 2)]
    full, coarse = (
        planes.predict_scan(networks, volume, scan_settings(), search=search)
        for search in (False, True)
    )
    np.testing.assert_array_equal(full, coarse)
    assert dice(full > 0, spine) > 0.95


def dice(a, b) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("orientation", ["LPS", "PIR", "SAL", "RAI"])
@pytest.mark.parametrize("search", [False, True])
def test_three_planes_find_the_spine_in_any_orientation(orientation, search):
    volume, spine = column(orientation, hip=True)
    networks = [network(plane) for plane in PLANES]
    found = planes.predict_scan(networks, volume, scan_settings(), search=search)
    assert found.dtype == np.uint8 and found.shape == volume.shape
    # Only slices are interpolated, from 5 mm to 3 mm and back.
    assert dice(found > 0, spine) > 0.97


@pytest.mark.parametrize("plane", PLANES)
def test_the_search_changes_nothing_but_the_voxels_that_are_read(plane):
    volume, _ = column(hip=True)
    seen: list = []
    how = scan_settings()
    full = planes.predict_scan([network(plane, seen)], volume, how, search=False)
    coarse = planes.predict_scan([network(plane, seen)], volume, how, search=True)
    np.testing.assert_array_equal(full, coarse)
    whole, searched, inside = seen
    assert searched < 0.3 * whole and inside < 0.6 * whole


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("hidden", ["head", "foot", "left"])
def test_what_the_search_misses_is_read_where_the_spine_goes_on(plane, hidden):
    volume, _ = column(hip=True)
    how = scan_settings()
    plain = network(plane)
    shape = planes.grid_shape(volume, how)
    calls = []

    def predict(stack, stats, advance, within=None):
        """The first call is the search, which finds nothing in a part of the scan."""
        found = plain.predict(stack, stats, advance, within)
        calls.append(within)
        if len(calls) > 1:
            return found
        axis = PLANES_AXIS[plane]
        blind = np.zeros(shape, bool)
        half = {"head": np.s_[:, :, 45:], "foot": np.s_[:, :, :45], "left": np.s_[:32]}[hidden]
        blind[half] = True
        step = round(12 / 3)
        levels = np.moveaxis(blind, axis, 0)[step // 2 :: step]
        return np.where(levels, 0, found)

    full = planes.predict_scan([plain], volume, how, search=False)
    seeing = planes.PlaneNetwork(plane, plain.size, plain.overlap, predict)
    np.testing.assert_array_equal(planes.predict_scan([seeing], volume, how, search=True), full)
    assert len(calls) > 2


def test_the_probabilities_of_all_networks_are_averaged():
    volume, spine = column()
    half = planes.PlaneNetwork(
        "axial", (24, 32), 0.25, lambda stack, *_: np.full(stack.shape, 0.2, np.float32)
    )
    # (1 + 0.2) / 2 reaches 0.5, and (0 + 0.2) / 2 does not.
    found = planes.predict_scan([network("sagittal"), half], volume, scan_settings(), search=False)
    assert dice(found > 0, spine) > 0.9
    found = planes.predict_scan(
        [network("sagittal"), half, half], volume, scan_settings(), search=False
    )
    assert not found.any()


def test_without_any_finding_the_whole_scan_is_read(caplog):
    volume, _ = column()
    empty = Volume(np.full_like(volume.array, -200), volume.affine)
    seen: list = []
    with caplog.at_level(logging.INFO, "spinejax"):
        found = planes.predict_scan(
            [network("sagittal", seen)], empty, scan_settings(), search=True, title="ct"
        )
    assert not found.any()
    assert seen[-1] == 70 * 66 * 100
    assert "ct: the search found no spine; reading the whole scan" in caplog.text


def test_a_small_scan_is_read_without_a_search():
    volume, spine = column()
    part = np.s_[25:45, 30:60, :]
    small = Volume(volume.array[part], volume.affine)
    seen: list = []
    found = planes.predict_scan([network("axial", seen)], small, scan_settings(), search=True)
    assert len(seen) == 1
    assert dice(found > 0, spine[part]) > 0.95


@pytest.mark.parametrize(
    "how", [{"mode": "native"}, {"mode": "resize"}, {"intensity": "op_window"}]
)
def test_a_preprocessing_without_a_common_grid_is_refused(how):
    with pytest.raises(InputError, match="give runs of one plane, with predict.search=full"):
        planes.check(scan_settings(**how))
