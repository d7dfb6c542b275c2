"""Which pixels a pyramid of atrous convolutions reads: figure 4 of paper A.

An output pixel of a pyramid depends on some of the pixels around it, its sampling points. Their
bounding square is the receptive field. Here they are found in the modules themselves, from where
one pixel of the input is seen in the output.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from spinejax import numerics
from spinejax.errors import InputError
from spinejax.models import fields
from spinejax.models.pyramid import ASPP, CHASPP, Pyramid
from spinejax.reports.run import Run

_MOST_REACH = 64  # pixels to each side of the output pixel that are searched
_FIELDS = ("root_rates", "branch_rates", "stages")
_CONTEXT = "context"  # a mean over the whole map, which reaches every pixel


class SamplingFigure(NamedTuple):
    """A pyramid's sampling points for the page.

    Attributes:
        title: the pyramid.
        lines: what the figure shows, in words.
        field: side of the receptive field in pixels.
        view: side of the square that all figures of the page show, in pixels.
        points: SVG path of the points, a square of one pixel each; the field begins at (0, 0).
    """

    title: str
    lines: tuple[str, ...]
    field: int
    view: int
    points: str


@cache
@numerics.fixed()
def sampling_points(module: nn.Module, reach: int) -> np.ndarray:
    """Return which pixels of the input one output pixel of a module of convolutions depends on.

    All weights are set to one and the input is a single pixel of one. Then no two paths cancel,
    each ReLU is the identity, and the output shows which output pixels the input pixel reaches.
    A mean over the whole map, the `context` of an ASPP, is left out.

    Args:
        module: maps `(b, h, w, c)` to `(b, h, w, c')` with stride 1. Its norm is "none".
        reach: points are searched at most so many pixels away, along rows and columns.

    Returns:
        (n, n) bool, the receptive field, n odd. The output pixel lies in the middle.

    Raises:
        InputError: jax finds no device.
    """
    x = jnp.zeros((1, 2 * reach + 1, 2 * reach + 1, 1)).at[0, reach, reach].set(1)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
    variables = jax.tree_util.tree_map_with_path(_weight, shapes)
    reached = jax.jit(module.apply, static_argnames="train")(variables, x, train=False)
    # The output pixel that a pixel below and to the right of it reaches lies above and left.
    points = np.asarray(reached)[0, ::-1, ::-1, 0] > 0
    side = int(np.abs(np.argwhere(points) - reach).max(initial=0))
    return points[reach - side : reach + side + 1, reach - side : reach + side + 1]


def _weight(path: Sequence[Any], leaf: jax.ShapeDtypeStruct) -> jax.Array:
    names = [str(getattr(part, "key", "")) for part in path]
    used = names[-1] == "kernel" and _CONTEXT not in names
    return jnp.full(leaf.shape, float(used), leaf.dtype)


def section(run: Run) -> dict[str, Any] | None:
    """Return the sampling points of a run's pyramid and of the other kind; None without pyramid."""
    block = run.config.get("model")
    kind, values = _pyramid(block if isinstance(block, Mapping) else {})
    if kind == "none":
        return None
    roots, branches = tuple(values["root_rates"]), tuple(values["branch_rates"])
    stages = int(values["stages"])
    pyramids: list[tuple[str, str, nn.Module]] = [
        ("aspp", "ASPP", ASPP(roots, branches, norm="none"))
    ]
    for number in sorted({1, stages}):
        words = f"CHASPP, {number} stage{'s' if number > 1 else ''}"
        name = "chaspp" if number == stages else ""
        pyramids.append((name, words, CHASPP(roots, branches, number, norm="none")))
    root, branch = max(roots), max(branches)
    reach = max(root * branch, stages * (root + branch))  # no path of either kind is longer
    if reach > _MOST_REACH:
        problem = f"a tap may lie {reach} pixels away, and {_MOST_REACH} can be shown"
        return {"problem": f"The sampling points of the pyramid are not drawn: {problem}."}
    try:
        found = [sampling_points(module, reach) for _, _, module in pyramids]
    except InputError as error:
        return {"problem": f"The sampling points of the pyramid cannot be found: {error}."}
    view = max(len(points) for points in found)
    return {
        "problem": "",
        "rates": f"The {_rates('root', roots)}, the {_rates('branch', branches)}, and ASPP has "
        "their products",
        "figures": [
            _figure(title + (" (this network)" if name == kind else ""), points, view)
            for (name, title, _), points in zip(pyramids, found, strict=True)
        ],
    }


def _pyramid(block: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the kind of the pyramid of a `model` block, and its fields; "none" without one."""
    if block.get("name") == "dtvnet":
        return "aspp", {name: getattr(Pyramid, name) for name in _FIELDS}  # its ASPP has no fields
    try:
        known = fields(block.get("name", ""))
    except InputError:
        return "none", {}
    if not {"pyramid", *_FIELDS} <= known.keys():
        return "none", {}
    values = {name: block.get(name, field.default) for name, field in known.items()}
    return values["pyramid"], values


def _rates(name: str, numbers: Sequence[int]) -> str:
    *others, last = map(str, numbers)
    return (
        f"{name} rates are {', '.join(others)} and {last}" if others else f"{name} rate is {last}"
    )


def _figure(title: str, points: np.ndarray, view: int) -> SamplingFigure:
    side, count = len(points), int(points.sum())
    lines = (
        f"field of {side} × {side} pixels",
        f"{count:,} of {side * side:,} pixels read, {100 * count / side**2:.0f} %",
    )
    path = "".join(f"M{x} {y}h1v1h-1z" for y, x in np.argwhere(points))
    return SamplingFigure(title, lines, side, view, path)
