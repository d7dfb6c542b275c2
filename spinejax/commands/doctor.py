"""`spinejax doctor`: versions and devices, and the problems of a data set."""

import platform
from importlib import metadata

from absl.flags import FlagValues

from spinejax import progress
from spinejax.commands.parsing import labels_flag, overwrite_flag, path_flag
from spinejax.errors import InputError

HELP = "show versions and devices; check a data set"
POSITIONAL = "data"

PACKAGES = (
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "ml-collections",
    "nibabel",
    "numpy",
    "scipy",
)


def define_flags(values: FlagValues) -> None:
    """Define the flags."""
    path_flag(values, "data", "Folder of a data set to check.")
    labels_flag(values, "The numbers in the masks.")
    path_flag(
        values,
        "page",
        "HTML file to write: a thumbnail of each scan, and what is wrong with it.",
        is_file=True,
    )
    overwrite_flag(values)


def run(values: FlagValues) -> int:
    """Print versions and devices, and the inventory of a data set."""
    if values.page is not None:
        from spinejax.reports import html

        if values.data is None:
            raise InputError("--page shows a data set; add --data=DIR")
        html.check_outputs(values.page, (), overwrite=values.overwrite)
    print(f"python    {platform.python_version()} on {platform.platform()}")
    print("packages  " + ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES))
    print(f"devices   {_devices()}")
    if values.data is None:
        return 0
    from spinejax.datasets import doctor

    look = None
    if values.page is not None:
        from spinejax.reports import data_page

        look = data_page.thumbnail
    report = doctor.doctor(values.data, scheme=values.labels, look=look, progress=progress.bars)
    print("\n".join(report.lines))
    count = len(report.problems)
    print(f"\n{count or 'no'} problem{'s' * (count != 1)}")
    for problem in report.problems:
        print(f"  {problem}")
    if values.page is not None:
        name = values.data.resolve().name
        data_page.write(values.page, name, report, overwrite=values.overwrite)
        print(f"\npage: {values.page}")
    return 0


def _devices() -> str:
    """Return what jax computes on, or why there is no device: a data set is checked without one."""
    import jax

    from spinejax import numerics

    try:
        numerics.check_devices()
    except InputError as error:
        return f"none: {error}"
    kinds = sorted({device.device_kind for device in jax.local_devices()})
    return f"{jax.local_device_count()} x {jax.default_backend()} ({', '.join(kinds)})"
