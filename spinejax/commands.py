"""What the commands of the command line do, with their values already parsed."""

import platform
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from spinejax import models, scoring
from spinejax.data import doctor as inventory
from spinejax.data import nifti, preprocess
from spinejax.errors import InputError
from spinejax.files import write_json
from spinejax.inference import scan
from spinejax.models import summary
from spinejax.reports import figures
from spinejax.tasks import build_task
from spinejax.train import checkpoint, loop, parallel, setup
from spinejax.volume import Volume

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
    report = inventory.doctor(data)
    print("\n".join(report.lines))
    if report.problems:
        print(f"\n{len(report.problems)} problems")
        print("\n".join(f"  {problem}" for problem in report.problems))
    else:
        print("\nno problems")
    return 0


def summarize(config: ConfigDict) -> str:
    """Return the layer table, `parameters: N` and the GFLOPs of the config's network."""
    model = models.build_model(config.model, out_channels=1)
    channels = config.model.get("in_channels", 1)
    return summary.summarize(model, (*config.data.size, channels))


def prepare(config: ConfigDict, workdir: Path) -> int:
    """Preprocess and cache every case that the config would train on, evaluate and test."""
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
    if under_slurm or num_processes > 1:
        parallel.initialize_distributed(
            coordinator_address=coordinator or None,
            num_processes=num_processes if num_processes > 1 else None,
            process_id=process_id if num_processes > 1 else None,
        )
    result = loop.train(config, workdir)
    if result.interrupted:
        print(f"interrupted at step {result.step}, saved; the same command resumes")
    return bool(result.interrupted)


def evaluate(workdir: Path, *, split: str, which: str) -> int:
    """Predict and score every case of a split; write `<workdir>/evaluation/<split>/`."""
    config, variables = checkpoint.load_for_inference(workdir, which)
    cases = setup.cases(config, workdir)[split]
    if not cases:
        raise InputError(f"{workdir}: the {split} split has no cases; choose another --split")
    predictor = load_predictor(config, variables)
    folder = workdir / "evaluation" / split
    started = time.time()
    scored, index = {}, {}
    for number, case in enumerate(cases, 1):
        if case.image is None or case.labels is None:
            raise ValueError(f"case {case.id} is not usable")  # setup.cases returns usable ones
        volume, reference = nifti.read_pair(case.image, case.labels)
        title = f"{number}/{len(cases)} {case.id}"
        prediction = _segment(predictor, volume, case.image, title)
        path = folder / "predictions" / f"{case.id}_seg.nii.gz"
        nifti.write_labels(path, prediction, volume)
        scored[case.id] = scoring.score_arrays(prediction, reference.array, volume.affine, case.id)
        index[case.id] = {
            "image": str(case.image.resolve()),
            "labels": str(case.labels.resolve()),
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
    config, variables = checkpoint.load_for_inference(workdir, which)
    paths = _scans(source)
    twice = [name for name, n in Counter(map(nifti.case_id, paths)).items() if n > 1]
    if twice:
        raise InputError(
            f"{source}: several scans are called {twice[0]!r} and would overwrite each other's "
            "results; predict their folders one by one"
        )
    output.mkdir(parents=True, exist_ok=True)
    predictor = load_predictor(config, variables)
    failed = 0
    for path in paths:
        case_id = nifti.case_id(path)
        try:
            if reference is None:
                volume, truth = nifti.read_volume(path), None
            else:
                volume, truth = nifti.read_pair(path, _reference_of(reference, case_id))
            labels = _segment(predictor, volume, path, case_id)
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
    scores = scoring.score_paths(prediction, reference, progress=True)
    write_json(output, scores)
    print(scoring.summary_table(scores))
    print(f"scores: {output}")
    return 0


@dataclass(frozen=True)
class Predictor:
    """A trained network, ready for scans."""

    network: scan.Network
    settings: scan.ScanSettings
    stride: int


def load_predictor(config: ConfigDict, variables: Any) -> Predictor:
    """Compile the network of a run over all local devices, each batch divided among them."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    task = build_task(config)
    devices = np.array(jax.local_devices())
    mesh = Mesh(devices, ("data",))
    over_devices = NamedSharding(mesh, PartitionSpec("data"))
    variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    probability = jax.jit(task.probability)

    def network(image: np.ndarray, stats: np.ndarray) -> np.ndarray:
        batch = jax.device_put((image, stats), over_devices)
        return np.asarray(probability(variables, *batch))

    how = config.predict
    settings = scan.ScanSettings(
        preprocess=setup.preprocessing(config),
        size=tuple(config.data.size),
        normalise=config.data.normalise,
        batch_size=-(-how.batch_size // len(devices)) * len(devices),
        overlap=how.overlap,
        threshold=how.threshold,
        min_component_ml=how.min_component_ml,
        fill_holes=how.fill_holes,
    )
    return Predictor(network, settings, task.stride)


def _segment(predictor: Predictor, volume: Volume, path: Path, title: str) -> np.ndarray:
    """Predict one scan with a progress bar, saying first how much memory it takes."""
    grid = preprocess.slice_geometry(volume, predictor.settings.preprocess)
    if min(grid.shape) < predictor.stride:
        raise InputError(
            f"{path}: its {grid.plane} slices are {grid.shape[0]}x{grid.shape[1]} pixels, smaller "
            f"than the network's stride of {predictor.stride}; give a larger scan"
        )
    memory = scan.estimate_bytes(volume, predictor.settings) / 2**30
    shape = "x".join(map(str, volume.shape))
    print(f"{title}: {shape} voxels, about {memory:.1f} GiB beside the network", flush=True)
    with tqdm(total=grid.n_slices, desc=title, unit="slice", leave=False) as bar:
        return scan.predict_scan(predictor.network, volume, predictor.settings, advance=bar.update)


def _scans(source: Path) -> list[Path]:
    """Return the CT of a file, or the CTs of a folder (any data set layout, or loose files)."""
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; check --input")
    if source.is_file():
        return [source]
    paths = sorted(path for path in source.rglob("*") if nifti.is_nifti(path))
    labelled = re.compile(r"_(seg|msk|seg-vert_msk|mask|label|labels)\.nii", re.IGNORECASE)
    paths = [path for path in paths if not labelled.search(path.name)]
    if not paths:
        raise InputError(f"{source}: no .nii or .nii.gz file in it; check --input")
    return paths


def _reference_of(reference: Path, case_id: str) -> Path:
    """Return the label file of a case: the file itself, or the one of a folder with its id."""
    if not reference.is_dir():
        return reference
    found = [
        p for p in sorted(reference.rglob("*")) if nifti.is_nifti(p) and nifti.case_id(p) == case_id
    ]
    if not found:
        raise InputError(f"{reference}: no label file for case {case_id}; check --reference")
    return found[0]
