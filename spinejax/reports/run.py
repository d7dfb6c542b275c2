"""What the workdir of a run holds, read for a report."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spinejax.errors import InputError

_SPLITS = ("test", "val", "train")


@dataclass(frozen=True)
class Run:
    """What a workdir says of its run.

    `evaluations`: split -> score file, the test split first. `cases`: split -> case id -> paths
    ("image", "labels", "prediction"). `finished`: whether training ended.
    """

    workdir: Path
    config: dict[str, Any]
    record: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    cases: dict[str, dict[str, Any]]
    finished: bool

    @property
    def parameters(self) -> int | None:
        """Trainable parameters of the network, where they were recorded."""
        count = self.record.get("parameters")
        return count if isinstance(count, int) else None

    @property
    def split(self) -> str | None:
        """The part of the data that the page is about: test, else val, else what there is."""
        return next(iter(self.evaluations), None)


def _read_json(path: Path, *, absent: dict[str, Any] | None = None) -> dict[str, Any]:
    if not path.is_file():
        if absent is not None:
            return absent
        raise InputError(
            f"{path.parent} is not the workdir of a run: it has no {path.name}; give the --workdir "
            f"of `spinejax train`"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({error}); write it again or remove it"
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a {type(value).__name__}, not a JSON object; remove it")
    return value


def read_run(workdir: str | os.PathLike[str]) -> Run:
    """Read what the workdir of a run holds; only `config.json` must be there.

    Raises:
        InputError: the folder is missing, is not a run, or holds a damaged file.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise InputError(f"{workdir}: no such folder; give the --workdir of `spinejax train`")
    config = _read_json(workdir / "config.json")
    record = _read_json(workdir / "run.json", absent={})
    evaluations: dict[str, dict[str, Any]] = {}
    cases: dict[str, dict[str, Any]] = {}
    found = {path.parent.name: path for path in sorted(workdir.glob("evaluation/*/scores.json"))}
    for split in [*(name for name in _SPLITS if name in found), *sorted(found)]:
        if split not in evaluations:
            evaluations[split] = _checked(found[split], _read_json(found[split]))
            cases[split] = _read_json(found[split].with_name("cases.json"), absent={})
    return Run(workdir, config, record, evaluations, cases, (workdir / "DONE").exists())


def _checked(path: Path, scores: dict[str, Any]) -> dict[str, Any]:
    cases = scores.get("cases")
    if not isinstance(cases, Mapping) or not all(isinstance(v, Mapping) for v in cases.values()):
        raise InputError(f"{path}: has no scores of cases; run `spinejax evaluate` again")
    return scores
