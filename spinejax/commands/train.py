"""`spinejax train`: train a network or a pipeline of two, or resume."""

import logging
import os
import shlex
from pathlib import Path

from absl import flags
from absl.flags import FlagValues
from ml_collections import ConfigDict

import spinejax
from spinejax import progress
from spinejax.commands import evaluate, parsing
from spinejax.errors import EXIT_INTERRUPTED
from spinejax.files import is_ours
from spinejax.sweep_state import read_scores

HELP = "train a network, or resume"


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    parsing.config_flag(values)
    parsing.workdir_flag(values)
    parsing.path_flag(
        values,
        "first",
        "Folder in which runs that share the first network of a pipeline train it, once.",
    )
    flags.DEFINE_bool("evaluate", False, "Score the test split after training.", flag_values=values)
    flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of process 0, for a run of several processes.", values
    )
    count = flags.DEFINE_integer
    count("num_processes", 1, "Number of processes of the run.", flag_values=values, lower_bound=1)
    count("process_id", 0, "Number of this process, from 0.", flag_values=values, lower_bound=0)


def run(values: FlagValues) -> int:
    """Train or resume, then print the commands that come next."""
    config = parsing.config(values)
    from spinejax.training import parallel, pipeline

    under_slurm = os.environ.get("SLURM_NTASKS", "1").strip() not in ("", "0", "1")
    several = values.num_processes > 1
    if under_slurm or several:
        parallel.initialize_distributed(
            coordinator_address=values.coordinator or None,
            num_processes=values.num_processes if several else None,
            process_id=values.process_id if several else None,
        )
    else:
        batches = [_batch(*stage) for stage in pipeline.stages(config, values.workdir)]
        parallel.use_cores([batch for batch in batches if batch is not None])
    first = parallel.process_index() == 0
    if not first:
        logging.getLogger("spinejax").setLevel(logging.WARNING)
    result = spinejax.train(config, values.workdir, first=values.first, progress=progress.bars)
    if result.interrupted:
        print(f"interrupted at step {result.step}, saved; the same command resumes")
        return EXIT_INTERRUPTED
    if values.evaluate:
        _evaluate_once(values.workdir)
    if first:
        print(_next(values.workdir))
    parallel.barrier("end")
    return 0


def _batch(config: ConfigDict, folder: Path) -> tuple[int, int] | None:
    """Return what `use_cores` needs to know of a training; None if any number of cores will do."""
    from spinejax.tasks import build_task
    from spinejax.training import loop, parallel, run_folder

    stream = build_task(config).stream
    unit = parallel.batch_unit(config.optim.accumulate_steps, stream.group if stream else 1)
    size = config.train.batch_size
    if config.train.batch_size_per_device:
        if not loop.is_begun(folder):
            return None
        size = run_folder.checked_config(folder).train.batch_size
    return size, unit


def _evaluate_once(workdir: Path) -> None:
    """Score the test split with the best checkpoint, or with the latest if none was validated."""
    from spinejax.training import parallel, run_folder

    def why_not() -> str:
        if not run_folder.recorded_cases(workdir)["test"]:
            return "no test cases to score"
        return "scored before" if _is_scored(workdir) else ""

    # The first process decides: another host may see the folder some seconds later.
    reason = parallel.from_first(why_not)
    if not reason:
        evaluate.evaluate(workdir)
    elif parallel.process_index() == 0:
        print(f"{workdir}: {reason}")


def _is_scored(workdir: Path) -> bool:
    """Return whether `evaluate` has scored all test cases; a file of somebody else says nothing."""
    scores = workdir / "evaluation" / "test" / "scores.json"
    return is_ours(scores, "evaluation") and "failed" not in read_scores(scores)


def _next(workdir: Path) -> str:
    """Return the commands that a user may want next, ready to paste."""
    from spinejax.training import run_folder

    commands = []
    if run_folder.recorded_cases(workdir)["test"] and not _is_scored(workdir):
        commands.append(["evaluate"])
    commands += [["report"], ["predict", "CT.nii.gz", "--output=out"]]
    lines = [shlex.join(["spinejax", *words, f"--workdir={workdir}"]) for words in commands]
    return "\n  ".join(["next:", *lines])
