"""`spinejax export`: write trained runs into one file."""

from pathlib import Path

from absl import flags
from absl.flags import FlagValues

from spinejax import records
from spinejax.commands import parsing
from spinejax.schema import SECOND, THIRD

HELP = "write a trained model into one file"


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    parsing.path_flag(
        values,
        "workdir",
        "Folder of a run, with its further networks if it is a pipeline. Give the flag again for "
        "runs that are averaged.",
        required=True,
        several=True,
    )
    parsing.second_flags(values)
    parsing.path_flag(
        values, "output", "The file, NAME.safetensors.", required=True, is_file=True, short="o"
    )
    flags.DEFINE_multi_enum(
        "half",
        [],
        ["spine", SECOND, THIRD],
        "Store the parameters of these networks as float16, in half the bytes. Give the flag "
        "again for several.",
        flag_values=values,
    )
    parsing.path_flag(
        values, "card", "JSON file with what to say about the model: data, scores, limits."
    )
    parsing.calibration_flag(values)
    parsing.overwrite_flag(values)


def run(values: FlagValues) -> int:
    """Write the file and say what it holds."""
    from spinejax import predictor

    card = {}
    if values.card is not None:
        card = records.read(values.card, dict, "give --card=FILE.json with a JSON object")
    path: Path = predictor.export(
        values.output,
        values.workdir,
        vertebrae=values.vertebrae or None,
        outlines=values.outlines or None,
        checkpoint=values.checkpoint,
        half=values.half,
        card=card,
        calibration=values.calibration,
        overwrite=values.overwrite,
    )
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; spinejax predict --model={path} uses it")
    return 0
