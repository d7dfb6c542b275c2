"""The tables that the two papers published, as printed, and why our scores differ from them.

Paper A, "saeed2023": Saeed et al., Diagnostics 2023, 13, 2658, Tables 3-11. Paper B, "qadri2021":
Qadri et al., IEEE Access 2021, Tables 2 and 3. All numbers and words stand in published.json. A
test compares the numbers with the papers' text and finds contradictions.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class PaperTable:
    """One published table; every cell is text as the paper has it.

    Attributes:
        name: for example "saeed2023_table3".
        paper: key of `papers`.
        number: of the table in the paper.
        title: what the table compares.
        labels: names of the columns that say what a row is.
        columns: names of the columns of numbers, which follow.
        metrics: our score that belongs beside each of `columns`.
        scores: what we score: "binary" masks, "vertebrae" by name, or "patches".
        rows: cells of `labels`, then of `columns`.
        doubts: reason -> (row, column) of the published cells that it makes doubtful; columns are
            counted among `columns`.
        system: the network of the whole table, "" where each row names one.
    """

    name: str
    paper: str
    number: int
    title: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    scores: str
    rows: tuple[tuple[str, ...], ...]
    doubts: dict[str, tuple[tuple[int, int], ...]]
    system: str = ""

    @property
    def source(self) -> str:
        """Where the table is printed."""
        return f"{citation(self.paper)}, Table {self.number}"

    def place(self, row: tuple[str, ...]) -> tuple[str, ...]:
        """Return the words of the label columns of a row, which tell it from the others."""
        return row[: len(self.labels)]

    def cells(self, row: tuple[str, ...]) -> tuple[str, ...]:
        """Return the numbers of a row."""
        return row[len(self.labels) :]


@cache
def _published() -> dict[str, Any]:
    return json.loads(resources.files(__package__).joinpath("published.json").read_text("utf-8"))


def citation(paper: str) -> str:
    """Return how a paper is cited."""
    return _published()["papers"][paper]["citation"]


@cache
def tables() -> dict[str, PaperTable]:
    """Return name -> table, for example "saeed2023_table3"."""
    found = {}
    for name, fields in _published()["tables"].items():
        lists = {key: tuple(fields[key]) for key in ("labels", "columns", "metrics")}
        lists["rows"] = tuple(map(tuple, fields["rows"]))
        doubts = {why: tuple(map(tuple, cells)) for why, cells in fields["doubts"].items()}
        found[name] = PaperTable(**{**fields, **lists, "doubts": doubts}, name=name)
    return found


def reasons(paper: str, *, phantom: bool, quoted: bool = False) -> list[str]:
    """Return why a run's scores may not be compared with those of a paper.

    Args:
        paper: "saeed2023" or "qadri2021".
        phantom: whether the run's scans are synthetic.
        quoted: whether the published row quotes another group (Table 11 of paper A).
    """
    words = _published()["papers"][paper]
    found = [words["quoted"]] if quoted else list(words["reasons"])
    synthetic = words["quoted_phantom"] if quoted else words["phantom"]
    return [synthetic, *found] if phantom else found


def short_name(system: str) -> str:
    """Return a network's name without the number of a reference or the word "(Proposed)"."""
    return re.sub(r" (\[\d+\]|\(Proposed\))$", "", system)
