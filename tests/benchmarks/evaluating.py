"""How long one and two processes take to predict and score eight scans.

    python -m tests.benchmarks.evaluating

Prints the table of `docs/scaling.md`: seconds of `spinejax train --evaluate` on a run that has
trained, the start of the processes included. The scans are phantoms. The network is CHASPPRAU-Net
as it is trained on phantoms, after one step. Each process has one CPU device, so two processes use
two cores.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from spinejax.phantom import dataset

SCANS = 8
FIELDS = {
    "data.source": "verse",
    "data.split": "ratio",
    "data.test_fraction": 0.8,
    "data.val_fraction": 0.5,
    "train.steps": 1,
}


def trained(root: Path, scans: int, *, checkout: Path | None = None, **fields: object) -> list[str]:
    """Write phantoms and train on two of them; return the command of the run.

    Eight of ten scans are the test split; with another number, as large a part of them.

    Args:
        root: folder for both.
        scans: in the test split.
        checkout: folder of the package that trains; None is the current folder.
        **fields: of the config.
    """
    dataset.write_dataset(
        root / "scans", scans * 10 // 8, 0, min_spacing_mm=2.0, max_spacing_mm=2.0,
        max_extent_mm=300.0,
    )  # fmt: skip
    given = {"data.root": str(root / "scans"), **FIELDS, **fields}
    command = [
        *(sys.executable, "-m", "spinejax", "train", "--config=configs/phantom_to_real.py"),
        *(f"--config.{name}={value}" for name, value in given.items()),
        f"--workdir={root / 'run'}",
    ]
    seconds(command, 1, checkout)
    return command


def seconds(command: list[str], processes: int, checkout: Path | None = None) -> float:
    """Return how long `processes` processes of one run take for a command, with their start.

    Raises:
        RuntimeError: a process fails; the message is what all of them said.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    if checkout is not None:
        env["PYTHONPATH"] = str(checkout)
    begin = time.perf_counter()
    started = []
    for rank in range(processes):
        place = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
        words = [*place, f"--process_id={rank}"] if processes > 1 else []
        started.append(
            subprocess.Popen(
                [*command, *words],
                cwd=checkout,
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        )
    errors = [process.communicate()[1].decode() for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("\n".join(errors))
    return time.perf_counter() - begin


def evaluated(
    command: list[str], run: Path, processes: int, checkout: Path | None = None
) -> tuple[float, dict[str, Any]]:
    """Return the seconds of an evaluation, and the scores of its scans."""
    results = run / "evaluation"
    shutil.rmtree(results, ignore_errors=True)
    taken = seconds([*command, "--evaluate"], processes, checkout)
    scores = json.loads((results / "test" / "scores.json").read_text())
    return taken, scores["cases"]


def main() -> int:
    """Print the table."""
    print(f"| processes | seconds for {SCANS} scans |")
    print("| ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        command = trained(root, SCANS)
        _, expected = evaluated(command, root / "run", 1)  # compiles, and keeps the programs
        for processes in (1, 2):
            taken, found = evaluated(command, root / "run", processes)
            if found != expected:
                raise RuntimeError(f"{processes} processes found other scores")
            print(f"| {processes} | {taken:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
