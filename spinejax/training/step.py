"""One update and one evaluation, as pure functions of one device's share of a batch.

`step_bytes` tells how much memory the compiler plans for an update.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from spinejax.phantom.online import Stream
from spinejax.tasks import Keys, Task, build_task
from spinejax.training import optim
from spinejax.training.parallel import AXIS
from spinejax.training.state import TrainState, create_state

Batch = Mapping[str, jax.Array]


def named_key(seed: int, name: str) -> jax.Array:
    """Return the random key for one named use, the same in every process and run."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()) & 0x7FFFFFFF)


def pooled_dice(sums: Any) -> Any:
    """Dice of pooled counts (..., 4) tp, fp, fn, tn (`tasks.LossAux.sums`); 1 if there is none."""
    tp, fp, fn = sums[..., 0], sums[..., 1], sums[..., 2]
    total = 2 * tp + fp + fn
    return (2 * tp + (total == 0)) / (total + (total == 0))


def accuracy(sums: Any) -> Any:
    """Share of correct pixels, voxels or patches, of the same counts; 1 for no counts."""
    total = sums.sum(-1)
    return (sums[..., 0] + sums[..., 3] + (total == 0)) / (total + (total == 0))


def _split(batch: Batch, parts: int) -> list[dict[str, jax.Array]]:
    """Cut a device's share into `parts` of equal length."""
    return [
        {
            name: x[i * x.shape[0] // parts : (i + 1) * x.shape[0] // parts]
            for name, x in batch.items()
        }
        for i in range(parts)
    ]


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def from_config(
    config: ConfigDict, task: Task, *, total_steps: int, steps_per_epoch: int, **changes: Any
) -> tuple[Callable[[TrainState, Batch], Any], optax.GradientTransformation]:
    """Return the training step of a config (`make_train_step`) and its optimiser.

    `train.batch_size` of the config is that of all devices, see `loop.with_batch`. `changes`
    replaces fields of the block `optim`; see `optim.build` for those that may be traced.
    """
    fields: dict[str, Any] = {**config.optim, **changes}
    schedule, optimizer = optim.build(
        fields,
        batch_size=config.train.batch_size,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
    )
    update = make_train_step(
        task,
        optimizer,
        schedule,
        seed=config.seed,
        accumulate_steps=fields["accumulate_steps"],
        ema_decay=fields["ema_decay"],
    )
    return update, optimizer


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Return step(state, batch) -> (state, metrics), to be mapped over `AXIS`.

    `batch` is one device's share: leaves (b, ...), among them "position" (b,) int, the place of the
    sample in the batch of all devices. With `accumulate_steps` A the share is split into A parts,
    whose gradients are averaged; the loss is then pooled over the devices' parts only. The
    augmentation of a sample, and the sample itself if the task draws it (`Task.stream`), depend
    only on seed, step and position, not on the number of devices or on A. Dropout depends on both.
    Where samples are drawn, "drawn" may hold what `Stream.draw` returns. Else the step draws it:
    with the subjects in "subject" (rows of `Stream.subjects`) if they are given, else with its own.

    With `ema_decay` d the average moves by 1 - min(d, (1 + t) / (10 + t)) at step t, so that it
    leaves the initial values quickly (the rule of TensorFlow's ExponentialMovingAverage).

    metrics, equal on all devices: "loss", "dice" and "accuracy" (pooled over the global batch),
    "grad_norm" (before clipping), "learning_rate", "finite" bool (loss, gradients, their norm
    and new parameters), "leaf_max" (number of parameter arrays,) largest absolute gradient of each
    in the order of `jax.tree.leaves`, "case" and "index" (global b,).
    """
    keys_of = {name: named_key(seed, name) for name in ("augment", "dropout", "stream", "cut")}

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        augment_key = jax.random.fold_in(keys_of["augment"], state.step)
        dropout_key = jax.random.fold_in(keys_of["dropout"], state.step)
        dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(AXIS))
        if task.stream is not None:
            batch = streamed(task.stream, keys_of, state.step, batch)
        batch_stats = state.batch_stats
        losses, sums, gradients = [], [], []
        # A Python loop: convolution gradients inside lax.scan are some 30 times slower on CPU.
        for i, part in enumerate(_split(batch, accumulate_steps)):
            keys = Keys(
                jax.vmap(jax.random.fold_in, (None, 0))(augment_key, part["position"]),
                jax.random.fold_in(dropout_key, i),
            )
            (loss, aux), gradient = jax.value_and_grad(task.loss, has_aux=True)(
                state.params, batch_stats, part, keys
            )
            batch_stats = aux.batch_stats
            losses.append(loss)
            sums.append(aux.sums.sum(0))
            gradients.append(gradient)
        gradient = jax.tree.map(lambda *g: sum(g) / accumulate_steps, *gradients)
        gradient = jax.lax.pmean(gradient, AXIS)
        loss = jax.lax.pmean(sum(losses) / accumulate_steps, AXIS)
        counts = jax.lax.psum(sum(sums), AXIS)
        # Where the devices are cores of one CPU, they share its threads, and a device that waits
        # for the others keeps a thread from working. Rows that are known from the start would be
        # gathered first, and wait longest; so they are made to depend on the counts.
        known = counts.ravel()[0] >= 0  # always, but the compiler cannot know
        rows = {name: jnp.where(known, batch[name], 0) for name in ("case", "index")}

        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay > 0:
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, ema, params)

        leaf_max = jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(gradient)])
        # The norm overflows before the gradients do.
        norm = optax.tree.norm(gradient)
        # Without synchronised BatchNorm, statistics differ between devices; the mean makes all
        # equal.
        batch_stats = jax.lax.pmean(batch_stats, AXIS)
        metrics = {
            "loss": loss,
            "dice": pooled_dice(counts),
            "accuracy": accuracy(counts),
            "grad_norm": norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "finite": _all_finite((loss, leaf_max, norm, params, batch_stats)),
            "leaf_max": leaf_max,
            **{name: jax.lax.all_gather(x, AXIS, tiled=True) for name, x in rows.items()},
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), metrics

    return step


def streamed(
    stream: Stream, keys_of: Mapping[str, jax.Array], step: jax.Array, batch: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a batch with the samples that the stream draws for an update.

    Args:
        stream: of the task.
        keys_of: keys of "stream" and "cut".
        step: number of updates before.
        batch: "position" (b,), and "drawn" or "subject" if it is known.
    """
    rest = dict(batch)
    drawn, subject, positions = rest.pop("drawn", None), rest.pop("subject", None), rest["position"]
    if drawn is None:
        key = jax.random.fold_in(keys_of["stream"], step // stream.updates)
        drawn = stream.draw(key, positions, *([] if subject is None else [subject]))
    if stream.cut is not None:
        drawn = stream.cut(jax.random.fold_in(keys_of["cut"], step), positions, drawn)
    return rest | drawn


def several(
    update: Callable[[Any, Batch], tuple[Any, dict[str, jax.Array]]],
) -> Callable[[Any, Batch], tuple[Any, dict[str, jax.Array]]]:
    """Return call(state, batches) -> (state, metrics), one program that updates once a batch.

    Args:
        update: as `make_train_step` returns it.

    Returns:
        A function whose `batches` have leaves (b, updates, ...), and whose metrics have leaves
        (updates, ...). It returns the state that `update` would, called so many times.
    """

    def call(state: Any, batches: Batch) -> tuple[Any, dict[str, jax.Array]]:
        rows = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batches)
        if len(jax.tree.leaves(rows)[0]) > 1:
            return jax.lax.scan(update, state, rows)
        state, metrics = update(state, jax.tree.map(lambda x: x[0], rows))
        return state, {name: x[None] for name, x in metrics.items()}

    return call


def make_eval_step(
    task: Task,
) -> Callable[[dict[str, Any], Batch], tuple[dict[str, jax.Array], jax.Array]]:
    """Return step(variables, batch) -> (results, mask), to be mapped over `AXIS`.

    results, equal on all devices: "loss" () pooled over the global batch, and in the order of its
    rows "sums" (b, 4), "case" (b,), "index" (b,), "weight" (b,). `mask` is this device's share of
    the predictions, see `tasks.LossAux`.
    """

    def step(variables: dict[str, Any], batch: Batch) -> tuple[dict[str, jax.Array], jax.Array]:
        loss, aux = task.loss(variables["params"], variables["batch_stats"], batch, None)
        rows = {"sums": aux.sums, **{k: batch[k] for k in ("case", "index", "weight")}}
        results = {k: jax.lax.all_gather(v, AXIS, tiled=True) for k, v in rows.items()}
        results["loss"] = jax.lax.pmean(loss, AXIS)
        return results, aux.mask

    return step


def parameter_names(params: Any) -> list[str]:
    """Path of each parameter array, such as "Conv_0/kernel", in the order of `jax.tree.leaves`."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def arguments(
    config: ConfigDict, task: Task, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """Return the shapes of the arguments of `make_train_step`'s step: state and whole batch.

    Nothing is computed. The batch holds samples of a data set, which a stream replaces.
    """
    averaged = config.optim.ema_decay > 0
    variables = jax.eval_shape(task.init, jax.random.key(0))
    state = jax.eval_shape(lambda v: create_state(v, optimizer, ema=averaged), variables)
    rows = config.train.batch_size

    def of(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    channels = [2 * task.neighbours + 1] * bool(task.neighbours)
    return state, {
        "image": of(jnp.int16, *task.sample_shape, *channels),
        "label": of(jnp.uint8, *task.sample_shape),
        "stats": of(jnp.float32, 4),
        "weight": of(jnp.float32),
        **{name: of(jnp.int32) for name in ("case", "index", "position")},
    }


def step_bytes(config: ConfigDict) -> int | None:
    """Return the bytes that XLA reserves for an update of `train.batch_size` on one device.

    They hold parameters, optimiser, batch and all intermediate arrays. Nothing is run. The samples
    are assumed to come from a data set, not from a stream of phantoms. None if the backend does not
    tell, or if the network has no parameters to update.
    """
    config = config.copy_and_resolve_references()
    config.data.source = "verse"
    task = build_task(config, axis_name=AXIS)
    if not task.model.LEARNS:
        return None
    update, optimizer = from_config(config, task, total_steps=1, steps_per_epoch=1)
    state, rows = arguments(config, task, optimizer)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), rows)
    # One device of the axis; the state is updated in place, as in training.
    mapped = jax.jit(jax.vmap(update, in_axes=(None, 0), axis_name=AXIS), donate_argnums=0)
    plan = mapped.lower(state, batch).compile().memory_analysis()
    if plan is None:
        return None
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return int(held + plan.temp_size_in_bytes)
