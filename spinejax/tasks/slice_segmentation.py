"""Binary segmentation of slices: vertebra or not (paper A)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from spinejax import augment, schema
from spinejax.data import normalise, preprocess
from spinejax.data.cache import CachedCase
from spinejax.data.feeds import Feed
from spinejax.data.slice_feed import SliceFeed
from spinejax.errors import InputError
from spinejax.inference import windows2d
from spinejax.inference.masks import StackPredictor
from spinejax.phantom import online
from spinejax.tasks import record
from spinejax.tasks.record import MaskTask


def build(config: ConfigDict, axis_name: str | None) -> MaskTask:
    """Return the task of a config, see the module.

    A network without parameters (`Network.LEARNS`) reads all slices of a scan at once.
    """
    model = record.network(config, axis_name, out_channels=1, of="slices")
    size = tuple(config.data.size)
    if any(side % model.stride for side in size):
        raise InputError(
            f"data.size={size} must be multiples of {model.stride}, the stride of model "
            f"{config.model.name!r}"
        )
    how = preprocess.from_config(config.data)
    if not model.LEARNS:
        _check_whole(config)
    mode = config.data.normalise
    neighbours = config.data.neighbours
    channels = 2 * neighbours + 1
    arrays = record.arrays_of(
        config, partial(augment.augment, plane=how.plane, fill_hu=how.fill_hu)
    )

    def network_input(image_hu: jax.Array, stats: jax.Array) -> jax.Array:
        if not neighbours:
            image_hu = image_hu[..., None]
        return normalise.network_input(image_hu, mode, how.range_hu, stats[:, None])

    loss, probability = record.foreground(config, model, arrays, network_input, axis_name)

    def feed(split: Mapping[str, Sequence[CachedCase]]) -> Feed:
        free = config.data.spine_free_fraction
        make = partial(
            SliceFeed,
            size=size,
            spine_free_fraction=free,
            neighbours=neighbours,
            **record.feed_options(config),
        )
        return online.feed(config, split, make)

    def stack_predictor(variables: Mapping[str, Any]) -> StackPredictor:
        if not model.LEARNS:
            return windows2d.make_whole_predictor(probability, variables)
        return windows2d.make_stack_predictor(
            probability,
            variables,
            window=(size[0], size[1]),
            overlap=config.predict.overlap,
            batch_size=config.predict.batch_size,
            fill=int(how.fill_hu),
        )

    return MaskTask(
        model=model,
        # A single grey slice is repeated to the network's channels.
        input_shape=(*size, channels if neighbours else config.model.get("in_channels", 1)),
        sample_shape=(size[0], size[1]),
        init=record.initial(model, (*size, channels)),
        loss=loss,
        stream=online.of_slices(config),
        feed=feed,
        probability=probability,
        stack_predictor=stack_predictor,
        least_side=model.stride,
        whole=not model.LEARNS,
        sample="slices",
        overlap="Dice",
        neighbours=neighbours,
    )


def _check_whole(config: ConfigDict) -> None:
    """Raise InputError unless a scan can be read whole, as cubic voxels."""
    for path, needed in (
        ("data.preprocess.mode", "resample"),
        ("data.preprocess.intensity", "clamp"),
        ("predict.search", "full"),
        ("data.neighbours", 0),
    ):
        value = schema.flatten(config)[path]
        if value != needed:
            raise InputError(
                f"{path}={value!r} must be {needed!r}: model {config.model.name!r} reads a whole "
                "scan of cubic voxels at once"
            )
