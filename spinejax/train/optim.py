"""Learning-rate schedules and optimisers, built from names and numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from spinejax.choices import check_choice
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
        InputError: unknown name, or a warm-up that leaves nothing of the run.
    """
    check_choice("optim.schedule", name, SCHEDULES)
    if warmup_steps >= total_steps:
        raise InputError(
            f"optim.warmup_steps={warmup_steps} leaves nothing of the run of {total_steps} steps; "
            "lower it, or train longer (train.epochs, train.steps)"
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


def _is_kernel(params: Any) -> Any:
    """Weight decay is for kernels only, not for biases and the scales of norms."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _decay(weight_decay: float) -> optax.GradientTransformation:
    if weight_decay == 0:
        return optax.identity()
    return optax.add_decayed_weights(weight_decay, mask=_is_kernel)


def _adam(schedule: optax.Schedule, *, weight_decay: float, **_: Any) -> Any:
    return optax.chain(_decay(weight_decay), optax.adam(schedule))


def _adamw(schedule: optax.Schedule, *, weight_decay: float, **_: Any) -> Any:
    return optax.adamw(schedule, weight_decay=weight_decay, mask=_is_kernel)


def _sgd(schedule: optax.Schedule, *, weight_decay: float, momentum: float) -> Any:
    return optax.chain(_decay(weight_decay), optax.sgd(schedule, momentum=momentum or None))


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
    check_choice("optim.name", name, OPTIMIZERS)
    optimizer = OPTIMIZERS[name](schedule, weight_decay=weight_decay, momentum=momentum)
    if clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
    return optimizer
