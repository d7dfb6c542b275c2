"""`spinejax summarize`: layers and costs of a network, and two side by side."""

from pathlib import Path

import pytest

from spinejax.cli import main
from spinejax.commands.summarize import compare
from spinejax.configs import cascade
from spinejax.errors import InputError
from spinejax.models import layer_table
from spinejax.tasks import build_task
from spinejax.training import step
from tests.support import tiny_run


def test_parameters_are_digits_and_commas_only(capsys):
    assert main(["summarize", "--config=chasppraunet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("parameters: ")]
    number = line.removeprefix("parameters: ")
    assert set(number) <= set("0123456789,")
    assert 1_180_000 <= int(number.replace(",", "")) <= 1_310_000
    assert any(line.startswith("GFLOPs: ") for line in lines)


def tiny(**changes):
    return tiny_run.tiny_config(Path(), **changes)


def test_the_memory_of_a_step_holds_the_network_and_grows_with_the_batch():
    one, four = (step.step_bytes(tiny(**{"train.batch_size": n})) for n in (4, 16))
    task = build_task(tiny())
    parameters, _ = layer_table.totals(task.model, task.input_shape)
    # Parameters, their average and both moments of Adam, in and out of the step as one.
    state = 4 * 4 * parameters
    batch = 4 * 32 * 32 * 3
    assert one > state + batch
    # What is not the state is held for each sample.
    assert 2.5 < (four - state) / (one - state) < 4.5


def test_costs_are_those_of_the_summary_and_differing_fields_are_named():
    first, second = tiny(), tiny(**{"model.widths": (4, 16), "train.epochs": 3.0})
    lines = compare([first], [second], ("a.py", "b.py")).splitlines()
    assert lines[0].split() == ["a.py", "b.py", "ratio"]
    counts = []
    for config in (first, second):
        task = build_task(config)
        text = layer_table.summarize(task.model, task.input_shape)
        counts.append(text.partition("parameters: ")[2].splitlines()[0])
    assert lines[1].split()[1:3] == counts
    assert [line.split()[0] for line in lines[4:]] == ["model.widths", "train.epochs"]


def test_a_pipeline_and_a_network_are_not_compared():
    pipeline = cascade.get_config("debug")
    with pytest.raises(InputError, match="a has 2 and b 1 networks"):
        compare([pipeline, pipeline.vertebrae], [pipeline], ("a", "b"))


def test_a_wrong_second_config_is_refused(capsys):
    words = ["summarize", "--config=configs/unet.py:debug"]
    assert main([*words, "--against=configs/nothing.py"]) == 1
    assert "configs/nothing.py: there is no such file" in capsys.readouterr().err
    for word, said in (
        ("model.norm=none_of_them", "model.norm"),
        ("data.size=(9, 9)", "data.size"),
    ):
        assert main(["summarize", "--config=unet", f"--config.{word}"]) == 1
        assert said in capsys.readouterr().err
