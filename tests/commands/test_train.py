"""`spinejax train`: runs, resumes, says what comes next; refuses bad input and leaves no trace."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from spinejax import cli, machine
from spinejax.cli import main
from spinejax.commands import parsing, train
from spinejax.files import write_json
from spinejax.training import run_folder
from tests.support.cli_runs import (
    ROOT,
    bad_mask,
    fails,
    mask_of,
    snapshot,
    train_arguments,
)


def test_a_run_has_its_config_and_is_done(run):
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["widths"] == [4, 8]
    assert (run / "DONE").exists()


def test_a_finished_run_says_so_and_what_comes_next(dataset, run, capsys):
    before = snapshot(run)
    assert main(train_arguments(dataset, run)) == 0
    out = capsys.readouterr().out
    assert "finished" in out and f"\n  spinejax report --workdir={run}\n" in out
    assert snapshot(run) == before


def test_the_next_commands_can_be_pasted(tmp_path):
    folder = tmp_path / "a run of März"
    write_json(folder / "run.json", {"cases": {"test": ["a"]}})
    title, *lines = train._next(folder).splitlines()
    assert title == "next:"
    words = [shlex.split(line) for line in lines]
    assert [line[:2] for line in words] == [
        ["spinejax", "evaluate"],
        ["spinejax", "report"],
        ["spinejax", "predict"],
    ]
    for _, name, *rest in words:
        workdir = parsing.parse(name, cli.command(name), rest).workdir
        assert workdir in (folder, [folder])
    write_json(folder / "evaluation" / "test" / "scores.json", {"cases": {}})
    assert "evaluate" in train._next(folder)  # somebody else's scores
    write_json(
        folder / "evaluation" / "test" / "scores.json", {"cases": {}}, "evaluation", overwrite=True
    )
    assert "evaluate" not in train._next(folder)


def test_two_runs_in_one_workdir_are_refused(dataset, run, capsys):
    before = snapshot(run)
    with run_folder.alone(run):
        fails(capsys, train_arguments(dataset, run), str(run), "another", "--workdir")
    assert snapshot(run) == before
    assert main(train_arguments(dataset, run)) == 0


def test_a_workdir_of_another_config_is_refused_and_kept(dataset, run, capsys):
    before = snapshot(run)
    message = fails(
        capsys,
        train_arguments(dataset, run, "--config.optim.learning_rate=0.5", "--config.seed=3"),
        "optim.learning_rate",
        "seed",
    )
    assert "0.5" in message
    assert snapshot(run) == before


# A failed start leaves no folder.


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--config.train.epoch=3", ["epoch", "epochs"]),
        ("--config.dat.root=x", ["dat", "data"]),
        ("--config.train.epochs=many", ["epochs", "many"]),
        ("--config.train.batch_size=0", ["batch_size"]),
        ("--config.train.batch_size=-4", ["batch_size"]),
        ("--config.data.size=64", ["size"]),
        ("--config.data.size=(33, 32)", ["size"]),
        ("--config.data.plane=sagital", ["sagital", "sagittal"]),
        ("--config.model.name=unett", ["unett", "unet"]),
        ("--config.model.attention=dot", ["dot", "dot_product"]),
        ("--config.optim.name=adm", ["adm", "adam"]),
        ("--config.optim.schedule=cos", ["cos", "cosine"]),
        ("--config.optim.learning_rate=-1.0", ["learning_rate"]),
        ("--config.loss.name=dise", ["dise", "dice"]),
        ("--config.data.normalise=hounsfield", ["hounsfield", "hu"]),
        ("--config.data.split=random", ["random", "ratio"]),
        ("--config.train.compute_dtype=float99", ["float99", "bfloat16"]),
        ("--config.train.parallel=tpu", ["tpu", "pmap"]),
        ("--config.data.preprocess.clamp_hu=(800.0, -1000.0)", ["clamp_hu"]),
        ("--config.data.preprocess.clamp_hu=('a', 'b')", ["clamp_hu"]),
        ("--config.data.preprocess.spacing_mm=0.0", ["spacing_mm"]),
        ("--config.data.size[0]=64", ["whole", "--config.data.size="]),
        ("--config.augment.scale=(1.0,)", ["augment.scale"]),
        ("--config.augment.gain=nan", ["augment.gain"]),
        ("--config.augment.geometry=yes", ["augment.geometry", "true or false"]),
        ("--config.predict.threshold=nan", ["predict.threshold"]),
        ("--config.loss.gamma=nan", ["loss.gamma"]),
        ("--config.loss.foo=1", ["--config.loss.foo", "no field"]),
        ("--config.seed=99999999999", ["seed"]),
    ],
)
def test_bad_config_values(override, words, dataset, tmp_path, capsys):
    fails(capsys, train_arguments(dataset, tmp_path / "runs" / "w", override), *words)
    assert not snapshot(tmp_path)


def test_bad_values_of_a_network_of_cubes(tmp_path, capsys):
    for override in ("predict.overlap=1.0", "predict.shifts=0", "data.cube.size=(96, 96)"):
        key = override.partition("=")[0]
        arguments = ["train", "--config=phantom_vertebrae:debug", f"--workdir={tmp_path / 'w'}"]
        fails(capsys, [*arguments, f"--config.{override}"], key)
    cascade = ["train", "--config=cascade:debug", f"--workdir={tmp_path / 'w'}"]
    fails(capsys, [*cascade, "--config.vertebrae.predict.shifts=0"], "vertebrae.predict.shifts")
    fails(capsys, [*cascade, "--config.vertebrae.model.name=vnett"], "vnett", "vnet")
    assert not snapshot(tmp_path)


def test_missing_data(tmp_path, capsys):
    fails(capsys, train_arguments(tmp_path / "nowhere", tmp_path / "w"), "nowhere")
    (tmp_path / "empty").mkdir()
    fails(capsys, train_arguments(tmp_path / "empty", tmp_path / "w"), "empty")
    assert not (tmp_path / "w").exists()
    (tmp_path / "w").mkdir()
    fails(capsys, train_arguments(tmp_path / "empty", tmp_path / "w"), "empty")
    assert (tmp_path / "w").exists()  # it was there before


@pytest.mark.parametrize("kind", ["empty", "elsewhere"])
def test_bad_masks_are_refused(kind, dataset, tmp_path, capsys):
    broken = tmp_path / "d"
    shutil.copytree(dataset, broken)
    for number in range(500, 505):
        mask = mask_of(broken, number)
        if kind == "elsewhere":
            shutil.copy(bad_mask("elsewhere", tmp_path), mask)
        else:
            image = nib.load(mask)
            nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine).to_filename(mask)
    fails(capsys, train_arguments(broken, tmp_path / "w"), "msk.nii.gz", ";")
    assert not (tmp_path / "w").exists()


def test_a_folder_that_cannot_be_made(dataset, capsys):
    fails(capsys, train_arguments(dataset, Path("/proc/nowhere")), "/proc/nowhere")


def test_a_full_disk(dataset, small_disk, capsys):
    (small_disk / "ballast").write_bytes(bytes(56 * 1024))
    fails(capsys, train_arguments(dataset, small_disk / "w"), "full")
    assert snapshot(small_disk) == {Path("ballast")}


def test_bad_config_files(tmp_path, capsys):
    where = f"--workdir={tmp_path / 'w'}"
    fails(capsys, ["train", "--config=configs/nowhere.py", where], "nowhere.py")
    path = tmp_path / "broken.py"
    path.write_text("def get_config(arg=None):\n    return 1 +\n")
    fails(capsys, ["train", f"--config={path}", where], "broken.py")
    fails(capsys, ["train", "--config=chasppraunet:debgu", where], "debgu", "debug")
    assert not (tmp_path / "w").exists()


# Log files.


def test_a_process_of_its_own_uses_all_cores_and_logs_a_few_lines(dataset, tmp_path):
    arguments = train_arguments(dataset, tmp_path / "w", "--config.train.steps=2")
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "spinejax", *arguments]
        subprocess.run(command, check=True, cwd=ROOT, stdout=log, stderr=log)
    text = (tmp_path / "log").read_bytes().decode()
    assert "\r" not in text and "it/s" not in text
    assert len(text.splitlines()) < 20, text
    record = json.loads((tmp_path / "w/run.json").read_text())
    assert record["devices"] > 1 or machine.cores() == 1
