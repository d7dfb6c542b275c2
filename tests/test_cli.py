"""The command line: help, unknown commands, exit statuses, warnings and messages."""

import errno
import logging
import os
import subprocess
import sys
import time
import types
import warnings

import pytest

from spinejax import __version__, cli
from tests.support.cli_runs import ROOT, fails


def spinejax(*words: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spinejax", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


def test_help_lists_every_command_and_a_command_its_flags(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"\n  {name} " in out
        for words in (["help", name], [name, "--help"], [name, "-h"]):
            assert cli.main(words) == 0
        shown = capsys.readouterr().out
        assert f"usage: spinejax {name}" in shown
        if name == "train":
            assert "--workdir" in shown and "config_fields" not in shown
    assert cli.main([]) == 1 and cli.main(["help"]) == 0
    capsys.readouterr()
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out == f"{__version__}\n"


def test_help_is_fast_and_imports_no_jax():
    code = (
        "import sys; from spinejax import cli\n"
        "for words in (['--help'], ['help', 'train'], ['help', 'predict']): cli.main(words)\n"
        "assert not {'jax', 'nibabel', 'matplotlib', 'numpy'} & set(sys.modules), sys.modules"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    assert time.monotonic() - started < 5  # on a busy machine


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["help", "predit"], "unknown command 'predit'; did you mean 'predict'?"),
        (["segment-everything"], "choose from phantom, doctor"),
        (["train", "--workdri=x"], "unknown flag --workdri; did you mean 'workdir'?"),
        (["train", "x"], "unexpected argument 'x'"),
        (["train", "--workdir"], "--workdir needs a value"),
        (["train", "--workdir", "--evaluate"], "--workdir needs a value"),
        (["train", "--workdir="], "--workdir is empty"),
        (["train"], "--workdir is required; add --workdir=..."),
        (["predict", "--workdir=x", "-o", "y"], "--input is required; add FILE"),
        (["train", "--workdir=x", "--num_processes=0"], "num_processes"),
        (["train", "--workdir=x", "--num_processes=two"], "must be a whole number"),
        (["train", "--workdir=x", "--evaluate=perhaps"], "must be true or false"),
        (["evaluate", "--workdir=x", "--split=tests"], "must be one of train|val|test"),
        (["phantom", "--out=x", "--min_spacing_mm=fine"], "must be a number"),
        (["phantom", "--out=x", "--rates=t13"], "--rates=t13: give name=number"),
        (["report"], "give either --workdir of a run or --sweep of a sweep"),
    ],
)
def test_wrong_words_are_refused_in_one_line(words, said, capsys):
    fails(capsys, words, said)


def test_the_program_has_the_exit_status_of_main(tmp_path):
    assert spinejax("--help").returncode == 0
    pipe = f"{sys.executable} -m spinejax doctor | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "" and done.stdout.split()[0] == "python", done
    wrong = spinejax("predict", f"--workdir={tmp_path}", "--input=x", "--output=y")
    assert wrong.returncode == 1 and len(wrong.stderr.splitlines()) == 1, wrong.stderr


@pytest.fixture
def command(monkeypatch):
    """Return a function that makes `spinejax doctor` run another function."""
    from spinejax.commands import doctor

    return lambda run: monkeypatch.setattr(doctor, "run", run)


def test_python_s_warnings_reach_only_a_user_who_asks_for_them(tmp_path):
    (tmp_path / "warn.py").write_text(
        "import warnings\n"
        "def get_config(arg=None):\n"
        "    warnings.warn('a warning of the config')\n"
        "    raise ValueError('and an error')\n"
    )
    words = ("config", f"--config={tmp_path / 'warn.py'}")
    quiet = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    assert "a warning" not in spinejax(*words, env=quiet).stderr
    asked = spinejax(*words, env={**quiet, "PYTHONWARNINGS": "default"})
    assert "UserWarning: a warning of the config" in asked.stderr


def test_messages_of_the_package_are_printed_and_warnings_marked(command, capsys):
    def run(values):
        logging.getLogger("spinejax").info("12 of 14 scans")
        logging.getLogger("spinejax").warning("2 scans lack a mask")
        return 0

    command(run)
    with warnings.catch_warnings():
        assert cli.main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert out == "12 of 14 scans\n" and err == "WARNING: 2 scans lack a mask\n"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OSError(28, "No space left on device", "out/a.json"), 1, "out/a.json: the"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("two\nlines"), None, ""),
    ],
)
def test_errors_of_the_system_are_one_line_and_bugs_are_not_hidden(
    error, status, said, command, capsys
):
    def run(values):
        raise error

    command(run)
    if status is None:
        with pytest.raises(ValueError):
            cli.main(["doctor"])
    else:
        assert cli.main(["doctor"]) == status
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("Event loop is closed"), False),
        (RuntimeError("something else"), True),
        (ValueError("Event loop is closed"), True),
    ],
)
def test_what_follows_from_a_full_disk_is_not_shown_again(caplog, error, shown):
    caplog.set_level(logging.WARNING, "spinejax")
    cli._thread_failed(types.SimpleNamespace(exc_value=error))
    assert [str(error) in record.getMessage() for record in caplog.records] == [True] * shown
