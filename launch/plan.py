"""From a config and a sweep to units with their command lines, all checked."""

import fnmatch
import hashlib
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from spinejax import config_files, schema
from spinejax.configs import sweeps
from spinejax.errors import InputError
from spinejax.files import expanded
from spinejax.schema import SECOND
from spinejax.sweep_state import Sweep, SweepUnit

_LONGEST_NAME = 200  # bytes of a folder's name


def make(
    config: str,
    overrides: Mapping[str, str],
    name: str,
    workdir: Path,
    *,
    seeds: int = 0,
    folds: int = 0,
) -> Sweep:
    """Return a sweep whose units are all checked.

    The units share a cache of preprocessed scans in `workdir`, unless they set another. Pipelines
    that differ in the second network only share the first, which is trained once.

    Args:
        config: the config that the sweep varies, see `config_files.find`.
        overrides: text of further fields, the same in all units, by dotted key.
        name: of the sweep, with or without arguments, see `config_files.find_sweep`.
        workdir: folder of the sweep.
        seeds: run each unit with seeds 0 to `seeds` - 1.
        folds: run each unit on so many folds of a cross-validation.

    Raises:
        InputError: there is no such sweep; a unit sets a field that its config does not have, or a
            value that is not allowed; two units have the same name; `overrides` set a field that
            the sweep varies.
    """
    checked: list[SweepUnit] = []
    first: list[str] = []
    for unit in _units(config, name, seeds, folds):
        own = dict(unit.overrides)
        twice = sorted(own.keys() & overrides.keys())
        if twice:
            raise InputError(
                f"--config.{twice[0]}: sweep {name} varies this field; leave it out, or use "
                "another sweep"
            )
        file = beside(config, str(own.pop("config", "")))
        try:
            fields = {**overrides, **{key: sweeps.text(value) for key, value in own.items()}}
            found = config_files.get_config(file, fields)
            _check(found)
        except ValueError as error:  # InputError, and those of `sweeps.text`
            raise InputError(f"sweep {name}, unit {unit.name}: {error}") from error
        for block in ("", f"{SECOND}."):
            key = f"{block}data.cache_dir"
            # Phantoms are written by each run, so their cache cannot be shared.
            if key not in fields and (not block or SECOND in found):
                if found.data.source == "verse":
                    fields[key] = str(workdir / "cache")
        words = [f"--config={file}", *(f"--config.{key}={text}" for key, text in fields.items())]
        checked.append(SweepUnit(unit.name, tuple(words), dict(unit.overrides), dict(unit.cell)))
        first.append(_first(found))
    shared = Counter(first)
    units = (
        replace(unit, first=f"first/{digest}") if digest and shared[digest] > 1 else unit
        for unit, digest in zip(checked, first, strict=True)
    )
    return Sweep(name, config, tuple(units))


def _first(config: ConfigDict) -> str:
    """Return digits that stand for the first network of a pipeline; "" for any other config."""
    if SECOND not in config:
        return ""
    fields = schema.flatten(schema.plain(config))
    sets = "train.batch_size_per_device"  # free, but the batch of a run that begins depends on it
    own = {k: v for k, v in fields.items() if k == sets or not schema.is_free(k)}
    own = {k: v for k, v in own.items() if not k.startswith(f"{SECOND}.")}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]


def _check(config: ConfigDict) -> None:
    """Refuse a config that a unit could not train with."""
    from spinejax import tasks  # imports jax, which launching itself does not need

    tasks.check(config)


def _units(config: str, name: str, seeds: int, folds: int) -> list[sweeps.Unit]:
    """Return the units of a sweep, times seeds and folds, with names fit for folders."""
    try:
        parts: list[sweeps.Sweep] = [config_files.find_sweep(config, name)()]
        parts += [sweeps.seeds(seeds)] * bool(seeds) + [sweeps.folds(folds)] * bool(folds)
        units = sweeps.product(*parts)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # the sweep's own code may raise anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        said = f"{kind}{config_files.one_line(error)}"[:300]
        if isinstance(error, RecursionError):
            said = "a value is nested too deeply"
        raise InputError(f"sweep {name}: {said}; correct the sweep, or the flags") from error
    if not units:
        raise InputError(f"sweep {name} yields no units; correct it")
    named = [unit._replace(name=folder_name(unit.name)) for unit in units]
    # Some file systems do not distinguish capitals in the names of folders.
    counts = Counter(unit.name.lower() for unit in named)
    for unit in named:
        if not unit.name.strip(".") or len(unit.name.encode()) > _LONGEST_NAME:
            raise InputError(
                f"sweep {name}: {unit.name[:100]!r} cannot name a folder; name the unit"
            )
        if counts[unit.name.lower()] > 1:
            raise InputError(
                f"sweep {name}: {counts[unit.name.lower()]} units are called {unit.name!r}; give "
                "them different names, or different overrides"
            )
    return named


def folder_name(name: str) -> str:
    """Return a name without the characters that file systems, shells or Slurm might misread."""
    return re.sub(r"[^\w.,=+-]", "_", name)


def beside(own: str, other: str) -> str:
    """Return the config that a unit names, with the arguments of the sweep's own config added.

    `beside("configs/a.py:debug", "b.py:net=vgg")` is "configs/b.py:net=vgg,debug".

    Raises:
        InputError: both give the same argument.
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


def chosen(sweep: Sweep, pattern: str) -> list[SweepUnit]:
    """Return the units whose names match a shell pattern; all for "".

    Raises:
        InputError: no name matches.
    """
    found = [u for u in sweep.units if not pattern or fnmatch.fnmatchcase(u.name, pattern)]
    if not found:
        raise InputError(
            f"--units={pattern}: no unit of sweep {sweep.name} has such a name; the names are "
            + ", ".join(unit.name for unit in sweep.units)
        )
    return found


def check_places(units: Sequence[SweepUnit], workdir: Path) -> None:
    """Refuse to start units whose scans or first weights are nowhere; a dry run may lack both.

    Args:
        units: to be started.
        workdir: folder of the sweep; a unit that has begun there needs no first weights.

    Raises:
        InputError: a unit reads scans, and its `data.root` is empty or no folder that can be read;
            or what its `train.init_from` names is not there.
    """
    from spinejax.training import model_file  # imports jax

    for unit in units:
        config = _config(unit)
        begun = (workdir / unit.name / "config.json").exists()
        for prefix, stage in (("", config), (f"{SECOND}.", config.get(SECOND))):
            if stage is None:
                continue
            root, init_from = stage.data.root, stage.train.init_from
            wrong = ""
            if stage.data.source == "verse" and not root:
                wrong = "data.root is empty"
            elif stage.data.source == "verse" and not _is_readable(expanded(root)):
                wrong = f"data.root={root} is no folder that can be read"
            if wrong:
                raise InputError(
                    f"unit {unit.name}: {prefix}{wrong}; give the folder of the scans with "
                    f"--config.{prefix}data.root=DIR"
                )
            if init_from and not begun and not model_file.located(init_from).exists():
                raise InputError(
                    f"unit {unit.name}: {prefix}train.init_from={init_from}: there is no such "
                    "model; give phantom, FILE.spinejax, or the folder of a run"
                )


def _config(unit: SweepUnit) -> ConfigDict:
    pairs = (word.removeprefix("--config").removeprefix(".") for word in unit.words)
    fields = dict(pair.split("=", 1) for pair in pairs)
    return config_files.get_config(fields.pop(""), fields)


def check_prune(units: Sequence[SweepUnit], prune: int, repeated: bool) -> None:
    """Refuse to stop bad units where that would mean nothing.

    Args:
        units: of the sweep.
        prune: eta of `halving.worst`.
        repeated: whether the units are repeated over seeds or folds.

    Raises:
        InputError: `prune` is 1 or more than there are units, units are repeated, or one has no
            scans to validate on.
    """
    if prune == 1 or prune > len(units):
        raise InputError(
            f"--prune={prune}: a rung keeps the best 1/N of the units; give N from 2 to the number "
            f"of units, {len(units)}"
        )
    if repeated:
        raise InputError(
            f"--prune={prune} with --seeds or --folds would stop the seeds or folds of one "
            "setting one by one; prune first, then repeat the best settings"
        )
    for unit in units:
        config = _config(unit)
        data = config.get(SECOND, config).data
        if not data.val_fraction and data.split in ("ratio", "kfold"):
            raise InputError(
                f"--prune={prune}: unit {unit.name} has no scans to validate on; set "
                "data.val_fraction above 0"
            )


def _is_readable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)


def check_same(old: Sweep, new: Sweep, begun: Sequence[str], workdir: Path) -> None:
    """Refuse to continue in the folder of another sweep; units and seeds may be added.

    Args:
        old: the sweep in the folder.
        new: the sweep that the user asks for.
        begun: names of the units that were started; the other units may change.
        workdir: the folder.

    Raises:
        InputError: names what differs.
    """
    if not begun:
        return
    advice = "give this one another --workdir, or the old words to continue"
    if (old.name, _stem(old.config)) != (new.name, _stem(new.config)):
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
                f"{workdir}: its unit {unit.name}, which was started, is no longer in the sweep; "
                f"{advice}"
            )
        before, after = _words(unit.words), _words(units[unit.name].words)
        differing = sorted(k for k in before | after if before.get(k) != after.get(k))
        if differing:
            key = differing[0]
            raise InputError(
                f"{workdir}: its unit {unit.name} was started with {before.get(key, f'no {key}')}, "
                f"not {after.get(key, f'no {key}')}; {advice}"
            )


def _stem(config: str) -> str:
    return Path(config.partition(":")[0]).stem


def _words(words: Sequence[str]) -> dict[str, str]:
    """Return flag -> word, without the folder of the config file and without movable fields.

    Fields of `data` that may change between two starts of a run are movable: no score depends on
    them.
    """
    found: dict[str, Any] = {word.partition("=")[0]: word for word in words}
    config = found["--config"].partition("=")[2]
    found["--config"] = f"--config={_stem(config)}:{config.partition(':')[2]}"
    keys = {flag: flag.removeprefix("--config.") for flag in found}
    return {
        flag: word
        for flag, word in found.items()
        if not (schema.is_free(keys[flag]) and "data." in keys[flag])
    }


def command(unit: SweepUnit, workdir: Path) -> list[str]:
    """Return the arguments of `spinejax` that run a unit: train or resume, then score."""
    first = [f"--first={workdir / unit.first}"] if unit.first else []
    return ["train", *unit.words, f"--workdir={workdir / unit.name}", *first, "--evaluate"]


def shown(unit: SweepUnit, workdir: Path) -> str:
    """Return the command line of a unit, ready to paste into a shell."""
    return shlex.join(["spinejax", *command(unit, workdir)])
