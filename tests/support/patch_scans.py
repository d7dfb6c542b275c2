"""Small cache entries that tests cut into patches."""

import numpy as np

from spinejax.data.cache import CachedCase
from spinejax.data.preprocess import SlicePreprocess

SIZE, STRIDE = 8, 3


def make_case(folder, name, label, seed=0):
    """A cache entry of `label` (n, h, w) and an image of noise."""
    path = folder / name
    path.mkdir()
    rng = np.random.default_rng(seed)
    np.save(path / "image.npy", rng.integers(1, 1500, label.shape).astype(np.int16))
    np.save(path / "label.npy", label.astype(np.uint8))
    return CachedCase(
        id=name,
        path=path,
        settings=SlicePreprocess(plane="axial"),
        shape=label.shape,
        stats=np.array([seed, 1, 2, 3], np.float32),
        foreground_counts=np.count_nonzero(label, axis=(1, 2)).astype(np.int32),
        spacing_mm=(1.0, 1.0),
        slice_spacing_mm=1.0,
    )


def make_cases(folder, count=3):
    """Scans of different shapes, each with vertebrae in some slices and one slice of noise."""
    cases = []
    for i in range(count):
        label = np.zeros((4 + i, 30 + 5 * i, 26 + i), np.uint8)
        label[1:3, 8:22, 6:20] = 20 + i
        label[3] = np.random.default_rng(i).integers(0, 2, label.shape[1:])
        cases.append(make_case(folder, f"case{i}", label, seed=i))
    return cases
