"""What surrounds a phantom's spine: switch, HU against measured ones, implants, joints, drawing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from spinejax.phantom import anatomy, render
from spinejax.phantom.body import bones, scene, warp
from spinejax.phantom.person import contents, implants

PEOPLE = 16


@pytest.fixture(scope="module")
def crowd():
    draw = jax.jit(lambda keys: jax.lax.map(anatomy, keys))
    return draw(jax.random.split(jax.random.key(2), 64))


@pytest.fixture(scope="module")
def people(crowd):
    return jax.tree.map(lambda a: a[:PEOPLE], crowd)


@pytest.fixture(scope="module")
def slices(people):
    """Sagittal slices of 200 mm about T12 at 1 mm, beside the midline: HU and label."""
    u = jnp.arange(200) - 100.0
    y, z = jnp.meshgrid(u, u, indexing="ij")

    def paint(person, side, distractors):
        points = person["spine"]["origin"][18] + jnp.stack([0 * y + side, y, z], -1)
        return render(person, points, edge_mm=0.7, distractors=distractors)

    def all_of(distractors):
        draw_all = jax.jit(
            lambda p, s: jax.lax.map(lambda a: paint(a[0], a[1], distractors), (p, s))
        )
        sides = jnp.linspace(2.0, 26.0, PEOPLE)
        return [np.asarray(a) for a in draw_all(people, sides)]

    return {switch: all_of(switch) for switch in (True, False)}


def test_without_distractors_bright_points_belong_to_the_column(slices):
    hu, label = slices[False]
    around = ndimage.binary_dilation(label > 0, np.ones((1, 7, 7), bool))
    # Beside the column there may be chalk in a worn disc: few points.
    assert ((hu > 250) & ~around).sum() < 0.03 * (hu > 250).sum()
    assert (hu[label == 0] < -700).sum() < (slices[True][0] < -700).sum()


def test_the_switch_changes_no_label(slices):
    np.testing.assert_array_equal(slices[True][1], slices[False][1])


def test_bright_points_are_often_not_vertebra(slices):
    """Of all voxels above 150 HU, 40-80 % are not vertebra in whole real scans.

    Slices through the column itself, as here, hold fewer than whole scans do.
    """
    hu, label = slices[True]
    bright = hu > 150
    assert 0.12 < (bright & (label == 0)).sum() / bright.sum() < 0.8


def test_hu_of_vertebrae_resemble_measured_ones(slices):
    """Medians of three real scans: marrow 68-201, one-voxel shell 246-405, 3 mm around -168..345.

    Persons are drawn wider than three scans vary; the middle of many must lie within.
    """
    hu, label = slices[True]
    bone = label > 0
    step = np.zeros((3, 3, 3), bool)
    step[1] = ndimage.generate_binary_structure(2, 1)
    deep = ndimage.binary_erosion(bone, step, iterations=3)
    shell = bone & ~ndimage.binary_erosion(bone, step)
    near = ndimage.binary_dilation(bone, step, iterations=3) & ~bone
    marrow = [np.median(h[m]) for h, m in zip(hu, deep, strict=True)]
    rim = [np.median(h[m]) for h, m in zip(hu, shell, strict=True)]
    assert 68 < np.median(marrow) < 240
    assert 220 < np.median(rim) < 450
    assert np.ptp(marrow) > 40  # persons differ
    low, middle, high = np.percentile(hu[near], [5, 50, 95])
    assert -180 < low < -30
    assert -50 < middle < 120
    assert 150 < high < 500


def test_soft_tissue_differs_between_persons(people):
    tissue = people["tissue"]
    for name in ("fat", "muscle", "blood", "cord"):
        assert np.ptp(np.asarray(tissue[name])) > 5, name
    assert len(np.unique(np.asarray(tissue["contrast"]) > 0)) == 2


def test_ribs_reach_their_vertebrae_and_leave_a_joint(people):
    """The head of each rib lies within 8 mm of its vertebra's body, and not in it."""
    for i in range(2):
        one = jax.tree.map(lambda a, i=i: a[i], people)
        heads = np.asarray(one["ribs"]["shape"])[:, :6].reshape(13, 2, 2, 6)[:, :, 0, :3]
        ids = list(np.asarray(one["spine"]["id"]))
        for rib, vertebra in enumerate(range(8, 20)):
            if vertebra not in ids:
                continue
            place = ids.index(vertebra)
            origin = np.asarray(one["spine"]["origin"][place])
            a = float(one["spine"]["size"]["a"][place])
            away = np.linalg.norm(heads[rib] - origin, axis=1)
            assert np.all(away > 0.8 * a), vertebra
            assert np.all(away < a + 14), vertebra


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


def test_metal_is_bright_where_it_is_said_to_be(crowd):
    """Every sixteenth person or so has screws; each place named as metal is bright."""
    strength = np.asarray(crowd["metal"]["strength"])
    centre = np.asarray(jax.vmap(warp.unwarp)(crowd["metal"]["centre"], crowd))
    assert strength.shape == (64, implants.METALS)
    screws = (strength[:, : 2 * implants.LEVELS] > 0).any(1)
    assert 0 < screws.mean() < 0.3
    paint = jax.jit(lambda p, q: render(p, q, edge_mm=0.6)[0])
    for i in np.flatnonzero(screws)[:3]:
        one = jax.tree.map(lambda a, i=i: a[i], crowd)
        on = strength[i, : 2 * implants.LEVELS] > 0
        hu = np.asarray(paint(one, jnp.asarray(centre[i, : 2 * implants.LEVELS])))
        assert np.all(hu[on] > 1500)


def test_sacrum_has_a_canal_and_a_first_body_like_a_vertebra(people):
    """In the midline there is bone in front, then a canal, then bone again: S1 looks like L6."""
    one = jax.tree.map(lambda a: a[1], people)
    frame = one["sacrum"]
    y = np.arange(-30.0, 60.0, 1.0)
    rows = np.stack([0 * y, y, 0 * y - 12.0], -1).astype(np.float32)
    points = frame["origin"] + jnp.asarray(rows) @ frame["rotation"].T
    d = np.asarray(bones.bones(points, one)[0])
    runs = np.flatnonzero(np.diff(np.r_[0, (d < 0).astype(int), 0]))
    assert len(runs) >= 4  # two stretches of bone
    assert 20 < runs[1] - runs[0] < 42  # depth of the first body, mm
    assert 4 < runs[2] - runs[1] < 25  # canal


def test_sacra_slope_as_in_adults(crowd):
    """Standing adults: 41 degrees, standard deviation 8.4 (Vialle et al., JBJS Am 2005)."""
    z = np.asarray(crowd["sacrum"]["rotation"])[:, :, 2]
    slope = np.rad2deg(np.arctan2(-z[:, 1], z[:, 2]))
    assert 36 < np.median(slope) < 48
    assert 6 < slope.std() < 15


def test_the_first_sacral_body_cannot_be_told_from_the_last_vertebra_by_its_hu(crowd):
    """Median HU in the middle of both: as often the one is brighter as the other."""
    paint = jax.jit(lambda p, q: render(p, q, edge_mm=2.0)[0])
    grid = np.stack(np.meshgrid(*[[-6.0, 0.0, 6.0]] * 2, [-4.0, -2.0, 0.0]), -1).reshape(-1, 3)
    ratios = []
    for i in range(40):
        one = jax.tree.map(lambda a, i=i: a[i], crowd)
        spine, sacrum = one["spine"], one["sacrum"]
        last = int((np.asarray(spine["id"]) > 0).sum()) - 1
        hu = []
        for origin, rotation in (
            (spine["origin"][last], spine["rotation"][last]),
            (sacrum["origin"], sacrum["rotation"]),
        ):
            points = warp.unwarp(origin + jnp.asarray(grid, jnp.float32) @ rotation.T, one)
            hu.append(float(jnp.median(paint(one, points))))
        ratios.append((hu[1] + 100.0) / (hu[0] + 100.0))
    assert 0.9 < np.median(ratios) < 1.3
    assert np.percentile(ratios, 10) < 0.95 and np.percentile(ratios, 90) > 1.1


def test_both_endplates_beside_the_last_disc_are_as_bright(crowd):
    """At the last vertebra's lower and at the sacrum's upper plate, brighter than between them."""
    paint = jax.jit(lambda p, q: render(p, q, edge_mm=0.5)[0])
    steps = jnp.arange(-7.0, 7.0, 0.25)
    found = []
    for i in range(24):
        one = jax.tree.map(lambda a, i=i: a[i], crowd)
        spine, sacrum = one["spine"], one["sacrum"]
        last = int((np.asarray(spine["id"]) > 0).sum()) - 1
        brightest = []
        for origin, rotation, height in (
            (spine["origin"][last], spine["rotation"][last], -spine["size"]["h"][last]),
            (sacrum["origin"], sacrum["rotation"], sacrum["top"]),
        ):
            line = origin + (height + steps)[:, None] * rotation[:, 2]
            hu = np.asarray(paint(one, warp.unwarp(line, one)))
            brightest += [hu.max(), hu.min()]
        found.append(brightest)
    lower_plate, dark_above, upper_plate, dark_below = np.transpose(found)
    assert 0.8 < np.median(upper_plate / lower_plate) < 1.25
    assert np.mean(upper_plate > 250) > 0.9
    assert np.median(lower_plate - dark_above) > 150 < np.median(upper_plate - dark_below)


def test_a_joint_lies_between_sacrum_and_ilium(people):
    """In the plane of S1, bone of the wing of the ilium is another piece than the sacrum."""
    for i in range(PEOPLE):
        one = jax.tree.map(lambda a, i=i: a[i], people)
        frame = one["sacrum"]
        u = jnp.arange(0.0, 130.0, 0.25)
        y = jnp.arange(-10.0, 50.0, 0.25)
        rows = jnp.stack(jnp.broadcast_arrays(u[None], y[:, None], jnp.full((1, 1), -8.0)), -1)
        points = (frame["origin"] + rows.reshape(-1, 3) @ frame["rotation"].T).astype(jnp.float32)
        bone = np.asarray(bones.bones(points, one)[0] < 0).reshape(len(y), len(u))
        parts = ndimage.label(bone)[0]
        sacral = parts[40, 0]
        assert sacral > 0  # the body, in the midline
        sizes = np.bincount(parts.ravel()) / 16.0  # mm2
        sizes[[0, sacral]] = 0
        assert sizes.max() > 100, i  # the ilium's


def test_what_a_worn_disc_does_to_the_sacrum_it_does_to_no_other_bone(people):
    one = jax.tree.map(lambda a: a[1], people)
    worn = {**one, "marrow": {**one["marrow"], "sacral_plate": jnp.float32(500.0)}}
    well = {**one, "marrow": {**one["marrow"], "sacral_plate": jnp.float32(0.0)}}
    u = jnp.arange(0.0, 130.0, 1.0)
    y, z = jnp.arange(-40.0, 50.0, 2.0), jnp.arange(-40.0, 50.0, 3.0)
    grid = jnp.stack(jnp.meshgrid(u, y, z, indexing="ij"), -1).reshape(-1, 3)
    frame = one["sacrum"]
    points = (frame["origin"] + grid @ frame["rotation"].T).astype(jnp.float32)
    drawn = bones.bones(points, worn)
    more = np.asarray(drawn.dense - bones.bones(points, well).dense)
    far = {**one, "pelvis": {**one["pelvis"], "origin": one["pelvis"]["origin"] + 1e4}}
    alone = np.asarray(bones.bones(points, far).distance)
    assert more[alone < -1.0].max() > 250
    ilium = (np.asarray(drawn.distance) < 0) & (alone > 1.0)
    assert ilium.sum() > 100 and more[ilium].max() == 0.0


def test_the_sac_goes_on_into_the_sacrum_and_ends_there(people):
    """Above its end the middle of the sacral canal is sac, far below it is fat."""
    paint = jax.jit(lambda p, q: render(p, q, edge_mm=0.5)[0])
    dark = np.flatnonzero(np.asarray(people["tissue"]["epidural"]) < -40.0)  # not so in everybody
    for i in dark[:4]:
        one = jax.tree.map(lambda a, i=i: a[i], people)
        frame = one["sacrum"]
        rows = np.stack(np.meshgrid([0.0], np.arange(-10.0, 50.0, 0.5), [-6.0, -70.0]), -1)
        points = frame["origin"] + jnp.asarray(rows.reshape(-1, 3)) @ frame["rotation"].T
        found = bones.bones(points.astype(jnp.float32), one)
        deep = np.asarray(found.holes).reshape(-1, 2).argmin(0)
        points = np.asarray(points).reshape(-1, 2, 3)[deep, [0, 1]]
        upper, lower = np.asarray(paint(one, warp.unwarp(jnp.asarray(points), one)))
        assert upper > 0.0 > -25.0 > lower


def test_displacement_moves_metal_a_little(crowd):
    """Places are given before displacement, which moves them a little."""
    one = jax.tree.map(lambda a: a[0], crowd)
    centre = one["metal"]["centre"]
    assert centre.shape == (implants.METALS, 3)
    moved = warp.unwarp(centre, one)
    assert float(jnp.abs(moved - centre).max()) < 30.0
