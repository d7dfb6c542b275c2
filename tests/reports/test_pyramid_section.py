"""The sampling points of pyramids, against sums of sets of points."""

import itertools
import re

import numpy as np
import pytest

from spinejax.models.layers import ConvNorm
from spinejax.models.pyramid import ASPP, CHASPP, CHASPPStage
from spinejax.reports import page, pyramid_section
from spinejax.reports.pyramid_section import sampling_points
from spinejax.reports.run import Run, read_run
from tests.reports.test_page import make_run


def taps(rate):
    """The pixels that a 3x3 kernel of a dilation reads."""
    return set(itertools.product((-rate, 0, rate), repeat=2))


def plus(these, those):
    return {(a + c, b + d) for a, b in these for c, d in those}


def found(module):
    points = sampling_points(module, 20)
    middle = len(points) // 2
    assert points.shape == (len(points), len(points)) and len(points) % 2 == 1
    # The field is the bounding square of the points.
    assert points[0].any() and points[-1].any() and points[:, 0].any() and points[:, -1].any()
    return {(int(y) - middle, int(x) - middle) for y, x in np.argwhere(points)}


def test_a_convolution_of_rate_6_has_nine_points_6_apart():
    assert found(ConvNorm(2, rate=6, norm="none")) == taps(6) and len(taps(6)) == 9


def test_aspp_reads_the_pixel_itself_and_the_taps_of_its_rates():
    assert found(ASPP((6,), (1, 2, 3), norm="none")) == taps(6) | taps(12) | taps(18)
    assert len(taps(6) | taps(12) | taps(18)) == 25


@pytest.mark.parametrize(("roots", "branches"), [((6,), (1, 2, 3)), ((2, 5), (1,))])
def test_a_stage_of_chaspp_reads_root_plus_branch_and_stages_add_up(roots, branches):
    stage = set().union(*(plus(taps(root), taps(branch)) for root in roots for branch in branches))
    assert found(CHASPPStage(roots, branches, norm="none")) == stage
    assert found(CHASPP(roots, branches, stages=2, norm="none")) == plus(stage, stage)


def run_with(**model):
    return Run(None, {"model": model}, {}, {}, {}, {}, True)


def test_the_page_of_a_network_with_a_pyramid_shows_its_points(tmp_path):
    text = page.render(read_run(make_run(tmp_path / "run")))
    [part] = re.findall(r'<section id="pyramid">.*?</section>', text, re.DOTALL)
    assert "25 of 1,369 pixels read, 2 %" in part and "CHASPP, 2 stages (this network)" in part
    paths = re.findall(r'class="points" d="([^"]*)"', part)
    assert [path.count("M") for path in paths] == [25, 193, 1265]
    # All pictures have one scale, and the smaller field lies in the middle.
    assert re.findall(r'viewBox="([^"]*)"', part) == ["0 0 37 37", "-9 -9 37 37", "0 0 37 37"]


def test_only_networks_with_a_pyramid_have_the_section():
    for model in ({"name": "unet"}, {"name": "chasppraunet", "pyramid": "none"}, {}):
        assert pyramid_section.section(run_with(**model)) is None
    own = pyramid_section.section(run_with(name="dtvnet"))["figures"]
    assert [figure.title for figure in own if "this network" in figure.title] == [
        "ASPP (this network)"
    ]
    wide = pyramid_section.section(run_with(name="chasppraunet", root_rates=(999,)))
    assert "may lie 2997 pixels away" in wide["problem"]
