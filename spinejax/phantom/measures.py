"""Measures of one real scan or phantom: sizes, distances, HU, noise.

Results are nested dictionaries of numbers, `{"volume_ml": {"L1": 45.2}, "inside_hu": {"50": 322.0},
"scan": {"noise_hu": 82.1}}`. Four definitions:

* *Whole*: a vertebra that touches neither the first nor the last axial slice of the scan. It may be
  cut at the sides (VerSe annotates narrow sagittal scans, which cut transverse processes); its
  extent along an axis is measured only if it does not touch the ends of that axis.
* *Layers* of the union of all labelled vertebrae: one erosion (six neighbours) removes `shell`, two
  leave `deep`, and `around` lies outside within `AROUND_MM`. A cut vertebra without label belongs
  to `around` where it is near, as it does for a network.
* *Depth*: the median HU of all voxels by distance from the surface of that union, in bins of 1 mm,
  negative inside. It shows where masks end in the rim of bone. The surface runs half of the
  smallest voxel side off the centres of the outermost voxels, which is exact for cubic voxels.
* *Noise*: see `noise`.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from scipy import ndimage

from spinejax import geometry, labels
from spinejax.io import grids
from spinejax.phantom.body import tissues
from spinejax.volume import LabelVolume, Volume

Statistics = dict[str, dict[str, float]]

PERCENTILES = (5, 25, 50, 75, 95)
LAYERS = ("inside", "deep", "shell", "around")
EXTENTS = ("right_left_mm", "front_back_mm", "height_mm")
"""Extents along the canonical axes."""

AROUND_MM = 3.0
DEPTHS_MM = (-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5)
"""Middles of the bins of depth."""

BRIGHT_HU = 150
PREPARED_MM = 0.75
"""Standard deviation of the smoothing before a network sees a scan."""

_DETAIL_MM, _DETAIL_HU = 2.0, (-200.0, 600.0)

BINS_HU = np.arange(-300, 1525, 25)
"""Edges of the histograms of HU."""

_MUSCLE_HU = (20.0, 80.0)
_GUIDE_MM = 3.0
_LEAST_VOXELS = 300
_LEAST_AT_DEPTH = 50
_MOST_VOXELS = 16_000_000  # of one scan, for noise: more would only cost time and memory


def measure_labels(
    mask: LabelVolume, centroids: Mapping[int, np.ndarray] | None = None
) -> Statistics:
    """Sizes and distances of the vertebrae of one label map.

    Args:
        mask: VerSe ids.
        centroids: VerSe id -> (3,) voxel index of the body's centroid, or None.

    Returns:
        `volume_ml` and `EXTENTS` by level, of whole vertebrae; `body_distance_mm` and
        `mask_distance_mm` by pair of successive levels ("L1-L2"), between body centroids and
        between the centres of mass of whole vertebrae; in `scan` the share of labelled vertebrae
        that the first or last slice cuts (`cut_share`) and the share of the scan's height between
        the highest and the lowest labelled voxel (`labelled_height`). Empty groups are left out.
    """
    straight = grids.straight(mask)
    array, spacing = straight.array, np.array(straight.spacing_mm)
    found: Statistics = {name: {} for name in ("volume_ml", *EXTENTS)}
    middles: dict[int, np.ndarray] = {}
    levels, cut, low, high = 0, 0, array.shape[2], 0
    for label, box in geometry.label_boxes(array).items():
        if label not in labels.NAMES:
            continue
        levels += 1
        low, high = min(low, box[2].start), max(high, box[2].stop)
        touches = [
            side.start == 0 or side.stop == length
            for side, length in zip(box, array.shape, strict=True)
        ]
        if touches[2]:
            cut += 1
            continue
        name = labels.name(label)
        inside = array[box] == label
        count = int(np.count_nonzero(inside))
        found["volume_ml"][name] = float(count * spacing.prod() / 1000)
        for axis, extent in enumerate(EXTENTS):
            if not touches[axis]:
                found[extent][name] = float((box[axis].stop - box[axis].start) * spacing[axis])
        start = np.array([side.start for side in box])
        sums = [np.arange(n) @ inside.sum(axis=tuple({0, 1, 2} - {i})) for i, n in
                enumerate(inside.shape)]  # fmt: skip
        middles[label] = (np.array(sums) / count + start) * spacing
    found["mask_distance_mm"] = _distances(middles)
    if centroids is not None:
        world = {i: geometry.voxel_to_world(mask.affine, point) for i, point in centroids.items()}
        found["body_distance_mm"] = _distances(world)
    if levels:
        found["scan"] = {
            "cut_share": cut / levels,
            "labelled_height": float((high - low) / array.shape[2]),
        }
    return {group: values for group, values in found.items() if values}


def _distances(points_mm: Mapping[int, np.ndarray]) -> dict[str, float]:
    ordered = sorted(points_mm, key=labels.order)
    return {
        f"{labels.name(a)}-{labels.name(b)}": float(np.linalg.norm(points_mm[a] - points_mm[b]))
        for a, b in pairwise(ordered)
        if b in labels.successors(a)
    }


def layers(
    mask: np.ndarray, spacing_mm: np.ndarray
) -> tuple[tuple[slice, ...], dict[str, np.ndarray], np.ndarray]:
    """Cut a scan into the four `LAYERS` of its vertebrae.

    Args:
        mask: (x, y, z), 0 for background, somewhere not 0.
        spacing_mm: (3,).

    Returns:
        The box that holds all four layers, for each a bool array over the box, and the depth of
        every voxel of the box, mm. The border of the scan is no surface: it has no shell.
    """
    spacing = np.asarray(spacing_mm, float)
    margin = np.ceil(max(AROUND_MM, DEPTHS_MM[-1] + 0.5) / spacing).astype(int) + 1
    tight = geometry.bounding_box(mask != 0)
    if tight is None:
        raise ValueError("`mask` has no vertebra")
    box = tuple(
        slice(max(0, side.start - more), min(length, side.stop + more))
        for side, more, length in zip(tight, margin, mask.shape, strict=True)
    )
    inside = mask[box] != 0
    once = ndimage.binary_erosion(inside, border_value=1)
    outer = ndimage.distance_transform_edt(~inside, sampling=spacing)
    parts = {
        "inside": inside,
        "deep": ndimage.binary_erosion(once, border_value=1),
        "shell": inside & ~once,
        "around": ~inside & (outer <= AROUND_MM),
    }
    half = 0.5 * spacing.min()
    inner = ndimage.distance_transform_edt(inside, sampling=spacing)
    return box, parts, np.where(inside, half - inner, outer - half).astype(np.float32)


def measure_hu(volume: Volume, mask: np.ndarray) -> tuple[Statistics, dict[str, np.ndarray]]:
    """Grey values in and around the vertebrae of one scan, and its noise.

    Args:
        volume: the CT.
        mask: (x, y, z) VerSe ids on the grid of `volume.array`; without any vertebra only noise is
            measured.

    Returns:
        `<layer>_hu` by percentile for each of `LAYERS`; `depth_hu` by depth in mm; in `scan`
        `noise_hu`, `noise_prepared_hu` (see `noise`), `detail_share` (see `detail`) and
        `bright_elsewhere`, the share of all voxels above `BRIGHT_HU` that are not labelled as
        vertebra. Also the histogram of each layer over `BINS_HU`, as shares.
    """
    mask = grids.straight(LabelVolume(mask, volume.affine)).array
    volume = grids.straight(volume)
    hu, spacing = volume.array, np.array(volume.spacing_mm)
    found: Statistics = {"scan": {}}
    histograms = {}
    avoid = mask != 0
    if avoid.any():
        bright = hu > BRIGHT_HU
        total = int(np.count_nonzero(bright))
        if total:
            found["scan"]["bright_elsewhere"] = int(np.count_nonzero(bright & ~avoid)) / total
        box, parts, depth = layers(mask, spacing)
        for name, part in parts.items():
            # Values below air lie outside the scan circle; they depend on the type of the file.
            values = np.maximum(hu[box][part].astype(np.float32), tissues.AIR_HU)
            if values.size:
                levels = np.percentile(values, PERCENTILES)
                found[f"{name}_hu"] = {
                    str(p): float(v) for p, v in zip(PERCENTILES, levels, strict=True)
                }
                counts = np.histogram(np.clip(values, BINS_HU[0], BINS_HU[-1] - 1), BINS_HU)[0]
                histograms[name] = counts / values.size
        found["depth_hu"] = _by_depth(hu[box], depth)
        near = parts["inside"] | parts["around"]
        found["scan"]["detail_share"] = detail(hu[box], near, spacing)
        avoid[box] |= parts["around"]
    for name, value in noise(hu, avoid, spacing).items():
        found["scan"][name] = value
    return {group: values for group, values in found.items() if values}, histograms


def detail(hu: np.ndarray, near: np.ndarray, spacing_mm: np.ndarray) -> float:
    """Measure the sharpness of bone: the share of fine structure, independent of voxel size.

    The scan is smoothed as before training (`PREPARED_MM`) and clipped to soft tissue and bone; the
    difference from a Gaussian of 2 mm is detail. The result is the standard deviation of the detail
    over that of the scan, in and around vertebrae.

    Args:
        hu: (x, y, z) HU.
        near: (x, y, z) bool, where to look.
        spacing_mm: (3,).
    """
    spacing = np.asarray(spacing_mm, float)
    image = ndimage.gaussian_filter(hu.astype(np.float32), PREPARED_MM / spacing)
    image = np.clip(image, *_DETAIL_HU)
    rest = image - ndimage.gaussian_filter(image, _DETAIL_MM / spacing)
    return float(rest[near].std() / max(float(image[near].std()), 1e-6))


def _by_depth(hu: np.ndarray, depth_mm: np.ndarray) -> dict[str, float]:
    near = np.abs(depth_mm) < DEPTHS_MM[-1] + 0.5
    values, bins = hu[near], np.floor(depth_mm[near]).astype(int)
    return {
        f"{middle:+.1f}": float(np.median(values[chosen]))
        for middle in DEPTHS_MM
        if np.count_nonzero(chosen := bins == np.floor(middle)) >= _LEAST_AT_DEPTH
    }


def noise(hu: np.ndarray, avoid: np.ndarray, spacing_mm: np.ndarray) -> dict[str, float]:
    """Standard deviation of the noise in homogeneous soft tissue.

    A Gaussian of 3 mm (at least one voxel along each axis) gives the local mean. Muscle is where
    that mean lies between 20 and 80 HU everywhere within 3 mm. Muscle has no finer structure, so
    the scan minus its local mean is noise there. The median absolute deviation times 1.4826 is the
    standard deviation of a normal distribution, and a few voxels of fat or vessels hardly change
    it. The result is divided by the share of white noise that is not in the local mean.

    Args:
        hu: (x, y, z) HU, canonical.
        avoid: (x, y, z) bool: vertebrae and their surroundings, left out.
        spacing_mm: (3,).

    Returns:
        `noise_hu` of the scan itself, and `noise_prepared_hu` of the scan after a Gaussian of
        `PREPARED_MM`, which tells fine grain from coarse; empty with too little muscle.
    """
    slab = _middle_slab(hu.shape)
    image = hu[:, :, slab].astype(np.float32)
    spacing = np.asarray(spacing_mm, float)
    sigma = np.maximum(_GUIDE_MM / spacing, 1.0)
    mean = ndimage.gaussian_filter(image, sigma, truncate=3.0)
    size = tuple(2 * max(1, round(_GUIDE_MM / side)) + 1 for side in spacing)
    muscle = ndimage.minimum_filter(mean, size) > _MUSCLE_HU[0]
    muscle &= ndimage.maximum_filter(mean, size) < _MUSCLE_HU[1]
    muscle &= ~avoid[:, :, slab]
    if np.count_nonzero(muscle) < _LEAST_VOXELS:
        return {}
    rough = _deviation((image - mean)[muscle]) / _white_share(sigma)
    fine = ndimage.gaussian_filter(image, PREPARED_MM / spacing)
    smooth = _deviation((fine - ndimage.gaussian_filter(fine, sigma, truncate=3.0))[muscle])
    return {"noise_hu": rough, "noise_prepared_hu": smooth}


def _middle_slab(shape: tuple[int, ...]) -> slice:
    """Axial slices in the middle of a scan, enough to measure its noise."""
    count = min(shape[2], max(16, _MOST_VOXELS // (shape[0] * shape[1])))
    start = (shape[2] - count) // 2
    return slice(start, start + count)


def _deviation(values: np.ndarray) -> float:
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def _white_share(sigma: np.ndarray) -> float:
    """Share of the standard deviation of white noise x that `x - gaussian(x)` has."""
    centre, power = 1.0, 1.0
    for side in sigma:
        impulse = np.zeros(2 * int(3 * side + 1) + 1)
        impulse[impulse.size // 2] = 1.0
        kernel = ndimage.gaussian_filter1d(impulse, side, truncate=3.0)
        centre, power = centre * float(kernel.max()), power * float((kernel**2).sum())
    return float(np.sqrt(1.0 - 2.0 * centre + power))
