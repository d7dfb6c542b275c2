"""`spinejax score`: compare label files or folders with their reference."""

from absl import flags
from absl.flags import FlagValues

import spinejax
from spinejax import failures, progress
from spinejax.commands.parsing import labels_flag, overwrite_flag, path_flag
from spinejax.errors import InputError
from spinejax.label_schemes import NAMES

HELP = "compare label files or folders with a reference"


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    path_flag(values, "prediction", "Label file or folder.", required=True)
    path_flag(values, "reference", "Label file or folder.", required=True)
    path_flag(values, "output", "JSON file to write.", required=True, is_file=True, short="o")
    labels_flag(values, "The numbers in the files.")
    flags.DEFINE_enum(
        "reference_labels",
        None,
        list(NAMES),
        "The numbers in the reference, where they differ from --labels.",
        values,
    )
    path_flag(
        values,
        "reference_centroids",
        "JSON file or folder of the reference's centroids; by default the centres of mass of the "
        "reference's masks.",
    )
    overwrite_flag(values)


def run(values: FlagValues) -> int:
    """Score, write the JSON file and print the summary."""
    from spinejax.metrics import aggregate

    output = values.output
    if output.is_dir():
        raise InputError(f"{output}: is a folder; name a JSON file, e.g. {output / 'scores.json'}")
    scores = spinejax.score(
        values.prediction,
        values.reference,
        labels=values.labels,
        reference_labels=values.reference_labels,
        reference_centroids=values.reference_centroids,
        output=output,
        overwrite=values.overwrite,
        progress=progress.bars,
    )
    print(aggregate.summary_table(scores))
    print(f"scores: {output}")
    if "failed" in scores:
        failed, done = scores["failed"], scores["cases"]
        raise failures.summary(failed, len(failed) + len(done), "the rest are scored")
    return 0
