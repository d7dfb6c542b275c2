"""`spinejax config`: every field of a config with its value and meaning, or what differs."""

from pathlib import Path

from absl import flags
from absl.flags import FlagValues
from ml_collections import ConfigDict

from spinejax import config_files, schema
from spinejax.commands import parsing

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


def run(values: FlagValues) -> int:
    """Print the fields, or the differences to --against."""
    config = parsing.config(values)
    schema.check(config)
    print(
        schema.differences(config, _other(values.against))
        if values.against
        else schema.describe(config)
    )
    return 0


def _other(name: str) -> ConfigDict:
    """Return the config of a run's folder, or the config of a name."""
    folder = Path(name).expanduser()
    if not (folder / "config.json").exists():
        return config_files.get_config(name)
    from spinejax.train.run_folder import read_config

    return read_config(folder)
