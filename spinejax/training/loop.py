"""The loop of training, and a run that is trained with it in its folder.

A step is: evaluate, save, take the next batch, update. So a checkpoint and its score belong to the
same parameters, and a resumed run continues with the batch that the stopped run would have read
next. `repeat` is this loop, for any state; the search trains many settings at once with it.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

from spinejax import machine, numerics, records, schema
from spinejax.data.feeds import Batch, Feed
from spinejax.errors import InputError
from spinejax.files import expanded, write_json, write_text
from spinejax.models.layer_table import count_parameters, gigaflops
from spinejax.phantom.once import in_steps
from spinejax.phantom.online import Stream
from spinejax.progress import Progress, silent
from spinejax.sweep_state import read_run
from spinejax.tasks import Task, build_task
from spinejax.training import (
    checkpoint,
    log,
    optim,
    parallel,
    run_cases,
    run_folder,
    step,
    trackers,
)
from spinejax.training.checkpoint import Checkpoints, Meta, begun
from spinejax.training.log import RunLog
from spinejax.training.model_file import Network
from spinejax.training.run_folder import RunRecord
from spinejax.training.signals import Stop, listen
from spinejax.training.state import (
    TrainState,
    create_state,
    inference_variables,
    initial_variables,
)
from spinejax.training.validation import Evaluation, evaluate

logger = logging.getLogger("spinejax")

State = TypeVar("State")

IN_FLIGHT = 2
"""Calls that are started before the first of them is waited for, and batches put ahead of need."""

ONE_BY_ONE = ("cpu",)
"""Platforms on which a call makes one update. In loops, XLA's CPU backend computes the gradients of
convolutions some 30 times slower (jax 0.10.2), and rounds them differently."""


@dataclass(frozen=True)
class Durations:
    """Lengths in steps, at least 1; with `save_every` 0 a state is saved when it is evaluated.

    log_every: period in which metrics are fetched from the device.
    per_call: the most updates of a call of the device.
    """

    total: int
    eval_every: int
    save_every: int
    log_every: int = 1
    per_call: int = 1

    def evaluates(self, at: int) -> bool:
        """Whether the state of this step is evaluated."""
        return at > 0 and (at % self.eval_every == 0 or at == self.total)

    def saves(self, at: int) -> bool:
        """Whether the state of this step is saved."""
        return self.evaluates(at) or (self.save_every > 0 and at > 0 and at % self.save_every == 0)

    def logs(self, at: int) -> bool:
        """Whether the metrics of the update that led to this step are logged."""
        return at % self.log_every == 0

    def call(self, at: int) -> int:
        """Number of updates of the call that begins at this step.

        A call ends where a state is evaluated or saved, so `per_call` changes neither.
        """
        left = [period - at % period for period in (self.eval_every, self.save_every) if period]
        return min(self.per_call, self.total - at, *left)


def durations(config: ConfigDict, steps_per_epoch: int, platform: str = "cpu") -> Durations:
    """Convert epochs to steps; fields in steps win over those in epochs.

    `platform` is that of the devices, see `ONE_BY_ONE`.
    """
    train = config.train
    total = train.steps or max(1, math.ceil(train.epochs * steps_per_epoch))
    if total > schema.LARGEST:
        raise InputError(
            f"train.epochs={train.epochs:g} of {steps_per_epoch} steps are more than the "
            f"{schema.LARGEST} steps that can be counted; lower it, or set train.steps"
        )
    by_epochs = max(1, round(train.eval_every_epochs * steps_per_epoch))
    return Durations(
        total,
        eval_every=train.eval_every_steps or by_epochs,
        save_every=train.checkpoint_every_steps,
        log_every=train.log_every_steps,
        per_call=1 if platform in ONE_BY_ONE else train.steps_per_call,
    )


class Call(NamedTuple):
    """Consecutive updates that one call of the device has made.

    first: the step that the first of them led to.
    last: the step that the last of them led to.
    metrics: of each update, see `step.several`; leaves (updates, ...), on the device.
    """

    first: int
    last: int
    metrics: dict[str, jax.Array]


class Keeper(Protocol):
    """Receives the metrics, evaluations and states of a training.

    hopeless: whether more updates are pointless; the loop then ends.
    """

    @property
    def hopeless(self) -> bool: ...  # noqa: D102

    def advanced(self, at: int) -> None:
        """Show that the updates up to step `at` are done."""

    def updated(self, calls: Sequence[Call]) -> None:
        """Take the metrics of the calls since the last ones; what is needed is fetched here."""

    def evaluated(self, at: int, evaluation: Evaluation) -> None:
        """Take the evaluation of the state at step `at`."""

    def save(self, state: Any, at: int, *, evaluated: bool) -> None:
        """Save the state at step `at`; `evaluated`: whether it has been evaluated."""

    def say(self, text: str) -> None:
        """Show a line of text to the user."""


def repeat(
    state: State,
    *,
    start: int,
    evaluated: bool = False,
    lengths: Durations,
    update: Callable[[State, Any], tuple[State, dict[str, jax.Array]]],
    judge: Callable[[State], Evaluation | None] | None,
    batches: Generator[Batch, None, None],
    put: Callable[[Batch], Any],
    keeper: Keeper,
    stop: Stop,
) -> tuple[State, int, bool]:
    """Update `state` until the last step, a request to stop, or a hopeless state.

    The device always has a call to do: `IN_FLIGHT` calls are started before the first of them is
    waited for, and their batches are on the device before. Metrics stay there until an update is
    logged, or its state is evaluated or saved.

    Args:
        state: at step `start`; its buffers are donated.
        start: updates done before.
        evaluated: whether the state has been evaluated.
        lengths: when to evaluate, save, log and end, and how many updates a call makes.
        update: (state, what `put` returns) -> (next state, metrics), as `step.several`.
        judge: evaluates a state, None if it was asked to stop; None where nothing validates.
        batches: from batch `start` on; closed here.
        put: begins to copy the batches of a call to the device, leaves (b, updates, ...).
        keeper: receives metrics, evaluations and states.
        stop: asked before every call.

    Returns:
        The last state, its step, and whether a request to stop ended the loop.
    """
    running: deque[Call] = deque()
    done: list[Call] = []

    def wait(left: int = 0) -> None:
        """Wait until at most `left` calls run; with none left, all metrics are handed over."""
        due = left == 0
        while len(running) > left:
            call = running.popleft()
            jax.block_until_ready(call.metrics)
            done.append(call)
            keeper.advanced(call.last)
            due = due or any(map(lengths.logs, range(call.first, call.last + 1)))
        if due and done:
            keeper.updated(done)
            done.clear()

    at = start
    ahead = _ahead(batches, put, lengths, start)
    try:
        while True:
            interrupted = stop.agreed(at)
            if judge and lengths.evaluates(at) and not evaluated and not interrupted:
                wait()
                found = judge(state)
                interrupted, evaluated = found is None, found is not None
                if found is not None:
                    keeper.evaluated(at, found)
            if interrupted or lengths.saves(at):
                wait()
                keeper.save(state, at, evaluated=evaluated)
            if interrupted or at >= lengths.total or keeper.hopeless:
                wait()
                return state, at, interrupted
            began = time.monotonic()
            if at == start:
                keeper.say("compiling the first step")
            state, metrics = update(state, next(ahead))
            if at == start:
                keeper.say(f"compiled in {time.monotonic() - began:.0f} s")
            first, at, evaluated = at + 1, at + lengths.call(at), False
            running.append(Call(first, at, metrics))
            wait(IN_FLIGHT)
    finally:
        batches.close()


def _ahead(
    batches: Iterator[Batch], put: Callable[[Batch], Any], lengths: Durations, at: int
) -> Iterator[Any]:
    """Yield the batches of each call from step `at` on, and put those of the next calls before.

    Nothing is read beyond the last step.
    """
    ready: deque[Any] = deque()
    while ready or at < lengths.total:
        while at < lengths.total and len(ready) <= IN_FLIGHT:
            count = lengths.call(at)
            ready.append(put(stacked(list(islice(batches, count)))))
            at += count
        yield ready.popleft()


@contextmanager
def profiled(
    update: Callable[[State, Any], tuple[State, dict[str, jax.Array]]],
    folder: Path,
    *,
    steps: tuple[int, int],
    lengths: Durations,
    start: int,
) -> Iterator[Callable[[State, Any], tuple[State, dict[str, jax.Array]]]]:
    """Give an `update` for `repeat` that also writes a profile of some steps.

    Args:
        update: see `repeat`.
        folder: where jax makes a folder for the profile.
        steps: the first and the last step to profile; (0, 0) for none. Calls are profiled whole.
        lengths: see `repeat`.
        start: see `repeat`.
    """
    at, tracing = start, False

    def end() -> None:
        nonlocal tracing
        if tracing:
            jax.profiler.stop_trace()
        tracing = False

    def call(state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        nonlocal at, tracing
        to = at + lengths.call(at)
        if not tracing and at < steps[1] and to >= steps[0]:
            jax.block_until_ready(state)  # what ran before is no part of the profile
            jax.profiler.start_trace(folder, create_perfetto_trace=True)
            tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=to):
            state, metrics = update(state, batch)
        at = to
        if tracing and at >= steps[1]:
            jax.block_until_ready(metrics)
            end()
        return state, metrics

    try:
        yield call if steps[1] > start else update
    finally:
        end()


def stacked(batches: Sequence[Batch]) -> Batch:
    """Return the batches of one call, leaves (b, ...), as one of leaves (b, updates, ...).

    Samples stay the first axis, along which devices share a batch.
    """
    if len(batches) == 1:
        return {name: rows[:, None] for name, rows in batches[0].items()}
    return {name: np.stack([b[name] for b in batches], axis=1) for name in batches[0]}


def putter(
    stream: Stream | None, mapped: parallel.Parallel, seed: int, per_call: int
) -> Callable[[Batch], Any]:
    """Return `put` of `repeat`.

    On CPUs it adds "subject", the rows of `Stream.subjects`. Where several updates share slices and
    a call makes one update, it adds "drawn", the slices. In a call of several updates the step
    draws them again for each update, since the host can pass none between them.

    Args:
        stream: of the task.
        mapped: the devices.
        seed: of the run.
        per_call: the most updates of a call.
    """
    if stream is None:
        return mapped.put
    key = step.named_key(seed, "stream")

    def with_subjects(batch: Batch) -> Batch:
        if stream.subjects is None or not in_steps():
            return batch
        turns = batch["step"][0] // stream.updates
        rows = [
            stream.subjects(jax.random.fold_in(key, turn), batch["position"][:, 0])
            for turn in turns
        ]
        return {**batch, "subject": np.stack(rows, axis=1)}

    if stream.updates == 1 or per_call > 1:
        return lambda batch: mapped.put(with_subjects(batch))

    def drawn(turn: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[Any]:
        subject = [batch["subject"][:, 0]] if "subject" in batch else []
        rows = stream.draw(jax.random.fold_in(key, turn), batch["position"][:, 0], *subject)
        return (jax.tree.map(lambda x: x[:, None], rows),)

    draw = mapped.map(drawn, sharded=(True,), donate=False)
    last, held = -1, None

    def put(batch: Batch) -> Any:
        nonlocal last, held
        turn = batch["step"].item(0) // stream.updates
        if turn != last:
            needed = {name: batch[name] for name in ("position", "step")}
            (held,) = draw(np.int32(turn), mapped.put(with_subjects(needed)))
            last = turn
        return {**mapped.put(batch), "drawn": held}

    return put


class TrainResult(NamedTuple):
    """The end of a run.

    state: host arrays; None if the run was finished before.
    interrupted: a signal stopped the run, and its state is saved: the same command resumes it.
    best: the best evaluation; None without any.
    step: number of updates.
    """

    state: TrainState | None
    interrupted: bool
    best: Meta | None
    step: int


@numerics.fixed()
def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    begin_with: str = "",
    progress: Progress = silent,
    devices: int | None = None,
    stop: Stop | None = None,
) -> TrainResult:
    """Train what `config` describes in `workdir`, or resume the run in it.

    Args:
        config: the experiment.
        workdir: folder of the run; made if missing.
        begin_with: model whose weights are the first weights, instead of `train.init_from`.
        progress: shows how far preparation and training are.
        devices: number of devices to use, the first ones; None for all of all processes.
        stop: asks the run to save and end, like the signals of `signals.SIGNALS`.

    Returns:
        The final state and how the run ended.

    Raises:
        InputError: config, data or workdir cannot be used, a checkpoint is damaged, the disk is
            full, or a loss is not finite.
    """
    workdir = expanded(workdir)
    schema.check(config)
    # What differs between hosts, such as a folder that one of them lacks, is refused on all.
    ready = parallel.together(lambda: _ready(config, workdir, devices, begin_with=begin_with))
    config = ready.config
    with ExitStack() as stack:
        # Only the first process takes the folder; if it may not, no process goes on.
        parallel.together(lambda: stack.enter_context(run_folder.alone(workdir)))
        done = parallel.together(lambda: _check_begun(config, workdir))
        if done is not None:
            parallel.together(lambda: run_folder.write_config(workdir, config))  # scans may move
            return _finished(workdir, done)
        if not ready.task.model.LEARNS:
            return _without_training(config, workdir, ready.mapped, progress)
        stop = Stop() if stop is None else stop
        try:
            return _run(config, workdir, ready.task, ready.mapped, ready.initial, stop, progress)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise InputError(f"the training {_TOO_LARGE}") from error


def with_batch(config: ConfigDict, workdir: Path | None = None, *, devices: int) -> ConfigDict:
    """Return the config with the batch of all devices as `train.batch_size`.

    A run that has begun keeps its batch, unless the command asks for another one.

    Args:
        config: of a run.
        workdir: folder of the run; None for none.
        devices: number of devices of all processes.

    Raises:
        InputError: the batch is too large, or the config of the run is damaged.
    """
    each = config.train.batch_size_per_device
    if not each:
        return config
    size = schema.batch_size(config.train, devices)
    if workdir is not None and is_begun(workdir):
        before = run_folder.checked_config(workdir).train
        if before.batch_size_per_device == each:
            size = before.batch_size
    if not schema.fields(config.task)["train.batch_size"].allowed.fits(size):
        raise InputError(
            f"train.batch_size_per_device={each} on {devices} devices is a batch of {size} samples "
            "(train.batch_size), which is too large; lower it"
        )
    config = config.copy_and_resolve_references()
    config.train.batch_size = size
    return config


def is_begun(workdir: Path) -> bool:
    """Whether the folder holds a run that a training would resume, or that is finished."""
    return begun(workdir) or run_folder.finished_step(workdir) is not None


class _Ready(NamedTuple):
    config: ConfigDict
    mapped: parallel.Parallel
    task: Task
    initial: Network | None


def _ready(
    config: ConfigDict,
    workdir: Path,
    devices: int | None,
    *,
    begin_with: str = "",
    later: bool = False,
) -> _Ready:
    """Make what a run needs beside its data. Nothing is written.

    With `later`, an earlier run of the same command makes the first weights.

    Raises:
        InputError: whatever can be refused without the data.
    """
    run_folder.check_owner(workdir)
    mapped = parallel.make_parallel(config.train.parallel, devices)
    config = with_batch(config, workdir, devices=mapped.count)
    trackers.check(config.train.trackers)
    task = build_task(config, axis_name=parallel.AXIS)
    group = task.stream.group if task.stream else 1
    # A run that has begun continues with its own weights.
    resumes = begun(workdir)
    mapped.check_batch(config.train.batch_size, config.optim.accumulate_steps, group, begun=resumes)
    initial = None
    if not resumes and not later:
        initial = checkpoint.pretrained(config, task, begin_with)
    if task.model.LEARNS:
        stream = config.data.phantom.epoch_batches if config.data.source == schema.STREAM else 0
        if config.train.steps or stream:  # else the number of scans sets the length
            optim.build(
                config.optim,
                batch_size=config.train.batch_size,
                total_steps=durations(config, stream).total,
                steps_per_epoch=max(1, stream),
            )
        if initial is None and run_folder.finished_step(workdir) is None:
            key = step.named_key(config.seed, "init")
            shapes = jax.eval_shape(task.init, key)["params"]
            _require_memory(config, task, count_parameters(shapes))
    return _Ready(config, mapped, task, initial)


def _check_begun(config: ConfigDict, workdir: Path) -> int | None:
    """Refuse another config than that of the run in a folder; return its end if it is finished."""
    done = run_folder.finished_step(workdir)
    if done is not None or begun(workdir):
        run_folder.check_same(run_folder.checked_config(workdir), config, workdir)
    return done


@numerics.fixed()
def check(
    config: ConfigDict, workdir: Path, *, later: bool = False, devices: int | None = None
) -> None:
    """Refuse a run that `train` would refuse before it reads a scan. Nothing is written.

    Args:
        config: the experiment; `tasks.check` has accepted it.
        workdir: folder of the run.
        later: whether an earlier run of the same command makes the first weights.
        devices: see `train`.

    Raises:
        InputError: see `train`.
    """
    ready = _ready(config, workdir, devices, later=later)
    if _check_begun(ready.config, workdir) is None:
        run_cases.check(ready.config)


_TOO_LARGE = (
    "needs more memory than there is; lower train.batch_size, raise optim.accumulate_steps, set "
    "train.remat=true, or choose a smaller network"
)
_LARGE_BATCH = 2**24  # numbers of the input from which the compiler is asked, which takes seconds


def _require_memory(config: ConfigDict, task: Task, parameters: int) -> None:
    """Refuse a training that this machine's memory cannot hold; XLA would end the process.

    Raises:
        InputError: parameters, their gradients and the optimiser's two moments, or all arrays of an
            update, do not fit. Devices with a memory of their own raise errors themselves.
    """
    if jax.default_backend() != "cpu":
        return
    needed = 4 * 4 * parameters
    if config.train.batch_size * math.prod(task.input_shape) > _LARGE_BATCH:
        # Batches, validation and checkpoints add a third (measured with 3000 and 6000 slices).
        needed = max(needed, 3 * (step.step_bytes(config) or 0) // 2)
    free = machine.available_bytes()
    if free is not None and needed > free:
        raise InputError(
            f"the training {_TOO_LARGE} (about {needed / 2**30:.1f} GiB are needed, "
            f"{free / 2**30:.1f} GiB are free)"
        )


def _finished(workdir: Path, done: int) -> TrainResult:
    with Checkpoints(workdir) as checkpoints:
        best = checkpoints.best()
    logger.info(
        "%s was finished at step %d: nothing to do; remove DONE to check again", workdir, done
    )
    return TrainResult(None, False, best, done)


def _without_training(
    config: ConfigDict, workdir: Path, mapped: parallel.Parallel, progress: Progress
) -> TrainResult:
    """Write the finished run of a network without parameters, which has no steps."""
    cases = run_cases.find(config, workdir, progress=progress)
    run_folder.write_config(workdir, config)
    side = config.data.preprocess.spacing_mm
    record = RunRecord(
        workdir,
        cases,
        resumes=False,
        devices=mapped.count,
        steps=0,
        parameters=0,
        gflops=0.0,
        pixels_mm=(side, side),
    )
    record.update(finished=True)
    if parallel.process_index() == 0:
        write_text(workdir / "DONE", "0 steps\n", "run")
        logger.info("%s has no parameters: nothing to train", config.model.name)
    return TrainResult(None, False, None, 0)


def _run(
    config: ConfigDict,
    workdir: Path,
    task: Task,
    mapped: parallel.Parallel,
    initial: Network | None,
    stop: Stop,
    progress: Progress,
) -> TrainResult:
    first = parallel.process_index() == 0
    cases = run_cases.find(config, workdir, progress=progress)
    cached = run_cases.prepare(
        config, workdir, cases=cases, wanted=("train", "val"), progress=progress
    )
    feed = task.feed(cached)
    lengths = durations(config, feed.per_epoch, mapped.platform)
    update, optimizer = step.from_config(
        config, task, total_steps=lengths.total, steps_per_epoch=feed.per_epoch
    )
    update = mapped.map(step.several(update), sharded=(False, False), donate=True)
    score = mapped.map(step.make_eval_step(task), sharded=(False, True), donate=False)
    for line in initial.training.get("random", ()) if initial else ():
        logger.info("begins with random weights: %s", line)

    def first_state() -> TrainState:
        if initial:
            variables = initial.variables
        else:
            variables = initial_variables(task.init, step.named_key(config.seed, "init"))
        average = config.optim.ema_decay > 0
        return jax.jit(lambda v: create_state(v, optimizer, ema=average))(variables)

    resumes = begun(workdir)
    # A resumed run reads its state, and draws no weights; until then the shapes are enough.
    state = step.arguments(config, task, optimizer)[0] if resumes else first_state()

    earlier = read_run(workdir).get("processes") if resumes else None

    def own() -> None:
        """From here on the folder belongs to this config."""
        recorded = feed.record()
        for name, content in recorded.items():
            _check_same_samples(workdir / name, content, config.seed)
        run_folder.write_config(workdir, config)
        for name, content in recorded.items() if first else ():
            write_json(workdir / name, content, "run")

    parallel.together(own)
    spacings = [side for case in feed.train_cases for side in case.spacing_mm]
    record = RunRecord(
        workdir,
        cases,
        resumes=resumes,
        devices=mapped.count,
        steps=lengths.total,
        parameters=count_parameters(state.params),
        gflops=gigaflops(task.model, inference_variables(vars(state)), task.input_shape),
        pixels_mm=(min(spacings), max(spacings)),
        initial=initial.origin if initial else None,
    )
    if not feed.val_cases:
        logger.warning("no validation cases: there will be no best checkpoint, only the latest")

    def judge(state: TrainState) -> Evaluation | None:
        held = inference_variables(vars(state))
        return evaluate(score, mapped, held, feed, pictures=config.train.pictures, stop=stop)

    with Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore(state)
        start, evaluated = 0, False
        if restored is None:
            checkpoints.forget_best()
            if resumes:  # another process has removed the checkpoints since
                state = first_state()
        else:
            state, meta = restored
            start, evaluated = meta.step, meta.evaluated
            processes = parallel.process_count()
            before = meta.devices, earlier if isinstance(earlier, int) else processes
            now = mapped.count, processes
            changes = _changed_devices(config, before, now, start)
            if changes and first:
                logger.warning("%s", changes)
        if first:
            log.rewind(workdir, start, evaluated=evaluated)
        parallel.barrier("log")
        # Signals are handled from here on; before, the default handling loses nothing.
        with (
            listen(stop),
            # A tracker that does not start on the first process ends all of them.
            parallel.together(
                lambda: RunLog(
                    workdir,
                    start_step=start,
                    total_steps=lengths.total,
                    batch_size=config.train.batch_size,
                    sample=task.sample,
                    overlap=task.overlap,
                    track=config.train.trackers,
                    fields=schema.flatten(schema.plain(config)),
                    active=first,
                    progress=progress,
                )
            ) as writer,
            profiled(
                update,
                workdir / "profile",
                steps=config.train.profile_steps if first else (0, 0),
                lengths=lengths,
                start=start,
            ) as update,
        ):
            writer.say(_batch_and_rate(config, mapped.count))
            begin, end = config.train.profile_steps
            if first and end and (begin > lengths.total or end <= start):
                writer.say(
                    f"train.profile_steps={begin}, {end}: this training makes the steps "
                    f"{start + 1} to {lengths.total}, so no profile will be written"
                )
            if lengths.per_call < config.train.steps_per_call:
                writer.say(
                    f"train.steps_per_call={config.train.steps_per_call}: on a "
                    f"{mapped.platform.upper()} each call makes one step"
                )
            keeper = _RunKeeper(
                config=config,
                task=task,
                feed=feed,
                names=step.parameter_names(state.params),
                checkpoints=checkpoints,
                writer=writer,
                record=record,
                devices=mapped.count,
                start=start,
                judged=start if evaluated else 0,
                eval_every=lengths.eval_every,
                best=checkpoints.best(),
            )
            state, at, interrupted = repeat(
                mapped.replicate(state),
                start=start,
                evaluated=evaluated,
                lengths=lengths,
                update=update,
                judge=judge if feed.val_cases else None,
                batches=feed.train(
                    start_step=start,
                    process_index=parallel.process_index(),
                    process_count=parallel.process_count(),
                ),
                put=putter(task.stream, mapped, config.seed, lengths.per_call),
                keeper=keeper,
                stop=stop,
            )
            writer.interrupted = interrupted
        checkpoints.wait()
    if first and not interrupted:
        write_text(workdir / "DONE", f"{at} steps\n", "run")
    record.update(finished=not interrupted)
    return TrainResult(parallel.host_copy(state), interrupted, keeper.best, at)


def _check_same_samples(file: Path, content: Mapping[str, Any], seed: int) -> None:
    """Refuse to go on with a run whose samples are not those that it began with."""
    before = records.read_or_empty(file) if begun(file.parent) else {}
    if before and "split_seed" in content:  # earlier versions pooled and split patches by the seed
        before.setdefault("split_seed", seed)
    changed = [name for name in content if name in before and before[name] != content[name]]
    if changed:
        raise InputError(
            f"{file}: the samples of the run now differ in {changed[0]} ({before[changed[0]]} "
            f"before, {content[changed[0]]} now); restore the data, or train in another --workdir"
        )


def _batch_and_rate(config: ConfigDict, devices: int) -> str:
    """Return the batch and the learning rate that a config comes to, in words."""
    fields, size = config.optim, config.train.batch_size
    text = f"batch: {size} {_plural(size, 'sample')}"
    if devices > 1:
        text += f", {size // devices} on each of {devices} devices"
    if fields.accumulate_steps > 1:
        text += f" in {fields.accumulate_steps} parts"
    rate = optim.scaled_rate(fields, size)
    text += f"; learning rate: {rate:.4g}"
    if fields.scale_rate != "none":
        base = fields.base_batch_size
        text += f" ({fields.learning_rate:.4g} for {base}, {fields.scale_rate})"
    if fields.warmup_steps:
        count = fields.warmup_steps
        text += f" after {count} {_plural(count, 'step')} of warm-up"
    return text


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"


def _changed_devices(
    config: ConfigDict, before: tuple[int, int], now: tuple[int, int], step: int
) -> str:
    """Return what another number of devices or processes changes in a resumed run; "" for none.

    Args:
        config: of the run.
        before: devices and processes that saved the checkpoint.
        now: those of this start.
        step: of the checkpoint.
    """
    if before == now:
        return ""
    was, uses = (
        f"{devices} {_plural(devices, 'device')} of {count} process{'es' * (count > 1)}"
        for devices, count in (before, now)
    )
    differing = ["rounding", "which channels dropout drops"]
    if config.optim.accumulate_steps > 1:
        differing.append("which samples form a part of a batch (optim.accumulate_steps)")
    size = config.train.batch_size
    return (
        f"step {step} was saved on {was}, and training continues on {uses}: each batch still has "
        f"the same {size} samples, now {size // now[0]} on a device (was {size // before[0]}); "
        f"{', '.join(differing[:-1])} and {differing[-1]} differ"
    )


@dataclass(eq=False)
class _RunKeeper:
    """Logs and saves a run, and stops it when a number is not finite or it no longer improves."""

    config: ConfigDict
    task: Task
    feed: Feed
    names: list[str]
    checkpoints: Checkpoints
    writer: RunLog
    record: RunRecord
    devices: int
    start: int
    judged: int  # step of the last evaluation
    eval_every: int
    best: Meta | None
    score: float | None = None  # of the state that is saved next
    improved: bool = False
    before: Call | None = None  # whose metrics were taken last

    @property
    def hopeless(self) -> bool:
        """Whether the last `train.patience` evaluations were no better than an earlier one.

        The steps of the last and of the best one say so, so a resumed run knows it, too.
        """
        patience, best = self.config.train.patience, self.best
        return bool(patience and best and self.judged - best.step >= patience * self.eval_every)

    def advanced(self, at: int) -> None:
        self.writer.advance(at)

    def updated(self, calls: Sequence[Call]) -> None:
        finite = jax.device_get([call.metrics["finite"] for call in calls])
        earlier = [self.before, *calls]
        for call, fine, before in zip(calls, finite, earlier, strict=False):
            bad = int(np.argmin(fine))
            steps = range(call.first, call.last + 1)
            logged = [s for s in steps if s % self.config.train.log_every_steps == 0]
            if logged:
                scalars = ("loss", "dice", "accuracy", "learning_rate", "grad_norm")
                values = jax.device_get({name: call.metrics[name] for name in scalars})
            for at in logged:
                if fine.all() or at < steps[bad]:
                    row = at - call.first
                    self.writer.train(at, {name: float(x[row]) for name, x in values.items()})
            if not fine.all():
                raise InputError(self._divergence(call, bad, before))
        self.before = calls[-1]
        self.checkpoints.check()

    def _divergence(self, call: Call, row: int, before: Call | None) -> str:
        metrics = {name: x[row] for name, x in jax.device_get(call.metrics).items()}
        cases, sample = self.feed.train_cases, self.task.sample
        rows = zip(metrics["case"].tolist(), metrics["index"].tolist(), strict=True)
        where = ", ".join(sorted({f"{cases[case].id}[{index}]" for case, index in rows}))
        leaf_max = metrics["leaf_max"]
        # NaN counts as larger than any number.
        worst = int(np.where(np.isnan(leaf_max), np.inf, leaf_max).argmax())
        largest = ""
        earlier, place = (call, row - 1) if row else (before, -1)
        if earlier is not None:
            values = jax.device_get(earlier.metrics["leaf_max"])[place]
            name = self.names[int(values.argmax())]
            largest = f" (in the update before: {values.max():.3g} in {name})"
        bad = int((~np.isfinite(leaf_max)).sum())
        return (
            f"training diverged at step {call.first + row}: loss {metrics['loss']:.6g}, largest "
            f"gradient {leaf_max[worst]:.3g} in {self.names[worst]}{largest}, {bad} of "
            f"{len(leaf_max)} gradients not finite; {sample} of the batch: {where}; look at these "
            f"{sample}, or lower optim.learning_rate or optim.clip_norm; the saved checkpoints are "
            "from before and whole"
        )

    def evaluated(self, at: int, evaluation: Evaluation) -> None:
        values = {name: float(getattr(evaluation, name)) for name in ("loss", "dice", "accuracy")}
        if not math.isfinite(values["loss"]):
            raise InputError(
                f"the validation loss is not finite at step {at} although the training loss is; "
                "lower optim.learning_rate, or use train.compute_dtype=float32"
            )
        self.judged = at
        self.writer.val(at, values)
        self.writer.pictures(at, evaluation.pictures)
        self.say(
            f"step {at}: validation {self.task.overlap} {values['dice']:.4f}, "
            f"loss {values['loss']:.4f}, accuracy {values['accuracy']:.4f}"
        )
        self.score = -values["loss"] if self.config.train.best == "loss" else values["dice"]
        before = -math.inf if self.best is None or self.best.score is None else self.best.score
        self.improved = self.best is None or self.score > before

    def save(self, state: TrainState, at: int, *, evaluated: bool) -> None:
        meta = Meta(at, evaluated, self.score, self.devices)
        # The latest state at the start is on disk already, or is the initial one.
        self.checkpoints.save(state, meta, best=self.improved, latest=at != self.start)
        self.best = meta if self.improved else self.best
        self.score, self.improved = None, False
        self.record.update()
        if self.hopeless and self.best:
            self.say(f"step {at}: training ends, nothing was better than step {self.best.step}")

    def say(self, text: str) -> None:
        self.writer.say(text)
