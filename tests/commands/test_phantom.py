"""`spinejax phantom`: bad numbers leave no folder; the data set itself is in tests/phantom."""

import pytest

from tests.support.cli_runs import fails, snapshot


@pytest.mark.parametrize(
    "word",
    [
        "--cases=0",
        "--seed=-1",
        "--region=hips",
        "--rates=t14=0.5",
        "--rates=t13=often",
        "--min_spacing_mm=5",
        "--compare=nowhere",
    ],
)
def test_bad_values_are_refused_and_leave_no_folder(word, tmp_path, capsys):
    fails(capsys, ["phantom", "-o", tmp_path / "a" / "b", word])
    assert not snapshot(tmp_path)
