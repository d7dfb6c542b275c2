"""`spinejax prepare`: the cache of a data set."""

from pathlib import Path

from spinejax.cli import main
from tests.support.cli_runs import TINY, fails, snapshot


def test_scans_are_cached_and_counted(dataset, tmp_path, capsys):
    words = ["prepare", "--config=chasppraunet", f"--config.data.root={dataset}", *TINY]
    assert main([*words, f"--workdir={tmp_path / 'w'}"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["train", "val", "test"]
    assert sum(int(line[1]) for line in lines) == 5
    assert len(list((tmp_path / "w/cache").iterdir())) >= 5


def test_a_failed_start_leaves_no_folder(tmp_path, capsys):
    words = ["prepare", "--config=chasppraunet", f"--workdir={tmp_path / 'a' / 'w'}"]
    for more in ("data.root=nowhere", "data.root=", "model.attention=foo", "data.size=(33, 32)"):
        fails(capsys, [*words, f"--config.{more}"], more.partition("=")[0])
    assert snapshot(tmp_path) == set()
    (tmp_path / "a").mkdir()
    fails(capsys, words, "data.root")
    assert snapshot(tmp_path) == {Path("a")}
