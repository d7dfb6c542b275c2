"""`spinejax inspect`: what a run is, how far it is, its scores, checkpoints and config."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags
from absl.flags import FlagValues
from ml_collections import ConfigDict

from spinejax import schema, sweep_state
from spinejax.commands import config as config_command
from spinejax.commands import parsing
from spinejax.errors import InputError
from spinejax.text_table import text_table

HELP = "show a run: status, scores, checkpoints, config"
POSITIONAL = "workdir"


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    parsing.path_flag(values, "workdir", "Folder of a run.", required=True, several=True)
    flags.DEFINE_string(
        "against",
        "",
        "Another run, or a config, whose fields to compare with; by default each field's default.",
        flag_values=values,
    )


def run(values: FlagValues) -> int:
    """Print the networks of a run, and the fields of its config that differ."""
    folder, *more = values.workdir
    if more:
        raise InputError(
            f"inspect shows one run, and {len(more) + 1} are given; --against={more[0]} compares "
            "their configs"
        )
    if (folder / sweep_state.FILE).exists():
        raise InputError(
            f"{folder} is the folder of a sweep; see its runs with `spinejax sweep --status "
            f"--workdir={folder}`"
        )
    if (folder / "search.json").exists():
        raise InputError(
            f"{folder} is the folder of a search, not of a run; search.jsonl holds its trials"
        )
    from spinejax import models
    from spinejax.training import run_folder

    config = run_folder.checked_config(folder)
    # Before anything is printed: it may be refused.
    other = config_command.against(values.against) if values.against else None
    print("\n\n".join(_networks(folder, config)))
    column = values.against if other else "default"
    other = schema.at_defaults(config, models.fields) if other is None else other
    print(f"\nfields that differ: this run, {column}\n{schema.differences(config, other)}")
    return 0


def _networks(folder: Path, config: ConfigDict) -> Iterator[str]:
    """Yield what there is to say about each network in the folder of a run."""
    from spinejax.training import run_folder

    yield _network(folder, config)
    for role in (schema.SECOND, schema.THIRD):
        if (folder / role / "config.json").exists():
            yield _network(folder / role, run_folder.checked_config(folder / role))
        elif role in config:
            yield f"{folder / role}: not begun"


def _network(folder: Path, config: ConfigDict) -> str:
    """Return the status, the record, the scores and the checkpoints of one network's run."""
    from spinejax.reports.run import read_run
    from spinejax.tasks import build_task
    from spinejax.training import checkpoint, log

    found, lines, saved = read_run(folder), log.read_metrics(folder), checkpoint.saved(folder)
    overlap = build_task(config).overlap
    facts = [
        ("status", _status(folder, lines, found.record.get("steps"), saved)),
        *_recorded(found.record),
    ]
    parts = [
        f"{folder}: {config.name} ({config.model.name}, {config.task})",
        text_table(facts, "l"),
    ]
    if lines:
        best = [step for which, step, _ in saved if which == "best"]
        rows: list[tuple[str, ...]] = [("", "step", "loss", overlap, "accuracy")]
        parts.append(text_table([*rows, *_scores(lines, best)]))
    if found.evaluations:
        rows = [("evaluation", "scans", "Dice", "id.rate")]
        rows += [(split, *_tested(scores)) for split, scores in found.evaluations.items()]
        parts.append(text_table(rows))
    if saved:
        rows = [("checkpoint", "step", "score")]
        for which, step, meta in saved:
            rows.append((which, str(step), _number(meta.score) if meta else "damaged"))
        parts.append(text_table(rows))
    return "\n\n".join(parts)


def _status(folder: Path, lines: list[dict[str, Any]], steps: Any, saved: list[Any]) -> str:
    """Return whether a network's run is finished, running or interrupted, and at which step."""
    from spinejax.launch import status
    from spinejax.training import run_folder

    of = f" of {steps}" if steps else ""
    at = lines[-1]["step"] if lines else 0
    if sweep_state.is_locked(folder / sweep_state.LOCK):
        left = status.duration(sweep_state.seconds_left(lines, steps))
        return f"running, step {at}{of}{f', {left} left' * bool(left)}"
    if (done := run_folder.finished_step(folder)) is not None:
        return f"finished at step {done}{of * (done != steps)}"
    unit = sweep_state.state(folder) if (folder / sweep_state.LOG).exists() else None
    why = f", {unit.kind} ({unit.note})" if unit and unit.kind in ("failed", "pruned") else ""
    kept = max((step for _, step, _ in saved), default=None)
    then = "begins again" if kept is None else f"goes on from step {kept}"
    return f"interrupted at step {at}{of}{why}; the same `spinejax train` {then}"


def _recorded(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what run.json tells, by name; what it lacks is left out."""
    from spinejax.launch import status

    counts = {name: len(ids) for name, ids in record.get("cases", {}).items()}
    starts = record.get("starts", 1)
    count = f" in {starts} starts" if starts != 1 else ""
    if "started" in record:
        yield "started", record["started"]
    if "seconds" in record:
        yield "trained", f"{status.duration(record['seconds'])} h{count}"
    if counts:
        yield "scans", ", ".join(f"{number} {name}" for name, number in counts.items())
    if record.get("parameters") is not None:
        yield "parameters", f"{record['parameters']:,}"
    if isinstance(record.get("gflops"), float):
        yield "GFLOPs", f"{record['gflops']:.3g} in the forward pass of one sample"
    if isinstance(record.get("initial"), dict):
        yield "weights of", str(record["initial"].get("config", "another model"))
    for name in ("hardware", "commit"):
        if record.get(name):
            yield name, str(record[name])


def _scores(lines: list[dict[str, Any]], best: list[int]) -> Iterator[tuple[str, ...]]:
    """Yield the last update, the last validation, and that of the best checkpoint."""
    train, val = ([line for line in lines if line["kind"] == kind] for kind in ("train", "val"))
    chosen = [line for line in val if line["step"] in best]
    for word, found in (("training", train), ("validation", val), ("best validation", chosen)):
        for line in found[-1:]:
            values = (_number(line.get(name)) for name in ("loss", "dice", "accuracy"))
            yield (word, str(line["step"]), *values)


def _tested(scores: dict[str, Any]) -> tuple[str, ...]:
    """Return the number of scans in a score file, their mean Dice, and the rate of right names."""
    from spinejax.reports.tables import vertebra_summary

    dice = scores.get("summary", {}).get("binary", {}).get("dice", {}).get("mean")
    named = vertebra_summary(scores) or {}
    return str(len(scores["cases"])), _number(dice), _number(named.get("id_rate"))


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "-"
