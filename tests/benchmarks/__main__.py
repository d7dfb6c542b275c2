"""Benchmarks: one table of how long our work takes, beside other programs or what is given for it.

    python -m tests.benchmarks [NAME ...] [--out FILE]

NAMEs choose among the benchmarks `bench_NAME.py`; without one, all run. Each runs in a process of
its own, one after another; they share what they compile. FILE (JSON) keeps the last results of this
machine, and the table shows what has changed since. The exit status is 1 if a ratio is above its
limit or a benchmark failed.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from spinejax.text_table import text_table
from tests.benchmarks.timing import Row, measured

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / "runs" / "bench"
NAMES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
HEAD = (
    "work", "ours", "processor", "peer", "takes", "processor", "ratio", "of processor", "limit",
    "changed",
)  # fmt: skip


def machine() -> str:
    """Return the name of this machine's processor, with the number of cores."""
    found = ""
    if Path("/proc/cpuinfo").exists():
        found = Path("/proc/cpuinfo").read_text(errors="replace")
    model = re.search(r"^model name\s*: (.*)$", found, re.MULTILINE)
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores"


def run(name: str, toy: bool) -> dict[str, Any]:
    """Return what `measured` finds in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, name, toy).result()


def amount(value: float, unit: str) -> str:
    """Return a measure as a person reads it; without a unit it is seconds."""
    if unit:
        return f"{value:.3g} {unit}"
    for factor, name in ((1, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {name}" if value < 100 else f"{value:.0f} s"
    return f"{value * 1e6:.3g} us"


def change(row: Row, last: Row) -> str:
    """Return both ratios if they differ by more than the rounds of either run do, else ""."""
    texts = f"{last.ratio:.2f}", f"{row.ratio:.2f}"
    within = row.low <= last.ratio <= row.high or last.low <= row.ratio <= last.high
    return "" if within or texts[0] == texts[1] else " -> ".join(texts)


def table(rows: Sequence[Row], last: dict[str, Row]) -> str:
    """Return the table as text."""
    lines = [HEAD]
    for row in rows:
        ours, theirs, ratio = row.processor or (None, None, None)
        used = ["" if seconds is None else amount(seconds, "") for seconds in (ours, theirs)]
        limit = "" if row.limit is None else f"{row.limit:.2f}{' EXCEEDED' * row.exceeded}"
        lines.append(
            (
                row.work,
                amount(row.ours, row.unit),
                used[0],
                row.peer,
                amount(row.theirs, row.unit),
                used[1],
                f"{row.ratio:.2f}",
                "" if ratio is None else f"{ratio:.2f}",
                limit,
                change(row, last[row.work]) if row.work in last else "",
            )
        )
    return text_table(lines, align="lrrlrrrrll")


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmarks, print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--out", type=Path, help="by default a file in runs/bench")
    parser.add_argument("--toy", action="store_true", help="sizes that only show that all runs")
    options = parser.parse_args(words)
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    here = machine()
    out = options.out or FOLDER / f"{re.sub(r'[^0-9a-zA-Z]+', '-', here)}.json"
    kept = json.loads(out.read_text()) if out.exists() else {}
    last = kept.get("benchmarks", {}) if kept.get("machine") == here else {}
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"load {load:.1f}: if other programs run, the times say little", file=sys.stderr)
    found, failed = {}, []
    with tempfile.TemporaryDirectory() as compiled:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)
        for name in options.names or NAMES:
            start = time.perf_counter()
            print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
            try:
                found[name] = run(name, options.toy)
            except Exception:
                traceback.print_exc()
                failed.append(name)
            print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    rows = [Row(**row) for one in found.values() for row in one["rows"]]
    devices = sorted({one["device"] for one in found.values()})
    alike = [one["rows"] for one in last.values() if one["device"] in devices]
    before = {row["work"]: Row(**row) for same in alike for row in same}
    print(f"{here}; jax on {', '.join(devices)}")
    print(table(rows, before))
    print("ratio: ours / peer, below 1 is faster or smaller; changed: since the last run here")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": here, "benchmarks": last | found}, indent=1) + "\n")
    print(f"kept in {out}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed) or any(row.exceeded for row in rows))


if __name__ == "__main__":
    sys.exit(main())
