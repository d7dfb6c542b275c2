"""What the commands of the command line do, with their values already parsed."""

import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from ml_collections import ConfigDict

from spinejax import costs, predictor, schema, scoring
from spinejax.datasets import doctor as inventory
from spinejax.datasets import plain_folders
from spinejax.errors import InputError
from spinejax.files import write_json
from spinejax.io import centroids, nifti, scanfile
from spinejax.metrics import aggregate as summarised
from spinejax.metrics import classification, slice_dice
from spinejax.reports import figures, tables
from spinejax.sweep_state import SECOND, read_json
from spinejax.tasks import build_task
from spinejax.train import loop, parallel, patch_level, setup
from spinejax.volume import slice_view

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
        count = len(report.problems)
        print(f"\n{count} problem{'s' if count > 1 else ''}")
        print("\n".join(f"  {problem}" for problem in report.problems))
    else:
        print("\nno problems")
    return 0


def summarize(config: ConfigDict) -> str:
    """Return the layer table, `parameters: N` and the GFLOPs of the config's network."""
    return costs.summarize(_stages(config))


def compare(config: ConfigDict, other: ConfigDict, names: tuple[str, str]) -> str:
    """Return two configs side by side, see `costs.compare`; `names` is what to call them."""
    return costs.compare(_stages(config), _stages(other), names)


def _stages(config: ConfigDict) -> list[ConfigDict]:
    """Return the config of a run, and that of its second network in a pipeline; both checked."""
    stages = [config]
    if SECOND in config:
        stages.append(config[SECOND])
    for stage in stages:
        schema.check(stage)
    if len(stages) > 1 and (config.task == predictor.CUBES or stages[1].task != predictor.CUBES):
        raise InputError(
            f"task={config.task} with {SECOND}.task={stages[1].task}: a pipeline "
            f"segments the spine first; its second task is {predictor.CUBES}"
        )
    return stages


def _in_folders(config: ConfigDict, workdir: Path) -> list[tuple[ConfigDict, Path]]:
    """Return the configs of `_stages`, each with the folder of its run."""
    return list(zip(_stages(config), (workdir, workdir / SECOND), strict=False))


def prepare(config: ConfigDict, workdir: Path) -> int:
    """Preprocess and cache every case that the config would train on, evaluate and test."""
    for stage, folder in _in_folders(config, workdir):
        cached = setup.prepare(stage, folder)
        for split, cases in cached.items():
            slices = sum(case.image.shape[0] for case in cases)
            print(f"{split:<6}{len(cases):>5} cases {slices:>8} slices")
        if stage.task == "patch_classification":
            print("\n".join(patch_level.describe(stage, cached)))
    return 0


def train(
    config: ConfigDict,
    workdir: Path,
    *,
    coordinator: str,
    num_processes: int,
    process_id: int,
    under_slurm: bool,
    then_evaluate: bool = False,
) -> bool:
    """Train or resume; return whether a signal interrupted it (with everything saved).

    `then_evaluate` scores the test split when all is trained, if it has cases and has not been
    scored.
    """
    if under_slurm or num_processes > 1:
        parallel.initialize_distributed(
            coordinator_address=coordinator or None,
            num_processes=num_processes if num_processes > 1 else None,
            process_id=process_id if num_processes > 1 else None,
        )
    stages = _in_folders(config, workdir)
    for stage, _ in stages[1:]:
        build_task(stage)  # what it refuses is refused before the first has run
    for stage, folder in stages:
        result = loop.train(stage, folder)
        if result.interrupted:
            print(f"interrupted at step {result.step}, saved; the same command resumes")
            return True
    if then_evaluate and parallel.process_index() == 0:
        _evaluate_once(workdir)
    parallel.barrier("evaluation")
    return False


def _evaluate_once(workdir: Path) -> None:
    """Score the test split with the best checkpoint, or the latest where nothing validated."""
    tested = setup.recorded_cases(workdir)["test"]
    if not tested or (workdir / "evaluation" / "test" / "scores.json").exists():
        print(f"{workdir}: " + ("scored before" if tested else "no test cases to score"))
        return
    evaluate(workdir, split="test", which="best")


def evaluate(
    workdir: Path,
    *,
    split: str,
    which: str,
    data: Path | None = None,
    second: Sequence[Path] | None = None,
    flip: bool = False,
) -> int:
    """Predict and score every case of a split; write `<workdir>/evaluation/<split>/`.

    With `data`, every CT with a mask in that folder instead, whatever the run was trained on; the
    results' folder has its name. `second`, `flip`: see `prediction.load`. An interrupted evaluation
    goes on with the scans that it had not predicted.
    """
    scanner = predictor.load(workdir, which, second or None, flip=flip)
    config = scanner.config
    if data is None:
        cases = [(case.id, case.image, case.labels) for case in setup.cases(config, workdir)[split]]
    else:
        cases = [(found.id, found.image, found.labels) for found in plain_folders.with_masks(data)]
        split = data.resolve().name or "scans"
        if split in tables.OWN_SPLITS:  # a folder of that name is not that part of the run's data
            split = f"folder_{split}"
    if not cases:
        raise InputError(f"{workdir}: the {split} split has no cases; choose another --split")
    # Beside the plain one, which the table of a sweep is made of.
    folder = workdir / "evaluation" / (f"{split}_flip" if flip else split)
    unfinished = folder / "unfinished.json"
    done = read_json(unfinished)
    if done.get("digest") != scanner.digest:
        done = {"digest": scanner.digest, "cases": {}}
    started = time.time()
    scored, index, by_slice = {}, {}, {}
    numbers = scanfile.valid_labels(config.data.labels)
    numbered = config.data.labels == "verse"
    for number, (case, image, labels) in enumerate(cases, 1):
        if image is None or labels is None:
            raise ValueError(f"case {case} is not usable")  # both ways return usable ones
        volume, reference = scanfile.read_pair(image, labels, valid=numbers)
        path = folder / "predictions" / f"{case}_seg.nii.gz"
        title = f"{number}/{len(cases)} {case}"
        scan = f"{image.resolve()} {image.stat().st_mtime_ns}"
        before = done["cases"].get(case, {})
        if before.get("scan") == scan and path.exists():
            print(f"{title}: predicted before the interruption")
            array, named = scanfile.read_labels(path).array, before["named"]
        else:
            found = scanner.segment(volume, image, title)
            array, named = found.labels, found.named
            nifti.write_labels(path, volume.to_native(array), volume)
            done["cases"][case] = {"scan": scan, "named": named}
            write_json(unfinished, done)
        scored[case] = scoring.score_arrays(
            array, reference.array, volume.affine, case, vertebrae=named and numbered
        )
        views = (slice_view(array, config.data.plane) for array in (array, reference.array))
        by_slice[case] = slice_dice.slice_dice(*views, axis=0)
        index[case] = {
            "image": _within(workdir, image),
            "labels": _within(workdir, labels),
            "prediction": _within(workdir, path),
        }
    scores = scoring.collect(scored)
    write_json(folder / "cases.json", index)
    chosen = {"plane": config.data.plane, **slice_dice.best_and_worst(by_slice)}
    write_json(folder / "slices.json", chosen)
    print(summarised.case_table(scores))
    print(summarised.summary_table(scores))
    if config.task == "patch_classification" and data is None:
        variables = predictor.load_run(workdir, which)[1]
        of_patches = patch_level.write_patch_level(config, variables, workdir, split, folder)
        print(classification.summary_table(of_patches))
    # Last: where this file is, the evaluation is whole.
    write_json(folder / "scores.json", scores)
    unfinished.unlink(missing_ok=True)
    print(f"{len(cases)} cases in {time.time() - started:.0f} s; scores: {folder / 'scores.json'}")
    return 0


def _within(workdir: Path, path: Path) -> str:
    """Return `path` relative to the workdir if it lies in it, so that the run can be moved."""
    path, workdir = path.resolve(), workdir.resolve()
    return str(path.relative_to(workdir) if path.is_relative_to(workdir) else path)


def predict(
    workdirs: Sequence[Path],
    source: Path,
    output: Path,
    *,
    reference: Path | None,
    which: str,
    second: Sequence[Path] = (),
    flip: bool = False,
) -> int:
    """Segment a CT or every CT of a folder; a file that fails is named and the rest go on.

    `workdirs`, `second`, `flip`: see `prediction.load`. Named vertebrae come with their centroids.
    """
    if scanfile.is_scan(output) and not output.is_dir():
        raise InputError(
            f"{output}: --output is a folder, files in it get the names of their scans"
        )
    paths = plain_folders.scan_files(source)
    references = {} if reference is None else plain_folders.reference_files(reference, paths)
    scanner = predictor.load(workdirs, which, second or None, flip=flip)
    output.mkdir(parents=True, exist_ok=True)
    valid = scoring.comparable_labels(scanner.config.data.labels)
    failed = 0
    for case_id, path in paths.items():
        try:
            if case_id in references:
                volume, truth = scanfile.read_pair(path, references[case_id], valid=valid)
            else:
                volume, truth = scanfile.read_volume(path), None
            started = time.monotonic()
            found = scanner.segment(volume, path, case_id)
        except InputError as error:
            if len(paths) == 1:
                raise
            print(f"spinejax predict: error: {error}", file=sys.stderr)
            failed += 1
            continue
        taken = time.monotonic() - started
        native = volume.to_native(found.labels)
        nifti.write_labels(output / f"{case_id}_seg.nii.gz", native, volume)
        if found.named:
            points = found.centroids
            centroids.write_centroids(output / f"{case_id}_ctd.json", points, volume)
            centroids.write_markups(output / f"{case_id}_ctd.mrk.json", points, volume)
        figures.quicklook(
            volume,
            found.labels,
            None if truth is None else truth.array,
            output / f"{case_id}_quicklook.png",
            title=case_id,
            centroids=found.centroids,
        )
        words = predictor.describe(found, volume, taken)
        print(f"{output / f'{case_id}_seg.nii.gz'}: {words}")
    if failed:
        raise InputError(f"{failed} of {len(paths)} scans failed (named above); the rest are done")
    return 0


def score(
    prediction: Path,
    reference: Path,
    output: Path,
    *,
    labels: str,
    reference_centroids: str | None = None,
) -> int:
    """Compare label files or folders; write JSON and print the summary."""
    if output.is_dir():
        raise InputError(f"{output}: is a folder; name a JSON file, e.g. {output / 'scores.json'}")
    scores = scoring.score_paths(
        prediction,
        reference,
        labels=labels,
        reference_centroids=reference_centroids,
        progress=True,
    )
    write_json(output, scores)
    print(summarised.summary_table(scores))
    print(f"scores: {output}")
    return 0
