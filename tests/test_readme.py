"""The README against the program: its commands, fields and modules exist."""

import re
import shlex
from pathlib import Path

import pytest
from test_floors import FLOORS

from configs import chasppraunet
from spinejax import arguments
from spinejax.cli import COMMANDS
from spinejax.train.settings import flatten

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


def test_every_make_target_exists():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {words[0] for words in commands("make")}
    assert named and named <= set(targets)


def test_every_config_field_exists():
    fields = set(flatten(chasppraunet.get_config()))
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
