"""Which flags each command has: one function a command, called with where to define them."""

from absl import flags
from absl.flags import FlagValues

from spinejax import arguments


def _workdir_flag(values: FlagValues) -> None:
    flags.DEFINE_string(
        "workdir", None, "Folder of the run: config, checkpoints, logs.", flag_values=values
    )
    flags.mark_flag_as_required("workdir", values)


def phantom(values: FlagValues, argv: list[str]) -> None:
    """Define the flags of `phantom`."""
    flags.DEFINE_string("out", None, "Folder to write into.", flag_values=values)
    flags.DEFINE_string(
        "compare",
        None,
        "Write no data set; measure phantoms beside the real scans of this folder.",
        flag_values=values,
    )
    flags.DEFINE_integer("cases", 4, "Number of scans; 16 to compare.", flag_values=values)
    flags.DEFINE_integer(
        "seed", 0, "Seed; a case depends on it and its number only.", flag_values=values
    )
    flags.DEFINE_float("min_spacing_mm", 0.3, "Finest voxel size.", flag_values=values)
    flags.DEFINE_float("max_spacing_mm", 3.0, "Coarsest voxel size.", flag_values=values)
    flags.DEFINE_float("min_extent_mm", 116.0, "Least height of a scan.", flag_values=values)
    flags.DEFINE_float("max_extent_mm", 400.0, "Longest side of a scan.", flag_values=values)
    flags.DEFINE_integer(
        "max_voxels", 2_000_000, "Fields of view are made to fit this many.", flag_values=values
    )
    flags.DEFINE_list(
        "rates", [], "Frequencies, e.g. t13=0.5,l6=0,scoliosis=1.", flag_values=values
    )
    flags.DEFINE_string(
        "region", "any", "What scans show: any, cervical, thoracic or lumbar.", flag_values=values
    )
    flags.DEFINE_bool(
        "label_cut",
        False,
        "Label vertebrae that the field of view cuts, too; VerSe leaves them out.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "workers", 1, "Processes; the data set is the same with any number.", flag_values=values
    )
    flags.mark_flag_as_required("out", values)


def doctor(values: FlagValues, argv: list[str]) -> None:
    """Define the flags of `doctor`."""
    flags.DEFINE_string("data", None, "Folder of a data set to take stock of.", flag_values=values)


def prepare(values: FlagValues, argv: list[str]) -> None:
    """Define the flags of `prepare`."""
    arguments.config_flag(values, argv)
    _workdir_flag(values)


def summarize(values: FlagValues, argv: list[str]) -> None:
    """Define the flags of `summarize`."""
    arguments.config_flag(values, argv)
    flags.DEFINE_string(
        "against",
        "",
        "Another config, FILE.py:argument; both side by side, with the memory of a step.",
        flag_values=values,
    )


def train(values: FlagValues, argv: list[str]) -> None:
    """Define the flags of `train`."""
    arguments.config_flag(values, argv)
    _workdir_flag(values)
    flags.DEFINE_string(
        "coordinator", "", "HOST:PORT of process 0, for several processes.", flag_values=values
    )
    flags.DEFINE_bool(
        "evaluate", False, "Then score the test split, if it has cases.", flag_values=values
    )
    count = flags.DEFINE_integer
    count("num_processes", 1, "Processes of the run.", lower_bound=1, flag_values=values)
    count("process_id", 0, "Which of them this one is.", lower_bound=0, flag_values=values)


def search(values: FlagValues, argv: list[str]) -> None:
    """Define the flags of `search`."""
    arguments.config_flag(values, argv)
    _workdir_flag(values)
    count = flags.DEFINE_integer
    count("rounds", 2, "From coarse to fine.", lower_bound=1, flag_values=values)
    count("units", 8, "Settings in each round.", lower_bound=1, flag_values=values)
    count("at_once", 8, "Settings trained in one program.", lower_bound=1, flag_values=values)
    flags.DEFINE_string(
        "sweep", "random_search", "NAME: what `sweep_NAME` of the config draws.", flag_values=values
    )


def _checkpoint_flag(values: FlagValues) -> None:
    flags.DEFINE_enum(
        "checkpoint", "best", ["best", "latest"], "Which weights.", flag_values=values
    )


def _second_flag(values: FlagValues) -> None:
    flags.DEFINE_multi_string(
        "vertebrae",
        [],
        "Folder of a run that names vertebrae, to follow --workdir's; default: its own, if any. "
        "Given again, runs are averaged.",
        flag_values=values,
    )


def _flip_flag(values: FlagValues) -> None:
    flags.DEFINE_bool(
        "flip", False, "Average over left and right mirrored, too.", flag_values=values
    )


def evaluate(values: FlagValues, argv: list[str]) -> None:
    """Define the flags of `evaluate`."""
    _workdir_flag(values)
    _checkpoint_flag(values)
    _flip_flag(values)
    _second_flag(values)
    flags.DEFINE_enum("split", "test", ["train", "val", "test"], "Which cases.", flag_values=values)
    flags.DEFINE_string(
        "data", "", "Folder of other CTs with masks to score instead.", flag_values=values
    )


def predict(values: FlagValues, argv: list[str]) -> None:
    """Define the flags of `predict`."""
    flags.DEFINE_multi_string(
        "workdir", None, "Folder of a run; given again, runs are averaged.", flag_values=values
    )
    flags.mark_flag_as_required("workdir", values)
    _second_flag(values)
    _checkpoint_flag(values)
    _flip_flag(values)
    flags.DEFINE_string("input", None, "A CT (NIfTI or MetaImage) or a folder.", flag_values=values)
    flags.DEFINE_string("output", None, "Folder for labels and pictures.", flag_values=values)
    flags.DEFINE_string(
        "reference", "", "Label file or folder to draw beside the prediction.", flag_values=values
    )
    flags.mark_flags_as_required(["input", "output"], values)


def score(values: FlagValues, argv: list[str]) -> None:
    """Define the flags of `score`."""
    flags.DEFINE_string("prediction", None, "Label file or folder.", flag_values=values)
    flags.DEFINE_string("reference", None, "Label file or folder.", flag_values=values)
    flags.DEFINE_string("output", None, "JSON file to write.", flag_values=values)
    flags.DEFINE_enum(
        "labels", "verse", ["verse", "binary"], "Numbers to 255, or any.", flag_values=values
    )
    flags.DEFINE_string(
        "reference_centroids",
        "",
        "JSON or folder of the reference's centroids; default: the masks' centres of mass.",
        flag_values=values,
    )
    flags.mark_flags_as_required(["prediction", "reference", "output"], values)


def report(values: FlagValues, argv: list[str]) -> None:
    """Define the flags of `report`."""
    text = flags.DEFINE_string
    text("workdir", "", "Folder of a run.", flag_values=values)
    text("sweep", "", "Folder of a sweep, instead: its tables.", flag_values=values)
    flags.DEFINE_string(
        "output", "", "HTML file to write; default report.html in that folder.", flag_values=values
    )
    flags.DEFINE_string(
        "before", "", "Folder of an earlier run to compare the errors with.", flag_values=values
    )
