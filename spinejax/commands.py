"""What the commands of the command line do, with their values already parsed."""

import platform
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from spinejax import scoring
from spinejax.data import nifti, verse
from spinejax.errors import InputError
from spinejax.files import write_json
from spinejax.inference import scan
from spinejax.reports import figures
from spinejax.volume import LabelVolume, Volume

PACKAGES = (
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "ml-collections",
    "nibabel",
    "numpy",
    "scipy",
)


def doctor(data: str | None) -> int:
    """Print versions and devices, and the inventory of a data set; return the exit status."""
    import jax

    print(f"python    {platform.python_version()} on {platform.platform()}")
    print("packages  " + ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES))
    kinds = sorted({device.device_kind for device in jax.local_devices()})
    print(f"devices   {jax.local_device_count()} x {jax.default_backend()} ({', '.join(kinds)})")
    if data is None:
        return 0
    report = verse.doctor(data)
    print("\n".join(report.lines))
    if report.problems:
        print(f"\n{len(report.problems)} problems")
        print("\n".join(f"  {problem}" for problem in report.problems))
    else:
        print("\nno problems")
    return 0


def summarize(config: ConfigDict) -> str:
    """Return the layer table, `parameters: N` and the GFLOPs of the config's network."""
    from spinejax import models
    from spinejax.models import summary

    model = models.build_model(config.model, out_channels=1)
    return summary.summarize(model, (1, *config.data.size, config.model.get("in_channels", 1)))


def prepare(config: ConfigDict, workdir: Path) -> int:
    """Preprocess and cache every case that the config would train on, evaluate and test."""
    from spinejax.train import setup

    cached = setup.prepare(config, workdir)
    for split, cases in cached.items():
        slices = sum(case.image.shape[0] for case in cases)
        print(f"{split:<6}{len(cases):>5} cases {slices:>8} slices")
    return 0


def train(
    config: ConfigDict,
    workdir: Path,
    *,
    coordinator: str,
    num_processes: int,
    process_id: int,
    under_slurm: bool,
) -> bool:
    """Train or resume; return whether a signal interrupted it (with everything saved)."""
    from spinejax.train import loop, parallel

    if under_slurm or num_processes > 1:
        parallel.initialize_distributed(
            coordinator or None,
            num_processes if num_processes > 1 else None,
            process_id if num_processes > 1 else None,
        )
    result = loop.train(config, workdir)
    if result.interrupted:
        print(f"interrupted at step {result.step}, saved; the same command resumes")
    return bool(result.interrupted)


def evaluate(workdir: Path, *, split: str, which: str) -> int:
    """Predict and score every case of a split; write `<workdir>/evaluation/<split>/`."""
    from spinejax.train import checkpoint, setup

    config, variables = checkpoint.load_for_inference(workdir, which)
    cases = setup.cases(config, workdir)[split]
    if not cases:
        raise InputError(f"{workdir}: the {split} split has no cases; choose another --split")
    network, settings = _predictor(config, variables)
    folder = workdir / "evaluation" / split
    started = time.time()
    scored, index = {}, {}
    for number, case in enumerate(cases, 1):
        volume, reference = nifti.read_pair(case.image, case.labels)
        prediction = _predict(network, settings, volume, f"{number}/{len(cases)} {case.id}")
        path = folder / "predictions" / f"{case.id}_seg.nii.gz"
        nifti.write_labels(path, prediction, volume)
        scored[case.id] = scoring.score_arrays(prediction, reference.array, volume.spacing_mm)
        index[case.id] = {
            "image": str(Path(case.image).resolve()),
            "labels": str(Path(case.labels).resolve()),
            "prediction": str(path.relative_to(workdir)),
        }
    scores = scoring.collect(scored)
    write_json(folder / "scores.json", scores)
    write_json(folder / "cases.json", index)
    print(scoring.summary_table(scores))
    print(f"{len(cases)} cases in {time.time() - started:.0f} s; scores: {folder / 'scores.json'}")
    return 0


def predict(
    workdir: Path, source: Path, output: Path, *, reference: Path | None, which: str
) -> int:
    """Segment a CT or every CT of a folder; a file that fails is named and the rest go on."""
    from spinejax.train import checkpoint

    config, variables = checkpoint.load_for_inference(workdir, which)
    paths = _scans(source)
    network, settings = _predictor(config, variables)
    failed = 0
    for path in paths:
        case_id = nifti.case_id(path)
        try:
            if reference is None:
                volume, truth = nifti.read_volume(path), None
            else:
                volume, truth = nifti.read_pair(path, _reference_of(reference, case_id))
            _check_side(volume, path)
            memory = scan.estimate_bytes(volume, settings) / 2**30
            shape = "x".join(map(str, volume.shape))
            print(f"{path.name}: {shape} voxels, about {memory:.1f} GiB beside the network")
            labels = _predict(network, settings, volume, case_id)
        except InputError as error:
            if len(paths) == 1:
                raise
            print(f"spinejax predict: error: {error}", file=sys.stderr)
            failed += 1
            continue
        nifti.write_labels(output / f"{case_id}_seg.nii.gz", labels, volume)
        figures.quicklook(
            volume,
            labels,
            None if truth is None else truth.array,
            output / f"{case_id}_quicklook.png",
            title=case_id,
        )
        volume_ml = labels.sum(dtype=np.int64) * float(np.prod(volume.spacing_mm)) / 1000
        print(f"{output / f'{case_id}_seg.nii.gz'}: {volume_ml:.0f} ml of spine")
    if failed:
        raise InputError(f"{failed} of {len(paths)} scans failed (named above); the rest are done")
    return 0


def score(prediction: Path, reference: Path, output: Path) -> int:
    """Compare label files or folders; write JSON and print the summary."""
    scores = scoring.score_paths(prediction, reference)
    write_json(output, scores)
    print(scoring.summary_table(scores))
    print(f"scores: {output}")
    return 0
