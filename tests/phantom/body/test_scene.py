"""Contents of the trunk at points."""

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom.body import bones, scene
from spinejax.phantom.person import contents


def test_boxes_bound_what_is_drawn(people):
    """Skipping by boxes changes nothing: outside of its box a capsule leaves no trace."""
    one = jax.tree.map(lambda a: a[0], people)
    items = one["contents"]
    rng = np.random.default_rng(0)
    points = jnp.asarray(rng.uniform([-150, -180, -250], [150, 60, 250], (512, 3)), jnp.float32)
    zero = jnp.zeros(512)
    far = zero - 1e3
    together = scene.things(points, zero, items, far, 0.6, zero, zero, one["fibres"])
    order, count = bones.near(points[:1], items["low"], items["high"])
    assert int(count) < 30 and order.shape == items["wall_mm"].shape
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
    _, count = bones.near(jnp.zeros((1, 3)), items["low"], items["high"])
    assert int(count) == 1
