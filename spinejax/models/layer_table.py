"""The table of a network's layers, its number of parameters and its arithmetic.

Shapes are traced; nothing is computed.
"""

import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spinejax.models.layers import MaxPool

HEADER = ("layer", "type", "output shape", "parameters")


def count_parameters(parameters: Any) -> int:
    """Return the number of scalars in a pytree of arrays (or of their shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters))


def summarize(model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Return the table of all layers with parameters and all pools, and the totals.

    Args:
        model: A network of MODELS.
        input_shape: (h, w, channels) of one slice or patch, (x, y, z, channels) of one cube.

    Returns:
        Text whose last lines are `parameters: 1,272,313` and `GFLOPs: 12.34`. A network with
        `activation_sizes` has `activations: 15-7-5-3-3-2` before them, and one with batch norm
        `with running statistics: 7,262,750` between them, the parameters included. GFLOPs count
        the convolutions and matrix products of the forward pass of one sample, a multiply-add as
        two operations, with two decimals, or three digits below 0.1. Shapes are of one sample.
    """
    variables, layers = _trace(model, input_shape)
    rows = [
        (path, kind, str(shape), f"{count:,}")
        for path, kind, shape, count in layers
        if count or kind == MaxPool.__name__
    ]
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column == 3 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (HEADER, tuple("-" * width for width in widths), *rows)
    ]
    giga = gigaflops(model, variables, input_shape)
    if hasattr(model, "activation_sizes"):
        sizes = model.activation_sizes(min(input_shape[:2]))
        lines.append(f"activations: {'-'.join(map(str, sizes))}")
    decimals = 2 - math.floor(math.log10(giga)) if 0 < giga < 0.1 else 2
    lines.append(f"parameters: {count_parameters(variables['params']):,}")
    if "batch_stats" in variables:
        lines.append(f"with running statistics: {count_parameters(variables):,}")
    lines.append(f"GFLOPs: {giga:.{decimals}f}")
    return "\n".join(lines)


def totals(model: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, float]:
    """Return the parameters and the GFLOPs that `summarize` prints."""
    variables, _ = _trace(model, input_shape)
    return count_parameters(variables["params"]), gigaflops(model, variables, input_shape)


def gigaflops(model: nn.Module, variables: Any, input_shape: tuple[int, ...]) -> float:
    """Return the GFLOPs that `summarize` prints; `variables` may be shapes."""
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    return flops(lambda v, x: model.apply(v, x)[0], variables, x) / 1e9


def _trace(
    model: nn.Module, input_shape: tuple[int, ...]
) -> tuple[Any, list[tuple[str, str, tuple[int, ...], int]]]:
    """Return shapes of the variables and, in order of execution, each module without children.

    A module is (path, type, output shape without batch, number of own parameters).
    """
    seen: dict[tuple[str, ...], tuple[str, tuple[int, ...]]] = {}

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        result = call(*args, **kwargs)
        if context.method_name == "__call__":
            first = jax.tree.leaves(result)[0]
            seen[context.module.path] = (type(context.module).__name__, first.shape[1:])
        return result

    with nn.intercept_methods(record):
        variables = jax.eval_shape(
            lambda x: model.init(jax.random.key(0), x),
            jax.ShapeDtypeStruct((1, *input_shape), jnp.float32),
        )
    variables = {"params": {}, **variables}  # linen leaves out what is empty
    layers = []
    for path, (kind, shape) in seen.items():
        own: Any = variables["params"]
        for name in path:
            own = own.get(name, {})
        count = count_parameters({k: v for k, v in own.items() if not isinstance(v, dict)})
        layers.append(("/".join(path), kind, shape, count))
    return variables, layers


def flops(function: Any, *args: Any) -> int:
    """Count the operations of the convolutions and matrix products of `function(*args)`.

    A multiply-add is two operations. `args` are arrays or shapes; nothing is computed. A loop
    counts as often as it runs; only the longest of several branches counts, and of forms for
    several platforms that of GPUs and TPUs.
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def _jaxpr_flops(jaxpr: Any) -> int:
    return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        per_output = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * per_output
    inner = [_jaxpr_flops(jaxpr) for jaxpr in _jaxprs_in(params)]
    if name == "cond":
        platforms = params.get("branches_platforms") or ()
        return inner[platforms.index(None)] if None in platforms else max(inner, default=0)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _jaxprs_in(params: dict[str, Any]) -> Iterator[Any]:
    """Yield the jaxprs among the parameters of an equation."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item
