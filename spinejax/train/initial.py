"""Weights to begin with: those of an earlier run, trained on phantoms perhaps."""

from pathlib import Path
from typing import Any

import jax
from jax.tree_util import keystr, tree_flatten_with_path
from ml_collections import ConfigDict

from spinejax.errors import InputError
from spinejax.tasks import Task
from spinejax.train.checkpoint import begun, load_for_inference

FIELD = "train.init_from"


def pretrained(config: ConfigDict, task: Task, workdir: Path) -> dict[str, Any] | None:
    """Return the variables of the run that `train.init_from` names, its best or else its latest.

    Of its moving average, where it has one. None without such a run, and where the run in
    `workdir` has begun: it goes on with its own.

    Raises:
        InputError: not a run's folder, or another network.
    """
    source = config.train.init_from
    if not source or begun(workdir):
        return None
    _, found = load_for_inference(source)
    like = jax.eval_shape(task.init, jax.random.key(0))
    for name in ("params", "batch_stats"):
        theirs, ours = _shapes(found.get(name, {})), _shapes(like.get(name, {}))
        for leaf in sorted(theirs.keys() | ours.keys()):
            here, there = ours.get(leaf, "absent"), theirs.get(leaf, "absent")
            if here != there:
                raise InputError(
                    f"{FIELD}={source}: another network: {name}{leaf} is {there} there and {here} "
                    "here; give a run of the same `model` and task"
                )
    return found


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {keystr(path): tuple(leaf.shape) for path, leaf in tree_flatten_with_path(tree)[0]}
