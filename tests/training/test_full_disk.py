"""A disk that really fills while a run saves: one line, and the same command continues."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tiny_run import write_scans

ROOT = Path(__file__).parents[2]
# Another program fills the disk between the check of its room and the write.
TRAIN = """
import sys, types
from spinejax.cli import main
from spinejax.training import run_folder
run_folder.shutil.disk_usage = lambda folder: types.SimpleNamespace(free=10**12)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=140k", "tmpfs", disk], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("this user may not mount a file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a file system")
def test_a_disk_that_fills_is_one_line_and_the_same_command_continues(tmp_path, small_disk):
    words = [
        "train",
        "--config=tests/support/tiny_sweep.py",
        f"--config.data.root={write_scans(tmp_path / 'scans')}",
        f"--config.data.cache_dir={tmp_path / 'cache'}",
        "--config.train.checkpoint_every_steps=1",
        "--config.train.steps=4",
        f"--workdir={small_disk / 'run'}",
    ]
    command = [sys.executable, "-c", TRAIN, *words]
    full = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert full.returncode == 1, full.stderr
    assert "Traceback" not in full.stderr
    said = [line for line in full.stderr.splitlines() if "rror" in line]
    assert len(said) == 1, full.stderr
    assert "the disk is full; free some space and run the same command again" in said[0]
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    more = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert more.returncode == 0, more.stderr
    assert (small_disk / "run" / "DONE").read_text() == "4 steps\n"
