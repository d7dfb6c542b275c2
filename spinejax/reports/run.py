"""The content of a run's workdir, read for a report."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spinejax.errors import InputError
from spinejax.io import scanfile
from spinejax.io.grids import match_labels
from spinejax.reports.tables import OWN_SPLITS, vertebra_summary
from spinejax.volume import Volume


@dataclass(frozen=True)
class Run:
    """A run as its workdir describes it.

    Attributes:
        workdir: the folder.
        config: config.json.
        record: run.json, empty where there is none.
        evaluations: split -> score file, the test split first.
        patches: split -> file of patch scores, where there is one.
        cases: split -> case id -> paths ("image", "labels", "prediction").
        finished: whether training ended.
    """

    workdir: Path
    config: dict[str, Any]
    record: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    patches: dict[str, dict[str, Any]]
    cases: dict[str, dict[str, Any]]
    finished: bool

    @property
    def is_patches(self) -> bool:
        """Whether the network classifies patches."""
        return self.config.get("task") == "patch_classification"

    @property
    def is_named(self) -> bool:
        """Whether the page's evaluation names vertebrae."""
        return vertebra_summary(self.scores) is not None

    @property
    def split(self) -> str | None:
        """The split that the page is about: test, else val, else the first one."""
        return next(iter(self.evaluations), None)

    @property
    def scores(self) -> dict[str, Any]:
        """The score file that the page is about; empty where nothing was evaluated."""
        return self.evaluations[self.split] if self.split is not None else {}

    @property
    def folder(self) -> Path:
        """The folder of the page's evaluation."""
        return self.workdir / "evaluation" / (self.split or OWN_SPLITS[0])

    @property
    def parameters(self) -> int | None:
        """Trainable parameters of the network, where they were recorded."""
        count = self.record.get("parameters")
        return count if isinstance(count, int) else None

    def case_files(self, case: str, split: str | None = None) -> dict[str, Path]:
        """Return the paths of a case: "image", "prediction" and, if it was recorded, "labels".

        Raises:
            InputError: cases.json does not name the files.
        """
        paths = self.cases.get(split or self.split or "", {}).get(case)
        if not isinstance(paths, Mapping) or not {"image", "prediction"} <= set(paths):
            raise InputError(f"cases.json does not say where the scan and prediction of {case} are")
        return {
            # Paths inside the workdir are relative to it, so that it can be moved.
            name: self.workdir / str(paths[name])
            for name in ("image", "prediction", "labels")
            if paths.get(name)
        }

    def read_case(
        self, case: str, split: str | None = None
    ) -> tuple[Volume, dict[str, np.ndarray]]:
        """Read a case of an evaluation; by default of the one that the page is about.

        Returns:
            The scan, and "prediction" and, if its file is there, "labels" on the grid of its array.

        Raises:
            InputError: cases.json does not name the files, or one is gone or damaged.
        """
        files = self.case_files(case, split)
        for name, path in files.items():
            if name != "labels" and not path.is_file():
                raise InputError(f"{path} is gone")
        volume = scanfile.read_volume(files["image"])
        masks = {
            name: match_labels(volume, scanfile.read_labels(path, valid=None)).array
            for name, path in files.items()
            if name != "image" and path.is_file()
        }
        return volume, masks


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: the file is missing, cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({error}); write it again or remove it"
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a {type(value).__name__}, not a JSON object; remove it")
    return value


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def read_run(workdir: str | os.PathLike[str]) -> Run:
    """Read what the workdir of a run holds; only `config.json` must be there.

    Raises:
        InputError: the folder is missing, is not a run, or holds a damaged file.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise InputError(f"{workdir}: no such folder; give the --workdir of `spinejax train`")
    if not (workdir / "config.json").is_file():
        raise InputError(
            f"{workdir} is not the workdir of a run: it has no config.json; give the --workdir of "
            "`spinejax train`"
        )
    config = read_json(workdir / "config.json")
    record = _read_if_there(workdir / "run.json")
    evaluations: dict[str, dict[str, Any]] = {}
    patches: dict[str, dict[str, Any]] = {}
    cases: dict[str, dict[str, Any]] = {}
    found = {path.parent.name: path for path in sorted(workdir.glob("evaluation/*/scores.json"))}
    for split in [*(name for name in OWN_SPLITS if name in found), *sorted(found)]:
        if split not in evaluations:
            evaluations[split] = _checked(found[split], read_json(found[split]))
            cases[split] = _read_if_there(found[split].with_name("cases.json"))
            of_patches = found[split].with_name("patches.json")
            if of_patches.is_file():
                patches[split] = _checked(of_patches, read_json(of_patches))
    finished = (workdir / "DONE").exists()
    return Run(workdir, config, record, evaluations, patches, cases, finished)


def _checked(path: Path, scores: dict[str, Any]) -> dict[str, Any]:
    cases = scores.get("cases")
    if not isinstance(cases, Mapping) or not all(isinstance(v, Mapping) for v in cases.values()):
        raise InputError(f"{path}: has no scores of cases; run `spinejax evaluate` again")
    return scores
