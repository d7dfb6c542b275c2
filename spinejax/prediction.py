"""Trained runs, ready for whole scans: one that segments the spine, one that names vertebrae, both.

A run of slices or patches gives a mask. With a second run of cubes, in its folder's `vertebrae` or
named by the caller, the two are the pipeline of paper A: the mask, then the vertebrae in it. A run
of cubes also works alone, unless it was trained to see a mask.
"""

import logging
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from spinejax import labels, losses
from spinejax.data import preprocess
from spinejax.errors import InputError
from spinejax.inference import cascade, scan
from spinejax.inference.labelling import UNCERTAIN_MARGIN, Record
from spinejax.inference.volumes import make_cube_predictor
from spinejax.sweep import SECOND
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
    """A run, or the two of a pipeline. `config` is that of the first."""

    config: ConfigDict
    segment: Segment


def load_run(workdir: Path, which: str) -> tuple[ConfigDict, dict[str, Any]]:
    """Return the config and variables of a run; an incomplete or edited config is refused."""
    config, variables = checkpoint.load_for_inference(workdir, which)
    try:
        settings.check_config(config)
    except InputError as error:
        raise InputError(f"{workdir / 'config.json'}: {error}") from error
    return config, variables


def load(workdir: Path, which: str, second: Path | None = None) -> Scanner:
    """Compile what the runs need for whole scans.

    Args:
        workdir: of a run.
        which: "best" or "latest" checkpoint.
        second: of a run that names vertebrae; None takes the folder `vertebrae` in `workdir`, if
            there is one.

    Raises:
        InputError: not a run's folder, or runs that do not fit together.
    """
    config, variables = load_run(workdir, which)
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
        return Scanner(config, _namer(config, variables))
    find = _masker(config, variables, setup.recorded_pixels_mm(workdir))
    if second is None and (workdir / SECOND / "config.json").exists():
        second = workdir / SECOND
    if second is None:
        return Scanner(config, lambda *scan_: Result(find(*scan_)))
    other, variables = load_run(second, which)
    if other.task != CUBES:
        raise InputError(
            f"--vertebrae={second} is a run of task={other.task}, which names no vertebrae; give "
            f"one of task={CUBES}, and the run that segments the spine as --workdir"
        )
    name = _namer(other, variables)

    def both(volume: Volume, path: Path, title: str) -> Result:
        return name(volume, path, title, find(volume, path, title))

    return Scanner(config, both)


def scan_settings(config: ConfigDict, task: Task) -> scan.ScanSettings:
    """Return how a run of slices or patches predicts a scan."""
    how = config.predict
    rows, columns, _ = task.input_shape
    return scan.ScanSettings(
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
        prior=config.data.cube.spine_prior,
        offsets=config.loss.get(losses.OFFSET_WEIGHT, 0.0) > 0,
        margin_mm=how.margin_mm,
        anomalies=how.anomalies,
        drop_cut=how.drop_cut,
    )


def _masker(
    config: ConfigDict, variables: Any, pixels_mm: tuple[float, float] | None
) -> Callable[[Volume, Path, str], np.ndarray]:
    """Return what segments the spine; `pixels_mm` are those that the run was trained on."""
    task = build_task(config)
    if task.stack_predictor is None:
        raise ValueError(f"task={config.task} segments no slices")
    predict = task.stack_predictor(variables)
    scans = scan_settings(config, task)

    def find(volume: Volume, path: Path, title: str) -> np.ndarray:
        grid = preprocess.slice_geometry(volume, scans.preprocess)
        if min(grid.shape) < task.least_side:
            raise InputError(
                f"{path}: its {grid.plane} slices are {grid.shape[0]}x{grid.shape[1]} pixels, "
                f"smaller than the network's stride of {task.least_side}; give a larger scan"
            )
        _warn_of_scale(grid.spacing_mm, pixels_mm, path)
        _say_memory(title, volume, scan.estimate_bytes(volume, scans))
        with tqdm(total=grid.n_slices, desc=title, unit="slice", leave=False) as bar:
            return scan.predict_scan(predict, volume, scans, advance=bar.update)

    return find


def _namer(config: ConfigDict, variables: Any) -> Callable[..., Result]:
    """Return what names vertebrae: as `Segment`, with the mask of the spine if there is one."""
    task = build_task(config)
    if task.class_probability is None:
        raise ValueError(f"task={config.task} names no vertebrae")
    predict, rows = make_cube_predictor(
        task.class_probability, variables, batch_size=config.predict.batch_size
    )
    cubes = cube_settings(config, task, rows)

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
        if record.margin < UNCERTAIN_MARGIN:
            words.append(f"names UNCERTAIN (margin {record.margin:.1f})")
    words += [f"{seconds:.1f} s", f"{_peak_bytes() / 1e9:.1f} GB"]
    return ", ".join(words)


def _names(ids: tuple[int, ...]) -> str:
    return " ".join(labels.name(i) for i in ids)


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
