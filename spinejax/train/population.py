"""Training several settings at once: one compiled step for all, mapped over their numbers.

The members of a population differ in learning rate, momentum and weight decay only. They share the
seed and the batches, hence the initial parameters, the augmentation and the dropout: each is what
`loop.train` gives with its numbers in the config, up to rounding. What they share is read,
transferred and augmented once. A small network alone leaves an accelerator idle; eight together do
not.

Memory for parameters, optimiser and activations is that of one run times the members.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from spinejax.data.pipeline import Feed
from spinejax.tasks import Task
from spinejax.train import optim, parallel, step
from spinejax.train.loop import Durations, durations
from spinejax.train.signals import Stop
from spinejax.train.state import TrainState, create_state, inference_variables


class Setting(NamedTuple):
    """The numbers of config block `optim` that members may differ in: floats, or arrays (k,)."""

    learning_rate: Any
    momentum: Any
    weight_decay: Any


@flax.struct.dataclass
class Population:
    """k members: every leaf of `state` but its `step` and all of `setting` begin with an axis k."""

    state: TrainState
    setting: Setting


class Outcome(NamedTuple):
    """What became of a member.

    finite: whether its losses, gradients and parameters were, to the end. If not, `step` is the
        first update or evaluation that was not, `loss` is infinite, `dice` and `accuracy` are 0.
    step: of its best evaluation, as `train.best` has it.
    loss, dice, accuracy: of that evaluation (`evaluation.Evaluation`).
    """

    finite: bool
    step: int
    loss: float
    dice: float
    accuracy: float


class Trained(NamedTuple):
    """state: host arrays (k, ...) at the end. losses: (steps, k), of each update."""

    outcomes: list[Outcome]
    state: TrainState
    losses: np.ndarray


# What vmap maps over. `step` is shared, so that what hangs on it alone, such as the augmentation of
# the batch, is computed once for all members.
_SHARED: Any = None
_EACH: Any = 0
_AXES = TrainState(_SHARED, params=_EACH, batch_stats=_EACH, opt_state=_EACH, ema=_EACH)
_RESULT_AXES = {"loss": _EACH, "sums": _EACH, "case": _SHARED, "weight": _SHARED}

_Build = Callable[[Setting], Any]


def _optimiser(config: ConfigDict, lengths: Durations, per_epoch: int) -> _Build:
    """Return setting -> (schedule, optimiser), of numbers or traced scalars."""

    def build(setting: Setting) -> Any:
        fields: Mapping[str, Any] = {**config.optim, **setting._asdict()}
        return optim.build(fields, total_steps=lengths.total, steps_per_epoch=per_epoch)

    return build


def create(
    settings: Sequence[Setting], variables: dict[str, Any], build: _Build, *, ema: bool
) -> Population:
    """Return the population before its first update, each member beginning with `variables`."""
    stacked = Setting(*(jnp.asarray(column, jnp.float32) for column in zip(*settings, strict=True)))

    def one(setting: Setting) -> TrainState:
        return create_state(variables, build(setting)[1], ema=ema)

    return Population(jax.vmap(one, out_axes=_AXES)(stacked), stacked)


def make_train_step(
    task: Task, config: ConfigDict, build: _Build
) -> Callable[[Population, step.Batch], tuple[Population, dict[str, jax.Array]]]:
    """Return step(population, batch) -> (population, metrics), to be mapped over `parallel.AXIS`.

    Each member's update is that of `step.make_train_step`. metrics: "loss" (k,), "finite" (k,).
    """

    def one(state: TrainState, setting: Setting, batch: step.Batch) -> Any:
        schedule, optimizer = build(setting)
        update = step.make_train_step(
            task,
            optimizer,
            schedule,
            seed=config.seed,
            accumulate_steps=config.optim.accumulate_steps,
            ema_decay=config.optim.ema_decay,
        )
        state, metrics = update(state, batch)
        return state, {name: metrics[name] for name in ("loss", "finite")}

    members = jax.vmap(one, in_axes=(_AXES, _EACH, _SHARED), out_axes=(_AXES, _EACH))

    def update(
        population: Population, batch: step.Batch
    ) -> tuple[Population, dict[str, jax.Array]]:
        state, metrics = members(population.state, population.setting, batch)
        return Population(state, population.setting), metrics

    return update


def make_eval_step(
    task: Task,
) -> Callable[[dict[str, Any], step.Batch], tuple[dict[str, jax.Array]]]:
    """Return step(variables (k, ...), batch) -> (results,), to be mapped over `parallel.AXIS`.

    results: "loss" (k,), "sums" (k, b, 4), "case" (b,), "weight" (b,), as `step.make_eval_step`.
    """
    single = step.make_eval_step(task)

    def one(variables: dict[str, Any], batch: step.Batch) -> dict[str, jax.Array]:
        results, _ = single(variables, batch)
        return {name: results[name] for name in _RESULT_AXES}

    members = jax.vmap(one, in_axes=(_EACH, _SHARED), out_axes=_RESULT_AXES)
    return lambda variables, batch: (members(variables, batch),)


class Scores(NamedTuple):
    """Validation of every member, each (k,) float64, as in `evaluation.Evaluation`."""

    loss: np.ndarray
    dice: np.ndarray
    accuracy: np.ndarray


def evaluate(
    mapped_step: Callable[..., Any],
    mapped: parallel.Parallel,
    variables: dict[str, Any],
    feed: Feed,
    *,
    stop: Stop,
) -> Scores | None:
    """Evaluate all members on all of `feed.val`; None where it was asked to stop meanwhile."""
    sums: np.ndarray | float = 0.0
    weighted_loss: np.ndarray | float = 0.0
    weights = 0.0
    batches = feed.val(
        process_index=parallel.process_index(), process_count=parallel.process_count()
    )
    try:
        for batch in batches:
            if stop:
                return None
            (results,) = mapped_step(variables, mapped.put(batch))
            host = jax.device_get(results)
            # (case, k, 4): rows are added to their cases.
            part = np.zeros((len(feed.val_cases), *host["sums"].shape[::2]))
            np.add.at(part, host["case"], host["sums"].swapaxes(0, 1).astype(np.float64))
            sums = sums + part
            weight = float(host["weight"].sum())
            weighted_loss = weighted_loss + host["loss"].astype(np.float64) * weight
            weights += weight
    finally:
        batches.close()
    counts = np.asarray(sums)
    return Scores(
        loss=np.asarray(weighted_loss) / max(weights, 1.0),
        dice=step.pooled_dice(counts).mean(0),
        accuracy=step.accuracy(counts.sum(0)),
    )


class _Watch:
    """What is known of the members so far; metrics are fetched one step behind the device."""

    def __init__(self, members: int, by: str) -> None:
        self.losses: list[np.ndarray] = []
        self.best: list[Outcome | None] = [None] * members
        self.diverged: list[int | None] = [None] * members
        self._by = by
        self._waiting: tuple[int, dict[str, jax.Array]] | None = None

    def push(self, at: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of the update that leads to step `at`, and look at those before."""
        self.flush()
        self._waiting = (at, metrics)

    def flush(self) -> None:
        """Look at what is waiting."""
        if self._waiting is None:
            return
        at, metrics = self._waiting[0], jax.device_get(self._waiting[1])
        self._waiting = None
        self.losses.append(metrics["loss"])
        self._mark(at, metrics["finite"])

    def _mark(self, at: int, finite: np.ndarray) -> None:
        for k in np.flatnonzero(~finite):
            self.diverged[k] = at if self.diverged[k] is None else self.diverged[k]

    def score(self, at: int, scores: Scores) -> None:
        """Keep the evaluation of step `at` for the members that were never better."""
        self._mark(at, np.isfinite(scores.loss))
        for k, numbers in enumerate(zip(*scores, strict=True)):
            now, best = Outcome(True, at, *map(float, numbers)), self.best[k]
            if best is None or merit(now, self._by) > merit(best, self._by):
                self.best[k] = now

    def outcomes(self) -> list[Outcome]:
        """Return each member's best evaluation, or where it diverged."""
        return [
            best if at is None and best else Outcome(False, at or 0, math.inf, 0.0, 0.0)
            for at, best in zip(self.diverged, self.best, strict=True)
        ]


def merit(outcome: Outcome, by: str) -> float:
    """Return what the best member has most of: Dice or minus loss, by `train.best`."""
    if not outcome.finite or math.isnan(outcome.loss):
        return -math.inf
    return -outcome.loss if by == "loss" else outcome.dice


def train(
    config: ConfigDict,
    settings: Sequence[Setting],
    task: Task,
    feed: Feed,
    mapped: parallel.Parallel,
    *,
    stop: Stop,
    advance: Callable[[], object] = lambda: None,
) -> Trained | None:
    """Train one member for each of `settings`; nothing is written.

    A member whose numbers stop being finite goes on to no good, beside the others and without any
    effect on them; when all are in that state the training ends.

    Args:
        config: the experiment, as of every member but for its `setting`.
        settings: at least one.
        task: of `config`, built for `parallel.AXIS`.
        feed: of `task`, with at least one validation case.
        mapped: the devices.
        stop: asked at every step.
        advance: called after every update.

    Returns:
        What came of it; None where it was asked to stop before the end.

    Raises:
        InputError: schedule or optimiser cannot be built.
    """
    lengths = durations(config, feed.per_epoch)
    build = _optimiser(config, lengths, feed.per_epoch)
    update = mapped.map(make_train_step(task, config, build), sharded=(False, False), donate=True)
    score = mapped.map(make_eval_step(task), sharded=(False,), donate=False)
    variables = jax.jit(task.init)(step.named_key(config.seed, "init"))
    population = mapped.replicate(
        create(settings, variables, build, ema=config.optim.ema_decay > 0)
    )
    watch = _Watch(len(settings), config.train.best)
    batches = feed.train(
        start_step=0,
        process_index=parallel.process_index(),
        process_count=parallel.process_count(),
    )
    at = 0
    try:
        while True:
            if stop.agreed(at):
                return None
            if lengths.evaluates(at):
                watch.flush()
                state = population.state
                held = {"params": state.params, "batch_stats": state.batch_stats, "ema": state.ema}
                scores = evaluate(score, mapped, inference_variables(held), feed, stop=stop)
                if scores is None:
                    return None
                watch.score(at, scores)
            if at >= lengths.total or None not in watch.diverged:
                watch.flush()
                state = parallel.host_copy(population.state)
                return Trained(watch.outcomes(), state, np.array(watch.losses))
            population, metrics = update(population, mapped.put(next(batches)))
            at += 1
            watch.push(at, metrics)
            advance()
    finally:
        batches.close()
