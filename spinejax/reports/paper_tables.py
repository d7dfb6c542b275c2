"""The published tables of both papers, as printed; the numbers themselves stand in published.json.

Every cell is text as the paper has it. `metrics` says which of our scores a column is to be set
beside, `scores` of what: "binary" masks of the spine, "vertebrae" each by its name, or "patches".
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class PaperTable:
    """One table: `rows` begin with the words of the `labels` columns, those of `columns` follow.

    `system` is the network that the whole table is about, "" where its rows name one.
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
    system: str = ""

    @property
    def source(self) -> str:
        """Where it is printed."""
        return f"{papers()[self.paper]}, Table {self.number}"

    def place(self, row: tuple[str, ...]) -> tuple[str, ...]:
        """Return the words of the label columns of a row, which tell it from the others."""
        return row[: len(self.labels)]


def _read() -> dict[str, Any]:
    text = resources.files("spinejax.reports").joinpath("published.json").read_text("utf-8")
    return json.loads(text)


@cache
def papers() -> dict[str, str]:
    """Return short name of a paper -> how it is cited."""
    return dict(_read()["papers"])


@cache
def tables() -> dict[str, PaperTable]:
    """Return name -> table, e.g. "saeed2023_table3"."""
    found = {}
    for name, fields in _read()["tables"].items():
        listed = {k: tuple(v) for k, v in fields.items() if k in ("labels", "columns", "metrics")}
        rows = tuple(map(tuple, fields["rows"]))
        found[name] = PaperTable(**{**fields, **listed, "rows": rows}, name=name)
    return found
