"""Flags in every way that users write them."""

import re
from pathlib import Path

import pytest

from spinejax import cli
from spinejax.commands import parsing
from spinejax.errors import InputError


def parse(name: str, *words: str):
    return parsing.parse(name, cli.command(name), words)


@pytest.mark.parametrize(
    "words",
    [
        ("--workdir=RUN", "--input=CT.nii.gz", "--output=out", "--flip=true"),
        ("--workdir", "RUN", "--input", "CT.nii.gz", "--output", "out", "--flip"),
        ("CT.nii.gz", "-o", "out", "--workdir", "RUN", "--flip"),
        ("--flip", "CT.nii.gz", "-o=out", "-workdir=RUN"),
        ("-i", "CT.nii.gz", "-o", "out", "--workdir=RUN", "--flip"),
    ],
)
def test_flags_have_a_space_or_an_equals_sign_and_the_input_needs_no_name(words):
    values = parse("predict", *words)
    assert values.input == [Path("CT.nii.gz")] and values.output == Path("out")
    assert values.workdir == [Path("RUN")] and values.flip is True


def test_flags_of_several_values_and_their_defaults():
    values = parse("predict", "a.nii", "b.nii", "-o", "o", "--workdir=x", "--workdir", "y")
    assert values.input == [Path("a.nii"), Path("b.nii")]
    assert values.workdir == [Path("x"), Path("y")]
    assert values.vertebrae == [] and values.reference is None and values.flip is False
    assert parse("predict", "a", "-o", "o", "--workdir=x", "--noflip").flip is False


def test_home_folders_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    values = parse("predict", "~/a.nii", "-o", "~/out", "--workdir=~/run", "--workdir=b~")
    assert values.input == [Path("/home/me/a.nii")] and values.output == Path("/home/me/out")
    assert values.workdir == [Path("/home/me/run"), Path("b~")]


def test_fields_of_the_config_may_come_before_it_and_the_last_one_counts():
    values = parse(
        "summarize",
        *("--config.train.epochs=1", "--config.seed", "3", "--config", "unet:debug"),
        *("--config.train.epochs=2", "--config.augment.geometry=false"),
    )
    fields = {"train.epochs": "2", "seed": "3", "augment.geometry": "false"}
    assert parsing.overrides(values) == fields
    config = parsing.config(values)
    assert config.train.epochs == 2 and config.seed == 3 and not config.augment.geometry
    words = parsing.config_words(values)
    assert parse("summarize", *words) and words[0] == "--config=unet:debug"
    assert parsing.overrides(parse("summarize", *words)) == fields


def test_commands_without_a_config_have_no_fields():
    with pytest.raises(InputError, match="unknown flag --config.seed"):
        parse("predict", "a", "--config.seed=1")


def test_help_says_what_is_required_what_may_be_chosen_and_the_defaults(capsys):
    for name in ("predict", "sweep"):
        assert parse(name, "--help") is None
    out = capsys.readouterr().out
    assert "usage: spinejax predict INPUT --output=OUTPUT [--flag=value" in out
    assert "usage: spinejax sweep --workdir=WORKDIR [--flag=value" in out
    assert "Which weights to use. (best|latest, default best)" in out
    output = r"^  -o, --output +Folder for labels, records, pages and pictures\. \(required\)$"
    assert re.search(output, out, re.M)
    assert all(len(line) < 100 for line in out.splitlines())
