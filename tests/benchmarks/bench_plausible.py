"""False alarms of `spinejax.plausible` on CTs that are right, and on random crops of them.

    python tests/benchmarks/bench_plausible.py [FOLDER ...]

The CTs are all scans named `*ct.nii.gz` under the folders; without a folder, four phantoms. Crops
that are nearly all air are left out.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from spinejax import plausible
from spinejax.cli import main as spinejax
from spinejax.errors import InputError
from spinejax.io import scanfile
from spinejax.volume import Volume

SIDES = (16, 24, 32, 48, 64, 96)
CROPS = 20  # of each CT and side


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


def main():
    with tempfile.TemporaryDirectory() as made:
        folders = sys.argv[1:] or [made]
        if folders == [made]:
            spinejax(["phantom", f"--out={made}", "--cases=4"])
        paths = [path for folder in folders for path in sorted(Path(folder).rglob("*ct.nii.gz"))]
        rng, tried, alarms = np.random.default_rng(1), 0, 0
        for path in paths:
            scan = scanfile.read_volume(path)
            for one in (scan, *crops(scan, rng)):
                tried += 1
                alarms += is_alarm(one)
    print(f"{len(paths)} CTs and {tried - len(paths)} crops: {alarms} false alarms")


if __name__ == "__main__":
    main()
