"""Running a sweep, or seeing how far it is.

    python -m spinejax.launch.sweep --config=FILE --sweep=NAME --workdir=W --dry_run   # units, command lines
    python -m spinejax.launch.sweep --config=FILE --sweep=NAME --workdir=W             # run, or go on
    python -m spinejax.launch.sweep --status --workdir=W [--watch]                     # from anywhere
    spinejax report --sweep=W                                                 # the tables

Each unit is a run of its own, `spinejax train ... --evaluate`, in the folder W/<name of the unit>;
any of them can also be started, resumed or looked at by hand.
"""

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import flags
from absl.flags import FlagValues

from spinejax import arguments, sweep_state
from spinejax.errors import InputError, describe_os_error
from spinejax.launch import local, plan, status
from spinejax.sweep_state import Sweep

EXECUTORS = ("local", "slurm")
_LOCK = ".launcher"  # held by the launcher of a sweep
_WATCH_S = 5.0


def _flags(values: FlagValues, argv: list[str]) -> None:
    _status_flags(values, argv)
    arguments.config_flag(values, argv)
    flags.DEFINE_string(
        "sweep", None, "NAME: what `sweep_NAME` of the config yields.", flag_values=values
    )
    flags.DEFINE_bool(
        "dry_run", False, "Print every unit with its command line, and stop.", flag_values=values
    )
    flags.DEFINE_string(
        "units", "", "Only those whose names fit this pattern, as *verse19*.", flag_values=values
    )
    count = flags.DEFINE_integer
    count("seeds", 0, "Each unit with seeds 0 to N - 1.", lower_bound=0, flag_values=values)
    count(
        "folds", 0, "Each unit on N folds of a cross-validation.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_enum("executor", "local", EXECUTORS, "Where units run.", flag_values=values)
    count(
        "at_once",
        0,
        "Most units at a time; default: local one for each GPU or one, slurm no limit.",
        lower_bound=0,
        flag_values=values,
    )
    count("gpus", -1, "Of a unit, local; default: one if there is any.", flag_values=values)
    # Of Slurm; what is not given is the cluster's default.
    text = flags.DEFINE_string
    text("slurm.partition", "", "Partition.", flag_values=values)
    text("slurm.account", "", "Account.", flag_values=values)
    text("slurm.time", "24:00:00", "Of a unit, [D-]HH:MM:SS.", flag_values=values)
    text("slurm.memory", "", "Of a host, as 32GB.", flag_values=values)
    count("slurm.gpus", 0, "Of a host.", lower_bound=0, flag_values=values)
    count("slurm.cpus", 4, "Of a process.", lower_bound=1, flag_values=values)
    count("slurm.hosts", 1, "Hosts of a unit.", lower_bound=1, flag_values=values)
    count("slurm.processes", 1, "Of a unit on each host.", lower_bound=1, flag_values=values)
    text("slurm.more", "", "Further NAME=VALUE,... for sbatch.", flag_values=values)
    flags.mark_flag_as_required("sweep", values)


def _status_flags(values: FlagValues, argv: list[str]) -> None:
    flags.DEFINE_string("workdir", None, "Folder of the sweep.", flag_values=values)
    flags.mark_flag_as_required("workdir", values)
    flags.DEFINE_bool(
        "status", False, "Print how far the sweep in --workdir is, and stop.", flag_values=values
    )
    flags.DEFINE_bool(
        "watch", False, "With --status: print again until all has ended.", flag_values=values
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    warnings.filterwarnings("ignore")  # for developers; the tests make them errors
    asks = any(word in ("--status", "--status=true", "-status") for word in words)
    try:
        values = arguments.parse(
            "launch.sweep",
            "run a sweep, or see how far it is",
            _status_flags if asks else _flags,
            words,
            program="python -m",
        )
        if values is None:
            return 0
        workdir = Path(values.workdir)
        return _show(workdir, watch=values.watch) if asks else _launch(values, workdir)
    except InputError as error:
        message = str(error)
    except OSError as error:
        message = describe_os_error(error)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print(f"launch.sweep: error: {' '.join(message.split())}", file=sys.stderr)
    return 1


def _show(workdir: Path, *, watch: bool) -> int:
    """Print the table of a sweep; with `watch` again and again, until nothing runs or is queued."""
    while True:
        found = status.states(sweep_state.read(workdir).units, workdir)
        print(status.table(found), flush=True)
        goes_on = sweep_state.is_locked(workdir / _LOCK) or any(
            state.kind == "running" or "job " in state.note
            for state in found.values()
            if state.kind not in ("done", "failed")
        )
        if not watch or not goes_on:
            return 0
        time.sleep(_WATCH_S)
        print()


def _launch(values: FlagValues, workdir: Path) -> int:
    wanted = plan.make(values, workdir)
    units = plan.chosen(wanted, values.units)
    if values.dry_run:
        for unit in units:
            print(f"{unit.name}: {plan.shown(unit, workdir)}")
        print(f"{len(units)} units")
        return 0
    # Everything that can be refused is refused before the folder is touched.
    if values.executor == "slurm":
        from spinejax.launch import slurm

        executor = slurm.executor(values, workdir)
        with _alone(workdir):
            _open(wanted, workdir)
            return slurm.submit(executor, units, workdir)
    places = local.slots(values.at_once, values.gpus)
    with _alone(workdir):
        _open(wanted, workdir)
        return local.run(units, workdir, places)


@contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    """Make the folder and hold its lock while the block runs.

    Raises:
        InputError: another launcher holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / _LOCK).open("ab") as file:
        if not sweep_state.take_lock(file):
            raise InputError(
                f"{workdir}: another `launch.sweep` is at work in it; wait until it ends, or stop "
                "it with Ctrl-C"
            )
        yield


def _open(wanted: Sweep, workdir: Path) -> None:
    """Check or write sweep.json."""
    if (workdir / sweep_state.FILE).exists():
        old = sweep_state.read(workdir)
        begun = [u.name for u in old.units if sweep_state.state(workdir / u.name).kind != "waiting"]
        plan.check_same(old, wanted, begun, workdir)
    elif (workdir / "config.json").exists():
        raise InputError(
            f"{workdir} is the folder of a single run; give the sweep another --workdir"
        )
    sweep_state.write(workdir, wanted)


if __name__ == "__main__":
    sys.exit(main())
