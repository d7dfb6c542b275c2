"""The JSON files that describe runs and sweeps, read and compared with the shape that is needed.

A shape is a type (`str`, `int`, `float` for any finite number, `bool`, `dict`, `object` for
anything), `[shape]` for a list, `{str: shape}` for an object with any names, `{"a": shape, "b?":
shape}` for an object with these names and maybe others, where "b" may be missing, or a tuple of
alternatives with None for null.
"""

import json
import math
from pathlib import Path
from typing import Any

from spinejax.errors import InputError, describe_os_error, shown
from spinejax.files import read_regular

_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    None: "null",
}
_LARGEST = 2**53  # JSON's numbers are exact up to here


def read(path: Path, shape: Any, remedy: str) -> dict[str, Any]:
    """Return the content of a JSON file.

    Args:
        path: of the file.
        shape: of the content, an object.
        remedy: ends the error: what to do about a damaged file.

    Raises:
        InputError: the file is missing or cannot be read, or its content has another shape; the
            error names file and field.
    """
    try:
        text = read_regular(path)
        if not text.strip():
            raise InputError(f"{path} is damaged (it is empty); {remedy}")
        value = json.loads(text)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {remedy}") from None
    except InputError:
        raise
    except OSError as error:
        raise InputError(describe_os_error(error)) from error
    except (ValueError, RecursionError) as error:
        nested = isinstance(error, RecursionError)
        reason = "nested too deeply" if nested else " ".join(str(error).split())[:100]
        raise InputError(f"{path} is damaged ({reason}); {remedy}") from error
    check(value, shape, path, remedy)
    return value


def read_if_there(path: Path, shape: Any, remedy: str) -> dict[str, Any]:
    """Return the content of a JSON file as `read`, and {} if there is no such file."""
    return read(path, shape, remedy) if path.exists() or path.is_symlink() else {}


def read_or_empty(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} if there is none, or it is damaged."""
    try:
        return read_if_there(path, dict, "")
    except InputError:
        return {}


def check(value: Any, shape: Any, path: Path, remedy: str, field: str = "") -> None:
    """Compare a value with a shape.

    Args:
        value: as JSON gives it.
        shape: that it must have.
        path: the file.
        remedy: ends the error.
        field: where the value is in the file.

    Raises:
        InputError: the value has another shape; the error names file and field.
    """
    problem = _problem(value, shape, field)
    if problem:
        raise InputError(f"{path} is damaged ({problem}); {remedy}")


def fits(value: Any, shape: Any) -> bool:
    """Return whether a value has a shape."""
    return not _problem(value, shape, "")


def _problem(value: Any, shape: Any, field: str) -> str:
    """Return what is wrong, "" if the value fits."""
    inside = f"{field}." if field else ""
    if isinstance(shape, tuple):
        found = [_problem(value, one, field) for one in shape]
        return "" if "" in found else found[0]
    if isinstance(shape, list) and isinstance(value, list):
        parts = [_problem(item, shape[0], f"{inside}{at}") for at, item in enumerate(value)]
        return next(filter(None, parts), "")
    if isinstance(shape, dict) and isinstance(value, dict):
        if str in shape:
            parts = [_problem(item, shape[str], inside + name) for name, item in value.items()]
            return next(filter(None, parts), "")
        for key, inner in shape.items():
            name = key.removesuffix("?")
            if name in value:
                if problem := _problem(value[name], inner, inside + name):
                    return problem
            elif name == key:
                return f"it has no {inside}{name}"
        return ""
    if _is(value, shape):
        return ""
    kind = dict if isinstance(shape, dict) else shape
    wanted = "a list" if isinstance(shape, list) else _NAMES[kind]
    return f"{field or 'the content'} is {shown(value)}, not {wanted}"


def _is(value: Any, kind: Any) -> bool:
    if kind is object:
        return True
    if kind is None:
        return value is None
    if isinstance(kind, dict | list):
        return False
    if kind in (int, float):
        number = isinstance(value, int if kind is int else (int, float))
        whole = isinstance(value, int)
        return (
            number
            and not isinstance(value, bool)
            and (abs(value) <= _LARGEST if whole else math.isfinite(value))
        )
    return isinstance(value, kind)
