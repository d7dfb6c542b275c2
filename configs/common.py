"""Shared by the experiments: the defaults of every field, and the arguments of a config file.

Configs hold numbers and names only. Nothing here imports jax, so a launcher reads a config in
milliseconds.
"""

from typing import Any

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
