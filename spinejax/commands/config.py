"""`spinejax config`: every field of a config with its value and meaning, or what differs."""

from absl import flags
from absl.flags import FlagValues
from ml_collections import ConfigDict

from spinejax import config_files, schema
from spinejax.commands import parsing
from spinejax.errors import InputError
from spinejax.files import expanded

HELP = "show the fields of a config, or what differs between two"


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    parsing.config_flag(values)
    flags.DEFINE_string(
        "against",
        "",
        "Another config, or the folder of a run: print the fields that differ.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "reference", False, "Print docs/config.md: all fields of all configs.", flag_values=values
    )
    flags.DEFINE_bool(
        "papers",
        False,
        "Print docs/papers.md: the papers' tables beside the configs of their sweeps.",
        flag_values=values,
    )


def run(values: FlagValues) -> int:
    """Print the fields, or the differences to --against, or the reference of all fields."""
    from spinejax import models, tasks

    if values.reference:
        print(schema.reference({name: models.fields(name) for name in models.MODELS}), end="")
        return 0
    if values.papers:
        from spinejax.reports import protocols

        print(protocols.document(), end="")
        return 0
    config = parsing.config(values)
    tasks.check(config)
    if values.against:
        print(schema.differences(config, against(values.against)))
    else:
        print(schema.describe(config, models.fields))
    return 0


def against(name: str) -> ConfigDict:
    """Return what --against names: the config of a run's folder, or a config.

    Raises:
        InputError: there is neither, or a field is wrong.
    """
    from spinejax import tasks
    from spinejax.training.run_folder import read_config

    folder = expanded(name)
    is_run = (folder / "config.json").exists()
    config = read_config(folder) if is_run else config_files.get_config(name)
    try:
        tasks.check(config)
    except InputError as error:
        raise InputError(f"--against={name}: {error}") from error
    return config
