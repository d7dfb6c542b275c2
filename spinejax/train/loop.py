"""Looking after the metrics of each update, one step behind the device.

Training a run from its config and folder, from the beginning or from where it stopped.

The order in a step is evaluate, save, next batch, update. So the score of a checkpoint is that of
the very parameters in it, and a resumed run goes on with the batch that the killed one had next.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from spinejax.data import feeds
from spinejax.data.feeds import TrainingSource
from spinejax.errors import InputError
from spinejax.files import write_json, write_text
from spinejax.models.layer_table import count_parameters
from spinejax.tasks import Task, build_task
from spinejax.train import checkpoint, log, parallel, run_folder, settings, setup, step
from spinejax.train.checkpoint import Checkpoints, Meta, begun
from spinejax.train.log import RunLog
from spinejax.train.signals import Stop, listen
from spinejax.train.state import TrainState, create_state, inference_variables
from spinejax.train.step import parameter_names
from spinejax.train.validation import evaluate


class Pending:
    """Metrics of the last update, fetched one step late so that the device is never waited for."""

    def __init__(
        self, cases: Sequence[TrainingSource], names: Sequence[str], writer: RunLog, every: int
    ) -> None:
        self._cases, self._names, self._writer, self._every = cases, names, writer, every
        self._waiting: tuple[int, dict[str, jax.Array]] | None = None
        self._largest = ""

    def push(self, at: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of the update that leads to step `at`, and deal with those before."""
        before, self._waiting = self._waiting, (at, metrics)
        self._check(before)

    def flush(self) -> None:
        """Deal with what is waiting; afterwards the current state is known to be finite."""
        before, self._waiting = self._waiting, None
        self._check(before)

    def _check(self, item: tuple[int, dict[str, jax.Array]] | None) -> None:
        if item is None:
            return
        at, values = item[0], jax.device_get(item[1])
        if not values["finite"]:
            raise InputError(self._problem(at, values))
        leaf_max = values["leaf_max"]
        self._largest = f"{leaf_max.max():.3g} in {self._names[int(leaf_max.argmax())]}"
        if at % self._every == 0:
            scalars = ("loss", "dice", "accuracy", "learning_rate", "grad_norm")
            self._writer.train(at, {k: float(values[k]) for k in scalars})
        self._writer.advance(at, float(values["loss"]), float(values["dice"]))

    def _problem(self, at: int, values: dict[str, np.ndarray]) -> str:
        rows = zip(values["case"].tolist(), values["slice"].tolist(), strict=True)
        where = ", ".join(sorted({f"{self._cases[c].id}[{s}]" for c, s in rows}))
        leaf_max = values["leaf_max"]
        # NaN counts as larger than any number.
        worst = int(np.where(np.isnan(leaf_max), np.inf, leaf_max).argmax())
        before = f" (in the update before: {self._largest})" if self._largest else ""
        bad = int((~np.isfinite(leaf_max)).sum())
        return (
            f"training diverged at step {at}: loss {values['loss']:.6g}, largest gradient "
            f"{leaf_max[worst]:.3g} in {self._names[worst]}{before}, {bad} of {len(leaf_max)} "
            f"gradients not finite; slices of the batch: {where}; look at these slices, or lower "
            "optim.learning_rate or optim.clip_norm; what is saved is from before, and whole"
        )


class Result(NamedTuple):
    """How a run ended.

    state: host arrays; None where the run had been finished before.
    interrupted: whether a signal stopped it, everything being saved: the same command resumes.
    best: of the best evaluation, None without any.
    step: updates done.
    """

    state: TrainState | None
    interrupted: bool
    best: Meta | None
    step: int


@dataclass(frozen=True)
class Durations:
    """Lengths in steps, all at least 1; `save_every` 0 means with evaluations only."""

    total: int
    eval_every: int
    save_every: int

    def evaluates(self, at: int) -> bool:
        """Whether the state of this step is evaluated."""
        return at > 0 and (at % self.eval_every == 0 or at == self.total)

    def saves(self, at: int) -> bool:
        """Whether the state of this step is saved."""
        return self.evaluates(at) or (self.save_every > 0 and at > 0 and at % self.save_every == 0)


def durations(config: ConfigDict, steps_per_epoch: int) -> Durations:
    """Convert epochs to steps; `train.steps` wins over `train.epochs`."""
    train = config.train
    total = train.steps or max(1, math.ceil(train.epochs * steps_per_epoch))
    eval_every = max(1, round(train.eval_every_epochs * steps_per_epoch))
    return Durations(total, eval_every, train.checkpoint_every_steps)


@dataclass(frozen=True)
class _Program:
    """The compiled parts of a run."""

    mapped: parallel.Parallel
    update: Any
    evaluate: Any


def _build(
    config: ConfigDict, task: Task, mapped: parallel.Parallel, lengths: Durations, per_epoch: int
) -> tuple[_Program, Any]:
    """Return the mapped steps and the optimiser."""
    update, optimizer = step.from_config(
        config, task, total_steps=lengths.total, steps_per_epoch=per_epoch
    )
    program = _Program(
        mapped,
        mapped.map(update, sharded=(False, False), donate=True),
        mapped.map(step.make_eval_step(task), sharded=(False, True), donate=False),
    )
    return program, optimizer


def _open(config: ConfigDict, workdir: Path) -> None:
    """Check or write config.json.

    What was started and never saved anything, because of a wrong value perhaps, binds nobody.

    Raises:
        InputError: the folder belongs to another config, or cannot be written.
    """
    file = workdir / "config.json"
    try:
        if file.exists() and begun(workdir):
            settings.check_same(settings.read_config(workdir), config, workdir)
        if parallel.process_index() == 0:
            run_folder.require_room(workdir)
            write_json(file, settings.plain(config))
    except OSError as error:
        raise InputError(
            f"{workdir}: cannot be written ({error.strerror}); give a --workdir that can"
        ) from error
    parallel.barrier("config")


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    progress: bool = True,
    devices: int | None = None,
    stop: Stop | None = None,
) -> Result:
    """Train what `config` describes in `workdir`, or resume what was begun there.

    Args:
        config: the experiment.
        workdir: folder of the run; made if missing.
        progress: show bars.
        devices: use only the first so many; None for all of all processes.
        stop: asks the run to save and end, beside the signals of `signals.SIGNALS`.

    Returns:
        The final state and how the run ended.

    Raises:
        InputError: bad config, data or workdir, a damaged checkpoint, a full disk, or a loss that
            is not finite; one line that says which and what to do.
    """
    workdir = Path(workdir)
    settings.check_config(config)
    mapped = parallel.make_parallel(config.train.parallel, devices)
    # Everything that can be refused is refused before the folder is touched.
    task = build_task(config, axis_name=parallel.AXIS)
    group = task.stream.group if task.stream else 1
    mapped.check_batch(config.train.batch_size, config.optim.accumulate_steps, group)
    pretrained = checkpoint.pretrained(config, task, workdir)
    with run_folder.alone(workdir):
        _open(config, workdir)
        if (workdir / "DONE").exists():
            return _finished(workdir)
        stop = Stop() if stop is None else stop
        return _run(config, workdir, task, mapped, stop, pretrained, progress=progress)


def _finished(workdir: Path) -> Result:
    with Checkpoints(workdir) as checkpoints:
        best = checkpoints.best()
    done = int((workdir / "DONE").read_text(encoding="utf-8").split()[0])
    if parallel.process_index() == 0:
        print(f"{workdir} was finished at step {done}: nothing to do; remove DONE to check again")
    return Result(None, False, best, done)


def _run(
    config: ConfigDict,
    workdir: Path,
    task: Task,
    mapped: parallel.Parallel,
    stop: Stop,
    pretrained: dict[str, Any] | None,
    *,
    progress: bool,
) -> Result:
    split = setup.cases(config, workdir)
    cached = setup.cached(config, workdir, split, wanted=("train", "val"), progress=progress)
    feed = task.feed(cached)
    lengths = durations(config, feed.per_epoch)
    program, optimizer = _build(config, task, mapped, lengths, feed.per_epoch)
    counts = feed.counts()
    if counts and parallel.process_index() == 0:
        write_json(workdir / "patches.json", {**dict(config.data.patches), **counts})
    variables = pretrained or jax.jit(task.init)(step.named_key(config.seed, "init"))
    state = create_state(variables, optimizer, ema=config.optim.ema_decay > 0)
    record = setup.RunRecord(
        workdir,
        split,
        resumes=begun(workdir),
        devices=mapped.count,
        steps=lengths.total,
        parameters=count_parameters(state.params),
        pixels_mm=setup.pixels_mm(feed.train_cases),
    )
    if not feed.val_cases:
        logging.warning("no validation cases: there will be no best checkpoint, only the latest")

    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore(state)
        start, evaluated = 0, False
        if restored is None:
            checkpoints.forget_best()
        else:
            state, meta = restored
            start, evaluated = meta.step, meta.evaluated
            if meta.devices != mapped.count:
                logging.warning(
                    "step %d was saved on %d devices and goes on with %d: batches are the same, "
                    "rounding and dropout are not",
                    start,
                    meta.devices,
                    mapped.count,
                )
        if parallel.process_index() == 0:
            log.rewind(workdir, start, evaluated=evaluated)
        parallel.barrier("log")
        # Signals are listened to from here on: what comes before is safe to interrupt as it is.
        with (
            listen(stop),
            log.RunLog(
                workdir,
                start_step=start,
                total_steps=lengths.total,
                batch_size=config.train.batch_size,
                unit=task.sample,
                overlap=task.overlap,
                active=parallel.process_index() == 0,
                progress=progress,
            ) as writer,
        ):
            run = _Run(config, task, program, lengths, feed, checkpoints, writer, record, stop)
            result = run.go(mapped.replicate(state), start, evaluated)
        checkpoints.wait()
    if not result.interrupted and parallel.process_index() == 0:
        write_text(workdir / "DONE", f"{result.step} steps\n")
    record.update(finished=not result.interrupted)
    return result


@dataclass(frozen=True, eq=False)
class _Run:
    """All that the loop needs besides the state."""

    config: ConfigDict
    task: Task
    program: _Program
    lengths: Durations
    feed: feeds.Feed
    checkpoints: Checkpoints
    writer: log.RunLog
    record: setup.RunRecord
    stop: Stop

    def go(self, state: TrainState, start: int, evaluated: bool) -> Result:
        """Update `state`, which is donated, from step `start` to the end or to a stop."""
        mapped, lengths = self.program.mapped, self.lengths
        names = parameter_names(state.params)
        every = self.config.train.log_every_steps
        pending = Pending(self.feed.train_cases, names, self.writer, every)
        best = self.checkpoints.best()
        batches = self.feed.train(
            start_step=start,
            process_index=parallel.process_index(),
            process_count=parallel.process_count(),
        )
        at, interrupted = start, False
        try:
            while True:
                interrupted = self.stop.agreed(at)
                score, improved = None, False
                due = lengths.evaluates(at) and not evaluated and bool(self.feed.val_cases)
                if due and not interrupted:
                    pending.flush()
                    score = self._evaluate(state, at)
                    interrupted, evaluated = score is None, score is not None
                    improved = score is not None and (best is None or score > _score(best))
                if interrupted or lengths.saves(at):
                    pending.flush()
                    meta = Meta(at, evaluated, score, mapped.count)
                    # What was restored is on disk already, and the beginning needs no saving.
                    self.checkpoints.save(state, meta, best=improved, latest=at != start)
                    best = meta if improved else best
                    self.record.update()
                if interrupted or at >= lengths.total:
                    return Result(parallel.host_copy(state), interrupted, best, at)
                state, metrics = self.program.update(state, mapped.put(next(batches)))
                at, evaluated = at + 1, False
                pending.push(at, metrics)
        finally:
            batches.close()

    def _evaluate(self, state: TrainState, at: int) -> float | None:
        """Evaluate, log, and return the score; None where a signal came meanwhile."""
        variables = inference_variables(
            {"params": state.params, "batch_stats": state.batch_stats, "ema": state.ema}
        )
        outcome = evaluate(
            self.program.evaluate,
            self.program.mapped,
            variables,
            self.feed,
            pictures=self.config.train.pictures,
            stop=self.stop,
        )
        if outcome is None:
            return None
        if not math.isfinite(outcome.loss):
            raise InputError(
                f"the validation loss is not finite at step {at} although the training loss is; "
                "lower optim.learning_rate, or use train.compute_dtype=float32"
            )
        values = {"loss": outcome.loss, "dice": outcome.dice, "accuracy": outcome.accuracy}
        self.writer.val(at, values)
        self.writer.pictures(at, outcome.pictures)
        self.writer.note(
            f"step {at}: validation {self.task.overlap} {outcome.dice:.4f}, "
            f"loss {outcome.loss:.4f}, accuracy {outcome.accuracy:.4f}"
        )
        return -outcome.loss if self.config.train.best == "loss" else outcome.dice


def _score(meta: Meta) -> float:
    return -math.inf if meta.score is None else meta.score
