"""Pieces of HTML that the sections of a page share. All text is escaped."""

import base64
import io
import shlex
from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from spinejax.errors import InputError


def count(number: int, noun: str, plural: str = "") -> str:
    """Return "1 scan", "2,000 scans", "3 patches"; `plural` defaults to the noun and an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def command(workdir: Path, name: str) -> str:
    """Return what to type for a command on a workdir, as code."""
    return f"<code>{escape(f'spinejax {name} --workdir {shlex.quote(str(workdir))}')}</code>"


def table(header: Iterable[str], rows: Iterable[str]) -> str:
    """Return a table that scrolls sideways where it is too wide.

    Args:
        header: plain text of each column.
        rows: HTML of each row, `<tr>` and all.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def missing(error: InputError) -> str:
    """Return what stands in place of a picture or table that cannot be shown."""
    return f'<p class="missing">{escape(str(error))}</p>'


def png_uri(png: bytes) -> str:
    """Return the bytes of a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def jpeg_uri(jpeg: bytes) -> str:
    """Return the bytes of a JPEG as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def picture_uri(pixels: np.ndarray) -> str:
    """Return pixels as the data URI of a PNG.

    Args:
        pixels: uint8 (h, w) grey, (h, w, 2) grey and opacity, (h, w, 3) RGB or (h, w, 4) RGBA.
    """
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="PNG", optimize=True)
    return png_uri(stream.getvalue())
