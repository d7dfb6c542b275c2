"""Outlines of single vertebrae: which voxels of a cube belong to the vertebra that is marked.

This is the third step of Payer et al. (VISAPP 2020): a cube of each vertebra, with a second channel
that marks the centre of its body. Neighbours that touch are told apart by their place alone.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from spinejax import augment
from spinejax.data import normalise, preprocess
from spinejax.data.cache import CachedCase
from spinejax.data.cube_feed import OutlineFeed
from spinejax.data.feeds import Feed
from spinejax.metrics.body_centres import body_centres
from spinejax.phantom import online
from spinejax.tasks import record
from spinejax.tasks.record import OutlineTask

MARK_MM = 8.0
"""Standard deviation of the mark, a Gaussian of height 1: about half of the smallest distance
between the centres of two bodies."""


def build(config: ConfigDict, axis_name: str | None) -> OutlineTask:
    """Return the task: cubes of one vertebra each, all other vertebrae are background.

    The mark lies at the same place of every cube, `data.cube.shift_mm` before the cube's centre. In
    training the cube, and so the mark, is displaced by `data.cube.jitter_mm`.
    """
    model = record.network(config, axis_name, out_channels=1, of="cubes")
    x, y, z = config.data.cube.size
    size = (x, y, z)
    record.check_stride(config, model)
    how = preprocess.from_config(config.data)
    mode = config.data.normalise
    arrays = record.arrays_of(config, partial(augment.augment_cubes, fill_hu=how.fill_hu))
    shift = np.array([0.0, *config.data.cube.shift_mm]) / how.spacing_mm
    mark = _mark(size, -shift, MARK_MM / how.spacing_mm)

    def network_input(image_hu: jax.Array, stats: jax.Array) -> jax.Array:
        x = normalise.network_input(image_hu, mode, how.range_hu, stats[:, None])
        return jnp.stack([x, jnp.broadcast_to(mark, x.shape)], -1)

    loss, probability = record.foreground(config, model, arrays, network_input, axis_name)

    def feed(split: Mapping[str, Sequence[CachedCase]]) -> Feed:
        make = partial(
            OutlineFeed,
            size=size,
            shift=shift,
            jitter=config.data.cube.jitter_mm / how.spacing_mm,
            centres=body_centres,
            **record.feed_options(config),
        )
        return online.feed(config, split, make)

    return OutlineTask(
        model=model,
        input_shape=(*size, 2),
        sample_shape=size,
        init=record.initial(model, (*size, 2)),
        loss=loss,
        stream=online.of_outlines(config, size),
        feed=feed,
        sample="cubes",
        overlap="Dice",
        probability=probability,
    )


def _mark(size: tuple[int, int, int], place: np.ndarray, sigma: float) -> np.ndarray:
    """Return a Gaussian at `place`, in voxels from the centre of a cube, (x, y, z) float32."""
    axes = [np.arange(n) - (n - 1) / 2 - at for n, at in zip(size, place, strict=True)]
    x, y, z = (np.exp(-0.5 * (axis / sigma) ** 2) for axis in axes)
    return (x[:, None, None] * y[:, None] * z).astype(np.float32)
