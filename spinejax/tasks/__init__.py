"""Tasks, one file each; `build_task` makes the record that training and inference know.

`check` refuses a config that cannot be trained; every command calls it before any work.
"""

import math
from collections.abc import Callable

from ml_collections import ConfigDict

from spinejax import models, schema
from spinejax.errors import InputError
from spinejax.tasks import (
    patch_classification,
    slice_segmentation,
    vertebra_outlines,
    vertebra_recognition,
)
from spinejax.tasks.record import Keys, Loss, LossAux, MaskTask, NameTask, OutlineTask, Task

__all__ = [
    "TASKS",
    "Keys",
    "Loss",
    "LossAux",
    "MaskTask",
    "NameTask",
    "OutlineTask",
    "Task",
    "build_task",
]

MOST_NUMBERS = 2**29
"""Most numbers of a network's input, all samples of a batch together; 2 GiB of float32."""

TASKS: dict[str, Callable[[ConfigDict, str | None], Task]] = {
    "slice_segmentation": slice_segmentation.build,
    "patch_classification": patch_classification.build,
    "vertebra_recognition": vertebra_recognition.build,
    "vertebra_outlines": vertebra_outlines.build,
}


def check(config: ConfigDict) -> None:
    """Refuse a config with which training could not begin, whatever the data.

    This takes milliseconds and starts no device.

    Raises:
        InputError: names the field, its value and what is allowed.
    """
    schema.check(config)
    for prefix, stage in (("", config), (f"{schema.SECOND}.", config.get(schema.SECOND))):
        if stage is not None:
            models.check(stage.model, prefix)
            task = build_task(stage)  # refuses samples that do not fit the network
            # How many devices there are is not known here.
            each = "_per_device" * bool(stage.train.batch_size_per_device)
            for path in (f"train.batch_size{each}", "predict.batch_size"):
                size = schema.flatten(stage)[path]
                if size * math.prod(task.input_shape) > MOST_NUMBERS:
                    sides = "x".join(map(str, task.input_shape))
                    raise InputError(
                        f"{prefix}{path}={size} inputs of {sides} numbers are too many for one "
                        f"call of the network, which takes {MOST_NUMBERS:,} numbers at most; lower "
                        "it"
                    )


def build_task(config: ConfigDict, *, axis_name: str | None = None) -> Task:
    """Build the task that `config.task` names.

    Args:
        config: the experiment.
        axis_name: device axis over which losses and BatchNorm are pooled; None for inference, which
            is not mapped over devices.

    Raises:
        InputError: a field of the network is wrong, or sizes do not fit.
    """
    return TASKS[config.task](config, axis_name)
