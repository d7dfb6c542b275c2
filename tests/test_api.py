"""The Python API: the examples of docs/api.md, their types, and what `import spinejax` imports."""

import doctest
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import spinejax
from spinejax import predictor
from spinejax.errors import InputError
from spinejax.training import model_file

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"


@pytest.fixture
def example_files(block_scans, block_pipeline, tmp_path, monkeypatch):
    """The files that the examples read, in the current folder; "phantom" is a small pipeline."""
    monkeypatch.setattr(model_file, "FOLDER", tmp_path / "packaged")
    predictor.export(model_file.located("phantom"), block_pipeline)
    shutil.copytree(block_pipeline, tmp_path / "runs" / "demo")
    shutil.copytree(block_scans, tmp_path / "scans")
    shutil.copy(block_scans / "images" / "case0.nii.gz", tmp_path / "CT.nii.gz")
    shutil.copy(block_scans / "labels" / "case0.nii.gz", tmp_path / "reference.nii.gz")
    monkeypatch.chdir(tmp_path)


def test_the_examples_do_what_they_say(example_files, capfd):
    result = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 20
    assert result.failed == 0, capfd.readouterr().out
    assert capfd.readouterr().out == ""  # no function prints


def test_the_examples_and_their_results_are_typed(tmp_path):
    """`reveal_type` shows what a user's type checker sees."""
    examples = doctest.DocTestParser().get_examples(PAGE.read_text())
    revealed = {
        "model": "spinejax.predictor.Model",
        "result": "spinejax.predictor.Segmentation",
        "result.summary()": "str",
        "result.vertebrae[0].volume_ml": "float",
        "scan": "spinejax.volume.Volume",
        "done.step": "int",
        "done.interrupted": "bool",
        'scores["cases"]["a"]["binary"]["dice"]': "float | None",
        'scores["summary"]["vertebrae"]["id_rate"]': "float | None",
    }
    lines = [f"reveal_type({expression})\n" for expression in revealed]
    file = tmp_path / "examples.py"
    file.write_text("".join([*(example.source for example in examples), *lines]))
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--follow-imports=silent",
            f"--cache-dir={ROOT / '.mypy_cache'}", str(file),
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    notes = [line for line in done.stdout.splitlines() if "Revealed type" in line]
    assert len(notes) == len(revealed)
    for note, (expression, kind) in zip(notes, revealed.items(), strict=True):
        assert note.replace("builtins.", "").endswith(f'"{kind}"'), f"{expression}: {note}"


def test_import_is_light_and_the_names_are_there():
    code = (
        "import sys, spinejax;"
        "heavy = {'jax', 'flax', 'numpy', 'nibabel', 'matplotlib', 'scipy', 'SimpleITK'};"
        "print(sorted(heavy & set(sys.modules)));"
        "print(sorted(name for name in sys.modules if name.startswith('spinejax')));"
        "import spinejax.training.loop; print('SimpleITK' in sys.modules);"
        "print(callable(spinejax.train));"
        "print(all(getattr(spinejax, name) is not None for name in spinejax.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['spinejax']", "False", "True", "True"]
    assert set(spinejax.__all__) <= set(dir(spinejax))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        spinejax.nothing  # noqa: B018
    assert issubclass(InputError, ValueError)
