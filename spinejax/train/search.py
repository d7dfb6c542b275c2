"""A search over hyper-parameters in rounds, from coarse to fine, many units at once.

A unit is a set of overrides of the config. Units that differ in learning rate, momentum and weight
decay only are trained together (`population`); those that differ in anything else, such as the
batch size, come one group after the other. Each round is drawn around the best unit so far, from a
box half as large as that of the round before (paper B, section IV: "a pyramidal approach by doing
a random search").

    <workdir>/search.json    what is searched
    <workdir>/search.jsonl   one line per finished unit

Groups that are finished are kept; one that was interrupted is trained again from its beginning.
"""

import json
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from tqdm import tqdm

from spinejax.choices import check_choice
from spinejax.data.cache import CachedCase
from spinejax.errors import InputError
from spinejax.files import write_json, write_text
from spinejax.tasks import build_task
from spinejax.train import disk, lock, parallel, population, settings, setup
from spinejax.train.loop import durations
from spinejax.train.population import Outcome, Setting, merit
from spinejax.train.signals import Stop, listen

Sweep = Callable[..., Iterable[Mapping[str, Any]]]
"""sweep(seed, units, centre, shrink) -> overrides by dotted key, as `configs.search` has one."""

TOGETHER = tuple(f"optim.{field}" for field in Setting._fields)
"""Keys in which the units of one group may differ."""

FIXED = ("task", "seed", "data.", "loss.", "train.best")
"""Keys, or beginnings of them, in which units must not differ: their validation scores would be of
different things."""


class Unit(NamedTuple):
    """One trial: its round and its place in it, both counted from 0."""

    round: int
    number: int
    overrides: dict[str, Any]


Done = dict[tuple[int, int], tuple[Unit, Outcome]]
"""Finished units by (round, number), in the order in which they finished."""


def run(
    config: ConfigDict,
    sweep: Sweep,
    workdir: str | Path,
    *,
    rounds: int = 2,
    units: int = 8,
    at_once: int = 8,
    command: Sequence[str] = (),
    progress: bool = True,
    devices: int | None = None,
    stop: Stop | None = None,
) -> bool:
    """Search, or go on with the search that was begun in `workdir`; print the units, best first.

    Args:
        config: the experiment; each unit is trained for its `train.steps` or `train.epochs`, and
            judged by its best validation, as `train.best` has it.
        sweep: what draws the units. Round r, from 0, gets seed = `config.seed` + r, the best unit
            so far as centre, and shrink = 0.5 ** r.
        workdir: folder of the search; made if missing.
        rounds: how many, at least 1; a search may be given more rounds later.
        units: of each round, at least 1.
        at_once: most units that are trained together; memory grows with them. On CPUs `vmap` slows
            the convolutions of networks other than OP-convNet several times: give those 1.
        command: arguments of `spinejax train` that lead to `config`, for the line that trains the
            best unit.
        progress: show bars.
        devices: use only the first so many; None for all.
        stop: asks to end, beside the signals of `signals.SIGNALS`.

    Returns:
        Whether it was interrupted, finished groups being saved: the same call goes on.

    Raises:
        InputError: bad numbers, config or data, a sweep over what the config does not have or what
            makes units incomparable, a workdir of another search, or no unit that stays finite.
    """
    workdir, stop = Path(workdir), Stop() if stop is None else stop
    for name, value in (("rounds", rounds), ("units", units), ("at_once", at_once)):
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1; give --{name}=N")
    if parallel.process_count() > 1:
        raise InputError("a search runs in one process; start it without --num_processes or srun")
    settings.check_config(config)
    mapped = parallel.make_parallel(config.train.parallel, devices)
    # Everything that can be refused is refused before the folder is touched.
    _draw(config, sweep, 0, units, None, mapped)
    with lock.alone(workdir):
        done = _open(config, sweep, units, workdir)
        split = setup.cases(config, workdir)
        cached = setup.cached(config, workdir, split, wanted=("train", "val"), progress=progress)
        with listen(stop):
            for number in range(rounds):
                drawn = _draw(config, sweep, number, units, _best(config, done, number), mapped)
                _check_same_units(drawn, done, workdir)
                todo = [unit for unit in drawn if unit[:2] not in done]
                for group in groups(todo, at_once):
                    title = f"round {number + 1} of {rounds}, {len(group)} at once"
                    with _bar(title, progress) as bar:
                        outcomes = _train(config, group, cached, mapped, stop, bar)
                    if outcomes is None:
                        _say_interrupted(workdir, len(done), rounds * units)
                        return True
                    done |= {u[:2]: (u, o) for u, o in zip(group, outcomes, strict=True)}
                    _write(workdir, done)
    shown = {place: tried for place, tried in done.items() if place[0] < rounds}
    print(table(shown, by=config.train.best))
    best = _best(config, shown, rounds)
    if best is None:
        raise InputError(
            f"all {len(shown)} units diverged; lower the learning rates of the sweep, or set "
            "optim.clip_norm"
        )
    flags = {f"--config.{key}": value for key, value in best.overrides.items()}
    words = [word for word in command if word.partition("=")[0] not in flags]
    words += [f"{flag}={value}" for flag, value in flags.items()]
    print("\nto train the best of them:")
    print(shlex.join(["spinejax", "train", *words, f"--workdir={workdir / 'best'}"]))
    return False


def _bar(title: str, progress: bool) -> tqdm:
    return tqdm(
        desc=title,
        unit="step",
        disable=not progress,
        dynamic_ncols=True,
        # A log file gets a line every half minute, a terminal a moving bar.
        mininterval=0.2 if sys.stderr.isatty() else 30.0,
    )


def _say_interrupted(workdir: Path, done: int, total: int) -> None:
    if not done:
        print(f"interrupted before the first of {total} units was finished; nothing is saved yet")
        return
    print(
        f"interrupted: {done} of {total} units are finished and saved in "
        f"{workdir / 'search.jsonl'}; the same command goes on with the others"
    )


def _draw(
    config: ConfigDict,
    sweep: Sweep,
    number: int,
    units: int,
    centre: Unit | None,
    mapped: parallel.Parallel,
) -> list[Unit]:
    """Return the units of a round, each checked to be a config that can be trained."""
    name = getattr(sweep, "__name__", "sweep")
    try:
        drawn = sweep(
            seed=config.seed + number,
            units=units,
            centre=None if centre is None else centre.overrides,
            shrink=1.0 if centre is None else 0.5**number,
        )
        found = [Unit(number, i, dict(overrides)) for i, overrides in enumerate(drawn)]
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}(seed, units, centre, shrink) failed: {error}") from error
    if not found:
        raise InputError(f"{name} yields no units; correct it")
    for unit in found:
        changed = unit_config(config, unit.overrides, name)
        mapped.check_batch(changed.train.batch_size, changed.optim.accumulate_steps)
    return found


def unit_config(config: ConfigDict, overrides: Mapping[str, Any], sweep: str) -> ConfigDict:
    """Return `config` with the overrides of a unit of the sweep of that name.

    Raises:
        InputError: a key that the config does not have, that the units of a search must share, or
            that trains nothing; or a value that cannot be used.
    """
    flat = settings.flatten(config)
    for key in overrides:
        check_choice(f"{sweep}: config key", key, flat)
        if key.startswith(FIXED):
            raise InputError(
                f"{sweep}: the units of a search are compared with each other, hence share "
                f"{key}; take it out of the sweep"
            )
    changed = config.copy_and_resolve_references()
    try:
        changed.update_from_flattened_dict(overrides)
    except (TypeError, ValueError) as error:
        raise InputError(f"{sweep}: {dict(overrides)}: {error}") from error
    settings.check_config(changed)
    if "optim.momentum" in overrides and changed.optim.name != "sgd":
        raise InputError(
            f"{sweep}: optim.name={changed.optim.name!r} has no optim.momentum to search over; use "
            "--config.optim.name=sgd, or another sweep"
        )
    return changed


def groups(units: Sequence[Unit], at_once: int) -> list[list[Unit]]:
    """Return the units in groups of at most `at_once` that differ in `TOGETHER` only."""
    alike: dict[str, list[Unit]] = {}
    for unit in units:
        rest = {k: v for k, v in unit.overrides.items() if k not in TOGETHER}
        alike.setdefault(json.dumps(rest, sort_keys=True), []).append(unit)
    return [
        members[at : at + at_once]
        for members in alike.values()
        for at in range(0, len(members), at_once)
    ]


def _train(
    config: ConfigDict,
    group: Sequence[Unit],
    cached: Mapping[str, Sequence[CachedCase]],
    mapped: parallel.Parallel,
    stop: Stop,
    bar: tqdm,
) -> list[Outcome] | None:
    """Train a group; None where it was asked to stop."""
    if stop:
        return None
    configs = [unit_config(config, unit.overrides, "sweep") for unit in group]
    members = [Setting(*(c.optim[field] for field in Setting._fields)) for c in configs]
    task = build_task(configs[0], axis_name=parallel.AXIS)
    feed = task.feed(cached)
    if not feed.val_cases:
        raise InputError(
            "a search compares units by their validation, and there are no validation cases; raise "
            "data.val_fraction"
        )
    bar.total = durations(configs[0], feed.per_epoch).total
    bar.refresh()
    trained = population.train(
        configs[0], members, task, feed, mapped, stop=stop, advance=bar.update
    )
    return None if trained is None else trained.outcomes


# Files.


def _open(config: ConfigDict, sweep: Sweep, units: int, workdir: Path) -> Done:
    """Check or write search.json, and return what is finished; nothing finished binds nobody."""
    file = workdir / "search.json"
    wanted = {"sweep": getattr(sweep, "__name__", "sweep"), "units": units}
    done = read(workdir)
    try:
        if done:
            record = json.loads(file.read_text(encoding="utf-8"))
            for key, value in wanted.items():
                if record[key] != value:
                    raise InputError(
                        f"{workdir} holds a search with {key}={record[key]!r}, not {value!r}; give "
                        "this one another --workdir, or the old value to go on"
                    )
            settings.check_same(ConfigDict(record["config"]), config, workdir)
        disk.require_room(workdir)
        write_json(file, {**wanted, "config": settings.plain(config)})
    except InputError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{file} is damaged; restore it from a copy, or give another --workdir"
        ) from error
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read and written ({error.strerror}); give another --workdir"
        ) from error
    return done


def read(workdir: Path) -> Done:
    """Return the finished units of a search; none where there is no search.

    Raises:
        InputError: search.jsonl is damaged; names the line.
    """
    file = workdir / "search.jsonl"
    if not file.exists():
        return {}
    done: Done = {}
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            unit = Unit(line["round"], line["unit"], dict(line["overrides"]))
            loss = math.inf if line["loss"] is None else line["loss"]
            outcome = Outcome(line["finite"], line["step"], loss, line["dice"], line["accuracy"])
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{file} line {number} is damaged; take it out, and its unit is trained again"
            ) from error
        done[unit[:2]] = (unit, outcome)
    return done


def _write(workdir: Path, done: Done) -> None:
    """Write search.jsonl, whole or not at all."""
    lines = []
    for unit, outcome in done.values():
        line = {"round": unit.round, "unit": unit.number, "overrides": unit.overrides}
        line |= outcome._asdict() | {"loss": outcome.loss if outcome.finite else None}
        lines.append(json.dumps(line, allow_nan=False) + "\n")
    disk.require_room(workdir)
    write_text(workdir / "search.jsonl", "".join(lines))


def _check_same_units(drawn: Sequence[Unit], done: Done, workdir: Path) -> None:
    for unit in drawn:
        if unit[:2] in done and done[unit[:2]][0].overrides != unit.overrides:
            raise InputError(
                f"{workdir}: unit {unit.number} of round {unit.round} was another one; the sweep "
                "has changed, so give it another --workdir"
            )


# The result.


def _best(config: ConfigDict, done: Done, before: int) -> Unit | None:
    """Return the best unit of the rounds before the given one; None where none stayed finite."""
    tried = [t for place, t in sorted(done.items()) if place[0] < before and t[1].finite]
    return max(tried, key=lambda t: merit(t[1], config.train.best))[0] if tried else None


def table(done: Done, *, by: str) -> str:
    """Return the units as text, best first by `train.best`."""
    tried = sorted(done.values(), key=lambda t: (-merit(t[1], by), t[0].round, t[0].number))
    keys = list(dict.fromkeys(key for unit, _ in tried for key in unit.overrides))
    rows = [["", *(key.rpartition(".")[2] for key in keys)]]
    rows[0] += ["loss", "dice", "accuracy", "step", "round"]
    for place, (unit, outcome) in enumerate(tried, 1):
        scores = ["diverged", "", ""]
        if outcome.finite:
            scores = [f"{value:.4f}" for value in outcome[2:]]
        values = ["" if key not in unit.overrides else _short(unit.overrides[key]) for key in keys]
        rows.append([str(place), *values, *scores, str(outcome.step), str(unit.round + 1)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
