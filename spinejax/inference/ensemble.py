"""Averages of probabilities: over several networks, and over a scan and its mirror image.

Only left and right are exchanged, because bodies are nearly symmetric in no other direction. A
sagittal slice has no such mirror image.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spinejax.inference.masks import StackPredictor

AnyCubes = Callable[..., Any]
"""(cubes (b, x, y, z), ..., stats) -> (b, x, y, z, ...): `CubePredictor` or `outlines.Outliner`.
Arrays of jax stay on their devices."""


def mean_stack(predictors: Sequence[StackPredictor]) -> StackPredictor:
    """Return a predictor of the mean over several networks of slices."""

    def predict(
        stack: np.ndarray,
        stats: np.ndarray,
        advance: Callable[[int], object],
        within: np.ndarray | None = None,
    ) -> np.ndarray:
        total = predictors[0](stack, stats, advance, within)
        if len(predictors) > 1:
            total = total.astype(np.float32)  # a copy: a predictor may return a read-only array
        for other in predictors[1:]:
            total += other(stack, stats, lambda slices: None, within)
        return total / np.float32(len(predictors)) if len(predictors) > 1 else total

    return predict


def mirrored_stack(predict: StackPredictor) -> StackPredictor:
    """Return a predictor of the mean over a stack of coronal or axial slices and its mirror image.

    The second axis of the stack runs from right to left.
    """

    def both(
        stack: np.ndarray,
        stats: np.ndarray,
        advance: Callable[[int], object],
        within: np.ndarray | None = None,
    ) -> np.ndarray:
        seen = predict(stack, stats, advance, within)
        other = np.ascontiguousarray(stack[:, ::-1])
        mirror = predict(
            other, stats, lambda slices: None, None if within is None else within[:, ::-1]
        )
        return (seen + mirror[:, ::-1]) / np.float32(2)

    return both


def mean_cubes(predictors: Sequence[AnyCubes]) -> AnyCubes:
    """Return a predictor of the mean over several networks of cubes, offsets included."""

    def predict(*arrays: np.ndarray) -> Any:
        total = predictors[0](*arrays)
        for other in predictors[1:]:
            total = total + other(*arrays)
        return total / np.float32(len(predictors)) if len(predictors) > 1 else total

    return predict


def mirrored_cubes(predict: AnyCubes, *, offsets: bool = False) -> AnyCubes:
    """Return a predictor of the mean over cubes and their mirror images; x runs right to left.

    Args:
        predict: the network.
        offsets: whether its last three channels are offsets in x, y and z.
    """

    def both(*arrays: np.ndarray) -> Any:
        seen = predict(*arrays)
        *cubes, stats = arrays
        mirror = predict(*(np.ascontiguousarray(cube[:, ::-1]) for cube in cubes), stats)
        mirror = mirror[:, ::-1]
        if offsets:
            signs = np.ones(mirror.shape[-1], np.float32)
            signs[-3] = -1
            mirror = mirror * signs
        return (seen + mirror) / np.float32(2)

    return both
