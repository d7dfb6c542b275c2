"""matplotlib with its own defaults: no file or variable of the user changes or breaks a figure.

Importing matplotlib reads `matplotlibrc` in the current folder, then the user's own, and the
variable MPLBACKEND; a damaged one raises an exception. So this module imports it from its own
folder, with its own file, and all other modules import its parts from here.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from spinejax.reports.figures import matplotlib_data


@contextmanager
def _own_settings() -> Iterator[None]:
    if "matplotlib" in sys.modules:
        yield
        return
    variables = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    variables["MATPLOTLIBRC"] = str(matplotlib_data() / "matplotlibrc")
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(matplotlib_data())
        with mock.patch.dict(os.environ, variables, clear=True):
            yield
    finally:
        os.fchdir(here)
        os.close(here)


with _own_settings():
    import matplotlib
    from matplotlib import patheffects
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

__all__ = ["Axes", "Figure", "FigureCanvasAgg", "Line2D", "Patch", "defaults", "patheffects"]


@contextmanager
def defaults() -> Iterator[None]:
    """Draw with matplotlib's default settings in the block."""
    ours: Any = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
    with matplotlib.rc_context(ours):
        yield
