"""Predicting slices of any size through windows of one static shape."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spinejax import geometry
from spinejax.inference.masks import StackPredictor

PredictBatch = Callable[[np.ndarray], np.ndarray]
"""(b, wh, ww) int16 HU, preprocessed -> (b, wh, ww) float32 foreground probability."""


def blend_weights(window: tuple[int, int]) -> np.ndarray:
    """Return the weight of each pixel of a window, (wh, ww) float32, largest at the centre.

    A separable triangle that stays above zero at the border: where windows overlap, pixels with
    more context count more, and no seam is left. A slice covered by one window is unaffected.
    """
    axes = [
        1.0 - np.abs((np.arange(length) + 0.5) / length * 2.0 - 1.0) * 0.99 for length in window
    ]
    return (axes[0][:, None] * axes[1][None, :]).astype(np.float32)


def predict_stack(
    predict_batch: PredictBatch,
    stack: np.ndarray,
    *,
    window: tuple[int, int],
    overlap: float,
    batch_size: int,
    fill: int,
    advance: Callable[[int], object] = lambda slices: None,
) -> np.ndarray:
    """Return the foreground probability of every pixel of a stack of slices.

    Slices smaller than the window are padded around their centre with `fill`, as in training;
    larger ones are covered by windows that overlap by at least `overlap`. Every call of
    `predict_batch` has the same shape, so that it is compiled once.

    Args:
        predict_batch: the network.
        stack: (n, h, w) int16 HU, preprocessed.
        window: (wh, ww), the size that the network was trained with.
        overlap: share of a window that neighbouring windows have in common, in [0, 1).
        batch_size: windows in one call.
        fill: HU beyond the borders of a slice.
        advance: called with the number of slices done since the last call.

    Returns:
        (n, h, w) float32 in [0, 1].
    """
    count, height, width = stack.shape
    padding = [
        ((side - length) // 2, side - length - (side - length) // 2) if length < side else (0, 0)
        for length, side in zip((height, width), window, strict=True)
    ]
    padded_shape = (height + sum(padding[0]), width + sum(padding[1]))
    corners = [
        (top, left)
        for top in geometry.window_starts(padded_shape[0], window[0], overlap)
        for left in geometry.window_starts(padded_shape[1], window[1], overlap)
    ]
    weights = blend_weights(window)
    total = np.zeros(padded_shape, np.float32)
    for top, left in corners:
        total[top : top + window[0], left : left + window[1]] += weights

    jobs = [(index, corner) for index in range(count) for corner in corners]
    result = np.zeros((count, *padded_shape), np.float32)
    batch = np.full((batch_size, *window), fill, np.int16)
    padded = np.full(padded_shape, fill, np.int16)
    filled, done = -1, 0
    for first in range(0, len(jobs), batch_size):
        chunk = jobs[first : first + batch_size]
        for row, (index, (top, left)) in enumerate(chunk):
            if index != filled:
                padded[
                    padding[0][0] : padding[0][0] + height, padding[1][0] : padding[1][0] + width
                ] = stack[index]
                filled = index
            batch[row] = padded[top : top + window[0], left : left + window[1]]
        # The rows of a short last batch beyond its jobs hold earlier windows; they are ignored.
        # A copy, because the device may still read a host buffer after the call has returned.
        probability = predict_batch(batch.copy())
        for row, (index, (top, left)) in enumerate(chunk):
            result[index, top : top + window[0], left : left + window[1]] += (
                weights * probability[row]
            )
        # The slice of the next window is the first that is not done.
        following = jobs[first + batch_size][0] if first + batch_size < len(jobs) else count
        advance(following - done)
        done = following
    result /= total
    return result[:, padding[0][0] : padding[0][0] + height, padding[1][0] : padding[1][0] + width]


def make_stack_predictor(
    probability: Callable[[Mapping[str, Any], jax.Array, jax.Array], jax.Array],
    variables: Mapping[str, Any],
    *,
    window: tuple[int, int],
    overlap: float,
    batch_size: int,
    fill: int,
) -> StackPredictor:
    """Compile a network for windows of slices, each batch divided among all local devices.

    Args:
        probability: (variables, image (b, wh, ww) preprocessed HU, stats (b, 4)) -> (b, wh, ww).
        variables: of the network.
        window: see `predict_stack`, as the rest.
        overlap: of windows.
        batch_size: rounded up to a multiple of the number of devices.
        fill: HU beyond the borders of a slice.
    """
    devices = np.array(jax.local_devices())
    mesh = Mesh(devices, ("data",))
    over_devices = NamedSharding(mesh, PartitionSpec("data"))
    held = jax.device_put(dict(variables), NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(probability)
    rows = -(-batch_size // len(devices)) * len(devices)

    def predict(
        stack: np.ndarray, stats: np.ndarray, advance: Callable[[int], object]
    ) -> np.ndarray:
        batch_stats = np.tile(stats, (rows, 1))

        def network(batch: np.ndarray) -> np.ndarray:
            image, of_scan = jax.device_put((batch, batch_stats), over_devices)
            return np.asarray(compiled(held, image, of_scan))

        return predict_stack(
            network,
            stack,
            window=window,
            overlap=overlap,
            batch_size=rows,
            fill=fill,
            advance=advance,
        )

    return predict
