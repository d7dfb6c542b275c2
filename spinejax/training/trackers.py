"""The programs that show the metrics of runs: TensorBoard, and those that `train.trackers` names.

    <workdir>/tensorboard/     always
    <workdir>/mlflow/          MLflow's database and pictures, unless MLFLOW_TRACKING_URI is set
    <workdir>/wandb/           the files of Weights & Biases
    <workdir>/trackers.json    name of a tracker -> its id of this run, for a resumed run

Nothing leaves the machine unless the environment asks for it: MLFLOW_TRACKING_URI names a server,
WANDB_MODE=online uploads. Only the first process of a run starts trackers. The packages of MLflow
and Weights & Biases are imported when a run asks for them, and TensorBoard's with the first run:
tensorboardX imports torch where that is installed.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from spinejax import records
from spinejax.errors import EXIT_INTERRUPTED, InputError, is_disk_full
from spinejax.files import write_json

logger = logging.getLogger("spinejax")

FILE = "trackers.json"
PROJECT = "spinejax"
"""Name of the experiment in MLflow, and of the project in Weights & Biases."""
FINISHED, INTERRUPTED, FAILED = "finished", "interrupted", "failed"
"""How a start of a run ends."""


class Tracker(Protocol):
    """What takes the metrics of one run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values at a step, by names such as "train/loss"."""

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Take pictures (h, w, 3) uint8 at a step, by name."""

    def close(self, end: str) -> None:
        """Write what is pending; `end` is FINISHED, INTERRUPTED or FAILED."""


class Start(NamedTuple):
    """What a tracker is told about a start of a run.

    workdir: folder of the run.
    step: number of updates before this start.
    fields: the config, by dotted key.
    id: what the tracker called the run at an earlier start; "" at the first.
    """

    workdir: Path
    step: int
    fields: Mapping[str, Any]
    id: str = ""

    @property
    def name(self) -> str:
        """Name of the run: the last two parts of its path, such as "sweep/unit"."""
        return "/".join(self.workdir.absolute().parts[-2:])


class TensorBoard:
    """Writes TensorBoard's events."""

    def __init__(self, start: Start) -> None:
        """Open a file of events."""
        import tensorboardX

        # Without `purge_step` TensorBoard shows steps that are trained again as a second line.
        self._events = tensorboardX.SummaryWriter(
            str(start.workdir / "tensorboard"), purge_step=start.step + 1
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """See `Tracker`."""
        for name, image in images.items():
            self._events.add_image(name, image, step, dataformats="HWC")

    def close(self, end: str) -> None:
        """See `Tracker`."""
        self._events.close()


class Mlflow:
    """Writes a run of MLflow. A step that it has from an earlier start is not written again."""

    _ENDS = {FINISHED: "FINISHED", INTERRUPTED: "KILLED", FAILED: "FAILED"}

    def __init__(self, start: Start) -> None:
        """Begin a run, or go on with that of an earlier start."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow
        from mlflow import entities

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table it makes
        self._metric = entities.Metric
        folder = (start.workdir / "mlflow").absolute()
        place = None
        if mlflow.is_tracking_uri_set():
            self._client = mlflow.MlflowClient()
        else:
            folder.mkdir(exist_ok=True)
            self._client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
            place = (folder / "artifacts").as_uri()
        if start.id:
            self.id = start.id
            self._client.update_run(self.id, status="RUNNING")
        else:
            found = self._client.get_experiment_by_name(PROJECT)
            experiment = (
                found.experiment_id
                if found
                else self._client.create_experiment(PROJECT, artifact_location=place)
            )
            self.id = self._client.create_run(experiment, run_name=start.name).info.run_id
            fields = [entities.Param(key, str(value)) for key, value in start.fields.items()]
            self._client.log_batch(self.id, params=fields)
        self._last = {
            name: max(one.step for one in self._client.get_metric_history(self.id, name))
            for name in self._client.get_run(self.id).data.metrics
        }

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        now = round(1000 * time.time())
        new = [
            self._metric(name, value, now, step)
            for name, value in values.items()
            if step > self._last.get(name, -1)
        ]
        self._client.log_batch(self.id, metrics=new)

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """See `Tracker`."""
        for name, image in images.items():
            self._client.log_image(self.id, image, artifact_file=f"{name}/step{step:09d}.png")

    def close(self, end: str) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self.id, self._ENDS[end])


class Wandb:
    """Writes a run of Weights & Biases; each start of the run has a folder of its own."""

    _ENDS = {FINISHED: 0, INTERRUPTED: EXIT_INTERRUPTED, FAILED: 1}

    def __init__(self, start: Start) -> None:
        """Begin a run, or go on with that of an earlier start."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            dir=start.workdir.absolute(),
            project=PROJECT,
            name=start.name,
            id=start.id or None,
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=dict(start.fields),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.id = self._run.id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(dict(values), step=step)

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """See `Tracker`."""
        self._run.log({name: self._image(image) for name, image in images.items()}, step=step)

    def close(self, end: str) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=self._ENDS[end])


TRACKERS: dict[str, Callable[[Start], Any]] = {"mlflow": Mlflow, "wandb": Wandb}
"""The words of `train.trackers`; each is also the name of a package."""


def check(names: Sequence[str]) -> None:
    """Refuse trackers whose packages are not installed.

    Raises:
        InputError: names the package.
    """
    for name in names:
        try:
            # A folder `wandb` or `mlflow` in the current folder counts as importable.
            metadata.version(name)
        except metadata.PackageNotFoundError:
            raise InputError(
                f"train.trackers={name}: the package {name} is not installed; install it with "
                f"`pip install -e '.[tracking]'`, or leave {name} out"
            ) from None


def _cause(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


class Trackers:
    """The trackers of a run as one. One that fails is left out from then on, with a warning."""

    def __init__(self, members: Mapping[str, Tracker]) -> None:
        """Take trackers by name."""
        self._members = dict(members)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._each(lambda one: one.scalars(step, values))

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """See `Tracker`."""
        self._each(lambda one: one.pictures(step, images))

    def close(self, end: str) -> None:
        """See `Tracker`."""
        self._each(lambda one: one.close(end))

    def _each(self, write: Callable[[Tracker], None]) -> None:
        """Call `write` with each tracker.

        Raises:
            OSError: the disk is full.
        """
        for name, one in list(self._members.items()):
            try:
                write(one)
            except Exception as error:  # theirs, of many kinds; training does not depend on them
                if isinstance(error, OSError) and is_disk_full(error):
                    raise
                del self._members[name]
                logger.warning(
                    "%s takes no more metrics (%s); training goes on without it, and metrics.jsonl "
                    "has all of them",
                    name,
                    _cause(error),
                )


def begin(
    names: Sequence[str],
    *,
    workdir: Path,
    start_step: int,
    total_steps: int,
    fields: Mapping[str, Any],
) -> Trackers:
    """Start the trackers of a run.

    Args:
        names: of those beside TensorBoard.
        workdir: folder of the run.
        start_step: number of updates before this start.
        total_steps: of the whole run. A run with no update left begins nothing new in a tracker.
        fields: the config, by dotted key.

    Raises:
        InputError: a tracker does not start.
        OSError: the folder cannot be written.
    """
    file = workdir / FILE
    ids = records.read_if_there(
        file, {str: str}, f"remove {file} to begin new runs in the trackers"
    )
    found: dict[str, Tracker] = {"tensorboard": TensorBoard(Start(workdir, start_step, fields))}
    for name in names:
        if name not in ids and start_step >= total_steps:
            continue
        try:
            one = TRACKERS[name](Start(workdir, start_step, fields, ids.get(name, "")))
        except Exception as error:  # theirs, of many kinds
            remedy = f"remove {file} to begin a new run in it, or " if name in ids else ""
            raise InputError(
                f"train.trackers={name}: does not start ({_cause(error)}); {remedy}leave it out"
            ) from error
        found[name] = one
        if ids.get(name) != one.id:
            ids[name] = one.id
            write_json(file, ids, "run")
    return Trackers(found)
