"""Windows of cubes over a scan: what they cover, how they are joined, in how much memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinejax.inference import devices, windows3d

NO_STATS = np.zeros(4, np.float32)


def look_up(cubes, masks, stats):
    """A network that gives each voxel the class that its HU say."""
    return np.eye(5, dtype=np.float32)[cubes.astype(int)]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 23)] * 3),
    window=st.tuples(*[st.integers(2, 9)] * 3),
    overlap=st.floats(0, 0.8),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_every_voxel_is_classified(shape, window, overlap, batch_size, seed):
    image = np.random.default_rng(seed).integers(0, 5, shape).astype(np.int16)
    done = []
    found = windows3d.predict_classes(
        look_up,
        image,
        None,
        NO_STATS,
        window=window,
        overlap=overlap,
        batch_size=batch_size,
        fill=0,
        advance=done.append,
    )
    np.testing.assert_array_equal(found.first, image)
    assert {part.dtype for part in found[:3]} == {np.dtype(np.uint8)}
    assert found.offsets_mm is None
    assert (found.share == 255).all()
    padded = tuple(max(n, side) for n, side in zip(shape, window, strict=True))
    assert sum(done) == sum(len(c) for _, c in windows3d.layers(padded, window, overlap, None))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(9, 40)] * 3),
    window=st.tuples(*[st.integers(2, 9)] * 3),
    overlap=st.floats(0, 0.8),
    share=st.floats(0, 0.003),
    seed=st.integers(0, 99),
)
def test_windows_cover_the_spine_with_its_middle_in_their_middle(
    shape, window, overlap, share, seed
):
    spine = (np.random.default_rng(seed).random(shape) < share).astype(np.uint8)
    covered = np.zeros(shape, bool)
    count = 0
    for start, corners in windows3d.layers(shape, window, overlap, spine):
        for corner in corners:
            assert corner[2] == start
            box = tuple(slice(c, c + side) for c, side in zip(corner, window, strict=True))
            assert covered[box].shape == window  # inside
            covered[box] = True
            count += 1
    assert covered[spine > 0].all()
    how = dict(shifts=1, window=window, overlap=overlap)
    assert windows3d.count_windows(shape, spine, **how) == count
    assert count <= windows3d.count_windows(shape, None, **how)
    one = np.zeros((40, 40, 9), np.uint8)
    one[18:24, 30:34] = 1
    assert list(windows3d.layers(one.shape, (12, 10, 9), overlap, one)) == [(0, [(15, 27, 0)])]


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(*[st.integers(1, 23)] * 3),
    shifts=st.integers(1, 4),
    masked=st.booleans(),
    offsets=st.booleans(),
    seed=st.integers(0, 99),
)
def test_each_moved_grid_is_a_scan_of_its_own(shape, shifts, masked, offsets, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 5, shape).astype(np.int16)
    spine = rng.integers(0, 2, shape).astype(np.uint8) if masked else None
    how = dict(window=(3, 4, 5), overlap=0.5, batch_size=2, fill=0, offsets=offsets)

    def of_its_cube(cubes, masks, stats):
        """A network whose answer depends on the whole window."""
        known = look_up(cubes, masks, stats) * (1 + masks[..., None] * (cubes[..., None] > 1))
        known = known + cubes.mean((1, 2, 3), keepdims=True)[..., None] * np.arange(5)
        return np.concatenate([known, known[..., :3] - 1.0], -1) if offsets else known

    found = windows3d.predict_moved(of_its_cube, image, spine, NO_STATS, shifts=shifts, **how)
    assert found.first.shape == shape
    grids = windows3d.moved_grids(shape, shifts)
    assert sum(image[grid].size for grid in grids) == image.size
    for grid in grids:
        part = spine[grid] if masked else None
        alone = windows3d.predict_classes(of_its_cube, image[grid], part, NO_STATS, **how)
        for whole, expected in zip(found, alone, strict=True):
            if expected is not None:
                np.testing.assert_array_equal(whole[grid], expected)
    assert (found.offsets_mm is not None) == offsets


def test_joined_windows_are_the_weighted_mean_of_all():
    rng = np.random.default_rng(3)
    shape, window = (11, 9, 30), (6, 5, 8)
    noise = rng.random((*shape, 3)).astype(np.float32)
    image = np.arange(np.prod(shape)).reshape(shape).astype(np.int16)

    def network(cubes, masks, stats):
        place = np.unravel_index(cubes.astype(int), shape)
        corner = cubes[:, :1, :1, :1].astype(int)  # windows differ in what they say of a voxel
        return noise[place] + 0.3 * (1 + np.sin(corner[..., None] + np.arange(3)))

    whole, weight = np.zeros((*shape, 3)), windows3d.gaussian_weights(window)[..., None]
    for _, corners in windows3d.layers(shape, window, 0.5, None):
        for c in corners:
            box = tuple(slice(a, a + n) for a, n in zip(c, window, strict=True))
            whole[box] += weight * network(image[box][None], None, None)[0]
    found = windows3d.predict_classes(
        network, image, None, NO_STATS, window=window, overlap=0.5, batch_size=3, fill=0
    )
    order = np.argsort(-whole, -1)
    best = -np.sort(-whole, -1)
    # float32 against float64
    assert (found.first == order[..., 0]).mean() > 0.999
    assert (found.second == order[..., 1]).mean() > 0.999
    share = best[..., 0] / (best[..., 0] + best[..., 1])
    np.testing.assert_allclose(found.share / 255, share, atol=0.51 / 255)


def test_offsets_are_the_weighted_mean_of_all_windows_in_mm():
    rng = np.random.default_rng(5)
    shape, window = (9, 9, 21), (6, 5, 8)
    image = np.arange(np.prod(shape)).reshape(shape).astype(np.int16)
    noise = rng.normal(0, 2, (*shape, 3)).astype(np.float32)

    def network(cubes, masks, stats):
        place = np.unravel_index(cubes.astype(int), shape)
        corner = cubes[:, :1, :1, :1, None].astype(np.float32) / image.size
        classes = np.broadcast_to(np.array([0.2, 0.7, 0.1]), (*cubes.shape, 3))
        return np.concatenate([classes, noise[place] + corner], -1).astype(np.float32)

    total = np.zeros((*shape, 3))
    weights = np.zeros((*shape, 1))
    weight = windows3d.gaussian_weights(window)[..., None]
    for _, corners in windows3d.layers(shape, window, 0.5, None):
        for c in corners:
            box = tuple(slice(a, a + n) for a, n in zip(c, window, strict=True))
            total[box] += weight * network(image[box][None], None, None)[0][..., 3:]
            weights[box] += weight
    found = windows3d.predict_classes(
        network,
        image,
        None,
        NO_STATS,
        window=window,
        overlap=0.5,
        batch_size=2,
        fill=0,
        offsets=True,
    )
    assert (found.first == 1).all() and found.offsets_mm.dtype == np.float16
    np.testing.assert_allclose(found.offsets_mm, 10 * total / weights, rtol=2e-3, atol=2e-2)


def test_windows_without_spine_are_left_out():
    image = np.full((8, 8, 40), 2, np.int16)
    spine = np.zeros(image.shape, np.uint8)
    spine[3, 3, 20] = 1
    seen = []

    def network(cubes, masks, stats):
        seen.append(int(masks.any((1, 2, 3)).sum()))
        return look_up(cubes, masks, stats)

    found = windows3d.predict_classes(
        network, image, spine, NO_STATS, window=(8, 8, 8), overlap=0.0, batch_size=1, fill=0
    )
    assert seen == [1]
    assert np.flatnonzero(found.first.any((0, 1))).tolist() == list(range(16, 24))


def test_gaussian_weights_peak_in_the_middle_and_never_vanish():
    weights = windows3d.gaussian_weights((16, 8, 32))
    assert weights.min() == pytest.approx(1e-3)
    assert weights.max() == weights[8, 4, 16]
    np.testing.assert_allclose(weights, weights[::-1, ::-1, ::-1], rtol=1e-5)
    # One standard deviation is an eighth of the window.
    ratio = weights[8, 4, 15 + 4] / weights[8, 4, 15]
    assert ratio == pytest.approx(np.exp(-0.5 * ((3.5 / 4) ** 2 - (0.5 / 4) ** 2)), rel=1e-4)


def of_noise(variables, image, spine, stats):
    """A network whose answer depends on the whole window; three channels of offsets."""
    x = image[..., None].astype(jnp.float32) * jnp.array([0.3, 0.5, 0.7, 1.1])
    x = jnp.sin(x + variables["shift"] + image.mean((1, 2, 3), keepdims=True)[..., None])
    return jnp.concatenate([jax.nn.softmax(x), 3 * x[..., :3]], -1)


@pytest.mark.parametrize("masked", [False, True])
def test_windows_joined_on_the_device_are_those_joined_by_numpy(masked):
    rng = np.random.default_rng(7)
    shape, window = (21, 13, 50), (8, 6, 10)
    image = rng.integers(1, 9, shape).astype(np.int16)
    spine = np.zeros(shape, np.uint8)
    spine[4:12, 3:9, 5:14] = spine[9:11, 5, 38:44] = 1  # with layers between that are left out
    predict, rows = windows3d.make_cube_predictor(
        of_noise, {"shift": np.float32(0.1)}, batch_size=3
    )
    # A plain weighted mean in float64.
    total, weights = np.zeros((*shape, 7)), np.zeros((*shape, 1))
    weight = windows3d.gaussian_weights(window)[..., None].astype(float)
    given = spine if masked else None
    for _, corners in windows3d.layers(shape, window, 0.3, given):
        for c in corners:
            box = tuple(slice(a, a + n) for a, n in zip(c, window, strict=True))
            cubes = np.stack([image[box]] * rows)
            total[box] += weight * np.asarray(predict(cubes, cubes > 0, NO_STATS))[0]
            weights[box] += weight
    best = -np.sort(-total[..., :4], -1)
    clear = best[..., 0] - best[..., 1] > 1e-5 * weights[..., 0]
    read = weights[..., 0] > 0
    how = dict(window=window, overlap=0.3, batch_size=rows, fill=0, offsets=True)
    for on_device in (False, True):
        done = []
        found = windows3d.predict_classes(
            predict, image, given, NO_STATS, on_device=on_device, advance=done.append, **how
        )
        np.testing.assert_array_equal(found.first[clear], total[..., :4].argmax(-1)[clear])
        assert clear[read].mean() > 0.99
        share = best[read, 0] / (best[read, 0] + best[read, 1])
        np.testing.assert_allclose(found.share[read] / 255, share, atol=0.51 / 255)
        mm = 10 * total[..., 4:] / np.where(read[..., None], weights, 1)
        np.testing.assert_allclose(found.offsets_mm, mm, rtol=2e-3, atol=2e-2)
        assert (found.share[~read] == 255).all() and not found.first[~read].any()
        assert read.all() != masked
        assert sum(done) == windows3d.count_windows(
            shape, given, shifts=1, window=window, overlap=0.3
        )


def test_only_classes_come_from_the_device(monkeypatch):
    crossed = []

    def counting(array):
        crossed.append(array.nbytes)
        return devices.fetch(array)

    monkeypatch.setattr(windows3d, "fetch", counting)
    image = np.random.default_rng(1).integers(0, 9, (32, 32, 48)).astype(np.int16)
    predict, rows = windows3d.make_cube_predictor(
        of_noise, {"shift": np.float32(0.1)}, batch_size=1
    )
    how = dict(window=(16, 16, 16), overlap=0.5, batch_size=rows, fill=0)
    for on_device in (True, False):
        windows3d.predict_classes(predict, image, None, NO_STATS, on_device=on_device, **how)
        if on_device:
            # Three bytes a voxel and layer; layers are 8 slices apart.
            assert sum(crossed) == 3 * 32 * 32 * 16 * 5
            crossed.clear()
    assert sum(crossed) > 4 * 7 * 16**3 * 3 * 3 * 5


def test_where_windows_are_joined():
    assert not windows3d.blends_on_device("cpu", 1, None)
    assert not windows3d.blends_on_device("cpu", 1, 100)
    assert windows3d.blends_on_device("gpu", 50, 100)
    assert not windows3d.blends_on_device("gpu", 51, 100)
    assert windows3d.blends_on_device("tpu", 51, None)
