"""Which published cells cannot be compared with a score, and why, cell by cell."""

import re

from spinejax.reports import published, published_b
from spinejax.reports.paper_tables import PaperTable

Doubts = dict[tuple[int, int], list[str]]
"""(row, column) -> reasons; columns are counted among those with numbers."""

_ROUNDING = 0.02  # points that two decimals of DSC and IoU explain


def doubts(table: PaperTable) -> Doubts:
    """Return the reasons for each cell of a table that has any; by arithmetic, for the most part.

    The reasons that hold for a paper as a whole are `published.why_not_comparable` and
    `published_b.why_not_comparable`.
    """
    if table.name == "saeed2023_table11":
        return _other_works(table)
    if table.paper == "saeed2023":
        return _paper_a(table)
    return _table_2(table) if table.number == 2 else _table_3(table)


def reasons(table: PaperTable, phantom: bool) -> list[str]:
    """Return why a paper's scores as a whole may not be set against ours."""
    if table.paper == "qadri2021":
        return published_b.why_not_comparable(phantom)
    return published.why_not_comparable(phantom)


def _paper_a(table: PaperTable) -> Doubts:
    found: Doubts = {}
    for at, row in enumerate(published.PUBLISHED[table.number]):
        if row.dice < row.precision + row.recall - 100:
            found[at, 0] = ["below precision + recall − 100, which no masks have, nor their means"]
        elif row.dice < min(row.precision, row.recall):
            found[at, 0] = ["below both precision and recall, as of no single mask"]
        if row.iou > row.dice:
            found[at, 1] = ["above DSC, which no masks have, nor their means"]
        elif abs(row.iou - published_b.jaccard_of(row.dice)) > _ROUNDING:
            found[at, 1] = ["not DSC / (2 − DSC), as of a single mask"]
    return found


def _other_works(table: PaperTable) -> Doubts:
    found: Doubts = {}
    samples, parameters, dice = range(3)
    for at, row in enumerate(table.rows):
        if re.match(r"\[\d+\]", row[0]):
            found[at, dice] = ["quoted there from that group's own scans"]
        else:
            found[at, samples] = ["20 % of VerSe'20, whose Table 8 has another DSC"]
            found[at, parameters] = ["one count for two networks, of which is not said"]
    return found


def _table_2(table: PaperTable) -> Doubts:
    wrong = {
        item.name: f"its PRE, SPE and F-score imply {item.value:.1f}"
        for item in published_b.findings().accuracy
        if not item.agrees
    }
    names = [row.name for row in published_b.TABLE_2]
    return {(at, 2): [wrong[name]] for at, name in enumerate(names) if name in wrong}


def _table_3(table: PaperTable) -> Doubts:
    found: Doubts = {}
    facts = published_b.findings()
    recall = {item.name: item.value for item in facts.recall if not item.agrees}
    jaccard = {item.name: item.value for item in facts.jaccard if not item.agrees}
    for at, row in enumerate(published_b.TABLE_3):
        found[at, 1] = ["an F1 of precision and sensitivity (equation 5), not of boundaries"]
        if row.name in recall:
            found[at, 0] = [f"Table 2 implies {recall[row.name]:.1f}"]
        if row.name in jaccard:
            found[at, 2] = [f"of a single mask, DSC / (2 − DSC) = {jaccard[row.name]:.1f}"]
        if row.name in published_b.QUOTED_DICE:
            quoted = published_b.QUOTED_DICE[row.name]
            if quoted != row.dice:
                found[at, 3] = [f"{quoted} in the text"]
    return found
