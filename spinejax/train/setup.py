"""From a config to cases, cached scans and run.json."""

import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from spinejax.data import cache
from spinejax.data.cache import CachedCase
from spinejax.data.feeds import TrainingSource
from spinejax.data.preprocess import from_config
from spinejax.datasets import splits, verse
from spinejax.datasets.verse import Case
from spinejax.errors import InputError
from spinejax.files import write_json
from spinejax.phantom import stream_feed
from spinejax.train import parallel
from spinejax.train.checkpoint import begun

SPLITS = ("train", "val", "test")

_log = logging.getLogger("spinejax")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "spinejax")


def dataset_root(config: ConfigDict, workdir: Path) -> Path:
    """Return the folder of the scans; phantoms are rendered into the workdir if they are not there.

    Raises:
        InputError: no folder was given, or it is none.
    """
    if config.data.source != "verse":
        return _phantoms(config, workdir)
    if not config.data.root:
        raise InputError(
            "data.root is empty; give the folder of the scans with --config.data.root=DIR "
            "(or --config.data.source=phantom for synthetic ones)"
        )
    root = Path(config.data.root).expanduser()
    if not root.is_dir():
        raise InputError(
            f"data.root={config.data.root}: there is no such folder (looked for in {Path.cwd()}); "
            "correct the path: where scans of a run were moved, by its `spinejax train` command "
            "with the new --config.data.root=DIR"
        )
    return root


def _phantoms(config: ConfigDict, workdir: Path) -> Path:
    from spinejax.phantom import dataset

    root, fields = workdir / "phantoms", config.data.phantom
    # Written last: a folder without it is one whose writing was interrupted.
    done, wanted = root / "phantoms.json", fields.to_dict()
    if parallel.process_index() == 0 and _read(done) != wanted:
        dataset.write_dataset(
            root,
            fields.cases,
            fields.seed,
            min_spacing_mm=fields.min_spacing_mm,
            max_spacing_mm=fields.max_spacing_mm,
            min_extent_mm=fields.min_extent_mm,
            max_extent_mm=fields.max_extent_mm,
            rates=fields.rates,
            label_cut=fields.label_cut,
            region=fields.region,
        )
        write_json(done, wanted)
    parallel.barrier("phantoms")
    return root


def cases(config: ConfigDict, workdir: Path) -> dict[str, list[Case]]:
    """Return the cases of each split, those that can be used.

    Raises:
        InputError: no folder, no usable case, a split that cannot be made, or other splits than
            those that the run in `workdir` was trained on.
    """
    if config.data.source == stream_feed.SOURCE and config.data.phantom.cases == 0:
        return {name: [] for name in SPLITS}
    root = dataset_root(config, workdir)
    index = verse.index_dataset(root, exclude_gl=config.data.exclude_gl)
    edition = config.data.get("edition", "")
    if edition and config.data.source == "verse":  # phantoms are of none
        index = verse.of_edition(index, edition)
        if not index:
            raise InputError(
                f"{root} has no scan of data.edition={edition}; give its folder as data.root, or "
                'data.edition="" for all scans that are there'
            )
    usable = verse.usable(index)
    if config.data.source != "verse":
        # A start that saved nothing may have rendered more of them.
        wanted = _phantom_names(config.data.phantom.cases)
        usable = [case for case in usable if case.id in wanted]
    if not usable:
        raise InputError(
            f"{root} has no scan with both CT and mask; `spinejax doctor --data={root}` names what "
            "is missing"
        )
    lacking = [c.id for c in index if not (c.image and c.labels) and c.duplicate_of is None]
    if lacking and parallel.process_index() == 0:
        _log.warning(
            "left out: %d of %d scans lack CT or mask (first: %s); `spinejax doctor --data=%s` "
            "names the files",
            len(lacking),
            len(lacking) + len(usable),
            lacking[0],
            root,
        )
    split = splits.split_cases(
        usable,
        kind=config.data.split,
        seed=config.seed,
        test_fraction=config.data.test_fraction,
        val_fraction=config.data.val_fraction,
        folds=config.data.folds,
        fold=config.data.fold,
    )
    if config.data.source == stream_feed.SOURCE:
        # Training draws its own phantoms; those that were written validate and test.
        split = {"train": [], "val": split["train"] + split["val"], "test": split["test"]}
    if begun(workdir):
        path = workdir / "run.json"
        _check_cases(_read(path).get("cases", {}), case_ids(split), path)
    return split


def case_ids(split: dict[str, list[Case]]) -> dict[str, list[str]]:
    """Return the ids of each split, as run.json has them."""
    return {name: [case.id for case in split[name]] for name in SPLITS}


def _phantom_names(count: int) -> set[str]:
    from spinejax.phantom import dataset

    return {dataset.case_name(index) for index in range(count)}


def prepare(
    config: ConfigDict,
    workdir: Path,
    *,
    wanted: tuple[str, ...] = SPLITS,
    progress: bool = True,
) -> dict[str, list[CachedCase]]:
    """Preprocess and cache the scans of the `wanted` splits, and return them.

    Of several processes the first does the work and the others then find it done; the cache folder
    must be one that all of them see.

    Raises:
        InputError: as `cases`, or a scan or the cache folder cannot be used.
    """
    return cached(config, workdir, cases(config, workdir), wanted=wanted, progress=progress)


def cached(
    config: ConfigDict,
    workdir: Path,
    split: dict[str, list[Case]],
    *,
    wanted: tuple[str, ...] = SPLITS,
    progress: bool = True,
) -> dict[str, list[CachedCase]]:
    """As `prepare`, of a split that is there already."""
    settings = from_config(config.data)
    folder = Path(config.data.cache_dir or workdir / "cache")
    first = parallel.process_index() == 0
    chosen = {case.id: case for name in wanted for case in split[name]}

    def prepared() -> list[CachedCase]:
        return cache.prepare(
            list(chosen.values()),
            settings,
            folder,
            labels=config.data.labels,
            progress=progress and first,
        )

    if first:
        entries = prepared()
    parallel.barrier("cache")
    if not first:
        entries = prepared()
    by_id = dict(zip(chosen, entries, strict=True))
    return {name: [by_id[case.id] for case in split[name]] for name in wanted}


def pixels_mm(cases: Sequence[TrainingSource]) -> tuple[float, float]:
    """Return the least and the greatest spacing of the pixels of some scans, along either axis."""
    spacings = [side for case in cases for side in case.spacing_mm]
    return min(spacings), max(spacings)


def recorded_pixels_mm(workdir: Path) -> tuple[float, float] | None:
    """Return `pixels_mm` of the scans that a run was trained on; None where it is not recorded."""
    found = _read(workdir / "run.json").get("pixels_mm")
    if isinstance(found, list) and len(found) == 2:
        low, high = found
        if all(isinstance(side, int | float) and side > 0 for side in found):
            return float(low), float(high)
    return None


def recorded_cases(workdir: Path) -> dict[str, list[str]]:
    """Return the ids of the cases of each split of a run, empty where none are recorded."""
    found = _read(workdir / "run.json").get("cases", {})
    return {name: list(found.get(name, [])) for name in SPLITS}


def _commit() -> str:
    """Commit of the source tree that runs, "" where it is not one; "+" marks changes to it."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunRecord:
    """run.json: what ran, where, for how long, on which cases."""

    def __init__(
        self,
        workdir: Path,
        split: dict[str, list[Case]],
        *,
        resumes: bool,
        devices: int,
        steps: int,
        parameters: int,
        pixels_mm: tuple[float, float],
    ) -> None:
        """Write this start's record, which goes on with that of earlier ones if it resumes them."""
        self._path = workdir / "run.json"
        earlier = _read(self._path) if resumes else {}
        self._began = time.monotonic()
        self._seconds = float(earlier.get("seconds", 0.0))
        kinds = sorted({d.device_kind for d in jax.devices()})
        self._record: dict[str, Any] = {
            "started": earlier.get("started", _now()),
            "finished": None,
            "seconds": self._seconds,
            "hardware": f"{platform.machine()}, {os.cpu_count()} CPU cores, {', '.join(kinds)}",
            "backend": jax.default_backend(),
            "devices": devices,
            "processes": parallel.process_count(),
            "versions": {
                "python": platform.python_version(),
                **{name: _version(name) for name in _PACKAGES},
            },
            "commit": _commit(),
            "steps": steps,
            "parameters": parameters,
            "starts": int(earlier.get("starts", 0)) + 1,
            "pixels_mm": list(pixels_mm),
            "cases": case_ids(split),
        }
        self._write()

    def update(self, *, finished: bool = False) -> None:
        """Write how long it has taken so far, over all starts."""
        self._record["seconds"] = round(self._seconds + time.monotonic() - self._began, 3)
        if finished:
            self._record["finished"] = _now()
        self._write()

    def _write(self) -> None:
        if parallel.process_index() == 0:
            write_json(self._path, self._record)


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _check_cases(old: dict[str, list[str]], new: dict[str, list[str]], path: Path) -> None:
    for name in SPLITS if old else ():
        gone = sorted(set(old.get(name, [])) - set(new[name]))
        come = sorted(set(new[name]) - set(old.get(name, [])))
        if gone or come:
            changes = [f"{len(gone)} missing ({gone[0]})"] if gone else []
            changes += [f"{len(come)} new ({come[0]})"] if come else []
            raise InputError(
                f"{path}: the {name} split now has other cases, {' and '.join(changes)}; restore "
                "the dataset, or train in another --workdir"
            )
