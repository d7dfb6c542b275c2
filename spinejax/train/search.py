"""Training several settings at once: one compiled step for all, mapped over their numbers.

The members of a population differ in learning rate, momentum and weight decay only. They share the
seed and the batches, hence the initial parameters, the augmentation and the dropout: each is what
`loop.train` gives with its numbers in the config, up to rounding. What they share is read,
transferred and augmented once. A small network alone leaves an accelerator idle; eight together do
not.

Memory for parameters, optimiser and activations is that of one run times the members.

A search over hyper-parameters in rounds, from coarse to fine, many units at once.

A unit is a set of overrides of the config. Units that differ in learning rate, momentum and weight
decay only are trained together (`population`); those that differ in anything else, such as the
batch size, come one group after the other. Each round is drawn around the best unit so far, from a
box half as large as that of the round before (paper B, section IV: "a pyramidal approach by doing
a random search").

    <workdir>/search.json    what is searched
    <workdir>/search.jsonl   one line per finished unit

Groups that are finished are kept; one that was interrupted is trained again from its beginning.
"""

import json
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from spinejax.data.cache import CachedCase
from spinejax.data.feeds import Feed
from spinejax.errors import InputError, check_choice
from spinejax.files import write_json, write_text
from spinejax.tasks import Task, build_task
from spinejax.train import optim, parallel, run_folder, settings, setup, step
from spinejax.train.loop import Durations, durations
from spinejax.train.signals import Stop, listen
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


Sweep = Callable[..., Iterable[Mapping[str, Any]]]
"""sweep(seed, units, centre, shrink) -> overrides by dotted key, as `configs.search` has one."""

TOGETHER = tuple(f"optim.{field}" for field in Setting._fields)
"""Keys in which the units of one group may differ."""

FIXED = ("task", "seed", "data.", "loss.", "train.best")
"""Keys, or beginnings of them, in which units must not differ: their validation scores would be of
different things."""


class Unit(NamedTuple):
    """One trial: its round and its place in it, both counted from 0."""

    round: int
    number: int
    overrides: dict[str, Any]


Done = dict[tuple[int, int], tuple[Unit, Outcome]]
"""Finished units by (round, number), in the order in which they finished."""


def run(
    config: ConfigDict,
    sweep: Sweep,
    workdir: str | Path,
    *,
    rounds: int = 2,
    units: int = 8,
    at_once: int = 8,
    command: Sequence[str] = (),
    progress: bool = True,
    devices: int | None = None,
    stop: Stop | None = None,
) -> bool:
    """Search, or go on with the search that was begun in `workdir`; print the units, best first.

    Args:
        config: the experiment; each unit is trained for its `train.steps` or `train.epochs`, and
            judged by its best validation, as `train.best` has it.
        sweep: what draws the units. Round r, from 0, gets seed = `config.seed` + r, the best unit
            so far as centre, and shrink = 0.5 ** r.
        workdir: folder of the search; made if missing.
        rounds: how many, at least 1; a search may be given more rounds later.
        units: of each round, at least 1.
        at_once: most units that are trained together; memory grows with them. On CPUs `vmap` slows
            the convolutions of networks other than OP-convNet several times: give those 1.
        command: arguments of `spinejax train` that lead to `config`, for the line that trains the
            best unit.
        progress: show bars.
        devices: use only the first so many; None for all.
        stop: asks to end, beside the signals of `signals.SIGNALS`.

    Returns:
        Whether it was interrupted, finished groups being saved: the same call goes on.

    Raises:
        InputError: bad numbers, config or data, a sweep over what the config does not have or what
            makes units incomparable, a workdir of another search, or no unit that stays finite.
    """
    workdir, stop = Path(workdir), Stop() if stop is None else stop
    for name, value in (("rounds", rounds), ("units", units), ("at_once", at_once)):
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1; give --{name}=N")
    if parallel.process_count() > 1:
        raise InputError("a search runs in one process; start it without --num_processes or srun")
    settings.check_config(config)
    mapped = parallel.make_parallel(config.train.parallel, devices)
    # Everything that can be refused is refused before the folder is touched.
    _draw(config, sweep, 0, units, None, mapped)
    with run_folder.alone(workdir):
        done = _open(config, sweep, units, workdir)
        split = setup.cases(config, workdir)
        cached = setup.cached(config, workdir, split, wanted=("train", "val"), progress=progress)
        with listen(stop):
            for number in range(rounds):
                drawn = _draw(config, sweep, number, units, _best(config, done, number), mapped)
                _check_same_units(drawn, done, workdir)
                todo = [unit for unit in drawn if unit[:2] not in done]
                for group in groups(todo, at_once):
                    title = f"round {number + 1} of {rounds}, {len(group)} at once"
                    with _bar(title, progress) as bar:
                        outcomes = _train(config, group, cached, mapped, stop, bar)
                    if outcomes is None:
                        _say_interrupted(workdir, len(done), rounds * units)
                        return True
                    done |= {u[:2]: (u, o) for u, o in zip(group, outcomes, strict=True)}
                    _write(workdir, done)
    shown = {place: tried for place, tried in done.items() if place[0] < rounds}
    print(table(shown, by=config.train.best))
    best = _best(config, shown, rounds)
    if best is None:
        raise InputError(
            f"all {len(shown)} units diverged; lower the learning rates of the sweep, or set "
            "optim.clip_norm"
        )
    flags = {f"--config.{key}": value for key, value in best.overrides.items()}
    words = [word for word in command if word.partition("=")[0] not in flags]
    words += [f"{flag}={value}" for flag, value in flags.items()]
    print("\nto train the best of them:")
    print(shlex.join(["spinejax", "train", *words, f"--workdir={workdir / 'best'}"]))
    return False


def _bar(title: str, progress: bool) -> tqdm:
    return tqdm(
        desc=title,
        unit="step",
        disable=not progress,
        dynamic_ncols=True,
        # A log file gets a line every half minute, a terminal a moving bar.
        mininterval=0.2 if sys.stderr.isatty() else 30.0,
    )


def _say_interrupted(workdir: Path, done: int, total: int) -> None:
    if not done:
        print(f"interrupted before the first of {total} units was finished; nothing is saved yet")
        return
    print(
        f"interrupted: {done} of {total} units are finished and saved in "
        f"{workdir / 'search.jsonl'}; the same command goes on with the others"
    )


def _draw(
    config: ConfigDict,
    sweep: Sweep,
    number: int,
    units: int,
    centre: Unit | None,
    mapped: parallel.Parallel,
) -> list[Unit]:
    """Return the units of a round, each checked to be a config that can be trained."""
    name = getattr(sweep, "__name__", "sweep")
    try:
        drawn = sweep(
            seed=config.seed + number,
            units=units,
            centre=None if centre is None else centre.overrides,
            shrink=1.0 if centre is None else 0.5**number,
        )
        found = [Unit(number, i, dict(overrides)) for i, overrides in enumerate(drawn)]
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}(seed, units, centre, shrink) failed: {error}") from error
    if not found:
        raise InputError(f"{name} yields no units; correct it")
    for unit in found:
        changed = unit_config(config, unit.overrides, name)
        mapped.check_batch(changed.train.batch_size, changed.optim.accumulate_steps)
    return found


def unit_config(config: ConfigDict, overrides: Mapping[str, Any], sweep: str) -> ConfigDict:
    """Return `config` with the overrides of a unit of the sweep of that name.

    Raises:
        InputError: a key that the config does not have, that the units of a search must share, or
            that trains nothing; or a value that cannot be used.
    """
    flat = settings.flatten(config)
    for key in overrides:
        check_choice(f"{sweep}: config key", key, flat)
        if key.startswith(FIXED):
            raise InputError(
                f"{sweep}: the units of a search are compared with each other, hence share "
                f"{key}; take it out of the sweep"
            )
    changed = config.copy_and_resolve_references()
    try:
        changed.update_from_flattened_dict(overrides)
    except (TypeError, ValueError) as error:
        raise InputError(f"{sweep}: {dict(overrides)}: {error}") from error
    settings.check_config(changed)
    if "optim.momentum" in overrides and changed.optim.name != "sgd":
        raise InputError(
            f"{sweep}: optim.name={changed.optim.name!r} has no optim.momentum to search over; use "
            "--config.optim.name=sgd, or another sweep"
        )
    return changed


def groups(units: Sequence[Unit], at_once: int) -> list[list[Unit]]:
    """Return the units in groups of at most `at_once` that differ in `TOGETHER` only."""
    alike: dict[str, list[Unit]] = {}
    for unit in units:
        rest = {k: v for k, v in unit.overrides.items() if k not in TOGETHER}
        alike.setdefault(json.dumps(rest, sort_keys=True), []).append(unit)
    return [
        members[at : at + at_once]
        for members in alike.values()
        for at in range(0, len(members), at_once)
    ]


def _train(
    config: ConfigDict,
    group: Sequence[Unit],
    cached: Mapping[str, Sequence[CachedCase]],
    mapped: parallel.Parallel,
    stop: Stop,
    bar: tqdm,
) -> list[Outcome] | None:
    """Train a group; None where it was asked to stop."""
    if stop:
        return None
    configs = [unit_config(config, unit.overrides, "sweep") for unit in group]
    members = [Setting(*(c.optim[field] for field in Setting._fields)) for c in configs]
    task = build_task(configs[0], axis_name=parallel.AXIS)
    feed = task.feed(cached)
    if not feed.val_cases:
        raise InputError(
            "a search compares units by their validation, and there are no validation cases; raise "
            "data.val_fraction"
        )
    bar.total = durations(configs[0], feed.per_epoch).total
    bar.refresh()
    trained = train(configs[0], members, task, feed, mapped, stop=stop, advance=bar.update)
    return None if trained is None else trained.outcomes


# Files.


def _open(config: ConfigDict, sweep: Sweep, units: int, workdir: Path) -> Done:
    """Check or write search.json, and return what is finished; nothing finished binds nobody."""
    file = workdir / "search.json"
    wanted = {"sweep": getattr(sweep, "__name__", "sweep"), "units": units}
    done = read(workdir)
    try:
        if done:
            record = json.loads(file.read_text(encoding="utf-8"))
            for key, value in wanted.items():
                if record[key] != value:
                    raise InputError(
                        f"{workdir} holds a search with {key}={record[key]!r}, not {value!r}; give "
                        "this one another --workdir, or the old value to go on"
                    )
            settings.check_same(ConfigDict(record["config"]), config, workdir)
        run_folder.require_room(workdir)
        write_json(file, {**wanted, "config": settings.plain(config)})
    except InputError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{file} is damaged; restore it from a copy, or give another --workdir"
        ) from error
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read and written ({error.strerror}); give another --workdir"
        ) from error
    return done


def read(workdir: Path) -> Done:
    """Return the finished units of a search; none where there is no search.

    Raises:
        InputError: search.jsonl is damaged; names the line.
    """
    file = workdir / "search.jsonl"
    if not file.exists():
        return {}
    done: Done = {}
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            unit = Unit(line["round"], line["unit"], dict(line["overrides"]))
            loss = math.inf if line["loss"] is None else line["loss"]
            outcome = Outcome(line["finite"], line["step"], loss, line["dice"], line["accuracy"])
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{file} line {number} is damaged; take it out, and its unit is trained again"
            ) from error
        done[unit[:2]] = (unit, outcome)
    return done


def _write(workdir: Path, done: Done) -> None:
    """Write search.jsonl, whole or not at all."""
    lines = []
    for unit, outcome in done.values():
        line = {"round": unit.round, "unit": unit.number, "overrides": unit.overrides}
        line |= outcome._asdict() | {"loss": outcome.loss if outcome.finite else None}
        lines.append(json.dumps(line, allow_nan=False) + "\n")
    run_folder.require_room(workdir)
    write_text(workdir / "search.jsonl", "".join(lines))


def _check_same_units(drawn: Sequence[Unit], done: Done, workdir: Path) -> None:
    for unit in drawn:
        if unit[:2] in done and done[unit[:2]][0].overrides != unit.overrides:
            raise InputError(
                f"{workdir}: unit {unit.number} of round {unit.round} was another one; the sweep "
                "has changed, so give it another --workdir"
            )


# The result.


def _best(config: ConfigDict, done: Done, before: int) -> Unit | None:
    """Return the best unit of the rounds before the given one; None where none stayed finite."""
    tried = [t for place, t in sorted(done.items()) if place[0] < before and t[1].finite]
    return max(tried, key=lambda t: merit(t[1], config.train.best))[0] if tried else None


def table(done: Done, *, by: str) -> str:
    """Return the units as text, best first by `train.best`."""
    tried = sorted(done.values(), key=lambda t: (-merit(t[1], by), t[0].round, t[0].number))
    keys = list(dict.fromkeys(key for unit, _ in tried for key in unit.overrides))
    rows = [["", *(key.rpartition(".")[2] for key in keys)]]
    rows[0] += ["loss", "dice", "accuracy", "step", "round"]
    for place, (unit, outcome) in enumerate(tried, 1):
        scores = ["diverged", "", ""]
        if outcome.finite:
            scores = [f"{value:.4f}" for value in outcome[2:]]
        values = ["" if key not in unit.overrides else _short(unit.overrides[key]) for key in keys]
        rows.append([str(place), *values, *scores, str(outcome.step), str(unit.round + 1)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
