"""Phantoms drawn inside the training step."""

import inspect
from functools import partial
from itertools import islice, pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spinejax import schema
from spinejax.configs import opconvnet, phantom_to_real
from spinejax.errors import InputError
from spinejax.phantom import anatomy, online, samples
from spinejax.phantom.online import StreamFeed
from spinejax.phantom.person.anatomy import RATES
from spinejax.training import checkpoint, loop, parallel, step
from tests.support.tiny_run import tiny_config


def _slice(key: jax.Array) -> dict[str, jax.Array]:
    """A slice that is cheap to compile."""
    label = jax.random.bernoulli(key, 0.3, (16, 16)).astype(jnp.int32)
    stats = jnp.array([0.0, 1.0, -1.0, 1.0])
    return {"image": 400.0 * label, "label": label, "stats": stats}


def _patches(monkeypatch) -> online.Stream:
    """The stream of patches, from cheap slices: 4 of each, for 3 updates in a row."""
    monkeypatch.setattr(samples, "slice_sample", lambda key, subject=None, *, how: _slice(key))
    monkeypatch.setattr(samples, "PATCHES_PER_SLICE", 4)
    config = _streaming(**{"data.phantom.updates_per_slice": 3})
    return online.of_patches(config, side=8, margin=0)


def _samples(stream: online.Stream, at: int, positions: jax.Array, seed: int = 0) -> dict:
    keys = {name: step.named_key(seed, name) for name in ("stream", "cut")}
    return jax.device_get(step.streamed(stream, keys, at, {"position": positions}))


def test_patches_are_drawn_in_groups_that_depend_on_their_number_alone(monkeypatch):
    stream = _patches(monkeypatch)
    whole = _samples(stream, 0, jnp.arange(12))
    assert whole["image"].shape == (12, 8, 8) and whole["stats"].shape == (12, 4)
    part = _samples(stream, 0, jnp.arange(4, 12))
    np.testing.assert_array_equal(part["label"], whole["label"][4:])
    assert (whole["label"][0] != whole["label"][1]).any()


def test_updates_in_a_row_cut_other_patches_from_the_same_slices(monkeypatch):
    stream, drawn = _patches(monkeypatch), []
    draw = lambda key, at: drawn.append(jax.random.key_data(key)) or stream.draw(key, at)  # noqa: E731
    cut = [_samples(stream._replace(draw=draw), at, jnp.arange(8))["label"] for at in range(7)]
    keys = [tuple(np.asarray(key).tolist()) for key in drawn]
    assert keys[0] == keys[1] == keys[2] != keys[3] == keys[4] == keys[5] != keys[6]
    assert all((a != b).any() for a, b in pairwise(cut))


def test_processes_take_runs_of_positions_that_make_up_the_batch():
    feed = StreamFeed(None, batch_size=8, per_epoch=3, spacing_mm=(1.0, 1.0))
    shares = [feed.train(start_step=5, process_index=p, process_count=2) for p in range(2)]
    batches = [next(share) for share in shares]
    np.testing.assert_array_equal(np.concatenate([b["position"] for b in batches]), np.arange(8))
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in batches]), np.arange(40, 48))
    later = next(shares[0])
    assert list(later["index"]) == [48, 49, 50, 51] and list(later["step"]) == [6] * 4
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
    stream = online.Stream(partial(samples.batch_of, _slice))
    monkeypatch.setattr(online, "of_slices", lambda config: stream)
    straight = loop.train(_streaming(**{"train.steps": 6}), tmp_path / "a")
    stop = loop.Stop()
    config = _streaming(**{"train.steps": 6})
    monkeypatch.setattr(StreamFeed, "train", _stopping_before(3, stop))
    first = loop.train(config, tmp_path / "b", stop=stop)
    assert first.interrupted and first.step < 6
    second = loop.train(config, tmp_path / "b")
    assert second.step == straight.step == 6
    ends = [checkpoint.load_for_inference(tmp_path / n, "latest")[1] for n in "ab"]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert not (tmp_path / "a" / "phantoms").exists()
    assert not list((tmp_path / "a").rglob("*.nii.gz"))


def _stopping_before(number: int, stop: loop.Stop):
    """Return `StreamFeed.train`; a run from the start is asked to stop at this batch."""
    train = StreamFeed.train

    def interrupted(self, **kwargs):
        for at, batch in enumerate(train(self, **kwargs)):
            if at == number and kwargs["start_step"] == 0:
                stop.request()
            yield batch

    return interrupted


@pytest.mark.parametrize("kind", parallel.KINDS)
def test_training_on_patches_draws_slices_once_for_several_updates(tmp_path, monkeypatch, kind):
    drawn = []

    def slice_sample(
        key: jax.Array, subject: jax.Array | None = None, *, how: samples.Sampling
    ) -> dict[str, jax.Array]:
        jax.debug.callback(lambda data: drawn.append(data.tolist()), jax.random.key_data(key))
        return _slice(key)

    monkeypatch.setattr(samples, "slice_sample", slice_sample)
    config = opconvnet.get_config("debug")
    config.data.update(source="phantom_stream", size=(16, 16))
    config.data.phantom.update(cases=0, updates_per_slice=3)
    config.train.update(steps=7, batch_size=32, eval_every_epochs=100.0, parallel=kind)

    def train(name: str, **how):
        drawn.clear()
        ended = loop.train(config, tmp_path / name, devices=1, **how)
        jax.effects_barrier()
        return ended, len(drawn)

    straight, count = train("straight")
    assert count == 3 * 2  # 2 slices of 16 patches each, 3 times
    stop = loop.Stop()
    with monkeypatch.context() as patch:
        patch.setattr(StreamFeed, "train", _stopping_before(5, stop))
        first, _ = train("resumed", stop=stop)
    assert first.interrupted and first.step % 3  # between updates that share slices
    second, _ = train("resumed")
    # Where a call makes several updates, each draws for itself, and gets the same.
    monkeypatch.setattr(loop, "ONE_BY_ONE", ())
    config.train.steps_per_call = 2
    each, count = train("each")
    assert count == 7 * 2
    for other in (second, each):
        jax.tree.map(np.testing.assert_array_equal, straight.state.params, other.state.params)


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


def _of_subject(key: jax.Array, subject: jax.Array | None = None, *, how: samples.Sampling):
    """A slice whose image tells of its subject and of its key, without a phantom."""
    del how
    number = jax.random.uniform(key) if subject is None else subject[0] / 2.0**32
    label = jax.random.bernoulli(key, 0.3, (16, 16)).astype(jnp.int32)
    image = 400.0 * label + 100.0 * number
    return {"image": image, "label": label, "stats": jnp.array([0.0, 1.0, -1.0, 1.0])}


def _numbers(key: jax.Array, positions: np.ndarray, how: samples.Sampling) -> np.ndarray:
    """Rows from which `_of_subject` takes the number that it would draw itself."""
    del how
    one = lambda p: jax.random.uniform(jax.random.fold_in(key, p)) * 2.0**32  # noqa: E731
    # As 32 bits: the numbers have 23.
    return np.asarray(jax.vmap(one)(positions))[:, None].astype(np.uint32)


@pytest.mark.parametrize("kind", parallel.KINDS)
@pytest.mark.parametrize(("patches", "per_call"), [(False, 1), (False, 2), (True, 1), (True, 2)])
def test_each_sample_gets_its_own_subject(monkeypatch, kind, patches, per_call):
    """With the rows that `putter` adds, a step has the samples that it would draw by itself."""
    monkeypatch.setattr(samples, "slice_sample", _of_subject)
    monkeypatch.setattr(samples, "subject_rows", _numbers)
    monkeypatch.setattr(samples, "PATCHES_PER_SLICE", 4)
    config = _streaming(**{"data.phantom.updates_per_slice": 3})
    stream = online.of_patches(config, side=8, margin=0) if patches else online.of_slices(config)
    put = loop.putter(stream, parallel.make_parallel(kind, 1), 5, per_call)
    batches = StreamFeed(None, batch_size=8, per_epoch=3, spacing_mm=(1.0, 1.0)).train(start_step=2)
    keys = {name: step.named_key(5, name) for name in ("stream", "cut")}
    seen = set()
    for first in range(2, 8, per_call):
        rows = put(loop.stacked(list(islice(batches, per_call))))
        if kind == "pmap":
            rows = jax.tree.map(lambda x: x[0], rows)  # that of the only device
        for update in range(per_call):
            at = first + update
            given = jax.tree.map(lambda x, u=update: x[:, u], rows)
            assert ("drawn" if patches and per_call == 1 else "subject") in given
            found = step.streamed(stream, keys, at, given)["image"]
            np.testing.assert_array_equal(found, _samples(stream, at, jnp.arange(8), 5)["image"])
            seen.add(np.asarray(found).tobytes())
    assert len(seen) == 6
