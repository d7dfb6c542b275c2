"""Helpers for tests of the command line: small scans, a short training, errors in one line."""

from pathlib import Path

import nibabel as nib
import numpy as np

from spinejax.cli import main

ROOT = Path(__file__).resolve().parents[2]
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
    "--config.augment.geometry=false",
    "--config.augment.intensity=false",
)


def snapshot(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")} if folder.exists() else set()


def fails(capsys, arguments: list[str], *words: str) -> str:
    """Run a command that must fail as bad input does; return its message."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if ": error: " in line]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


def bright_box(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a scan whose 'vertebrae' are two bright boxes in noise, and its labels."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(-100, 20, (12, 36, 40)).astype(np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    top = int(rng.integers(4, 10))
    for number, low in enumerate((top, top + 14)):
        labels[3:9, 10:26, low : low + 10] = 20 + number
    hu[labels > 0] += 500
    return hu, labels


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


def mask_of(data: Path, number: int = 500) -> Path:
    return data / f"derivatives/sub-verse{number}/sub-verse{number}_seg-vert_msk.nii.gz"


def bad_mask(kind: str, folder: Path) -> Path:
    """Write labels that cannot be used."""
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
