"""README and docs/ against the program: their commands, fields, files and modules exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from spinejax import cli, config_files, predictor, schema
from spinejax.commands import parsing
from spinejax.configs import cascade, opconvnet, phantom_outlines
from tests.test_floors import FLOORS

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.name: path.read_text("utf-8") for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
}
BLOCKS = [
    block for text in PAGES.values() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
]
LINES = list(dict.fromkeys(line for block in BLOCKS for line in block.splitlines()))


def commands(program: str) -> list[list[str]]:
    """Arguments of every command line of `program` in the shell blocks."""
    split = [shlex.split(line, comments=True) for line in LINES]
    return [words[1:] for words in split if words and Path(words[0]).name == program]


# test_prototyping.py runs the commands of "Try an idea", whose config is not in the repository.
SPINEJAX = [words for words in commands("spinejax") if "channel_attention" not in " ".join(words)]


@pytest.mark.parametrize("words", SPINEJAX, ids=" ".join)
def test_commands_have_flags_and_fields_that_exist(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    name, *rest = words
    if name == "help":
        assert cli.main(words) == 0
        return
    values = parsing.parse(name, cli.command(name), rest)
    assert values is not None
    if "config" in values:
        schema.check(parsing.config(values))


@pytest.mark.parametrize("words", [w for w in SPINEJAX if w[0] == "sweep"], ids=" ".join)
def test_sweeps_are_there_and_their_units_have_command_lines(words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    if "--status" in words:
        given = [word for word in words if not word.startswith(("--workdir=", "--watch"))]
        assert cli.main([*given, f"--workdir={tmp_path}"]) == 1
        assert "not the folder of a sweep" in capsys.readouterr().err
        return
    assert cli.main([*words, *(["--dry_run"] if "--dry_run" not in words else [])]) == 0
    assert ": spinejax train --config=" in capsys.readouterr().out


def test_the_table_of_sweeps_is_complete():
    listed = {}
    table = re.findall(r"^\| (`\w.*?) \| `(configs/\w+\.py)` \|$", PAGES["sweeps.md"], re.M)
    for names, config in table:
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
    assert {"demo", "test"} <= named <= set(targets)


def test_every_extra_exists():
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    named = {name for text in PAGES.values() for name in re.findall(r"'\.\[(\w+)\]'", text)}
    assert {"cuda", "cuda12", "slurm"} <= named <= set(extras)


def test_every_config_field_exists():
    # Docs name fields of the second network as if it were alone.
    fields = {
        field.removeprefix("vertebrae.")
        for config in (
            cascade.get_config(),
            opconvnet.get_config(),
            opconvnet.get_config("net=padbn"),
            phantom_outlines.get_config(),
        )
        for field in schema.flatten(config)
    }
    blocks = {field.split(".")[0] for field in fields if "." in field}
    for page, text in PAGES.items():
        named = set(re.findall(r"`(?:--config\.)?((?:\w+\.)+(?:\w+|\*))[`=]", text))
        for field in {field for field in named if field.split(".")[0] in blocks}:
            known = any(name.startswith(field.rstrip("*")) for name in fields)
            assert known, f"{page}: {field}"


def test_every_named_config_and_file_exists():
    for page, text in PAGES.items():
        for name in re.findall(r"--config[= ](\S+)", text):
            if not re.search("channel_attention|NAME|FILE|X$", name):
                assert config_files.get_config(name.strip("`'")), f"{page}: {name}"
        for name in re.findall(
            r"`((?:spinejax|configs|launch|tests|docs|examples)/[\w/.]+)`", text
        ):
            found = (ROOT / name).exists() or re.search("channel_attention|NAME|FILE", name)
            assert found, f"{page}: {name} is not there"


def test_the_map_has_every_room_in_the_order_of_the_floors():
    rows = re.findall(
        r"^\| (`.*?) \|", PAGES["architecture.md"].split("## Map")[1].split("\n## ")[0], re.M
    )
    listed = [set(re.findall(r"`(\w+)/?`", row)) for row in rows]
    expected = [name for floor in FLOORS for name in floor]
    assert sorted(name for row in listed for name in row) == sorted(expected)
    level = {name: i for i, floor in enumerate(FLOORS) for name in floor}
    order = [number for row in listed for number in sorted(level[name] for name in row)]
    assert order == sorted(order)


def test_the_pages_build(tmp_path):
    """Links, anchors, included files and the docstrings that pages show: a warning is an error."""
    pytest.importorskip("mkdocs", reason="needs requirements-dev.lock")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        f"--site-dir={tmp_path / 'site'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "config" / "index.html").is_file()


def test_every_column_of_the_table_of_vertebrae_is_described():
    section = PAGES["record.md"].partition("## The table")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert re.findall(r"`(\w+)`", " ".join(rows)) == list(predictor._COLUMNS)
