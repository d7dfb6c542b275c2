"""From the words of a command line to the values of flags, or to a one-line error.

The flags are absl's. They can be written `--name=value`, `--name value` and, with their short name,
`-n value`; `~` in paths is expanded.
"""

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from absl import flags
from absl.flags import FlagValues
from ml_collections import ConfigDict

from spinejax import config_files, label_schemes
from spinejax.errors import InputError, did_you_mean
from spinejax.files import expanded

DEFAULT_CONFIG = "demo"
_FIELDS = "config_fields"  # the flag that collects the words --config.key=value


class Command(Protocol):
    """A module of this package."""

    HELP: str

    def define_flags(self, values: FlagValues) -> None:
        """Define the flags."""

    def run(self, values: FlagValues) -> int:
        """Run the command; return the exit status."""


class _PathParser(flags.ArgumentParser):
    """Reads a path, with `~` for the home folder."""

    def __init__(self, is_file: bool) -> None:
        super().__init__()
        self._is_file = is_file

    def parse(self, argument: str | Path) -> Path:
        if not str(argument):  # --workdir=$UNSET; an empty path would be the current folder
            raise ValueError("empty")
        if self._is_file and str(argument).endswith("/"):
            raise ValueError("is a folder; name a file")
        return expanded(argument)

    def flag_type(self) -> str:
        return "path"


class _ModelParser(_PathParser):
    """Reads the name of a packaged model or a path, and gives the place of the model."""

    def parse(self, argument: str | Path) -> Path:
        from spinejax.training import model_file  # imports jax

        super().parse(argument)
        return model_file.located(argument)


# Flags that several commands have.


def path_flag(
    values: FlagValues,
    name: str,
    text: str,
    *,
    required: bool = False,
    several: bool = False,
    is_file: bool = False,
    short: str | None = None,
) -> None:
    """Define a flag whose value is a Path, or None; or with `several` a list of Paths.

    Args:
        values: where to define it.
        name: of the flag.
        text: its help.
        required: refuse a command line without it.
        several: the flag may be given again, and adds to the list.
        is_file: refuse a path that ends with a slash, as those of folders do.
        short: a letter, for `-letter`.
    """
    parser = _PathParser(is_file)
    if several:
        default: Any = None if required else []
        flags.DEFINE_multi(
            parser, flags.ArgumentSerializer(), name, default, text, values, short_name=short
        )
    else:
        flags.DEFINE(parser, name, None, text, values, short_name=short)
    if required:
        flags.mark_flag_as_required(name, values)


def labels_flag(values: FlagValues, text: str, default: str | None = "verse") -> None:
    """Define --labels, the numbers in masks."""
    flags.DEFINE_enum(
        "labels",
        default,
        list(label_schemes.NAMES),
        f"{text} verse: VerSe's ids; totalsegmentator, totalsegmentator_v1, totalspineseg, "
        "spineps: the numbers of that program; binary: every number above 0 is vertebra.",
        values,
    )


def models_flag(values: FlagValues, name: str, text: str, *, required: bool = False) -> None:
    """Define a flag whose value is a list of places of models."""
    default: Any = None if required else []
    flags.DEFINE_multi(_ModelParser(False), flags.ArgumentSerializer(), name, default, text, values)
    if required:
        flags.mark_flag_as_required(name, values)


def config_flag(values: FlagValues) -> None:
    """Define --config, which names the experiment, and --config.key=value."""
    flags.DEFINE_string(
        "config",
        DEFAULT_CONFIG,
        "Experiment: FILE.py or the name of a packaged config, such as chasppraunet; NAME:ARGUMENT "
        "passes an argument to it. --config.key=value sets a field.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(_FIELDS, [], "", flag_values=values)


def workdir_flag(values: FlagValues) -> None:
    """Define --workdir, the folder of a run."""
    path_flag(values, "workdir", "Folder of the run: config, checkpoints, logs.", required=True)


def model_flags(values: FlagValues) -> None:
    """Define the flags that choose trained weights and how they are used.

    They are --model, --workdir, --vertebrae, --outlines, --checkpoint and --flip.
    """
    models_flag(
        values,
        "model",
        "The packaged model phantom, which predict takes by default; FILE.spinejax; or the "
        "folder of a run (./phantom if its name is phantom). Give the flag again to average "
        "several.",
    )
    path_flag(values, "workdir", "Folder of a run, like --model=RUN.", several=True)
    second_flags(values)
    flags.DEFINE_bool(
        "flip",
        False,
        "Average the prediction with that of the scan mirrored left to right.",
        flag_values=values,
    )


def models(values: FlagValues) -> list[Path]:
    """Return the places of the models that --model or --workdir names; [] for neither.

    Raises:
        InputError: both are given.
    """
    if values.model and values.workdir:
        raise InputError(
            "--model and --workdir both name models; give --model=... several times to average them"
        )
    return values.model or values.workdir


def second_flags(values: FlagValues) -> None:
    """Define --checkpoint, and --vertebrae and --outlines, which name further networks."""
    flags.DEFINE_enum(
        "checkpoint", "best", ["best", "latest"], "Which weights to use.", flag_values=values
    )
    models_flag(
        values,
        "vertebrae",
        "The model that names the vertebrae after the first has segmented the spine: a run, a file "
        "or phantom; by default the second network of the first model, if it has one. Give the "
        "flag again to average several.",
    )
    models_flag(
        values,
        "outlines",
        "The model that outlines each named vertebra anew, in a cube of its own: a run, a file or "
        "phantom; by default the third network of the first model, if it has one. Give the flag "
        "again to average several.",
    )


def calibration_flag(values: FlagValues) -> None:
    """Define --calibration, the numbers that `spinejax calibrate` found."""
    path_flag(
        values,
        "calibration",
        "The file calibration.json of spinejax calibrate, for the probabilities of names.",
        is_file=True,
    )


def overwrite_flag(values: FlagValues) -> None:
    """Define --overwrite, which gives up files that this program did not write."""
    flags.DEFINE_bool(
        "overwrite",
        False,
        "Replace files of the outputs' names that spinejax did not write, or that were changed "
        "since. Inputs are never replaced.",
        flag_values=values,
    )


def overrides(values: FlagValues) -> dict[str, str]:
    """Return the fields that the command line sets, as {"optim.learning_rate": "1e-3"}."""
    return dict(text.split("=", 1) for text in values[_FIELDS].value or ())


def config(values: FlagValues) -> ConfigDict:
    """Return the config that --config and --config.key=value describe.

    Raises:
        InputError: see `config_files.get_config`.
    """
    return config_files.get_config(values.config, overrides(values))


def config_words(values: FlagValues) -> list[str]:
    """Return the words of the command line that say which config this is."""
    fields = [f"--config.{key}={text}" for key, text in overrides(values).items()]
    return [f"--config={values.config}", *fields]


# Parsing.


def parse(name: str, command: Command, words: Sequence[str]) -> FlagValues | None:
    """Parse the flags of a command; print its help and return None if the words ask for help.

    Args:
        name: of the command.
        command: its module.
        words: what follows the name.

    Raises:
        InputError: an unknown flag (the message suggests the closest one), a value of a wrong type,
            a required flag that is missing, a word too many.
    """
    values = FlagValues()
    command.define_flags(values)
    if "--help" in words or "-h" in words:
        print(describe(name, command, values))
        return None
    positional = getattr(command, "POSITIONAL", "")
    try:
        values([name, *_uniform(words, values, positional)])
    except (flags.Error, ValueError) as error:
        raise InputError(_explain(error, positional)) from error
    return values


def describe(name: str, command: Command, values: FlagValues) -> str:
    """Return the help of a command: what it does and a line for each flag."""
    positional = getattr(command, "POSITIONAL", "")
    usage = ["usage: spinejax", name, *[positional.upper()] * bool(positional)]
    rows = []
    for flag in sorted(values):
        short, default = values[flag].short_name, values[flag].default
        if flag in (_FIELDS, short):
            continue
        # absl writes the choices of a flag before its help, and below it how to give several.
        text = values[flag].help.partition(";\n")[0]
        choices = re.match(r"<(.*?)>: ", text)
        notes = [choices[1]] if choices else []
        text = text[choices.end() :] if choices else text
        if default is None and values[flag].validators:
            notes.append("required")
            usage += [f"--{flag}={flag.upper()}"] * (flag != positional)
        elif default not in (None, [], ""):
            notes.append(
                f"default {str(default).lower() if isinstance(default, bool) else default}"
            )
        left = f"-{short}, --{flag}" if short else f"--{flag}"
        rows.append((f"  {left}", f"{text} ({', '.join(notes)})" if notes else text))
    first = f"spinejax {name}: {command.HELP}"
    lines = [first, "", " ".join([*usage, "[--flag=value ...]"]), ""]
    width = max(len(left) for left, _ in rows) + 2
    for left, text in rows:
        right = textwrap.wrap(text, max(40, shutil.get_terminal_size().columns - width))
        lines += [left.ljust(width) + right[0], *(" " * width + line for line in right[1:])]
    return "\n".join(lines)


def _uniform(words: Sequence[str], values: FlagValues, positional: str) -> Iterator[str]:
    """Yield every word as `--name=value`, or `--name` for a flag that is true or false."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word == "-":
            if not positional:
                raise InputError(f"unexpected argument {word!r}; flags are written --name=value")
            yield f"--{positional}={word}"
            continue
        name, equals, text = word.lstrip("-").partition("=")
        field = name.startswith("config.") and _FIELDS in values
        if not field and name not in values and name.removeprefix("no") not in values:
            known = [flag for flag in values if flag not in (_FIELDS, values[flag].short_name)]
            hint = did_you_mean(name, known) or "; --help lists the flags"
            raise InputError(f"unknown flag --{name}{hint}")
        if not equals and (field or (name in values and not values[name].boolean)):
            following = next(rest, None)
            if following is None or following.startswith("--"):
                raise InputError(f"--{name} needs a value: --{name}=VALUE")
            equals, text = "=", following
        yield (
            f"--{_FIELDS}={name.removeprefix('config.')}={text}"
            if field
            else (f"--{name}{equals}{text}")
        )


_WANTED = {  # messages of Python's and absl's parsers -> what they ask the user for
    r"invalid literal for int\(\).*": "a whole number",
    r"could not convert string to float.*": "a number",
    r"\('?Non-boolean argument.*": "true or false",
    r"value should be one of <(.*)>": r"one of \1",
}


def _explain(error: Exception, positional: str) -> str:
    """Return absl's message about a flag in plain words."""
    text = config_files.one_line(error)
    missing = re.match(r"flag --([\w.]+)=None: ", text)
    if missing:
        given = " FILE" if missing[1] == positional else f" --{missing[1]}=..."
        return f"--{missing[1]} is required; add{given} (see --help)"
    if found := re.match(r"flag --([\w.]+)=: empty$", text):
        return f"--{found[1]} is empty; write --{found[1]}=... (see --help)"
    for pattern, wanted in _WANTED.items():
        text = re.sub(pattern, f"must be {wanted}", text)
    return text
