"""Schedules and optimisers against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spinejax import schema
from spinejax.errors import InputError
from spinejax.training import optim


def values(name: str, steps: int, **options: object) -> np.ndarray:
    schedule = optim.make_schedule(name, learning_rate=0.5, total_steps=steps, **options)
    return np.array([schedule(jnp.int32(t)) for t in range(steps)])


def test_constant_schedule_does_not_move():
    np.testing.assert_allclose(values("constant", 4), 0.5)


def test_cosine_falls_from_the_rate_to_zero():
    t = np.arange(10)
    np.testing.assert_allclose(values("cosine", 10), 0.25 * (1 + np.cos(np.pi * t / 10)), rtol=1e-6)


def test_step_schedule_multiplies_at_whole_intervals():
    got = values("step", 7, decay_every_steps=3, decay_factor=0.1)
    np.testing.assert_allclose(got, 0.5 * 0.1 ** np.array([0, 0, 0, 1, 1, 1, 2]), rtol=1e-5)


def test_exponential_schedule_multiplies_between_too():
    got = values("exponential", 5, decay_every_steps=2, decay_factor=0.25)
    np.testing.assert_allclose(got, 0.5 * 0.25 ** (np.arange(5) / 2), rtol=1e-5)


def test_warmup_rises_linearly_and_then_starts_the_schedule():
    got = values("cosine", 9, warmup_steps=3)
    after = 0.25 * (1 + np.cos(np.pi * np.arange(6) / 6))
    np.testing.assert_allclose(got[:3], 0.5 * np.array([1, 2, 3]) / 4, rtol=1e-6)
    np.testing.assert_allclose(got[3:], after, rtol=1e-6)


def test_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(InputError, match="optim.warmup_steps=9 leaves no step"):
        values("cosine", 9, warmup_steps=9)


@pytest.mark.parametrize(
    ("rule", "batch", "rate"),
    [
        ("none", 8192, 0.1),
        ("linear", 8192, 3.2),  # Goyal et al. 2017, section 5.1: 0.1 kn / 256
        ("sqrt", 1024, 0.2),
        ("linear", 64, 0.025),
    ],
)
def test_the_rate_follows_the_batch(rule, batch, rate):
    fields = {"learning_rate": 0.1, "scale_rate": rule, "base_batch_size": 256}
    assert optim.scaled_rate(fields, batch) == pytest.approx(rate)
    schedule, _ = optim.build(
        {
            **schema.defaults()["optim"],
            **fields,
            "schedule": "constant",
            "warmup_steps": 3,
        },
        batch_size=batch,
        total_steps=10,
        steps_per_epoch=5,
    )
    np.testing.assert_allclose(
        [schedule(t) for t in range(5)], rate * np.minimum(1, (np.arange(5) + 1) / 4), rtol=1e-6
    )


def updates(name: str, gradients: list[np.ndarray], start: np.ndarray, **options: float):
    optimizer = optim.make_optimizer(name, optax.constant_schedule(0.1), **options)
    params = {"kernel": jnp.asarray(start)}
    state = optimizer.init(params)
    for gradient in gradients:
        update, state = optimizer.update({"kernel": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, update)
    return np.asarray(params["kernel"])


GRADIENTS = [np.array([[1.0, -2.0]]), np.array([[0.5, 3.0]]), np.array([[-1.0, 0.25]])]
START = np.array([[0.3, -0.7]])


def adam_by_hand(start: np.ndarray, l2: float = 0.0, decoupled: float = 0.0) -> np.ndarray:
    p, m, v = start.copy(), 0.0, 0.0
    for t, gradient in enumerate(GRADIENTS, 1):
        g = gradient + l2 * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        p = p - 0.1 * (step + decoupled * p)
    return p


# Adam in float32 takes 1 - 0.999 ** t with a relative error of some 1e-5.


def test_adam_is_the_published_rule():
    np.testing.assert_allclose(updates("adam", GRADIENTS, START), adam_by_hand(START), atol=1e-5)


def test_adam_adds_weight_decay_to_the_gradient_and_adamw_to_the_update():
    got = updates("adam", GRADIENTS, START, weight_decay=0.2)
    np.testing.assert_allclose(got, adam_by_hand(START, l2=0.2), atol=1e-5)
    got = updates("adamw", GRADIENTS, START, weight_decay=0.2)
    np.testing.assert_allclose(got, adam_by_hand(START, decoupled=0.2), atol=1e-5)


def test_sgd_has_momentum():
    p, velocity = START.copy(), 0.0
    for gradient in GRADIENTS:
        velocity = 0.9 * velocity + gradient
        p = p - 0.1 * velocity
    np.testing.assert_allclose(updates("sgd", GRADIENTS, START, momentum=0.9), p, rtol=1e-5)


def test_gradients_are_clipped_to_the_global_norm():
    got = updates("sgd", [np.array([[3.0, 4.0]])], START, momentum=0.0, clip_norm=1.0)
    np.testing.assert_allclose(got, START - 0.1 * np.array([[0.6, 0.8]]), rtol=1e-6)


def test_weight_decay_leaves_biases_alone():
    optimizer = optim.make_optimizer("sgd", optax.constant_schedule(1.0), weight_decay=0.5)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    update, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(update["kernel"], -0.5)
    np.testing.assert_allclose(update["bias"], 0.0)


def test_unknown_names_are_answered_with_the_choices_and_the_closest():
    with pytest.raises(InputError, match=r"optim.name = 'adma' .*adam.*did you mean 'adam'"):
        optim.make_optimizer("adma", optax.constant_schedule(1.0))
    with pytest.raises(InputError, match=r"optim.schedule = 'cosin'.*did you mean 'cosine'"):
        values("cosin", 3)
