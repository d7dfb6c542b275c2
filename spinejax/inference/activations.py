"""Filters of a patch classifier and its activations on a patch (paper B, figures 9 and 10).

Everything is returned as arrays, so that a report can draw the figures without network and jax.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from spinejax.errors import InputError
from spinejax.models.opconvnet import OPConvNet


def choose_patch(label: np.ndarray, size: int) -> tuple[int, int, int]:
    """Return the patch with the most foreground in the slice with the most foreground.

    A patch often fits wholly into a vertebra at many places. Among equal patches, the one nearest
    to the middle of all of them is chosen.

    Args:
        label: (n, h, w) integer or bool; foreground is everything above 0.
        size: side of the patch, pixels.

    Returns:
        Slice, and row and column of the patch's first pixel; it lies within the slice.

    Raises:
        InputError: the slices are smaller than the patch.
    """
    if size > min(label.shape[1:]):
        raise InputError(
            f"data.patches.size = {size} is larger than the slices of {label.shape[1]} x "
            f"{label.shape[2]} pixels; choose smaller patches or larger scans"
        )
    chosen = int(np.argmax([np.count_nonzero(one > 0) for one in label]))
    sums = np.pad(np.cumsum(np.cumsum(label[chosen] > 0, 0, np.int64), 1), ((1, 0), (1, 0)))
    inside = sums[size:, size:] - sums[size:, :-size] - sums[:-size, size:] + sums[:-size, :-size]
    best = np.argwhere(inside == inside.max())
    row, column = best[np.argmin(((best - best.mean(0)) ** 2).sum(1))]
    return chosen, int(row), int(column)


def network_arrays(
    model: nn.Module, variables: Mapping[str, Any], patch: np.ndarray
) -> dict[str, np.ndarray]:
    """Return filters of a classifier and its activations on one patch.

    Args:
        model: maps (1, n, n, 1) to logits and a dict of named intermediate results.
        variables: "params", and "batch_stats" where the network has them.
        patch: (n, n) as the network takes it, that is, normalised.

    Returns:
        float32 arrays: "patch" (n, n); the kernels (k, k, in, out) "conv_1", "conv_2", ... of all
        convolutions of an OP-convNet, and of the first convolution of any other network, or of its
        first connected layer (n, n, 1, units); every intermediate result (h, w, c) or (units,) by
        its name.
    """
    x = jnp.asarray(patch, jnp.float32)[None, ..., None]
    _, intermediates = model.apply(dict(variables), x, train=False)
    params = variables["params"]
    if isinstance(model, OPConvNet):
        names = [f"conv_{index + 1}" for index in range(len(model.widths))]
        kernels = {name: params[name]["kernel"] for name in names}
    else:
        # Only the first layer sees the patch's one channel.
        leaves = jax.tree.leaves(params)
        seeing = [k for k in leaves if k.ndim == 4 and k.shape[2] == 1]
        connected = [k for k in leaves if k.ndim == 2 and len(k) == patch.size]
        kernels = {"conv_1": seeing[0] if seeing else connected[0].reshape(*patch.shape, 1, -1)}
    arrays = kernels | {name: value[0] for name, value in intermediates.items()} | {"patch": patch}
    return {name: np.asarray(value, np.float32) for name, value in arrays.items()}
