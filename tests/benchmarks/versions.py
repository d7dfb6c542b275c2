"""What two versions of this package make the host do in a training and an evaluation.

    git worktree add ../before COMMIT
    python -m tests.benchmarks.versions ../before .

Prints the table "before and after" of `docs/scaling.md`, a column for each checkout. All run in
this Python environment. A U-Net trains on slices, with one CPU device for each process. What the
first process did is measured over 200 steps, from the end of the first of three saves to the
beginning of the third. Its device works while a program of XLA runs, as the profile shows. CPU time
holds the work of the device, too, which is the same in all versions.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import evaluating, waiting
from tests.benchmarks.bench_input import write_scan

STEPS = 200
MEASURED = Path(__file__).parents[1] / "support" / "measured_command.py"


def train(checkout: Path, root: Path, steps: int, processes: int) -> dict[str, Any]:
    """Train with the package of a checkout; return what the first process measured in `steps`."""
    out = Path(tempfile.mkdtemp(dir=root))
    every = steps // 2
    words = {
        "data.root": root / "scans",
        "data.split": "ratio",
        "data.test_fraction": 0,
        "data.val_fraction": 0,
        "data.cache_dir": root / "cache",
        "data.size": "(128,128)",
        "model.widths": "(16,32)",
        "train.steps": 3 * every,
        "train.checkpoint_every_steps": every,
        "train.batch_size": 8,
    }
    command = [
        *(sys.executable, "-P", str(MEASURED), str(out)),
        *("train", "--config=configs/unet.py", f"--workdir={out / 'run'}"),
        *(f"--config.{name}={value}" for name, value in words.items()),
    ]
    evaluating.seconds(command, processes, checkout)
    found: dict[str, Any] = json.loads((out / "0" / "measured.json").read_text())
    (trace,) = out.glob("0/plugins/**/perfetto_trace.json.gz")
    worked, _ = waiting.busy(waiting.programs(trace))
    return {**found, "worked": worked}


def training(checkout: Path, root: Path, processes: int, steps: int) -> list[str]:
    """Return the cells of a checkout about training with a number of processes."""
    found = train(checkout, root, steps, processes)
    return [
        f"{1000 * found['wall'] / steps:.1f} ms",
        f"{1 - found['worked'] / found['wall']:.1%}",
        f"{1000 * found['cpu'] / steps:.1f} ms",
        f"{found['bytes'] / steps:,.0f}",
        f"{1000 * statistics.median(found['saves']):.0f} ms",
    ]


TRAINING = ("a step", "the device waits", "CPU time a step", "bytes to the host a step", "a save")


def evaluation(checkout: Path, root: Path, processes: int, scans: int) -> str:
    """Return the cell of a checkout about the evaluation of phantoms."""
    root.mkdir()
    command = evaluating.trained(root, scans, checkout=checkout)
    try:
        evaluating.evaluated(command, root / "run", 1, checkout)  # compiles
        taken, _ = evaluating.evaluated(command, root / "run", processes, checkout)
    except RuntimeError as error:
        return f"fails: {str(error).strip().splitlines()[-1]}"
    return f"{taken:.1f} s"


def main(words: Sequence[str], steps: int = STEPS, scans: int = 8) -> int:
    """Print the table of some checkouts."""
    checkouts = [Path(word).resolve() for word in words]
    print(f"| | {' | '.join(map(str, words))} |")
    print("| --- |" + " ---: |" * len(checkouts))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "scans").mkdir()
        for number in range(4):
            write_scan(root / "scans", f"scan{number}", (160, 160, 60))
        for count in (1, 2):
            cells = [training(checkout, root, count, steps) for checkout in checkouts]
            for name, *row in zip(TRAINING, *cells, strict=True):
                print(f"| {name}, {_processes(count)} | {' | '.join(row)} |", flush=True)
        for count in (1, 2):
            row = [
                evaluation(checkout, root / f"{count}-{at}", count, scans)
                for at, checkout in enumerate(checkouts)
            ]
            name = f"evaluation of {scans} phantoms, {_processes(count)}"
            print(f"| {name} | {' | '.join(row)} |", flush=True)
    return 0


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
