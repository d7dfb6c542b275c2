"""Ribs, sacrum and pelvis: joints, canal, HU and density."""

import jax
import numpy as np
from scipy import ndimage

from spinejax.phantom import render
from spinejax.phantom.body import bones, warp

LENGTH = 64
bones_at = jax.jit(bones.bones)
_paint = jax.jit(lambda p, q, edge: render(p, q, edge_mm=edge)[0])
_unwarp = jax.jit(warp.unwarp)


def paint(person, points, edge_mm):
    """HU at up to `LENGTH` points of the undeformed body, by one compiled program."""
    points = np.asarray(points, np.float32).reshape(-1, 3)
    filled = np.concatenate([points, np.repeat(points[-1:], LENGTH - len(points), 0)])
    return np.asarray(_paint(person, _unwarp(filled, person), edge_mm))[: len(points)]


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


def test_sacrum_has_a_canal_and_a_first_body_like_a_vertebra(people):
    """In the midline there is bone in front, then a canal, then bone again: S1 looks like L6."""
    one = jax.tree.map(lambda a: a[1], people)
    frame = one["sacrum"]
    y = np.arange(-30.0, 60.0, 1.0)
    rows = np.stack([0 * y, y, 0 * y - 12.0], -1).astype(np.float32)
    points = frame["origin"] + rows @ frame["rotation"].T
    d = np.asarray(bones_at(points, one)[0])
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
            hu.append(np.median(paint(one, origin + grid @ rotation.T, 2.0)))
        ratios.append((hu[1] + 100.0) / (hu[0] + 100.0))
    assert 0.9 < np.median(ratios) < 1.3
    assert np.percentile(ratios, 10) < 0.95 and np.percentile(ratios, 90) > 1.1


def test_both_endplates_beside_the_last_disc_are_as_bright(crowd):
    """At the last vertebra's lower and at the sacrum's upper plate, brighter than between them."""
    steps = np.arange(-7.0, 7.0, 0.25)
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
            hu = paint(one, line, 0.5)
            brightest += [hu.max(), hu.min()]
        found.append(brightest)
    lower_plate, dark_above, upper_plate, dark_below = np.transpose(found)
    assert 0.8 < np.median(upper_plate / lower_plate) < 1.25
    assert np.mean(upper_plate > 250) > 0.9
    assert np.median(lower_plate - dark_above) > 150 < np.median(upper_plate - dark_below)


def test_a_joint_lies_between_sacrum_and_ilium(people):
    """In the plane of S1, bone of the wing of the ilium is another piece than the sacrum."""
    for i in range(16):
        one = jax.tree.map(lambda a, i=i: a[i], people)
        frame = one["sacrum"]
        u = np.arange(0.0, 130.0, 0.25)
        y = np.arange(-10.0, 50.0, 0.25)
        rows = np.stack(np.broadcast_arrays(u[None], y[:, None], np.full((1, 1), -8.0)), -1)
        points = (frame["origin"] + rows.reshape(-1, 3) @ frame["rotation"].T).astype(np.float32)
        bone = np.asarray(bones_at(points, one)[0] < 0).reshape(len(y), len(u))
        parts = ndimage.label(bone)[0]
        sacral = parts[40, 0]
        assert sacral > 0  # the body, in the midline
        sizes = np.bincount(parts.ravel()) / 16.0  # mm2
        sizes[[0, sacral]] = 0
        assert sizes.max() > 100, i  # the ilium's


def test_what_a_worn_disc_does_to_the_sacrum_it_does_to_no_other_bone(people):
    one = jax.tree.map(lambda a: a[1], people)
    worn = {**one, "marrow": {**one["marrow"], "sacral_plate": np.float32(500.0)}}
    well = {**one, "marrow": {**one["marrow"], "sacral_plate": np.float32(0.0)}}
    u = np.arange(0.0, 130.0, 1.0)
    y, z = np.arange(-40.0, 50.0, 2.0), np.arange(-40.0, 50.0, 3.0)
    grid = np.stack(np.meshgrid(u, y, z, indexing="ij"), -1).reshape(-1, 3)
    frame = one["sacrum"]
    points = (frame["origin"] + grid @ frame["rotation"].T).astype(np.float32)
    drawn = bones_at(points, worn)
    more = np.asarray(drawn.dense - bones_at(points, well).dense)
    far = {**one, "pelvis": {**one["pelvis"], "origin": one["pelvis"]["origin"] + 1e4}}
    alone = np.asarray(bones_at(points, far).distance)
    assert more[alone < -1.0].max() > 250
    ilium = (np.asarray(drawn.distance) < 0) & (alone > 1.0)
    assert ilium.sum() > 100 and more[ilium].max() == 0.0


def test_the_sac_goes_on_into_the_sacrum_and_ends_there(people):
    """Above its end the middle of the sacral canal is sac, far below it is fat."""
    dark = np.flatnonzero(np.asarray(people["tissue"]["epidural"]) < -40.0)  # not so in everybody
    for i in dark[:4]:
        one = jax.tree.map(lambda a, i=i: a[i], people)
        frame = one["sacrum"]
        rows = np.stack(np.meshgrid([0.0], np.arange(-10.0, 50.0, 0.5), [-6.0, -70.0]), -1)
        points = frame["origin"] + rows.reshape(-1, 3) @ frame["rotation"].T
        found = bones_at(points.astype(np.float32), one)
        deep = np.asarray(found.holes).reshape(-1, 2).argmin(0)
        points = np.asarray(points).reshape(-1, 2, 3)[deep, [0, 1]]
        upper, lower = paint(one, points, 0.5)
        assert upper > 0.0 > -25.0 > lower
