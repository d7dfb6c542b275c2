"""The fields of DICOM files that GDCM does not give: pydicom, imported when a file needs it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what pydicom and highdicom say, because it repeats values of fields."""
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read(path: Path, *, pixels: bool = False) -> Any:
    """Return the fields of a file as a `pydicom.Dataset`; pydicom raises many types of errors."""
    import pydicom

    return pydicom.dcmread(path, stop_before_pixels=not pixels)
