"""From the words of a command line to the values of flags, or one line that says why not.

Flags are absl's, `--config` and its overrides are ml_collections'. What those say of a wrong word
is put into a person's words here.
"""

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from absl.flags import FlagValues
from ml_collections import config_flags

from spinejax.errors import InputError, check_choice

DEFAULT_CONFIG = "configs/demo.py"


def config_flag(values: FlagValues, argv: list[str]) -> None:
    """Define --config, the experiment; `argv` is the command line, for its overrides."""
    config_flags.DEFINE_config_file(
        "config",
        DEFAULT_CONFIG,
        "The experiment, FILE.py or FILE.py:argument,name=value; --config.key=value overrides.",
        flag_values=values,
        sys_argv=argv,
    )


def parse(
    name: str,
    summary: str,
    define: Callable[[FlagValues, list[str]], None],
    arguments: list[str],
    *,
    program: str = "spinejax",
) -> FlagValues | None:
    """Parse the flags of a command; None if only help was asked for.

    Args:
        name: of the command.
        summary: what it does, for its help.
        define: gets the flags to define and the command line.
        arguments: what follows the name.
        program: what the name follows.

    Raises:
        InputError: unknown flag or config key (with the nearest name), wrong type, missing flag.
    """
    arguments = _config_first(arguments)
    argv = [f"{program} {name}", *arguments]
    values = FlagValues()
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    try:
        if "--help" in arguments or "-h" in arguments:
            define(values, argv[:1])
            _show_help(argv[0], summary, values)
            return None
        define(values, argv)
        if "config" in values:
            _check_config_file(arguments)
        rest = values(argv)
    except InputError:
        raise
    except (flags.Error, OSError, AttributeError, LookupError, ValueError, TypeError) as error:
        raise InputError(_unknown_field(error, arguments) or one_line(error)) from error
    except Exception as error:  # whatever a config file's own code may raise
        where = getattr(error, "filename", None) or next(
            (text.partition("=")[2] for text in arguments if text.startswith("--config=")),
            "--config",
        )
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise InputError(
            f"{where}{line}: the config does not load ({one_line(error)}); correct the file"
        ) from error
    if "config" in values:
        _split_words(values)
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    for flag in values:
        # As from --workdir=$UNSET: an empty path would be the current folder.
        given = values[flag].value
        if flag != "config" and values[flag].default is None and given in ("", [""]):
            raise InputError(f"--{flag} is empty; write --{flag}=... (see --help)")
    return values


def _config_first(arguments: list[str]) -> list[str]:
    """Put --config before its overrides, as ml_collections wants it; a person need not."""
    if "--config" in arguments[:-1]:
        at = arguments.index("--config")
        arguments = [f"--config={arguments[at + 1]}", *arguments[:at], *arguments[at + 2 :]]
    # Of an override given twice the last counts, as of any flag; ml_collections would string
    # tuples together.
    last = {text.partition("=")[0]: at for at, text in enumerate(arguments)}
    kept = [
        text
        for at, text in enumerate(arguments)
        if not text.startswith("--config.") or last[text.partition("=")[0]] == at
    ]
    return sorted(kept, key=lambda text: not text.startswith(("--config=", "-config=")))


def _split_words(values: FlagValues) -> None:
    """Read `same,valid,same` as three words, as `3,3,2` is three numbers."""
    config = values.config
    for key, value in config_flags.get_override_values(values["config"]).items():
        if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], str):
            words = tuple(word.strip() for word in value[0].split(","))
            config.update_from_flattened_dict({key: words})


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


def _show_help(name: str, summary: str, values: FlagValues) -> None:
    print(f"{name}: {summary}\n")
    for flag in sorted(values):
        if flag in ("h", "help"):
            continue
        default = values[flag].default
        if flag == "config":
            default = DEFAULT_CONFIG
        shown = "required" if default is None else f"default {default!r}"
        if flag in ("data", "compare") or default == []:
            shown = "optional"
        # absl adds how to give a list, in a line of its own.
        said = values[flag].help.partition(";\n")[0]
        print(f"  --{flag:<16} {said} ({shown})")


_WANTED = {  # what Python's parsers complain of, and what they mean to a person
    r"invalid literal for int\(\).*": "a whole number",
    r"could not convert string to float.*": "a number",
    r"\('Non-boolean argument.*": "true or false",
}


def one_line(error: BaseException) -> str:
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


def sweep(values: FlagValues) -> Callable[..., Any]:
    """Return the generator `sweep_NAME` of the config file that --config names, NAME from --sweep.

    Raises:
        InputError: the file has none of that name; those it has are listed.
    """
    path = config_flags.get_config_filename(values["config"]).partition(":")[0]
    spec = importlib.util.spec_from_file_location("config_of_the_sweep", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: is no Python file; give --config=FILE.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    prefix = "sweep_"
    known = [name.removeprefix(prefix) for name in vars(module) if name.startswith(prefix)]
    if not known:
        raise InputError(
            f"{path}: has no sweep; write `def sweep_NAME()` in it, see configs/sweeps.py, or use "
            "configs/opconvnet.py"
        )
    check_choice("--sweep", values.sweep, known)
    return getattr(module, prefix + values.sweep)


def config_words(values: FlagValues) -> list[str]:
    """Return the words of the command line that say which config this is."""
    flag = values["config"]
    overrides = config_flags.get_override_values(flag)
    return [
        f"--config={config_flags.get_config_filename(flag)}",
        *(f"--config.{key}={value}" for key, value in overrides.items()),
    ]


def rates(words: Sequence[str]) -> dict[str, float]:
    """Read `name=number` words.

    Raises:
        InputError: a word is no such pair.
    """
    found = {}
    for word in words:
        name, equals, number = word.partition("=")
        try:
            found[name.strip()] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise InputError(f"--rates={word}: give name=number, e.g. --rates=t13=0.5,l6=0")
    return found
