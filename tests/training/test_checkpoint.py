"""Saving and restoring: what is kept, and what happens to what is broken."""

import json
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

from spinejax.errors import InputError
from spinejax.sweep_state import LOCK, take_lock
from spinejax.training import checkpoint
from spinejax.training.checkpoint import Checkpoints, Meta
from spinejax.training.state import TrainState, create_state

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.constant_schedule(1e-3)))


def state_at(step: int, *, ema: bool = True, width: int = 50) -> TrainState:
    rng = np.random.default_rng(step)
    variables = {
        "params": {"conv": {"kernel": jnp.asarray(rng.normal(size=(30, width)), jnp.float32)}},
        "batch_stats": {"norm": {"mean": jnp.asarray(rng.normal(size=width), jnp.float32)}},
    }
    state = create_state(variables, OPTIMIZER, ema=ema)
    _, opt_state = OPTIMIZER.update(state.params, state.opt_state, state.params)
    average = jax.tree.map(lambda p: p / 2, state.params) if ema else None
    return state.replace(step=jnp.int32(step), opt_state=opt_state, ema=average)


def save(workdir: Path, *steps: int, best: tuple[int, ...] = ()) -> None:
    (workdir / "config.json").write_text(json.dumps({"name": "test", "size": [3, 4]}))
    with Checkpoints(workdir) as checkpoints:
        for step in steps:
            meta = Meta(step, True, step / 100, 1)
            checkpoints.save(state_at(step), meta, best=step in best)


def restore(workdir: Path, like: TrainState | None = None):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(state_at(0) if like is None else like)


def equal(a: object, b: object) -> bool:
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    return all(jax.tree.leaves(same))


def kept(workdir: Path, which: str) -> list[str]:
    return sorted(p.name for p in checkpoint.folder(workdir, which).iterdir())


def damage(folder: Path) -> None:
    """Flip bytes of the stored arrays, leaving every file and its length."""
    for file in folder.rglob("*"):
        if file.is_file() and "/d/" in str(file):
            data = bytearray(file.read_bytes())
            for i in range(0, len(data), 7):
                data[i] ^= 0x55
            file.write_bytes(bytes(data))


def test_a_save_returns_before_it_is_on_disk(tmp_path, monkeypatch):
    go, write = threading.Event(), Checkpoints._write

    def held(*args):
        assert go.wait(60)
        write(*args)

    monkeypatch.setattr(Checkpoints, "_write", held)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(1), Meta(1, True, 0.5, 1), best=True)
        assert kept(tmp_path, "best") == kept(tmp_path, "latest") == []
        go.set()
        checkpoints.wait()
        for which in checkpoint.FOLDERS:
            assert (checkpoint.folder(tmp_path, which) / "1" / "crc32.json").is_file()


def test_a_save_that_failed_in_the_background_is_noticed_before_the_next(tmp_path, monkeypatch):
    go = threading.Event()

    def fails(*_):
        assert go.wait(60)
        raise InputError("the disk is full")

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.check()  # nothing was saved
        monkeypatch.setattr(checkpoints, "_write", fails)
        checkpoints.save(state_at(1), Meta(1, True, 0.5, 1), best=False)
        checkpoints.check()  # does not wait
        go.set()
        with pytest.raises(InputError, match="the disk is full"):
            while True:
                checkpoints.check()
        checkpoints.check()  # was said


def test_a_save_leaves_the_question_whether_to_stop_to_the_training_loop(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_at(3), Meta(3, True, 0.5, 1), best=True)
    assert not asked


def test_a_state_comes_back_bit_for_bit_with_its_types(tmp_path):
    save(tmp_path, 7)
    state, meta = restore(tmp_path)
    assert equal(state, state_at(7))
    assert jax.tree.structure(state) == jax.tree.structure(state_at(7))
    assert meta == Meta(7, True, 0.07, 1)


def test_nothing_saved_restores_nothing(tmp_path):
    assert restore(tmp_path) is None


def test_two_latest_and_the_best_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, best=(1, 3))
    assert kept(tmp_path, "latest") == ["4", "5"]
    assert kept(tmp_path, "best") == ["3"]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best() == Meta(3, True, 0.03, 1)


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    state = jax.jit(lambda s: s)(state_at(1))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, Meta(1, True, None, 1), best=False)
        jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state)
    assert equal(restore(tmp_path)[0], state_at(1))


@pytest.mark.parametrize("how", ["gutted", "flipped bytes", "meta cut"])
def test_a_broken_step_is_passed_over_and_written_again(tmp_path, how, caplog):
    save(tmp_path, 1, 2)
    broken = checkpoint.folder(tmp_path, "latest") / "2"
    if how == "gutted":
        shutil.rmtree(broken / "variables")
        (broken / "_CHECKPOINT_METADATA").unlink()
    elif how == "meta cut":
        file = broken / "meta" / "metadata"
        file.write_text(file.read_text()[:20])
    else:
        damage(broken)
    state, meta = restore(tmp_path)
    assert meta.step == 1 and equal(state, state_at(1))
    assert "trying an older one" in caplog.text
    save(tmp_path, 2)
    assert restore(tmp_path)[1].step == 2
    assert kept(tmp_path, "latest") == ["1", "2"]


@pytest.mark.parametrize("text", ["[1]", "3", "[" * 100_000, '{"init_timestamp_nsecs": {}}'])
def test_metadata_that_orbax_cannot_open_is_one_line(tmp_path, text):
    save(tmp_path, 1, 2)
    step = checkpoint.folder(tmp_path, "latest") / "2"
    (step / "_CHECKPOINT_METADATA").write_text(text)
    with pytest.raises(InputError, match=r"latest/2 is damaged .*; move it away") as info:
        restore(tmp_path)
    assert "\n" not in str(info.value)
    shutil.rmtree(step)
    assert restore(tmp_path)[1].step == 1


def test_no_whole_step_is_one_line_that_names_the_folder(tmp_path):
    save(tmp_path, 1, 2)
    for step in ("1", "2"):
        damage(checkpoint.folder(tmp_path, "latest") / step)
    with pytest.raises(InputError, match=r"checkpoints/latest/1 .*remove .*checkpoints to") as info:
        restore(tmp_path)
    assert "\n" not in str(info.value)
    with pytest.raises(InputError, match="checkpoints/latest/1 .*train again"):
        checkpoint.load_for_inference(tmp_path)


def test_a_state_of_another_network_is_refused(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(InputError, match="belongs to another network"):
        restore(tmp_path, state_at(0, width=51))


def test_leftovers_of_a_kill_are_removed(tmp_path):
    save(tmp_path, 1)
    latest = checkpoint.folder(tmp_path, "latest")
    (latest / "2.orbax-checkpoint-tmp").mkdir()
    (latest / "_todelete" / "0").mkdir(parents=True)
    assert restore(tmp_path)[1].step == 1
    assert kept(tmp_path, "latest") == ["1"]


def test_inference_gets_the_average_of_the_best_with_tuples_in_its_config(tmp_path):
    save(tmp_path, 1, 2, 3, best=(2,))
    config, variables = checkpoint.load_for_inference(tmp_path)
    assert config.size == (3, 4)
    assert equal(variables["params"], state_at(2).ema)
    assert equal(variables["batch_stats"], state_at(2).batch_stats)
    _, variables = checkpoint.load_for_inference(tmp_path, "latest")
    assert equal(variables["params"], state_at(3).ema)


def test_a_step_whose_checksums_are_just_being_written_is_read(tmp_path):
    save(tmp_path, 1)
    step = checkpoint.folder(tmp_path, "latest") / "1"
    # A training that goes on renames its temporary file between a reader's look and its copy.
    (step / ".tmp-0-crc32.json").symlink_to(step / "gone")
    with (tmp_path / LOCK).open("wb") as file:
        assert take_lock(file)
        _, variables = checkpoint.load_for_inference(tmp_path, "latest")
    assert equal(variables["params"], state_at(1).ema)


def test_inference_without_a_best_takes_the_latest(tmp_path):
    save(tmp_path, 1)
    _, variables = checkpoint.load_for_inference(tmp_path, "best")
    assert equal(variables["params"], state_at(1).ema)


def test_a_folder_that_is_no_run_or_has_no_checkpoint_is_one_line(tmp_path):
    with pytest.raises(InputError, match="is not the folder of a run"):
        checkpoint.load_for_inference(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no checkpoint yet"):
        checkpoint.load_for_inference(tmp_path)
    for damaged in ('{"a": ', "[]"):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(InputError, match="config.json is damaged"):
            checkpoint.load_for_inference(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(InputError, match="checkpoint cannot be written"):
        Checkpoints(tmp_path)
