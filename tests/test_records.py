"""JSON records: read whole and in their shape, or refused in one line with file and field."""

import json
import os

import pytest

from spinejax import records, sweep_state
from spinejax.cli import main
from spinejax.errors import InputError

SHAPE = {"a": int, "b?": [float], "c?": {str: (str, None)}, "d?": {"e": bool}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ('{"a": 1', "Expecting"),
        ("[]", "the content is [], not an object"),
        ("null", "the content is None, not an object"),
        ("[" * 100_000, "nested too deeply"),
        ("{}", "it has no a"),
        ('{"a": true}', "a is True, not a whole number"),
        ('{"a": 1e999}', "a is inf, not a whole number"),
        (f'{{"a": {10**400}}}', "a is 1000"),
        ('{"a": 1, "b": [1, NaN]}', "b.1 is nan, not a number"),
        ('{"a": 1, "b": {}}', "b is {}, not a list"),
        ('{"a": 1, "c": {"x": 3}}', "c.x is 3, not text"),
        ('{"a": 1, "d": {}}', "it has no d.e"),
    ],
)
def test_a_damaged_record_names_file_and_field(tmp_path, text, words):
    file = tmp_path / "record.json"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        records.read(file, SHAPE, "remove it")
    said = str(error.value)
    assert said.startswith(f"{file} is damaged (") and said.endswith("; remove it")
    assert words in said and "\n" not in said and len(said) < 400


def test_a_record_in_its_shape_is_read_with_what_else_it_holds(tmp_path):
    file = tmp_path / "record.json"
    value = {"a": 1, "b": [1, 2.5], "c": {"x": None, "y": "z"}, "d": {"e": True}, "more": [None]}
    file.write_text(json.dumps(value))
    assert records.read(file, SHAPE, "") == value
    assert records.read_if_there(tmp_path / "none", SHAPE, "") == {}
    with pytest.raises(InputError, match="none: no such file; make it"):
        records.read(tmp_path / "none", SHAPE, "make it")


@pytest.mark.parametrize("kind", ["folder", "FIFO"])
def test_what_is_no_file_is_never_waited_for(tmp_path, kind):
    (tmp_path / "x").mkdir() if kind == "folder" else os.mkfifo(tmp_path / "x")
    with pytest.raises(InputError, match=f"x: is a {kind}"):
        records.read(tmp_path / "x", dict, "")


def test_a_damaged_unit_is_a_line_of_the_table_and_the_others_are_shown(tmp_path, capsys):
    unit = {"words": [], "overrides": {}, "cell": {}}
    sweep = {"name": "s", "config": "c", "units": [{"name": name, **unit} for name in "ab"]}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / sweep_state.LOG).write_text("")
    (tmp_path / "a" / "run.json").write_text('{"steps": "many"}')
    (tmp_path / "b" / "outcome.json").write_text('{"status": 0}')
    assert main(["sweep", "--status", f"--workdir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "run.json is damaged (steps is 'many', not a whole number); restore it" in out
    assert "b" in out and "stopped" in out
    (tmp_path / "sweep.json").write_text('{"name": "s", "config": "c", "units": [{}]}')
    assert main(["sweep", "--status", f"--workdir={tmp_path}"]) == 1
    assert "sweep.json is damaged (it has no units.0.name)" in capsys.readouterr().err
