"""Learning-rate schedules and optimisers, built from names and numbers.

The learning rate may follow the batch, see `scaled_rate`. The warm-up begins near zero; that of
Goyal et al. (2017, section 2.2) begins at the rate that is not scaled.

Learning rate, momentum and weight decay may be traced scalars instead of numbers, so that one
compiled step serves many settings (`spinejax.training.search`).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from spinejax import schema
from spinejax.errors import InputError


def _constant(learning_rate: float, **_: Any) -> optax.Schedule:
    return optax.constant_schedule(learning_rate)


def _cosine(learning_rate: float, *, decay_steps: int, **_: Any) -> optax.Schedule:
    return optax.cosine_decay_schedule(learning_rate, decay_steps)


def _step(learning_rate: float, *, every: int, factor: float, **_: Any) -> optax.Schedule:
    return optax.exponential_decay(learning_rate, every, factor, staircase=True)


def _exponential(learning_rate: float, *, every: int, factor: float, **_: Any) -> optax.Schedule:
    return optax.exponential_decay(learning_rate, every, factor)


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "step": _step,
    "exponential": _exponential,
}


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    decay_every_steps: int = 1,
    decay_factor: float = 1.0,
) -> optax.Schedule:
    """Return `step -> learning rate`.

    With w = `warmup_steps`, step t < w uses base(0) (t + 1) / (w + 1) and step t >= w uses
    base(t - w), where base is

    * constant: `learning_rate`
    * cosine: `learning_rate` (1 + cos(pi t / (total_steps - w))) / 2 (Loshchilov and Hutter 2017,
      eq. 5, one period)
    * step: `learning_rate` `decay_factor` ** floor(t / `decay_every_steps`)
    * exponential: the same without the floor

    Raises:
        InputError: unknown name, or a warm-up as long as the run.
    """
    schema.check_value("optim.schedule", name)
    if warmup_steps >= total_steps:
        raise InputError(
            f"optim.warmup_steps={warmup_steps} leaves no step of the run's {total_steps}; lower "
            "it, or train longer (train.epochs, train.steps)"
        )
    base = SCHEDULES[name](
        learning_rate,
        decay_steps=total_steps - warmup_steps,
        every=decay_every_steps,
        factor=decay_factor,
    )

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        warm = jnp.minimum(1.0, (jnp.asarray(count) + 1) / (warmup_steps + 1))
        return warm * base(jnp.maximum(count - warmup_steps, 0))

    return schedule


def scaled_rate(fields: Mapping[str, Any], batch_size: int) -> Any:
    """Return the learning rate after the warm-up for a batch.

    With k = `batch_size` / `base_batch_size` it is `learning_rate` times

    * none: 1
    * linear: k (Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.1)
    * sqrt: sqrt(k), which keeps the variance of SGD's updates (Krizhevsky 2014, "One weird trick",
      section 5) and is the rule for Adam of Malladi et al. (2022)

    Args:
        fields: a config's `optim` block; learning_rate may be traced.
        batch_size: samples in an update over all devices and accumulated parts.
    """
    rule = fields["scale_rate"]
    if rule == "none":
        return fields["learning_rate"]
    k = batch_size / fields["base_batch_size"]
    return fields["learning_rate"] * (k if rule == "linear" else math.sqrt(k))


def _is_kernel(params: Any) -> Any:
    """Return True for each kernel; weight decay leaves biases and the scales of norms alone."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _is_zero(value: Any) -> bool:
    """Whether a value is certainly zero; a traced value may be anything later."""
    return not isinstance(value, jax.core.Tracer) and value == 0


def _decay(weight_decay: float) -> optax.GradientTransformation:
    if _is_zero(weight_decay):
        return optax.identity()
    return optax.add_decayed_weights(weight_decay, mask=_is_kernel)


def _adam(schedule: optax.Schedule, *, weight_decay: float, **_: Any) -> Any:
    return optax.chain(_decay(weight_decay), optax.adam(schedule))


def _adamw(schedule: optax.Schedule, *, weight_decay: float, **_: Any) -> Any:
    return optax.adamw(schedule, weight_decay=weight_decay, mask=_is_kernel)


def _sgd(schedule: optax.Schedule, *, weight_decay: float, momentum: float) -> Any:
    kept = None if _is_zero(momentum) else momentum
    return optax.chain(_decay(weight_decay), optax.sgd(schedule, momentum=kept))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
}


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Return the transformation of gradients into updates.

    Gradients are first clipped to the global norm `clip_norm` (0: not at all). `weight_decay` is
    added to the gradient of kernels for adam and sgd (L2) and decoupled for adamw.

    Raises:
        InputError: unknown name.
    """
    schema.check_value("optim.name", name)
    optimizer = OPTIMIZERS[name](schedule, weight_decay=weight_decay, momentum=momentum)
    if clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    return optimizer


def build(
    fields: Mapping[str, Any], *, batch_size: int, total_steps: int, steps_per_epoch: int
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Return schedule and optimiser of a config's `optim` block.

    Args:
        fields: the block; learning_rate, momentum and weight_decay may be traced.
        batch_size: samples in an update, see `scaled_rate`.
        total_steps: of the run.
        steps_per_epoch: updates of an epoch, for `decay_every_epochs`.

    Raises:
        InputError: as `make_schedule` and `make_optimizer`.
    """
    every = round(fields["decay_every_epochs"] * steps_per_epoch)
    schedule = make_schedule(
        fields["schedule"],
        learning_rate=scaled_rate(fields, batch_size),
        total_steps=total_steps,
        warmup_steps=fields["warmup_steps"],
        decay_every_steps=max(1, min(every, schema.LARGEST)),
        decay_factor=fields["decay_factor"],
    )
    optimizer = make_optimizer(
        fields["name"],
        schedule,
        momentum=fields["momentum"],
        weight_decay=fields["weight_decay"],
        clip_norm=fields["clip_norm"],
    )
    return schedule, optimizer
