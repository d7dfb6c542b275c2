"""Where compiled programs are kept, when they are not, and that they give the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spinejax import cli, compile_cache

JAX = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")

# A train step; then a further program, when the folder may be gone.
STEP = """
import hashlib, os, shutil, sys, warnings
from spinejax import compile_cache
compile_cache.switch_on()
warnings.simplefilter("ignore")
import jax, numpy as np
from spinejax.tasks import Keys, build_task
from tests.support.tiny_run import tiny_config
task = build_task(tiny_config("x"))
rng = np.random.default_rng(0)
shapes = jax.eval_shape(task.init, jax.random.key(0))
variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
batch = {"image": rng.integers(-200, 900, (2, 32, 32)), "label": rng.integers(0, 2, (2, 32, 32)),
         "stats": np.ones((2, 4), np.float32), "weight": np.ones(2, np.float32)}
keys = Keys(jax.random.split(jax.random.key(1), 2), jax.random.key(2))
step = jax.jit(jax.value_and_grad(lambda p: task.loss(p, {}, batch, keys), has_aux=True))
found = jax.tree.leaves(step(variables["params"]))
print(hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in found)).hexdigest())
if "remove" in sys.argv:
    shutil.rmtree(os.environ["SPINEJAX_CACHE"])
print(jax.jit(lambda x: x * 3)(2))
"""


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An environment in which nobody has decided, and a process that has not imported jax."""
    for name in (*JAX, "SPINEJAX_CACHE", "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    return monkeypatch


def chosen():
    compile_cache.switch_on()
    return os.environ.get(JAX[0])


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "xdg/spinejax"),
        ({"XDG_CACHE_HOME": ""}, "home/.cache/spinejax"),
        ({"XDG_CACHE_HOME": "relative"}, "home/.cache/spinejax"),
        ({"SPINEJAX_CACHE": "~/mine"}, "home/mine"),
        ({"SPINEJAX_CACHE": "~nobody-at-all/x"}, None),
        ({"SPINEJAX_CACHE": "off"}, None),
        ({"SPINEJAX_CACHE": ""}, None),
    ],
)
def test_where_it_is(variables, folder, fresh, tmp_path):
    for name, text in variables.items():
        fresh.setenv(name, text)
    found = chosen()
    assert (found and str(Path(found).parent)) == (folder and str(tmp_path / folder))
    assert not any(tmp_path.iterdir())  # a command that compiles nothing makes no folder


def test_the_users_own_folder_and_a_loaded_jax_are_left_alone(fresh, tmp_path):
    fresh.setitem(sys.modules, "jax", None)
    assert chosen() is None
    fresh.delitem(sys.modules, "jax")
    fresh.setenv(JAX[0], "mine")
    assert chosen() == "mine" and JAX[1] not in os.environ


@pytest.mark.parametrize(
    ("words", "tasks", "expected"),
    [
        (["config"], "", True),
        (["config"], "2", False),
        (["train", "--num_processes=2"], "1", False),
    ],
)
def test_processes_of_one_run_do_without(words, tasks, expected, fresh, capsys):
    fresh.setenv("SLURM_NTASKS", tasks)
    fresh.setattr(cli, "command", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(words)
    assert (JAX[0] in os.environ) == expected


def test_the_oldest_entries_go_and_nothing_else(fresh, tmp_path):
    fresh.setenv("SPINEJAX_CACHE", str(tmp_path))
    fresh.setattr(compile_cache, "MOST_BYTES", 250)
    for age, name in enumerate(["cpu-b/new", "cpu-a/newer", "cpu-a/old", "cpu-b/older", "other/x"]):
        path = tmp_path / f"{name}-cache"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100)
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "cpu-a/empty-cache").touch()
    (tmp_path / "cpu-a/notes").write_bytes(b"x" * 1000)
    compile_cache.switch_on()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")}
    assert left == {"cpu-b/new-cache", "cpu-a/newer-cache", "cpu-a/notes", "other/x-cache"}


def test_an_entry_gives_the_same_bits_and_no_folder_is_an_error(tmp_path):
    environment = {name: text for name, text in os.environ.items() if name not in JAX}
    environment[JAX[1]] = "0"

    def run(folder, *words):
        done = subprocess.run(
            [sys.executable, "-c", STEP, *words],
            env={**environment, "SPINEJAX_CACHE": str(folder)},
            cwd=Path(__file__).resolve().parents[1],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0 and not done.stderr, done.stderr
        digest, six = done.stdout.split()
        assert six == "6"
        return digest

    def entries():
        return sorted(path.name for path in tmp_path.glob("cache/cpu-*/*-cache"))

    (tmp_path / "file").touch()
    compiled = run(tmp_path / "file" / "cache")  # cannot be made
    assert run(tmp_path / "cache") == compiled
    written = entries()
    assert written
    assert run(tmp_path / "cache", "remove") == compiled
    assert not entries()
