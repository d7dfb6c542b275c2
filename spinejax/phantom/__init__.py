"""Seeded synthetic spine CT: a random person, scanned at random, drawn at any set of points.

person/ draws the numbers of a person, body/ says what lies at a point of a person, and scanner/
makes CT of that. `samples` makes slices, patches and cubes, `dataset` makes files. Only person/,
scanner/scan_plan.py and the makers of samples and files draw random numbers.

    person = anatomy(key)                  # pure JAX: numbers
    hu, label = render(person, points_mm)  # pure JAX: the picture
    for batch in stream(seed=0): ...       # NumPy: images and labels without end
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spinejax.phantom.batches import stream
    from spinejax.phantom.body.column import centroids
    from spinejax.phantom.body.render import render
    from spinejax.phantom.person.anatomy import anatomy

__all__ = ["anatomy", "centroids", "render", "stream"]

_HOMES = {
    "anatomy": "person.anatomy",
    "centroids": "body.column",
    "render": "body.render",
    "stream": "batches",
}


def __getattr__(name: str) -> Any:
    """Import a function of the package, and with it JAX, when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
