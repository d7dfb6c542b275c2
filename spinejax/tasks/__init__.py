"""Tasks, one file each; `build_task` makes the record that training and inference know."""

from collections.abc import Callable

from ml_collections import ConfigDict

from spinejax.tasks.patch_classification import patch_classification
from spinejax.tasks.record import Keys, Loss, LossAux, MaskTask, NameTask, Task
from spinejax.tasks.slice_segmentation import slice_segmentation
from spinejax.tasks.vertebra_recognition import vertebra_recognition

__all__ = ["TASKS", "Keys", "Loss", "LossAux", "MaskTask", "NameTask", "Task", "build_task"]

TASKS: dict[str, Callable[[ConfigDict, str | None], Task]] = {
    "slice_segmentation": slice_segmentation,
    "patch_classification": patch_classification,
    "vertebra_recognition": vertebra_recognition,
}


def build_task(config: ConfigDict, *, axis_name: str | None = None) -> Task:
    """Build the task that `config.task` names.

    Args:
        config: the experiment.
        axis_name: device axis over which losses and BatchNorm are pooled; None for inference, which
            is not mapped over devices.

    Raises:
        InputError: task, model, loss or normalisation is unknown, or sizes do not fit.
    """
    return TASKS[config.task](config, axis_name)
