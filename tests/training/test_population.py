"""Members of a population against the same settings trained alone by the loop."""

import jax
import numpy as np
import pytest

from spinejax.configs import opconvnet
from spinejax.errors import InputError
from spinejax.tasks import build_task
from spinejax.training import log, loop, optim, parallel, run_cases, search, signals
from spinejax.training.search import Setting
from tests.support.tiny_run import tiny_config, write_scans

SETTINGS = [Setting(0.05, 0.9, 1e-2), Setting(0.01, 0.0, 0.0)]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("scans"))


def patch_config(root, **changes):
    """OP-convNet with dropout, narrow, on 16 x 16 patches; 7 steps."""
    config = opconvnet.get_config()
    config.update_from_flattened_dict(
        {
            "data.root": str(root),
            "data.split": "ratio",
            "data.threads": 1,
            "data.prefetch": 2,
            "optim.ema_decay": 0.5,
            "train.checkpoint_every_steps": 3,
            "model.widths": (4, 6, 8),
            "model.strides": (1, 1, 1),
            "model.pools": (2, 2, 2),
            "model.pool_strides": (2, 1, 1),
            "model.fc_widths": (16, 8),
            "data.plane": "sagittal",  # 10 slices of 32 x 32
            "data.patches.size": 16,
            "data.patches.stride": 8,
            "data.patches.label_rule": "centre",
            "data.test_fraction": 0.25,
            "data.val_fraction": 0.3,
            "optim.decay_every_epochs": 1,
            "augment.geometry": False,
            "augment.intensity": False,
            "train.steps": 7,
            "train.batch_size": 24,
            "train.eval_every_epochs": 1,
            "train.log_every_steps": 1,
            **changes,
        }
    )
    return config


def together(config, settings, workdir, stop=None):
    """Train `settings` at once."""
    task = build_task(config, axis_name=parallel.AXIS)
    feed = task.feed(run_cases.prepare(config, workdir, wanted=("train", "val")))
    mapped = parallel.make_parallel(config.train.parallel, 1)
    stop = signals.Stop() if stop is None else stop
    return search.train(config, settings, task, feed, mapped, stop=stop)


def assert_is_what_it_is_alone(trained, k, config, setting, workdir):
    """Train member k by the loop, and compare parameters, losses and the best evaluation."""
    config = config.copy_and_resolve_references()
    config.optim.update(setting._asdict())
    result = loop.train(config, workdir, devices=1)
    lines = log.read_metrics(workdir)
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == config.train.steps
    np.testing.assert_allclose(trained.losses[:, k], losses, rtol=1e-4)
    for name in ("params", "batch_stats", "ema"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[k], b, rtol=1e-3, atol=2e-5),
            getattr(trained.state, name),
            getattr(result.state, name),
        )
    evaluations = [line for line in lines if line["kind"] == "val"]
    assert len(evaluations) > 1
    by_loss = config.train.best == "loss"
    best = min(evaluations, key=lambda x: x["loss"] if by_loss else -x["dice"])
    outcome = trained.outcomes[k]
    assert (outcome.finite, outcome.step) == (True, best["step"])
    for name in ("loss", "dice", "accuracy"):
        assert getattr(outcome, name) == pytest.approx(best[name], rel=1e-4), name


@pytest.mark.parametrize(("batch_size", "augmented"), [(24, True), (12, False)])
def test_op_convnet_in_a_population_is_what_it_is_alone(scans, tmp_path, batch_size, augmented):
    changes = {
        "train.batch_size": batch_size,
        "augment.geometry": augmented,
        "augment.intensity": augmented,
    }
    config = patch_config(scans, **changes)
    trained = together(config, SETTINGS, tmp_path / "together")
    assert trained.losses.shape == (7, 2)
    for k, setting in enumerate(SETTINGS[: 1 if augmented else 2]):
        assert_is_what_it_is_alone(trained, k, config, setting, tmp_path / str(k))


def test_clipping_microbatches_average_and_warmup_are_each_members_own(scans, tmp_path):
    changes = {
        "optim.clip_norm": 0.3,
        "optim.accumulate_steps": 2,
        "optim.ema_decay": 0.5,
        "optim.warmup_steps": 2,
        "optim.schedule": "cosine",
        "train.best": "dice",
        "train.parallel": "shard_map",
    }
    config = patch_config(scans, **changes)
    trained = together(config, SETTINGS, tmp_path / "together")
    assert_is_what_it_is_alone(trained, 0, config, SETTINGS[0], tmp_path / "alone")


def test_batch_norm_and_adam_in_slice_segmentation(scans, tmp_path):
    changes = {"model.norm": "batch", "optim.name": "adamw", "optim.ema_decay": 0.0}
    small = {
        "train.steps": 6,
        "model.widths": (2, 4),
        "augment.geometry": False,
        "augment.intensity": False,
    }
    config = tiny_config(scans, **changes, **small)
    settings = [Setting(1e-3, 0.0, 0.1), Setting(3e-4, 0.0, 0.0)]
    trained = together(config, settings, tmp_path / "together")
    assert_is_what_it_is_alone(trained, 0, config, settings[0], tmp_path / "alone")
    config.train.init_from = str(tmp_path / "alone")
    further = together(config, settings[:1], tmp_path / "together")
    assert further.losses[0, 0] < trained.losses[0, 0]
    assert_is_what_it_is_alone(further, 0, config, settings[0], tmp_path / "further")


def test_a_member_that_diverges_disturbs_no_other(scans, tmp_path):
    config = patch_config(scans)
    wild = Setting(1e6, 0.9, 0.0)
    calm = together(config, [*SETTINGS, SETTINGS[0]], tmp_path)
    mixed = together(config, [*SETTINGS, wild], tmp_path)
    assert mixed.outcomes[:2] == calm.outcomes[:2]
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[:2], b[:2]),
        mixed.state.params,
        calm.state.params,
    )
    bad = mixed.outcomes[2]
    # The step is the one that the loop names.
    config.optim.update(wild._asdict())
    with pytest.raises(InputError, match=f"diverged at step {bad.step}:"):
        loop.train(config, tmp_path / "alone")
    assert (bad.finite, bad.loss) == (False, np.inf)
    assert search.merit(bad, "loss") == search.merit(bad, "dice") == -np.inf


def test_it_ends_when_all_have_diverged_or_it_is_told_to(scans, tmp_path):
    config = patch_config(scans, **{"train.steps": 1000})
    trained = together(config, [Setting(1e30, 0.9, 0.0)] * 2, tmp_path)
    assert not any(outcome.finite for outcome in trained.outcomes)
    assert len(trained.losses) < 1000

    class StopAt(signals.Stop):
        def agreed(self, at: int) -> bool:
            return at >= 2

    assert together(config, SETTINGS, tmp_path, stop=StopAt()) is None


@pytest.mark.parametrize("schedule", optim.SCHEDULES)
@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_optimisers_take_traced_numbers(name, schedule):
    """One update of each of several settings, mapped, against the plain numbers."""
    fields = dict(
        name=name,
        schedule=schedule,
        warmup_steps=1,
        scale_rate="none",
        decay_every_epochs=0.5,
        decay_factor=0.5,
        clip_norm=1.0,
    )
    params = {"kernel": np.array([[0.3, -0.7]], np.float32), "bias": np.ones(2, np.float32)}
    gradients = [jax.tree.map(lambda p, t=t: np.sin(p + t), params) for t in range(4)]

    def updated(setting):
        _, optimizer = optim.build(
            {**fields, **setting._asdict()}, batch_size=8, total_steps=8, steps_per_epoch=4
        )
        state, p = optimizer.init(params), params
        for gradient in gradients:
            change, state = optimizer.update(gradient, state, p)
            p = jax.tree.map(lambda a, b: a + b, p, change)
        return p

    settings = [Setting(0.1, 0.9, 0.01), Setting(0.2, 0.0, 0.0)]
    mapped = jax.vmap(updated)(Setting(*map(np.float32, zip(*settings, strict=True))))
    for k, setting in enumerate(settings):
        jax.tree.map(
            lambda a, b, k=k: np.testing.assert_allclose(a[k], b, rtol=1e-5),
            mapped,
            updated(setting),
        )
