"""`spinejax config`: fields with value and meaning, and differences."""

import pytest

from spinejax.cli import main
from spinejax.config_files import get_config
from tests.support.cli_runs import TINY, fails


def lines(capsys, *words: str) -> list[str]:
    assert main(["config", *words]) == 0
    return capsys.readouterr().out.splitlines()


def line_of(field: str, shown: list[str]) -> str:
    (line,) = [line for line in shown if line.split()[:1] == [field]]
    return line


def test_every_field_is_shown_with_its_value_and_meaning(capsys):
    shown = lines(capsys, "--config=chasppraunet", "--config.optim.learning_rate=0.25")
    line = line_of("optim.learning_rate", shown)
    assert "0.25" in line.split() and len(line.split()) > 3
    assert line_of("model.attention", shown)


def test_only_what_differs_is_shown(dataset, run, capsys):
    shown = lines(capsys, "--config=unet:debug", "--config.seed=7", "--against=unet:debug")
    assert {"seed", "7"} <= set(line_of("seed", shown).split())
    assert "optim.learning_rate" not in "\n".join(shown)
    shown = lines(capsys, "--config=chasppraunet", *TINY, f"--against={run}")
    assert line_of("data.root", shown) and "model.widths" not in "\n".join(shown)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--config.optim.lr=1",), "did you mean optim.learning_rate"),
        (("--config.optim.learning_rate=-1",), "optim.learning_rate"),
        (("--config.model.attention=foo",), "model.attention"),
        (("--against=unett",), "did you mean unet?"),
    ],
)
def test_wrong_fields_and_configs_are_refused(words, said, capsys):
    fails(capsys, ["config", "--config=chasppraunet", *words], said)


def test_a_run_with_a_wrong_field_is_refused(tmp_path, capsys):
    config = get_config("unet:debug")
    config.optim.learning_rate = -1.0
    (tmp_path / "config.json").write_text(config.to_json())
    error = fails(capsys, ["config", "--config=unet:debug", f"--against={tmp_path}"])
    assert f"--against={tmp_path}" in error and "optim.learning_rate=-1.0" in error
