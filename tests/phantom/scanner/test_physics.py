"""What a scanner does to clean HU: known noise, offsets, streaks and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from spinejax.phantom.body import scene
from spinejax.phantom.scanner import artefacts, physics
from tests.test_white_noise import correlation

SEED = jnp.array([11, 12], jnp.uint32)  # of noise unlike that of `quiet`


def grid(middle, shape, step=1.0):
    """Points of a block around `middle`; a 2D shape is sagittal (y, z)."""
    sizes = (1, *shape) if len(shape) == 2 else shape
    axes = [m + step * (jnp.arange(n) - (n - 1) / 2) for m, n in zip(middle, sizes, strict=True)]
    points = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1)
    return points[0] if len(shape) == 2 else points


signal = jax.jit(physics.signal, static_argnames=("smoothing_mm",))


def test_without_noise_and_artefacts_the_signal_is_the_clean_picture(person, quiet):
    points = grid((0.0, 20.0, 0.0), (24, 32))
    hu = jnp.linspace(-1000.0, 3000.0, 24 * 32).reshape(24, 32)
    out = signal(hu, points, person, quiet, 1.0)
    np.testing.assert_allclose(out, hu, atol=0.01)


def test_values_are_clipped_as_by_twelve_bits_and_at_air(person, quiet):
    points = grid((0.0, 0.0, 0.0), (8, 8))
    hu = jnp.where(jnp.arange(64).reshape(8, 8) % 2 == 0, 9000.0, -3000.0)
    out = signal(hu, points, person, quiet, 1.0)
    np.testing.assert_allclose(np.unique(out), [-1024.0, 3071.0])


@pytest.mark.parametrize("shape", [(160, 160), (40, 40, 40)], ids=["slice", "block"])
@pytest.mark.parametrize("width", [0.6, 1.3])
def test_noise_has_the_stated_strength_and_correlation(person, quiet, shape, width):
    """A Gaussian filter of standard deviation s correlates noise as exp(-d^2 / 4 s^2)."""
    level = 20.0
    chosen = {**quiet, "noise": jnp.asarray(level), "grain": jnp.full(3, width)}
    points = grid((0.0, 20.0, 0.0), shape)
    out = np.asarray(
        signal(jnp.zeros(shape), points, person, chosen, 1.0)
    )  # fmt: skip
    body = scene.outline(points[..., 2], person["profile"])
    factor = artefacts.attenuation(points, body, chosen)["noise"]
    x = out / np.asarray(factor)
    assert abs(x.std() / level - 1.0) < 0.06
    total = width**2 + physics.SMOOTHING_MM**2
    for axis in range(len(shape)):
        for lag in (1, 2):
            expected = np.exp(-(lag**2) / (4 * total))
            assert abs(correlation(x, lag, axis) - expected) < 0.06


def test_stored_noise_becomes_that_of_slices_by_preprocessing(person, quiet):
    """A volume's noise, smoothed as scans are, is as strong and as grainy as a slice's."""
    sharp = {
        **quiet, "noise": jnp.asarray(20.0), "grain": jnp.full(3, 0.4),
        "wide_grain": jnp.full(3, 1.1), "highpass": jnp.array([0.6, 0.6, 0.0]),
    }  # fmt: skip
    shape = (64, 64, 64)
    points = grid((0.0, 20.0, 0.0), shape)
    stored = signal(jnp.zeros(shape), points, person, sharp, 1.0, smoothing_mm=0.0)
    smooth = ndimage.gaussian_filter(np.asarray(stored), physics.SMOOTHING_MM)[8:-8, 8:-8, 8:-8]
    flat = np.asarray(
        signal(
            jnp.zeros((64, 64)), points[32], person, {**sharp, "noise_seed": SEED}, 1.0
        )
    )[8:-8, 8:-8]  # fmt: skip
    assert np.asarray(stored).std() > 2.5 * smooth.std()
    assert abs(smooth[24].std() / flat.std() - 1.0) < 0.2
    for axis in (0, 1):
        for lag in (1, 2):
            ours = correlation(flat, lag, axis)
            theirs = np.mean([correlation(s, lag, axis) for s in smooth[::6]])
            assert abs(ours - theirs) < 0.12


def test_noise_rises_through_the_shoulders_and_is_drawn_out_sideways(person, quiet):
    chosen = {
        **quiet, "noise": jnp.asarray(10.0), "starvation": jnp.asarray(1.0),
        "modulation": jnp.asarray(0.5), "grain": jnp.full(3, 0.3),
    }  # fmt: skip
    spine = np.asarray(person["spine"]["origin"])

    def coronal(slot, seed):
        points = grid(spine[slot], (64, 1, 64))
        with_noise, without = (
            signal(jnp.zeros((64, 1, 64)), points, person, {**c, "noise_seed": seed}, 1.0)
            for c in (chosen, {**chosen, "noise": jnp.zeros(())})
        )
        return np.asarray(with_noise - without)[:, 0]

    seeds = jax.random.bits(jax.random.key(3), (6, 2))
    shoulders, chest = ([coronal(slot, seed) for seed in seeds] for slot in (8, 16))
    assert np.std(shoulders) > 1.5 * np.std(chest)
    along, across = (np.mean([correlation(x, 6, axis) for x in shoulders]) for axis in (0, 1))
    assert along > across + 0.15
    assert np.mean([correlation(x, 6, 0) for x in chest]) < 0.6 * along


def test_metal_streaks_lie_in_its_axial_plane_dark_and_bright(still, quiet):
    centre = jnp.array([10.0, 20.0, 5.0])
    chosen = {**quiet, "metal_gain": jnp.ones(()), "axial_mm": jnp.ones(())}
    implant = {
        "centre": jnp.zeros((3, 3)).at[1].set(centre),
        "strength": jnp.zeros(3).at[1].set(1.0),
    }
    shape = (64, 64, 41)
    points = grid(centre, shape)
    out = np.asarray(signal(jnp.zeros(shape), points, {**still, "metal": implant}, chosen, 1))
    strength = np.abs(out).mean((0, 1))
    assert strength.argmax() == 20
    assert strength[20] > 20 * strength[32]
    plane = out[:, :, 20]
    assert plane.min() < -20 and plane.max() > 20
    far = np.hypot(*np.meshgrid(*[np.arange(64) - 31.5] * 2, indexing="ij"))
    ring = [np.abs(plane[(far > r) & (far < r + 4)]).mean() for r in (8, 16, 26)]
    assert ring[0] > ring[1] > ring[2] > 0
    none = {**implant, "strength": jnp.zeros(3)}
    clean = signal(jnp.zeros(shape), points, {**still, "metal": none}, chosen, 1)
    assert not np.asarray(clean).any()


def test_sharp_kernels_overshoot_at_edges_in_the_axial_plane_alone(person, quiet):
    chosen = {**quiet, "sharpness": jnp.asarray(1.0), "sharp_mm": jnp.asarray(1.0)}
    points = grid((0.0, 20.0, 0.0), (32, 32))
    y_edge = jnp.where(jnp.arange(32) < 16, 0.0, 1000.0)[:, None] * jnp.ones((32, 32))
    out = np.asarray(signal(y_edge, points, person, chosen, 1.0))
    assert out[16, 16] > 1100 and out[15, 16] < -100
    np.testing.assert_allclose(out[[4, 28], 16], [0.0, 1000.0], atol=1.0)
    out = np.asarray(signal(y_edge.T, points, person, chosen, 1.0))
    np.testing.assert_allclose(out, y_edge.T, atol=0.5)


def test_bone_gains_by_a_lower_voltage_and_air_stays(person, quiet):
    chosen = {**quiet, "voltage": jnp.asarray(1.2), "offset": jnp.asarray(5.0)}
    hu = jnp.array([[-1000.0, 0.0], [500.0, 1000.0]])
    out = signal(hu, grid((0, 0, 0), (2, 2)), person, chosen, 1.0)
    np.testing.assert_allclose(out, [[-995.0, 5.0], [605.0, 1205.0]], atol=0.01)


def test_beyond_the_circle_and_the_field_stand_their_values(person, quiet):
    chosen = {
        **quiet, "circle_mm": jnp.asarray(20.0), "outside": jnp.asarray(-2048.0),
        "lower": jnp.array([-50.0, -50.0, -10.0]), "upper": jnp.array([50.0, 50.0, 10.0]),
    }  # fmt: skip
    points = grid((0.0, 0.0, 0.0), (61, 41))
    out = np.asarray(signal(jnp.zeros((61, 41)), points, person, chosen, 1.0))
    y, z = np.meshgrid(np.arange(61) - 30, np.arange(41) - 20, indexing="ij")
    np.testing.assert_array_equal(out[np.abs(z) > 10.6], -1024.0)
    np.testing.assert_array_equal(out[(np.abs(z) < 10) & (np.abs(y) > 20)], -2048.0)
    np.testing.assert_array_equal(out[(np.abs(z) < 10) & (np.abs(y) < 20)], 0.0)


def test_thick_axial_slices_are_means_with_straight_lines_between():
    z = 2.0 * jnp.arange(60.0) - 59.0
    thick = {
        "lower": jnp.full(3, -61.0), "pitch_mm": jnp.asarray(5.0), "axial_mm": jnp.asarray(5.0)
    }  # fmt: skip
    step = jnp.where(jnp.stack([z, z]) > 0.0, 100.0, 0.0)
    edge = np.asarray(physics.axial_slices(step, z, 2.0, thick))
    far = np.abs(z) > 8.0
    np.testing.assert_allclose(edge[:, far], step[:, far], atol=1e-3)
    assert np.all(np.diff(edge, axis=1) > -1e-3)
    assert len(np.unique(np.round(edge[0], 2))) > 4  # a step of one pixel has become a slope
    slope = physics.axial_slices(z, z, 2.0, thick)
    np.testing.assert_allclose(slope[4:-4], z[4:-4], atol=0.6)
    thin = {**thick, "pitch_mm": jnp.asarray(2.0)}
    np.testing.assert_array_equal(physics.axial_slices(z, z, 2.0, thin), z)
