"""Contents of the trunk at points."""

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom.body import bones, scene
from spinejax.phantom.person import contents


def test_boxes_bound_what_is_drawn(people):
    """Skipping by boxes changes nothing: outside of its box a capsule leaves no trace."""
    one = jax.tree.map(lambda a: jnp.asarray(a[0]), people)
    items = one["contents"]
    rng = np.random.default_rng(0)
    points = jnp.asarray(rng.uniform([-150, -180, -250], [150, 60, 250], (512, 3)), jnp.float32)
    zero = jnp.zeros(512)
    far = zero - 1e3
    together = scene.things(points, zero, items, far, 0.6, zero, zero, one["fibres"])
    hit = bones.near(points[:1], items["low"], items["high"])
    assert int(hit.sum()) < 30 and hit.shape == items["wall_mm"].shape
    apart = jax.lax.map(
        lambda q: scene.things(
            q[None], zero[:1], items, far[:1], 0.6, zero[:1], zero[:1], one["fibres"]
        )[0],
        points,
    )
    np.testing.assert_allclose(apart, together, atol=0.5)


def test_nothing_is_drawn_without_a_brush():
    shape = jnp.array([[0, 0, 0, 1, 0, 0, 0, 0, 0, 1.0], [3, 0, 0, 4, 0, 0, 2, 2, 2, 1.0]])
    items = contents.boxed({"shape": shape, "wobble": jnp.zeros(2)})
    hit = bones.near(jnp.zeros((1, 3)), items["low"], items["high"])
    assert hit.tolist() == [False, True]


def test_no_lung_lies_above_the_chest(people):
    """Points of one block from the top of the chest to 80 mm above it, at the side of the neck."""

    def highest(one):
        x, z = jnp.meshgrid(jnp.linspace(-70.0, 70.0, 29), jnp.linspace(-80.0, 80.0, 33))
        middle = one["spine"]["origin"][7] * jnp.array([1.0, 1.0, 0.0])
        points = jnp.stack([x, 0.0 * x - 30.0, z + one["ribs"]["top"]], -1).reshape(-1, 3) + middle
        zero = jnp.zeros(points.shape[0])
        hu, _ = scene.soft(points, one, 0.6, zero, zero)
        return hu, points[:, 2] - one["ribs"]["top"], one["tissue"]["lung"]

    hu, height, lung = jax.jit(lambda many: jax.lax.map(highest, many))(people)
    # Without texture lungs have one HU, which elsewhere only few points of blurred skin have.
    filled = np.abs(np.asarray(hu) - np.asarray(lung)[:, None]) < 2.0
    assert np.mean(filled[np.asarray(height) < -40.0]) > 0.4
    assert np.mean(filled[np.asarray(height) > 2.0]) < 1e-3


def test_lungs_lie_beside_thoracic_bodies_and_the_aorta_between_them(people):
    """HU on lines from the middle of T7 to both sides, just in front of the ribs."""

    def line(one):
        middle = one["spine"]["origin"][13]
        x = jnp.arange(-60.0, 61.0)
        points = middle + jnp.stack([x, 0 * x - 4.0, 0 * x], 1)
        zero = 0 * x
        return scene.soft(points, one, 0.6, zero, zero)[0], one["tissue"]["blood"]

    hu, blood = jax.jit(lambda many: jax.lax.map(line, many))(people)
    near = np.asarray(hu)[:, 60 + np.arange(-30, -22)]  # 23 to 30 mm to the right
    assert np.mean(near.min(1) < -500) > 0.8
    left = np.asarray(hu)[:, 60 + np.arange(18, 50)]
    beside = np.abs(left - np.asarray(blood)[:, None]).min(1) < 2.0
    assert 0.3 < beside.mean()
    assert np.mean(np.asarray(hu)[:, -1] < -500) > 0.6
