"""Both stages of the packaged model on a large scan: time, and memory beside the scan's own.

The scan is a phantom. The memory is what the prediction adds to the peak of the process, with the
networks loaded and compiled.
"""

import resource
import sys

import spinejax
from tests.benchmarks import phantom_scans, timing

SPACING_MM = 0.7
GIVEN_S = 27.0  # by Saeed et al. (2023) for both stages
MEMORY_LIMIT = 2.0


def peak_bytes():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rows(toy=False):
    """Return the rows of the table; `toy` sizes only show that all of it runs."""
    shape = (64, 64, 128) if toy else (512, 512, 1000)
    small, large = phantom_scans.coarse_and_fine(shape, SPACING_MM)
    model = spinejax.load("phantom")
    model.segment(small)
    before = peak_bytes()
    times = timing.interleaved({"ours": lambda: model.segment(large)}, 1, warm_up=0)["ours"]
    added, scan = peak_bytes() - before, 4 * large.array.size
    of = f"of {' x '.join(map(str, large.shape))}"
    return [
        timing.within(f"vertebrae {of}", times, GIVEN_S),
        timing.against(
            f"vertebrae {of}: memory",
            added / 2**30,
            "GiB",
            scan / 2**30,
            "the scan in float32",
            MEMORY_LIMIT,
        ),
    ]
