"""The mask of a scan: predicted in bounded memory in every orientation, and cleaned.

Cleaning is compared with brute force, SciPy on padded arrays, and shapes with known answers.
"""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from spinejax import geometry
from spinejax.data.preprocess import SlicePreprocess
from spinejax.inference import masks, windows2d
from spinejax.io import scanfile
from spinejax.volume import PLANES, Volume


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

    def predict(stack, stats, advance, within=None):
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


WEIGHTS = np.array([1, 2, 4]) / 7


def by_slices(scan: np.ndarray) -> np.ndarray:
    """What `mean_network` says of a stack (n, h, w), in NumPy: the last slices are repeated."""
    padded = np.pad(scan.astype(float), ((1, 1), (0, 0), (0, 0)), "edge")
    return sum(w * padded[k : k + len(scan)] for k, w in enumerate(WEIGHTS)) / 1000


def mean_network(image, stats):
    """A network of neighbours (b, h, w, 3): their weighted mean in thousands of HU."""
    assert image.dtype == np.int16 and image.shape[3:] == (3,)
    return (image @ WEIGHTS / 1000).astype(np.float32)


@pytest.mark.parametrize("plane", ["sagittal", "coronal", "axial"])
@pytest.mark.parametrize("slab", [1, 4, 100])
def test_neighbours_of_a_whole_scan_are_those_of_numpy(plane, slab, monkeypatch):
    """In every plane, across the borders of windows and of slabs, and at the scan's ends."""
    monkeypatch.setattr(masks, "_slab_slices", lambda *_: slab)
    array = np.random.default_rng(0).integers(0, 800, (11, 33, 40)).astype(np.int16)
    volume = Volume(array, np.diag([-1.0, -1.5, 2.0, 1.0]))
    # In pixels of the scan, without smoothing or cleaning, only the network is left.
    how = scan_settings(plane, mode="native", smoothing_sigma_mm=0.0)
    # No weighted mean is the threshold: it is no multiple of 1 / 7.
    changes = dict(threshold=0.40025, min_component_ml=0.0, neighbours=1)
    how = masks.ScanSettings(**{**how.__dict__, **changes})
    done = []
    found = masks.predict_scan(in_windows(mean_network), volume, how, advance=done.append)
    axis = PLANES[plane]
    expected = np.moveaxis(by_slices(np.moveaxis(array, axis, 0)) >= 0.40025, 0, axis)
    np.testing.assert_array_equal(found > 0, expected)
    assert sum(done) == array.shape[axis] and 0.3 < expected.mean() < 0.7


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


# Opening, components and cavities.


SPACINGS = st.sampled_from([0.4, 0.5, 0.7, 1.0, 2.5])


def opened_by_hand(mask, spacing, radius, axis):
    """Union of the elements that fit into the mask, which goes on beyond the border as it ends.

    Loops over the element's voxels: no box, no slabs, no scipy.
    """
    pad = 13
    reach = range(-6, 7)
    element = [
        offset
        for offset in itertools.product(reach, reach, reach)
        if sum((o * s) ** 2 for o, s in zip(offset, spacing, strict=True)) <= radius**2 + 1e-9
        and (axis is None or offset[axis] == 0)
    ]
    wide = np.pad(mask, pad, mode="edge")
    fits = np.ones_like(wide)
    for offset in element:  # rolled ends reach no farther than 12 voxels in: not into the mask
        fits &= np.roll(wide, [-o for o in offset], (0, 1, 2))
    covered = np.zeros_like(wide)
    for offset in element:
        covered |= np.roll(fits, offset, (0, 1, 2))
    return covered[pad:-pad, pad:-pad, pad:-pad]


@settings(max_examples=80, deadline=None)
@given(
    mask=hnp.arrays(
        bool,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=9),
        elements=st.sampled_from([True, True, True, True, False]),
        fill=st.nothing(),
    ),
    spacing=st.tuples(SPACINGS, SPACINGS, SPACINGS),
    radius=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0, 1.1, 1.5, 2.0]),
    axis=st.sampled_from([None, 0, 1, 2]),
)
def test_opening_is_the_union_of_the_elements_that_fit(mask, spacing, radius, axis):
    before = mask.copy()
    result = masks.opening(mask, spacing_mm=spacing, radius_mm=radius, axis=axis)
    np.testing.assert_array_equal(result, opened_by_hand(mask, spacing, radius, axis))
    np.testing.assert_array_equal(mask, before)
    assert not (result & ~mask).any()


def smooth(shape, seed=0):
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5) > 0.02


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("order", ["C", "F"])
def test_slabs_change_nothing(axis, order, monkeypatch):
    mask = np.asarray(smooth((30, 25, 40)), order=order)
    how = dict(spacing_mm=(0.5, 0.4, 0.8), radius_mm=1.0, axis=axis)
    whole = masks.opening(mask, **how)
    monkeypatch.setattr(masks, "_SLAB_VOXELS", 1)
    np.testing.assert_array_equal(masks.opening(mask, **how), whole)
    assert whole.sum() < mask.sum()


@pytest.mark.parametrize("axis", range(3))
def test_one_and_a_half_pixels_are_a_square_of_three(axis):
    mask = np.zeros((24, 26, 22), bool)
    mask[3:-3, 3:-3, 3:-3] = smooth((18, 20, 16))
    result = masks.opening(mask, spacing_mm=(0.35, 0.35, 0.35), radius_mm=0.525, axis=axis)
    for one, other in zip(np.moveaxis(mask, axis, 0), np.moveaxis(result, axis, 0), strict=True):
        np.testing.assert_array_equal(other, ndimage.binary_opening(one, np.ones((3, 3))))


@pytest.mark.parametrize("radius_mm, axis", [(0.0, None), (0.49, None), (0.99, 1), (1.9, 0)])
def test_a_radius_that_reaches_no_neighbour_changes_nothing(radius_mm, axis):
    mask = smooth((9, 9, 9))
    spacing = (0.5, 2.0, 2.0) if axis == 0 else (1.0, 0.5, 1.0)
    assert masks.opening(mask, spacing_mm=spacing, radius_mm=radius_mm, axis=axis) is mask
    empty = np.zeros((4, 4, 4), bool)
    assert not masks.opening(empty, spacing_mm=(1, 1, 1), radius_mm=3.0, axis=axis).any()


@pytest.mark.parametrize("spacing", [0.25, 0.5])
def test_the_same_millimetres_go_on_every_grid(spacing):
    grid = (np.arange(int(16 / spacing)) + 0.5) * spacing
    x, y, z = np.meshgrid(grid, grid, grid, indexing="ij")
    ball = (x - 8) ** 2 + (y - 8) ** 2 + (z - 8) ** 2 < 5**2
    plate = np.abs(y - 8) < 0.5  # 1 mm thick
    result = masks.opening(ball | plate, spacing_mm=(spacing,) * 3, radius_mm=1.0, axis=None)
    assert not result[np.abs(x - 8) > 6.5].any()
    assert (result & ball).sum() > 0.98 * ball.sum()


def test_what_the_border_of_the_scan_cuts_is_not_eaten():
    mask = np.zeros((20, 20, 20), bool)
    mask[5:15, 5:15, :] = True  # runs out at both ends
    mask[:2, :5, :] = True  # the corner of something larger outside
    for axis in (None, 0, 1, 2):
        result = masks.opening(mask, spacing_mm=(1, 1, 1), radius_mm=1.5, axis=axis)
        np.testing.assert_array_equal(result, mask)
    mask[:, 18, 10] = True  # thin, from border to border: not thicker for being cut
    mask[0, 10, 0] = True
    result = masks.opening(mask, spacing_mm=(1, 1, 1), radius_mm=1.5, axis=2)
    assert not result[:, 18].any() and not result[0, 10, 0]


def test_opening_takes_the_stated_memory(monkeypatch):
    monkeypatch.setattr(masks, "_SLAB_VOXELS", 2**17)
    mask = np.zeros((160, 160, 160), bool)
    mask[:12, :12, :12] = mask[-12:, -12:, -12:] = True
    for axis in (None, 2):
        tracemalloc.start()
        masks.opening(mask, spacing_mm=(1, 1, 1), radius_mm=1.0, axis=axis)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < mask.size + 8 * 2**17


def test_small_components_go_by_volume_not_by_voxels():
    mask = np.zeros((20, 20, 20), bool)
    mask[2:6, 2:6, 2:6] = True  # 64 voxels
    mask[10:12, 10:12, 10:12] = True  # 8 voxels
    mask[12, 12, 12] = True  # touches by a corner: the same component, 9 voxels
    keep = masks.remove_small_components(mask, spacing_mm=(5, 5, 5), min_ml=1.125)
    np.testing.assert_array_equal(keep, mask)  # 9 x 0.125 ml
    keep = masks.remove_small_components(mask, spacing_mm=(5, 5, 5), min_ml=1.126)
    assert keep.sum() == 64
    keep = masks.remove_small_components(mask, spacing_mm=(1, 1, 1), min_ml=1.0)
    assert not keep.any()


def test_components_of_a_mask_with_voxels_in_every_corner_take_the_stated_memory():
    mask = np.zeros((160, 160, 160), bool)
    mask[:12, :12, :12] = mask[-12:, -12:, -12:] = True  # 1.7 ml each
    mask[80, 80, 80] = True
    tracemalloc.start()
    keep = masks.remove_small_components(mask, spacing_mm=(1, 1, 1), min_ml=1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert keep.sum() == 2 * 12**3
    assert peak < 5.5 * mask.size


def test_cavities_are_filled_only_where_enclosed():
    mask = np.zeros((9, 9, 9), bool)
    mask[2:7, 2:7, 2:7] = True
    hollow = mask.copy()
    hollow[4, 4, 4] = False
    np.testing.assert_array_equal(masks.fill_cavities(hollow), mask)
    hollow[4, 4, 5:] = False  # a canal to the outside
    np.testing.assert_array_equal(masks.fill_cavities(hollow), hollow)


@given(mask=hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)))
def test_cavities_are_those_of_scipy(mask):
    np.testing.assert_array_equal(masks.fill_cavities(mask), ndimage.binary_fill_holes(mask))


def cleaned(mask, **how):
    fields = dict(
        spacing_mm=(1, 1, 1), opening_mm=0, min_component_ml=0, fill_holes=False, slice_axis=2
    )
    return masks.clean(mask, **{**fields, **how})


def spine(shape=(40, 40, 60)):
    """A tube around a canal, 8 mm wide, that runs through the scan; a hollow in its wall."""
    x, y, _ = np.ogrid[tuple(slice(0, n) for n in shape)]
    distance = np.hypot(x - 20, y - 20)
    tube = np.broadcast_to((distance > 4) & (distance < 12), shape).copy()
    hollow = tube.copy()
    hollow[28, 20, 30:33] = False
    return hollow, tube


def test_the_canal_stays_open_although_each_slice_encloses_it():
    hollow, tube = spine()
    by_slice = [ndimage.binary_fill_holes(one) for one in np.moveaxis(hollow, 2, 0)]
    assert by_slice[5][20, 20]
    np.testing.assert_array_equal(cleaned(hollow, fill_holes=True), tube)
    # Also where the scan shows only a part of the tube, or the tube ends within the scan.
    tube[:, :, :10] = hollow[:, :, :10] = False
    np.testing.assert_array_equal(cleaned(hollow, fill_holes=True), tube)
    np.testing.assert_array_equal(cleaned(hollow), hollow)


def test_the_canal_of_a_real_spine_stays_open(real_data):
    folder = real_data / "verse" / "derivatives" / "sub-verse014"
    volume = scanfile.read_labels(folder / "sub-verse014_seg-vert_msk.nii.gz")
    mask = volume.array > 0
    axial = next(axis for axis, letter in enumerate(volume.orientation) if letter in "IS")
    slices = np.moveaxis(mask, axial, 0)
    enclosed = sum((ndimage.binary_fill_holes(one) & ~one).sum() for one in slices)
    result = cleaned(
        mask,
        spacing_mm=volume.spacing_mm,
        opening_mm=1.5,
        min_component_ml=1.0,
        fill_holes=True,
        slice_axis=axial,
    )
    assert enclosed > 1000
    assert (result & ~mask).sum() < 0.1 * enclosed
    assert 2 * (result & mask).sum() / (result.sum() + mask.sum()) > 0.95


def test_opening_comes_before_components_and_these_before_filling():
    hollow, tube = spine()
    mask = hollow.copy()
    mask[34:38, 18:22, 20:24] = True  # 64 voxels
    mask[32:34, 20, 22] = True  # and the bridge that ties them to the tube
    how = dict(opening_mm=1.5, min_component_ml=0.1)
    assert cleaned(mask, min_component_ml=0.1)[35, 20, 22]
    result = cleaned(mask, **how, fill_holes=True)
    assert not result[33:].any()
    opened = masks.opening(tube, spacing_mm=(1, 1, 1), radius_mm=1.5, axis=2)
    np.testing.assert_array_equal(result, opened)


def test_empty_masks_stay_empty():
    empty = np.zeros((5, 6, 7), bool)
    assert not cleaned(empty, opening_mm=2, min_component_ml=1, fill_holes=True).any()


# Islands: on real masks of the spine, and on bent columns of balls.


PATHS = [
    "verse/derivatives/sub-verse004/sub-verse004_seg-vert_msk.nii.gz",
    "verse/derivatives/sub-verse014/sub-verse014_seg-vert_msk.nii.gz",
    "verse/derivatives/sub-gl003/sub-gl003_dir-ax_seg-vert_msk.nii.gz",
    "totalsegmentator/example_vertebrae_verse-ids.nii.gz",
]


def ball_mask(shape, spacing, centre, radius):
    grids = np.ogrid[tuple(slice(n) for n in shape)]
    return (
        sum((g * mm - c) ** 2 for g, mm, c in zip(grids, spacing, centre, strict=True)) < radius**2
    )


@pytest.mark.parametrize("path", PATHS)
def test_real_vertebrae_stay_and_balls_at_the_hips_go(real_data, path):
    volume = scanfile.read_labels(real_data / path, None)
    array, spacing = volume.array, volume.spacing_mm
    if min(spacing) < 0.4:  # gl003: a quarter of its resolution shows the same, 16 times as fast
        array, spacing = array[::4, ::4], (4 * spacing[0], 4 * spacing[1], spacing[2])
    # The arches of one vertebra are often apart from its body, and vertebrae from each other.
    spine = array > 0
    np.testing.assert_array_equal(masks.without_islands(spine, spacing), spine)
    # A vertebra that was not found leaves the two parts of the column where they are.
    ids = [i for i in np.unique(array) if i > 0]
    gap = spine & (array != ids[len(ids) // 2])
    np.testing.assert_array_equal(masks.without_islands(gap, spacing), gap)
    # Heads of the femora: 90 mm to the sides of the last vertebra and 100 mm below it.
    side, below = round(110 / spacing[0]), round(140 / spacing[2])
    wide = np.pad(spine, ((side, side), (0, 0), (below, 0)))
    x, y, z = np.mean(np.argwhere(np.pad(array, ((side, side), (0, 0), (below, 0))) == ids[-1]), 0)
    last = np.multiply((x, y, z), spacing)
    hips = [ball_mask(wide.shape, spacing, last + (way * 90, 0, -100), 24) for way in (-1, 1)]
    np.testing.assert_array_equal(masks.without_islands(wide | hips[0] | hips[1], spacing), wide)


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
        mask |= ball_mask(shape, spacing, centre, 13.0)
    np.testing.assert_array_equal(masks.without_islands(mask, spacing), mask)
    beside = ball_mask(shape, spacing, (80 - np.sign(side or 1) * 68, 10, 20 + 30 * missing), 9)
    np.testing.assert_array_equal(masks.without_islands(mask | beside, spacing), mask)


def test_nothing_and_one_piece_are_returned_as_they_are():
    empty = np.zeros((4, 5, 6), bool)
    assert not masks.without_islands(empty, (1, 1, 1)).any()
    one = empty.copy()
    one[2, 2, 1:5] = True
    np.testing.assert_array_equal(masks.without_islands(one, (1, 1, 1)), one)
    before = one.copy()
    one[0, 0, 0] = before[0, 0, 0] = True
    masks.without_islands(one, (1, 1, 1))
    np.testing.assert_array_equal(one, before)
