"""Random changes of training slices and cubes, on the device: pure functions of keys and a batch.

Paper A, section 4.3.1 names scaling, rotation and flips, and paper B, section II.A rotation and
translation, both without ranges; the default ranges are this project's. The changes of intensity
follow Payer et al. (2020), whom paper A follows in preprocessing.

By default only left and right are mirrored: axis 0 of coronal (x, z) and axial (x, y) slices, and
of cubes, where vertebrae keep their names. A sagittal slice (y, z) has no such axis. Front and
back, and up and down, are left as they are, because no patient looks otherwise. Paper A flips
slices without a word on this, so `flip_axes="all"` mirrors both axes of a slice.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.ndimage import map_coordinates

from spinejax import labels, schema
from spinejax.white_noise import white

_L1, _L6 = labels.id_of("L1"), labels.id_of("L6")

FLIP_AXES: dict[str, tuple[int, ...]] = {"sagittal": (), "coronal": (0,), "axial": (0,)}
"""Plane -> the axes of its slices along which left and right lie."""

NO_GEOMETRY = dict(scale=(1.0, 1.0), rotation_deg=0.0, translation_px=0.0, flip_probability=0.0)
NO_INTENSITY = dict(shift_hu=0.0, gain=0.0, noise_hu=0.0)
"""Options of `augment` and `augment_cubes` that change nothing."""


def augment(
    keys: jax.Array,
    image: jax.Array,
    label: jax.Array,
    *,
    plane: str,
    scale: tuple[float, float] = (0.85, 1.15),
    rotation_deg: float = 15.0,
    translation_px: float = 0.0,
    flip_probability: float = 0.5,
    flip_axes: str = "left_right",
    shift_hu: float = 30.0,
    gain: float = 0.1,
    noise_hu: float = 20.0,
    fill_hu: float = -1000.0,
) -> tuple[jax.Array, jax.Array]:
    """Change each slice at random: one affine resampling, then intensities.

    The result for a slice depends on its own key only, not on the batch or on the number of
    devices. The options are Python numbers, fixed when jitted. With all ranges zero the result is
    the input, bit for bit.

    Args:
        keys: (b,) PRNG keys, one for each slice.
        image: (b, h, w) float HU, or (b, h, w, c) of neighbouring slices. They move together, and
            are brighter or darker together; each pixel has its own noise.
        label: (b, h, w) integers; resampled to the nearest pixel, so no new label arises.
        plane: "sagittal", "coronal" or "axial".
        scale: range of the magnification about the centre of the slice.
        rotation_deg: largest rotation, either way.
        translation_px: largest shift along each axis in pixels, either way.
        flip_probability: of mirroring each axis of `flip_axes`.
        flip_axes: "left_right", the axes of FLIP_AXES, or "all", both axes.
        shift_hu: largest value that is added to all pixels in HU, either way.
        gain: all HU are multiplied by 1 plus or minus at most this.
        noise_hu: largest standard deviation of the noise in HU (`white_noise`); uniform from 0.
        fill_hu: HU outside the slice, where labels are 0.

    Returns:
        Image float32 and label of the input's dtype, of the input's shapes.

    Raises:
        InputError: `plane` or `flip_axes` is unknown.
    """
    schema.check_value("data.plane", plane)
    schema.check_value("augment.flip_axes", flip_axes)
    mirrored = (0, 1) if flip_axes == "all" else FLIP_AXES[plane]
    mirrored = mirrored if flip_probability else ()

    def one(key: jax.Array, image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_scale, key_angle, key_flip, key_shift, key_gain, key_level, key_noise = (
            jax.random.split(key, 7)
        )
        image = image.astype(jnp.float32)
        flips = [
            jax.random.bernoulli(jax.random.fold_in(key_flip, axis), float(flip_probability))
            if axis in mirrored
            else False
            for axis in (0, 1)
        ]
        if rotation_deg or translation_px or tuple(scale) != (1.0, 1.0):
            key_move = jax.random.fold_in(key, 7)  # beside the seven above
            image, label = resample(
                image,
                label,
                scale=jax.random.uniform(key_scale, minval=scale[0], maxval=scale[1]),
                angle_rad=jnp.deg2rad(either_way(key_angle, rotation_deg)),
                shift_px=either_way(key_move, translation_px, (2,)),
                flips=flips,
                fill_hu=fill_hu,
            )
        else:
            for axis in mirrored:
                image = jnp.where(flips[axis], jnp.flip(image, axis), image)
                label = jnp.where(flips[axis], jnp.flip(label, axis), label)
        image = _intensities(
            (key_shift, key_gain, key_level, key_noise), image, shift_hu, gain, noise_hu
        )
        return image, label

    return jax.vmap(one)(keys, image, label)


def intensities(
    key: jax.Array, image: jax.Array, shift_hu: float, gain: float, noise_hu: float
) -> jax.Array:
    """Change the HU of one float32 image of any shape; the ranges are those of `augment`."""
    return _intensities(jax.random.split(key, 4), image, shift_hu, gain, noise_hu)


def _intensities(
    keys: Any, image: jax.Array, shift_hu: float, gain: float, noise_hu: float
) -> jax.Array:
    key_shift, key_gain, key_level, key_noise = keys
    if gain:
        image = image * (1 + either_way(key_gain, gain))
    if shift_hu:
        image = image + either_way(key_shift, shift_hu)
    if noise_hu:
        level = jax.random.uniform(key_level, maxval=noise_hu)
        seed = jax.random.bits(key_noise, dtype=jnp.uint32)
        image = image + level * white(seed, image.shape, (0,) * image.ndim)
    return image


def either_way(key: jax.Array, limit: float, shape: tuple[int, ...] = ()) -> jax.Array:
    """Draw uniformly from [-limit, limit]."""
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


def resample(
    image: jax.Array,
    label: jax.Array,
    *,
    scale: jax.Array | float,
    angle_rad: jax.Array | float,
    shift_px: jax.Array | tuple[float, float] = (0.0, 0.0),
    flips: Sequence[jax.Array | bool] = (False, False),
    fill_hu: float,
) -> tuple[jax.Array, jax.Array]:
    """Magnify by `scale`, turn by `angle_rad` from axis 0 to axis 1 about the centre, and shift.

    Then mirror the axes of `flips`. (To mirror the result would make XLA interpolate twice.)

    The content at offset p from the centre moves to scale * R p + shift_px: each output pixel o
    reads the input at R^T (o - shift_px) / scale, linearly for `image` (h, w) or (h, w, c), to the
    nearest pixel for `label` (h, w).
    """
    h, w = label.shape
    centre = ((h - 1) / 2, (w - 1) / 2)
    ways = [jnp.where(flip, -1, 1) for flip in flips]
    rows = (ways[0] * (jnp.arange(h) - centre[0]) - shift_px[0])[:, None]
    columns = (ways[1] * (jnp.arange(w) - centre[1]) - shift_px[1])[None, :]
    cos, sin = jnp.cos(angle_rad) / scale, jnp.sin(angle_rad) / scale
    source = [cos * rows + sin * columns + centre[0], cos * columns - sin * rows + centre[1]]

    def linear(image: jax.Array) -> jax.Array:
        return map_coordinates(image, source, order=1, mode="constant", cval=fill_hu)

    return (
        linear(image) if image.ndim == 2 else jax.vmap(linear, -1, -1)(image),
        map_coordinates(label, source, order=0, mode="constant", cval=0),
    )


def augment_cubes(
    keys: jax.Array,
    image: jax.Array,
    label: jax.Array,
    *,
    scale: tuple[float, float] = (0.85, 1.15),
    rotation_deg: float = 15.0,
    translation_px: float = 0.0,
    flip_probability: float = 0.5,
    flip_axes: str = "left_right",
    shift_hu: float = 30.0,
    gain: float = 0.1,
    noise_hu: float = 20.0,
    fill_hu: float = -1000.0,
) -> tuple[jax.Array, jax.Array]:
    """Change each cube at random: one affine resampling, then intensities.

    The result for a cube depends on its own key only. The options are Python numbers, fixed when
    jitted. With all ranges zero the result is the input, bit for bit.

    Args:
        keys: (b,) PRNG keys, one for each cube.
        image: (b, x, y, z) float HU, canonical axes (x to the left).
        label: (b, x, y, z) integers; resampled to the nearest voxel.
        scale: range of the magnification about the centre.
        rotation_deg: largest rotation about each of the three axes, either way.
        translation_px: largest shift along each axis in voxels, either way.
        flip_probability: of mirroring left and right.
        flip_axes: "left_right"; cubes have no other choice.
        shift_hu: as for `augment`.
        gain: as for `augment`.
        noise_hu: as for `augment`.
        fill_hu: HU outside the cube, where labels are 0.

    Returns:
        Image float32 and label of the input's dtype, both (b, x, y, z).
    """

    def one(key: jax.Array, image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key, 5)
        image = image.astype(jnp.float32)
        flip = jax.random.bernoulli(keys[3], float(flip_probability))
        if rotation_deg or translation_px or tuple(scale) != (1.0, 1.0):
            angles = jnp.deg2rad(either_way(keys[0], rotation_deg, (3,)))
            image, label = resample_cube(
                image,
                label,
                matrix=rotation(angles)
                * jax.random.uniform(keys[1], minval=scale[0], maxval=scale[1]),
                shift=either_way(keys[2], translation_px, (3,)),
                flip=flip,
                fill_hu=fill_hu,
            )
        elif flip_probability:
            image = jnp.where(flip, jnp.flip(image, 0), image)
            label = jnp.where(flip, jnp.flip(label, 0), label)
        image = intensities(keys[4], image, shift_hu, gain, noise_hu)
        return image, label

    return jax.vmap(one)(keys, image, label)


def rotation(angles_rad: jax.Array) -> jax.Array:
    """Return the rotation matrix (3, 3) about x, then y, then z by `angles_rad` (3,)."""
    (a, b, c), (i, o) = angles_rad, (1.0, 0.0)
    ca, sa, cb, sb, cc, sc = (f(t) for t in (a, b, c) for f in (jnp.cos, jnp.sin))
    about_x = jnp.array([[i, o, o], [o, ca, -sa], [o, sa, ca]])
    about_y = jnp.array([[cb, o, sb], [o, i, o], [-sb, o, cb]])
    about_z = jnp.array([[cc, -sc, o], [sc, cc, o], [o, o, i]])
    return about_z @ about_y @ about_x


def resample_cube(
    image: jax.Array,
    label: jax.Array,
    *,
    matrix: jax.Array,
    shift: jax.Array,
    flip: jax.Array | bool = False,
    fill_hu: float,
) -> tuple[jax.Array, jax.Array]:
    """Move the content at offset p from the centre to `matrix` p + `shift` (offsets in voxels).

    Then mirror the first axis if `flip`, see `resample`.
    Linear for `image` (x, y, z), to the nearest voxel for `label` (x, y, z).
    """
    centre = (jnp.asarray(image.shape) - 1) / 2
    grid = jnp.meshgrid(*(jnp.arange(n) - c for n, c in zip(image.shape, centre, strict=True)),
                        indexing="ij")  # fmt: skip
    grid[0] = jnp.where(flip, -1, 1) * grid[0]
    back = jnp.linalg.inv(matrix)
    moved = [g - s for g, s in zip(grid, shift, strict=True)]
    source = [
        back[row, 0] * moved[0] + back[row, 1] * moved[1] + back[row, 2] * moved[2] + centre[row]
        for row in range(3)
    ]
    return (
        map_coordinates(image, source, order=1, mode="constant", cval=fill_hu),
        map_coordinates(label, source, order=0, mode="constant", cval=0),
    )


def worn_masks(
    keys: jax.Array,
    label: jax.Array,
    image: jax.Array,
    *,
    spacing_mm: float,
    sacrum: float = 0.3,
) -> jax.Array:
    """Make true masks look like those that an earlier network predicts.

    Outlines move in and out by about a voxel, patches are missing, and patches brighter than 60 to
    200 HU that are no vertebra are added. Some masks also get the voxels of that brightness within
    25 to 50 mm below the last lumbar vertebra: the top of the sacrum, which networks mistake for a
    vertebra. So the network learns not to name the last vertebra by the end of the mask. A fifth of
    the masks stays true, a twentieth is empty.

    Args:
        keys: (b,) PRNG keys, one per cube.
        label: (b, x, y, z) VerSe ids, canonical axes.
        image: (b, x, y, z) HU.
        spacing_mm: of the voxels.
        sacrum: share of masks with the top of the sacrum, at most 0.75.

    Returns:
        (b, x, y, z) bool.
    """

    def one(key: jax.Array, label: jax.Array, image: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 8)
        mask = label > 0

        def blobs(key: jax.Array, voxels: int) -> jax.Array:
            coarse = [-(-n // voxels) + 1 for n in mask.shape]
            return jax.image.resize(jax.random.normal(key, coarse), mask.shape, "linear")

        ones = mask.astype(jnp.float32)
        soft = lax.reduce_window(ones, 0.0, lax.add, (3, 3, 3), (1, 1, 1), "SAME") / 27.0
        outline = 0.5 + either_way(keys[0], 0.2, ()) + 0.25 * blobs(keys[1], 4)
        outline = jnp.clip(outline, 0.05, 0.95)
        missing = blobs(keys[2], 8) > jax.random.uniform(keys[3], minval=1.2, maxval=3.0)
        level, bright = jax.random.uniform(keys[5], (2,))
        reach, share = jax.random.uniform(keys[7], (2,))
        below = _below_lumbar(label, spacing_mm, 25.0 + 25.0 * reach) & (share < sacrum / 0.75)
        added = (blobs(keys[4], 8) > 1.0 + 1.5 * level) | below
        added &= image > 60.0 + 140.0 * bright
        worn = ((soft > outline) & ~missing) | added
        kind = jax.random.uniform(keys[6])
        return jnp.where(kind < 0.2, mask, worn & (kind < 0.95))

    return jax.vmap(one)(keys, label, image)


def _below_lumbar(label: jax.Array, spacing_mm: float, reach_mm: jax.Array) -> jax.Array:
    """Return the mask (x, y, z) of voxels up to `reach_mm` below the lowest lumbar centre."""
    last = jnp.max(jnp.where((label >= _L1) & (label <= _L6), label, 0))
    of_last = (label == last) & (last > 0)
    count = jnp.maximum(jnp.sum(of_last), 1)
    axes = [jnp.arange(n, dtype=jnp.float32) for n in label.shape]
    grid = jnp.meshgrid(*axes, indexing="ij")
    away = [spacing_mm * (g - jnp.sum(jnp.where(of_last, g, 0.0)) / count) for g in grid]
    near = away[0] ** 2 + away[1] ** 2 + away[2] ** 2 < reach_mm**2
    return near & (away[2] < 0.0) & (last > 0)
