"""Sweeps: what a `sweep_<name>` beside `get_config` yields, and how sweeps combine; no jax.

    def sweep_rates():
        return product(axis("optim.learning_rate", (1e-3, 3e-4)), axis("model.attention", KINDS))

A unit is a name and flat overrides of the config, the words of the command line: what is written
`--config.optim.learning_rate=0.001` there is `{"optim.learning_rate": 1e-3}` here. A sweep may
yield plain mappings, too; they are named after what they set. `python -m spinejax.launch.sweep` runs them.

The key `config` names another config file than the sweep's own, in the same folder, with its
arguments: `{"config": "unet.py"}`, `{"config": "mrunet.py:table=4"}`.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Unit(NamedTuple):
    """One run of a sweep.

    name: of its folder, too; unique in the sweep. "" for a part that only adds overrides.
    overrides: by dotted key.
    cell: its place in a published table: "table", and the printed words of its row's label columns;
        "scores" where it is scored otherwise than the rest of the table ("binary", "vertebrae",
        "patches"). Units that share a cell are averaged: seeds and folds.
    """

    name: str
    overrides: Mapping[str, Any]
    cell: Mapping[str, Any] = {}


Sweep = Iterable[Unit | Mapping[str, Any]]


def text(value: Any) -> str:
    """Return a value as it is written on the command line.

    Raises:
        ValueError: there is no way to write it.
    """
    value = plain(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        # One word of a sequence is a sequence still.
        return "(" + ", ".join(map(repr, value)) + ("," if len(value) == 1 else "") + ")"
    if not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is no value of a field; give a number, a word or a sequence")
    return str(value)


def plain(value: Any) -> Any:
    """Return numbers of numpy as Python's, sequences as tuples, the rest as it is."""
    if isinstance(value, tuple | list | np.ndarray):
        return tuple(map(plain, value))
    return value.item() if isinstance(value, np.generic) else value


def named(overrides: Mapping[str, Any]) -> Unit:
    """Return the unit that is called after what it sets, `normalise=hu,fold=2`."""
    words = []
    overrides = {key: plain(value) for key, value in overrides.items()}
    for key, value in overrides.items():
        if isinstance(value, tuple | list):
            shown = "x".join(map(str, value))
        else:
            shown = f"{value:g}" if isinstance(value, float) else text(value)
        words.append(f"{key.rpartition('.')[2]}={shown}")
    return Unit(",".join(words), overrides)


def units(sweep: Sweep) -> list[Unit]:
    """Return what a sweep yields, all of it named.

    Raises:
        ValueError: it yields something else than units and mappings.
    """
    found = []
    for unit in sweep:
        if not isinstance(unit, Unit | Mapping):
            raise ValueError(f"{unit!r} is neither a Unit nor a mapping from fields to values")
        found.append(unit if isinstance(unit, Unit) else named(unit))
    return found


def axis(key: str, values: Iterable[Any]) -> list[Unit]:
    """Return one unit for each value of a field."""
    return [named({key: value}) for value in values]


def product(*sweeps: Sweep) -> list[Unit]:
    """Return every combination of the units of several sweeps, the last sweep varying fastest.

    Raises:
        ValueError: two of them set the same field.
    """
    combined = []
    for parts in itertools.product(*map(units, sweeps)):
        overrides: dict[str, Any] = {}
        cell: dict[str, Any] = {}
        for part in parts:
            twice = overrides.keys() & part.overrides.keys()
            if twice:
                raise ValueError(f"{sorted(twice)[0]} is set by two sweeps of a product")
            overrides |= part.overrides
            cell |= part.cell
        name = ",".join(part.name for part in parts if part.name)
        combined.append(Unit(name, overrides, cell))
    return combined


def chain(*sweeps: Sweep) -> list[Unit]:
    """Return the units of several sweeps, one sweep after the other."""
    return [unit for sweep in sweeps for unit in units(sweep)]


def sample(sweep: Sweep, count: int, seed: int = 0) -> list[Unit]:
    """Return `count` units of a sweep, drawn at random without any twice; all if it has fewer."""
    every = units(sweep)
    drawn = np.random.default_rng(seed).permutation(len(every))[:count]
    return [every[i] for i in drawn]


def seeds(count: int) -> list[Unit]:
    """Return the seeds 0 to `count` - 1, of the split, the first weights and the order of samples.

    A cell of a table is the mean over them.
    """
    return axis("seed", range(count))


def folds(count: int) -> list[Unit]:
    """Return the folds of a cross-validation, grouped by patient; each tests on its own part."""
    return [
        Unit(f"fold={fold}", {"data.split": "kfold", "data.folds": count, "data.fold": fold})
        for fold in range(count)
    ]
