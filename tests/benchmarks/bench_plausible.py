"""False alarms of `spinejax.plausible` on CTs that are right, and on random crops of them.

    python -m tests.benchmarks.bench_plausible FOLDER ...

counts them on all scans named `*ct.nii.gz` under the folders. The table has those of phantoms.
Crops that are nearly all air are left out.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from spinejax import plausible
from spinejax.errors import InputError
from spinejax.io import scanfile
from spinejax.phantom.dataset import write_dataset
from spinejax.volume import Volume
from tests.benchmarks import timing

SIDES = (16, 24, 32, 48, 64, 96)
CROPS = 20  # of each CT and side
GIVEN_PERCENT = 1.0


def is_alarm(scan):
    """Return whether the check says anything of a scan."""
    try:
        return bool(plausible.check(scan, "scan"))
    except InputError:
        return True


def crops(scan, rng):
    """Yield random crops of a scan that show some of the body."""
    for side in np.repeat(SIDES, CROPS):
        sides = np.minimum(side, scan.shape)
        first = rng.integers(0, np.array(scan.shape) - sides + 1)
        box = tuple(slice(i, i + n) for i, n in zip(first, sides, strict=True))
        crop = scan.array[box]
        if (crop > -500).mean() >= 0.05 or (crop > -950).mean() >= 0.7:
            yield Volume(crop, np.diag([-1.0, -1.0, 1.0, 1.0]))


def count(folders):
    """Return the numbers of CTs, of CTs and crops, and of alarms."""
    paths = [path for folder in folders for path in sorted(Path(folder).rglob("*ct.nii.gz"))]
    rng, tried, alarms = np.random.default_rng(1), 0, 0
    for path in paths:
        scan = scanfile.read_volume(path)
        for one in (scan, *crops(scan, rng)):
            tried += 1
            alarms += is_alarm(one)
    return len(paths), tried, alarms


def rows(toy=False):
    """Return the rows of the table; `toy` sizes only show that all of it runs."""
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(folder, 1 if toy else 4, 0, max_voxels=60_000 if toy else 1_000_000)
        scans, tried, alarms = count([folder])
    work = f"false alarms in {scans} CTs and {tried - scans} crops"
    return [timing.against(work, 100 * alarms / tried, "%", GIVEN_PERCENT)]


if __name__ == "__main__":
    print("{} CTs, {} CTs and crops, {} false alarms".format(*count(sys.argv[1:])))
