"""`spinejax calibrate`: make the probabilities of names as right as they say."""

from pathlib import Path
from typing import Any

from absl.flags import FlagValues

from spinejax import failures, progress
from spinejax.commands import parsing
from spinejax.text_table import text_table

HELP = "fit the probabilities of names to scans with labels"


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    parsing.model_flags(values)
    parsing.path_flag(
        values,
        "data",
        "Folder of CTs with reference labels that did not train the model. Give the flag again "
        "for more folders.",
        required=True,
        several=True,
    )
    parsing.path_flag(
        values,
        "test",
        "Folder of other CTs with labels that judge the result; without it, each fifth of --data "
        "is judged by what the other four fifths fitted. Give the flag again for more folders.",
        several=True,
    )
    parsing.path_flag(
        values, "output", "Folder for the numbers and the diagram.", required=True, short="o"
    )
    parsing.overwrite_flag(values)


def run(values: FlagValues) -> int:
    """Calibrate, and print the scores before and after."""
    from spinejax import calibration
    from spinejax.training import model_file, parallel

    parallel.use_cores()
    output: Path = values.output
    found = calibration.calibrate(
        parsing.models(values) or model_file.PACKAGED[0],
        values.data,
        test=values.test,
        output=output,
        checkpoint=values.checkpoint,
        vertebrae=values.vertebrae or None,
        outlines=values.outlines or None,
        flip=values.flip,
        overwrite=values.overwrite,
        progress=progress.bars,
    )
    print(table(found))
    print(
        f"name_weight {found['name_weight']:.3g}, level_error {found['level_error']:.3g}, fitted "
        f"on {found['fitted']} scans and judged by {found['judged_by']}"
    )
    path = output / calibration.JSON_NAME
    print(f"{path}, {output / calibration.FIGURE_NAME}")
    print(f"use them with spinejax predict or spinejax export and --calibration={path}")
    if "failed" in found:
        raise failures.summary(found["failed"], found["scans"], "the others are counted")
    return 0


_COLUMNS = {
    "scans": "scans",
    "names": "names",
    "right": "right",
    "certain": "certain",
    "certain_right": "of these right",
    "scans_certain": "scans certain",
    "log_loss": "log loss",
    "brier": "Brier",
}
_VARIANTS = {
    "shown": "scans with it",
    "found": "found",
    "probability": "probability",
    "not_shown": "without it",
    "false": "found",
    "false_probability": "probability",
}


def table(found: dict[str, Any]) -> str:
    """Return the scores before and after calibration, by view and by variant."""
    parts = []
    for what, key, columns in (
        ("scans that show", "views", _COLUMNS),
        ("variant", "variants", _VARIANTS),
    ):
        for when in ("before", "after"):
            rows = [[f"{when}: {what}", *columns.values()]]
            for name, values in found[when][key].items():
                rows.append([name, *(_text(values[column]) for column in columns)])
            if len(rows) > 1:
                parts.append(text_table(rows))
    return "\n\n".join(parts)


def _text(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
