"""The command line as a person uses it: a run from start to end, and every kind of bad input.

Bad input gives exit status 1, one line on stderr that names the file or field and the remedy, no
traceback, and nothing half-written.
"""

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from spinejax.cli import main
from spinejax.train import run_folder
from tests.support.cli_runs import ROOT, fails, snapshot

AFFINE = np.diag([-2.0, -2.0, 2.0, 1.0])

TINY = (
    "--config.data.size=(32, 32)",
    "--config.model.widths=(4, 8)",
    "--config.model.attention_key_size=8",
    "--config.data.preprocess.spacing_mm=2.0",
    "--config.train.steps=6",
    "--config.train.batch_size=4",
    "--config.train.eval_every_epochs=1",
    "--config.data.split=ratio",
    "--config.augment.enabled=false",
)


def bright_box(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A scan whose 'vertebrae' are two bright boxes in noise, and its labels."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(-100, 20, (12, 36, 40)).astype(np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    top = int(rng.integers(4, 10))
    for number, low in enumerate((top, top + 14)):
        labels[3:9, 10:26, low : low + 10] = 20 + number
    hu[labels > 0] += 500
    return hu, labels


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for number in range(5):
        hu, labels = bright_box(number)
        name = f"sub-verse{number + 500}"
        for kind, suffix, array in (
            ("rawdata", "ct", hu),
            ("derivatives", "seg-vert_msk", labels),
        ):
            folder = root / kind / name
            folder.mkdir(parents=True)
            nib.Nifti1Image(array, AFFINE).to_filename(folder / f"{name}_{suffix}.nii.gz")
    return root


@pytest.fixture(scope="session")
def run(dataset, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "w"
    assert main(train_arguments(dataset, workdir)) == 0
    return workdir


def train_arguments(data: Path, workdir: Path, *more: str) -> list[str]:
    return [
        "train",
        f"--config={ROOT / 'configs/chasppraunet.py'}",
        f"--config.data.root={data}",
        f"--workdir={workdir}",
        *TINY,
        *more,
    ]


def ct_of(data: Path, number: int = 500) -> Path:
    return data / f"rawdata/sub-verse{number}/sub-verse{number}_ct.nii.gz"


# A run from start to end.


def test_train_evaluate_predict_score_report(dataset, run, tmp_path, capsys):
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["widths"] == [4, 8]
    assert (run / "DONE").exists()

    assert main(["evaluate", f"--workdir={run}", "--split=test"]) == 0
    scores = json.loads((run / "evaluation/test/scores.json").read_text())
    assert len(scores["cases"]) == 1
    (case,) = scores["cases"]
    assert set(scores["cases"][case]["voxels"]) == {"tp", "fp", "fn", "tn"}
    assert set(scores["summary"]["binary"]["dice"]) >= {"mean", "std", "median", "pooled"}

    out = tmp_path / "out"
    ct = ct_of(dataset)
    labels = dataset / "derivatives/sub-verse500/sub-verse500_seg-vert_msk.nii.gz"
    assert main(["predict", f"--workdir={run}", f"--input={ct}", f"--output={out}",
                 f"--reference={labels}"]) == 0  # fmt: skip
    prediction = out / "sub-verse500_seg.nii.gz"
    picture = out / "sub-verse500_quicklook.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    image, source = nib.load(prediction), nib.load(ct)
    assert image.shape == source.shape and image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.affine, source.affine)

    target = tmp_path / "scores.json"
    assert main(["score", f"--prediction={prediction}", f"--reference={labels}",
                 f"--output={target}"]) == 0  # fmt: skip
    scored = json.loads(target.read_text())["cases"]
    counts = next(iter(scored.values()))["voxels"]
    truth = np.asarray(nib.load(labels).dataobj) > 0
    guess = np.asarray(image.dataobj) > 0
    assert counts == {
        "tp": int((truth & guess).sum()),
        "fp": int((~truth & guess).sum()),
        "fn": int((truth & ~guess).sum()),
        "tn": int((~truth & ~guess).sum()),
    }

    capsys.readouterr()
    assert main(["report", f"--workdir={run}"]) == 0
    assert "report.html" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert case in page and "data:image" in page and "http://" not in page.replace("www.w3.org", "")


def test_a_folder_is_predicted_and_its_bad_file_named(dataset, run, tmp_path, capsys):
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(ct_of(dataset), scans / "a_ct.nii.gz")
    (scans / "b_ct.nii.gz").write_bytes(b"")
    shutil.copy(ct_of(dataset, 501), scans / "c_ct.nii.gz")
    out = tmp_path / "out"
    status = main(["predict", f"--workdir={run}", f"--input={scans}", f"--output={out}"])
    error = capsys.readouterr().err
    assert status == 1 and "b_ct.nii.gz" in error and "1 of 3" in error
    assert {path.name for path in out.glob("*.nii.gz")} == {"a_seg.nii.gz", "c_seg.nii.gz"}


@pytest.mark.parametrize("layout", ["nnunet", "folder_per_scan"])
def test_folders_of_data_sets_are_predicted_again_and_again(layout, dataset, run, tmp_path, capsys):
    """Masks, and what an earlier prediction wrote among the scans, are not taken for scans."""
    root = tmp_path / "scans of März"
    names = {
        "nnunet": ("imagesTr/a{}_0000.nii.gz", "labelsTr/a{}.nii.gz"),
        "folder_per_scan": ("a{}/ct.NII.GZ", "a{}/segmentations/mask.nii.gz"),
    }[layout]
    for number in (500, 501):
        mask = dataset / f"derivatives/sub-verse{number}/sub-verse{number}_seg-vert_msk.nii.gz"
        for name, source in zip(names, (ct_of(dataset, number), mask), strict=True):
            path = root / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, path)
    arguments = ["predict", f"--workdir={run}", f"--input={root}", f"--output={root / 'out'}"]
    expected = {f"a{n}_{kind}" for n in (500, 501) for kind in ("seg.nii.gz", "quicklook.png")}
    for more in ([f"--reference={root}"], []):
        assert main([*arguments, *more]) == 0
        assert {path.name for path in (root / "out").iterdir()} == expected
    inside = f"--input={(root / names[0]).parent if layout == 'nnunet' else root}"
    out = tmp_path / "again"
    assert main([*arguments[:2], inside, f"--output={out}"]) == 0
    assert {path.name for path in out.iterdir()} == expected
    one = f"--reference={root / names[1].format(500)}"
    fails(capsys, [*arguments, one], "one file for 2 scans")
    fails(capsys, [*arguments, "--reference=nowhere"], "nowhere", "--reference")
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom/IM0001").write_bytes(b"\0" * 128 + b"DICM")
    arguments[2] = f"--input={tmp_path / 'dicom'}"
    fails(capsys, arguments, "no CT", "convert DICOM")


def test_a_finished_run_says_so(dataset, run, capsys):
    before = snapshot(run)
    assert main(train_arguments(dataset, run)) == 0
    assert "finished" in capsys.readouterr().out
    assert snapshot(run) == before


def test_summarize_prints_digits_and_commas_only(capsys):
    assert main(["summarize", f"--config={ROOT / 'configs/chasppraunet.py'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("parameters: ")]
    number = line.removeprefix("parameters: ")
    assert set(number) <= set("0123456789,")
    assert 1_180_000 <= int(number.replace(",", "")) <= 1_310_000
    assert any(line.startswith("GFLOPs: ") for line in lines)


def test_doctor_lists_what_is_missing(dataset, tmp_path, capsys):
    broken = tmp_path / "d"
    shutil.copytree(dataset, broken)
    ct_of(broken, 502).unlink()
    assert main(["doctor", f"--data={broken}"]) == 0
    out = capsys.readouterr().out
    assert "5 listed" in out and "sub-verse502" in out


def test_the_installed_command_has_the_exit_status_of_main(tmp_path):
    def spinejax(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "spinejax.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    assert spinejax("--help").returncode == 0
    first_line = f"{sys.executable} -m spinejax.cli doctor | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", first_line], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "" and done.stdout.split()[0] == "python", done
    wrong = spinejax("predict", f"--workdir={tmp_path}", "--input=x", "--output=y")
    assert wrong.returncode == 1 and len(wrong.stderr.splitlines()) == 1, wrong.stderr


# Bad scans.


def _header(**fields) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((12, 36, 40))
    header.set_sform(AFFINE, 1)
    for name, value in fields.items():
        header[name] = value
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    return header.binaryblock + b"\0" * 4


def bad_scan(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}_ct.nii.gz"
    hu = bright_box(0)[0]
    if kind == "missing":
        return path
    if kind == "truncated":
        nib.Nifti1Image(hu, AFFINE).to_filename(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "text":
        path.write_text("this is not a scan\n" * 50)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "two_dimensions":
        nib.Nifti1Image(hu[0], AFFINE).to_filename(path)
    elif kind == "four_dimensions":
        nib.Nifti1Image(np.stack([hu, hu], -1), AFFINE).to_filename(path)
    elif kind == "zero_affine":
        data = _header(srow_x=0, srow_y=0, srow_z=0, pixdim=[0] * 8) + hu.tobytes("F")
        path.write_bytes(gzip.compress(data))
    elif kind == "nan_affine":
        nan = [np.nan] * 4
        data = _header(srow_x=nan, srow_y=nan, srow_z=nan, pixdim=[np.nan] * 8) + hu.tobytes("F")
        path.write_bytes(gzip.compress(data))
    elif kind == "huge":
        block = bytearray(_header())
        struct.pack_into("<8h", block, 40, 3, 32767, 32767, 32767, 1, 1, 1, 1)
        path.write_bytes(gzip.compress(bytes(block)))
    elif kind == "not_finite":
        nib.Nifti1Image(np.full(hu.shape, np.nan, np.float32), AFFINE).to_filename(path)
    elif kind == "small":
        nib.Nifti1Image(hu[:, :1, :1], AFFINE).to_filename(path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "truncated",
        "text",
        "empty",
        "two_dimensions",
        "four_dimensions",
        "zero_affine",
        "nan_affine",
        "huge",
        "not_finite",
        "small",
    ],
)
def test_bad_scans_are_refused_by_predict(kind, run, tmp_path, capsys):
    path = bad_scan(kind, tmp_path)
    out = tmp_path / "out"
    arguments = ["predict", f"--workdir={run}", f"--input={path}", f"--output={out}"]
    fails(capsys, arguments, path.name, ";")
    assert not snapshot(out)


# Bad masks.


def bad_mask(kind: str, folder: Path) -> Path:
    labels = bright_box(0)[1].astype(np.int16)
    affine = AFFINE.copy()
    if kind == "elsewhere":
        labels = labels[:-2]
        affine[:3, 3] += 1e4
    elif kind == "out_of_range":
        labels[0, 0, 0] = 300
    elif kind == "negative":
        labels[0, 0, 0] = -1
    elif kind == "fractional":
        labels = labels.astype(np.float32)
        labels[0, 0, 0] = 0.5
    path = folder / "case_seg.nii.gz"
    nib.Nifti1Image(labels, affine).to_filename(path)
    return path


@pytest.mark.parametrize("kind", ["elsewhere", "out_of_range", "negative", "fractional"])
def test_bad_masks_are_refused_by_score_and_predict(kind, dataset, run, tmp_path, capsys):
    path = bad_mask(kind, tmp_path)
    good = dataset / "derivatives/sub-verse500/sub-verse500_seg-vert_msk.nii.gz"
    target = tmp_path / "scores.json"
    fails(
        capsys,
        ["score", f"--prediction={path}", f"--reference={good}", f"--output={target}"],
        path.name,
        ";",
    )
    assert not target.exists()
    out = tmp_path / "out"
    ct = ct_of(dataset)
    fails(
        capsys,
        ["predict", f"--workdir={run}", f"--input={ct}", f"--output={out}", f"--reference={path}"],
        path.name,
        ";",
    )
    assert not snapshot(out)


def test_an_empty_mask_is_refused_by_train(dataset, tmp_path, capsys):
    broken = tmp_path / "d"
    shutil.copytree(dataset, broken)
    for mask in broken.rglob("*msk.nii.gz"):
        image = nib.load(mask)
        nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine).to_filename(mask)
    fails(capsys, train_arguments(broken, tmp_path / "w"), "msk.nii.gz", ";")


def test_a_mask_of_another_space_is_refused_by_train(dataset, tmp_path, capsys):
    broken = tmp_path / "d"
    shutil.copytree(dataset, broken)
    for mask in broken.rglob("*msk.nii.gz"):
        shutil.copy(bad_mask("elsewhere", tmp_path), mask)
    fails(capsys, train_arguments(broken, tmp_path / "w"), "msk.nii.gz", ";")


# Bad folders and disks.


def test_an_output_folder_that_is_a_file(dataset, run, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    arguments = ["predict", f"--workdir={run}", f"--input={ct_of(dataset)}"]
    fails(capsys, [*arguments, f"--output={tmp_path / 'out'}"], "out")
    fails(capsys, [*arguments, "--output=/proc/nowhere"], "/proc/nowhere")
    fails(capsys, [*arguments, f"--output={tmp_path / 'mask.nii.gz'}"], "mask.nii.gz", "folder")
    fails(capsys, train_arguments(dataset, Path("/proc/nowhere")), "/proc/nowhere")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB; mounting one needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(dataset, run, small_disk, tmp_path, capsys):
    (small_disk / "ballast").write_bytes(os.urandom(56 * 1024))
    before = snapshot(small_disk)
    ct = tmp_path / "noise_ct.nii.gz"
    hu = np.random.default_rng(0).integers(-500, 1500, (40, 40, 40)).astype(np.int16)
    nib.Nifti1Image(hu, AFFINE).to_filename(ct)
    fails(
        capsys,
        ["predict", f"--workdir={run}", f"--input={ct}", f"--output={small_disk / 'out'}"],
        "full",
    )
    for path in snapshot(small_disk) - before:  # what fitted is whole, and nothing else is there
        assert path.suffixes in ([], [".nii", ".gz"]) and not path.name.startswith(".tmp-")
        if path.suffix:
            np.asarray(nib.load(small_disk / path).dataobj)
    fails(capsys, train_arguments(dataset, small_disk / "w"), "full")


def test_missing_data(tmp_path, capsys):
    fails(capsys, train_arguments(tmp_path / "nowhere", tmp_path / "w"), "nowhere")
    (tmp_path / "empty").mkdir()
    fails(capsys, train_arguments(tmp_path / "empty", tmp_path / "w"), "empty")
    fails(capsys, ["doctor", f"--data={tmp_path / 'nowhere'}"], "nowhere")
    assert not (tmp_path / "w" / "checkpoints").exists()


# Bad configs and workdirs.


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
        ("--config.augment.enabled=yes", ["augment.enabled", "true or false"]),
        ("--config.predict.overlap=1.0", ["predict.overlap"]),
        ("--config.predict.threshold=nan", ["predict.threshold"]),
        ("--config.predict.shifts=0", ["predict.shifts", "from 1 to 8"]),
        ("--config.loss.gamma=nan", ["loss.gamma"]),
        ("--config.loss.foo=1", ["--config.loss.foo", "no field"]),
        ("--config.seed=99999999999", ["seed"]),
        ("--workdri=x", ["workdri", "workdir"]),
        ("--workdir=", ["--workdir", "empty"]),
        ("--num_processes=0", ["num_processes"]),
    ],
)
def test_bad_config_values(override, words, dataset, tmp_path, capsys):
    fails(capsys, train_arguments(dataset, tmp_path / "w", override), *words)
    assert not (tmp_path / "w" / "checkpoints").exists()


def test_a_config_file_is_looked_for_where_the_person_is(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["summarize"], "configs/demo.py", str(tmp_path), "--config=FILE.py")
    fails(capsys, ["summarize", "--config="], "--config=")
    path = str(ROOT / "configs/unet.py")
    assert main(["summarize", "--config.train.epochs=1", "--config", path]) == 0
    (tmp_path / "c.py").write_text("def get_config(arg=None):\n    return 1 / 0\n")
    fails(capsys, ["summarize", "--config=c.py"], "c.py", "division by zero")


def test_bad_config_files(tmp_path, capsys):
    where = f"--workdir={tmp_path / 'w'}"
    fails(capsys, ["train", "--config=configs/nowhere.py", where], "nowhere.py")
    path = tmp_path / "broken.py"
    path.write_text("def get_config(arg=None):\n    return 1 +\n")
    fails(capsys, ["train", f"--config={path}", where], "broken.py")
    config = ROOT / "configs/chasppraunet.py"
    fails(capsys, ["train", f"--config={config}:debgu", where], "debgu", "debug")
    fails(capsys, ["train", f"--config={config}"], "workdir")
    fails(capsys, ["trian"], "trian", "train")


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


def test_missing_and_corrupted_checkpoints(dataset, run, tmp_path, capsys):
    ct = ct_of(dataset)
    out = tmp_path / "out"
    fails(
        capsys,
        ["predict", f"--workdir={tmp_path / 'nowhere'}", f"--input={ct}", f"--output={out}"],
        "nowhere",
    )
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for command in (
        ["evaluate", f"--workdir={copy}"],
        ["predict", f"--workdir={copy}", f"--input={ct}", f"--output={out}"],
    ):
        fails(capsys, command, "copy")
    shutil.rmtree(copy / "checkpoints")
    fails(capsys, ["evaluate", f"--workdir={copy}"], "copy", "checkpoint")
    shutil.copytree(run, tmp_path / "edited")
    (tmp_path / "edited/config.json").write_text("{}")
    fails(capsys, ["evaluate", f"--workdir={tmp_path / 'edited'}"], "config.json", "has no")
    fails(capsys, ["report", f"--workdir={tmp_path / 'nowhere'}"], "nowhere")
