"""Training a pipeline: a run that segments the spine, then a run that names the vertebrae.

The config of the second run is the block `vertebrae` of the first run's config, and its folder is
the folder `vertebrae` in the first run's folder. A config without that block is a single run.

A PaDBN that would begin with random weights is pretrained first: one run for each hidden layer, in
the folders `rbm_1`, `rbm_2` ... of its run.
"""

import logging
import math
import re
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from spinejax import models, schema, tasks
from spinejax.config_files import get_config
from spinejax.errors import InputError, shown
from spinejax.files import StrPath, expanded
from spinejax.progress import Progress, silent
from spinejax.training import checkpoint, loop, parallel, run_folder
from spinejax.training.loop import TrainResult
from spinejax.training.signals import Stop, listen

logger = logging.getLogger("spinejax")


def stages(config: ConfigDict, workdir: StrPath) -> list[tuple[ConfigDict, Path]]:
    """Return the config and the folder of each run.

    Raises:
        InputError: the config cannot be used.
    """
    tasks.check(config)
    folder = expanded(workdir)
    found = [(config, folder)]
    if schema.SECOND in config:
        found.append((config[schema.SECOND], folder / schema.SECOND))
    return found


def pretraining(config: ConfigDict, folder: Path) -> list[tuple[ConfigDict, Path]]:
    """Return the config and the folder of each run that pretrains a layer, from the first layer on.

    Args:
        config: of a network.
        folder: of its run.
    """
    network = {name: field.default for name, field in models.fields(config.model.name).items()}
    network |= dict(config.model)
    share = network.get("rbm_share", 0)
    if not share or network["rbm"] or config.train.init_from:
        return []
    found = []
    for number in range(1, len(network["widths"]) + 1):
        one = config.copy_and_resolve_references()
        with one.unlocked():  # a config may leave out fields of its network
            one.model.rbm = number
        one.data.cache_dir = config.data.cache_dir or str(folder / "cache")
        one.train.update(
            epochs=share * config.train.epochs,
            steps=math.ceil(share * config.train.steps),
            best="loss",
        )
        # Weight decay would also shrink the layers that do not learn.
        one.optim.update(weight_decay=0.0, schedule="constant")
        found.append((one, folder / f"rbm_{number}"))
    return found


def train(
    config: ConfigDict | str,
    workdir: StrPath,
    *,
    first: StrPath | None = None,
    progress: Progress = silent,
    devices: int | None = None,
    stop: Stop | None = None,
) -> TrainResult:
    """Train a run or a pipeline in a folder, or resume it there.

    Args:
        config: the experiment, or where it is: "configs/demo.py", "chasppraunet:debug".
        workdir: folder of the run; made if missing.
        first: folder of a run of the first network alone, which other pipelines take, too. It is
            trained there if it is not yet, and copied. A run of several processes ignores it.
        progress: shows the progress of preparing and training.
        devices: use only this many devices; None uses all devices of all processes.
        stop: another thread may ask it to save and stop, as the signals of `signals.SIGNALS` do.

    Returns:
        How the last run ended; no run begins after one that was interrupted.

    Raises:
        InputError: bad config, data or workdir, a damaged checkpoint, a full disk, or a loss that
            is not finite.
    """
    if isinstance(config, str):
        config = get_config(config)
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"{shown(config)} is no config; give a ConfigDict, or the name of one such as 'unet'"
        )
    runs = stages(config, workdir)
    parallel.together(lambda: _check(config, runs, devices))
    stop = Stop() if stop is None else stop
    shares = len(runs) > 1 and parallel.process_count() == 1
    if first is not None and shares and not checkpoint.begun(runs[0][1]):
        result = _train_first(
            config, expanded(first), progress=progress, devices=devices, stop=stop
        )
        if result.interrupted:
            return result
        mapped = parallel.make_parallel(config.train.parallel, devices)
        taken = loop.with_batch(config, expanded(first), devices=mapped.count)
        run_folder.take(expanded(first), runs[0][1], taken)
    for stage, folder in runs:
        begin_with = ""
        for one, place in _chain(stage, folder):
            result = loop.train(
                one, place, begin_with=begin_with, progress=progress, devices=devices, stop=stop
            )
            if result.interrupted:
                return result
            begin_with = str(place)
    return result


def _check(config: ConfigDict, runs: list[tuple[ConfigDict, Path]], devices: int | None) -> None:
    """Refuse now what would be refused only after other runs have trained for hours."""
    for _, folder in runs:
        run_folder.check_owner(folder)
    for stage, folder in runs:
        chain = _chain(stage, folder)
        for one, place in chain if len(runs) + len(chain) > 2 else ():
            try:
                loop.check(one, place, later=place != chain[0][1], devices=devices)
            except InputError as error:
                raise InputError(_of_stage(error, stage is config, one is stage, place)) from error


def _chain(config: ConfigDict, folder: Path) -> list[tuple[ConfigDict, Path]]:
    """Return the runs of a network: those that pretrain it if it has not begun, then its own."""
    before = [] if checkpoint.begun(folder) else pretraining(config, folder)
    return [*before, (config, folder)]


def _of_stage(error: InputError, first: bool, own: bool, place: Path) -> str:
    """Return the message of an error with the block of the config, or the folder, it belongs to."""
    text = str(error)
    if not own:
        return f"{place.name}: {text}"
    if first:
        return text
    return f"{schema.SECOND}{'.' if _FIELD.match(text) else ': '}{text}"


_FIELD = re.compile(r"(train|optim|data|model|loss|augment|predict)\.[a-z_]+")  # a field's name


_LOOK_S = 2.0  # between two looks at a folder in which another process trains


def _train_first(config: ConfigDict, folder: Path, *, stop: Stop, **how: Any) -> TrainResult:
    """Train the first network of a pipeline alone, or wait until another process has trained it."""
    own = config.copy_and_resolve_references()
    del own[schema.SECOND]
    waits = False
    with listen(stop):
        while True:
            try:
                return loop.train(own, folder, stop=stop, **how)
            except run_folder.BusyError:
                if stop:
                    return TrainResult(None, True, None, 0)
                if not waits:
                    logger.info("%s: waiting until another process has trained it", folder)
                waits = True
                time.sleep(_LOOK_S)
