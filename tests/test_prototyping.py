"""The steps of "Try an idea", word for word, but with small scans and a network of two levels."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8").split("\n## Try an idea")[1]
PAGE = PAGE.split("\n## ")[0]
MODULE, CONFIG = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
[COMMANDS] = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
SMALLER = {
    "--against": "'--config.model.widths=(4,8)' '--config.data.size=(32,32)' --against",
    "--min_spacing_mm=2": "--max_extent_mm=120 --min_spacing_mm=4 --max_spacing_mm=4",
    "--at_once": "'--config.model.widths=(4,8)' --config.train.steps=2 "
    "'--config.data.size=(32,32)' --at_once",
}


def test_the_variant_has_less_than_30_lines():
    assert len(MODULE.splitlines()) < 30


@pytest.mark.slow
def test_each_step_does_what_the_page_says(tmp_path):
    for name in ("spinejax", "configs", "launch"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignore)
    with (tmp_path / "spinejax" / "models" / "attention.py").open("a") as file:
        file.write("\n\n" + MODULE)
    (tmp_path / "configs" / "channel_attention.py").write_text(CONFIG)
    programs = tmp_path / "bin"
    programs.mkdir()
    # The installed `spinejax` would be that of the repository.
    for name, words in (("spinejax", "-m spinejax"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
    }
    commands = COMMANDS
    for flag, more in SMALLER.items():
        commands = commands.replace(flag, more)
    done = subprocess.run(
        ["bash", "-euc", commands],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    [costs] = [line.split() for line in lines if line.startswith("parameters")]
    first, second = (int(word.replace(",", "")) for word in costs[1:3])
    assert first != second and costs[3] == f"{second / first:.2f}"
    assert "2 of 2 units done" in lines
    rows = [line for line in lines if re.match(r"\| (dot_product|channel) \|", line)]
    assert [row.split("|")[1].strip() for row in rows] == ["dot_product", "channel"]
    assert all(row.rstrip(" |").endswith(" 1") for row in rows)
