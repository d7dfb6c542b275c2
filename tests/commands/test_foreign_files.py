"""No command changes or removes a file that this program did not write.

Hypothesis draws what lies in the folders before, which commands run with which outputs, however
spelled, and which results a person edits in between. Networks and the phantoms' physics are stubs;
everything that writes is real.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from spinejax import predictor
from spinejax.cli import main
from spinejax.files import LIST
from spinejax.launch import local
from spinejax.phantom import dataset as phantoms
from spinejax.reports import realism
from spinejax.training import log, loop, run_folder
from spinejax.training.run_folder import read_config
from spinejax.volume import Volume
from tests.support.tiny_run import write_scans

CONFIG = (
    "--config=unet:debug",
    "--config.data.preprocess.spacing_mm=4",
    "--config.data.size=(16,16)",
    "--config.model.widths=(4,8)",
    "--config.data.split=ratio",
    "--config.train.steps=1",
)
PLACES = ("data", "out", "run", "new/deep")
NAMES = (
    ".tmp-mine", "DONE", "README", "README.md", "case0.nii.gz", "case0_ctd.json",
    "case0_quicklook.png", "case0_seg.nii.gz", "case1_seg.nii.gz", "checkpoints/latest/3/x",
    "config.json", "dataset_description.json", "derivatives/x", "digests.json", "metrics.jsonl",
    "page.csv", "page.html", "page.md", "realism.json", "realism.png", "report.html", "run.json",
    "scores.json", "sweep.json", "u0/unit.log",
)  # fmt: skip
# Names that are appended to, and arrays that are too many to be listed.
UNLISTED = ("metrics.jsonl", ".lock", ".launcher", LIST)
SPELLINGS = ("{}", "./x/../{}", "link/{}", "{}/../{}")

planted = st.lists(
    st.tuples(
        st.sampled_from(PLACES),
        st.sampled_from(NAMES),
        st.sampled_from(("file", "file", "link", "hard", "fifo", "folder")),
    ),
    max_size=4,
)
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ("predict", "predict", "score", "score", "report", "evaluate", "train", "prepare",
             "phantom", "compare", "sweep", "edit", "edit")
        ),
        st.sampled_from(PLACES),
        st.sampled_from(NAMES),
        st.sampled_from(SPELLINGS),
        st.booleans(),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=5,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def stubs(run):
    """Replace what takes long: networks, phantoms, figures, processes."""
    config = read_config(run)

    def segment(volume, name, _):
        return predictor.Segmentation((volume.array > 200).astype(np.uint8), volume, name)

    def train(config, workdir, *_):
        run_folder.write_config(workdir, config)
        log.rewind(workdir, 0, evaluated=False)
        return loop.TrainResult(None, False, None, 1)

    def draw_case(*_):
        array = np.zeros((8, 8, 8), np.int16)
        storage = phantoms.scan_plan.Storage("int16", 1.0, 0.0, True)
        return Volume(array, np.eye(4)), array.astype(np.uint8), {}, storage

    model = predictor.Model(config, {}, "0", False, segment, lambda _: 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "load", lambda *_, **__: model)
        patch.setattr("spinejax.load", lambda *_, **__: model)
        patch.setattr(loop, "_run", train)
        patch.setattr(phantoms, "draw_case", draw_case)
        patch.setattr(realism, "measure", lambda name, *_: realism.Measured(name, {}))
        patch.setattr(realism, "measure_files", lambda _: realism.Measured("x", {"a": 1.0}))
        patch.setattr(realism, "collect", lambda *_: {"statistics": {}})
        patch.setattr(realism, "draw", lambda *_: Figure())
        patch.setattr(realism, "table", lambda _: "")
        patch.setattr(local, "run", lambda *_: 0)
        yield


@pytest.fixture(scope="module")
def world(run, tmp_path_factory) -> Path:
    """Scans with masks in one folder, as MICCAI's VerSe has them, and a run."""
    root = tmp_path_factory.mktemp("world")
    scans = write_scans(root / "scans")
    (root / "data").mkdir()
    for number in range(4):
        shutil.move(scans / f"images/case{number}.nii.gz", root / "data")
        mask = root / f"data/case{number}_seg.nii.gz"
        shutil.move(scans / f"labels/case{number}.nii.gz", mask)
    shutil.rmtree(scans)
    shutil.copytree(run, root / "run")
    (root / "link").symlink_to(".")
    (root / "x").mkdir()
    (root / "sweeps.py").write_text(
        "from spinejax.configs import sweeps, unet\n\n\ndef get_config(arg=None):\n"
        "    return unet.get_config('debug')\n\n\ndef sweep_one():\n"
        "    return [sweeps.Unit('u0', {'seed': 1})]\n"
    )
    return root


def states(root: Path) -> dict[Path, tuple[str, str]]:
    """Return what lies under a folder: path -> its kind and its content."""
    found = {}
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink():
                found[path] = ("link", os.readlink(path))
            elif path.is_file():
                found[path] = ("file", hashlib.md5(path.read_bytes()).hexdigest())
            elif path.is_fifo():
                found[path] = ("fifo", "")
            elif not os.listdir(path):
                found[path] = ("folder", "")
    return found


def plant(root: Path, place: str, name: str, kind: str) -> Path | None:
    """Put something of somebody else there, unless there is something; return where it is."""
    path = root / place / name
    if os.path.lexists(path):
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        path.write_text(f'{{"mine": "{name}"}}')
    elif kind == "link":
        path.symlink_to(root / "data/case1_seg.nii.gz")
    elif kind == "hard":
        os.link(root / "data/case1_seg.nii.gz", path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    return path


def words(command: str, place: str, name: str, spelling: str, turn: int) -> list[str]:
    """Return a command line, relative to the world."""
    out = spelling.format(place, Path(place).name)
    scan = "case0.nii.gz" if turn % 2 else ""
    mask = "data/case0_seg.nii.gz"
    lines = {
        "predict": ["predict", f"--input=data/{scan}", "--workdir=run", f"--output={out}"]
        + ["--reference=data"] * (turn % 3 == 0),
        "score": ["score", f"--prediction={mask}", f"--reference={mask}", f"--output={out}/{name}"],
        "report": ["report", "--workdir=run", f"--output={out}/{Path(name).stem}.html"],
        "evaluate": ["evaluate", "--workdir=run", "--data=data"],
        "train": ["train", *CONFIG, "--config.data.root=data", f"--workdir={out}"],
        "prepare": ["prepare", *CONFIG, "--config.data.root=data", "--workdir=new/w"]
        + [f"--config.data.cache_dir={out}"],
        "phantom": ["phantom", "--cases=2", f"--out={out}"],
        "compare": ["phantom", "--compare=data", "--cases=1", f"--out={out}"],
        "sweep": ["sweep", "--config=sweeps.py", "--sweep=one", f"--workdir={out}"]
        + ["--config.data.root=data"],
    }
    return lines[command]


def edit(root: Path, ours: set[Path], turn: int) -> Path | None:
    """Change a result as a person would; return it."""
    files = [
        path
        for path in sorted(ours)
        if path.is_file()
        and not path.is_symlink()
        and path.name not in UNLISTED
        and not {"cache", "checkpoints", "tensorboard"} & set(path.parts)
        and path.suffix not in (".npy",)
    ]
    if not files:
        return None
    path = files[turn % len(files)]
    path.write_bytes(path.read_bytes() + b"\n")
    return path


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(planted, steps)
def test_what_somebody_else_wrote_stays(world, capsys, planted, steps):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder) / "world"
        shutil.copytree(world, root, symlinks=True)
        ours = {path for path in states(root) if path.is_relative_to(root / "run")}
        for one in planted:
            plant(root, *one)
        patch.chdir(root)
        foreign = {path: state for path, state in states(root).items() if path not in ours}
        for command, place, name, spelling, overwrite, turn in steps:
            if command == "edit":
                path = edit(root, set(states(root)) - foreign.keys(), turn)
                foreign |= {} if path is None else {path: states(root)[path]}
                continue
            line = words(command, place, name, spelling, turn)
            has_flag = command not in ("train", "prepare", "sweep")
            inputs = {root / f"data/case{number}.nii.gz" for number in range(4)}
            if command in ("score", "evaluate"):
                inputs = {root / "data/case0_seg.nii.gz"}
            line += ["--overwrite"] * (overwrite and has_flag)
            assert main(line) in (0, 1)
            error = capsys.readouterr().err
            assert "Traceback" not in error and "unexpected" not in error, error
            now = states(root)
            for path, before in foreign.items():
                if overwrite and has_flag and path not in inputs and before[0] == "file":
                    continue  # this is what the flag is for
                assert now.get(path) == before, (line, path)
            foreign = {path: state for path, state in foreign.items() if now.get(path) == state}
