"""The wheel, installed in a fresh environment and used from an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import spinejax
from spinejax.training import model_file

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object, cwd: Path) -> str:
    """Run a command without the repository on Python's path; return what it prints."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    # setuptools leaves build/ beside the sources, and files in an old build/ reach the next wheel.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("spinejax", "configs", "launch"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index")
    run(*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", out, source, cwd=source)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Return the folder of programs of an environment with the wheel and today's libraries."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    names = {"base": home, "platbase": home}
    (site,) = {Path(sysconfig.get_path(key, "venv", names)) for key in ("purelib", "platlib")}
    # A path in a .pth file is searched, but .pth files inside it are not read. So the libraries of
    # the tests' own environment are found, and its editable spinejax is not.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    python = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index")
    run(*pip, "--no-deps", wheel, cwd=home)
    return home / "bin"


def test_a_wheel_holds_nothing_but_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "spinejax",
        f"spinejax-{spinejax.__version__}.dist-info",
    }


def test_a_wheel_holds_every_module_and_every_file_that_modules_read(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    for name, folder in (
        ("spinejax", ROOT / "spinejax"),
        ("spinejax/configs", ROOT / "configs"),
        ("spinejax/launch", ROOT / "launch"),
    ):
        for path in folder.rglob("*"):
            if path.suffix in (".py", ".json", ".html", ".css", ".typed", *model_file.ENDINGS):
                assert f"{name}/{path.relative_to(folder)}" in packed


def test_a_wheel_is_small(wheel):
    assert wheel.stat().st_size < 20e6


def test_an_installed_wheel_has_its_model(installed, tmp_path):
    code = (
        "import spinejax; from spinejax.training import model_file;"
        "print(spinejax.load().digest, model_file.located('phantom'))"
    )
    digest, path = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert digest == spinejax.load().digest
    assert Path(path).is_relative_to(installed.parent)


@pytest.mark.parametrize(
    "words, expected",
    [
        (("--version",), spinejax.__version__),
        (("config", "--config=chasppraunet"), "model.attention"),
        (("summarize", "--config=opconvnet:debug"), "parameters"),
        (
            ("sweep", "--config=demo", "--sweep=learning_rates", "--workdir=runs", "--dry_run"),
            "--config.optim.learning_rate",
        ),
    ],
    ids=("version", "config", "summarize", "sweep"),
)
def test_an_installed_wheel_works_from_an_empty_folder(installed, tmp_path, words, expected):
    assert expected in run(installed / "spinejax", *words, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_installed_wheel_imports_only_itself(installed, tmp_path):
    names = "spinejax", "spinejax.configs.demo", "spinejax.launch.sweep"
    code = f"import importlib\nfor n in {names}: print(importlib.import_module(n).__file__)"
    files = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert len(files) == 3 and all(Path(file).is_relative_to(installed.parent) for file in files)
