"""Five updates of one tiny network on one stream of batches, mapped in several ways.

    python tests/support/devices_run.py OUT.npz

A process of its own, because the number of (fake) devices is fixed when jax starts. Run by
test_parallel.py.
"""

import sys

import jax
import numpy as np

from spinejax.tasks import build_task
from spinejax.training import optim, parallel, step
from spinejax.training.state import create_state, initial_variables
from tests.support.tiny_run import tiny_config

STEPS = 5
SIZE = 16


def batches(count: int, batch_size: int = 8) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        label = np.zeros((batch_size, SIZE, SIZE), np.uint8)
        # Unequal amounts of foreground: a mean of per-device Dice would differ from the pooled one.
        for i in range(batch_size):
            label[i, : 2 * i, 3:9] = 20
        image = (label * 20 + rng.normal(0, 50, label.shape)).astype(np.int16)
        made.append(
            {
                "image": image,
                "label": label,
                "stats": np.tile(np.float32([0, 100, -300, 500]), (batch_size, 1)),
                "case": np.arange(batch_size, dtype=np.int32),
                "index": np.arange(batch_size, dtype=np.int32) + 100,
                "weight": np.ones(batch_size, np.float32),
                "position": np.arange(batch_size, dtype=np.int32),
            }
        )
    return made


def updated(kind: str, devices: int) -> dict[str, np.ndarray]:
    """Return all parameters and statistics, flat, and the metrics of every step."""
    config = tiny_config(
        "unused", **{"model.norm": "batch", "model.dropout": 0.0, "data.size": (SIZE, SIZE)}
    )
    mapped = parallel.make_parallel(kind, devices)
    task = build_task(config, axis_name=parallel.AXIS)
    schedule = optim.make_schedule("constant", learning_rate=0.05, total_steps=STEPS)
    optimizer = optim.make_optimizer("sgd", schedule, momentum=0.9)
    update = step.make_train_step(task, optimizer, schedule, seed=0, ema_decay=0.9)
    run = mapped.map(update, sharded=(False, False), donate=True)
    evaluate = mapped.map(step.make_eval_step(task), sharded=(False, True), donate=False)
    state = create_state(initial_variables(task.init, jax.random.key(0)), optimizer, ema=True)
    state = mapped.replicate(state)
    metrics = []
    for batch in batches(STEPS):
        before = jax.tree.leaves(state)
        state, values = run(state, mapped.put(batch))
        metrics.append(jax.device_get(values))
    donated = all(leaf.is_deleted() for leaf in before)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    results, mask = evaluate(variables, mapped.put(batch))
    state = parallel.host_copy(state)

    def flat(tree: object) -> np.ndarray:
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)] or [np.zeros(0)])

    return {
        "params": flat(state.params),
        "batch_stats": flat(state.batch_stats),
        "ema": flat(state.ema),
        "loss": np.array([m["loss"] for m in metrics]),
        "dice": np.array([m["dice"] for m in metrics]),
        "case": metrics[0]["case"],
        "donated": np.array(donated),
        "eval_loss": np.asarray(results["loss"]),
        "eval_sums": np.asarray(results["sums"]),
        "mask": mapped.local_rows(mask),
    }


def main(out: str) -> None:
    saved = {}
    for kind, devices in (("pmap", 1), ("pmap", 2), ("pmap", 4), ("pmap", 8), ("shard_map", 4)):
        for name, value in updated(kind, devices).items():
            saved[f"{kind}{devices}/{name}"] = value
    np.savez(out, **saved)


if __name__ == "__main__":
    main(sys.argv[1])
