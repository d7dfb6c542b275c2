"""One self-contained HTML page for a run: no script, nothing loaded from elsewhere."""

import os
from pathlib import Path

from spinejax import files
from spinejax.errors import InputError
from spinejax.reports import errors, sections, tables, tables_b
from spinejax.reports.run import Run, read_run


def write_report(
    workdir: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    before: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the page of a run, and its tables as Markdown and CSV beside it.

    Args:
        workdir: of `spinejax train`; what is missing in it (evaluation, record) is said on the
            page.
        output: the HTML file; by default `<workdir>/report.html`. The tables get its name with .md
            and .csv.
        before: workdir of an earlier run to compare errors with.

    Returns:
        The HTML file.

    Raises:
        InputError: `workdir` or `before` is missing, is not a run or holds damaged files; the two
            share no evaluation; `output` cannot be written.
    """
    run = read_run(workdir)
    output = Path(output) if output is not None else run.workdir / "report.html"
    if output.is_dir():
        raise InputError(f"{output}: is a folder; give the name of an HTML file")
    html = sections.page(run, None if before is None else _earlier(run, before))
    try:
        files.write_text(output, html)
        if run.evaluations:
            parts = [
                tables.tables_markdown(run.config, run.evaluations, run.parameters),
                tables_b.markdown(run.config, run.evaluations, run.patches),
            ]
            files.write_text(output.with_suffix(".md"), "\n".join(filter(None, parts)))
            csv = tables.tables_csv(run.evaluations, run.patches)
            files.write_text(output.with_suffix(".csv"), csv)
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written ({error.strerror or error}); choose another --output"
        ) from None
    return output


def _earlier(run: Run, before: str | os.PathLike[str]) -> Run:
    try:
        earlier = read_run(before)
    except InputError as error:
        raise InputError(f"--before: {error}") from None
    errors.check_before(run, earlier)
    return earlier
