"""`spinejax export`: write trained runs into one file, or as programs."""

from pathlib import Path
from typing import Any

from absl import flags
from absl.flags import FlagValues

from spinejax import records
from spinejax.commands import parsing
from spinejax.errors import InputError
from spinejax.schema import SECOND, THIRD

HELP = "write a trained model into one file, or as StableHLO programs"


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    parsing.models_flag(
        values,
        "workdir",
        "Folder of a run, with its further networks if it is a pipeline; FILE.spinejax; or "
        "phantom, the packaged model. Give the flag again for runs that are averaged.",
        required=True,
    )
    parsing.second_flags(values)
    parsing.path_flag(
        values,
        "output",
        "The file, NAME.spinejax, which is one of safetensors; with --format=stablehlo a folder.",
        required=True,
        short="o",
    )
    flags.DEFINE_enum(
        "format",
        "spinejax",
        ["spinejax", "stablehlo"],
        "spinejax: one file for spinejax. stablehlo: a program for each network, which runs with "
        "jax and flatbuffers alone, and a JSON file that says what it takes and gives.",
        values,
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
    runs: dict[str, Any] = dict(
        vertebrae=values.vertebrae or None,
        outlines=values.outlines or None,
        checkpoint=values.checkpoint,
        card=card,
        overwrite=values.overwrite,
    )
    if values.format == "stablehlo":
        for name in ("half", "calibration"):
            if values[name].value:
                raise InputError(f"--{name} changes nothing in programs; leave it out")
        for one in predictor.export_programs(values.output, values.workdir, **runs):
            program = one.with_suffix(".stablehlo")
            print(f"{program}: {program.stat().st_size / 1e6:.1f} MB; {one.name} describes it")
        return 0
    path: Path = predictor.export(
        values.output, values.workdir, half=values.half, calibration=values.calibration, **runs
    )
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; spinejax predict --model={path} uses it")
    return 0
