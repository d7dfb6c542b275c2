"""Slices, patches and cubes of phantoms."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinejax.phantom import once, samples
from spinejax.phantom.draws import draw
from spinejax.phantom.person.levels import SLOT_IDS
from spinejax.phantom.scanner import scan_plan
from spinejax.volume import PLANES
from tests.support.networks import quick_jit

render = quick_jit(partial(samples.render, distractors=True))

HOW = samples.Sampling(
    plane="sagittal",
    size=(40, 64),
    mode="resample",
    spacing_mm=3.0,
    smoothing_mm=0.75,
    clamp_hu=(-1000.0, 800.0),
    window=False,
    fill_hu=-1000.0,
    spine_free_fraction=0.1,
)


@pytest.fixture(scope="module")
def drawn():
    """A function that draws eight samples, and what it draws at the first eight positions."""
    compiled = jax.jit(partial(samples.batch_of, partial(samples.slice_sample, how=HOW)))

    def run(key, positions):
        rows = samples.subject_rows(key, np.asarray(positions), HOW)
        return compiled(key, positions, rows)

    return run, jax.device_get(run(jax.random.key(1), jnp.arange(8)))


@pytest.fixture(scope="module")
def scanned(people):
    """Twelve persons, each with the protocol of a scan."""
    keys, persons = jax.random.split(jax.random.key(3), 12), jax.tree.map(lambda a: a[:12], people)
    protocols = jax.jit(jax.vmap(scan_plan.protocol))(keys, persons)
    # By numpy: jax would compile a program for each shape.
    found = persons, jax.device_get(protocols)
    return [jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), found) for i in range(len(keys))]


def test_a_sample_is_a_function_of_key_and_position_alone(drawn):
    run, first = drawn
    order = np.array([5, 2, 7, 0, 1, 6, 3, 4])
    again = jax.device_get(run(jax.random.key(1), jnp.asarray(order)))
    for name in first:
        np.testing.assert_array_equal(again[name], first[name][order])
    other = jax.device_get(run(jax.random.key(2), jnp.arange(8)))
    assert all((other["image"][i] != first["image"][i]).any() for i in range(8))


def test_a_gpu_draws_the_same_labels_and_hu_at_once(drawn):
    with once.drawn_for("gpu"):
        one = partial(samples.slice_sample, how=HOW)
        run = jax.jit(partial(samples.batch_of, one))
        found = jax.device_get(run(jax.random.key(1), jnp.arange(8)))
    np.testing.assert_array_equal(found["label"], drawn[1]["label"])
    apart = np.abs(found["image"] - drawn[1]["image"])
    # Blocks of a CPU leave out parts that lie further than 3 mm away, but for their blurred edge.
    assert np.mean(apart <= 1.0) > 0.995 and apart.max() < 40.0


def test_samples_look_like_preprocessed_slices(drawn):
    run, first = drawn
    image, label = first["image"], first["label"]
    assert image.shape == label.shape == (8, *HOW.size)
    assert image.min() >= -1000 and image.max() <= 800
    np.testing.assert_array_equal(image, np.round(image))
    more = jax.device_get(run(jax.random.key(7), jnp.arange(8, 16)))
    image, label = (np.concatenate([first[n], more[n]]) for n in ("image", "label"))
    assert set(np.unique(label)) <= {0, *SLOT_IDS.tolist()}
    assert (label > 0).any((1, 2)).mean() >= 0.4
    inside, body = image[label > 0], image[(label == 0) & (image > -300)]
    assert np.median(inside) > np.median(body) + 60
    mean, std, least, greatest = first["stats"].T
    np.testing.assert_array_equal(least, first["image"].min((1, 2)))
    np.testing.assert_array_equal(greatest, first["image"].max((1, 2)))
    assert ((mean > least) & (mean < greatest) & (std > 0)).all()


@pytest.mark.parametrize("plane", ["sagittal", "coronal", "axial"])
@pytest.mark.parametrize("mode", ["resample", "native", "resize"])
def test_a_slice_lies_on_its_plane_and_knows_what_was_scanned(scanned, plane, mode):
    how = replace(HOW, plane=plane, mode=mode, spine_free_fraction=0.0)
    axis = PLANES[plane]
    inner = [i for i in range(3) if i != axis]
    holding = 0
    for i, (person, protocol) in enumerate(scanned):
        points, within, pixel = map(
            np.asarray, draw(jax.random.key(i), samples._grid, person, protocol, how)
        )
        lower, upper = np.asarray(protocol["lower"]), np.asarray(protocol["upper"])
        assert np.ptp(points[..., axis]) == 0
        assert lower[axis] <= points[0, 0, axis] <= upper[axis]
        steps = points[1, 1] - points[0, 0]
        np.testing.assert_allclose(steps[inner], pixel, rtol=1e-3)
        if mode == "resample":
            np.testing.assert_array_equal(pixel, 3.0)
        elif mode == "native":
            np.testing.assert_array_equal(pixel, np.asarray(protocol["spacing"])[inner])
        else:
            assert within.all()
        inside = ((points >= lower) & (points <= upper)).all(-1)
        np.testing.assert_array_equal(within, inside)
        # A smaller field of view lies within the window whole, up to a pixel at its borders.
        small = (upper - lower)[inner] <= pixel * how.size
        for k in np.flatnonzero(small):
            seen = np.ptp(points[within][:, inner[k]]) if within.any() else 0.0
            assert seen >= (upper - lower)[inner[k]] - 2.1 * pixel[k]
        origins = np.asarray(person["spine"]["origin"])[np.asarray(person["spine"]["id"]) > 0]
        low, high = points[0, 0], points[-1, -1]
        holding += (
            ((origins[:, inner] > low[inner]) & (origins[:, inner] < high[inner])).all(1).any()
        )
    assert holding >= 8  # most windows are aimed at a vertebra


@pytest.mark.parametrize("plane", ["sagittal", "coronal", "axial"])
def test_neighbours_of_a_slice_are_slices_of_the_same_scan(scanned, plane):
    """They lie as far apart as the scan's voxels, and show the same person there."""
    n, axis = 2, PLANES[plane]
    how = replace(HOW, plane=plane, neighbours=n, acquisition=False, spine_free_fraction=0.0)
    person, protocol = scanned[0]
    points, within, pixel = draw(jax.random.key(0), samples._grid, person, protocol, how)
    drawn = quick_jit(partial(samples._with_neighbours, how=how))(person, protocol, points, pixel)
    assert drawn["image"].shape == (*HOW.size, 5) and drawn["label"].shape == HOW.size
    edge = 0.5 * (jnp.sum(pixel) + protocol["spacing"][axis]) / 3
    lower, upper = (np.asarray(protocol[name]) for name in ("lower", "upper"))
    for channel in range(5):
        places = points.at[..., axis].add((channel - n) * protocol["spacing"][axis])
        assert lower[axis] <= places[0, 0, axis] <= upper[axis]
        hu, label = render(person, places, edge_mm=edge)
        expected = samples.prepared(hu, label, within, how)
        differ = np.abs(drawn["image"][..., channel] - expected["image"]) > 1
        assert differ.mean() < 0.005  # the grain of marrow is rounded to cells
        if channel == n:
            whole = samples.view.whole_vertebrae(person, lower, upper)
            kept = samples.view.keep_labels(expected["label"], person["spine"]["id"], whole)
            np.testing.assert_array_equal(drawn["label"], kept)


def test_beyond_the_end_of_a_phantom_its_last_slice_is_repeated(scanned):
    how = replace(HOW, neighbours=2)
    person, protocol = scanned[0]
    points, _, pixel = draw(jax.random.key(0), samples._grid, person, protocol, how)
    step = protocol["spacing"][0]
    run = quick_jit(partial(samples._with_neighbours, how=how))
    # One slice lies between this one and the end.
    for end, inside, order in (("lower", 1.4 * step, 1), ("upper", -1.4 * step, -1)):
        here = points.at[..., 0].set(protocol[end][0] + inside)
        image = np.asarray(run(person, protocol, here, pixel)["image"])[..., ::order]
        np.testing.assert_array_equal(image[..., 0], image[..., 1])
        for a, b in ((1, 2), (2, 3), (3, 4)):  # each has its own noise at least
            assert (image[..., a] != image[..., b]).mean() > 0.1


def test_outside_the_field_of_view_is_filled_and_unlabelled():
    hu, label = jnp.full((4, 6), 300.4), jnp.full((4, 6), 20)
    within = jnp.arange(6)[None] < jnp.full((4, 1), 3)
    drawn = samples.prepared(hu, label, within, HOW)
    np.testing.assert_array_equal(drawn["image"], np.where(within, 300, -1000))
    np.testing.assert_array_equal(drawn["label"], np.where(within, 20, 0))
    np.testing.assert_allclose(drawn["stats"], [300, 0, -1000, 300])
    window = replace(HOW, clamp_hu=(100.0, 1500.0), window=True, fill_hu=0.0)
    hu = jnp.array([[50.0, 100.0, 1500.0, 1501.0, 700.2]])
    drawn = samples.prepared(hu, hu.astype(int), jnp.ones((1, 5), bool), window)
    np.testing.assert_array_equal(drawn["image"], [[0, 100, 1500, 0, 700]])


def _cut(label: np.ndarray, key: int = 0, count: int = 16, margin: int = 0) -> dict:
    """Cut patches of 8 pixels from a slice whose HU are the numbers of its pixels."""
    drawn = {
        "image": jnp.arange(float(label.size)).reshape(label.shape),
        "label": jnp.asarray(label),
        "stats": jnp.arange(4.0),
    }
    cut = samples.patches_of(
        jax.random.key(key), drawn, count=count, side=8, margin=margin, fill_hu=-1000.0
    )
    return jax.device_get(cut)


def test_half_of_the_patches_have_a_vertebra_in_their_middle():
    label = np.zeros((20, 30), np.int32)
    label[0:3, 27:30] = 22  # in a corner: patches reach beyond the slice
    drawn = _cut(label, margin=2)
    assert drawn["image"].shape == drawn["label"].shape == (16, 12, 12)
    assert drawn["stats"].shape == (16, 4)
    middle = drawn["label"][:, 6, 6] > 0
    np.testing.assert_array_equal(middle, np.arange(16) % 2 == 0)
    for image, patch in zip(drawn["image"], drawn["label"], strict=True):
        row, column = divmod(int(image[6, 6]), 30)
        np.testing.assert_array_equal(patch, np.pad(label, 6)[row : row + 12, column : column + 12])


def test_the_middles_of_patches_are_drawn_evenly():
    label = np.zeros((6, 10), np.int32)
    label[1, 2:5] = label[4, 0] = 9
    middles = _cut(label, count=4000)["image"][:, 4, 4].astype(int)
    drawn = np.bincount(middles, minlength=60).reshape(6, 10)
    # Of 2000 draws each: 500 +- 19 of each of 4 pixels, 36 +- 6 of each of 56.
    assert np.abs(drawn[label > 0] - 500).max() < 100
    assert np.abs(drawn[label == 0] - 2000 / 56).max() < 30


@pytest.mark.parametrize("label", [0, 22])
def test_a_slice_of_one_kind_gives_patches_about_any_pixel(label):
    drawn = _cut(np.full((20, 30), label, np.int32))
    assert drawn["image"].shape == (16, 8, 8)
    assert (drawn["label"][:, 4, 4] == label).all()
    assert len(np.unique(drawn["image"][:, 4, 4])) > 10


def test_a_cube_shows_vertebrae_of_a_plausible_size():
    one = jax.jit(partial(samples.cube_sample, size=(40, 40, 40), spacing_mm=3.0, how=HOW))
    volumes = []
    for i in range(12):
        key = jax.random.key(i)
        # The key of a batch and a place in it make the key of the sample.
        subject = samples.subject_rows(key, np.zeros(1, int), HOW)[0]
        drawn = jax.device_get(one(jax.random.fold_in(key, 0), subject))
        assert drawn["image"].shape == drawn["label"].shape == (40, 40, 40)
        inner = np.setdiff1d(drawn["label"][2:-2, 2:-2, 2:-2], [0])
        edges = np.unique(np.concatenate([np.unique(np.take(drawn["label"], e, a))
                                          for a in range(3) for e in (0, -1)]))  # fmt: skip
        for number in np.setdiff1d(inner, edges):
            volumes.append((drawn["label"] == number).sum() * 0.027)
    assert volumes and 5 < np.median(volumes) < 90
