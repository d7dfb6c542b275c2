"""Recognition of vertebrae in cubes: the name of the vertebra at every voxel (paper A)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from spinejax import augment, labels, losses
from spinejax.data import normalise, preprocess
from spinejax.data.cache import CachedCase
from spinejax.data.cube_feed import CubeFeed
from spinejax.data.feeds import Feed
from spinejax.phantom import online
from spinejax.tasks import record
from spinejax.tasks.record import Keys, LossAux, NameTask

_WORN = 7  # makes the keys of masks differ from the keys of augmentation


def build(config: ConfigDict, axis_name: str | None) -> NameTask:
    """Return the task: cubes of background, C1 to L6 and T13 (paper A, sections 3.8 and 4.3.2).

    A voxel of a vertebra is right if it gets the name of that vertebra. With the name of another
    vertebra it counts as a false positive and as a false negative.

    With `data.cube.spine_prior="channel"` the network sees the mask of the spine beside the image:
    the true mask in validation, with the faults of a predicted mask in training.

    With `loss.offset_weight` above 0 the network also learns the offset of each voxel to the centre
    of its vertebra, which separates vertebrae that touch.
    """
    offset_weight = config.loss[losses.OFFSET_WEIGHT]
    out_channels = labels.NUM_CLASSES + (3 if offset_weight else 0)
    model = record.network(config, axis_name, out_channels=out_channels, of="cubes")
    auxiliary = record.auxiliary_weight(config, model)
    x, y, z = config.data.cube.size
    size = (x, y, z)
    record.check_stride(config, model)
    how = preprocess.from_config(config.data)
    seen = config.data.cube.spine_prior == "channel"
    sacrum = config.data.cube.prior_sacrum
    mode = config.data.normalise
    loss_fn = losses.make_loss(config.loss)
    arrays = record.arrays_of(config, partial(augment.augment_cubes, fill_hu=how.fill_hu))
    class_of = np.zeros(labels.MAX_ID + 1, np.int32)
    class_of[list(labels.VERSE_IDS)] = labels.to_contiguous(np.array(labels.VERSE_IDS))

    def network_input(image_hu: jax.Array, stats: jax.Array, spine: jax.Array) -> jax.Array:
        x = normalise.network_input(image_hu, mode, how.range_hu, stats[:, None])
        return jnp.stack([x, spine.astype(x.dtype)], -1) if seen else x[..., None]

    def loss(
        params: Any, batch_stats: Any, batch: Mapping[str, jax.Array], keys: Keys | None
    ) -> tuple[jax.Array, LossAux]:
        image, label = arrays(batch, keys)
        truth = jnp.asarray(class_of)[label]
        spine = truth > 0
        if seen and keys is not None:
            own = jax.vmap(lambda key: jax.random.fold_in(key, _WORN))(keys.augment)
            spine = augment.worn_masks(own, label, image, spacing_mm=how.spacing_mm, sacrum=sacrum)
        x = network_input(image, batch["stats"], spine)
        logits, out, batch_stats = record.apply(model, params, batch_stats, x, keys)
        weight = batch["weight"]
        common: dict[str, Any] = dict(weight=weight, axis_name=axis_name)
        value = jnp.zeros(())
        for each in record.learnt(logits, out):
            classes, offsets = jnp.split(each, [labels.NUM_CLASSES], -1)
            value += loss_fn(classes, truth, **common)
            if offset_weight:
                error = losses.offset_error(offsets, truth, spacing_mm=how.spacing_mm, **common)
                value += offset_weight * error
        if auxiliary:
            # Beside the classes there may be channels of offsets.
            nodes = out["auxiliary"][..., : labels.NUM_CLASSES]
            value += auxiliary * losses.ce(nodes, truth, **common)
        found = jnp.argmax(logits[..., : labels.NUM_CLASSES], -1)
        return value, LossAux(batch_stats, _counts(found, truth, weight), found > 0)

    def class_probability(
        variables: Mapping[str, Any], image_hu: jax.Array, spine: jax.Array, stats: jax.Array
    ) -> jax.Array:
        x = network_input(image_hu.astype(jnp.float32), stats, spine)
        logits, _ = model.apply(dict(variables), x, train=False)
        logits, offsets = jnp.split(logits.astype(jnp.float32), [labels.NUM_CLASSES], -1)
        return jnp.concatenate([jax.nn.softmax(logits), offsets], -1)

    def feed(split: Mapping[str, Sequence[CachedCase]]) -> Feed:
        make = partial(CubeFeed, size=size, **record.feed_options(config))
        return online.feed(config, split, make)

    return NameTask(
        model=model,
        input_shape=(*size, 1 + seen),
        sample_shape=size,
        init=record.initial(model, (*size, 1 + seen)),
        loss=loss,
        stream=online.of_cubes(config, size),
        feed=feed,
        sample="cubes",
        overlap="Dice",
        class_probability=class_probability,
    )


def _counts(found: jax.Array, truth: jax.Array, weight: jax.Array) -> jax.Array:
    """Return `LossAux.sums` of (b, x, y, z) classes."""
    right = found == truth
    cells = (right & (truth > 0), ~right & (found > 0), ~right & (truth > 0), right & (truth == 0))
    sums = jnp.stack([jnp.sum(c, axis=(1, 2, 3), dtype=jnp.float32) for c in cells], axis=-1)
    return sums * weight[:, None]
