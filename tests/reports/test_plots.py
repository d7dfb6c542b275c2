"""The user's settings of matplotlib neither change nor break a figure."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from spinejax.reports import plots

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("content", [b"\xff\xfe\0", b"font.size: 99\nbackend: nonsense\n: : :\n"])
def test_a_file_of_settings_in_the_current_folder_is_not_read(tmp_path, content):
    (tmp_path / "matplotlibrc").write_bytes(content)
    program = (
        "import sys; from spinejax.reports import figures; assert 'matplotlib' not in sys.modules;"
        "from spinejax.reports import plots; import matplotlib, os;"
        "print(matplotlib.rcParams['font.size'], os.getcwd(), os.environ['MPLBACKEND'])"
    )
    variables = os.environ | {"MPLBACKEND": "nonsense", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"10.0 {tmp_path} nonsense\n", "")


def test_settings_of_the_users_own_program_do_not_count_and_stay():
    with matplotlib.rc_context({"font.size": 50, "text.usetex": True}):
        with plots.defaults():
            assert matplotlib.rcParams["font.size"] == 10
            assert not matplotlib.rcParams["text.usetex"]
        assert matplotlib.rcParams["font.size"] == 50
