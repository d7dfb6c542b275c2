"""No result depends on the switches of jax that the environment or the calling program sets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import flax
import jax
import numpy as np
import pytest

from spinejax import numerics, predictor
from spinejax.cli import main
from spinejax.commands import doctor
from spinejax.errors import InputError
from spinejax.training import loop
from spinejax.training.checkpoint import load_for_inference
from tests.support.tiny_run import tiny_config, write_scans

ROOT = Path(__file__).resolve().parents[1]
SHORT = {"train.steps": 2, "train.pictures": 0, "train.eval_every_epochs": 2}
OTHER = {
    "JAX_ENABLE_X64": "1",
    "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEBUG_NANS": "1",
    "JAX_DISABLE_JIT": "1",
    "JAX_TRANSFER_GUARD": "disallow",
}


def variables(workdir: Path) -> list[np.ndarray]:
    return jax.tree.leaves(load_for_inference(workdir, "latest")[1])


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    return write_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def run(scans, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    loop.train(tiny_config(scans, **SHORT), workdir)
    return workdir


def assert_same(workdir: Path, other: Path) -> None:
    for ours, theirs in zip(variables(workdir), variables(other), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_the_environment_does_not_change_a_training(scans, run, tmp_path):
    words = [f"{key}={json.dumps(value)}" for key, value in SHORT.items()]
    command = [sys.executable, "-m", "tests.support.tiny_run", scans, tmp_path / "run", *words]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **OTHER}, check=True)
    assert_same(run, tmp_path / "run")


def test_the_calling_program_keeps_its_switches_and_they_change_nothing(scans, run, tmp_path):
    plain = predictor.load(run).segment(scans / "images/case0.nii.gz")
    with jax.enable_x64(True), jax.default_matmul_precision("bfloat16"):
        loop.train(tiny_config(scans, **SHORT), tmp_path / "run")
        found = predictor.load(run).segment(scans / "images/case0.nii.gz")
        assert jax.config.jax_enable_x64
        assert jax.config.jax_default_matmul_precision == "bfloat16"
    assert_same(run, tmp_path / "run")
    np.testing.assert_array_equal(plain.labels, found.labels)


def test_a_switch_of_random_numbers_that_cannot_be_set_back_is_refused():
    refused = pytest.raises(InputError, match="FLAX_FIX_RNG_SEPARATOR=True changes random numbers")
    with flax.config.temp_flip_flag("fix_rng_separator", True), refused, numerics.fixed():
        pass


def test_a_resumed_run_says_what_has_changed_since_it_began(scans, run, monkeypatch, caplog):
    record = json.loads((run / "run.json").read_text())
    assert record["begun_with"]["jax"] == jax.__version__
    assert record["begun_with"]["device"].startswith("cpu")
    (run / "DONE").unlink()
    monkeypatch.setenv("XLA_FLAGS", "--other")
    loop.train(tiny_config(scans, **SHORT | {"train.log_every_steps": 2}), run)
    (said,) = [m for m in caplog.messages if "began with other versions or switches" in m]
    assert "XLA_FLAGS --other (was " in said
    assert json.loads((run / "run.json").read_text())["begun_with"] == record["begun_with"]


def test_a_device_that_is_missing_is_named_in_one_line(monkeypatch, request, capsys, tmp_path):
    def devices() -> list[object]:
        raise AssertionError

    numerics.check_devices.cache_clear()
    monkeypatch.setattr(jax, "devices", devices)
    before = jax.config.jax_platforms
    request.addfinalizer(lambda: jax.config.update("jax_platforms", before))
    jax.config.update("jax_platforms", "cuda")
    arguments = ["--config=unet", f"--workdir={tmp_path / 'w'}", "--config.data.root=scans"]
    for command in ("train", "prepare"):
        assert main([command, *arguments]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"{command}: error: JAX_PLATFORMS=cuda: jax finds no such device; unset" in line
    assert main(["doctor"]) == 0
    assert "devices   none: JAX_PLATFORMS=cuda" in capsys.readouterr().out
    assert not (tmp_path / "w").exists()


def test_a_flag_that_makes_convolutions_wrong_is_refused(monkeypatch):
    """As oneDNN's convolutions are in jaxlib 0.11.2 and 0.12.0.1; here another layer stands in."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_onednn_custom_call=true")
    numerics.check_devices.cache_clear()
    numerics.check_devices()
    right = jax.lax.conv_general_dilated
    monkeypatch.setattr(jax.lax, "conv_general_dilated", lambda *a, **k: 2.0 * right(*a, **k))
    numerics.check_devices.cache_clear()
    with pytest.raises(InputError, match="convolutions by oneDNN are wrong in jax .*take the flag"):
        numerics.check_devices()
    monkeypatch.setenv("XLA_FLAGS", "")
    numerics.check_devices()


@pytest.mark.parametrize("name", ["JAX_PLATFORM_NAME", "JAX_NUM_CPU_DEVICES"])
def test_the_variable_that_leaves_no_device_is_named(monkeypatch, request, name):
    def devices() -> list[object]:
        raise RuntimeError("Unknown backend. " * 50)

    before = jax.config.jax_platforms
    request.addfinalizer(lambda: jax.config.update("jax_platforms", before))
    jax.config.update("jax_platforms", None)
    numerics.check_devices.cache_clear()
    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv(name, "0")
    with pytest.raises(InputError, match=f"{name}=.*unset {name} to use") as info:
        numerics.check_devices()
    assert len(str(info.value)) < 200


def test_a_variable_that_jax_refuses_is_one_line(capsys, monkeypatch):
    def run(values: object) -> int:
        raise ValueError("invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'")

    monkeypatch.setattr(doctor, "run", run)
    assert main(["doctor"]) == 1
    error = capsys.readouterr().err
    assert "JAX_ENABLE_X64'; correct or unset" in error and error.count("\n") == 1
