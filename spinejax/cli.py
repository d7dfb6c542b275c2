"""The command line: `spinejax <command> --flag=value`.

The only reader of flags, environment and signals' exit codes. Each command is a row of COMMANDS:
what it does, the flags it has, and the function that runs it. Libraries that are slow to import
are imported by the command that needs them.
"""

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags
from absl.flags import FlagValues

from spinejax import __version__, arguments, options
from spinejax.errors import EXIT_INTERRUPTED, InputError, describe_os_error


@dataclass(frozen=True)
class Command:
    """One row of the command table."""

    help: str
    flags: Callable[[FlagValues, list[str]], None]
    run: Callable[[FlagValues], int]


# Commands.


def _phantom(values: FlagValues) -> int:
    limits: dict[str, Any] = {
        name: values[name].value
        for name in (
            "min_spacing_mm",
            "max_spacing_mm",
            "min_extent_mm",
            "max_extent_mm",
            "max_voxels",
            "label_cut",
            "region",
        )
    }
    if values.rates:
        limits["rates"] = arguments.rates(values.rates)
    if values.compare is not None:
        from spinejax.reports import realism

        # Four would hardly have a 5th and a 95th percentile.
        count = values.cases if values["cases"].present else 16
        out = Path(values.out)
        record = realism.compare(
            Path(values.compare), out, cases=count, seed=values.seed, limits=limits
        )
        print(realism.table(record))
        print(f"{out / realism.FIGURE_NAME}, {out / realism.JSON_NAME}")
        return 0
    from spinejax.phantom.dataset import write_dataset

    cases = write_dataset(values.out, values.cases, values.seed, workers=values.workers, **limits)
    print(f"{len(cases)} phantoms in {values.out}")
    return 0


def _doctor(values: FlagValues) -> int:
    from spinejax import commands

    return commands.doctor(values.data)


def _prepare(values: FlagValues) -> int:
    from spinejax import commands

    return commands.prepare(values.config, Path(values.workdir))


def _summarize(values: FlagValues) -> int:
    from spinejax import commands

    if values.against:
        own = arguments.config_words(values)
        words = [f"--config={values.against}", *own[1:]]
        other = arguments.parse("summarize", "", arguments.config_flag, words)
        if other is not None:
            names = (own[0].partition("=")[2], values.against)
            print(commands.compare(values.config, other.config, names))
        return 0
    print(commands.summarize(values.config))
    return 0


def _train(values: FlagValues) -> int:
    from spinejax import commands

    interrupted = commands.train(
        values.config,
        Path(values.workdir),
        coordinator=values.coordinator,
        num_processes=values.num_processes,
        process_id=values.process_id,
        under_slurm=os.environ.get("SLURM_NTASKS", "1").strip() not in ("", "0", "1"),
        then_evaluate=values.evaluate,
    )
    return EXIT_INTERRUPTED if interrupted else 0


def _search(values: FlagValues) -> int:
    from spinejax.train import search

    interrupted = search.run(
        values.config,
        arguments.sweep(values),
        Path(values.workdir),
        rounds=values.rounds,
        units=values.units,
        at_once=values.at_once,
        command=arguments.config_words(values),
    )
    return EXIT_INTERRUPTED if interrupted else 0


def _evaluate(values: FlagValues) -> int:
    from spinejax import commands

    return commands.evaluate(
        Path(values.workdir),
        split=values.split,
        which=values.checkpoint,
        data=Path(values.data) if values.data else None,
        second=[Path(name) for name in values.vertebrae],
        flip=values.flip,
    )


def _predict(values: FlagValues) -> int:
    from spinejax import commands

    return commands.predict(
        [Path(name) for name in values.workdir],
        Path(values.input),
        Path(values.output),
        reference=Path(values.reference) if values.reference else None,
        which=values.checkpoint,
        second=[Path(name) for name in values.vertebrae],
        flip=values.flip,
    )


def _score(values: FlagValues) -> int:
    from spinejax import commands

    return commands.score(
        Path(values.prediction),
        Path(values.reference),
        Path(values.output),
        labels=values.labels,
        reference_centroids=values.reference_centroids or None,
    )


def _report(values: FlagValues) -> int:
    if bool(values.workdir) == bool(values.sweep):
        raise InputError("give either --workdir of a run or --sweep of a sweep")
    if values.sweep:
        from spinejax.reports import sweep_page

        if values.before:
            raise InputError("--before compares runs; leave it out with --sweep")
        output = Path(values.output) if values.output else None
        path, text = sweep_page.write(Path(values.sweep), output)
        print(text)
        print(f"report: {path}")
        return 0
    from spinejax.reports.page import write_report

    path = write_report(
        Path(values.workdir),
        Path(values.output) if values.output else None,
        Path(values.before) if values.before else None,
    )
    print(f"report: {path}")
    return 0


COMMANDS = {
    "phantom": Command("write synthetic CT, or compare it with real CT", options.phantom, _phantom),
    "doctor": Command("versions, devices; take stock of a data set", options.doctor, _doctor),
    "prepare": Command("preprocess and cache a data set", options.prepare, _prepare),
    "summarize": Command("layers, parameters and GFLOPs", options.summarize, _summarize),
    "train": Command("train, or resume", options.train, _train),
    "search": Command("train many settings at once, coarse to fine", options.search, _search),
    "evaluate": Command("predict and score a split", options.evaluate, _evaluate),
    "predict": Command("segment a CT or a folder of CTs", options.predict, _predict),
    "score": Command("compare label files or folders", options.score, _score),
    "report": Command("write the HTML page of a run or a sweep", options.report, _report),
}


def _usage() -> str:
    rows = "\n".join(f"  {name:<10} {command.help}" for name, command in COMMANDS.items())
    return (
        f"spinejax {__version__}: spine CT segmentation in JAX\n\n"
        f"usage: spinejax <command> [--flag=value ...]\n\n{rows}\n\n"
        "spinejax <command> --help lists the flags of a command."
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 1
    if words[0] == "--version":
        print(__version__)
        return 0
    name = words.pop(0)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    logging.getLogger("absl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # warnings are for developers; the tests make them errors
    # Grain reads absl's global flags, which this command line does not use.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    try:
        if name not in COMMANDS:
            raise InputError(f"unknown command {name!r}{_nearest(name)}; see spinejax --help")
        command = COMMANDS[name]
        values = arguments.parse(name, command.help, command.flags, words)
        status = 0 if values is None else command.run(values)
        sys.stdout.flush()
        return status
    except InputError as error:
        message = str(error)
    except BrokenPipeError:  # what reads our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as of a program that SIGPIPE ends
    except OSError as error:
        message = describe_os_error(error)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print(f"spinejax {name}: error: {' '.join(message.split())}", file=sys.stderr)
    return 1


def _nearest(name: str) -> str:
    import difflib

    match = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"; did you mean {match[0]!r}?" if match else f"; choose from {', '.join(COMMANDS)}"


if __name__ == "__main__":
    sys.exit(main())
