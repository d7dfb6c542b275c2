"""How long the device of a training waits for its next step, from a profile of 200 steps.

    python -m tests.benchmarks.waiting

Prints the table of `docs/scaling.md`. A U-Net trains on slices of scans; the device is one CPU
core, and another core reads. The profile (`train.profile_steps`) shows when a program ran on the
device. The rest of the time from the first step to the last one the device waited. "read by the
training itself" has neither threads nor batches that are ready ahead of need.
"""

import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_input import write_scan

STEPS = 200
WAYS = {
    "read by the training itself": {"data.threads": 0, "data.prefetch": 0},
    "read by threads (default)": {},
}
_BUSY = "ThunkExecutor::Execute (wait for completion)"


def busy(intervals: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return the length of the union of intervals (start, end), and the time from start to end."""
    total = end = 0.0
    ordered = sorted(intervals)
    for start, stop in ordered:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total, end - ordered[0][0]


def programs(trace: Path) -> list[tuple[float, float]]:
    """Return start and end in seconds of each program that ran on the CPU's device."""
    with gzip.open(trace) as file:
        events: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return [
        (one["ts"] / 1e6, (one["ts"] + one["dur"]) / 1e6)
        for one in events
        if one.get("ph") == "X" and one.get("name") == _BUSY
    ]


def measure(root: Path, steps: int, fields: dict[str, Any]) -> tuple[float, float]:
    """Train in a process; return the seconds of a step and the share that the device waits."""
    run = Path(tempfile.mkdtemp(dir=root))
    words = {
        "data.root": str(root / "scans"),
        "data.split": "ratio",
        "data.test_fraction": 0,
        "data.val_fraction": 0,
        "data.cache_dir": str(root / "cache"),
        "data.size": "(128,128)",
        "model.widths": "(16,32)",
        "train.steps": steps + 10,
        "train.profile_steps": f"5,{5 + steps}",
        "train.batch_size": 8,
        **fields,
    }
    given = [f"--config.{name}={value}" for name, value in words.items()]
    command = [sys.executable, "-m", "spinejax", "train", "--config=unet", f"--workdir={run}"]
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    subprocess.run([*command, *given], check=True, env=env, capture_output=True)
    (trace,) = run.glob("profile/**/perfetto_trace.json.gz")
    worked, whole = busy(programs(trace))
    return whole / steps, 1 - worked / whole


def main(steps: int = STEPS) -> int:
    """Print the table."""
    print("| slices | a step | the device waits |")
    print("| --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "scans").mkdir()
        for number in range(4):
            write_scan(root / "scans", f"scan{number}", (160, 160, 60))
        for name, fields in WAYS.items():
            seconds, share = measure(root, steps, fields)
            print(f"| {name} | {1000 * seconds:.0f} ms | {share:.1%} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
