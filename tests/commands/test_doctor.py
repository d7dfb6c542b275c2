"""`spinejax doctor`: versions, and what a data set lacks."""

import shutil

from spinejax.cli import main
from tests.support.cli_runs import ct_of, fails


def test_what_is_missing_is_listed(dataset, tmp_path, capsys):
    broken = tmp_path / "d"
    shutil.copytree(dataset, broken)
    ct_of(broken, 502).unlink()
    assert main(["doctor", str(broken)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("python ") and "jax " in out
    assert "5 listed" in out and "sub-verse502" in out


def test_a_folder_that_is_not_there(tmp_path, capsys):
    fails(capsys, ["doctor", f"--data={tmp_path / 'nowhere'}"], "nowhere")
