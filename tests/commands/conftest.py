"""A small data set, a run trained on it, and a disk that is nearly full."""

import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import pytest

from spinejax.cli import main
from tests.support.cli_runs import AFFINE, bright_box, ct_of, mask_of, train_arguments


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for number in range(500, 505):
        hu, labels = bright_box(number - 500)
        for path, array in ((ct_of(root, number), hu), (mask_of(root, number), labels)):
            path.parent.mkdir(parents=True)
            nib.Nifti1Image(array, AFFINE).to_filename(path)
    return root


@pytest.fixture(scope="session")
def run(dataset, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "w"
    assert main(train_arguments(dataset, workdir)) == 0
    return workdir


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB; mounting one needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
