"""Classification of patches, and of pixels by the patches around them (paper B).

The layers of a PaDBN are pretrained on the same patches, without their labels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from spinejax import augment, losses
from spinejax.data import normalise, preprocess
from spinejax.data.cache import CachedCase
from spinejax.data.feeds import Feed
from spinejax.data.patch_feed import PatchFeed
from spinejax.errors import InputError
from spinejax.inference import patch_scan
from spinejax.inference.masks import StackPredictor
from spinejax.models import padbn
from spinejax.models.padbn import PaDBN
from spinejax.phantom import online
from spinejax.tasks import record
from spinejax.tasks.record import Keys, Loss, LossAux, MaskTask

_GIBBS = 11  # makes the keys of Gibbs sampling differ from the keys of augmentation


def build(config: ConfigDict, axis_name: str | None) -> MaskTask:
    """Return the task: square patches, and pixels by their patches, are vertebra or not.

    The label of a patch follows from its pixels after augmentation, which may turn and shift them.
    The patch of a pixel is the one with the pixel in row and column n // 2.

    With `data.patches.label_rule="redundant"` the network tells four classes apart, two of
    background and two of vertebra. What counts as found is the more probable pair.

    Raises:
        InputError: the fields of the network, the labels or the pretraining do not fit.
    """
    n = config.data.patches.size
    label_of, classes = _labels(config)
    model = record.network(config, axis_name, out_channels=classes, of="patches")
    how = preprocess.from_config(config.data)
    mode = config.data.normalise
    loss_fn = losses.make_loss(config.loss)
    arrays = record.arrays_of(
        config, partial(augment.augment, plane=how.plane, fill_hu=how.fill_hu)
    )
    moves = {k: config.augment[k] for k in ("scale", "rotation_deg", "translation_px")}
    margin = _margin(n, **moves) if config.augment.geometry else 0

    def to_input(image_hu: jax.Array, stats: jax.Array) -> jax.Array:
        return normalise.network_input(image_hu, mode, how.range_hu, stats)

    def patches(batch: Mapping[str, jax.Array], keys: Keys | None) -> tuple[jax.Array, jax.Array]:
        """Return the network's input (b, n, n, 1) and the foreground (b, n, n)."""
        image, label = arrays(batch, keys)
        border = (image.shape[1] - n) // 2
        inner = slice(border, border + n)
        x = to_input(image[:, inner, inner], batch["stats"])[..., None]
        return x, label[:, inner, inner] > 0

    def loss(
        params: Any, batch_stats: Any, batch: Mapping[str, jax.Array], keys: Keys | None
    ) -> tuple[jax.Array, LossAux]:
        x, foreground = patches(batch, keys)
        truth = label_of(foreground)
        logits, _, batch_stats = record.apply(model, params, batch_stats, x, keys)
        weight = batch["weight"]
        value = loss_fn(logits, truth, weight=weight, axis_name=axis_name)
        # Probabilities add up within each half of the classes.
        halves = jax.nn.logsumexp(logits.reshape(-1, 2, classes // 2), axis=-1)
        found = halves[:, 1] > halves[:, 0]
        sums = record.counts(found, truth >= classes // 2, weight)
        return value, LossAux(batch_stats, sums, found)

    pretrains = isinstance(model, PaDBN) and model.rbm > 0
    if pretrains and mode != "unit":
        raise InputError(
            f"data.normalise={mode} with model.rbm={model.rbm}: the units of an RBM lie in [0, 1]; "
            "set data.normalise=unit"
        )
    init = record.initial(model, (n, n, 1))

    def feed(split: Mapping[str, Sequence[CachedCase]]) -> Feed:
        make = partial(
            PatchFeed,
            **config.data.patches,
            val_fraction=config.data.val_fraction,
            split_seed=config.data.split_seed,
            margin=margin,
            **record.feed_options(config),
        )
        return online.feed(config, split, make)

    def check_labels_seen() -> None:
        if pretrains:
            raise InputError(
                f"this run pretrained layer {model.rbm} of a PaDBN and has seen no labels; train "
                "the classifier: --config=opconvnet:net=padbn --config.train.init_from=RUN"
            )

    # As in `patch_scan`.
    @jax.default_matmul_precision("float32")
    def probability(
        variables: Mapping[str, Any], image_hu: jax.Array, stats: jax.Array
    ) -> jax.Array:
        check_labels_seen()
        x = to_input(image_hu, stats)[..., None]
        logits, _ = model.apply(dict(variables), x, train=False)
        halves = jax.nn.logsumexp(logits.reshape(-1, 2, classes // 2), axis=-1)
        return jax.nn.sigmoid(halves[:, 1] - halves[:, 0])

    def stack_predictor(variables: Mapping[str, Any]) -> StackPredictor:
        check_labels_seen()
        return patch_scan.make_stack_predictor(
            model,
            variables,
            patch=n,
            to_input=to_input,
            fill_hu=int(how.fill_hu),
            padding=config.predict.padding,
            batch_size=config.predict.batch_size,
        )

    return MaskTask(
        model=model,
        input_shape=(n, n, 1),
        sample_shape=(n + 2 * margin, n + 2 * margin),
        init=init,
        loss=_pretraining(model, patches, axis_name) if pretrains else loss,
        stream=online.of_patches(config, n, margin),
        feed=feed,
        probability=probability,
        stack_predictor=stack_predictor,
        least_side=1,
        sample="patches",
        overlap="F-score",
    )


def _pretraining(
    model: PaDBN,
    patches: Callable[[Mapping[str, jax.Array], Keys | None], tuple[jax.Array, jax.Array]],
    axis_name: str | None,
) -> Loss:
    """Return the loss of layer `model.rbm` as an RBM on the activations below it.

    Its value is the mean squared error of the reconstruction, in training and in validation. Its
    gradient is that of CD-1. The counts compare units above one half with their reconstruction.
    """

    def loss(
        params: Any, batch_stats: Any, batch: Mapping[str, jax.Array], keys: Keys | None
    ) -> tuple[jax.Array, LossAux]:
        x, _ = patches(batch, keys)
        _, activations = model.apply({"params": params}, x)
        below = activations[f"hidden_{model.rbm - 1}"] if model.rbm > 1 else x.reshape(len(x), -1)
        visible = jax.lax.stop_gradient(below.astype(jnp.float32))
        rbm, weight = padbn.rbm_of(params, model.rbm), batch["weight"]
        again = padbn.reconstruction(rbm, visible)
        value = losses.weighted_mean((again - visible) ** 2, weight, axis_name)
        if keys is not None:
            own = jax.vmap(jax.random.fold_in, (0, None))(keys.augment, _GIBBS)
            divergence = padbn.contrastive_divergence(rbm, visible, own)
            steered = losses.weighted_mean(divergence, weight, axis_name)
            value = steered + jax.lax.stop_gradient(value - steered)
        found = again > 0.5
        return value, LossAux(batch_stats, record.counts(found, visible > 0.5, weight), found)

    return loss


def _labels(config: ConfigDict) -> tuple[Callable[[jax.Array], jax.Array], int]:
    """Return foreground (b, n, n) bool -> classes (b,) int32, and the number of classes.

    The first half of the classes is background.
    """
    label_of = PATCH_LABELS[config.data.patches.label_rule]
    if label_of is not _redundant:
        return label_of, 2
    n, how, distances = config.data.patches.size, config.data.preprocess, config.data.redundant
    if how.mode != "resample":
        raise InputError(
            f"data.patches.label_rule=redundant with data.preprocess.mode={how.mode}: distances in "
            "mm need pixels of one size; set data.preprocess.mode=resample"
        )
    reach = (n - 1 - n // 2) * how.spacing_mm
    for name, value in distances.items():
        if value > reach:
            raise InputError(
                f"data.redundant.{name}={value:g} must be at most {reach:g} mm, as far as a patch "
                f"of {n} pixels of {how.spacing_mm:g} mm reaches from its central pixel"
            )
    edge_mm, near_mm = distances.edge_mm, distances.near_mm
    return partial(label_of, pixel_mm=how.spacing_mm, edge_mm=edge_mm, near_mm=near_mm), 4


def _majority(foreground: jax.Array) -> jax.Array:
    """Return whether more than half of the pixels are foreground."""
    pixels = foreground.shape[1] * foreground.shape[2]
    return (2 * foreground.sum((1, 2)) > pixels).astype(jnp.int32)


def _centre(foreground: jax.Array) -> jax.Array:
    """Return whether the pixel of row and column n // 2 is foreground."""
    n = foreground.shape[1]
    return foreground[:, n // 2, n // 2].astype(jnp.int32)


def _redundant(
    foreground: jax.Array, *, pixel_mm: float, edge_mm: float, near_mm: float
) -> jax.Array:
    """Return the class of the central pixel by its distance to the nearest pixel across the edge.

    Args:
        foreground: (b, n, n) bool.
        pixel_mm: side of a pixel.
        edge_mm: foreground at most this far from background is edge.
        near_mm: background at most this far from foreground is near.

    Returns:
        (b,) int32: 0 deep background, 1 near background, 2 interior, 3 edge.
    """
    n = foreground.shape[1]
    centre = foreground[:, n // 2, n // 2]
    across = foreground != centre[:, None, None]
    steps = np.arange(n) - n // 2
    # Sums of rounded products exceed a distance by some ulps.
    distance_mm = np.hypot(steps[:, None], steps) * pixel_mm * (1 - 1e-9)

    def within(limit_mm: float) -> jax.Array:
        return (across & (distance_mm <= limit_mm)).any((1, 2))

    return jnp.where(centre, 2 + within(edge_mm), within(near_mm)).astype(jnp.int32)


PATCH_LABELS: dict[str, Callable[..., jax.Array]] = {
    "majority": _majority,
    "centre": _centre,
    "redundant": _redundant,
}
"""Class of a patch, (b, n, n) bool -> (b,) int32; paper B, section II.B, uses the majority, 513 of
1024 pixels."""


def _margin(
    n: int, *, scale: tuple[float, float], rotation_deg: float, translation_px: float
) -> int:
    """Return how many pixels around a patch augmentation may move into it."""
    angle = math.radians(min(rotation_deg, 45.0))
    half = (n - 1) / 2  # to the centre of the outermost pixel
    # A shift along both axes is turned, too.
    reach = (half + translation_px) * (math.cos(angle) + math.sin(angle)) / min(scale)
    return max(0, math.ceil(reach - half + 0.01))  # 0.01: rounding on the device
