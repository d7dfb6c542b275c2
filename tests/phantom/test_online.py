"""Phantoms drawn inside the training step."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinejax import schema
from spinejax.configs import phantom_to_real
from spinejax.errors import InputError
from spinejax.phantom import anatomy, online, samples
from spinejax.phantom.online import StreamFeed
from spinejax.phantom.person.anatomy import RATES
from spinejax.training import checkpoint, loop, parallel
from tests.support.tiny_run import tiny_config


def _stub(group: int = 1) -> online.Stream:
    """A stream that is cheap to compile."""

    def one(key: jax.Array) -> dict[str, jax.Array]:
        shape = (group, 16, 16) if group > 1 else (16, 16)
        label = jax.random.bernoulli(key, 0.3, shape).astype(jnp.int32)
        stats = jnp.broadcast_to(jnp.array([0.0, 1.0, -1.0, 1.0]), (*shape[:-2], 4))
        return {"image": 400.0 * label, "label": label, "stats": stats}

    return online.Stream(partial(samples.batch_of, one, group=group), group)


def test_groups_are_drawn_whole_and_depend_on_their_number_alone():
    draw = _stub(4).draw
    whole = draw(jax.random.key(0), jnp.arange(12))
    assert whole["image"].shape == (12, 16, 16) and whole["stats"].shape == (12, 4)
    part = draw(jax.random.key(0), jnp.arange(4, 12))
    np.testing.assert_array_equal(part["label"], whole["label"][4:])
    assert (whole["label"][0] != whole["label"][1]).any()


def test_processes_take_runs_of_positions_that_make_up_the_batch():
    feed = StreamFeed(None, batch_size=8, per_epoch=3, spacing_mm=(1.0, 1.0))
    shares = [feed.train(start_step=5, process_index=p, process_count=2) for p in range(2)]
    batches = [next(share) for share in shares]
    np.testing.assert_array_equal(np.concatenate([b["position"] for b in batches]), np.arange(8))
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in batches]), np.arange(40, 48))
    assert list(next(shares[0])["index"]) == [48, 49, 50, 51]
    assert feed.record() == {} and list(feed.val()) == [] and len(feed.val_cases) == 0


def _streaming(**changes: object):
    return tiny_config(
        "unused",
        **{
            "data.source": "phantom_stream",
            "data.phantom.cases": 0,
            "data.size": (16, 16),
            "model.dropout": 0.0,
            "train.eval_every_epochs": 100,
            **changes,
        },
    )


def test_training_on_a_stream_needs_no_files_and_resumes_bitwise(tmp_path, monkeypatch):
    monkeypatch.setattr(online, "of_slices", lambda config: _stub())
    straight = loop.train(_streaming(**{"train.steps": 6}), tmp_path / "a")
    stop = loop.Stop()
    config = _streaming(**{"train.steps": 6})
    real = StreamFeed.train

    def interrupted(self, **kwargs):
        for number, batch in enumerate(real(self, **kwargs)):
            if number == 3 and kwargs["start_step"] == 0:
                stop.request()
            yield batch

    monkeypatch.setattr(StreamFeed, "train", interrupted)
    first = loop.train(config, tmp_path / "b", stop=stop)
    assert first.interrupted and first.step < 6
    second = loop.train(config, tmp_path / "b")
    assert second.step == straight.step == 6
    ends = [checkpoint.load_for_inference(tmp_path / n, "latest")[1] for n in "ab"]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert not (tmp_path / "a" / "phantoms").exists()
    assert not list((tmp_path / "a").rglob("*.nii.gz"))


def test_a_batch_of_patches_must_hold_whole_groups():
    mapped = parallel.make_parallel("pmap", 1)
    mapped.check_batch(32, 2, 16)
    with pytest.raises(InputError, match="groups of 16 drawn together; use 32 or 48"):
        mapped.check_batch(40, 1, 16)


def test_each_step_of_the_ablation_adds_one_thing():
    found = []
    for name in phantom_to_real.STEPS:
        config = phantom_to_real.get_config(f"step={name}")
        schema.check(config)
        how = online.sampling(config, (8, 8))
        found.append((how.distractors, how.acquisition, config.augment.intensity))
    assert found == [
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, True, True),
    ]
    with pytest.raises(ValueError, match="one of anatomy, distractors, acquisition, intensity"):
        phantom_to_real.get_config("step=all")
    paper = phantom_to_real.get_config("paper_size")
    assert paper.model.widths == (24, 48, 96, 192) and paper.data.preprocess.spacing_mm == 1.0


def test_rates_reach_the_persons_that_are_drawn(monkeypatch):
    config = phantom_to_real.get_config()
    config.data.phantom.rates.t13 = 1.0
    schema.check(config)
    asked = dict(online.sampling(config, (8, 8)).rates)
    assert asked["t13"] == 1.0 and set(asked) == set(RATES)
    defaults = inspect.signature(anatomy).parameters
    shared = schema.defaults()["data"]["phantom"]["rates"]
    assert {name: defaults[name].default for name in RATES} == shared
    config.data.phantom.rates.l6 = 1.5
    with pytest.raises(InputError, match="data.phantom.rates.l6"):
        schema.check(config)
