"""`spinejax evaluate`: predict and score the scans of a split, or of another folder."""

import time
from pathlib import Path
from typing import Any

from absl import flags
from absl.flags import FlagValues

from spinejax import failures, progress, records
from spinejax.commands import parsing
from spinejax.errors import InputError

HELP = "predict and score the scans of a split"


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    parsing.model_flags(values)
    flags.DEFINE_enum(
        "split", "test", ["train", "val", "test"], "Which scans of the run's data.", values
    )
    parsing.path_flag(values, "data", "Folder of other CTs with masks to score instead.")
    parsing.labels_flag(
        values, "The numbers in the masks; by default data.labels of the model.", None
    )
    parsing.path_flag(
        values,
        "output",
        "Folder for the results; by default the folder evaluation/NAME of the run.",
        short="o",
    )
    parsing.overwrite_flag(values)


def run(values: FlagValues) -> int:
    """Evaluate and print the scores."""
    models = parsing.models(values)
    if not models:
        raise InputError("--workdir is required; add --workdir=... or --model=... (see --help)")
    evaluate(
        models,
        split=values.split,
        checkpoint=values.checkpoint,
        data=values.data,
        labels=values.labels,
        output=values.output,
        vertebrae=values.vertebrae or None,
        outlines=values.outlines or None,
        flip=values.flip,
        overwrite=values.overwrite,
    )
    return 0


def evaluate(model: Path | list[Path], **options: Any) -> None:
    """Evaluate a model; the first process prints its scores.

    Args:
        model: see `spinejax.evaluate`.
        options: those of `spinejax.evaluate`.

    Raises:
        InputError: as `spinejax.evaluate`, or a scan failed; in all processes of a run.
    """
    from spinejax import evaluation
    from spinejax.metrics import aggregate
    from spinejax.training import parallel

    parallel.use_cores()
    started = time.monotonic()
    scores = evaluation.evaluate(model, progress=progress.bars, **options)
    if parallel.process_index() == 0:
        print(aggregate.case_table(scores))
        print(aggregate.summary_table(scores))
        where = {key: options[key] for key in ("split", "data", "flip", "output") if key in options}
        folder = evaluation.results_folder(model, **where)
        if (folder / "patches.json").exists():
            print(aggregate.patch_table(records.read(folder / "patches.json", dict, "remove it")))
        seconds = time.monotonic() - started
        print(f"evaluated in {seconds:.0f} s; scores: {folder / 'scores.json'}")
    if "failed" in scores:
        failed, done = scores["failed"], scores["cases"]
        rest = "the rest are scored; the same command does the missing ones"
        raise failures.summary(failed, len(failed) + len(done), rest)
