"""The batch of a run: of all devices or of each, kept when it resumes, checked before it trains."""

import jax
import pytest

from spinejax import schema, tasks
from spinejax.errors import InputError
from spinejax.files import write_text
from spinejax.training import loop, parallel, pipeline, run_folder
from tests.support.pipeline_run import pipeline_config
from tests.support.tiny_run import tiny_config

EACH = "train.batch_size_per_device"


@pytest.mark.parametrize(("each", "devices", "size"), [(0, 8, 4), (3, 1, 3), (3, 8, 24)])
def test_the_batch_of_each_device_wins(each, devices, size):
    config = tiny_config("", **{EACH: each})
    assert schema.batch_size(config.train, devices) == size
    assert loop.with_batch(config, devices=devices).train.batch_size == size
    assert config.train.batch_size == 4


def test_a_batch_that_is_too_large_is_refused():
    config = tiny_config("", **{EACH: 65536})
    with pytest.raises(InputError, match="65536 on 2 devices is a batch of 131072 samples"):
        loop.with_batch(config, devices=2)
    config.data.size = (512, 512)
    with pytest.raises(InputError, match="train.batch_size_per_device=65536 inputs of 512x512"):
        tasks.check(config)


def test_a_resumed_run_keeps_its_batch(tmp_path):
    config = tiny_config("", **{EACH: 3})
    run_folder.write_config(tmp_path, loop.with_batch(config, devices=8))
    assert loop.with_batch(config, tmp_path, devices=2).train.batch_size == 6  # nothing has begun
    write_text(tmp_path / "DONE", "12 steps\n", "run")
    resumed = loop.with_batch(config, tmp_path, devices=2)
    assert resumed.train.batch_size == 24
    for each, size in ((12, 24), (4, 8)):
        other = loop.with_batch(tiny_config("", **{EACH: each}), tmp_path, devices=2)
        assert other.train.batch_size == size
        if size == 24:
            run_folder.check_same(run_folder.read_config(tmp_path), other, tmp_path)
        else:
            with pytest.raises(InputError, match=r"train\.batch_size \(there 24, now 8\)"):
                run_folder.check_same(run_folder.read_config(tmp_path), other, tmp_path)


def test_a_rule_for_the_rate_needs_the_batch_that_the_rate_is_meant_for():
    config = tiny_config("", **{"optim.scale_rate": "linear"})
    with pytest.raises(InputError, match="linear needs optim.base_batch_size"):
        tasks.check(config)


def test_batch_and_rate_are_said():
    config = tiny_config(
        "",
        **{
            "train.batch_size": 32,
            "optim.learning_rate": 0.001,
            "optim.scale_rate": "linear",
            "optim.base_batch_size": 8,
            "optim.warmup_steps": 100,
        },
    )
    assert loop._batch_and_rate(config, 8) == (
        "batch: 32 samples, 4 on each of 8 devices; learning rate: 0.004 (0.001 for 8, linear) "
        "after 100 steps of warm-up"
    )


def test_other_devices_and_what_they_change_are_said():
    config = tiny_config("", **{"train.batch_size": 32})
    assert not loop._changed_devices(config, (8, 2), (8, 2), 5)
    text = loop._changed_devices(config, (8, 1), (4, 2), 5)
    assert "8 devices of 1 process, and" in text and "4 devices of 2 processes" in text
    assert "the same 32 samples, now 8 on a device (was 4); rounding and which" in text
    config.optim.accumulate_steps = 2
    assert "accumulate_steps) differ" in loop._changed_devices(config, (8, 1), (4, 1), 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.batch_size": 2}, r"vertebrae\.train\.batch_size=2 does not divide by 4 devices"),
        ({"optim.warmup_steps": 240}, r"vertebrae\.optim\.warmup_steps=240 leaves no step"),
        ({"data.edition": "verse20"}, r".* has no scan of data\.edition=verse20"),
        ({"train.init_from": "/nowhere"}, r"vertebrae\.train\.init_from=/nowhere"),
    ],
)
def test_the_second_network_is_refused_before_the_first_trains(
    changes, message, block_scans, tmp_path, monkeypatch
):
    config = pipeline_config(block_scans)
    config.vertebrae.train.batch_size = 4
    config.vertebrae.update_from_flattened_dict(changes)
    four = parallel.Parallel("pmap", tuple(jax.devices()[:1]) * 4)
    monkeypatch.setattr(parallel, "make_parallel", lambda *_: four)
    with pytest.raises(InputError, match=f"^{message}"):
        pipeline.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_runs_that_pretrain_are_refused_before_the_first_trains(tmp_path, monkeypatch):
    from spinejax.configs import opconvnet

    config = opconvnet.get_config("debug,net=padbn")
    config.data.root = str(tmp_path / "nowhere")
    config.train.steps = 4
    config.optim.warmup_steps = 4
    checked = []
    original = loop.check

    def check(one, place, **how):
        checked.append((place.name, how["later"]))
        original(one, place, **{**how, "later": True})

    monkeypatch.setattr(loop, "check", check)
    with pytest.raises(InputError, match="^rbm_1: optim.warmup_steps=4 leaves no step"):
        pipeline.train(config, tmp_path / "run")
    assert checked == [("rbm_1", False)]
    assert not (tmp_path / "run").exists()
