"""Filters of a patch network and its activations for one patch of vertebra.

Figures 9 and 10 of paper B, from `evaluation/<split>/network.npz`: kernels `conv_1`, `conv_2` ...
(k, k, in, out), `patch` (n, n) as the network gets it, `where` it was cut ("case slice row column",
counted from 0), and the outputs of layers for that patch, (h, w, c), by their names, such as
`maxpool_1`.

Pictures hold one pixel per number. The browser enlarges them without smoothing, so that the
hundreds of tiles of a page take a few kilobytes.
"""

import math
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spinejax.errors import InputError, check_choice
from spinejax.reports import figures
from spinejax.reports.run import Run
from spinejax.reports.tables import item
from spinejax.volume import PLANES

_AGAIN = "run `spinejax evaluate` again"
_SIDES = {"conv": 4, "patch": 2, "": 3}
# The exceptions of zipfile, zlib and numpy for damaged files.
_DAMAGE = (
    *(OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, SyntaxError, TypeError),
)
_MOST_TILES = 1024
_MOST_BYTES = 2**28  # of one array in memory
_FILTERS_WIDTH, _ACTIVATIONS_WIDTH = 320, 254
"""Largest width of a picture on the page, in its pixels."""


class NetworkArrays(NamedTuple):
    """The content of network.npz; lists are in the order of the layers.

    filters: (name, (k, k, in, out) float32); patch: (n, n) float32 or None; activations: (name,
    (h, w, c) float32); where: of the patch, in words.
    """

    filters: list[tuple[str, np.ndarray]]
    patch: np.ndarray | None
    activations: list[tuple[str, np.ndarray]]
    where: str


class Mosaic(NamedTuple):
    """A grid of tiles for the page: title, lines below it, data URI, width in CSS pixels."""

    title: str
    lines: tuple[str, ...]
    uri: str
    width: int


def read_network(path: Path) -> NetworkArrays:
    """Read network.npz.

    Raises:
        InputError: the file is damaged, or an array in it does not fit its name.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            huge = [entry.filename for entry in archive.infolist() if entry.file_size > _MOST_BYTES]
        if not huge:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
    except _DAMAGE as error:
        words = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({words}); {_AGAIN}") from None
    if huge:
        raise InputError(f"{path}: {huge[0]!r} is too large for a figure; {_AGAIN}")
    where = _where(arrays.pop("where", None))
    found: dict[str, list[tuple[str, np.ndarray]]] = {"conv": [], "patch": [], "": []}
    for name, array in sorted(arrays.items(), key=lambda pair: _by_number(pair[0])):
        kind = re.sub(r"_\d+$", "", name)
        kind = kind if kind in found else ""
        if not kind and array.ndim != 3:
            continue  # a vector of features has no picture
        sides = _SIDES[kind]
        good = array.ndim == sides and array.size > 0 and array.dtype.kind in "fiu"
        with np.errstate(over="ignore"):
            values = array.astype(np.float32) if good else array
        if not good or not np.isfinite(values).all():
            shape = f"{array.dtype} {array.shape}"
            raise InputError(
                f"{path}: {name!r} is not {sides} axes of finite numbers but {shape}; {_AGAIN}"
            )
        found[kind].append((name, values))
    patch = found["patch"][0][1] if found["patch"] else None
    return NetworkArrays(found["conv"], patch, found[""], where)


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return a key that puts layer_2 before layer_10."""
    return [(int(word), "") if word.isdecimal() else (0, word) for word in re.split(r"(\d+)", name)]


def _where(value: np.ndarray | None) -> str:
    """Return "sub-verse014, slice 87, row 120, column 204" of the recorded place."""
    if value is None or value.dtype.kind != "U":
        return ""
    words = " ".join(map(str, value.ravel())).rsplit(" ", 3)
    if len(words) < 4:
        return " ".join(words)
    case, number, row, column = words
    # Slices are counted from 1 on the whole page.
    number = str(int(number) + 1) if number.isdecimal() else number
    return f"{case}, slice {number}, row {row}, column {column}"


def grid_columns(tiles: int) -> int:
    """Return how many tiles a row of a grid has: a divisor near the square root if there is one."""
    root = math.isqrt(max(tiles, 1) - 1) + 1
    return next((n for n in range(root, 2 * root + 1) if tiles % n == 0), root)


def mosaic(tiles: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return tiles side by side, one pixel apart, one pixel per number.

    Args:
        tiles: (count, h, w) float32.
        low: this value is black.
        high: this value is white; the same for all tiles, so that they may be compared.

    Returns:
        (rows, columns, 2) uint8 grey and opacity: between the tiles the page shows through.
    """
    count, height, width = tiles.shape
    columns = grid_columns(count)
    rows = -(-count // columns)
    scaled = np.clip((tiles - low) / (high - low if high > low else 1.0), 0, 1)
    grey = np.rint(255 * scaled).astype(np.uint8)
    picture = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, 2), np.uint8)
    for i, tile in enumerate(grey):
        y, x = (i // columns) * (height + 1), (i % columns) * (width + 1)
        picture[y : y + height, x : x + width, 0] = tile
        picture[y : y + height, x : x + width, 1] = 255
    return picture


def section(run: Run) -> dict[str, Any] | None:
    """Return filters and activation maps; None for a run that is not of patches and has none."""
    path = run.folder / "network.npz"
    if not path.is_file():
        if not run.is_patches or run.split is None:
            return None
        return {"recorded": False, "problem": "", "filters": [], "activations": []}
    try:
        network = read_network(path)
        plane = str(item(run.config, "data", "plane") or "")
        check_choice("data.plane", plane, PLANES)
    except InputError as error:
        return {"recorded": True, "problem": str(error), "filters": [], "activations": []}
    return {
        "recorded": True,
        "problem": "",
        "filters": _filters(network, plane),
        "activations": _activations(network, plane),
        "where": network.where,
    }


def _tiles(
    title: str,
    lines: tuple[str, ...],
    tiles: np.ndarray,
    limits: tuple[float, float],
    plane: str,
    widest: int,
) -> Mosaic:
    """Return (count, h, w) tiles as one picture, turned as pictures of slices are."""
    upright = np.stack([figures.display(tile, plane) for tile in tiles])
    picture = mosaic(upright, *limits)
    width = picture.shape[1]
    width *= max(1, widest // width)  # whole pixels; the frame takes 6 more
    return Mosaic(title, lines, figures.pixels_uri(picture), width + 6)


def _filters(network: NetworkArrays, plane: str) -> list[Mosaic]:
    parts = []
    for name, kernel in network.filters:
        *sides, channels, count = kernel.shape
        how = "as they are" if channels == 1 else f"mean over {channels} input channels"
        tiles = kernel.mean(axis=2).transpose(2, 0, 1)[:_MOST_TILES]
        some = f"{count} filters" if count <= _MOST_TILES else f"{_MOST_TILES} of {count} filters"
        limit = float(np.abs(tiles).max())
        title = f"{name}: {some} of {sides[0]} × {sides[1]} × {channels}"
        lines = (how, f"black −{limit:.2g}, grey 0, white {limit:.2g}")
        parts.append(_tiles(title, lines, tiles, (-limit, limit), plane, _FILTERS_WIDTH))
    return parts


def _activations(network: NetworkArrays, plane: str) -> list[Mosaic]:
    if not network.activations:
        return []
    parts = []
    if network.patch is not None:
        patch = network.patch
        low, high = float(patch.min()), float(patch.max())
        title = f"The patch: {patch.shape[0]} × {patch.shape[1]}"
        lines = ("input of the network", f"black {low:.2g}, white {high:.2g}")
        parts.append(_tiles(title, lines, patch[None], (low, high), plane, _ACTIVATIONS_WIDTH))
    for name, maps in network.activations:
        tiles = maps.transpose(2, 0, 1)[:_MOST_TILES]
        # A few values are very high; the scale ends below them so that the rest can be seen.
        high = float(np.percentile(tiles[tiles > 0], 98)) if (tiles > 0).any() else 1.0
        silent = int((tiles <= 0).all(axis=(1, 2)).sum())
        title = f"{name}: {maps.shape[2]}@{maps.shape[0]} × {maps.shape[1]}"
        lines = (
            f"{silent} of {len(tiles)} channels silent",
            f"black 0, white {high:.2g} and more",
        )
        parts.append(_tiles(title, lines, tiles, (0.0, high), plane, _ACTIVATIONS_WIDTH))
    return parts
