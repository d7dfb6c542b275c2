"""A config with sweeps of a few seconds a unit, on the scans of `tiny_run`; used by tests.

spinejax sweep --config=tests/support/tiny_sweep.py --sweep=four --config.data.root=SCANS ...
"""

from pathlib import Path

from ml_collections import ConfigDict

from spinejax.configs import sweeps
from spinejax.configs.sweeps import Unit
from tests.support import tiny_run


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the experiment, with a network of one level."""
    return tiny_run.tiny_config(Path(), **{"data.root": "", "model.widths": (4,)})


def sweep_four() -> list[Unit]:
    """Yield two learning rates with two seeds each."""
    return sweeps.product(sweeps.axis("optim.learning_rate", (0.1, 0.03)), sweeps.seeds(2))


def sweep_failing() -> list[Unit]:
    """Yield a unit that fails when it runs, since the scans have no official split, and another."""
    return sweeps.axis("data.split", ("official", "ratio"))


def sweep_same() -> list[Unit]:
    """Yield two units of one name."""
    return [Unit("a", {"seed": 1}), Unit("A", {"seed": 2})]


def sweep_unknown() -> list[Unit]:
    """Yield a field that the config does not have."""
    return sweeps.axis("optim.learning_rat", (0.1,))


def sweep_mistyped() -> list[Unit]:
    """Yield a value of a wrong type."""
    return sweeps.axis("train.batch_size", ("four",))


def sweep_empty() -> list[Unit]:
    """Yield nothing."""
    return []


def sweep_broken() -> list[Unit]:
    """Fail."""
    return [{}["nothing"]]


def sweep_odd() -> list:
    """Yield what is no unit."""
    return [("optim.learning_rate", 0.1)]


def sweep_nothing() -> list[Unit]:
    """Yield no value."""
    return sweeps.axis("optim.learning_rate", (None,))


def sweep_bad_network() -> list[Unit]:
    """Yield an option that the network does not have, in the second unit."""
    return [*sweeps.axis("seed", (1,)), *sweeps.axis("model.norm", ("foo",))]


def sweep_bad_value() -> list[Unit]:
    """Yield a value out of range, in the second unit."""
    return [*sweeps.axis("seed", (1,)), *sweeps.axis("optim.learning_rate", (-1,))]


def sweep_table3() -> list[Unit]:
    """Yield one row of a published table, with two seeds."""
    row = {"table": "saeed2023_table3", "Dataset": "VerSe 2020", "Normalization": "Zero mean"}
    return sweeps.product([Unit("zscore", {"data.normalise": "zscore"}, row)], sweeps.seeds(2))


def sweep_stopping():
    raise SystemExit(3)


def sweep_endless():
    value = []
    value.append(value)
    return [{"seed": value}]
