"""What networks cost: parameters, arithmetic, memory of a step; one config, or two side by side."""

import math
from collections.abc import Sequence

from ml_collections import ConfigDict

from spinejax import schema
from spinejax.errors import InputError
from spinejax.models import layer_table
from spinejax.tasks import build_task
from spinejax.train import step

_MEASURES = (("parameters", ","), ("GFLOPs of a sample", ".3g"), ("GiB of a step", ".3g"))


def summarize(stages: Sequence[ConfigDict]) -> str:
    """Return the layer table, `parameters: N` and the GFLOPs of each network of an experiment."""
    tasks = [build_task(stage) for stage in stages]
    return "\n\n".join(layer_table.summarize(task.model, task.input_shape) for task in tasks)


def compare(
    first: Sequence[ConfigDict], second: Sequence[ConfigDict], names: tuple[str, str]
) -> str:
    """Return two experiments side by side: what their networks cost, and the fields that differ.

    Args:
        first: configs of the networks of an experiment: one, or the two of a pipeline.
        second: of the other experiment.
        names: what to call them.

    Raises:
        InputError: a pipeline and a single network.
    """
    if len(first) != len(second):
        raise InputError(
            f"{names[0]} has {len(first)} and {names[1]} {len(second)} networks; compare two "
            "pipelines, or two single networks"
        )
    return "\n\n".join(_table(pair, names) for pair in zip(first, second, strict=True))


def _table(pair: tuple[ConfigDict, ConfigDict], names: tuple[str, str]) -> str:
    rows = [("", *names, "ratio")]
    for (title, form), a, b in zip(_MEASURES, *map(_measure, pair), strict=True):
        rows.append((title, format(a, form), format(b, form), f"{b / a:.2f}"))
    flat = [schema.flatten(schema.plain(stage)) for stage in pair]
    for key in sorted(flat[0] | flat[1]):
        values = [fields.get(key, "-") for fields in flat]
        if values[0] != values[1]:
            rows.append((key, str(values[0]), str(values[1]), ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _measure(config: ConfigDict) -> tuple[int, float, float]:
    task = build_task(config)
    parameters, giga = layer_table.totals(task.model, task.input_shape)
    return parameters, giga, (step.step_bytes(config) or math.nan) / 2**30
