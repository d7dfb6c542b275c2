"""The published tables against the text of the papers, cell by cell."""

import re

import pytest

from spinejax.reports import paper_tables

FILES = {"saeed2023": "000_*.txt", "qadri2021": "001_*.txt"}


@pytest.fixture(scope="module")
def papers(real_data):
    """Short name of a paper -> its text, cells of its tables parted by tabs."""
    found = {
        name: sorted((real_data.parent / "papers").glob(pattern)) for name, pattern in FILES.items()
    }
    if not all(found.values()):
        pytest.skip("the texts of the papers are not here")
    return {name: paths[0].read_text(encoding="utf-8") for name, paths in found.items()}


def printed(text, number):
    """Header and rows of a table; a cell that stands for those below it is repeated."""
    text = re.sub(r"</?b>|\$|(?<=\d)\s(?=%)", "", text)
    text = re.sub(r"(?<![\w-])-(?=\d)", "−", text)
    caption = rf"^\**(?:Table|TABLE) {number}\.(?:\**.*|\** Cont\.)\n+((?:.*\t.*\n)+)"
    blocks = [block.splitlines() for block in re.findall(caption, text, re.MULTILINE)]
    header, rows = blocks[0][0].split("\t"), []
    for line in (line for block in blocks for line in block[1:]):
        cells = line.split("\t")
        if not any(cells[2:]):  # the second line of a cell
            rows[-1][1] += f" {cells[1]}"
            continue
        if not cells[0]:
            cells[0] = rows[-1][0]
        rows.append(cells)
    return header, rows


@pytest.mark.parametrize("name", paper_tables.tables())
def test_every_cell_is_the_printed_one(papers, name):
    table = paper_tables.tables()[name]
    header, rows = printed(papers[table.paper], table.number)
    ours = [list(row) for row in table.rows]
    if name == "saeed2023_table11":
        # One row of two networks there, two rows here.
        first, second = ours[-2:]
        both = [a if a == b else f"{a}, {b}" for a, b in zip(first, second, strict=True)]
        ours = [*ours[:-2], both]
        assert header == ["Reference", "Methodology", *table.columns]
    else:
        assert header == [*table.labels, *table.columns]
    assert ours == [[cell.strip() for cell in row] for row in rows]


def test_all_tables_of_results_are_there():
    names = [f"saeed2023_table{n}" for n in range(3, 12)]
    assert list(paper_tables.tables()) == [*names, "qadri2021_table2", "qadri2021_table3"]
    for table in paper_tables.tables().values():
        assert len(table.columns) == len(table.metrics)
        places = [table.place(row) for row in table.rows]
        assert len(set(places)) == len(places)
        assert {len(row) for row in table.rows} == {len(table.labels) + len(table.columns)}


def test_papers_are_cited_as_they_name_themselves(papers):
    assert paper_tables.papers()["qadri2021"].rpartition(" ")[2] in papers["qadri2021"]
    assert "Saeed" in papers["saeed2023"]
