"""HTML from the templates of this folder. Jinja2 escapes values; the page holds CSS and scripts."""

import shlex
from collections.abc import Iterable
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spinejax import __version__
from spinejax.errors import InputError
from spinejax.files import check_output
from spinejax.reports.tables import count


def command(workdir: Path, name: str) -> str:
    """Return what to type for a command on a workdir."""
    return f"spinejax {name} --workdir {shlex.quote(str(workdir))}"


def check_outputs(output: Path, beside: Iterable[str], *, overwrite: bool) -> None:
    """Refuse a page that may not be written, or whose tables beside it may not.

    Args:
        output: the HTML file.
        beside: endings of the files with its name that are also written.
        overwrite: see `files.check_output`.

    Raises:
        InputError: see `files.check_output`; or `output` does not end in .html.
    """
    if output.is_dir() or output.suffix != ".html":
        what = "is a folder; " if output.is_dir() else ""
        raise InputError(
            f"{output}: {what}give the name of an HTML file, such as {output.stem}.html"
        )
    for ending in (".html", *beside):
        check_output(output.with_suffix(ending), "report", overwrite=overwrite)


_TEMPLATES = Environment(
    loader=PackageLoader("spinejax.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["count"] = count
_TEMPLATES.globals["command"] = command


def render(template: str, **values: Any) -> str:
    """Return a page: one HTML document that loads nothing.

    Args:
        template: name of a file in `templates`.
        values: what the template shows. Text is escaped.
    """
    css = resources.files(__package__).joinpath("page.css").read_text("utf-8")
    page = _TEMPLATES.get_template(template)
    # The style sheet is ours and holds no user's text.
    return page.render(css=Markup(css), version=__version__, now=datetime.now(), **values)
