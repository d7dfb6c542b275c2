"""The benchmarks run, at toy sizes; their table marks limits and changes."""

import json
import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks import timing
from tests.benchmarks.timing import Row, Times

ROOT = Path(__file__).resolve().parents[2]
TORCH = ("input", "networks", "scan")


def check(rows):
    """Check that there are rows of different work with measures."""
    assert rows
    assert len({row.work for row in rows}) == len(rows)
    for row in rows:
        assert math.isfinite(row.ratio) and row.low <= row.ratio <= row.high


# The test of the command runs the other one.
@pytest.mark.parametrize("name", [name for name in command.NAMES if name != "layers"])
def test_rows_have_measures(name):
    if name in TORCH:
        pytest.importorskip("monai", reason="needs requirements-bench.lock")
    rows = import_module(f"tests.benchmarks.bench_{name}").rows(toy=True)
    check(rows)
    if name == "plausible":
        assert rows[0].work.startswith("false alarms in 1 CTs")


def test_the_network_in_pytorch_is_ours():
    torch = pytest.importorskip("torch", reason="needs requirements-bench.lock")
    from spinejax.tasks import build_task
    from spinejax.training import model_file
    from tests.benchmarks import torch_networks
    from tests.support.networks import apply

    (packaged,) = model_file.read(model_file.located("phantom")).networks["spine"]
    model = build_task(packaged.config).model
    x = np.random.default_rng(0).normal(size=(2, 40, 64, 1)).astype(np.float32)
    expected = np.asarray(apply(model, packaged.variables, x)[0])
    with torch.inference_mode():
        network = torch_networks.network(model, packaged.variables["params"])
        found = network(torch_networks.images(x)).permute(0, 2, 3, 1).cpu().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_calls_take_turns_and_the_first_rounds_do_not_count():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = timing.interleaved(calls, 3, warm_up=2)
    assert "".join(order) == "ab" * 5
    assert times["a"].wall.shape == times["b"].processor.shape == (3,)


def test_the_ratio_is_the_median_over_the_rounds():
    ours = Times(np.array([1.0, 2.0, 30.0]), np.array([2.0, 2.0, 2.0]))
    theirs = Times(np.array([2.0, 2.0, 10.0]), np.array([1.0, 1.0, 4.0]))
    row = timing.versus("work", ours, "peer", theirs, limit=0.9)
    assert (row.low, row.ratio, row.high) == (0.5, 1.0, 3.0)
    assert row.processor == (2.0, 1.0, 2.0)
    assert row.exceeded
    assert timing.versus("slices", ours.per(10), "peer", theirs).ratio == pytest.approx(0.1)


def test_what_is_given_is_wall_time():
    ours = Times(np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0]))
    row = timing.within("work", ours, given_s=4.0)
    assert (row.low, row.ratio, row.high) == (0.25, 0.5, 0.75)
    assert row.processor == (5.0, None, None)
    assert not row.exceeded
    assert "2 s" in command.table([row], {})


@pytest.mark.parametrize(
    ("last", "now", "text"),
    [
        ((1.0, 0.9, 1.1), (0.5, 0.4, 0.6), "1.00 -> 0.50"),
        ((1.0, 0.9, 1.1), (0.95, 0.9, 0.99), ""),
        ((1.0, 0.9, 1.1), (0.8, 0.5, 1.2), ""),
        ((1.0, 1.0, 1.0), (1.001, 1.001, 1.001), ""),
    ],
    ids=["faster", "within the last", "within the new", "looks the same"],
)
def test_a_change_is_larger_than_the_spread(last, now, text):
    rows = (Row("work", 1.0, "peer", 1.0, *numbers) for numbers in (now, last))
    assert command.change(*rows) == text


@pytest.fixture
def results(monkeypatch):
    """What each benchmark finds; None fails."""
    found = {}

    def run(name, toy):
        if found[name] is None:
            raise RuntimeError("no result")
        row = Row(f"{name} work", *found[name])
        return {"commit": "", "jax": "", "device": "cpu", "rows": [row._asdict()]}

    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(command, "NAMES", ["a", "b"])
    return found


def found(ratio, limit=None):
    return (ratio, "PyTorch", 1.0, ratio, ratio, ratio, None, limit)


def test_the_command_runs_a_benchmark_in_a_process_of_its_own(tmp_path):
    out = tmp_path / "bench.json"
    words = ["-m", "tests.benchmarks", "layers", "--toy", f"--out={out}"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "max pooling, 8 x 8: gradient" in done.stdout
    kept = json.loads(out.read_text())["benchmarks"]
    assert list(kept) == ["layers"]
    check([Row(**row) for row in kept["layers"]["rows"]])


def test_the_command_keeps_results_and_shows_what_changed(results, tmp_path, capsys):
    out = tmp_path / "kept" / "bench.json"
    results.update(a=found(0.5), b=found(0.25, limit=0.3))
    assert command.main([f"--out={out}"]) == 0
    assert "->" not in capsys.readouterr().out
    results["a"] = found(0.75)
    assert command.main(["a", f"--out={out}"]) == 0
    text = capsys.readouterr().out
    assert "0.50 -> 0.75" in text
    assert "b work" not in text
    kept = json.loads(out.read_text())["benchmarks"]
    assert [kept[name]["rows"][0]["ratio"] for name in "ab"] == [0.75, 0.25]


def test_a_ratio_above_its_limit_is_an_error(results, tmp_path, capsys):
    results.update(a=found(0.5), b=found(0.25, limit=0.2))
    assert command.main([f"--out={tmp_path / 'bench.json'}"]) == 1
    assert "0.20 EXCEEDED" in capsys.readouterr().out


def test_the_others_run_when_one_fails(results, tmp_path, capsys):
    results.update(a=None, b=found(0.5))
    assert command.main([f"--out={tmp_path / 'bench.json'}"]) == 1
    printed = capsys.readouterr()
    assert "b work" in printed.out
    assert "failed: a" in printed.err


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["nothing"])
    assert "no benchmark nothing" in capsys.readouterr().err
