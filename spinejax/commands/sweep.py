"""`spinejax sweep`: run many variants of a config, or show how far they are.

spinejax sweep --config=FILE --sweep=NAME --workdir=W --dry_run   # units and command lines
spinejax sweep --config=FILE --sweep=NAME --workdir=W             # run, or continue
spinejax sweep --status --workdir=W [--watch]                     # from any folder
spinejax report --sweep=W                                         # tables of the scores
"""

from absl import flags
from absl.flags import FlagValues

from spinejax.commands import parsing
from spinejax.errors import InputError

HELP = "train and score many variants of a config, here or on Slurm"


_SLURM = "slurm."  # begins the names of the flags for Slurm
_MOST = 1000  # seeds, folds, or units of which the best is kept
_MOST_PER_GPU = 64


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    parsing.config_flag(values)
    parsing.path_flag(values, "workdir", "Folder of the sweep.", required=True)
    word, count, flag = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_bool
    word(
        "sweep",
        None,
        "NAME of the function `sweep_NAME` of the config file; 'NAME(seed=1)' with arguments.",
        values,
    )
    flag("status", False, "Print how far the sweep in --workdir is, and stop.", values)
    flag("watch", False, "With --status: print again until all units have ended.", values)
    flag("dry_run", False, "Check and print every unit's command line, and stop.", values)
    word("units", "", "Only units whose names fit this pattern, such as *verse19*.", values)
    count(
        "seeds",
        0,
        "Run each unit with seeds 0 to N - 1.",
        lower_bound=0,
        upper_bound=_MOST,
        flag_values=values,
    )
    count(
        "folds",
        0,
        "Run each unit on N folds of a cross-validation.",
        lower_bound=0,
        upper_bound=_MOST,
        flag_values=values,
    )
    flags.DEFINE_enum("executor", "local", ["local", "slurm"], "Where units run.", values)
    count(
        "at_once",
        0,
        "Most units at a time; 0: as many as the GPUs take, or one on the CPU, or no limit on "
        "Slurm.",
        lower_bound=0,
        flag_values=values,
    )
    count(
        "gpus",
        -1,
        "GPUs of a unit on this machine; -1: one if there is any.",
        lower_bound=-1,
        flag_values=values,
    )
    count(
        "units_per_gpu",
        1,
        "Units that share a GPU of this machine, each with its part of the GPU's memory.",
        lower_bound=1,
        upper_bound=_MOST_PER_GPU,
        flag_values=values,
    )
    count(
        "prune",
        0,
        "Stop units on this machine that are not among the best 1/N of those that have trained as "
        "long, by validation Dice (successive halving); 0: none.",
        lower_bound=0,
        upper_bound=_MOST,
        flag_values=values,
    )
    word("slurm.partition", "", "Partition; without it the cluster's default.", values)
    word("slurm.account", "", "Account; without it the cluster's default.", values)
    word("slurm.time", "24:00:00", "Time limit of a unit, [D-]HH:MM:SS or minutes.", values)
    word("slurm.memory", "", "Memory of a host, such as 32GB.", values)
    count("slurm.gpus", 0, "GPUs of a host.", lower_bound=0, flag_values=values)
    count("slurm.cpus", 4, "CPUs of a process.", lower_bound=1, flag_values=values)
    count("slurm.hosts", 1, "Hosts of a unit.", lower_bound=1, flag_values=values)
    count("slurm.processes", 1, "Processes on each host.", lower_bound=1, flag_values=values)
    word("slurm.more", "", "Further NAME=VALUE,... for sbatch.", values)


def run(values: FlagValues) -> int:
    """Run, continue or show a sweep."""
    from spinejax.launch import local, plan, sweep

    workdir = values.workdir
    if values.status:
        sweep.show(workdir, watch=values.watch)
        return 0
    if values.sweep is None:
        raise InputError("--sweep is required; add --sweep=NAME (see --help)")
    found = plan.make(
        values.config,
        parsing.overrides(values),
        values.sweep,
        workdir,
        seeds=values.seeds,
        folds=values.folds,
    )
    units = plan.chosen(found, values.units)
    options = {
        name.removeprefix(_SLURM): values[name].value for name in values if name.startswith(_SLURM)
    }
    if values.executor == "slurm":
        from spinejax.launch import slurm

        slurm.check(workdir, options)
        _check_local_flags(values)
    if values.prune:
        plan.check_prune(units, values.prune, bool(values.seeds or values.folds))
    if values.dry_run:
        for unit in units:
            print(f"{unit.name}: {plan.shown(unit, workdir)}")
        print(f"{len(units)} units")
        return 0
    # What can be refused without the folder is refused before it is made.
    if values.executor == "slurm":
        executor = slurm.executor(workdir, values.at_once, options)
        return sweep.launch(
            found, units, workdir, lambda units, folder: slurm.submit(executor, units, folder)
        )
    places = local.slots(values.at_once, values.gpus, values.units_per_gpu)
    return sweep.launch(
        found, units, workdir, lambda units, folder: local.run(units, folder, places, values.prune)
    )


def _check_local_flags(values: FlagValues) -> None:
    """Refuse flags of units on this machine when Slurm runs the units."""
    if values.gpus >= 0:
        raise InputError(f"--gpus={values.gpus} is for this machine; on Slurm give --slurm.gpus")
    for flag, reason in (
        ("units_per_gpu", "Slurm starts each unit as a job with GPUs of its own"),
        ("prune", "Slurm runs the units without a launcher that could compare them"),
    ):
        if values[flag].value != values[flag].default:
            raise InputError(
                f"--{flag}={values[flag].value}: {reason}; submit one job that runs this sweep "
                "with --executor=local, see docs/sweeps.md"
            )
