"""Training that begins with the weights of a trained model."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open

import spinejax
from spinejax.config_files import get_config
from spinejax.errors import InputError
from spinejax.predictor import export
from spinejax.tasks import build_task
from spinejax.training import checkpoint, loop, model_file, run_folder, step
from spinejax.training.signals import Stop
from tests.support.pipeline_run import pipeline_config
from tests.support.tiny_run import tiny_config, write_scans


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    return write_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def earlier(scans, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("earlier")
    loop.train(tiny_config(scans, **{"train.steps": 4}), workdir)
    return workdir


def best(workdir):
    return checkpoint.load_for_inference(workdir, "best")[1]


def config_from(scans, earlier, **changes):
    """One step that moves nothing by more than 1e-6."""
    fields = {"train.steps": 1, "optim.learning_rate": 1e-7, "optim.ema_decay": 0.0}
    return tiny_config(scans, **{**fields, "train.init_from": str(earlier), **changes})


def test_it_begins_with_the_best_weights_of_the_other_run(scans, earlier, tmp_path):
    loop.train(config_from(scans, earlier), tmp_path / "from")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        best(tmp_path / "from")["params"],
        best(earlier)["params"],
    )
    random = config_from(scans, "")
    loop.train(random, tmp_path / "random")
    kernel = next(iter(jax.tree.leaves(best(tmp_path / "random")["params"])))
    assert np.abs(kernel - next(iter(jax.tree.leaves(best(earlier)["params"])))).max() > 1e-3


def test_a_run_and_its_file_say_with_which_training_it_began(scans, earlier, tmp_path):
    loop.train(config_from(scans, earlier, **{"name": "second", "seed": 5}), tmp_path / "second")
    file = export(tmp_path / "second.spinejax", tmp_path / "second")
    loop.train(config_from(scans, file), tmp_path / "third")
    third = run_folder.recorded_training(tmp_path / "third")
    second = third["initial"]
    assert (second["config"], second["seed"], second["steps"]) == ("second", 5, 1)
    assert second["initial"]["steps"] == 4
    assert second["initial"]["seconds"] == run_folder.recorded_training(earlier)["seconds"]
    assert "initial" not in second["initial"]


def first_weights(config):
    return checkpoint.pretrained(config, build_task(config)).variables


def test_a_file_and_a_packaged_model_hold_the_weights(scans, earlier, tmp_path, monkeypatch):
    file = export(tmp_path / "phantom.safetensors", earlier, half=["spine"])
    with safe_open(file, framework="numpy") as opened:
        stored = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    assert {array.dtype for array in stored.values()} == {np.dtype("float16")}
    monkeypatch.setattr(model_file, "FOLDER", tmp_path)
    for source in (file, "phantom"):
        found = first_weights(config_from(scans, source))
        assert len(jax.tree.leaves(found)) == len(stored)
        for path, leaf in jax.tree.leaves_with_path(found):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            assert leaf.dtype == np.float32
            np.testing.assert_array_equal(leaf, stored[f"spine/0/{name}"])


@pytest.mark.parametrize("kind", ["run", "file"])
def test_a_resumed_run_goes_on_with_its_own(scans, earlier, tmp_path, kind):
    """Bit for bit, and without the other model."""
    moved = tmp_path / "moved"
    if kind == "run":
        shutil.copytree(earlier, moved)
    else:
        export(moved.with_suffix(".safetensors"), earlier).rename(moved)
    config = config_from(scans, moved, **{"train.steps": 8, "optim.learning_rate": 0.05})
    loop.train(config, tmp_path / "whole")
    stop = Stop()
    stop.agreed = lambda at: at >= 3
    assert loop.train(config, tmp_path / "parts", stop=stop).interrupted
    moved.rename(tmp_path / "away")
    loop.train(config, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, best(tmp_path / "whole"), best(tmp_path / "parts"))
    assert run_folder.recorded_training(tmp_path / "parts")["initial"]["steps"] == 4


def test_what_cannot_be_begun_with_is_refused_before_the_folder_is_made(scans, earlier, tmp_path):
    other = config_from(scans, earlier)
    other.model.widths = (4, 12)
    with pytest.raises(InputError, match=r"train\.init_from=.*another network: .* in the network;"):
        loop.train(other, tmp_path / "run")
    deeper = config_from(scans, earlier)
    deeper.model.widths = (4, 8, 8)
    with pytest.raises(
        InputError, match="the network has the array params/.* and the model lacks it"
    ):
        loop.train(deeper, tmp_path / "run")
    with pytest.raises(InputError, match=r"train\.init_from=.*/none: .*not the folder of a run"):
        loop.train(config_from(scans, tmp_path / "none"), tmp_path / "run")
    with pytest.raises(InputError, match=r"train\.init_from=fantom: .*did you mean 'phantom'\?"):
        loop.train(config_from(scans, "fantom"), tmp_path / "run")
    file = export(tmp_path / "model.safetensors", earlier)
    axial = config_from(scans, file, **{"data.plane": "axial"})
    with pytest.raises(InputError, match=r"no network of axial slices, only of sagittal; set data"):
        loop.train(axial, tmp_path / "run")
    assert not (tmp_path / "run").exists()


THREE_CHANNELS = {"data.neighbours": 1, "model.in_channels": 3}


@pytest.mark.parametrize(
    "changes", [THREE_CHANNELS, {"model.widths": (4, 8, 8)}], ids=["channels", "deeper"]
)
def test_what_fits_is_taken_on_request(scans, earlier, tmp_path, caplog, changes):
    caplog.set_level("INFO", logger="spinejax")
    config = config_from(scans, earlier, **changes, **{"train.init_partly": True})
    loop.train(config, tmp_path)
    ours, theirs = (
        dict(jax.tree.leaves_with_path(best(folder)["params"])) for folder in (tmp_path, earlier)
    )
    fits = [path for path in ours if path in theirs and ours[path].shape == theirs[path].shape]
    assert 0 < len(fits) < len(ours)
    for path in fits:
        np.testing.assert_allclose(ours[path], theirs[path], atol=1e-5)
    begin = "begins with random weights: "
    lines = [text.removeprefix(begin) for text in caplog.messages if text.startswith(begin)]
    assert len(lines) == len(ours) - len(fits)
    assert run_folder.recorded_training(tmp_path)["initial"]["random"] == lines
    if changes == THREE_CHANNELS:
        (line,) = lines
        assert line.endswith("has shape (3, 3, 1, 4) in the model and (3, 3, 3, 4) in the network")


def test_arrays_that_do_not_fit_begin_like_those_of_a_run_without(scans, earlier):
    config = config_from(scans, earlier, **THREE_CHANNELS, **{"train.init_partly": True})
    found = jax.tree.leaves(first_weights(config)["params"])
    random = jax.jit(build_task(config).init)(step.named_key(config.seed, "init"))["params"]
    (kernel,) = (array for array in found if array.shape == (3, 3, 3, 4))
    fresh = [array for array in jax.tree.leaves(random) if array.shape == kernel.shape]
    np.testing.assert_allclose(kernel, fresh[0], atol=1e-6)


def test_a_network_of_which_nothing_fits_is_refused(scans, earlier):
    config = config_from(scans, earlier, **{"train.init_partly": True})
    config.model = get_config("multiresunet:debug").model
    with pytest.raises(InputError, match="another network, of which nothing fits"):
        first_weights(config)


def test_both_networks_of_a_pipeline_begin_with_a_model(block_scans, block_pipeline, tmp_path):
    file = export(tmp_path / "both.spinejax", block_pipeline)
    config = pipeline_config(block_scans)
    config.train.init_from = str(file)
    for one in (config, config.vertebrae):
        one.update_from_flattened_dict({"train.steps": 1, "optim.learning_rate": 1e-7})
    assert not spinejax.train(config, tmp_path / "run").interrupted
    for part in ("", "vertebrae"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            best(tmp_path / "run" / part)["params"],
            best(block_pipeline / part)["params"],
        )
    # The second network is looked for before the first one trains.
    alone = tmp_path / "spine"
    shutil.copytree(block_pipeline, alone, ignore=shutil.ignore_patterns("vertebrae"))
    config.train.init_from = str(alone)
    with pytest.raises(InputError, match=r"^vertebrae\.train\.init_from=.* that names vertebrae; "):
        spinejax.train(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    config.vertebrae.train.init_from = ""
    assert config.train.init_from == str(alone)
