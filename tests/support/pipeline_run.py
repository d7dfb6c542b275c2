"""A pipeline of two tiny networks that names three blocks in a scan, trained once for all tests.

`tests/conftest.py` imports the fixtures.
"""

import fcntl
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from ml_collections import ConfigDict

import spinejax
from spinejax.configs import cascade, unet3d
from tests.support.tiny_run import tiny_config

IDS = (19, 20, 21)
AFFINE = np.diag([-2.0, -2.0, 2.0, 1.0])


def write_scans(root: Path, cases: int = 5) -> Path:
    """Write scans of three blocks whose HU tell their names."""
    for number in range(cases):
        rng = np.random.default_rng(number)
        mask = np.zeros((24, 32, 48), np.uint8)
        y = int(rng.integers(6, 12))
        for place, label in enumerate(IDS):
            mask[4:20, y : y + 14, 33 - 15 * place : 45 - 15 * place] = label
        image = np.where(mask > 0, 300 + 150 * (mask - 19.0), -50) + rng.normal(0, 8, mask.shape)
        for folder, array in (("images", image.astype(np.int16)), ("labels", mask)):
            path = root / folder / f"case{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, AFFINE), path)
    return root


def second_config(root: Path, prior: str) -> ConfigDict:
    """Return the config of the network that names the blocks."""
    config = unet3d.get_config("debug")
    config.model.widths = (8, 16)
    config.model.norm = "none"  # names are told by HU, which a norm of few voxels takes away
    config.data.preprocess.clamp_hu = (-200.0, 800.0)
    config.data.root = str(root)
    config.data.split = "ratio"
    config.data.cube.size = (16, 16, 32)
    config.data.cube.spine_prior = prior
    config.data.normalise = "sym"
    config.augment.update(geometry=False, intensity=False)
    config.train.steps = 160
    config.train.batch_size = 1
    config.train.eval_every_epochs = 1000.0
    config.train.pictures = 0
    config.optim.learning_rate = 5e-3
    return config


def pipeline_config(root: Path, prior: str = "channel") -> ConfigDict:
    """Return the config of both networks."""
    first = tiny_config(root, **{"data.preprocess.spacing_mm": 2.0, "train.steps": 40})
    first.data.preprocess.clamp_hu = (-200.0, 800.0)
    first.data.normalise = "sym"
    first.model.norm = "none"
    first.model.dropout = 0.0
    first.augment.update(geometry=False, intensity=False)
    first.optim.learning_rate = 0.01
    first.optim.ema_decay = 0.0
    first.train.eval_every_epochs = 1000.0
    return cascade.join(first, second_config(root, prior))


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` has filled: the first worker calls it, the others wait."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / name
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.with_suffix(".made").exists():
            make(folder)
            folder.with_suffix(".made").touch()
    return folder


def _train(scans: Path, workdir: Path) -> None:
    assert not spinejax.train(pipeline_config(scans), workdir).interrupted


@pytest.fixture(scope="session")
def block_scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of scans, with images/ and labels/; no test writes to it."""
    return _made_once(tmp_path_factory, "block_scans", write_scans)


@pytest.fixture(scope="session")
def block_pipeline(block_scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a trained pipeline; tests that write to it copy it first."""
    return _made_once(tmp_path_factory, "block_pipeline", partial(_train, block_scans))
