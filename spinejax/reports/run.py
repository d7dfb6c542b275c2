"""The content of a run's workdir, read for a report."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spinejax import records, schema, sweep_state
from spinejax.errors import InputError
from spinejax.io import scanfile
from spinejax.io.grids import match_labels
from spinejax.label_schemes import BINARY
from spinejax.reports.tables import OWN_SPLITS, vertebra_summary
from spinejax.training import run_folder
from spinejax.volume import Volume

_AGAIN = "remove it and run the same `spinejax evaluate` again"


@dataclass(frozen=True)
class Run:
    """A run as its workdir describes it.

    Attributes:
        workdir: the folder.
        config: config.json.
        record: run.json, empty where there is none.
        evaluations: split -> score file, the test split first.
        patches: split -> file of patch scores, where there is one.
        cases: split -> case id -> paths ("image", "labels", "prediction"), and "scheme", the
            numbers in the labels.
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

    def valid_labels(
        self, kind: str, case: str, split: str | None = None
    ) -> Collection[int] | None:
        """Return the argument `valid` of `scanfile.read_labels` for a mask of a case.

        Args:
            kind: "labels" or "prediction".
            case: case id.
            split: by default that which the page is about.
        """
        paths = self.cases.get(split or self.split or "", {}).get(case, {})
        numbers = (self.config.get("data") or {}).get("labels", "verse")
        numbers = paths.get("scheme", numbers)  # older versions did not write it
        if kind == "prediction" and numbers != BINARY:
            numbers = "verse"
        return scanfile.valid_labels(numbers, strict=False)

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
            name: match_labels(
                volume, scanfile.read_labels(path, self.valid_labels(name, case, split))
            ).array
            for name, path in files.items()
            if name != "image" and path.is_file()
        }
        return volume, masks


def read_run(workdir: str | os.PathLike[str]) -> Run:
    """Read what the workdir of a run holds; only `config.json` must be there.

    Raises:
        InputError: the folder is missing, is not a run, or holds a damaged file.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise InputError(f"{workdir}: no such folder; give the --workdir of `spinejax train`")
    config = schema.plain(run_folder.checked_config(workdir))
    record = sweep_state.read_run(workdir)
    evaluations: dict[str, dict[str, Any]] = {}
    patches: dict[str, dict[str, Any]] = {}
    cases: dict[str, dict[str, Any]] = {}
    found = {path.parent.name: path for path in sorted(workdir.glob("evaluation/*/scores.json"))}
    for split in [*(name for name in OWN_SPLITS if name in found), *sorted(found)]:
        if split not in evaluations:
            evaluations[split] = sweep_state.read_scores(found[split])
            cases[split] = records.read_if_there(
                found[split].with_name("cases.json"), {str: dict}, _AGAIN
            )
            of_patches = found[split].with_name("patches.json")
            if of_patches.is_file():
                patches[split] = records.read(of_patches, {"cases": {str: dict}}, _AGAIN)
    finished = (workdir / "DONE").exists()
    return Run(workdir, config, record, evaluations, patches, cases, finished)
