"""The true shape of a body against its numbers, for a body without wear."""

import jax.numpy as jnp
import numpy as np
import pytest

from spinejax.phantom.body import end_plates
from spinejax.phantom.body.render import RIM_MM, render

PLAIN = dict(
    a=22.0, b=17.0, h=12.0, wedge=0.0, conc=0.0, waist=0.0, bz=0.0, taper=0.0, square=2.0, tip=0.0,
    skew=0.0, band=3.0, cw=11.0, canal_d=8.0, canal_y=25.5,
)  # fmt: skip


def plain(**changes):
    size = {name: jnp.array([value]) for name, value in {**PLAIN, **changes}.items()}
    for name in ("top", "bottom", "schmorl_top", "schmorl_bottom"):
        size[name] = jnp.array([[0.0, 0.0, 0.0, 1.0]])
    return {"spine": {"size": size}}


def test_a_plain_body_has_the_sizes_it_was_given():
    body = end_plates.body(plain(), 0)
    assert body.width_mm == pytest.approx(2 * (22 + RIM_MM), abs=0.1)
    assert body.depth_mm == pytest.approx(2 * (17 + RIM_MM), abs=0.5)  # the canal begins there
    inner = np.abs(body.depth - 0.5) < 0.3
    high = (body.top - body.bottom)[:, inner][..., 2]
    assert high[15] == pytest.approx(2 * (12 + RIM_MM), abs=0.05)


def test_wedge_and_hollow_change_the_heights_as_given():
    body = end_plates.body(plain(wedge=-2.0), 0)
    high = (body.top - body.bottom)[15, :, 2]
    front, behind = (np.interp(depth, body.depth, high) for depth in (0.25, 0.75))
    # `wedge` is half of what the body gains from its middle to its front.
    assert front - behind == pytest.approx(2 * -2.0, abs=0.15)
    hollow = end_plates.body(plain(conc=2.0), 0)
    assert (hollow.top - hollow.bottom)[15, 15, 2] == pytest.approx(2 * (10 + RIM_MM), abs=0.05)


def test_end_plates_lie_where_the_labels_of_a_phantom_end(person):
    spine = person["spine"]
    slot = int(np.flatnonzero(np.asarray(spine["id"]) == 22)[0])
    body = end_plates.body(person, slot)
    for side, sign in ((body.top, 1.0), (body.bottom, -1.0)):
        column = side[15, 8:20]
        for off, inside in ((-0.6, True), (0.6, False)):
            points = end_plates.in_person(column + [0, 0, sign * off], person, slot)
            label = np.asarray(render(person, jnp.asarray(points))[1])
            assert ((label == 22) == inside).all()
