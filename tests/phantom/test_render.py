"""Rendering is a pure function of the point: slices, batches and volumes agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinejax.phantom import anatomy, render
from spinejax.phantom.body import shapes, tissues
from spinejax.phantom.scanner import acquisition, view

draw = jax.jit(anatomy)
paint = jax.jit(render)


@pytest.fixture(scope="module")
def person():
    return draw(jax.random.key(5))


def sagittal(p, index=20, size=48, step=2.0):
    """Points of a sagittal slice (y, z) through a vertebra."""
    y, z = jnp.meshgrid(*[step * (jnp.arange(size) - size / 2)] * 2, indexing="ij")
    return p["spine"]["origin"][index] + jnp.stack([0 * y, y + 10.0, z], -1)


def test_the_same_key_draws_the_same_person_and_another_key_another(person):
    again = draw(jax.random.key(5))
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), person, again)
    assert all(jax.tree.leaves(same))
    other = draw(jax.random.key(6))
    assert not jnp.allclose(person["spine"]["origin"], other["spine"]["origin"])


def test_slice_equals_the_plane_of_the_volume(person):
    affine = np.diag([4.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = np.asarray(person["spine"]["origin"][20]) - [40.0, 40.0, 48.0]
    hu, label = acquisition.render_volume(person, (20, 48, 48), affine, 0.8)
    index = np.stack(np.meshgrid([10], range(48), range(48), indexing="ij"), -1)[0]
    points = index @ affine[:3, :3].T + affine[:3, 3]
    slice_hu, slice_label = jax.jit(lambda q: render(person, q, edge_mm=0.8))(points)
    assert len(np.unique(slice_label)) > 3
    # Points on a surface may fall to either side by rounding of coordinates.
    assert (np.asarray(slice_label) != label[10]).mean() < 1e-3
    assert np.abs(np.asarray(slice_hu) - hu[10]).mean() < 0.1


def test_result_does_not_depend_on_which_points_are_drawn_together(person):
    points = sagittal(person).reshape(-1, 3)
    hu, label = paint(person, points)
    order = np.random.default_rng(0).permutation(len(points))
    some = order[:100]
    few_hu, few_label = paint(person, points[some])
    np.testing.assert_array_equal(few_label, label[some])
    np.testing.assert_allclose(few_hu, hu[some], atol=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_vertebrae_are_skipped_only_where_they_change_nothing(seed):
    person = jax.jit(lambda key: anatomy(key, fractures=4.0, scoliosis=0.7))(jax.random.key(seed))
    spine = person["spine"]
    everywhere = {"reach": 1e4, "low": -1e4, "high": 1e4}
    full = {**spine, **{k: jnp.full_like(spine[k], v) for k, v in everywhere.items()}}
    rng = np.random.default_rng(seed)
    at = np.asarray(spine["origin"])[rng.integers(0, 22, 6000)]
    points = jnp.asarray(at + rng.normal(0.0, [25.0, 30.0, 20.0], (6000, 3)), jnp.float32)
    hu, label = paint(person, points)
    all_hu, all_label = paint({**person, "spine": full}, points)
    assert len(np.unique(label)) > 18
    np.testing.assert_array_equal(label, all_label)
    assert np.abs(np.asarray(hu) - np.asarray(all_hu)).max() < 2.0


def test_vmap_equals_a_loop():
    keys = jax.random.split(jax.random.key(1), 2)
    people = jax.jit(jax.vmap(anatomy))(keys)
    points = jnp.stack([sagittal(jax.tree.map(lambda a, i=i: a[i], people)) for i in range(2)])
    hu, label = jax.jit(jax.vmap(render))(people, points)
    for i in range(2):
        one_hu, one_label = paint(jax.tree.map(lambda a, i=i: a[i], people), points[i])
        assert (np.asarray(label[i]) != np.asarray(one_label)).mean() < 1e-3
        assert np.abs(np.asarray(hu[i]) - np.asarray(one_hu)).mean() < 0.1


def test_any_shape_of_points_is_drawn(person):
    points = sagittal(person)
    hu, label = paint(person, points)
    assert hu.shape == label.shape == points.shape[:-1]
    assert hu.dtype == jnp.float32 and label.dtype == jnp.int32
    assert bool(jnp.all(jnp.isfinite(hu)))
    one, _ = paint(person, points[3, 5])
    assert one.shape == ()
    assert abs(float(one) - float(hu[3, 5])) < 0.05


def test_far_from_the_body_there_is_air(person):
    hu, label = paint(person, jnp.array([[0.0, -900.0, 0.0], [1500.0, 0.0, 0.0]]))
    np.testing.assert_allclose(hu, -1000.0, atol=1.0)
    assert not label.any()


def test_wider_blur_lowers_the_contrast_of_the_cortical_shell(person):
    points = sagittal(person)
    peaks = [
        float(jnp.percentile(jax.jit(render)(person, points, edge_mm=e)[0], 99.0))
        for e in (0.4, 2.0)
    ]
    assert peaks[0] > peaks[1] + 100


def test_field_of_view_keeps_whole_vertebrae_only(person):
    origin = person["spine"]["origin"][20]
    half = jnp.array([90.0, 90.0, 60.0])
    kept = view.whole_vertebrae(person, origin - half, origin + half)
    ids = np.asarray(person["spine"]["id"])
    assert bool(kept[20])
    assert 1 <= int(kept.sum()) <= 3
    everything = view.whole_vertebrae(person, jnp.full(3, -1e3), jnp.full(3, 1e3))
    np.testing.assert_array_equal(np.asarray(everything), ids > 0)
    labels = jnp.asarray(ids)
    left = view.keep_labels(labels, person["spine"]["id"], kept)
    np.testing.assert_array_equal(left, np.where(kept, ids, 0))


def test_support_points_reach_the_vertebra_top_and_bottom(person):
    """The box of the support points agrees with that of the drawn label."""
    i = 21
    origin = np.asarray(person["spine"]["origin"][i])
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    affine[:3, 3] = origin - [66.0, 40.0, 60.0]
    _, label = acquisition.render_volume(person, (88, 88, 80), affine, 0.5)
    drawn = np.argwhere(label == int(person["spine"]["id"][i])) * 1.5 + affine[:3, 3]
    support = np.asarray(view.support_points(person))[i]
    assert np.abs(drawn.min(0) - support.min(0)).max() < 5
    assert np.abs(drawn.max(0) - support.max(0)).max() < 5


def test_ellipsoid_of_equal_radii_is_a_sphere():
    x, y, z = np.random.default_rng(0).normal(0, 10, (3, 200)).astype(np.float32)
    d = shapes.ellipsoid(x, y, z, (7.0, 7.0, 7.0))
    np.testing.assert_allclose(d, np.sqrt(x * x + y * y + z * z) - 7.0, atol=1e-4)


def test_capsule_distance_is_that_of_a_round_segment():
    rng = np.random.default_rng(1)
    p = rng.normal(0, 10, (200, 3)).astype(np.float32)
    a, b = np.array([1.0, 2.0, 3.0]), np.array([8.0, -4.0, 5.0])
    t = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    expected = np.linalg.norm(p - a - t[:, None] * (b - a), axis=1) - 2.5
    d = shapes.capsule(*p.T, jnp.array([*a, *b, 2.5, 2.5, 2.5, 1.0]))
    np.testing.assert_allclose(d, expected, atol=1e-3)


def test_edges_follow_the_normal_distribution():
    from scipy import stats

    d = np.linspace(-5, 5, 101)
    np.testing.assert_allclose(tissues.inside(d, 1.3), stats.norm.cdf(-d / 1.3), atol=0.012)
