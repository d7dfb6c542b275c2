"""HTML from the templates of this folder. Jinja2 escapes every value; CSS is part of the page."""

import shlex
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spinejax import __version__
from spinejax.reports.tables import count


def command(workdir: Path, name: str) -> str:
    """Return what to type for a command on a workdir."""
    return f"spinejax {name} --workdir {shlex.quote(str(workdir))}"


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
    """Return a page: one HTML document without scripts that loads nothing.

    Args:
        template: name of a file in `templates`.
        values: what the template shows. Text is escaped.
    """
    css = resources.files(__package__).joinpath("page.css").read_text("utf-8")
    page = _TEMPLATES.get_template(template)
    # The style sheet is ours and holds no user's text.
    return page.render(css=Markup(css), version=__version__, now=datetime.now(), **values)
