"""What a scanner does to clean HU: known noise, offsets, streaks and displacements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from spinejax.phantom import anatomy
from spinejax.phantom.body import scene
from spinejax.phantom.scanner import acquisition, artefacts, noise_field, physics, plan, view

drawn = jax.jit(plan.protocol)
SEED = jnp.array([11, 12], jnp.uint32)  # of noise unlike that of `quiet`


@pytest.fixture(scope="module")
def person():
    return jax.jit(anatomy)(jax.random.key(5))


@pytest.fixture
def quiet(person):
    """A protocol that adds nothing."""
    chosen = dict(drawn(jax.random.key(0), person))
    off = (
        "noise", "sharpness", "offset", "cupping", "shading", "starvation", "metal_gain",
        "motion_mm", "tilt", "modulation", "highpass",
    )  # fmt: skip
    for name in off:
        chosen[name] = jnp.zeros_like(chosen[name])
    return {
        **chosen, "turn": jnp.zeros(3), "voltage": jnp.ones(()), "clip": jnp.asarray(3071.0),
        "circle_mm": jnp.asarray(1e5), "lower": jnp.full(3, -1e4), "upper": jnp.full(3, 1e4),
    }  # fmt: skip


@pytest.fixture
def still(person):
    """The person without displacement: metal stays where it is put."""
    return {**person, "warp": jax.tree.map(jnp.zeros_like, person["warp"])}


def grid(middle, shape, step=1.0):
    """Points of a block around `middle`; a 2D shape is sagittal (y, z)."""
    sizes = (1, *shape) if len(shape) == 2 else shape
    axes = [m + step * (jnp.arange(n) - (n - 1) / 2) for m, n in zip(middle, sizes, strict=True)]
    points = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1)
    return points[0] if len(shape) == 2 else points


signal = jax.jit(physics.signal, static_argnames=("smoothing_mm",))


def correlation(x, lag, axis):
    x = x - x.mean()
    a = np.take(x, range(x.shape[axis] - lag), axis)
    b = np.take(x, range(lag, x.shape[axis]), axis)
    return float((a * b).mean() / (x * x).mean())


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


def test_white_noise_is_normal_and_independent():
    x = np.asarray(noise_field.white(jnp.uint32(5), (300, 300), (0, 0)))
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
    assert abs((x**4).mean() - 3.0) < 0.4
    for lag, axis in ((1, 0), (1, 1), (2, 0), (16, 1)):
        assert abs(correlation(x, lag, axis)) < 0.015
    other = np.asarray(noise_field.white(jnp.uint32(6), (300, 300), (0, 0)))
    assert abs((x * other).mean()) < 0.01


def test_noise_of_a_block_continues_its_neighbour():
    whole = np.asarray(noise_field.white(jnp.uint32(9), (20, 30), (0, 0)))
    part = np.asarray(noise_field.white(jnp.uint32(9), (6, 7), (3, 11)))
    np.testing.assert_array_equal(whole[3:9, 11:18], part)
    before = np.asarray(noise_field.white(jnp.uint32(9), (6, 7), (-2, -1)))
    np.testing.assert_array_equal(whole[:4, :6], before[2:, 1:])


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


def test_two_pieces_at_one_height_are_joined_by_a_dark_band(still, quiet):
    chosen = {**quiet, "metal_gain": jnp.ones(()), "axial_mm": jnp.ones(())}
    centres = jnp.array([[-20.0, 30.0, 0.0], [20.0, 30.0, 0.0]])
    implant = {"centre": centres, "strength": jnp.ones(2)}
    points = grid((0.0, 30.0, 0.0), (21, 41, 1))
    means = []
    for angle in np.linspace(0, 6, 7):
        out = artefacts.metal(
            points, {**still, "metal": implant}, {**chosen, "metal_angle": jnp.asarray(angle)}
        )
        means.append([float(out[:, 20].mean()), float(out[:, :8].mean())])
    assert np.mean(means, 0)[0] < np.mean(means, 0)[1] - 30


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


def test_protocols_vary_as_spine_scans_do(person):
    keys = jax.random.split(jax.random.key(0), 600)
    many = jax.tree.map(np.asarray, jax.jit(jax.vmap(drawn, (0, None)))(keys, person))
    extent = many["upper"] - many["lower"]
    assert (extent > 55).all() and extent.max() <= 700.01
    assert many["spacing"].min() >= 0.25 and many["spacing"].max() > 2.5
    # As sub-verse014: narrow, of thick sagittal slices; as TPTBox: one vertebra; as a whole trunk.
    assert ((extent[:, 0] < 90) & (many["slice_axis"] == 0)).mean() > 0.05
    assert ((extent < 140).all(1)).mean() > 0.04
    assert ((extent[:, 0] > 250) & (many["spacing"].min(1) > 1.4)).mean() > 0.03
    centre = 0.5 * (many["upper"] + many["lower"])
    ids = np.asarray(person["spine"]["id"])
    origins = np.asarray(person["spine"]["origin"])[ids > 0]
    assert (centre[:, 2] < origins[:, 2].max() + 11).all()
    # About a vertebra; or, of trunks, down to the hips with L5 in view.
    hips = float(person["sacrum"]["origin"][2]) - many["lower"][:, 2] > 39.0
    assert (centre[~hips, 2] > origins[:, 2].min() - 11).all()
    assert 0.15 < hips.mean() < 0.5
    assert (many["upper"][:, 2] > float(person["sacrum"]["origin"][2]) + 45).all()
    assert 6 < np.median(many["noise"]) < 20
    native = jax.vmap(lambda p: physics.noise_level(p, 0.0))(many)
    assert float(jnp.max(native)) <= 160 and float(jnp.median(native)) > np.median(many["noise"])
    assert 0.1 < (many["circle_mm"] < 1e4).mean() < 0.3
    assert 0.7 < (many["clip"] == plan.LARGEST_HU).mean() < 0.95


@pytest.mark.parametrize(
    ("region", "ids"), [("cervical", (1, 7)), ("thoracic", (8, 19)), ("lumbar", (20, 25))]
)
def test_a_region_is_where_scans_are_centred(person, region, ids):
    keys = jax.random.split(jax.random.key(0), 200)
    of = jax.vmap(lambda key: plan.protocol(key, person, region=region))
    many = jax.tree.map(np.asarray, jax.jit(of)(keys))
    names, z = np.asarray(person["spine"]["id"]), np.asarray(person["spine"]["origin"])[:, 2]
    shown = z[(names >= ids[0]) & (names <= ids[1])]
    centre = 0.5 * (many["upper"] + many["lower"])[:, 2]
    beyond = (centre > shown.max() + 11) | (centre < shown.min() - 11)
    # Scans of the trunk that end below the hips are of the lumbar spine, too.
    assert (0.03 < beyond.mean() < 0.3) if region == "lumbar" else not beyond.any()


def test_a_volume_is_the_signal_of_its_blocks(person):
    """Blocks fit together: a volume equals the same signal of the whole at once."""
    chosen = drawn(jax.random.key(4), person)
    shape = (50, 30, 60)
    middle = np.asarray(0.5 * (chosen["lower"] + chosen["upper"]))
    affine = np.eye(4)
    affine[:3, 3] = middle - np.array(shape) / 2
    hu = np.random.default_rng(0).normal(0, 100, shape).astype(np.float32)
    out = acquisition.scanned(hu, affine, person, chosen)
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) + affine[:3, 3]
    whole = signal(
        jnp.asarray(hu), jnp.asarray(points, jnp.float32), person, chosen, 1.0,
        smoothing_mm=0.0,
    )  # fmt: skip
    assert np.abs(out - np.asarray(whole)).max() < 0.1
    again = acquisition.scanned(hu, affine, person, chosen)
    np.testing.assert_array_equal(out, again)
