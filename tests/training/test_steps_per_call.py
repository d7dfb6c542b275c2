"""Several updates in one call of the device: the same training, in fewer calls."""

import gzip
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from spinejax.errors import InputError
from spinejax.tasks import build_task
from spinejax.training import log, loop, parallel, step
from spinejax.training.search import Setting
from tests.benchmarks import lowered
from tests.conftest import COMPILE_FAST
from tests.support.cli_runs import ROOT
from tests.training.test_loop import numbers
from tests.training.test_population import patch_config, scans, together  # noqa: F401 - fixture


@pytest.fixture
def looping(monkeypatch) -> None:
    """Let the CPU make several updates in a call, as accelerators do."""
    monkeypatch.setattr(loop, "ONE_BY_ONE", ())


def test_op_convnet_ends_bit_for_bit_as_with_one_step_in_a_call(scans, tmp_path):  # noqa: F811
    """Also where it was stopped between, and where logs, evaluations and saves fall into calls."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    env["XLA_FLAGS"] = env["XLA_FLAGS"].replace(COMPILE_FAST, "").strip()
    command = [sys.executable, "-m", "tests.support.steps_run", str(scans), str(tmp_path)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "alone.npz") as alone, np.load(tmp_path / "several.npz") as several:
        assert len(alone.files) > 20 and alone.files == several.files
        for name in alone.files:
            np.testing.assert_array_equal(several[name], alone[name], err_msg=name)
    lines = numbers(tmp_path / "several")
    assert lines == numbers(tmp_path / "alone")
    assert [x["step"] for x in lines if x["kind"] == "train"] == [2, 4, 6, 8, 10]


def test_a_population_trains_in_the_same_calls(scans, tmp_path, looping):  # noqa: F811
    settings = [Setting(0.01, 0.9, 0.0), Setting(0.003, 0.5, 1e-3)]
    config = patch_config(scans)
    one = together(config, settings, tmp_path)
    config.train.steps_per_call = 3
    several = together(config, settings, tmp_path)
    np.testing.assert_allclose(several.losses, one.losses, rtol=1e-5)
    assert [o.step for o in several.outcomes] == [o.step for o in one.outcomes]


def test_a_cpu_makes_one_step_in_a_call_and_says_so(scans, tmp_path, monkeypatch):  # noqa: F811
    said = []
    monkeypatch.setattr(log.RunLog, "say", lambda self, text: said.append(text))
    loop.train(patch_config(scans, **{"train.steps": 1, "train.steps_per_call": 8}), tmp_path)
    assert "train.steps_per_call=8: on a CPU each call makes one step" in said


@pytest.mark.parametrize("changes", [{"train.log_every_steps": 100}, {"train.steps_per_call": 3}])
def test_a_divergence_is_named_with_its_step_and_samples(scans, tmp_path, looping, changes):  # noqa: F811
    wild = {"optim.learning_rate": 1e6, "train.eval_every_steps": 50, "train.steps": 50}
    wild |= {"train.checkpoint_every_steps": 0}
    texts = []
    for name, more in (("each", {}), ("seldom", changes)):
        with pytest.raises(InputError) as info:
            loop.train(patch_config(scans, **wild, **more), tmp_path / name, devices=1)
        texts.append(str(info.value))
    assert texts[0] == texts[1] and "in the update before" in texts[0]
    # What was logged is finite, and ends before the step that is named.
    named = int(texts[0].split("at step ")[1].split(":")[0])
    assert named > 1
    steps = list(range(1, named)) if "train.steps_per_call" in changes else []
    assert [line["step"] for line in numbers(tmp_path / "seldom")] == steps


@pytest.mark.parametrize("start", [0, 4])
def test_a_profile_holds_the_steps_that_are_asked_for(tmp_path, start):
    """In calls of two steps, from 3 to 5 or to where the training ends: whole calls."""
    lengths = loop.Durations(total=10, eval_every=10, save_every=0, per_call=2)
    given = loop.profiled(
        lambda state, batch: (state + 1, {"loss": state}),
        tmp_path,
        steps=(3, 5),
        lengths=lengths,
        start=start,
    )
    with given as update:
        state = jax.numpy.zeros(())
        for _ in range(start, 10, 2):
            state, _ = update(state, None)
    (file,) = tmp_path.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    found = {int(e["args"]["step_num"]) for e in events if "step_num" in e.get("args", {})}
    assert found == {4, 6} - set(range(start + 1))


def test_no_profile_is_written_where_none_is_asked_for(tmp_path):
    for steps, start in (((0, 0), 0), ((1, 3), 3)):
        lengths = loop.Durations(total=5, eval_every=5, save_every=0)
        options = dict(steps=steps, lengths=lengths, start=start)
        with loop.profiled(len, tmp_path, **options) as update:
            assert update is len
    assert not list(tmp_path.iterdir())


def test_a_profile_of_a_run_lies_in_its_folder(scans, tmp_path):  # noqa: F811
    changes = {"train.steps": 3, "train.profile_steps": (2, 3)}
    loop.train(patch_config(scans, **changes), tmp_path, devices=1)
    assert len(list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))) == 1
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1
    with pytest.raises(InputError, match=r"train\.profile_steps=3, 2 must be the first and the"):
        loop.train(patch_config(scans, **{"train.profile_steps": (3, 2)}), tmp_path / "other")


def test_a_profile_beyond_the_end_of_the_run_is_said_to_be_none(scans, tmp_path, monkeypatch):  # noqa: F811
    said = []
    monkeypatch.setattr(log.RunLog, "say", lambda self, text: said.append(text))
    changes = {"train.steps": 3, "train.profile_steps": (20, 24)}
    loop.train(patch_config(scans, **changes), tmp_path, devices=1)
    assert (
        "train.profile_steps=20, 24: this training makes the steps 1 to 3, so no profile will be "
        "written"
    ) in said
    assert not (tmp_path / "profile").exists()


def test_on_a_gpu_a_call_is_one_loop_without_the_host():
    config = lowered.small("opconvnet")
    config.train.batch_size = 4
    task = build_task(config, axis_name=parallel.AXIS)
    update, optimizer = step.from_config(config, task, total_steps=8, steps_per_epoch=8)
    state, batch = step.arguments(config, task, optimizer)
    mapped = parallel.Parallel("shard_map", tuple(jax.devices()[:1])).map(
        step.several(update), sharded=(False, False), donate=True
    )

    def counts(steps: int) -> dict[str, int]:
        rows = {
            name: jax.ShapeDtypeStruct((x.shape[0], steps, *x.shape[1:]), x.dtype)
            for name, x in batch.items()
        }
        return lowered.operations(lowered.for_cuda(mapped, state, rows))

    one, eight = counts(1), counts(8)
    assert (one["while"], eight["while"]) == (0, 1)
    assert eight["convolution"] == one["convolution"] > 0
    assert one["host call"] == eight["host call"] == 0
