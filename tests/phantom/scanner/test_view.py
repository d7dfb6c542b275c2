"""Displacement of points, and vertebrae that a field of view shows whole."""

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom.scanner import acquisition, view


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


def test_tilt_is_a_shear_and_has_an_inverse(person, quiet):
    tilted = {**quiet, "tilt": jnp.asarray(0.2), "lower": jnp.zeros(3), "upper": jnp.zeros(3)}
    points = jax.random.normal(jax.random.key(0), (50, 3)) * 60.0
    there = view.where(points, tilted)
    np.testing.assert_allclose(there[:, 1] - points[:, 1], 0.2 * points[:, 2], atol=1e-3)
    np.testing.assert_allclose(there[:, ::2], points[:, ::2], atol=1e-4)
    moved = {
        **tilted, "motion_mm": jnp.asarray(2.0), "turn": jnp.array([0.05, -0.04, 0.1]),
        "motion_wave": jnp.asarray(0.1), "lower": jnp.full(3, -7.0), "upper": jnp.full(3, 90.0),
    }  # fmt: skip
    again = view.shown_at(view.where(points, moved), moved)
    np.testing.assert_allclose(again, points, atol=2e-3)
    back = view.where(view.shown_at(points, moved), moved)
    np.testing.assert_allclose(back, points, atol=2e-3)
