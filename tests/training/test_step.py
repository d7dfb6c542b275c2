"""One update against the same update written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinejax.tasks import Keys, build_task
from spinejax.training import optim, parallel, step
from spinejax.training.state import TrainState, create_state, initial_variables
from tests.support.devices_run import SIZE, batches
from tests.support.tiny_run import tiny_config

RATE = 0.1


def start(**changes: object):
    """Return (config, a state under SGD, one batch, run(state, batch) -> (state, metrics))."""
    options = {key: changes.pop(key) for key in ("accumulate_steps", "ema_decay") if key in changes}
    quiet = {
        "model.norm": "group",
        "model.dropout": 0.0,
        "augment.geometry": False,
        "augment.intensity": False,
    }
    config = tiny_config("unused", **{**quiet, "data.size": (SIZE, SIZE), **changes})
    task = build_task(config, axis_name=parallel.AXIS)
    schedule = optim.make_schedule("constant", learning_rate=RATE, total_steps=10)
    optimizer = optim.make_optimizer("sgd", schedule, momentum=0.0)
    variables = initial_variables(task.init, jax.random.key(1))
    state = create_state(variables, optimizer, ema=options.get("ema_decay", 0) > 0)
    update = step.make_train_step(task, optimizer, schedule, seed=0, **options)
    mapped = parallel.make_parallel("pmap", 1)
    run = mapped.map(update, sharded=(False, False), donate=False)
    (batch,) = batches(1)
    return config, state, batch, lambda state, batch: run(state, mapped.put(batch))


def test_the_first_variables_are_those_of_jit():
    # Few arrays: it is their number that makes the optimised program long to compile.
    config = tiny_config("unused", **{"data.size": (SIZE, SIZE), "model.widths": (4,)})
    task, key = build_task(config), jax.random.key(3)
    # jax's default; the tests themselves lower it.
    optimised = jax.jit(task.init, compiler_options={"xla_backend_optimization_level": 3})
    jax.tree.map(np.testing.assert_array_equal, initial_variables(task.init, key), optimised(key))


def by_hand(config, state: TrainState, batch) -> tuple[float, object]:
    """Loss and gradient without any mapping."""
    task = build_task(config)
    keys = Keys(jax.random.split(jax.random.key(9), 8), jax.random.key(9))
    loss = task.loss
    (value, _), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        state.params, state.batch_stats, batch, keys
    )
    return float(value), gradient


def assert_trees_close(a, b, tolerance: float = 1e-6) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance), a, b)


def test_an_update_is_minus_rate_times_gradient():
    config, state, batch, run = start()
    loss, gradient = by_hand(config, state, batch)
    new, metrics = run(state, batch)
    assert_trees_close(new.params, jax.tree.map(lambda p, g: p - RATE * g, state.params, gradient))
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert int(new.step) == 1 and metrics["finite"]
    largest = [float(np.abs(g).max()) for g in jax.tree.leaves(gradient)]
    np.testing.assert_allclose(metrics["leaf_max"], largest, rtol=1e-4, atol=1e-7)


def test_accumulated_gradients_are_the_mean_over_the_microbatches():
    cross_entropy = {"loss.name": "ce"}
    _, state, batch, run = start(**cross_entropy)
    _, _, _, accumulated = start(**cross_entropy, accumulate_steps=4)
    whole, parts = run(state, batch), accumulated(state, batch)
    # Parts of equal size: the mean of their cross entropies is that of the whole.
    assert_trees_close(whole[0].params, parts[0].params)
    assert whole[1]["loss"] == pytest.approx(float(parts[1]["loss"]), rel=1e-5)
    assert whole[1]["dice"] == pytest.approx(float(parts[1]["dice"]), rel=1e-5)


def test_the_average_follows_with_its_decay():
    _, state, batch, run = start(ema_decay=0.15)
    first, _ = run(state, batch)
    second, _ = run(first, batch)
    # Decays min(0.15, (1 + t) / (10 + t)): 0.1 at step 0, then 0.15.
    mean = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, state.params, first.params)
    assert_trees_close(first.ema, mean)
    mean = jax.tree.map(lambda a, b: 0.15 * a + 0.85 * b, mean, second.params)
    assert_trees_close(second.ema, mean)


def test_augmentation_hangs_on_the_position_and_not_on_the_row():
    _, state, batch, run = start(
        **{"augment.geometry": True, "augment.intensity": True, "loss.name": "ce"}
    )
    loss = run(state, batch)[1]["loss"]
    order = np.random.default_rng(3).permutation(8)
    shuffled = {name: value[order] for name, value in batch.items()}
    assert run(state, shuffled)[1]["loss"] == pytest.approx(float(loss), rel=1e-5)
    moved = {**batch, "position": batch["position"][::-1].copy()}
    assert run(state, moved)[1]["loss"] != pytest.approx(float(loss), rel=1e-5)
    later = state.replace(step=jnp.int32(1))
    assert run(later, batch)[1]["loss"] != pytest.approx(float(loss), rel=1e-5)


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters():
    _, state, batch, run = start()
    _, _, _, half = start(**{"train.compute_dtype": "bfloat16"})
    (a, m), (b, n) = run(state, batch), half(state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(b.params)} == {np.dtype("float32")}
    assert n["loss"] == pytest.approx(float(m["loss"]), rel=0.02)
    assert_trees_close(a.params, b.params, tolerance=0.02)


def test_remat_changes_nothing_but_rounding():
    _, state, batch, run = start()
    _, _, _, remat = start(**{"train.remat": True})
    assert_trees_close(run(state, batch)[0].params, remat(state, batch)[0].params)


@pytest.mark.parametrize("where", ["batch", "parameters"])
def test_what_is_not_finite_is_flagged(where):
    _, state, batch, run = start()
    if where == "batch":
        batch = {**batch, "weight": np.full(8, np.nan, np.float32)}
    else:
        # The loss and the gradients are still finite here, the new parameters are not.
        params = jax.tree.map(lambda p: jnp.full_like(p, 3.4e38), state.params)
        state = state.replace(params=params)
    assert not run(state, batch)[1]["finite"]


def test_pooled_dice_is_of_the_sums():
    assert step.pooled_dice(np.array([6.0, 2.0, 2.0])) == 2 * 6 / (2 * 6 + 2 + 2)
    np.testing.assert_array_equal(step.pooled_dice(np.zeros((2, 3))), 1.0)
    assert step.pooled_dice(np.array([0.0, 1.0, 0.0])) == 0.0


def test_keys_of_different_names_differ_and_do_not_change():
    a, b = step.named_key(0, "augment"), step.named_key(0, "dropout")
    assert not np.array_equal(jax.random.key_data(a), jax.random.key_data(b))
    # Written down: a run must resume with the same keys under another version of this code.
    bits = int(jax.random.bits(step.named_key(0, "augment")))
    assert bits == AUGMENT_BITS


AUGMENT_BITS = 448113660


def test_parameters_are_named_by_their_path():
    params = {"conv": {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)}}
    assert step.parameter_names(params) == ["conv/bias", "conv/kernel"]
