"""Configs: finding the file that a user names, loading it, setting fields. Imports no jax."""

import ast
import difflib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from spinejax import schema
from spinejax.errors import InputError, check_choice, shown
from spinejax.files import expanded

PACKAGED = Path(__file__).parent / "configs"
"""Folder of the configs that come with spinejax."""

Sweep = Callable[..., Iterable[Any]]
"""A function `sweep_NAME` of a config file, see `spinejax.configs.sweeps`."""


def find(name: str, flag: str = "--config") -> Path:
    """Return the file of a config.

    Args:
        name: a path, `FILE.py`, or the bare name of a config, such as "chasppraunet"; arguments
            after a colon are ignored. A file in the current folder, or in its folder `configs`,
            comes before the packaged config of the same name. "configs/chasppraunet.py" also
            finds the packaged config from a folder that has no `configs`.
        flag: that gave the name, for messages.

    Raises:
        InputError: there is no such config.
    """
    path = expanded(name.partition(":")[0])
    places = [path]
    if path.name and path.parent in (Path(), Path("configs")):
        file = path.name if path.suffix == ".py" else f"{path.name}.py"
        places += [path.with_name(file), Path("configs", file), PACKAGED / file]
    for place in places:
        if place.suffix == ".py" and place.is_file():
            return place
    if path.exists() and path.suffix == ".py":
        raise InputError(f"{flag}={path}: is not a regular file; give {flag}=FILE.py")
    known = sorted(place.stem for place in PACKAGED.glob("*.py") if _is_experiment(place))
    close = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"the packaged configs are {', '.join(known)}"
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    raise InputError(
        f"{flag}={name}: there is no such file{where}; give {flag}=FILE.py or the name of a "
        f"packaged config: {hint}"
    )


def get_config(name: str, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """Load a config and set fields of it.

    Args:
        name: see `find`; the text after a colon is the argument of `get_config`:
            "chasppraunet:debug", "configs/mrunet.py:table=4".
        overrides: values by dotted key, `{"optim.learning_rate": 1e-3}`, or their text as on the
            command line, "1e-3". "model" takes a name of a config, whose network replaces the
            config's own (`take_network`), before fields of "model" are set.

    Raises:
        InputError: there is no such config or field, its file fails, or a value has the wrong type.
    """
    if not isinstance(name, str):
        raise InputError(f"{shown(name)} is no name of a config; give text such as 'unet'")
    file = find(name)
    module = _load(file)
    arguments = name.partition(":")[2] or None
    if not hasattr(module, "get_config"):
        raise InputError(f"{file}: has no function get_config(arg); see configs/demo.py")
    try:
        config = module.get_config(arguments)
    except (Exception, SystemExit) as error:  # the file's own code may raise anything
        raise _failed(file, error) from error
    fields = dict(overrides or {})
    for key in ("model", f"{schema.SECOND}.model"):
        block = config.get(schema.SECOND) if "." in key else config
        if key in fields and isinstance(block, ConfigDict):
            take_network(block, _beside(file, fields.pop(key)), f"--config.{key}")
    for key, value in fields.items():
        _set(config, key, value)
    return config


def take_network(config: ConfigDict, name: str, flag: str = "--config.model") -> None:
    """Give a config the network of another config; its data and training stay.

    The network is the block `model` and the fields `schema.OF_NETWORK`: SAU-Net also sees the
    neighbouring slices, and D-TVNet also learns contours.

    Args:
        config: changed in place.
        name: of the other config, see `get_config`; "unet", "opconvnet:net=vgg".
        flag: that gave the name, for messages.

    Raises:
        InputError: there is no such config.
    """
    if not isinstance(name, str):
        raise InputError(f"{flag}={shown(name)}: must be the name of a config, such as unet")
    find(name, flag)
    other = get_config(name).copy_and_resolve_references()
    config.model = other.model
    for path in schema.OF_NETWORK:
        block, field = path.split(".")
        if field in config.get(block, {}) and field in other.get(block, {}):
            config[block][field] = other[block][field]


def _beside(file: Path, name: Any) -> Any:
    """Return the name of a config, as a path if a config of that name lies beside `file`."""
    path, colon, arguments = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not path or path != Path(path).name:
        return name
    near = file.with_name(path if path.endswith(".py") else f"{path}.py")
    return f"{near}{colon}{arguments}" if near.is_file() else name


def find_sweep(config: str, call: str) -> Sweep:
    """Return the function `sweep_NAME` of a config file, its arguments filled in.

    Args:
        config: see `find`.
        call: "NAME", or with arguments by name, "NAME(trials=32, seed=1)"; words need no quotes.

    Raises:
        InputError: the file has no sweep of that name (the message lists its sweeps), `call` cannot
            be read, or the sweep has no such argument, or one of another type.
    """
    file = find(config)
    name, given = _call(call)
    prefix = "sweep_"
    functions = {
        key.removeprefix(prefix): value
        for key, value in vars(_load(file)).items()
        if key.startswith(prefix)
    }
    if not functions:
        raise InputError(
            f"{file}: has no sweep; write `def sweep_NAME()` in it, see configs/sweeps.py, or use "
            "--config=opconvnet"
        )
    check_choice("--sweep", name, functions)
    function = functions[name]
    return (
        partial(function, **_arguments(f"--sweep={name}", function, given)) if given else function
    )


def _call(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of `NAME(key=value, ...)`."""
    name, bracket, _ = text.partition("(")
    if not bracket:
        return text, {}
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or node.args:
            raise ValueError
        names = [word.arg for word in node.keywords]
        if None in names or len(set(names)) < len(names):
            raise ValueError
        return name.strip(), {
            str(word.arg): word.value.id
            if isinstance(word.value, ast.Name)
            else ast.literal_eval(word.value)
            for word in node.keywords
        }
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise InputError(
            f"--sweep={text}: cannot be read; give a name, or a name with arguments such as "
            "'random_search(trials=32, seed=1)'"
        ) from None


def _arguments(flag: str, function: Sweep, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given arguments of a sweep in the types of its defaults."""
    known = inspect.signature(function).parameters
    found = {}
    for key, value in given.items():
        if key not in known:
            words = ", ".join(known) or "no arguments"
            raise InputError(f"{flag}: has no argument {key}; it has {words}")
        default = known[key].default
        found[key] = (
            value
            if default in (None, known[key].empty)
            else _typed(f"{flag}({key}={value})", value, default)
        )
    return found


def one_line(error: BaseException) -> str:
    """Return the message of an exception on one line, without the quotes that KeyError adds."""
    text = str(error.args[0] if error.args else type(error).__name__)
    return " ".join((str(error) if isinstance(error, OSError) else text).split())


def _is_experiment(file: Path) -> bool:
    return "\ndef get_config(" in file.read_text(encoding="utf-8")


def _load(file: Path) -> ModuleType:
    """Run a config file; its imports work as in any module."""
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{file}: is not a Python file; give --config=FILE.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _failed(file, error) from error
    return module


def _failed(file: Path, error: BaseException) -> InputError:
    """Return the error for a config file whose code raised `error`."""
    if isinstance(error, ValueError):  # the config's own words, such as those of `parse_arg`
        return InputError(f"{file}: {one_line(error)}")
    line = f" line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
    return InputError(f"{file}{line}: the config does not load ({one_line(error)}); correct it")


def _set(config: ConfigDict, key: str, value: Any) -> None:
    """Set one field; text is read in the type of the field."""
    text = shown(value)
    flag = f"--config.{key}={text[1:-1] if isinstance(value, str) else text}"
    if "[" in key:
        raise InputError(f"{flag}: a tuple is set as a whole, as in --config.data.size='(64, 64)'")
    *blocks, name = key.split(".")
    block = config
    for part in blocks:
        block = block[part] if isinstance(block, ConfigDict) and part in block else None
    if not isinstance(block, ConfigDict) or name not in block:
        raise InputError(f"--config.{key}: {schema.unknown(config, key)}")
    old = block[name]
    if isinstance(old, ConfigDict):
        raise InputError(f"{flag}: {key} is a block; set one of its fields, --config.{key}.FIELD=")
    block[name] = _typed(flag, value, old)


def _typed(flag: str, value: Any, old: Any) -> Any:
    """Return `value` in the type of a field's present value `old`."""
    if isinstance(old, bool):
        words = {"true": True, "1": True, "false": False, "0": False}
        value = words.get(value.lower(), value) if isinstance(value, str) else value
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(old, int):
        value = _number(int, value)
        fits, wanted = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif isinstance(old, float):
        value = _number(float, value)
        fits, wanted = isinstance(value, float), "a number"
    elif isinstance(old, str):
        fits, wanted = isinstance(value, str), "a word"
    elif isinstance(old, tuple):
        value = _tuple(value) if isinstance(value, str) else value
        value = tuple(value) if isinstance(value, list) else value
        fits, wanted = isinstance(value, tuple), "several values, as '(64, 64)'"
    else:
        fits, wanted = True, ""
    if not fits:
        raise InputError(f"{flag}: must be {wanted}")
    return value


def _number(kind: Callable[[Any], Any], value: Any) -> Any:
    """Return a number given as text or, for a float field, as an integer; else `value` itself."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return value
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return value


def _tuple(text: str) -> Any:
    """Read `(64, 32)`, `64,32` or `same,valid,same`; return `text` itself if it is none of them."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # of literal_eval
        words = [word.strip() for word in text.split(",")]
        return tuple(words) if all(word.isidentifier() for word in words) else text
    return tuple(value) if isinstance(value, tuple | list) else (value,)
