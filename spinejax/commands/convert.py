"""`spinejax convert`: write a data set in nnU-Net's layout or in that of VerSe."""

from absl import flags
from absl.flags import FlagValues

from spinejax import progress
from spinejax.commands import parsing

HELP = "write a data set in nnU-Net's or VerSe's layout"
POSITIONAL = "data"


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    parsing.path_flag(values, "data", "Folder of a data set.", required=True)
    parsing.path_flag(
        values,
        "output",
        "The new folder; nnU-Net wants a name such as Dataset501_Spine.",
        required=True,
        short="o",
    )
    flags.DEFINE_enum(
        "layout",
        None,
        ["nnunet", "verse"],
        "nnunet: imagesTr, labelsTr and dataset.json of nnU-Net 2; verse: rawdata and derivatives.",
        values,
        required=True,
    )
    parsing.labels_flag(values, "The numbers in the masks.")
    parsing.overwrite_flag(values)


def run(values: FlagValues) -> int:
    """Write the scans; a bad one is named and the others are written."""
    from spinejax.datasets import conversion

    written = conversion.convert(
        values.data,
        values.output,
        values.layout,
        scheme=values.labels,
        overwrite=values.overwrite,
        progress=progress.bars,
    )
    print(f"{len(written)} scan{'s' * (len(written) != 1)} in {values.output}")
    return 0
