"""Blurred edges."""

import numpy as np

from spinejax.phantom.body import tissues


def test_edges_follow_the_normal_distribution():
    from scipy import stats

    d = np.linspace(-5, 5, 101)
    np.testing.assert_allclose(tissues.inside(d, 1.3), stats.norm.cdf(-d / 1.3), atol=0.012)
