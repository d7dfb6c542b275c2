"""Pipelines that share their first network: it is trained once, and nothing else changes."""

import json
import threading

import numpy as np
import pytest

from spinejax import schema
from spinejax.training import checkpoint, pipeline, run_folder
from spinejax.training.signals import Stop
from tests.support.pipeline_run import pipeline_config


def small(root, seed_of_names=5e-3):
    """Return a pipeline of a few steps."""
    config = pipeline_config(root)
    config.train.steps = 6
    config.vertebrae.train.steps = 3
    config.vertebrae.train.log_every_steps = 1
    config.vertebrae.optim.learning_rate = seed_of_names
    return config


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(one["step"], one["loss"]) for one in map(json.loads, lines) if one["kind"] == "train"]


def parameters(folder):
    import jax

    _, variables = checkpoint.load_for_inference(folder, "latest")
    return [np.asarray(leaf) for leaf in jax.tree.leaves(variables)]


@pytest.fixture(scope="module")
def undisturbed(block_scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    pipeline.train(small(block_scans), folder)
    return folder


def test_the_first_network_is_trained_once_and_taken_twice(block_scans, undisturbed, tmp_path):
    shared, folders = tmp_path / "first", [tmp_path / "a", tmp_path / "b"]
    pipeline.train(small(block_scans), folders[0], first=shared)
    record = (shared / "run.json").read_bytes()
    pipeline.train(small(block_scans, 1e-3), folders[1], first=shared)
    assert (shared / "run.json").read_bytes() == record  # no second start
    assert not (shared / schema.SECOND).exists()
    assert schema.SECOND not in run_folder.read_config(shared)
    for folder in folders:
        assert losses(folder) == losses(shared) == losses(undisturbed)
        for got, expected in zip(parameters(folder), parameters(undisturbed), strict=True):
            np.testing.assert_array_equal(got, expected)
        assert schema.SECOND in run_folder.read_config(folder)
        assert run_folder.finished_step(folder) == 6
        assert run_folder.finished_step(folder / schema.SECOND) == 3
    second = [losses(folder / schema.SECOND) for folder in folders]
    assert second[0] == losses(undisturbed / schema.SECOND) != second[1]


def test_a_run_that_has_begun_goes_on_in_its_own_folder(block_scans, undisturbed, tmp_path):
    shared = tmp_path / "first"
    result = pipeline.train(small(block_scans), undisturbed, first=shared)
    assert result.step == 3 and not shared.exists()


def test_a_copy_that_was_cut_short_is_made_anew(block_scans, undisturbed, tmp_path):
    config, shared, folder = small(block_scans), tmp_path / "first", tmp_path / "a"
    own = config.copy_and_resolve_references()
    del own[schema.SECOND]
    pipeline.train(own, shared)
    # A kill between two files: the log is there, the checkpoints are not.
    with run_folder.alone(folder):
        run_folder.write_config(folder, config)
    (folder / "metrics.jsonl").write_text("{}\n")
    pipeline.train(config, folder, first=shared)
    assert losses(folder) == losses(undisturbed)
    assert losses(folder / schema.SECOND) == losses(undisturbed / schema.SECOND)


def test_others_wait_until_it_is_trained_or_they_are_asked_to_stop(
    block_scans, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(pipeline, "_LOOK_S", 0.05)
    shared, stop = tmp_path / "first", Stop()
    results = []

    def train():
        results.append(pipeline.train(small(block_scans), tmp_path / "a", first=shared, stop=stop))

    with run_folder.alone(shared):  # another process holds the lock
        waiting = threading.Thread(target=train)
        waiting.start()
        waiting.join(2)
        assert waiting.is_alive() and not results
        stop.request()
        waiting.join(60)
    [result] = results
    assert result.interrupted and not (tmp_path / "a").exists()
