"""Shared by the experiments: defaults of every field, arguments of config files, protocols.

Configs hold numbers and names only. Nothing here imports jax, so a launcher reads a config in
milliseconds.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from spinejax import schema


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Parse `--config=configs/x.py:debug,fold=2` into typed values.

    `arg` is a comma-separated list of `name=value`, or of `name` alone, which means True. A value
    gets the type of its default.

    Raises:
        ValueError: an unknown name, or a value of another type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, equals, text = item.partition("=")
        if name not in defaults:
            raise ValueError(
                f"config argument {name!r} is unknown; this config knows {sorted(defaults)}"
            )
        kind = type(defaults[name])
        if kind is bool:
            if equals and text.lower() not in ("true", "false", "1", "0"):
                raise ValueError(f"config argument {name}={text!r} must be true or false")
            values[name] = text.lower() in ("true", "1") if equals else True
        else:
            try:
                values[name] = kind(text)
            except ValueError:
                raise ValueError(
                    f"config argument {name}={text!r} must be of type {kind.__name__}"
                ) from None
    return ConfigDict(values)


def base(name: str, model: dict[str, Any], task: str = schema.SLICES) -> ConfigDict:
    """Return an experiment of a task, every field at its default (`spinejax.schema`)."""
    config = ConfigDict(schema.defaults(task))
    config.name = name
    config.model = ConfigDict(model)
    return config


# Protocols of papers


class Asked(NamedTuple):
    """A value that a paper asks for: the field, its value, the paper's words, their section.

    `tasks` are those of the networks that the words are about.
    """

    path: str
    value: Any
    words: str
    section: str
    tasks: tuple[str, ...] = schema.TASKS


class Open(NamedTuple):
    """What a paper leaves open, and the field that decides it here."""

    path: str
    what: str


OWN, PAPER, PAPER_B = "own", "paper", "paper_b"
"""Values of the argument `protocol`: this project's recipe, that of the config's paper, and that of
paper B for a network that both papers compare with."""


def check_protocol(protocol: str, known: tuple[str, ...] = (OWN, PAPER)) -> None:
    """Refuse an unknown value of the argument `protocol`.

    Raises:
        ValueError: it is not in `known`.
    """
    if protocol not in known:
        raise ValueError(f"protocol={protocol!r} is unknown; choose from {', '.join(known)}")


def follow(config: ConfigDict, asked: Iterable[Asked]) -> None:
    """Set the fields of one network as a paper asks, where its task can have these values."""
    known = schema.fields(config.task)
    for one in asked:
        *blocks, name = one.path.split(".")
        block = config
        for part in blocks:
            block = block.get(part, ConfigDict())
        fits = one.path not in known or known[one.path].allowed.fits(one.value)
        if name in block and fits and config.task in one.tasks:
            block[name] = one.value


def deviations(fields: dict[str, Any], asked: Iterable[Asked]) -> list[tuple[Asked, Any]]:
    """Return what a paper asks for and a config does otherwise, with the config's value.

    Args:
        fields: of one network, as `schema.flatten` gives them.
        asked: by the paper. What the network has no field for is left out.
    """
    found = []
    for one in asked:
        value = fields.get(one.path, one.value)
        value = tuple(value) if isinstance(value, list) else value
        if fields.get("task") in one.tasks and value != one.value:
            found.append((one, value))
    return found
