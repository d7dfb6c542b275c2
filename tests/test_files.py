import os
import stat
from pathlib import Path

import pytest

from spinejax.errors import InputError
from spinejax.files import atomic_path, made, write_json


def test_a_file_appears_whole_with_the_mode_of_open(tmp_path):
    target = tmp_path / "new" / "scan.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.name.endswith(".nii.gz")
        temporary.write_text("whole")
        assert not target.exists()
    (tmp_path / "plain").write_text("")
    assert target.read_text() == "whole"
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert os.listdir(target.parent) == ["scan.nii.gz"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "scores.json"
    write_json(target, {"dice": 0.5})
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(ValueError):
        write_json(target, {"dice": float("nan")})
    assert target.read_text() == '{\n  "dice": 0.5\n}\n'
    assert os.listdir(tmp_path) == ["scores.json"]


def test_a_folder_that_was_made_goes_when_the_block_fails_and_has_no_results(tmp_path):
    new = tmp_path / "a" / "b"
    with pytest.raises(OSError), made(new, ("*.json",)):
        (new / "log").write_text("x")
        raise OSError
    assert not (tmp_path / "a").exists()
    with pytest.raises(OSError), made(new, ("*.json",)):
        write_json(new / "result.json", {})
        raise OSError
    assert new.exists()
    empty = tmp_path / "c"
    empty.mkdir()
    with pytest.raises(OSError), made(empty, ()):
        raise OSError
    assert empty.exists()
    with made(tmp_path / "d" / "e", ()):
        pass
    assert (tmp_path / "d" / "e").exists()
    with (
        pytest.raises(InputError, match="/proc/nowhere: cannot be written"),
        made(Path("/proc/nowhere"), ()),
    ):
        pass
