"""Slices of any size: a network of slices in overlapping windows of one static shape.

Windows are joined where the network runs: on a GPU or TPU whole slices come to the host.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spinejax import geometry
from spinejax.inference.devices import (
    add_windows,
    behind,
    fetch,
    first_device,
    over_local_devices,
    rounded_up,
)
from spinejax.inference.masks import StackPredictor

PredictBatch = Callable[[np.ndarray], Any]
"""(b, wh, ww) int16 preprocessed HU, with neighbouring slices (b, wh, ww, c) -> (b, wh, ww) float32
foreground probability, of numpy or jax."""


def blend_weights(window: tuple[int, int]) -> np.ndarray:
    """Return the weight of each pixel of a window, (wh, ww) float32.

    The weights are a separable triangle, largest at the centre and above zero at the border. Where
    windows overlap, pixels with more context count more, which avoids seams.
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
    within: np.ndarray | None = None,
    on_device: bool | None = None,
    advance: Callable[[int], object] = lambda slices: None,
) -> np.ndarray:
    """Return the foreground probability of every pixel of a stack of slices.

    Slices smaller than the window are padded around their centre with `fill`, as in training.
    Larger slices are covered by windows that overlap by at least `overlap`. All calls of
    `predict_batch` have the same shape, so that it is compiled once.

    Args:
        predict_batch: the network.
        stack: (n, h, w) int16 HU, preprocessed; with neighbouring slices (n, h, w, c).
        window: (wh, ww), the size that the network was trained with.
        overlap: least share of a window that the next window covers again, in [0, 1).
        batch_size: windows in one call.
        fill: HU beyond the borders of a slice.
        within: (n, h, w) bool, see `masks.StackPredictor`; None reads all windows.
        on_device: whether the windows are joined on the device of the network; None joins them
            there unless it is a CPU, whose memory is the host's.
        advance: called with the number of slices done since the last call.

    Returns:
        (n, h, w) float32 in [0, 1].
    """
    count, height, width, *channels = stack.shape
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
    if within is not None:
        jobs = [job for job in jobs if within[_inside(*job, window, padding)].any()]
    result = np.zeros((count, *padded_shape), np.float32)
    batch = np.full((batch_size, *window, *channels), fill, np.int16)
    padded = np.full((*padded_shape, *channels), fill, np.int16)

    def calls() -> Iterator[_Call]:
        filled = -1
        for first in range(0, len(jobs), batch_size):
            chunk = jobs[first : first + batch_size]
            for row, (index, (top, left)) in enumerate(chunk):
                if index != filled:
                    padded[
                        padding[0][0] : padding[0][0] + height,
                        padding[1][0] : padding[1][0] + width,
                    ] = stack[index]
                    filled = index
                batch[row] = padded[top : top + window[0], left : left + window[1]]
            # The first slice that is not done is the slice of the next window.
            following = jobs[first + batch_size][0] if first + batch_size < len(jobs) else count
            # A short last batch still holds earlier windows in its last rows; their results are
            # unused. The device may read a host buffer after the call has returned, so copy it.
            yield _Call(chunk, following, predict_batch(batch.copy()))

    if on_device is None:
        on_device = jax.default_backend() != "cpu"
    add = _add_on_device if on_device else _add_on_host
    done = 0
    for following in add(behind(calls()), weights, result):
        advance(following - done)
        done = following
    advance(count - done)  # slices of which nothing is read
    result /= total
    return result[:, padding[0][0] : padding[0][0] + height, padding[1][0] : padding[1][0] + width]


class _Call(NamedTuple):
    windows: Sequence[tuple[int, tuple[int, int]]]
    """The slice and the corner of each window, ordered by slice."""
    following: int
    """The slice of the next call's first window; all before it are done."""
    found: Any
    """(b, wh, ww) probabilities; rows beyond those of `windows` mean nothing."""


def _add_on_host(calls: Iterable[_Call], weights: np.ndarray, result: np.ndarray) -> Iterator[int]:
    """Add weighted windows to the slices of `result`, (n, h, w), and yield how many are done."""
    rows, columns = weights.shape
    for windows, following, found in calls:
        for (index, (top, left)), probability in zip(windows, fetch(found), strict=False):
            result[index, top : top + rows, left : left + columns] += weights * probability
        yield following


def _add_on_device(
    calls: Iterable[_Call], weights: np.ndarray, result: np.ndarray
) -> Iterator[int]:
    """Do the same on the first device that the network runs on; done slices come to the host.

    They are fetched after the next call was added, so that the device works meanwhile.
    """
    _, height, width = result.shape
    empty = jnp.zeros((rounded_up(height), rounded_up(width)), jnp.float32)
    begun = empty  # the sums of a slice whose other windows are in the next call
    decided: tuple[list[int], Any] = [], None

    def write() -> None:
        indices, sums = decided
        if indices:
            result[indices] = fetch(sums)[:, :height, :width]

    for windows, following, found in calls:
        indices = list(dict.fromkeys(index for index, _ in windows))
        corners = np.zeros((len(found), 3), np.int32)
        corners[: len(windows)] = [(indices.index(at), *corner) for at, corner in windows]
        begun, here = jax.device_put((begun, found), first_device(found))
        # As many slices as windows, so that the program is compiled once.
        sums = jnp.zeros((len(found), *begun.shape), jnp.float32, device=begun.device)
        sums = add_windows(
            sums.at[0].set(begun), weights[None], here[:, None], corners, len(windows)
        )
        write()
        whole = [index for index in indices if index < following]
        decided = whole, sums[: len(whole)]
        begun = empty if whole == indices else sums[len(whole)]
        # The wait keeps the host from filling the device with later calls.
        jax.block_until_ready(found)
        yield following
    write()


def _inside(
    index: int, corner: tuple[int, int], window: tuple[int, int], padding: list[tuple[int, int]]
) -> tuple[int | slice, ...]:
    """Return the place of a window in the stack without its padding."""
    rows, columns = (
        slice(max(0, start - before), max(0, start + side - before))
        for start, side, (before, _) in zip(corner, window, padding, strict=True)
    )
    return index, rows, columns


def make_stack_predictor(
    probability: Callable[[Mapping[str, Any], jax.Array, jax.Array], jax.Array],
    variables: Mapping[str, Any],
    *,
    batch_size: int,
    **how: Any,
) -> StackPredictor:
    """Compile a network for windows of slices, each batch divided among all local devices.

    Args:
        probability: (variables, image (b, wh, ww) or (b, wh, ww, c) preprocessed HU, stats (b, 4))
            -> (b, wh, ww).
        variables: of the network.
        batch_size: rounded up to a multiple of the number of devices.
        **how: `window`, `overlap` and `fill` of `predict_stack`.
    """
    compiled, rows = over_local_devices(probability, variables, batch_size)

    def predict(
        stack: np.ndarray,
        stats: np.ndarray,
        advance: Callable[[int], object],
        within: np.ndarray | None = None,
    ) -> np.ndarray:
        batch_stats = np.tile(stats, (rows, 1))
        return predict_stack(
            lambda batch: compiled(batch, batch_stats),
            stack,
            batch_size=rows,
            within=within,
            advance=advance,
            **how,
        )

    return predict


WHOLE_BYTES = 40
"""What such a network holds for each voxel, about: ten numbers."""


def make_whole_predictor(
    probability: Callable[[Mapping[str, Any], jax.Array, jax.Array], jax.Array],
    variables: Mapping[str, Any],
) -> StackPredictor:
    """Compile a network that reads all slices of a scan in one call, on the first device.

    Args:
        probability: (variables, image (n, h, w) preprocessed HU, stats (n, 4)) -> (n, h, w).
        variables: of the network.
    """
    compiled = jax.jit(probability)

    def predict(
        stack: np.ndarray,
        stats: np.ndarray,
        advance: Callable[[int], object],
        within: np.ndarray | None = None,
    ) -> np.ndarray:
        found = compiled(dict(variables), stack, np.tile(stats, (len(stack), 1)))
        advance(len(stack))
        return fetch(found)

    return predict
