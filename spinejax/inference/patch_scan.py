"""Classifying every pixel of a slice by the patch around it (paper B, section II.D: stride 1).

The patch of pixel (y, x) is the n x n one whose pixel (n // 2, n // 2) it is: n // 2 pixels lie
before it, n - 1 - n // 2 after it. Beyond the borders of a slice there is what lies outside a
preprocessed slice, or the slice's reflection.

OP-convNet is evaluated without cutting patches wherever its layers allow it (`dense`), tile by
tile; other networks get batches of patches. Patches that hold nothing but `fill_hu` are all equal
and are evaluated once.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from spinejax.choices import check_choice
from spinejax.inference import dense
from spinejax.inference.scan import StackPredictor
from spinejax.models.opconvnet import OPConvNet

PADDINGS = ("zero", "reflect")
TILE = 64

_ROWS = 512  # patches in one call of the fully connected layers; the last call of a tile is filled

ToInput = Callable[[jax.Array, jax.Array], jax.Array]
"""(image (..., h, w) preprocessed HU, stats (..., 4)) -> network input, float32, pixel by pixel."""

SliceLogits = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(slice (h, w) int16 preprocessed HU, stats (4,) float32) -> (h, w, classes) float32 logits."""

# What evaluates patches: (padded slice, wanted (h, w) bool, stats) -> rows (b,), columns (b,) and
# logits (at least b, classes) of all wanted patches, some at a time. A patch is named by its first
# pixel in the padded slice, which is its centre in the slice.
_Part = tuple[np.ndarray, np.ndarray, jax.Array]
_Evaluate = Callable[[np.ndarray, np.ndarray, jax.Array], Iterator[_Part]]


def make_slice_logits(
    model: Any,
    variables: Mapping[str, Any],
    *,
    patch: int,
    to_input: ToInput,
    fill_hu: int,
    padding: str,
    batch_size: int,
    skip_empty: bool = True,
    tile: int = TILE,
    without_patches: bool = True,
) -> SliceLogits:
    """Return a function that gives the logits of every pixel of a slice of any size.

    Every shape on the device is fixed, so that each part is compiled once. There, whatever the
    slice's size, at most two tiles are held at a time: 4 kB for each pixel of a tile with the
    default network, under 100 MB with what is computed on the way. The first local device is used.

    With `batch_size`, more is not faster on CPUs: 64 to 128 patches of 32 x 32 pixels are best.

    Args:
        model: classifier of patches (b, n, n, 1), which returns (logits (b, classes), rest).
        variables: of the model.
        patch: n, the side of a patch in pixels.
        to_input: the normalisation of training.
        fill_hu: what lies outside a slice, and makes up an empty patch.
        padding: `"zero"`, `fill_hu` beyond the borders, or `"reflect"`, which repeats where a slice
            is smaller than half a patch.
        batch_size: patches in one call, where patches are cut.
        skip_empty: evaluate empty patches once; else each by itself.
        tile: side of a tile in pixels, where no patches are cut.
        without_patches: False cuts patches whatever the model.

    Raises:
        InputError: unknown padding, or a patch too small for OP-convNet.
    """
    check_choice("predict.padding", padding, PADDINGS)
    held = jax.device_put(dict(variables), jax.local_devices()[0])

    @jax.jit
    def network(held: Any, images: jax.Array, stats: jax.Array) -> jax.Array:
        many = jnp.broadcast_to(stats, (len(images), *stats.shape))
        return model.apply(held, to_input(images, many)[..., None], train=False)[0]

    halves = None
    if without_patches and isinstance(model, OPConvNet):
        halves = dense.split(model, patch)
    if halves is None:
        evaluate = _by_patches(lambda *arrays: network(held, *arrays), patch, batch_size)
    else:
        evaluate = _by_tiles(halves, held["params"], to_input, patch, tile)

    # On GPUs the default is TF32, whose ten bits would tell cut patches from the dense scan.
    @jax.default_matmul_precision("float32")
    def slice_logits(image: np.ndarray, stats: np.ndarray) -> np.ndarray:
        padded = pad_slice(image, patch, fill_hu, padding)
        wanted = np.ones(image.shape, bool)
        of_scan = jnp.asarray(stats, jnp.float32)
        of_empty = network(held, jnp.full((1, patch, patch), fill_hu, jnp.int16), of_scan)
        result = np.empty((*image.shape, of_empty.shape[-1]), np.float32)
        if skip_empty:
            wanted = patches_with_content(padded, patch, fill_hu)
            result[~wanted] = np.asarray(of_empty)
        for rows, columns, logits in _one_behind(evaluate(padded, wanted, of_scan)):
            result[rows, columns] = np.asarray(logits)[: len(rows)]
        return result

    return slice_logits


def make_stack_predictor(
    model: Any,
    variables: Mapping[str, Any],
    *,
    patch: int,
    to_input: ToInput,
    fill_hu: int,
    padding: str,
    batch_size: int,
    skip_empty: bool = True,
    tile: int = TILE,
) -> StackPredictor:
    """Return a function that gives the probability of vertebra at every pixel of a stack.

    Arguments, errors and memory are those of `make_slice_logits`. The probability is the softmax of
    two logits, or the sigmoid of one.
    """
    slice_logits = make_slice_logits(
        model,
        variables,
        patch=patch,
        to_input=to_input,
        fill_hu=fill_hu,
        padding=padding,
        batch_size=batch_size,
        skip_empty=skip_empty,
        tile=tile,
    )

    def predict(
        stack: np.ndarray, stats: np.ndarray, advance: Callable[[int], object]
    ) -> np.ndarray:
        result = np.empty(stack.shape, np.float32)
        for index, image in enumerate(stack):
            result[index] = foreground_probability(slice_logits(image, stats))
            advance(1)
        return result

    return predict


def foreground_probability(logits: np.ndarray) -> np.ndarray:
    """Return (...) float32, the probability of class 1, of logits (..., 1 or 2).

    Raises:
        ValueError: another number of classes.
    """
    classes = logits.shape[-1]
    if classes > 2:
        raise ValueError(f"`logits` (shape={logits.shape}) must be of one or two classes")
    return special.expit(logits[..., 1] - logits[..., 0] if classes == 2 else logits[..., 0])


def pad_slice(image: np.ndarray, patch: int, fill_hu: int, padding: str) -> np.ndarray:
    """Return a slice (h, w) with what its patches see beyond it, (h + patch - 1, w + patch - 1).

    Patch (y, x) of the result, by its first pixel, is that of pixel (y, x) of the slice.
    """
    around = (patch // 2, patch - 1 - patch // 2)
    if padding == "reflect":
        return np.pad(image, around, mode="reflect")
    return np.pad(image, around, constant_values=fill_hu)


def patches_with_content(padded: np.ndarray, patch: int, fill_hu: int) -> np.ndarray:
    """Return (h, w) bool, which patches of a padded slice have a pixel other than `fill_hu`."""
    sums = np.zeros((padded.shape[0] + 1, padded.shape[1] + 1), np.int32)
    content = sums[1:, 1:]
    np.cumsum(padded != fill_hu, axis=0, dtype=np.int32, out=content)
    np.cumsum(content, axis=1, out=content)
    sums = sums[patch:] - sums[:-patch]
    return sums[:, patch:] > sums[:, :-patch]


def _by_patches(
    network: Callable[[np.ndarray, jax.Array], jax.Array], patch: int, batch_size: int
) -> _Evaluate:
    """Evaluate by batches of patches."""

    def evaluate(padded: np.ndarray, wanted: np.ndarray, stats: jax.Array) -> Iterator[_Part]:
        windows = np.lib.stride_tricks.sliding_window_view(padded, (patch, patch))
        rows, columns = np.nonzero(wanted)
        for first in range(0, len(rows), batch_size):
            some = slice(first, first + batch_size)
            images = np.zeros((batch_size, patch, patch), padded.dtype)
            images[: len(rows[some])] = windows[rows[some], columns[some]]
            yield rows[some], columns[some], network(images, stats)

    return evaluate


def _by_tiles(
    halves: dense.Dense, params: dense.Params, to_input: ToInput, patch: int, tile: int
) -> _Evaluate:
    """Evaluate tiles of tile x tile patches at once, the last layers for wanted patches only."""

    @jax.jit
    def features(params: Any, image: jax.Array, stats: jax.Array) -> jax.Array:
        return halves.features(params, to_input(image, stats))

    @jax.jit
    def classify(params: Any, features: jax.Array, at: jax.Array) -> jax.Array:
        return halves.classify(params, features[at])

    def evaluate(padded: np.ndarray, wanted: np.ndarray, stats: jax.Array) -> Iterator[_Part]:
        # Room for tiles that reach beyond the last patch; nobody wants what is there.
        padded = np.pad(padded, (0, tile))
        for top, left in _tiles(wanted, tile):
            side = tile + patch - 1
            of_tile = features(params, padded[top : top + side, left : left + side], stats)
            rows, columns = np.nonzero(wanted[top : top + tile, left : left + tile])
            for first in range(0, len(rows), _ROWS):
                y, x = rows[first : first + _ROWS], columns[first : first + _ROWS]
                at = np.zeros(_ROWS, np.int32)
                at[: len(y)] = y * tile + x
                yield y + top, x + left, classify(params, of_tile, at)

    return evaluate


def _tiles(wanted: np.ndarray, tile: int) -> Iterator[tuple[int, int]]:
    """Yield the first pixels of tiles that cover all wanted pixels, none twice.

    Bands of rows begin at a row, and tiles in a band at a column, where something is wanted: that
    takes fewer tiles than a fixed grid.
    """
    rows = np.flatnonzero(wanted.any(axis=1))
    while len(rows):
        top = int(rows[0])
        columns = np.flatnonzero(wanted[top : top + tile].any(axis=0))
        while len(columns):
            left = int(columns[0])
            yield top, left
            columns = columns[columns >= left + tile]
        rows = rows[rows >= top + tile]


def _one_behind(parts: Iterator[_Part]) -> Iterator[_Part]:
    """Yield each part when the next has been asked for: the device works while results are read.

    It also bounds what is under way to one part, else a whole slice would be.
    """
    waiting = None
    for part in parts:
        if waiting is not None:
            yield waiting
        waiting = part
    if waiting is not None:
        yield waiting
