"""The random choices of a scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinejax.phantom import anatomy
from spinejax.phantom.scanner import physics, scan_plan


def test_protocols_vary_as_spine_scans_do(person):
    keys = jax.random.split(jax.random.key(0), 600)
    many = jax.tree.map(np.asarray, jax.jit(jax.vmap(scan_plan.protocol, (0, None)))(keys, person))
    extent = many["upper"] - many["lower"]
    assert (extent > 55).all() and extent.max() <= 700.01
    assert many["spacing"].min() >= 0.25 and many["spacing"].max() > 2.5
    # As sub-verse014: narrow, of thick sagittal slices; as TPTBox: one vertebra; as a whole trunk.
    assert ((extent[:, 0] < 90) & (many["slice_axis"] == 0)).mean() > 0.05
    assert ((extent < 140).all(1)).mean() > 0.04
    assert ((extent[:, 0] > 250) & (many["spacing"].min(1) > 1.4)).mean() > 0.03
    # Many scans of the trunk come in thick slices.
    assert (many["spacing"][:, 2] > 3.4).mean() > 0.06
    assert (many["pitch_mm"] > many["spacing"][:, 2] + 1.0).mean() > 0.06
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
    assert 0.7 < (many["clip"] == scan_plan.LARGEST_HU).mean() < 0.95


@pytest.mark.parametrize(
    ("region", "ids"), [("cervical", (1, 7)), ("thoracic", (8, 19)), ("lumbar", (20, 25))]
)
def test_a_region_is_where_scans_are_centred(person, region, ids):
    keys = jax.random.split(jax.random.key(0), 200)
    of = jax.vmap(lambda key: scan_plan.protocol(key, person, region=region))
    many = jax.tree.map(np.asarray, jax.jit(of)(keys))
    names, z = np.asarray(person["spine"]["id"]), np.asarray(person["spine"]["origin"])[:, 2]
    shown = z[(names >= ids[0]) & (names <= ids[1])]
    centre = 0.5 * (many["upper"] + many["lower"])[:, 2]
    beyond = (centre > shown.max() + 11) | (centre < shown.min() - 11)
    # Scans of the trunk that end below the hips are of the lumbar spine, too.
    assert (0.03 < beyond.mean() < 0.3) if region == "lumbar" else not beyond.any()


LIMITS = {"max_spacing_mm": 3.0, "min_spacing_mm": 1.5, "max_extent_mm": 200.0}


def test_planned_scans_hold_a_vertebra_and_fit_their_budget():
    person = jax.jit(anatomy)(jax.random.key(3))
    limits = {**LIMITS, "min_spacing_mm": 0.3, "min_extent_mm": 116.0, "max_extent_mm": 400.0}
    limits["max_voxels"] = 2_000_000
    origins = np.asarray(person["spine"]["origin"])[:24]
    rng = np.random.default_rng(0)
    protocol = jax.jit(lambda key: scan_plan.protocol(key, person, **limits))
    scans = [
        scan_plan.plan_scan(rng, protocol(jax.random.key(i)), ("LPS", "PIR")) for i in range(120)
    ]
    for scan in scans:
        spacing = np.diag(scan.affine)[:3]
        assert 0.299 <= spacing.min() and spacing.max() <= 3.001
        assert np.prod(scan.shape) < 2_200_000
        extent = np.array(scan.shape) * spacing
        assert extent[2] >= 113 and extent.max() <= 403
        lower, upper = (np.asarray(scan.protocol[k]) for k in ("lower", "upper"))
        assert ((origins > lower) & (origins < upper)).all(1).any()
        np.testing.assert_allclose(lower, scan.affine[:3, 3], atol=1e-3)
        np.testing.assert_allclose(upper, lower + spacing * (np.array(scan.shape) - 1), atol=1e-2)
    assert min(np.diag(s.affine)[:3].min() for s in scans) < 0.5
    assert {s.orientation for s in scans} == {"LPS", "PIR"}
    kinds = {(s.storage.dtype, s.storage.compressed) for s in scans}
    assert {"int16", "uint16", "int32", "float32"} == {dtype for dtype, _ in kinds}
    assert len({compressed for _, compressed in kinds}) == 2
