"""The tables of a sweep as Markdown, CSV, LaTeX and one HTML page."""

import csv
import io
from collections import Counter
from datetime import datetime
from html import escape
from pathlib import Path

from spinejax import __version__, files, sweep_state
from spinejax.errors import InputError
from spinejax.reports import sweep_scores
from spinejax.reports.markup import count
from spinejax.reports.style import CSS
from spinejax.reports.sweep_scores import Line, Mean, Table
from spinejax.reports.tables import DASH, markdown_table

_COUNTS = ("Test Samples", "Trainable Parameters")  # columns of whole numbers


def write(workdir: Path, output: Path | None = None) -> tuple[Path, str]:
    """Write the page of a sweep, and its tables beside it as .md, .csv and .tex.

    Args:
        workdir: of `python -m spinejax.launch.sweep`.
        output: the HTML file; by default `<workdir>/report.html`.

    Returns:
        The HTML file, and the tables as Markdown.

    Raises:
        InputError: the folder is no sweep's, or the files cannot be written.
    """
    found = sweep_state.read(workdir)
    output = workdir / "report.html" if output is None else output
    if output.is_dir() or output.suffix != ".html":
        raise InputError(f"{output}: give the name of an HTML file, as {output.stem}.html")
    made = sweep_scores.tables(workdir, found)
    text = markdown(made)
    try:
        files.write_text(output, page(workdir, found, made))
        files.write_text(output.with_suffix(".md"), text)
        files.write_text(output.with_suffix(".csv"), comma_separated(made))
        files.write_text(output.with_suffix(".tex"), latex(made))
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


def _runs(line: Line) -> str:
    done, total = line.runs
    if total == 0:
        return DASH
    return str(total) if done == total else f"{done} of {total}"


def _missing(table: Table) -> dict[str, str]:
    """Return why a row lacks units -> the letter that marks it."""
    why = dict.fromkeys(line.missing for line in table.lines if line.missing)
    return {text: _letter(at) for at, text in enumerate(why)}


def _letter(at: int) -> str:
    return chr(ord("a") + at % 26) * (at // 26 + 1)


def _marks(table: Table, row: int, column: int) -> str:
    return ",".join(map(str, table.marks.get((row, column), ())))


def markdown(tables: list[Table]) -> str:
    """Return the tables, published cells beside ours, and what is to be said of them."""
    parts = []
    for table in tables:
        letters = _missing(table)
        parts.append(f"## {table.name}: {table.title}\n")
        header = list(table.labels)
        for column in table.columns:
            header += [column, "ours"] if table.source else [column]
        rows = []
        for at, line in enumerate(table.lines):
            cells = list(line.place)
            for c, column in enumerate(table.columns):
                if table.source:
                    marks = _marks(table, at, c)
                    cells.append(line.published[c] + (f" [{marks}]" if marks else ""))
                cells.append(shown(line.ours[c], column))
            runs = _runs(line) + (f" [{letters[line.missing]}]" if line.missing else "")
            rows.append([*cells, runs])
        parts.append(markdown_table([*header, "runs"], rows))
        if table.source:
            parts.append(f"Published: {table.source}. Ours: mean ± standard deviation over runs.\n")
        parts.append("".join(f"- [{n}] {text}\n" for n, text in enumerate(table.notes, 1)))
        parts.append("".join(f"- [{mark}] {text}\n" for text, mark in letters.items()))
        if table.reasons:
            parts.append("Not comparable, because:\n")
            parts.append("".join(f"- {text}\n" for text in table.reasons))
    return "\n".join(filter(None, parts))


def comma_separated(tables: list[Table]) -> str:
    """Return one line for each cell: table, row, column, published, mean, std, runs, remarks."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["table", "row", "column", "published", "mean", "std", "n", "doubts", "missing"]
    )
    for table in tables:
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


def latex(tables: list[Table]) -> str:
    """Return each table as a `table` of LaTeX, with the rules of the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}"]
    for table in tables:
        letters = _missing(table)
        paired = bool(table.source)
        layout = "l" * len(table.labels) + "r" * (len(table.columns) * (1 + paired) + 1)
        header = [*map(_tex, table.labels)]
        for column in table.columns:
            header += [_tex(column), "ours"] if paired else [_tex(column)]
        lines = [
            "\\begin{table}",
            f"\\caption{{{_tex(table.title)}}}",
            f"\\label{{tab:{table.name}}}",
            f"\\begin{{tabular}}{{{layout}}}",
            "\\toprule",
            " & ".join([*header, "runs"]) + r" \\",
            "\\midrule",
        ]
        for at, line in enumerate(table.lines):
            cells = [*map(_tex, line.place)]
            for c, column in enumerate(table.columns):
                if paired:
                    marks = _marks(table, at, c)
                    cells.append(_tex(line.published[c]) + (f"$^{{{marks}}}$" if marks else ""))
                cells.append(_tex(shown(line.ours[c], column)))
            mark = f"$^{{{letters[line.missing]}}}$" if line.missing else ""
            lines.append(" & ".join([*cells, _tex(_runs(line)) + mark]) + r" \\")
        lines += ["\\bottomrule", "\\end{tabular}"]
        notes = [f"$^{{{n}}}${_tex(text)}." for n, text in enumerate(table.notes, 1)]
        notes += [f"$^{{{mark}}}${_tex(text)}." for text, mark in letters.items()]
        if table.source:
            notes.append(f"Published: {_tex(table.source)}.")
        lines += [f"\\par\\footnotesize {note}" for note in notes]
        parts.append("\n".join([*lines, "\\end{table}"]))
    return "\n\n".join(parts) + "\n"


def page(workdir: Path, found: sweep_state.Sweep, tables: list[Table]) -> str:
    """Return the page: the tables, what is to be said of them, and how far each unit is."""
    states = {unit.name: sweep_state.state(workdir / unit.name) for unit in found.units}
    done = Counter(state.kind for state in states.values())["done"]
    title = f"{found.name}: {done} of {count(len(states), 'unit')} done"
    body = [
        f'<header><p class="kind">{escape(found.config)} · {escape(str(workdir))}</p>'
        f"<h1>{escape(title)}</h1></header>",
        *map(_section, tables),
        _units(states),
        f"<footer>Written by spinejax {escape(__version__)}, {datetime.now():%Y-%m-%d %H:%M}. "
        "For research; not a medical device.</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n</main></body></html>\n"
    )


def _section(table: Table) -> str:
    letters = _missing(table)
    paired = bool(table.source)
    span = ' colspan="2"' if paired else ""
    head = "".join(f'<th scope="col" class="text">{escape(name)}</th>' for name in table.labels)
    head += "".join(f'<th scope="col"{span}>{escape(name)}</th>' for name in table.columns)
    second = ""
    if paired:
        blank = "<th></th>" * len(table.labels)
        pair = '<th scope="col">published</th><th scope="col">ours</th>'
        second = f"<tr>{blank}{pair * len(table.columns)}<th></th></tr>"
    rows, above = [], ""
    for at, line in enumerate(table.lines):
        # A word that stands in the row above, too, is not said again.
        words = ["" if i == 0 and word == above else word for i, word in enumerate(line.place)]
        if len(line.place) == 1:
            words = list(line.place)
        above = line.place[0]
        cells = "".join(f'<td class="text">{escape(word)}</td>' for word in words)
        for c, column in enumerate(table.columns):
            if paired:
                marks = _marks(table, at, c)
                cells += f'<td class="printed">{escape(line.published[c])}{_sup(marks)}</td>'
            cells += f"<td><b>{escape(shown(line.ours[c], column))}</b></td>"
        cells += f"<td>{escape(_runs(line))}{_sup(letters.get(line.missing, ''))}</td>"
        rows.append(f"<tr>{cells}</tr>")
    notes = [f"<li>{_sup(str(n))} {escape(text)}</li>" for n, text in enumerate(table.notes, 1)]
    notes += [f"<li>{_sup(mark)} {escape(text)}</li>" for text, mark in letters.items()]
    why = "".join(f"<li>{escape(text)}</li>" for text in table.reasons)
    source = (
        f"<p>Published: {escape(table.source)}. Ours: mean ± standard deviation over runs.</p>"
        if paired
        else ""
    )
    return (
        f"<section><h2>{escape(table.name)}: {escape(table.title)}</h2>"
        f'<div class="wide"><table class="sweep"><thead><tr>{head}<th scope="col">runs</th></tr>'
        f"{second}</thead><tbody>{''.join(rows)}</tbody></table></div>{source}"
        + (f'<ul class="marks">{"".join(notes)}</ul>' if notes else "")
        + (f"<h3>Why they may not be compared</h3><ul>{why}</ul>" if why else "")
        + "</section>"
    )


def _sup(mark: str) -> str:
    return f"<sup>{escape(mark)}</sup>" if mark else ""


def _units(states: dict[str, sweep_state.State]) -> str:
    rows = []
    for name, state in states.items():
        step = DASH if state.step is None else f"{state.step:,}"
        if state.step is not None and state.steps:
            step += f" of {state.steps:,}"
        score = DASH if state.score is None else f"{state.score:.4f}"
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th><td class="text">{escape(state.kind)}</td>'
            f'<td>{step}</td><td>{score}</td><td class="text wrap">{escape(state.note)}</td></tr>'
        )
    header = '<th scope="col">unit</th><th scope="col" class="text">state</th>' + "".join(
        f'<th scope="col"{kind}>{name}</th>'
        for name, kind in (("step", ""), ("Dice", ""), ("", ' class="text"'))
    )
    return (
        '<section><h2>Units</h2><div class="wide"><table><thead><tr>'
        f"{header}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )
