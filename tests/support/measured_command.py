"""A training that notes what it makes the host do between its first and its third save.

    PYTHONPATH=CHECKOUT python -P measured_command.py OUT train --config=...

The checkout may be of any version, so only calls that each version has are wrapped, and nothing
else of these tests is imported. Each process writes `measured.json` and a profile to a folder of
OUT that has its number as name.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax

from spinejax import cli
from spinejax.training.checkpoint import Checkpoints

FIRST, LAST = 1, 3


def run(out: Path, words: list[str]) -> int:
    """Run the command; write seconds, seconds of CPU, bytes fetched, and the seconds of each save.

    What a save fetches does not count.
    """
    fetched, saves, saving = 0, [], False
    marks: list[tuple[float, float, int]] = []
    get, save = jax.device_get, Checkpoints.save

    def mark() -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        marks.append((time.perf_counter(), used.ru_utime + used.ru_stime, fetched))

    def device_get(tree: Any) -> Any:
        nonlocal fetched
        if not saving:
            fetched += sum(x.nbytes for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))
        return get(tree)

    def timed(*args: Any, **fields: Any) -> None:
        nonlocal saving
        if len(saves) + 1 == LAST:
            mark()
            jax.profiler.stop_trace()
        begin, saving = time.perf_counter(), True
        save(*args, **fields)
        saves.append(time.perf_counter() - begin)
        saving = False
        if len(saves) == FIRST:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            jax.profiler.start_trace(out, create_perfetto_trace=True, profiler_options=options)
            mark()

    setattr(jax, "device_get", device_get)  # noqa: B010 - a type checker refuses assignments
    setattr(Checkpoints, "save", timed)  # noqa: B010
    status = cli.main(words)
    (wall, cpu, before), (end, used, after) = marks
    found = {"wall": end - wall, "cpu": used - cpu, "bytes": after - before, "saves": saves}
    (out / "measured.json").write_text(json.dumps(found))
    return status


if __name__ == "__main__":
    rank = next((w.partition("=")[2] for w in sys.argv if w.startswith("--process_id=")), "0")
    sys.exit(run(Path(sys.argv[1]) / rank, sys.argv[2:]))
