"""Whole volumes, block by block."""

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.phantom import anatomy
from spinejax.phantom.scanner import acquisition, physics, scan_plan


def test_a_volume_is_the_signal_of_its_blocks(person):
    """Blocks fit together: a volume equals the same signal of the whole at once."""
    chosen = jax.jit(scan_plan.protocol)(jax.random.key(4), person)
    shape = (50, 30, 60)
    middle = np.asarray(0.5 * (chosen["lower"] + chosen["upper"]))
    affine = np.eye(4)
    affine[:3, 3] = middle - np.array(shape) / 2
    hu = np.random.default_rng(0).normal(0, 100, shape).astype(np.float32)
    out = acquisition.scanned(hu, affine, person, chosen)
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) + affine[:3, 3]
    whole = jax.jit(physics.signal, static_argnames="smoothing_mm")(
        jnp.asarray(hu), jnp.asarray(points, jnp.float32), person, chosen, 1.0,
        smoothing_mm=0.0,
    )  # fmt: skip
    assert np.abs(out - np.asarray(whole)).max() < 0.1
    again = acquisition.scanned(hu, affine, person, chosen)
    np.testing.assert_array_equal(out, again)


def test_thick_slices_are_means_of_thin_ones():
    person = jax.jit(anatomy)(jax.random.key(4))
    middle = np.asarray(person["spine"]["origin"])[20]
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[:3, 3] = middle - [20.0, 20.0, 12.0]
    thick, label = acquisition.render_volume(person, (40, 40, 8), affine, 0.6, slice_mm=3.0)
    fine = affine @ np.diag([1.0, 1.0, 1.0 / 3.0, 1.0])
    fine[2, 3] -= 1.0
    thin, thin_label = acquisition.render_volume(person, (40, 40, 24), fine, 0.6)
    assert np.abs(thick - thin.reshape(40, 40, 8, 3).mean(-1)).max() < 1.0
    assert (label != thin_label[..., 1::3]).mean() < 1e-3
    assert label.any()


def test_vertebrae_left_out_of_a_block_are_not_missed(monkeypatch):
    person = jax.jit(anatomy)(jax.random.key(6))
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = np.asarray(person["spine"]["origin"])[18] - [60.0, 50.0, 60.0]
    hu, label = acquisition.render_volume(person, (60, 70, 60), affine, 0.9)
    everywhere = (np.full((26, 3), -1e6, np.float32), np.full((26, 3), 1e6, np.float32))
    monkeypatch.setattr(acquisition, "_boxes", lambda parameters: everywhere)
    all_hu, all_label = acquisition.render_volume(person, (60, 70, 60), affine, 0.9)
    np.testing.assert_array_equal(label, all_label)
    np.testing.assert_allclose(hu, all_hu, atol=2.0)
