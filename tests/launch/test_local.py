"""Units on this machine: their GPUs, from a made-up CUDA_VISIBLE_DEVICES, and which are stopped."""

import json
import re
import subprocess
import sys

import pytest
from jaxlib import xla_client

from spinejax import sweep_state
from spinejax.cli import main
from spinejax.errors import InputError
from spinejax.files import write_json
from spinejax.launch import local
from spinejax.sweep_state import Sweep, SweepUnit

MEMORY = "XLA_CLIENT_MEM_FRACTION"


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-ab12")
    for name in local._MEMORY_NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def devices(places):
    return [place["CUDA_VISIBLE_DEVICES"] for place in places]


def test_a_unit_has_a_gpu_or_several_to_itself_and_all_of_its_memory(two_gpus):
    places = local.slots(0, -1)
    assert devices(places) == ["4", "GPU-ab12"]
    assert devices(local.slots(0, 2)) == ["4,GPU-ab12"]
    assert devices(local.slots(3, 0)) == [""] * 3
    assert not any(MEMORY in place for place in places)


def test_units_that_share_a_gpu_divide_what_jax_reserves_on_it(two_gpus):
    places = local.slots(0, -1, 3)
    # The first places are on different GPUs, so that two units never share one needlessly.
    assert devices(places) == ["4", "GPU-ab12"] * 3
    for gpu in ("4", "GPU-ab12"):
        shares = [float(p[MEMORY]) for p in places if p["CUDA_VISIBLE_DEVICES"] == gpu]
        assert sum(shares) == pytest.approx(0.75, abs=1e-3)
    assert devices(local.slots(3, 1, 3)) == ["4", "GPU-ab12", "4"]


@pytest.mark.parametrize("name", local._MEMORY_NAMES)
def test_what_the_user_says_about_gpu_memory_counts(two_gpus, name):
    two_gpus.setenv(name, "0.1")
    assert not any(MEMORY in place for place in local.slots(0, -1, 2))
    two_gpus.setenv(name, "")  # jaxlib takes it for unset
    assert all(MEMORY in place for place in local.slots(0, -1, 2))


def test_jaxlib_knows_the_variable(two_gpus):
    two_gpus.setenv(MEMORY, local.slots(0, -1, 4)[0][MEMORY])
    assert xla_client.generate_pjrt_gpu_plugin_options()["memory_fraction"] == 0.75 / 4


@pytest.mark.parametrize(
    ("visible", "gpus", "said"),
    [
        ("0,1", 2, "--units_per_gpu=2: units that share a GPU have one each, not --gpus=2"),
        ("0,1", 0, "--units_per_gpu=2: units that share a GPU have one each, not --gpus=0"),
        ("", -1, "--units_per_gpu=2: this machine has no GPU that can be used; --at_once=N"),
        ("-1", 1, "--units_per_gpu=2: this machine has no GPU that can be used; --at_once=N"),
    ],
)
def test_units_cannot_share_what_is_not_there(monkeypatch, visible, gpus, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(InputError, match=re.escape(said)):
        local.slots(0, gpus, 2)


class FakeRun:
    """A unit that validates once whenever it is looked at, until it is asked to stop or done."""

    started: list[str] = []

    def __init__(self, folder, words, environment):
        self.folder, self.step, self.why = folder, 0, ""
        FakeRun.started.append(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", {})
        write_json(folder / "run.json", {"steps": 9, "cases": {"test": []}})
        (folder / "unit.log").touch()

    def ended(self):
        self.step += 1
        line = {"step": self.step, "kind": "val", "dice": float(self.folder.name)}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.why:
            write_json(self.folder / sweep_state.OUTCOME, {"status": 75, "pruned": self.why})
            return 75
        if self.step < 9:
            return None
        (self.folder / "DONE").write_text("9 steps\n")
        return 0

    def prune(self, why):
        self.why = self.why or why


def test_bad_units_are_stopped_and_not_started_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local.unit, "start", FakeRun)
    monkeypatch.setattr(local, "_POLL_S", 0.001)
    monkeypatch.setattr(local, "_PRUNE_S", 0.0)
    FakeRun.started.clear()
    units = [SweepUnit(f"0.{number}", ("--config=c.py",)) for number in range(1, 10)]
    assert local.run(units, tmp_path, [{}] * 9, prune=3) == 0
    states = {unit.name: sweep_state.state(tmp_path / unit.name) for unit in units}
    kinds = [state.kind for state in states.values()]
    assert kinds == ["pruned"] * 8 + ["done"]
    said = states["0.1"].note
    assert said == "Dice 0.1000 at step 1 is not among the best 3 of 9 units there"
    out = capsys.readouterr().out
    assert f"0.1: pruned, step 2, {said}" in out
    assert out.endswith("1 of 9 units done, 8 pruned\n")
    sweep_state.write(tmp_path, Sweep("nine", "c.py", tuple(units)))
    assert main(["report", f"--sweep={tmp_path}"]) == 0
    assert f"0.1 pruned at step 2 of 9: {said}" in (tmp_path / "report.md").read_text()
    # The same command starts nothing; one without --prune continues what was stopped.
    FakeRun.started.clear()
    assert local.run(units, tmp_path, [{}] * 9, prune=3) == 0 and FakeRun.started == []
    # A launcher that was killed before it could note why finds out anew, without a start.
    (tmp_path / "0.1" / sweep_state.OUTCOME).unlink()
    assert local.run(units, tmp_path, [{}] * 9, prune=3) == 0 and FakeRun.started == []
    assert sweep_state.state(tmp_path / "0.1").kind == "pruned"
    assert local.run(units[:1], tmp_path, [{}]) == 0 and FakeRun.started == ["0.1"]
    assert sweep_state.state(tmp_path / "0.1").kind == "done"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prctl")
def test_a_unit_whose_launcher_died_before_it_began_ends_whatever_the_launcher_does_at_sigterm():
    # In a process of its own, without jax's threads. No process here has the parent 0; it stands
    # for a launcher that has died.
    code = (
        "import signal, subprocess, sys; from spinejax.launch import unit\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: None)\n"
        "begun = subprocess.Popen([sys.executable, '-c', ''], preexec_fn=unit._prepare(0))\n"
        "assert begun.wait() == -signal.SIGTERM, begun.returncode"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
