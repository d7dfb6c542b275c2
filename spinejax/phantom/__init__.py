"""Seeded synthetic spine CT: a random person, drawn at any set of points.

`anatomy(key)` draws the numbers, `render(parameters, points_mm)` the picture; both are pure JAX.
"""

from spinejax.phantom.body.render import render
from spinejax.phantom.person.anatomy import anatomy, centroids

__all__ = ["anatomy", "centroids", "render"]
