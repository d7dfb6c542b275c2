"""`spinejax search`: train many settings at once, round by round from coarse to fine."""

from absl import flags
from absl.flags import FlagValues

from spinejax import config_files, progress
from spinejax.commands import parsing
from spinejax.errors import EXIT_INTERRUPTED

HELP = "train many settings at once, from coarse to fine"


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    parsing.config_flag(values)
    parsing.workdir_flag(values)
    count = flags.DEFINE_integer
    count("rounds", 2, "Number of rounds, from coarse to fine.", flag_values=values, lower_bound=1)
    count("trials", 8, "Number of settings in each round.", flag_values=values, lower_bound=1)
    count(
        "at_once",
        8,
        "Settings that one program trains.",
        flag_values=values,
        lower_bound=1,
    )
    flags.DEFINE_string(
        "sweep",
        "random_search",
        "NAME of the function `sweep_NAME` of the config file that draws the settings; 'NAME(a=1)' "
        "with arguments.",
        values,
    )


def run(values: FlagValues) -> int:
    """Search, or continue the search in --workdir."""
    config = parsing.config(values)
    sweep = config_files.find_sweep(values.config, values.sweep)
    from spinejax.training import search

    found = search.run(
        config,
        sweep,
        values.workdir,
        rounds=values.rounds,
        trials=values.trials,
        at_once=values.at_once,
        progress=progress.bars,
    )
    print(search.describe(found, config, values.workdir, parsing.config_words(values)))
    return EXIT_INTERRUPTED if found.interrupted else 0
