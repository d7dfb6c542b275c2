"""`spinejax summarize`: the layers of a network and its costs; two networks side by side."""

import math
from collections.abc import Sequence

from absl import flags
from absl.flags import FlagValues
from ml_collections import ConfigDict

from spinejax import config_files, schema
from spinejax.commands import parsing
from spinejax.errors import InputError
from spinejax.text_table import text_table

HELP = "show layers, parameters and GFLOPs of a network"

_MEASURES = (("parameters", ","), ("GFLOPs of a sample", ".3g"), ("GiB of a step", ".3g"))


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    parsing.config_flag(values)
    flags.DEFINE_string(
        "against",
        "",
        "A second config: print both side by side, with the memory of a training step.",
        flag_values=values,
    )


def run(values: FlagValues) -> int:
    """Print the layer tables, or the comparison of --against."""
    stages = _stages(parsing.config(values))
    if values.against:
        other = config_files.get_config(values.against, parsing.overrides(values))
        print(compare(stages, _stages(other), (values.config, values.against)))
        return 0
    from spinejax.models import layer_table
    from spinejax.tasks import build_task

    tasks = [build_task(stage) for stage in stages]
    tables = [layer_table.summarize(task.model, task.input_shape) for task in tasks]
    print("\n\n".join(tables))
    return 0


def _stages(config: ConfigDict) -> list[ConfigDict]:
    """Return the checked configs of the networks: one, or the two of a pipeline."""
    from spinejax.training import pipeline

    return [stage for stage, _ in pipeline.stages(config, "")]


def compare(
    first: Sequence[ConfigDict], second: Sequence[ConfigDict], names: tuple[str, str]
) -> str:
    """Return the costs of two experiments' networks side by side, and the fields that differ.

    Args:
        first: configs of an experiment's networks: one, or the two of a pipeline.
        second: configs of the other experiment's networks.
        names: what to call the experiments.

    Raises:
        InputError: one is a pipeline and the other a single network.
    """
    if len(first) != len(second):
        raise InputError(
            f"{names[0]} has {len(first)} and {names[1]} {len(second)} networks; compare two "
            "pipelines, or two single networks"
        )
    return "\n\n".join(_table(pair, names) for pair in zip(first, second, strict=True))


def _table(pair: tuple[ConfigDict, ConfigDict], names: tuple[str, str]) -> str:
    rows: list[tuple[str, ...]] = [("", *names, "ratio")]
    for (title, form), a, b in zip(_MEASURES, *map(_measure, pair), strict=True):
        rows.append((title, format(a, form), format(b, form), f"{b / a:.2f}" if a else "-"))
    flat = [schema.flatten(schema.plain(stage)) for stage in pair]
    for key in sorted(flat[0] | flat[1]):
        values = [str(fields.get(key, "-")) for fields in flat]
        if values[0] != values[1]:
            rows.append((key, *values, ""))
    return text_table(rows)


def _measure(config: ConfigDict) -> tuple[int, float, float]:
    from spinejax.models import layer_table
    from spinejax.tasks import build_task
    from spinejax.training import loop, step

    config = loop.with_batch(config, devices=1)
    task = build_task(config)
    parameters, giga = layer_table.totals(task.model, task.input_shape)
    return parameters, giga, (step.step_bytes(config) or math.nan) / 2**30
