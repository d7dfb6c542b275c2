"""`spinejax prepare`: preprocess a data set into the cache, before training."""

from absl.flags import FlagValues

from spinejax import progress
from spinejax.commands import parsing

HELP = "preprocess and cache a data set before training"


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    parsing.config_flag(values)
    parsing.workdir_flag(values)


def run(values: FlagValues) -> int:
    """Preprocess the scans of all splits and print how many there are."""
    from spinejax import evaluation
    from spinejax.training import pipeline, run_cases, run_folder

    for config, folder in pipeline.stages(parsing.config(values), values.workdir):
        with run_folder.alone(folder):
            cached = run_cases.prepare(config, folder, progress=progress.bars)
        for split, cases in cached.items():
            slices = sum(case.image.shape[0] for case in cases)
            print(f"{split:<6}{len(cases):>5} cases {slices:>8} slices")
        if config.task == "patch_classification":
            print("\n".join(evaluation.describe_patches(config, cached)))
    return 0
