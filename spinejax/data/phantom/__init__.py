"""Seeded synthetic spine CT: a random person, drawn at any set of points.

`anatomy(key)` draws the numbers, `render(parameters, points_mm)` the picture; both are pure JAX.
"""

from spinejax.data.phantom.anatomy import anatomy, centroids
from spinejax.data.phantom.render import render

__all__ = ["anatomy", "centroids", "render"]
