"""`spinejax phantom`: write synthetic CT as a data set, or measure it beside real CT."""

from collections.abc import Sequence
from typing import Any

from absl import flags
from absl.flags import FlagValues

from spinejax import progress
from spinejax.commands.parsing import overwrite_flag, path_flag
from spinejax.errors import InputError

HELP = "write synthetic CT with masks, or compare it with real CT"

_LIMITS = (
    "min_spacing_mm",
    "max_spacing_mm",
    "min_extent_mm",
    "max_extent_mm",
    "max_voxels",
    "label_cut",
    "region",
)
_COMPARED = 16  # phantoms; their 5th and 95th percentiles need more than the 4 of a small data set


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    path_flag(values, "out", "Folder to write to.", required=True, short="o")
    path_flag(
        values,
        "compare",
        "Write no data set; measure phantoms beside the real scans in this folder.",
    )
    count, number = flags.DEFINE_integer, flags.DEFINE_float
    count("cases", 4, f"Number of scans; {_COMPARED} with --compare.", flag_values=values)
    count("seed", 0, "Seed; each scan depends on the seed and its number.", flag_values=values)
    number("min_spacing_mm", 0.3, "Smallest voxel size in mm.", flag_values=values)
    number("max_spacing_mm", 3.0, "Largest voxel size in mm.", flag_values=values)
    number("min_extent_mm", 116.0, "Smallest height of a scan in mm.", flag_values=values)
    number("max_extent_mm", 400.0, "Longest side of a scan in mm.", flag_values=values)
    count("max_voxels", 2_000_000, "Largest number of voxels of a scan.", flag_values=values)
    overwrite_flag(values)
    flags.DEFINE_list(
        "rates",
        [],
        "Frequencies of variants, such as t13=0.5,l6=0,scoliosis=1.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "region", "any", "What scans show: any, cervical, thoracic or lumbar.", flag_values=values
    )
    flags.DEFINE_bool(
        "label_cut",
        False,
        "Label vertebrae that the edge of the scan cuts, too; VerSe leaves them out.",
        flag_values=values,
    )
    count("workers", 1, "Number of processes; it does not change the scans.", flag_values=values)


def run(values: FlagValues) -> int:
    """Write phantoms, or the comparison of --compare."""
    limits: dict[str, Any] = {name: values[name].value for name in _LIMITS}
    if values.rates:
        limits["rates"] = _rates(values.rates)
    if values.compare is not None:
        from spinejax.reports import realism

        count = values.cases if values["cases"].present else _COMPARED
        record = realism.compare(
            values.compare,
            values.out,
            cases=count,
            seed=values.seed,
            limits=limits,
            overwrite=values.overwrite,
            progress=progress.bars,
        )
        print(realism.table(record))
        print(f"{values.out / realism.FIGURE_NAME}, {values.out / realism.JSON_NAME}")
        return 0
    from spinejax.phantom.dataset import write_dataset

    cases = write_dataset(
        values.out,
        values.cases,
        values.seed,
        workers=values.workers,
        overwrite=values.overwrite,
        progress=progress.bars,
        **limits,
    )
    print(f"{len(cases)} phantoms in {values.out}")
    return 0


def _rates(words: Sequence[str]) -> dict[str, float]:
    """Read words `name=number`."""
    found = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            found[name.strip()] = float(number)
        except ValueError:
            raise InputError(
                f"--rates={word}: give name=number, e.g. --rates=t13=0.5,l6=0"
            ) from None
    return found
