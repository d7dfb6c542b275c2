"""A command of spinejax that notes what it makes the host do.

    PYTHONPATH=CHECKOUT python -P measured_command.py OUT train --config=...

The checkout may be of any version, so only calls that each version has are wrapped, and nothing
else of these tests is imported. Each process writes a trace and `measured.json` to a folder of
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


def run(out: Path, words: list[str]) -> int:
    """Run the command; write its seconds of CPU, bytes that were fetched, and seconds of saves.

    What a save fetches does not count.
    """
    fetched, saves, saving = 0, [], False
    get, save, meet = jax.device_get, Checkpoints.save, jax.distributed.initialize

    def device_get(tree: Any) -> Any:
        nonlocal fetched
        if not saving:
            fetched += sum(x.nbytes for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))
        return get(tree)

    def timed(*args: Any, **fields: Any) -> None:
        nonlocal saving
        begin, saving = time.perf_counter(), True
        save(*args, **fields)
        saves.append(time.perf_counter() - begin)
        saving = False

    def trace() -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        jax.profiler.start_trace(out, create_perfetto_trace=True, profiler_options=options)

    def met(*args: Any, **fields: Any) -> None:
        meet(*args, **fields)
        trace()

    if any(word.startswith("--num_processes") for word in words):
        setattr(jax.distributed, "initialize", met)  # noqa: B010 - must come before a trace
    else:
        trace()
    setattr(jax, "device_get", device_get)  # noqa: B010 - a type checker refuses assignments
    setattr(Checkpoints, "save", timed)  # noqa: B010
    status = cli.main(words)
    used = resource.getrusage(resource.RUSAGE_SELF)
    jax.profiler.stop_trace()
    found = {"cpu": used.ru_utime + used.ru_stime, "bytes": fetched, "saves": saves}
    (out / "measured.json").write_text(json.dumps(found))
    return status


if __name__ == "__main__":
    rank = next((w.partition("=")[2] for w in sys.argv if w.startswith("--process_id=")), "0")
    sys.exit(run(Path(sys.argv[1]) / rank, sys.argv[2:]))
