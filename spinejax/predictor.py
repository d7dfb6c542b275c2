"""Trained runs, ready for whole scans: one that segments the spine, one that names vertebrae, both.

A run of slices or patches gives a mask. With a second run of cubes, in its folder's `vertebrae` or
named by the caller, the two are the pipeline of paper A: the mask, then the vertebrae in it. A run
of cubes also works alone, unless it was trained to see a mask.
"""

import hashlib
import json
import logging
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from spinejax import labels, losses
from spinejax.data import normalise, preprocess
from spinejax.errors import InputError
from spinejax.inference import cascade, ensemble, masks
from spinejax.inference.sequence import UNCERTAIN_MARGIN, Record
from spinejax.inference.windows3d import make_cube_predictor
from spinejax.sweep_state import SECOND
from spinejax.tasks import Task, build_task
from spinejax.train import checkpoint, settings, setup
from spinejax.volume import Volume

logger = logging.getLogger("spinejax")

CUBES = "vertebra_recognition"

OTHER_SCALE = 1.5
"""Scans whose pixels differ by more than this factor from those of training are warned of."""


@dataclass(frozen=True, eq=False)
class Result:
    """What was found in a scan.

    labels: (x, y, z) uint8 on the scan's grid: VerSe ids where vertebrae are named, else 0 and 1.
    named: whether they are.
    centroids: VerSe id -> (3,) voxel index of the body's centre.
    record: of the decoder; None where nothing was found, or named.
    """

    labels: np.ndarray
    named: bool = False
    centroids: dict[int, np.ndarray] = field(default_factory=dict)
    record: Record | None = None


Segment = Callable[[Volume, Path, str], Result]
"""(scan, its file, title of the progress bar) -> what was found."""


@dataclass(frozen=True)
class Scanner:
    """A run, or the two of a pipeline.

    config: that of the first.
    segment: what finds the vertebrae of a scan.
    digest: of all configs and parameters: equal digests find the same in a scan.
    """

    config: ConfigDict
    segment: Segment
    digest: str


def load_run(workdir: Path, which: str) -> tuple[ConfigDict, dict[str, Any]]:
    """Return the config and variables of a run; an incomplete or edited config is refused."""
    config, variables = checkpoint.load_for_inference(workdir, which)
    try:
        settings.check_config(config)
    except InputError as error:
        raise InputError(f"{workdir / 'config.json'}: {error}") from error
    return config, variables


@dataclass(frozen=True, eq=False)
class _Run:
    """A trained run: its folder, config and variables."""

    workdir: Path
    config: ConfigDict
    variables: dict[str, Any]


def load(
    workdirs: Path | Sequence[Path],
    which: str,
    second: Path | Sequence[Path] | None = None,
    *,
    flip: bool = False,
) -> Scanner:
    """Compile what the runs need for whole scans.

    Args:
        workdirs: of a run, or of several whose probabilities are averaged: seeds, folds, networks
            that see the same preprocessed scans.
        which: "best" or "latest" checkpoint.
        second: of a run that names vertebrae, or of several; None takes the folders `vertebrae` in
            `workdirs`, if there are any.
        flip: average over the mirror image, left and right, too; of sagittal slices there is none.

    Raises:
        InputError: not a run's folder, or runs that do not fit together.
    """
    folders = [workdirs] if isinstance(workdirs, Path) else list(workdirs)
    runs = [_Run(folder, *load_run(folder, which)) for folder in folders]
    config, workdir = runs[0].config, runs[0].workdir
    _check_alike(runs)
    if config.task == CUBES:
        if second is not None:
            raise InputError(
                f"--workdir={workdir} names vertebrae and --vertebrae={second} comes after it; "
                "exchange the two: --workdir is the run that segments the spine"
            )
        if config.data.cube.spine_prior == "channel":
            raise InputError(
                f"{workdir}: this network needs the mask of an earlier one "
                "(data.cube.spine_prior=channel); give --workdir=RUN_OF_SLICES "
                f"--vertebrae={workdir}"
            )
        return Scanner(config, _namer(runs, flip=flip), _digest(runs, flip=flip))
    later = _second_folders(folders, second)
    if flip and not later and config.data.plane == "sagittal":
        raise InputError(
            f"--flip: {workdir} sees sagittal slices, whose mirror image is another patient's "
            "back to front; leave --flip out"
        )
    find = _masker(runs, flip=flip)
    if not later:
        alone = _digest(runs, flip=flip)
        return Scanner(config, lambda *scan_: Result(find(*scan_)), alone)
    others = [_Run(folder, *load_run(folder, which)) for folder in later]
    for other in others:
        if other.config.task != CUBES:
            raise InputError(
                f"--vertebrae={other.workdir} is a run of task={other.config.task}, which names no "
                f"vertebrae; give one of task={CUBES}, and the run that segments the spine as "
                "--workdir"
            )
    _check_alike(others)
    name = _namer(others, flip=flip)

    def both(volume: Volume, path: Path, title: str) -> Result:
        return name(volume, path, title, find(volume, path, title))

    return Scanner(config, both, _digest([*runs, *others], flip=flip))


def _digest(runs: Sequence[_Run], *, flip: bool) -> str:
    found = hashlib.sha256(f"{flip}".encode())
    for run in runs:
        found.update(json.dumps(settings.plain(run.config), sort_keys=True).encode())
        for leaf in jax.tree.leaves(run.variables):
            found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def _second_folders(folders: Sequence[Path], second: Path | Sequence[Path] | None) -> list[Path]:
    """Return the runs that name vertebrae: those given, else those in the folders of the first."""
    if second is not None:
        return [second] if isinstance(second, Path) else list(second)
    found = [folder / SECOND for folder in folders if (folder / SECOND / "config.json").exists()]
    if found and len(found) < len(folders):
        raise InputError(
            f"{len(found)} of {len(folders)} runs have a second network (the first: {found[0]}); "
            "give those to use as --vertebrae"
        )
    return found


_ALIKE = (
    "task", "data.preprocess", "data.plane", "data.size", "data.cube.size",
    "data.cube.spine_prior", "data.labels",
)  # fmt: skip
"""Fields in which runs that are averaged must agree: they see the same preprocessed scans."""


def _check_alike(runs: Sequence[_Run]) -> None:
    first = settings.flatten(settings.plain(runs[0].config))
    for run in runs[1:]:
        other = settings.flatten(settings.plain(run.config))
        for key in sorted(first | other):
            if key.startswith(_ALIKE) and first.get(key) != other.get(key):
                raise InputError(
                    f"{run.workdir} cannot be averaged with {runs[0].workdir}: {key} is "
                    f"{other.get(key)!r} there and {first.get(key)!r} here; give runs that agree "
                    "in it"
                )
    if len({_gives_offsets(run.config) for run in runs}) > 1:
        raise InputError(
            f"{runs[0].workdir} and others cannot be averaged: only some were trained with "
            "loss.offset_weight; give runs that agree in it"
        )


def _gives_offsets(config: ConfigDict) -> bool:
    return config.loss[losses.OFFSET_WEIGHT] > 0


def _mode(runs: Sequence[_Run]) -> str:
    """Return the intensity mode of some runs that asks most of the scan."""
    modes = [run.config.data.normalise for run in runs]
    return next((mode for mode in modes if mode in normalise.NEED_STATS), modes[0])


def scan_settings(config: ConfigDict, task: Task) -> masks.ScanSettings:
    """Return how a run of slices or patches predicts a scan."""
    how = config.predict
    rows, columns, _ = task.input_shape
    return masks.ScanSettings(
        preprocess=preprocess.from_config(config.data),
        size=(rows, columns),
        normalise=config.data.normalise,
        threshold=how.threshold,
        opening_mm=how.opening_mm,
        min_component_ml=how.min_component_ml,
        fill_holes=how.fill_holes,
        drop_islands=how.drop_islands,
    )


def cube_settings(config: ConfigDict, task: Task, batch_size: int) -> cascade.CubeSettings:
    """Return how a run of cubes names the vertebrae of a scan, `batch_size` windows in a call."""
    how = config.predict
    x, y, z, _ = task.input_shape
    return cascade.CubeSettings(
        preprocess=preprocess.from_config(config.data),
        normalise=config.data.normalise,
        window=(x, y, z),
        overlap=how.overlap,
        batch_size=batch_size,
        shifts=how.shifts,
        prior=config.data.cube.spine_prior,
        offsets=_gives_offsets(config),
        margin_mm=how.margin_mm,
        anomalies=how.anomalies,
        drop_cut=how.drop_cut,
    )


def _masker(runs: Sequence[_Run], *, flip: bool) -> Callable[[Volume, Path, str], np.ndarray]:
    """Return what segments the spine."""
    members = []
    for run in runs:
        task = build_task(run.config)
        if task.stack_predictor is None:
            raise ValueError(f"task={run.config.task} segments no slices")
        members.append(task.stack_predictor(run.variables))
    predict = ensemble.mean_stack(members)
    if flip and runs[0].config.data.plane != "sagittal":
        predict = ensemble.mirrored_stack(predict)
    scans = replace(scan_settings(runs[0].config, task), normalise=_mode(runs))
    known = [mm for run in runs if (mm := setup.recorded_pixels_mm(run.workdir)) is not None]
    pixels_mm = (min(mm[0] for mm in known), max(mm[1] for mm in known)) if known else None

    def find(volume: Volume, path: Path, title: str) -> np.ndarray:
        grid = preprocess.slice_geometry(volume, scans.preprocess)
        if min(grid.shape) < task.least_side:
            raise InputError(
                f"{path}: its {grid.plane} slices are {grid.shape[0]}x{grid.shape[1]} pixels, "
                f"smaller than the network's stride of {task.least_side}; give a larger scan"
            )
        _warn_of_scale(grid.spacing_mm, pixels_mm, path)
        _say_memory(title, volume, masks.estimate_bytes(volume, scans))
        with tqdm(total=grid.n_slices, desc=title, unit="slice", leave=False) as bar:
            return masks.predict_scan(predict, volume, scans, advance=bar.update)

    return find


def _namer(runs: Sequence[_Run], *, flip: bool) -> Callable[..., Result]:
    """Return what names vertebrae: as `Segment`, with the mask of the spine if there is one."""
    config = runs[0].config
    members = []
    for run in runs:
        task = build_task(run.config)
        if task.class_probability is None:
            raise ValueError(f"task={run.config.task} names no vertebrae")
        member, rows = make_cube_predictor(
            task.class_probability, run.variables, batch_size=config.predict.batch_size
        )
        members.append(member)
    cubes = replace(cube_settings(config, task, rows), normalise=_mode(runs))
    predict = ensemble.mean_cubes(members)
    if flip:
        predict = ensemble.mirrored_cubes(predict, offsets=cubes.offsets)

    def name(volume: Volume, path: Path, title: str, spine: np.ndarray | None = None) -> Result:
        used = cubes if spine is not None else replace(cubes, prior="none")
        memory = cascade.estimate_bytes(volume, used, labels.NUM_CLASSES)
        if spine is None:
            _say_memory(title, volume, memory)
        total = cascade.count_windows(volume, spine, used)
        with tqdm(total=total, desc=title, unit="cube", leave=False) as bar:
            found = cascade.label_scan(predict, volume, spine, used, advance=bar.update)
        if found.record is not None and found.record.reversed:
            logger.warning(
                "%s: the vertebrae make far more sense from foot to head; check the header's "
                "orientation. The labels follow the header",
                path,
            )
        return Result(found.labels, True, found.centroids, found.record)

    return name


def _say_memory(title: str, volume: Volume, size: int) -> None:
    shape = "x".join(map(str, volume.shape))
    memory = f"about {size / 2**30:.1f} GiB beside the network"
    print(f"{title}: {shape} voxels, {memory}", flush=True)


def _warn_of_scale(
    pixels_mm: tuple[float, float], trained_mm: tuple[float, float] | None, path: Path
) -> None:
    """Say that the network sees this scan larger or smaller than those it learnt from."""
    if trained_mm is None:
        return
    low, high = trained_mm
    if min(pixels_mm) * OTHER_SCALE < low or max(pixels_mm) > high * OTHER_SCALE:
        logger.warning(
            "%s: the network sees its slices in pixels of %.2f x %.2f mm and was trained on %.2f "
            "to %.2f mm, so everything looks larger or smaller than it learnt; expect a poor "
            "result, or train with data.preprocess.mode=resample",
            path,
            *pixels_mm,
            low,
            high,
        )


def describe(found: Result, volume: Volume, seconds: float) -> str:
    """Return e.g. "T9-L5, 9 vertebrae, 1 cut, 12.4 s, 1.1 GB"; of a mask alone its volume in ml.

    The memory is the greatest that this process has held so far.
    """
    if not found.named:
        volume_ml = np.count_nonzero(found.labels) * float(np.prod(volume.spacing_mm)) / 1000
        return f"{volume_ml:.0f} ml of spine"
    record = found.record
    words = []
    if record is None or not record.labels:
        words.append("no vertebra found, labels are empty")
    else:
        first, last = (labels.name(record.labels[i]) for i in (0, -1))
        count = len(record.labels)
        words.append(f"{first}-{last}" if count > 1 else first)
        words.append(f"{count} vertebra{'e' * (count > 1)}")
        if record.cut:
            words.append(f"{len(record.cut)} cut{' and left out' * bool(record.dropped)}")
        if record.skipped:
            words.append(f"not found: {_names(record.skipped)}")
        if record.anomalies:
            words.append(", ".join(record.anomalies))
        if record.unnamed:
            words.append(f"{record.unnamed} piece{'s' * (record.unnamed > 1)} taken for none")
        if record.margin < UNCERTAIN_MARGIN:
            words.append(f"names UNCERTAIN (margin {record.margin:.1f})")
    words += [f"{seconds:.1f} s", f"{_peak_bytes() / 1e9:.1f} GB"]
    return ", ".join(words)


def _names(ids: tuple[int, ...]) -> str:
    return " ".join(labels.name(i) for i in ids)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
