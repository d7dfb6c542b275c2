"""Training that begins with the weights of an earlier run."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from spinejax.errors import InputError
from spinejax.training import checkpoint, loop
from spinejax.training.signals import Stop
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


def test_a_resumed_run_goes_on_with_its_own(scans, earlier, tmp_path):
    """Bit for bit, and without the other run's folder."""
    moved = shutil.copytree(earlier, tmp_path / "moved")
    config = config_from(scans, moved, **{"train.steps": 8, "optim.learning_rate": 0.05})
    loop.train(config, tmp_path / "whole")
    stop = Stop()
    stop.agreed = lambda at: at >= 3
    assert loop.train(config, tmp_path / "parts", stop=stop).interrupted
    shutil.rmtree(moved)
    loop.train(config, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, best(tmp_path / "whole"), best(tmp_path / "parts"))


def test_what_cannot_be_begun_with_is_refused_before_the_folder_is_made(scans, earlier, tmp_path):
    other = config_from(scans, earlier)
    other.model.widths = (4, 12)
    with pytest.raises(InputError, match=r"train\.init_from=.*another network: params.* is \("):
        loop.train(other, tmp_path / "run")
    deeper = config_from(scans, earlier)
    deeper.model.widths = (4, 8, 8)
    with pytest.raises(InputError, match="absent"):
        loop.train(deeper, tmp_path / "run")
    with pytest.raises(InputError, match="is not the folder of a run"):
        loop.train(config_from(scans, tmp_path / "none"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
