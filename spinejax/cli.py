"""The command line: `spinejax <command> --flag=value`.

The only reader of flags, environment and signals' exit codes. Each command is a row of COMMANDS:
what it does, the flags it has, and the function that runs it. Libraries that are slow to import
are imported by the command that needs them.
"""

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from absl import flags
from absl.flags import FlagValues
from ml_collections import config_flags

from spinejax import __version__
from spinejax.errors import InputError, describe_os_error

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: stopped by a signal with everything saved; run it again
DEFAULT_CONFIG = "configs/demo.py"


@dataclass(frozen=True)
class Command:
    """One row of the command table."""

    help: str
    flags: Callable[[FlagValues, list[str]], None]
    run: Callable[[FlagValues], int]


# Flags.


def _config_flag(values: FlagValues, argv: list[str]) -> None:
    config_flags.DEFINE_config_file(
        "config",
        DEFAULT_CONFIG,
        "The experiment, FILE.py or FILE.py:argument,name=value; --config.key=value overrides.",
        flag_values=values,
        sys_argv=argv,
    )


def _workdir_flag(values: FlagValues) -> None:
    flags.DEFINE_string(
        "workdir", None, "Folder of the run: config, checkpoints, logs.", flag_values=values
    )
    flags.mark_flag_as_required("workdir", values)


def _phantom_flags(values: FlagValues, argv: list[str]) -> None:
    flags.DEFINE_string("out", None, "Folder of the data set to write.", flag_values=values)
    flags.DEFINE_integer("cases", 4, "Number of scans.", flag_values=values)
    flags.DEFINE_integer(
        "seed", 0, "Seed; a case depends on it and its number only.", flag_values=values
    )
    flags.DEFINE_float("min_spacing_mm", 0.3, "Finest voxel size.", flag_values=values)
    flags.DEFINE_float("max_spacing_mm", 3.0, "Coarsest voxel size.", flag_values=values)
    flags.DEFINE_float("min_extent_mm", 116.0, "Least height of a scan.", flag_values=values)
    flags.DEFINE_float("max_extent_mm", 400.0, "Longest side of a scan.", flag_values=values)
    flags.DEFINE_integer(
        "max_voxels", 2_000_000, "Fields of view are made to fit this many.", flag_values=values
    )
    flags.mark_flag_as_required("out", values)


def _doctor_flags(values: FlagValues, argv: list[str]) -> None:
    flags.DEFINE_string("data", None, "Folder of a data set to take stock of.", flag_values=values)


def _prepare_flags(values: FlagValues, argv: list[str]) -> None:
    _config_flag(values, argv)
    _workdir_flag(values)


def _summarize_flags(values: FlagValues, argv: list[str]) -> None:
    _config_flag(values, argv)


def _train_flags(values: FlagValues, argv: list[str]) -> None:
    _config_flag(values, argv)
    _workdir_flag(values)
    flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of process 0, for several processes.", flag_values=values
    )
    count = flags.DEFINE_integer
    count("num_processes", 1, "Processes of the run.", lower_bound=1, flag_values=values)
    count("process_id", 0, "Which of them this one is.", lower_bound=0, flag_values=values)


def _checkpoint_flag(values: FlagValues) -> None:
    flags.DEFINE_enum(
        "checkpoint", "best", ["best", "latest"], "Which weights.", flag_values=values
    )


def _evaluate_flags(values: FlagValues, argv: list[str]) -> None:
    _workdir_flag(values)
    _checkpoint_flag(values)
    flags.DEFINE_enum("split", "test", ["train", "val", "test"], "Which cases.", flag_values=values)


def _predict_flags(values: FlagValues, argv: list[str]) -> None:
    _workdir_flag(values)
    _checkpoint_flag(values)
    flags.DEFINE_string("input", None, "A CT (.nii, .nii.gz) or a folder.", flag_values=values)
    flags.DEFINE_string("output", None, "Folder for labels and pictures.", flag_values=values)
    flags.DEFINE_string(
        "reference", "", "Label file or folder to draw beside the prediction.", flag_values=values
    )
    flags.mark_flags_as_required(["input", "output"], values)


def _score_flags(values: FlagValues, argv: list[str]) -> None:
    flags.DEFINE_string("prediction", None, "Label file or folder.", flag_values=values)
    flags.DEFINE_string("reference", None, "Label file or folder.", flag_values=values)
    flags.DEFINE_string("output", None, "JSON file to write.", flag_values=values)
    flags.mark_flags_as_required(["prediction", "reference", "output"], values)


def _report_flags(values: FlagValues, argv: list[str]) -> None:
    _workdir_flag(values)
    flags.DEFINE_string(
        "output", "", "HTML file to write; default <workdir>/report.html.", flag_values=values
    )


# Commands.


def _phantom(values: FlagValues) -> int:
    from spinejax.data.phantom.dataset import write_dataset

    cases = write_dataset(
        values.out,
        values.cases,
        values.seed,
        min_spacing_mm=values.min_spacing_mm,
        max_spacing_mm=values.max_spacing_mm,
        min_extent_mm=values.min_extent_mm,
        max_extent_mm=values.max_extent_mm,
        max_voxels=values.max_voxels,
    )
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
        under_slurm=int(os.environ.get("SLURM_NTASKS", "1")) > 1,
    )
    return EXIT_INTERRUPTED if interrupted else 0


def _evaluate(values: FlagValues) -> int:
    from spinejax import commands

    return commands.evaluate(Path(values.workdir), split=values.split, which=values.checkpoint)


def _predict(values: FlagValues) -> int:
    from spinejax import commands

    return commands.predict(
        Path(values.workdir),
        Path(values.input),
        Path(values.output),
        reference=Path(values.reference) if values.reference else None,
        which=values.checkpoint,
    )


def _score(values: FlagValues) -> int:
    from spinejax import commands

    return commands.score(Path(values.prediction), Path(values.reference), Path(values.output))


def _report(values: FlagValues) -> int:
    from spinejax.reports.page import write_report

    path = write_report(Path(values.workdir), Path(values.output) if values.output else None)
    print(f"report: {path}")
    return 0


COMMANDS = {
    "phantom": Command("write a VerSe-like data set of synthetic CT", _phantom_flags, _phantom),
    "doctor": Command("versions, devices; take stock of a data set", _doctor_flags, _doctor),
    "prepare": Command("preprocess and cache a data set", _prepare_flags, _prepare),
    "summarize": Command("layers, parameters and GFLOPs", _summarize_flags, _summarize),
    "train": Command("train, or resume", _train_flags, _train),
    "evaluate": Command("predict and score a split", _evaluate_flags, _evaluate),
    "predict": Command("segment a CT or a folder of CTs", _predict_flags, _predict),
    "score": Command("compare label files or folders", _score_flags, _score),
    "report": Command("write the run's HTML page", _report_flags, _report),
}


def _usage() -> str:
    rows = "\n".join(f"  {name:<10} {command.help}" for name, command in COMMANDS.items())
    return (
        f"spinejax {__version__}: spine CT segmentation in JAX\n\n"
        f"usage: spinejax <command> [--flag=value ...]\n\n{rows}\n\n"
        "spinejax <command> --help lists the flags of a command."
    )


def parse(command: Command, name: str, arguments: list[str]) -> FlagValues | None:
    """Parse the flags of a command; None if only help was asked for.

    Raises:
        InputError: unknown flag or config key (with the nearest name), wrong type, missing flag.
    """
    arguments = _config_first(arguments)
    argv = [f"spinejax {name}", *arguments]
    values = FlagValues()
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    try:
        if "--help" in arguments or "-h" in arguments:
            command.flags(values, argv[:1])
            _show_help(command, name, values)
            return None
        command.flags(values, argv)
        if "config" in values:
            _check_config_file(arguments)
        rest = values(argv)
    except InputError:
        raise
    except (flags.Error, OSError, AttributeError, LookupError, ValueError, TypeError) as error:
        raise InputError(_unknown_field(error, arguments) or _one_line(error)) from error
    except Exception as error:  # whatever a config file's own code may raise
        where = getattr(error, "filename", None) or next(
            (text.partition("=")[2] for text in arguments if text.startswith("--config=")),
            "--config",
        )
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise InputError(
            f"{where}{line}: the config does not load ({_one_line(error)}); correct the file"
        ) from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    for flag in values:
        # As from --workdir=$UNSET: an empty path would be the current folder.
        if flag != "config" and values[flag].default is None and values[flag].value == "":
            raise InputError(f"--{flag} is empty; write --{flag}=... (see --help)")
    return values


def _config_first(arguments: list[str]) -> list[str]:
    """Put --config before its overrides, as ml_collections wants it; a person need not."""
    if "--config" in arguments[:-1]:
        at = arguments.index("--config")
        arguments = [f"--config={arguments[at + 1]}", *arguments[:at], *arguments[at + 2 :]]
    return sorted(arguments, key=lambda text: not text.startswith(("--config=", "-config=")))


def _check_config_file(arguments: list[str]) -> None:
    """Refuse a config file that is not there, in fewer words than ml_collections."""
    given = [text.partition("=")[2] for text in arguments if re.match("--?config=", text)]
    name = given[-1] if given else DEFAULT_CONFIG
    if not Path(name.partition(":")[0]).is_file():
        raise InputError(
            f"--config={name}: there is no such file in {Path.cwd()}; give --config=FILE.py, e.g. "
            "the path of configs/chasppraunet.py"
        )


def _unknown_field(error: BaseException, arguments: list[str]) -> str | None:
    """Name the override of a field that the config does not have; None for other errors."""
    text = str(error.args[0] if error.args else "").replace("\\n", "\n")
    found = re.match(r'\W*(\w+)\W*(?: ?Did you mean "(\w+)".*)?$', text, re.DOTALL)
    names = [text.partition("=")[0] for text in arguments]
    name = next((name for name in names if found and found[1] in name.split(".")[1:]), None)
    if found is None or name is None:
        return None
    hint = f"did you mean {found[2]!r}?" if found[2] else "the config file has their names"
    return f"{name}: the config has no field {found[1]!r}; {hint}"


def _show_help(command: Command, name: str, values: FlagValues) -> None:
    print(f"spinejax {name}: {command.help}\n")
    for flag in sorted(values):
        if flag in ("h", "help"):
            continue
        default = values[flag].default
        if flag == "config":
            default = DEFAULT_CONFIG
        shown = "required" if default is None else f"default {default!r}"
        if flag == "data":
            shown = "optional"
        print(f"  --{flag:<16} {values[flag].help} ({shown})")


_WANTED = {  # what Python's parsers complain of, and what they mean to a person
    r"invalid literal for int\(\).*": "a whole number",
    r"could not convert string to float.*": "a number",
    r"\('Non-boolean argument.*": "true or false",
}


def _one_line(error: BaseException) -> str:
    """Return the message of an exception on one line, without the quotes that KeyError adds."""
    text = str(error.args[0]) if error.args else type(error).__name__
    if isinstance(error, OSError):
        text = str(error)
    if "Traceback (most recent call last)" in text:  # ml_collections quotes a config's own error
        text = text.strip().splitlines()[-1].removeprefix("ValueError: ")
    missing = re.match(r"flag --(\w+)=None: ", text)
    if missing:
        text = f"--{missing[1]} is required; add --{missing[1]}=... (see --help)"
    if re.match(r"(tuple|string) ind|.* is not a valid index", text):
        text = "a --config value is set whole, as in --config.data.size='(64, 64)'"
    for pattern, wanted in _WANTED.items():
        text = re.sub(pattern, f"must be {wanted}", text)
    text = " ".join(text.replace("\\n", " ").replace("\n", " ").split())
    return text[1:-1] if text[:1] in ("'", '"') and text[:1] == text[-1:] else text


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 1
    if arguments[0] == "--version":
        print(__version__)
        return 0
    name = arguments.pop(0)
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
        values = parse(COMMANDS[name], name, arguments)
        status = 0 if values is None else COMMANDS[name].run(values)
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
