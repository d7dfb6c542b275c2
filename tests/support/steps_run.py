"""OP-convNet trained with one step in a call and, with a stop between, with several.

    python -m tests.support.steps_run SCANS WORKDIR

Writes alone.npz and several.npz, the states at the end, beside the folders of the two runs. A
process of its own, because the tests compile without optimisation: then a loop contracts sums and
products differently in the last bit. Run by test_steps_per_call.py.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from spinejax.training import loop
from spinejax.training.signals import Stop
from tests.training.test_population import patch_config


class _StopAt(Stop):
    def agreed(self, at: int) -> bool:
        return at >= 7


def main(scans: str, workdir: str) -> None:
    loop.ONE_BY_ONE = ()  # the CPU makes several updates in a call, as accelerators do
    changes = {"train.steps": 11, "train.eval_every_steps": 5, "train.log_every_steps": 2}
    config, folder = patch_config(scans, **changes), Path(workdir)
    results = {"alone": loop.train(config, folder / "alone", devices=1)}
    config.train.steps_per_call = 3
    # Calls end at evaluations (5, 10, 11) and checkpoints (3, 6, 9): a stop comes at a call's end.
    stopped = loop.train(config, folder / "several", devices=1, stop=_StopAt())
    if (stopped.step, stopped.interrupted) != (9, True):
        raise SystemExit(f"stopped at step {stopped.step}")
    config.train.steps_per_call = 2
    results["several"] = loop.train(config, folder / "several", devices=1)
    for name, result in results.items():
        leaves = jax.tree_util.tree_leaves_with_path(result.state)
        np.savez(folder / f"{name}.npz", **{jax.tree_util.keystr(p): x for p, x in leaves})


if __name__ == "__main__":
    main(*sys.argv[1:])
