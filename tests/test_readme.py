"""The README against the program: its commands, fields and modules exist."""

import re
import shlex
from pathlib import Path

import pytest

from spinejax import arguments, schema
from spinejax.cli import COMMANDS
from spinejax.configs import chasppraunet
from spinejax.launch import sweep
from tests.test_floors import FLOORS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]


def commands(program: str) -> list[list[str]]:
    """Arguments of every command line of `program` in the README's shell blocks."""
    split = [shlex.split(line, comments=True) for line in LINES]
    return [words[1:] for words in split if words and Path(words[0]).name == program]


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
@pytest.mark.parametrize("words", commands("spinejax"), ids=" ".join)
def test_commands_have_flags_that_exist(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, *rest = words
    command = COMMANDS[name]
    assert arguments.parse(name, command.help, command.flags, rest) is not None


# Those of "Trying an idea" are run by test_prototyping.py.
SWEEPS = [
    words
    for line in LINES
    if line.startswith("python -m spinejax.launch.sweep") and "channel_attention" not in line
    for words in [shlex.split(line, comments=True)[3:]]
]


@pytest.mark.parametrize("words", SWEEPS, ids=" ".join)
def test_sweeps_are_there_and_their_units_have_command_lines(words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    if "--status" in words:
        workdir = next(word for word in words if word.startswith("--workdir="))
        given = [word for word in words if word not in (workdir, "--watch")]
        assert sweep.main([*given, f"--workdir={tmp_path}"]) == 1
        assert "not the folder of a sweep" in capsys.readouterr().err
        return
    given = [*words, *(["--dry_run"] if "--dry_run" not in words else [])]
    assert sweep.main(given) == 0
    assert ": spinejax train --config=" in capsys.readouterr().out


def test_the_table_of_sweeps_is_complete():
    listed = {}
    for names, config in re.findall(r"^\| (`\w.*?) \| `(configs/\w+\.py)` \|$", README, re.M):
        stem = ""
        for name in re.findall(r"`(\w+)`", names):
            stem = name.rpartition("_")[0] if "_table" in name and name[0] != "_" else stem
            listed.setdefault(config, set()).add(stem + name if name[0] == "_" else name)
    defined = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        names = re.findall(r"^(?:def )?sweep_(\w+)(?=\(| =)", path.read_text(), re.M)
        if names:
            defined[f"configs/{path.name}"] = set(names)
    assert listed == defined


def test_every_make_target_exists():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {words[0] for words in commands("make")}
    assert named and named <= set(targets)


def test_every_config_field_exists():
    fields = set(schema.flatten(chasppraunet.get_config()))
    blocks = {field.split(".")[0] for field in fields if "." in field}
    named = set(re.findall(r"`(?:--config\.)?((?:\w+\.)+(?:\w+|\*))[`=]", README))
    named = {field for field in named if field.split(".")[0] in blocks}
    assert len(named) > 10
    for field in named:
        assert any(known.startswith(field.rstrip("*")) for known in fields), field


def test_the_map_has_every_module_in_the_order_of_the_floors():
    rows = re.findall(r"^\| (`.*?) \|", README.split("## Map")[1], re.MULTILINE)
    listed = [set(re.findall(r"`(\w+)/?`", row)) for row in rows]
    expected = [name for floor in FLOORS for name in floor]
    assert sorted(name for row in listed for name in row) == sorted(expected)
    level = {name: i for i, floor in enumerate(FLOORS) for name in floor}
    order = [number for row in listed for number in sorted(level[name] for name in row)]
    assert order == sorted(order)
