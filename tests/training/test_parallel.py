"""The same global batch on one, two, four and eight devices, by pmap and by shard_map."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from spinejax import machine
from spinejax.errors import InputError
from spinejax.training import parallel

HERE = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, np.ndarray]:
    out = tmp_path_factory.mktemp("devices") / "out.npz"
    env = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(HERE.parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", str(HERE / "devices_run.py"), str(out)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(out) as arrays:
        return dict(arrays)


def assert_close(a: np.ndarray, b: np.ndarray) -> None:
    """Equal to a millionth of the largest value."""
    assert np.abs(a - b).max() <= 1e-6 * max(np.abs(b).max(), 1.0)


@pytest.mark.parametrize("name", ["params", "ema", "loss", "dice", "eval_loss", "eval_sums"])
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_several_devices_equal_one(runs, devices, name):
    assert_close(runs[f"pmap{devices}/{name}"], runs[f"pmap1/{name}"])


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_batch_norm_is_synchronised(runs, devices):
    assert len(runs["pmap1/batch_stats"])
    assert_close(runs[f"pmap{devices}/batch_stats"], runs["pmap1/batch_stats"])


def test_pmap_equals_shard_map_bit_for_bit(runs):
    names = [key.split("/")[-1] for key in runs if key.startswith("pmap4/")]
    for name in names:
        np.testing.assert_array_equal(
            runs[f"pmap4/{name}"], runs[f"shard_map4/{name}"], err_msg=name
        )


def test_training_moves_the_parameters(runs):
    assert np.abs(runs["pmap1/params"] - runs["pmap1/ema"]).max() > 1e-3


def test_state_is_donated_and_rows_keep_their_order(runs):
    for key in ("pmap1", "pmap4", "shard_map4"):
        assert runs[f"{key}/donated"]
        np.testing.assert_array_equal(runs[f"{key}/case"], np.arange(8))
        tp_and_fp = runs[f"{key}/eval_sums"][:, :2].sum(1)
        np.testing.assert_array_equal(runs[f"{key}/mask"].sum((1, 2)), tp_and_fp)


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do():
    four = parallel.Parallel("pmap", tuple(jax.devices()) * 4)
    four.check_batch(8, 2)
    with pytest.raises(InputError, match=r"batch_size=10 .* 4 devices x 1 .* use 8 or 12"):
        four.check_batch(10)
    with pytest.raises(InputError, match=r"batch_size=4 .* 4 devices x 2 .* use 8$"):
        four.check_batch(4, 2)
    with pytest.raises(InputError, match=r"began with this batch .* devices that divides 3$"):
        four.check_batch(6, 2, begun=True)


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(InputError, match="1000 devices were asked for"):
        parallel.make_parallel("pmap", 1000)
    with pytest.raises(ValueError, match="choose one of"):
        parallel.Parallel("vmap", ())


@pytest.mark.parametrize(("devices", "used"), [(1, 1), (3, 1), (4, 4), (6, 2), (32, 16)])
def test_an_evaluation_uses_as_many_devices_as_divide_the_batches(monkeypatch, devices, used):
    few = jax.devices()[:1] * devices
    monkeypatch.setattr(jax, "devices", lambda: few)
    mapped = parallel.make_parallel_dividing("pmap", 16)
    assert mapped.count == used
    mapped.check_batch(16)


def test_a_lone_process_works_together_with_nobody():
    assert parallel.together(lambda: 3) == 3
    assert parallel.from_first(lambda: ("a", None)) == ("a", None)
    with pytest.raises(ZeroDivisionError):
        parallel.together(lambda: 1 // 0)


def test_a_process_apart_has_its_own_devices_and_no_others(monkeypatch):
    own = jax.local_devices()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "devices", lambda: own * 2)
    monkeypatch.setattr(jax, "local_devices", lambda: own)
    with pytest.raises(ZeroDivisionError), parallel.apart():
        assert (parallel.process_index(), parallel.process_count()) == (0, 1)
        mapped = parallel.make_parallel_dividing("pmap", 8)
        assert mapped.devices == tuple(own) and mapped.kind == "shard_map"
        parallel.barrier("nobody else comes here")
        raise ZeroDivisionError
    assert (parallel.process_index(), parallel.process_count()) == (1, 2)
    assert parallel.make_parallel("pmap").count == 2 * len(own)


def test_several_processes_map_without_converting_the_state(monkeypatch):
    assert parallel.make_parallel("auto").kind == "pmap"
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert parallel.make_parallel("auto").kind == "shard_map"
    assert parallel.make_parallel("pmap").kind == "pmap"


def test_one_process_is_its_own_first():
    assert (parallel.process_index(), parallel.process_count()) == (0, 1)
    assert not parallel.reached_preemption(0)


@pytest.mark.parametrize(
    ("cores", "batches", "devices"),
    [
        (1, [(8, 1)], 1),
        (2, [(8, 1)], 2),
        (6, [(8, 1)], 4),
        (64, [(8, 1), (2, 1)], 2),
        (16, [(128, 16)], 8),
        (4, [(3, 2)], 1),  # refused later, with the remedy
    ],
)
def test_as_many_cores_as_divide_all_batches_become_devices(monkeypatch, cores, batches, devices):
    found = []
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(jax.config, "update", lambda name, value: found.append((name, value)))
    parallel.use_cores(batches)
    assert found == [("jax_num_cpu_devices", devices)]
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    parallel.use_cores(batches)
    assert len(found) == 1
