"""`spinejax report`: the HTML page of a run or of a sweep."""

from absl.flags import FlagValues

from spinejax.commands.parsing import overwrite_flag, path_flag
from spinejax.errors import InputError

HELP = "write the HTML page of a run or a sweep"


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    path_flag(values, "workdir", "Folder of a run.")
    path_flag(values, "sweep", "Folder of a sweep, in place of --workdir.")
    path_flag(
        values,
        "output",
        "HTML file to write; by default report.html in the folder.",
        is_file=True,
        short="o",
    )
    path_flag(values, "before", "Folder of an earlier run, to compare its errors with.")
    overwrite_flag(values)


def run(values: FlagValues) -> int:
    """Write the page."""
    if (values.workdir is None) == (values.sweep is None):
        raise InputError("give either --workdir of a run or --sweep of a sweep")
    if values.sweep is not None:
        from spinejax.reports import sweep_page

        if values.before is not None:
            raise InputError("--before compares runs; leave it out with --sweep")
        path, text = sweep_page.write(values.sweep, values.output, overwrite=values.overwrite)
        print(text)
    else:
        import jax

        from spinejax.reports import page

        # A page computes little, and must not take the memory of a GPU on which a run trains.
        jax.config.update("jax_platforms", "cpu")
        path = page.write_report(
            values.workdir, values.output, values.before, overwrite=values.overwrite
        )
    print(f"report: {path}")
    return 0
