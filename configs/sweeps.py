"""Sweeps: the units that a function `sweep_<name>` of a config file yields, and their combinations.

    def sweep_rates():
        return product(axis("optim.learning_rate", (1e-3, 3e-4)), axis("model.attention", KINDS))

A unit is a name and overrides of fields: `{"optim.learning_rate": 1e-3}` here is
`--config.optim.learning_rate=0.001` on the command line. A sweep may also yield plain mappings,
which are named after the fields that they set. `spinejax sweep` runs the units. Nothing here
imports jax.

The key `config` names another config file than the sweep's own, in the same folder, with its
arguments: `{"config": "unet.py"}`, `{"config": "mrunet.py:table=4"}`. The key `model` takes
only the network of another config, `{"model": "unet"}`; data and training stay those of the sweep.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spinejax.errors import shown


class Unit(NamedTuple):
    """One run of a sweep.

    Attributes:
        name: unique in the sweep; also names the unit's folder. "" for a part of a product that
            only adds overrides.
        overrides: values by dotted key.
        cell: place in a published table: "table", and the printed words in the label columns of its
            row; "scores" if the row is scored differently from the rest of the table ("binary",
            "vertebrae", "patches"). Units with the same cell, such as seeds and folds, are
            averaged.
    """

    name: str
    overrides: Mapping[str, Any]
    cell: Mapping[str, Any] = {}


Sweep = Iterable[Unit | Mapping[str, Any]]


def text(value: Any) -> str:
    """Return the text of a value on the command line.

    Raises:
        ValueError: the value has no such text.
    """
    value = plain(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        # A sequence of one item needs its comma.
        for item in value:
            text(item)
        return "(" + ", ".join(map(repr, value)) + ("," if len(value) == 1 else "") + ")"
    finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, str | int | float) or not finite:
        raise ValueError(f"{shown(value)} is no finite number, word or sequence of them")
    return str(value)


def plain(value: Any) -> Any:
    """Return NumPy's numbers as Python's, sequences as tuples, paths as text, others unchanged."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, tuple | list):
        return tuple(map(plain, value))
    return str(value) if isinstance(value, Path) else value


def named(overrides: Mapping[str, Any]) -> Unit:
    """Return a unit with a name made of its fields, `normalise=hu,fold=2`."""
    words = []
    overrides = _plain_unit(Unit("", overrides)).overrides
    for key, value in overrides.items():
        if isinstance(value, tuple | list):
            word = "x".join(map(str, value))
        else:
            word = f"{value:g}" if isinstance(value, float) else text(value)
        words.append(f"{key.rpartition('.')[2]}={word}")
    return Unit(",".join(words), overrides)


def units(sweep: Sweep) -> list[Unit]:
    """Return the units of a sweep, each with a name.

    Raises:
        ValueError: the sweep yields something other than units and mappings.
    """
    found = []
    for unit in sweep:
        if not isinstance(unit, Unit | Mapping):
            raise ValueError(f"{shown(unit)} is neither a Unit nor a mapping from fields to values")
        found.append(_plain_unit(unit) if isinstance(unit, Unit) else named(unit))
    return found


def _plain_unit(unit: Unit) -> Unit:
    """Return a unit whose values are all plain; a cell may also hold None."""
    if not isinstance(unit.name, str):
        raise ValueError(f"the name of a unit is {shown(unit.name)}; give a word")
    title = f"unit {shown(unit.name)}: " if unit.name else ""
    blocks = []
    for what, block in (("overrides", unit.overrides), ("cell", unit.cell)):
        if not isinstance(block, Mapping) or not all(isinstance(key, str) for key in block):
            raise ValueError(f"{title}its {what} are {shown(block)}, not values by their names")
        blocks.append({key: plain(value) for key, value in block.items()})
        for key, value in blocks[-1].items():
            if value is None and what == "cell":
                continue
            try:
                text(value)
            except ValueError as error:
                raise ValueError(f"{title}{key}: {error}") from error
    return Unit(unit.name, *blocks)


def axis(key: str, values: Iterable[Any]) -> list[Unit]:
    """Return one unit for each value of a field."""
    return [named({key: value}) for value in values]


def product(*sweeps: Sweep) -> list[Unit]:
    """Return every combination of the units of several sweeps; the last sweep varies fastest.

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
    """Return the units of several sweeps, one sweep after another."""
    return [unit for sweep in sweeps for unit in units(sweep)]


def sample(sweep: Sweep, count: int, seed: int = 0) -> list[Unit]:
    """Return `count` different units of a sweep, drawn at random; all if it has fewer."""
    every = units(sweep)
    drawn = np.random.default_rng(seed).permutation(len(every))[:count]
    return [every[i] for i in drawn]


def seeds(count: int) -> list[Unit]:
    """Return units with the seeds 0 to `count` - 1; a cell of a table is the mean over them."""
    return axis("seed", range(count))


def folds(count: int) -> list[Unit]:
    """Return the folds of a cross-validation by patient; each tests on its own part."""
    return [
        Unit(f"fold={fold}", {"data.split": "kfold", "data.folds": count, "data.fold": fold})
        for fold in range(count)
    ]
