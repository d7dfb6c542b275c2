"""The intensities that a network sees: the normalisations of paper A, as plain arithmetic.

Paper A (section 4.2, figure 8, tables 3-8) compares four: "-1000 to 800", "zero mean", "0 to 1" and
"-1 to 1", and finds the first best. It does not say what "-1000 to 800" does after the clamp to the
same range. Both readings exist here: `"hu"` keeps clamped Hounsfield units (the text speaks of a
clamping range), `"minmax_to_hu"` maps the scan's minimum and maximum linearly to the range (figure
8 speaks of rescaling). Paper B (section II.A) scales its window of 0 to 1500 to [0, 1]: `"unit"`.

`normalise` and `network_input` take NumPy or JAX arrays and work under `jax.jit`. This module does
not import jax, so that reading data does not need it.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from spinejax import schema

NEED_STATS = ("zscore", "minmax_to_hu")
"""The modes that use the statistics of the whole preprocessed scan."""

INPUT_SCALE = {"hu": 1e-3, "zscore": 1.0, "unit": 1.0, "sym": 1.0, "minmax_to_hu": 1e-3}
"""Mode -> factor between the normalised image and the first convolution.

The modes, with the row of paper A's tables 3-8 for each:

* `"hu"`: "-1000 to 800", clamped HU unchanged.
* `"zscore"`: "zero mean", (x - mean) / std of the preprocessed scan.
* `"unit"`: "0 to 1", linear from the range of preprocessed values.
* `"sym"`: "-1 to 1", linear from the range of preprocessed values.
* `"minmax_to_hu"`: "-1000 to 800", linear from the scan's own [min, max] to that range.

Inputs around 1000 make the activations and gradients of the first layer a thousand times larger
than in the other modes. Division by 1000 keeps the meaning of the mode (a linear map of HU, zero at
water), and one learning rate fits all modes.
"""


def normalise(image_hu: Any, mode: str, range_hu: tuple[float, float], stats: Any) -> Any:
    """Map preprocessed HU to the values that `mode` names.

    Values outside `range_hu`, from the augmentation of intensities, are clamped first, so that a
    network never trains on values that no preprocessed scan contains.

    Args:
        image_hu: (..., h, w) preprocessed image in HU, any number type.
        mode: a key of `INPUT_SCALE`.
        range_hu: (low, high) of preprocessed values (`SlicePreprocess.range_hu`).
        stats: (..., 4) float32 mean, std, min and max of each preprocessed scan in HU
            (`ScanStats`); its leading axes match those of the image. Used by `"zscore"` and
            `"minmax_to_hu"`; for a scan of a single value they give 0 and `low`.

    Returns:
        (..., h, w) float32 of the same array library.

    Raises:
        InputError: unknown mode.
    """
    schema.check_value("data.normalise", mode)
    low, high = (float(bound) for bound in range_hu)
    image = image_hu.astype(np.float32).clip(low, high)
    if mode == "hu":
        return image
    if mode == "unit":
        return (image - low) / (high - low)
    if mode == "sym":
        return (image - low) * (2 / (high - low)) - 1
    mean, std, least, greatest = (stats[..., i, None, None] for i in range(4))
    if mode == "zscore":
        return (image - mean) / (std + (std <= 0))  # a constant scan is divided by one
    extent = greatest - least
    return (image - least) * ((high - low) / (extent + (extent <= 0))) + low


def network_input(image_hu: Any, mode: str, range_hu: tuple[float, float], stats: Any) -> Any:
    """Return the input of the first convolution: `normalise` times `INPUT_SCALE[mode]`.

    Arguments, result and errors as for `normalise`. Training and inference both call this.
    """
    return normalise(image_hu, mode, range_hu, stats) * INPUT_SCALE[mode]


class ScanStats:
    """Mean, standard deviation, minimum and maximum of a scan that arrives slab by slab.

    Sums are integers, so the result does not depend on the slabs.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum = 0
        self._squares = 0
        self._least = 0
        self._greatest = 0

    def update(self, image_hu: np.ndarray) -> None:
        """Add a slab of any shape, int16 HU."""
        if not np.issubdtype(image_hu.dtype, np.integer):
            raise TypeError(f"`image_hu` (dtype={image_hu.dtype}) must be of an integer type")
        if image_hu.size == 0:
            return
        # Slice by slice: an int64 copy of a whole slab would be four times the slab.
        for part in image_hu.reshape(image_hu.shape[0], -1):
            values = part.astype(np.int64)
            self._sum += int(values.sum())
            self._squares += int(np.dot(values, values))
        least, greatest = int(image_hu.min()), int(image_hu.max())
        self._least = least if self._count == 0 else min(self._least, least)
        self._greatest = greatest if self._count == 0 else max(self._greatest, greatest)
        self._count += image_hu.size

    def result(self) -> np.ndarray:
        """Return (4,) float32: mean, std (population), min, max in HU."""
        if self._count == 0:
            raise ValueError("no image was given to `update`")
        mean = self._sum / self._count
        # The integers are exact up to the last division, so nothing cancels.
        variance = (self._squares * self._count - self._sum**2) / self._count**2
        return np.array([mean, variance**0.5, self._least, self._greatest], np.float32)


def scan_stats(slabs: Iterable[np.ndarray]) -> np.ndarray:
    """Return (4,) float32 mean, std, min and max over integer arrays, as `ScanStats` does."""
    total = ScanStats()
    for slab in slabs:
        total.update(slab)
    return total.result()
