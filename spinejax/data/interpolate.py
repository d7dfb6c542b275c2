"""Linear and nearest interpolation between grids that are aligned by their outer edges."""

import numpy as np


def centres_of(native: int, wanted: int) -> np.ndarray:
    """Input coordinates of output pixel centres, aligned by the outer edges."""
    return (np.arange(wanted) + 0.5) * (native / wanted) - 0.5


def nearest(native: int, wanted: int) -> np.ndarray:
    """Index of the input pixel that holds each output pixel's centre."""
    return np.clip(np.floor(centres_of(native, wanted) + 0.5), 0, native - 1).astype(np.intp)


def linear(values: np.ndarray, axis: int, wanted: int) -> np.ndarray:
    """Linear interpolation of float32 `values` along `axis` to `wanted` pixels."""
    native = values.shape[axis]
    if native == wanted:
        return values
    return at(values, axis, np.clip(centres_of(native, wanted), 0, native - 1))


def at(values: np.ndarray, axis: int, centres: np.ndarray) -> np.ndarray:
    """Linear interpolation of float32 `values` at positions within them along `axis`."""
    native = values.shape[axis]
    below = np.minimum(np.floor(centres).astype(np.intp), max(native - 2, 0))
    above = np.minimum(below + 1, native - 1)
    shape = [1] * values.ndim
    shape[axis] = len(centres)
    weight = (centres - below).astype(np.float32).reshape(shape)
    result = np.take(values, below, axis)
    result *= 1 - weight
    upper = np.take(values, above, axis)
    upper *= weight
    result += upper
    return result
