"""The tables of a sweep as Markdown, CSV, LaTeX and one HTML page."""

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from spinejax import files, sweep_state
from spinejax.errors import InputError
from spinejax.records import read_or_empty
from spinejax.reports import charts, html, papers, sweep_scores, tables
from spinejax.reports.charts import BarChart, BarRow, UnitCurves
from spinejax.reports.sweep_scores import Mean, SweepTable
from spinejax.reports.tables import DASH, Line, Table, count
from spinejax.schema import PATCHES, SECOND
from spinejax.training import log

_COUNTS = ("Test Samples", "Trainable Parameters", "parameters")  # columns of whole numbers


def write(
    workdir: Path, output: Path | None = None, *, overwrite: bool = False
) -> tuple[Path, str]:
    """Write the page of a sweep, and its tables beside it as .md, .csv and .tex.

    Args:
        workdir: of `spinejax sweep`.
        output: the HTML file; by default `<workdir>/report.html`.
        overwrite: replace files that this program did not write, too.

    Returns:
        The HTML file, and the tables as Markdown.

    Raises:
        InputError: the folder is no sweep's, or the files cannot be written.
    """
    found = sweep_state.read(workdir)
    output = workdir / "report.html" if output is None else output
    html.check_outputs(output, (".md", ".csv", ".tex"), overwrite=overwrite)
    made = sweep_scores.tables(workdir, found)
    text = markdown(made)
    try:
        for ending, content in (
            (".html", page(workdir, found, made)),
            (".md", text),
            (".csv", comma_separated(made)),
            (".tex", latex(made)),
        ):
            path = output.with_suffix(ending)
            files.write_text(path, content, "report", overwrite=overwrite)
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written ({error.strerror or error}); choose another --output"
        ) from error
    return output, text


def shown(value: Mean | None, column: str = "") -> str:
    """Return e.g. "91.20 ± 0.41", of one unit "91.20", a dash where there is none."""
    if value is None:
        return DASH
    if column in _COUNTS:
        return f"{value.mean:,.0f}"
    spread = "" if value.std is None else f" ± {value.std:.2f}"
    return f"{value.mean:.2f}{spread}"


class Cell(NamedTuple):
    """A cell as text; `mark` refers to a note, `kind` is a class of the style sheet."""

    words: str
    mark: str = ""
    kind: str = ""


def _header(table: SweepTable) -> list[str]:
    header = list(table.labels)
    for column in table.columns:
        header += [column, "ours"] if table.source else [column]
    return [*header, "runs"]


def _rows(table: SweepTable) -> list[list[Cell]]:
    """Return the rows: labels, published cells and ours, the number of runs."""
    letters = {text: mark for mark, text in _notes(table)[len(table.notes) :]}
    rows = []
    for at, line in enumerate(table.lines):
        cells = [Cell(word, kind="text") for word in line.place]
        for c, column in enumerate(table.columns):
            if table.source:
                marks = ",".join(map(str, table.marks.get((at, c), ())))
                cells.append(Cell(line.published[c], marks, "printed"))
            cells.append(Cell(shown(line.ours[c], column), kind="own"))
        done, total = line.runs
        runs = DASH if total == 0 else str(total) if done == total else f"{done} of {total}"
        rows.append([*cells, Cell(runs, letters.get(line.missing, ""))])
    return rows


def _notes(table: SweepTable) -> list[tuple[str, str]]:
    """Return (mark, text): doubts on published cells by number, missing units by letter."""
    why = dict.fromkeys(line.missing for line in table.lines if line.missing)
    letters = [(chr(ord("a") + at % 26) * (at // 26 + 1), text) for at, text in enumerate(why)]
    return [*((str(number), text) for number, text in enumerate(table.notes, 1)), *letters]


def markdown(made: list[SweepTable]) -> str:
    """Return the tables, published cells beside ours, with their notes."""
    parts = []
    for table in made:
        parts.append(f"## {table.name}: {table.title}\n")
        lines = []
        for row in _rows(table):
            name, *cells = [words + (f" [{mark}]" if mark else "") for words, mark, _ in row]
            lines.append(Line(name, tuple(cells)))
        parts.append(tables.markdown(Table(tuple(_header(table)), tuple(lines))))
        if table.source:
            parts.append(f"Published: {table.source}. Ours: mean ± standard deviation over runs.\n")
        parts.append("".join(f"- [{mark}] {text}\n" for mark, text in _notes(table)))
        if table.paired:
            parts.append("".join(f"- {text}\n" for text in table.paired))
        if table.protocol:
            parts.append("Beside the paper's protocol:\n")
            parts.append("".join(f"- {text}\n" for text in table.protocol))
        if table.reasons:
            parts.append("Not comparable, because:\n")
            parts.append("".join(f"- {text}\n" for text in table.reasons))
    return "\n".join(filter(None, parts))


def comma_separated(made: list[SweepTable]) -> str:
    """Return one line for each cell: table, row, column, published, mean, std, runs, remarks."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["table", "row", "column", "published", "mean", "std", "n", "doubts", "missing"]
    )
    for table in made:
        for at, line in enumerate(table.lines):
            for c, column in enumerate(table.columns):
                mean = line.ours[c]
                notes = [table.notes[n - 1] for n in table.marks.get((at, c), ())]
                writer.writerow(
                    [
                        table.name,
                        " / ".join(line.place),
                        column,
                        line.published[c] if line.published else "",
                        "" if mean is None else repr(mean.mean),
                        "" if mean is None or mean.std is None else repr(mean.std),
                        0 if mean is None else mean.n,
                        "; ".join(notes),
                        line.missing,
                    ]
                )
    return stream.getvalue()


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "[": "{[}",  # after the end of a row, a length would be read
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$",
    "±": r"$\pm$",
    "–": "--",
    "≤": r"$\leq$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


def latex(made: list[SweepTable]) -> str:
    """Return each table as a `table` of LaTeX, with the rules of the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}"]
    for table in made:
        numbers = len(table.columns) * (2 if table.source else 1) + 1
        rows = [
            [_tex(words) + (f"$^{{{mark}}}$" if mark else "") for words, mark, _ in row]
            for row in _rows(table)
        ]
        notes = [f"$^{{{mark}}}${_tex(text)}." for mark, text in _notes(table)]
        notes += [f"Published: {_tex(table.source)}."] if table.source else []
        notes += [f"{_tex(text)}." for text in (*table.paired, *table.protocol)]
        lines = [
            "\\begin{table}",
            f"\\caption{{{_tex(table.title)}}}",
            f"\\label{{tab:{table.name}}}",
            f"\\begin{{tabular}}{{{'l' * len(table.labels)}{'r' * numbers}}}",
            "\\toprule",
            " & ".join(map(_tex, _header(table))) + r" \\",
            "\\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            "\\bottomrule",
            "\\end{tabular}",
            *(f"\\par\\footnotesize {note}" for note in notes),
            "\\end{table}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def page(workdir: Path, found: sweep_state.Sweep, made: list[SweepTable]) -> str:
    """Return the page: the tables with their remarks, and the state of each unit."""
    states = {unit.name: sweep_state.state(workdir / unit.name) for unit in found.units}
    done = Counter(state.kind for state in states.values())["done"]
    return html.render(
        "sweep.html",
        title=f"{found.name}: {done} of {count(len(states), 'unit')} done",
        config=found.config,
        workdir=workdir,
        tables=list(map(_section, made)),
        curves=[*_curves(workdir, made), *_curves(workdir, made, SECOND)],
        without=[name for name in states if not _metrics(workdir / name)],
        units=[_unit(name, state) for name, state in states.items()],
    )


def _section(table: SweepTable) -> dict[str, Any]:
    rows, above = _rows(table), ""
    for row, line in zip(rows, table.lines, strict=True):
        # The first label is left out if the row above has the same one.
        if len(line.place) > 1 and line.place[0] == above:
            row[0] = Cell("", kind="text")
        above = line.place[0]
    fields = "name", "title", "labels", "columns", "source", "paired", "protocol", "reasons"
    return {name: getattr(table, name) for name in fields} | {
        "rows": rows,
        "notes": _notes(table),
        "bars": _bars(table),
    }


def _bars(table: SweepTable) -> list[BarChart]:
    """Return charts of the columns in per cent, published values beside ours; none of our own."""
    shares = [c for c, column in enumerate(table.columns) if column.endswith("(%)")]
    if not (table.source and shares):
        return []
    rows = []
    for line in table.lines:
        ours = [line.ours[c] for c in shares]
        rows.append(
            BarRow(
                (*line.place[:-1], papers.short_name(line.place[-1])),
                tuple(line.published[c] for c in shares),
                tuple(None if m is None else (m.mean, m.std, shown(m)) for m in ours),
            )
        )
    return charts.bar_charts([table.columns[c] for c in shares], rows)


def _curves(workdir: Path, made: list[SweepTable], stage: str = "") -> list[tuple[str, UnitCurves]]:
    """Return (title, curves) of each table: a colour for each row, a line for each of its units.

    Args:
        workdir: of the sweep.
        made: the tables.
        stage: folder of the network within that of a unit: "" or SECOND.
    """
    found: list[tuple[str, UnitCurves]] = []
    most = len(charts.UNIT_KINDS)
    for table in made:
        groups: list[tuple[str, list[list[dict[str, Any]]]]] = []
        seen: set[str] = set()
        for line in table.lines:
            # A unit that belongs to several rows is drawn once.
            own = [workdir / name / stage for name in line.units if name not in seen]
            seen.update(line.units)
            runs = [lines for folder in own if (lines := _metrics(folder))]
            if runs:
                groups.append((_row_name(table, line.place), runs))
        tasks = {read_or_empty(workdir / name / "config.json").get("task") for name in seen}
        overlap = "F-score" if tasks == {PATCHES} else "Dice"
        for start in range(0, len(groups), most):
            part = groups[start : start + most]
            words = [table.name] if len(made) > 1 else []
            words += ["second network"] if stage else []
            if len(groups) > most:
                words.append(f"rows {start + 1} to {start + len(part)} of {len(groups)}")
            title = ", ".join(words)
            if len(made) == 1:  # it does not begin with the name of a table
                title = title[:1].upper() + title[1:]
            found.append((title, charts.unit_curves(part, overlap)))
    return found


def _row_name(table: SweepTable, place: tuple[str, ...]) -> str:
    """Return the words that tell a row from the others; of our own tables, with their labels."""
    words = []
    for at, (label, word) in enumerate(zip(table.labels, place, strict=True)):
        differs = len({line.place[at] for line in table.lines}) > 1
        if word and (differs or len(table.lines) == 1):
            words.append(papers.short_name(word) if table.source else f"{label} {word}")
    return " · ".join(words)


def _metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; none where it cannot be read."""
    try:
        return log.read_metrics(folder)
    except (InputError, OSError):
        return []


def _unit(name: str, state: sweep_state.State) -> dict[str, str]:
    step = DASH if state.step is None else f"{state.step:,}"
    if state.step is not None and state.steps:
        step += f" of {state.steps:,}"
    score = DASH if state.score is None else f"{state.score:.4f}"
    return {"name": name, "kind": state.kind, "step": step, "score": score, "note": state.note}
