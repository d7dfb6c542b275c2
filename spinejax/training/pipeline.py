"""Training a pipeline: a run that segments the spine, then a run that names the vertebrae.

The config of the second run is the block `vertebrae` of the first run's config, and its folder is
the folder `vertebrae` in the first run's folder. A config without that block is a single run.
"""

from pathlib import Path

from ml_collections import ConfigDict

from spinejax import schema, tasks
from spinejax.config_files import get_config
from spinejax.errors import InputError, shown
from spinejax.files import StrPath, expanded
from spinejax.progress import Progress, silent
from spinejax.tasks import build_task
from spinejax.training import checkpoint, loop, run_folder
from spinejax.training.loop import TrainResult
from spinejax.training.signals import Stop


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


def train(
    config: ConfigDict | str,
    workdir: StrPath,
    *,
    progress: Progress = silent,
    devices: int | None = None,
    stop: Stop | None = None,
) -> TrainResult:
    """Train a run or a pipeline in a folder, or resume it there.

    Args:
        config: the experiment, or where it is: "configs/demo.py", "chasppraunet:debug".
        workdir: folder of the run; made if missing.
        progress: shows the progress of preparing and training.
        devices: use only this many devices; None uses all devices of all processes.
        stop: another thread may ask it to save and stop, as the signals of `signals.SIGNALS` do.

    Returns:
        How the last run ended; the second run does not begin if the first was interrupted.

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
    for stage, folder in runs:  # before the first run trains for hours
        run_folder.check_owner(folder)
        if len(runs) > 1 and not checkpoint.begun(folder):
            try:
                checkpoint.pretrained(stage, build_task(stage))
            except InputError as error:
                prefix = "" if stage is config else f"{schema.SECOND}."
                raise InputError(f"{prefix}{error}") from error
    for stage, folder in runs:
        result = loop.train(stage, folder, progress=progress, devices=devices, stop=stop)
        if result.interrupted:
            break
    return result
