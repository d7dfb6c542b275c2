"""From a config, a sweep and extra flags to units with their command lines, all checked."""

import fnmatch
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from absl.flags import FlagValues
from ml_collections import ConfigDict, config_flags

from spinejax import arguments
from spinejax.configs import sweeps
from spinejax.errors import InputError
from spinejax.sweep_state import SECOND, Sweep, Unit

_FREE = ("data.root", "data.cache_dir", "data.threads", "data.prefetch")
MOVABLE = (*_FREE, *(f"{SECOND}.{key}" for key in _FREE))
"""Fields that may change between two starts of a sweep: no score depends on them."""

_LONGEST_NAME = 200  # of a folder


def make(values: FlagValues, workdir: Path) -> Sweep:
    """Return the sweep that --config, its overrides, --sweep, --seeds and --folds describe.

    Its units share a cache of preprocessed scans in `workdir`, unless the flags name another.

    Raises:
        InputError: no such sweep (those there are, are listed), a unit that sets a field that its
            config does not have or a value of another type, a name that is taken twice, an override
            of what the sweep varies.
    """
    generator = arguments.sweep(values)
    flag = values["config"]
    own = config_flags.get_config_filename(flag)
    common = config_flags.get_override_values(flag)
    name = values.sweep
    units = _units(generator, name, values)
    checked = []
    for unit in units:
        overrides = dict(unit.overrides)
        twice = sorted(overrides.keys() & common.keys())
        if twice:
            raise InputError(
                f"--config.{twice[0]}: sweep {name} varies this field; leave it out, or use "
                "another sweep"
            )
        file = beside(own, str(overrides.pop("config", "")))
        fields = {**common, **overrides}
        words = [f"--config={file}", *(f"--config.{k}={sweeps.text(v)}" for k, v in fields.items())]
        config = _check(unit.name, name, words)
        for block in ("", f"{SECOND}."):
            key = f"{block}data.cache_dir"
            if key not in fields and (not block or SECOND in config) and _reads_scans(config):
                words.append(f"--config.{key}={workdir / 'cache'}")
        checked.append(Unit(unit.name, tuple(words), dict(unit.overrides), dict(unit.cell)))
    return Sweep(name, own, tuple(checked))


def _units(
    generator: Callable[[], sweeps.Sweep], name: str, values: FlagValues
) -> list[sweeps.Unit]:
    """Return the units of a sweep, times seeds and folds, with names fit for folders."""
    try:
        parts: list[sweeps.Sweep] = [generator()]
        if values.seeds:
            parts.append(sweeps.seeds(values.seeds))
        if values.folds:
            parts.append(sweeps.folds(values.folds))
        units = sweeps.product(*parts)
    except Exception as error:  # whatever the sweep's own code may raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise InputError(
            f"sweep {name}: {kind}{arguments.one_line(error)}; correct the sweep, or the flags"
        ) from error
    if not units:
        raise InputError(f"sweep {name} yields no units; correct it")
    named = [unit._replace(name=re.sub(r"[^\w.,=+-]", "_", unit.name)) for unit in units]
    for unit in named:
        if not unit.name.strip(".") or len(unit.name) > _LONGEST_NAME:
            raise InputError(f"sweep {name}: {unit.name!r} cannot name a folder; name the unit")
    # A folder's name may differ from another one's in more than capitals only.
    counts = Counter(unit.name.lower() for unit in named)
    for unit in named:
        if counts[unit.name.lower()] > 1:
            raise InputError(
                f"sweep {name}: {counts[unit.name.lower()]} units are called {unit.name!r}; give "
                "them different names, or different overrides"
            )
    return named


def beside(own: str, other: str) -> str:
    """Return the config that a unit names, with the arguments of the sweep's own added.

    `beside("configs/a.py:debug", "b.py:net=vgg")` is "configs/b.py:net=vgg,debug".

    Raises:
        InputError: an argument is given by both.
    """
    file, _, given = own.partition(":")
    if not other:
        return own
    name, _, args = other.partition(":")
    names = [{word.partition("=")[0] for word in text.split(",") if word} for text in (args, given)]
    if names[0] & names[1]:
        raise InputError(
            f"--config={own}: the sweep varies the argument {sorted(names[0] & names[1])[0]!r}; "
            "leave it out"
        )
    joined = ",".join(filter(None, (args, given)))
    return str(Path(file).parent / name) + (f":{joined}" if joined else "")


def _check(unit: str, sweep: str, words: Sequence[str]) -> ConfigDict:
    """Return the config of a unit."""
    try:
        values = arguments.parse("train", "", arguments.config_flag, list(words))
    except InputError as error:
        raise InputError(f"sweep {sweep}, unit {unit}: {error}") from error
    if values is None:
        raise InputError(f"sweep {sweep}, unit {unit}: --help is no field")
    return values.config


def _reads_scans(config: ConfigDict) -> bool:
    """Whether a run reads scans that other runs read, too; phantoms are written by each."""
    return config.data.source == "verse"


def chosen(sweep: Sweep, pattern: str) -> list[Unit]:
    """Return the units whose names fit a pattern of the shell; "" for all.

    Raises:
        InputError: none does.
    """
    found = [u for u in sweep.units if not pattern or fnmatch.fnmatchcase(u.name, pattern)]
    if not found:
        raise InputError(
            f"--units={pattern}: no unit of sweep {sweep.name} is called so; they are "
            + ", ".join(unit.name for unit in sweep.units)
        )
    return found


def check_same(old: Sweep, new: Sweep, begun: Sequence[str], workdir: Path) -> None:
    """Refuse to go on in the folder of another sweep; units may be added, and seeds.

    Args:
        old: what the folder holds.
        new: what was asked for.
        begun: names of the units that have been started; others bind nobody.
        workdir: the folder.

    Raises:
        InputError: names what differs.
    """
    if not begun:
        return
    advice = "give this one another --workdir, or the old words to go on"
    if (old.name, _file(old.config)) != (new.name, _file(new.config)):
        raise InputError(
            f"{workdir} belongs to sweep {old.name} of {old.config}, not to {new.name} of "
            f"{new.config}; {advice}"
        )
    units = {unit.name: unit for unit in new.units}
    for unit in old.units:
        if unit.name not in begun:
            continue
        if unit.name not in units:
            raise InputError(
                f"{workdir}: its unit {unit.name}, which has been started, is not in the sweep any "
                f"more; {advice}"
            )
        before, after = _words(unit.words), _words(units[unit.name].words)
        differing = sorted(k for k in before | after if before.get(k) != after.get(k))
        if differing:
            key = differing[0]
            raise InputError(
                f"{workdir}: its unit {unit.name} was started with {before.get(key, f'no {key}')}, "
                f"not {after.get(key, f'no {key}')}; {advice}"
            )


def _file(config: str) -> str:
    return Path(config.partition(":")[0]).name


def _words(words: Sequence[str]) -> dict[str, str]:
    """Return flag -> word, without what may change and where the config file lies."""
    found = {word.partition("=")[0]: word for word in words}
    config = found["--config"].partition("=")[2]
    found["--config"] = f"--config={_file(config)}:{config.partition(':')[2]}"
    free = {f"--config.{key}" for key in MOVABLE}
    return {key: word for key, word in found.items() if key not in free}


def command(unit: Unit, workdir: Path) -> list[str]:
    """Return the arguments of `spinejax` that run a unit: train, or resume, then score."""
    return ["train", *unit.words, f"--workdir={workdir / unit.name}", "--evaluate"]


def shown(unit: Unit, workdir: Path) -> str:
    """Return the command line of a unit, to be read or pasted."""
    return shlex.join(["spinejax", *command(unit, workdir)])
