"""A search over hyper-parameters in rounds, from coarse to fine, many trials at once.

A trial is a set of overrides of the config. Each round is drawn around the best trial so far, from
a box half as large as the box of the round before (paper B, section IV: "a pyramidal approach by
doing a random search").

Trials that differ only in learning rate, momentum and weight decay are trained together as the
members of a population: one compiled step for all, mapped over these numbers. The members share
seed, batches, initial parameters, augmentation and dropout: a member equals a run of `loop.train`
with its numbers in the config, up to rounding. A batch is read, transferred and augmented once for
all. One small network leaves an accelerator idle; eight together do not. Parameters, optimiser and
activations need the memory of one run times the members. Trials that differ in other fields, such
as the batch size, are trained in groups, one by one.

    <workdir>/search.json    what is searched
    <workdir>/search.jsonl   one line per finished trial

Finished groups are kept; an interrupted group is trained again from its beginning.
"""

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from spinejax import numerics, records, schema, tasks
from spinejax.data.cache import CachedCase
from spinejax.data.feeds import Feed
from spinejax.errors import InputError
from spinejax.files import expanded, open_regular, write_json, write_text
from spinejax.progress import Progress, silent
from spinejax.tasks import Task, build_task
from spinejax.text_table import text_table
from spinejax.training import checkpoint, parallel, run_cases, run_folder, step
from spinejax.training.loop import Call, durations, putter, repeat
from spinejax.training.signals import Stop, listen
from spinejax.training.state import (
    TrainState,
    create_state,
    inference_variables,
    initial_variables,
)
from spinejax.training.validation import Evaluation, evaluate

# Training a population.


class Setting(NamedTuple):
    """The numbers of config block `optim` in which members may differ: floats, or arrays (k,)."""

    learning_rate: Any
    momentum: Any
    weight_decay: Any


@flax.struct.dataclass
class Population:
    """k members: every leaf of `state` but its `step`, and of `setting`, has a leading axis k."""

    state: TrainState
    setting: Setting


class Outcome(NamedTuple):
    """The result of one member.

    finite: whether its losses, gradients and parameters stayed finite. If not, `step` is the first
        update or evaluation with a number that is not finite, `loss` is infinite, and `dice` and
        `accuracy` are 0.
    step: step of its best evaluation, by `train.best`.
    loss, dice, accuracy: of that evaluation (`validation.Evaluation`).
    """

    finite: bool
    step: int
    loss: float
    dice: float
    accuracy: float


class Trained(NamedTuple):
    """The trained members.

    outcomes: of each member.
    state: host arrays (k, ...) at the end.
    losses: (steps, k), of each update.
    """

    outcomes: list[Outcome]
    state: TrainState
    losses: np.ndarray


# Axes for vmap. The members share `step`; computations that depend on it alone, such as the
# augmentation, run once for all.
_SHARED: Any = None
_EACH: Any = 0
_AXES = TrainState(_SHARED, params=_EACH, batch_stats=_EACH, opt_state=_EACH, ema=_EACH)
_RESULT_AXES = {"loss": 0, "sums": 1, "case": _SHARED, "weight": _SHARED}


def population_step(
    task: Task, config: ConfigDict, **lengths: int
) -> tuple[Callable[[Population, step.Batch], Any], Callable[..., Population]]:
    """Return the training step of a population, and the function that begins one.

    Args:
        task: of `config`, built for `parallel.AXIS`.
        config: the experiment.
        **lengths: total_steps and steps_per_epoch, see `step.from_config`.

    Returns:
        step(population, batch) -> (population, metrics), to be mapped over `parallel.AXIS`, which
        updates each member as `step.make_train_step` does; metrics: "loss" (k,), "finite" (k,).
        begin(settings, variables) -> population before its first update; each member begins with
        `variables`.
    """

    def alone(setting: Setting) -> Any:
        return step.from_config(config, task, **lengths, **setting._asdict())

    def one(state: TrainState, setting: Setting, batch: step.Batch) -> Any:
        state, metrics = alone(setting)[0](state, batch)
        return state, {name: metrics[name] for name in ("loss", "finite")}

    members = jax.vmap(one, in_axes=(_AXES, _EACH, _SHARED), out_axes=(_AXES, _EACH))

    def update(population: Population, batch: step.Batch) -> Any:
        state, metrics = members(population.state, population.setting, batch)
        return Population(state, population.setting), metrics

    def begin(settings: Sequence[Setting], variables: dict[str, Any]) -> Population:
        columns = zip(*settings, strict=True)
        stacked = Setting(*(jnp.asarray(column, jnp.float32) for column in columns))
        ema = config.optim.ema_decay > 0

        def first(setting: Setting) -> TrainState:
            return create_state(variables, alone(setting)[1], ema=ema)

        return Population(jax.vmap(first, out_axes=_AXES)(stacked), stacked)

    return update, begin


def make_eval_step(
    task: Task,
) -> Callable[[dict[str, Any], step.Batch], tuple[dict[str, jax.Array], None]]:
    """Return step(variables (k, ...), batch) -> (results, None), mapped over `parallel.AXIS`.

    results: "loss" (k,), "sums" (b, k, 4), "case" (b,), "weight" (b,), as `step.make_eval_step`.
    """
    single = step.make_eval_step(task)

    def one(variables: dict[str, Any], batch: step.Batch) -> dict[str, jax.Array]:
        results, _ = single(variables, batch)
        return {name: results[name] for name in _RESULT_AXES}

    members = jax.vmap(one, in_axes=(_EACH, _SHARED), out_axes=_RESULT_AXES)
    return lambda variables, batch: (members(variables, batch), None)


@dataclass
class _MembersKeeper:
    """Keeps the losses and the best evaluation of every member; saves nothing."""

    members: int
    by: str
    say: Callable[[str], None]
    advance: Callable[[], object]
    at: int = 0
    losses: list[np.ndarray] = field(default_factory=list)
    best: dict[int, Outcome] = field(default_factory=dict)
    diverged: dict[int, int] = field(default_factory=dict)

    @property
    def hopeless(self) -> bool:
        """Whether all members have diverged."""
        return len(self.diverged) == self.members

    def advanced(self, at: int) -> None:
        for _ in range(at - self.at):
            self.advance()
        self.at = at

    def updated(self, calls: Sequence[Call]) -> None:
        for call, metrics in zip(calls, jax.device_get([c.metrics for c in calls]), strict=True):
            self.losses.extend(metrics["loss"])
            for at, finite in enumerate(metrics["finite"], call.first):
                self._mark(at, finite)

    def evaluated(self, at: int, evaluation: Evaluation) -> None:
        self._mark(at, np.isfinite(evaluation.loss))
        for k, numbers in enumerate(zip(*evaluation[:3], strict=True)):
            now = Outcome(True, at, *map(float, numbers))
            if k not in self.best or merit(now, self.by) > merit(self.best[k], self.by):
                self.best[k] = now

    def save(self, state: Population, at: int, *, evaluated: bool) -> None:
        pass

    def _mark(self, at: int, finite: np.ndarray) -> None:
        for k in np.flatnonzero(~finite):
            self.diverged.setdefault(int(k), at)

    def outcomes(self) -> list[Outcome]:
        """Return the best evaluation of each member, or where it diverged."""
        best = {k: found for k, found in self.best.items() if k not in self.diverged}
        return [
            best.get(k, Outcome(False, self.diverged.get(k, 0), math.inf, 0.0, 0.0))
            for k in range(self.members)
        ]


def merit(outcome: Outcome, by: str) -> float:
    """Return the score of the members: Dice or minus loss, by `train.best`."""
    if not outcome.finite or math.isnan(outcome.loss):
        return -math.inf
    return -outcome.loss if by == "loss" else outcome.dice


@numerics.fixed()
def train(
    config: ConfigDict,
    settings: Sequence[Setting],
    task: Task,
    feed: Feed,
    mapped: parallel.Parallel,
    *,
    stop: Stop,
    say: Callable[[str], None] = lambda text: None,
    advance: Callable[[], object] = lambda: None,
) -> Trained | None:
    """Train one member for each of `settings`; nothing is written.

    A diverged member keeps training on NaN without affecting the others; when all have diverged the
    training ends.

    Args:
        config: the experiment, shared by the members except for `settings`.
        settings: at least one.
        task: of `config`, built for `parallel.AXIS`.
        feed: of `task`, with at least one validation case.
        mapped: the devices.
        stop: asked at every step.
        say: shows a line of text.
        advance: called after every update.

    Returns:
        The trained members; None if a request to stop ended the training.

    Raises:
        InputError: schedule or optimiser cannot be built, or `train.init_from` names no model of
            this network.
    """
    lengths = durations(config, feed.per_epoch, mapped.platform)
    train_step, begin = population_step(
        task, config, total_steps=lengths.total, steps_per_epoch=feed.per_epoch
    )
    update = mapped.map(step.several(train_step), sharded=(False, False), donate=True)
    score = mapped.map(make_eval_step(task), sharded=(False, True), donate=False)
    initial = checkpoint.pretrained(config, task)
    if initial:
        variables = initial.variables
    else:
        variables = initial_variables(task.init, step.named_key(config.seed, "init"))

    def judge(population: Population) -> Evaluation | None:
        held = inference_variables(vars(population.state))
        return evaluate(score, mapped, held, feed, stop=stop)

    keeper = _MembersKeeper(len(settings), config.train.best, say, advance)
    population, _, interrupted = repeat(
        mapped.replicate(begin(settings, variables)),
        start=0,
        lengths=lengths,
        update=update,
        judge=judge,
        batches=feed.train(
            start_step=0,
            process_index=parallel.process_index(),
            process_count=parallel.process_count(),
        ),
        put=putter(task.stream, mapped, config.seed, lengths.per_call),
        keeper=keeper,
        stop=stop,
    )
    if interrupted:
        return None
    state = parallel.host_copy(population.state)
    return Trained(keeper.outcomes(), state, np.array(keeper.losses))


# Searching.

Sweep = Callable[..., Iterable[Mapping[str, Any]]]
"""sweep(seed, trials, centre, shrink) -> overrides by dotted key, as `configs.search` has one."""

TOGETHER = tuple(f"optim.{field}" for field in Setting._fields)
"""Fields in which the trials of one group may differ."""

FIXED = ("task", "seed", "data.", "loss.", "train.best", "train.patience")
"""Fields, or beginnings of fields, that all trials share, so that their scores are comparable."""


class Trial(NamedTuple):
    """One trial: its round and its place in it, both counted from 0."""

    round: int
    number: int
    overrides: dict[str, Any]


Done = dict[tuple[int, int], tuple[Trial, Outcome]]
"""Finished trials by (round, number), in the order in which they finished."""


class Found(NamedTuple):
    """The result of a search.

    interrupted: a request to stop ended the search; finished groups are saved, and the same call
        continues with the others.
    done: the finished trials of the rounds that were asked for.
    total: number of trials of these rounds.
    best: the best trial.
    """

    interrupted: bool
    done: Done
    total: int
    best: Trial | None


@numerics.fixed()
def run(
    config: ConfigDict,
    sweep: Sweep,
    workdir: str | Path,
    *,
    rounds: int = 2,
    trials: int = 8,
    at_once: int = 8,
    progress: Progress = silent,
    devices: int | None = None,
    stop: Stop | None = None,
) -> Found:
    """Search, or continue the search in `workdir`.

    Args:
        config: the experiment; each trial trains for its `train.steps` or `train.epochs`, and its
            best validation counts, by `train.best`.
        sweep: draws the trials. Round r, from 0, gets seed = `config.seed` + r, the best trial so
            far as centre, and shrink = 0.5 ** r.
        workdir: folder of the search; made if missing.
        rounds: number of rounds, at least 1; a finished search may be given more rounds later.
        trials: number of trials in a round, at least 1.
        at_once: the most trials that are trained together; memory grows with it. On CPUs `vmap`
            slows the convolutions of networks other than OP-convNet several times: use 1 there.
        progress: shows the steps of each group.
        devices: number of devices to use, the first ones; None for all.
        stop: asks the search to end, like the signals of `signals.SIGNALS`.

    Raises:
        InputError: a number, the config or the data cannot be used, the sweep sets fields that the
            config lacks or that make trials incomparable, the workdir belongs to another search,
            or all trials diverged.
    """
    workdir, stop = expanded(workdir), Stop() if stop is None else stop
    for name, value in (("rounds", rounds), ("trials", trials), ("at_once", at_once)):
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1; give --{name}=N")
    if parallel.process_count() > 1:
        raise InputError("a search runs in one process; start it without --num_processes or srun")
    tasks.check(config)
    mapped = parallel.make_parallel(config.train.parallel, devices)
    # Errors that need no data are raised before the folder is touched.
    task = build_task(config)
    if not task.model.LEARNS:
        raise InputError(
            f"model.name={config.model.name!r} has no parameters, so a search trains nothing; "
            "choose another network, or compare settings with `spinejax sweep`"
        )
    if config.train.patience:
        raise InputError(
            f"train.patience={config.train.patience}: the trials of a search train equally long; "
            "set it to 0"
        )
    if config.train.batch_size_per_device:
        raise InputError(
            f"train.batch_size_per_device={config.train.batch_size_per_device}: the trials of a "
            "search have the batch train.batch_size on any number of devices; set it to 0"
        )
    checkpoint.pretrained(config, task)
    _draw(config, sweep, 0, trials, None, mapped)
    with run_folder.alone(workdir):
        done = _open(config, sweep, trials, workdir)
        cached = run_cases.prepare(config, workdir, wanted=("train", "val"), progress=progress)
        with listen(stop):
            for number in range(rounds):
                drawn = _draw(config, sweep, number, trials, _best(config, done, number), mapped)
                _check_same_trials(drawn, done, workdir)
                todo = [trial for trial in drawn if trial[:2] not in done]
                for group in groups(todo, at_once):
                    title = f"round {number + 1} of {rounds}, {len(group)} at once"
                    outcomes = _train(config, group, cached, mapped, stop, title, progress)
                    if outcomes is None:
                        best = _best(config, done, rounds)
                        return Found(True, done, rounds * trials, best)
                    done |= {t[:2]: (t, o) for t, o in zip(group, outcomes, strict=True)}
                    _write(workdir, done)
    done = {place: tried for place, tried in done.items() if place[0] < rounds}
    best = _best(config, done, rounds)
    if best is None:
        raise InputError(
            f"all {len(done)} trials diverged; lower the learning rates of the sweep, or set "
            "optim.clip_norm"
        )
    return Found(False, done, len(done), best)


def describe(
    found: Found, config: ConfigDict, workdir: str | Path, command: Sequence[str] = ()
) -> str:
    """Return the result of a search as text: a table, and the command that trains the best trial.

    Args:
        found: the result.
        config: of the search.
        workdir: of the search.
        command: arguments of `spinejax train` that give `config`.
    """
    if found.interrupted and not found.done:
        return f"interrupted before the first of {found.total} trials was finished"
    if found.interrupted:
        return (
            f"interrupted: {len(found.done)} of {found.total} trials are finished and saved in "
            f"{Path(workdir) / 'search.jsonl'}; the same command continues with the others"
        )
    overrides = {} if found.best is None else found.best.overrides
    flags = {f"--config.{key}": value for key, value in overrides.items()}
    words = [word for word in command if word.partition("=")[0] not in flags]
    words += [f"{flag}={value}" for flag, value in flags.items()]
    train = shlex.join(["spinejax", "train", *words, f"--workdir={Path(workdir) / 'best'}"])
    return f"{table(found.done, by=config.train.best)}\n\nto train the best trial:\n{train}"


def _draw(
    config: ConfigDict,
    sweep: Sweep,
    number: int,
    trials: int,
    centre: Trial | None,
    mapped: parallel.Parallel,
) -> list[Trial]:
    """Return the trials of a round; the config of each is checked."""
    name = getattr(sweep, "__name__", "sweep")
    try:
        drawn = sweep(
            seed=config.seed + number,
            trials=trials,
            centre=None if centre is None else centre.overrides,
            shrink=1.0 if centre is None else 0.5**number,
        )
        found = [Trial(number, i, dict(overrides)) for i, overrides in enumerate(drawn)]
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}(seed, trials, centre, shrink) failed: {error}") from error
    if not found:
        raise InputError(f"{name} yields no trials; correct it")
    for trial in found:
        changed = trial_config(config, trial.overrides, name)
        mapped.check_batch(changed.train.batch_size, changed.optim.accumulate_steps)
    return found


def trial_config(config: ConfigDict, overrides: Mapping[str, Any], sweep: str) -> ConfigDict:
    """Return `config` with the overrides of a trial of the sweep of that name.

    Raises:
        InputError: the config lacks a key, all trials must share it, no training reads it, or a
            value cannot be used.
    """
    flat = schema.flatten(config)
    for key in overrides:
        if key not in flat:
            raise InputError(f"{sweep}: {schema.unknown(flat, key)}")
        if key.startswith(FIXED):
            raise InputError(
                f"{sweep}: the trials of a search are compared with each other, so they must share "
                f"{key}; take it out of the sweep"
            )
    changed = config.copy_and_resolve_references()
    try:
        changed.update_from_flattened_dict(overrides)
    except (TypeError, ValueError) as error:
        raise InputError(f"{sweep}: {dict(overrides)}: {error}") from error
    tasks.check(changed)
    if "optim.momentum" in overrides and changed.optim.name != "sgd":
        raise InputError(
            f"{sweep}: optim.name={changed.optim.name!r} has no optim.momentum to search over; use "
            "--config.optim.name=sgd, or another sweep"
        )
    return changed


def groups(trials: Sequence[Trial], at_once: int) -> list[list[Trial]]:
    """Return the trials in groups of at most `at_once` that differ in `TOGETHER` only."""
    alike: dict[str, list[Trial]] = {}
    for trial in trials:
        rest = {k: v for k, v in trial.overrides.items() if k not in TOGETHER}
        alike.setdefault(json.dumps(rest, sort_keys=True), []).append(trial)
    return [
        members[at : at + at_once]
        for members in alike.values()
        for at in range(0, len(members), at_once)
    ]


def _train(
    config: ConfigDict,
    group: Sequence[Trial],
    cached: Mapping[str, Sequence[CachedCase]],
    mapped: parallel.Parallel,
    stop: Stop,
    title: str,
    progress: Progress,
) -> list[Outcome] | None:
    """Train a group; None if a request to stop ended the training."""
    if stop:
        return None
    configs = [trial_config(config, trial.overrides, "sweep") for trial in group]
    members = [Setting(*(c.optim[field] for field in Setting._fields)) for c in configs]
    task = build_task(configs[0], axis_name=parallel.AXIS)
    feed = task.feed(cached)
    if not feed.val_cases:
        raise InputError(
            "a search compares trials by their validation, but there are no validation cases; "
            "raise data.val_fraction"
        )
    with progress(title, durations(configs[0], feed.per_epoch).total, "step") as bar:
        trained = train(
            configs[0], members, task, feed, mapped, stop=stop, say=bar.say, advance=bar.advance
        )
    return None if trained is None else trained.outcomes


# Files.


def _open(config: ConfigDict, sweep: Sweep, trials: int, workdir: Path) -> Done:
    """Check or write search.json, and return the finished trials.

    A folder without a finished trial may be reused for another search.
    """
    file = workdir / "search.json"
    wanted = {"sweep": getattr(sweep, "__name__", "sweep"), "trials": trials}
    done = read(workdir)
    if done:
        shape = {"sweep": str, "trials": int, "config": dict}
        record = records.read(file, shape, "restore it from a copy, or give another --workdir")
        for key, value in wanted.items():
            if record[key] != value:
                raise InputError(
                    f"{workdir} holds a search with {key}={record[key]!r}, not {value!r}; give "
                    "this one another --workdir, or the old value to continue"
                )
        run_folder.check_same(ConfigDict(record["config"]), config, workdir)
    run_folder.require_room(workdir)
    write_json(file, {**wanted, "config": schema.plain(config)}, "run")
    return done


_TRIAL = {
    "round": int,
    "trial": int,
    "overrides": dict,
    "finite": bool,
    "step": int,
    "loss": (float, None),
    "dice": float,
    "accuracy": float,
}


def read(workdir: Path) -> Done:
    """Return the finished trials of a search; none in a folder without a search.

    Raises:
        InputError: a line of search.jsonl is damaged.
    """
    file = workdir / "search.jsonl"
    if not file.exists():
        return {}
    done: Done = {}
    with open_regular(file) as opened:
        texts = opened.read().decode(errors="replace").splitlines()
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        remedy = f"remove line {number}, and its trial is trained again"
        records.check(line, _TRIAL, file, remedy, f"line {number}")
        trial = Trial(line["round"], line["trial"], line["overrides"])
        loss = math.inf if line["loss"] is None else line["loss"]
        outcome = Outcome(line["finite"], line["step"], loss, line["dice"], line["accuracy"])
        done[trial[:2]] = (trial, outcome)
    return done


def _write(workdir: Path, done: Done) -> None:
    """Write search.jsonl, whole or not at all."""
    lines = []
    for trial, outcome in done.values():
        line = {"round": trial.round, "trial": trial.number, "overrides": trial.overrides}
        line |= outcome._asdict() | {"loss": outcome.loss if outcome.finite else None}
        lines.append(json.dumps(line, allow_nan=False) + "\n")
    run_folder.require_room(workdir)
    write_text(workdir / "search.jsonl", "".join(lines), "run")


def _check_same_trials(drawn: Sequence[Trial], done: Done, workdir: Path) -> None:
    for trial in drawn:
        if trial[:2] in done and done[trial[:2]][0].overrides != trial.overrides:
            raise InputError(
                f"{workdir}: trial {trial.number} of round {trial.round} was another one, so the "
                "sweep has changed; give it another --workdir"
            )


# The result.


def _best(config: ConfigDict, done: Done, before: int) -> Trial | None:
    """Return the best trial of the rounds before the given one; None if all diverged."""
    tried = [t for place, t in sorted(done.items()) if place[0] < before and t[1].finite]
    return max(tried, key=lambda t: merit(t[1], config.train.best))[0] if tried else None


def table(done: Done, *, by: str) -> str:
    """Return the trials as text, best first by `train.best`."""
    tried = sorted(done.values(), key=lambda t: (-merit(t[1], by), t[0].round, t[0].number))
    keys = list(dict.fromkeys(key for trial, _ in tried for key in trial.overrides))
    names = [key.rpartition(".")[2] for key in keys]
    rows = [["", *names, "loss", "dice", "accuracy", "step", "round"]]
    for place, (trial, outcome) in enumerate(tried, 1):
        scores = [f"{v:.4f}" for v in outcome[2:]] if outcome.finite else ["diverged", "", ""]
        values = [_short(trial.overrides.get(key, "")) for key in keys]
        rows.append([str(place), *values, *scores, str(outcome.step), str(trial.round + 1)])
    return text_table(rows, "r")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
