"""The fields of DICOM files that GDCM does not give: pydicom, imported when a file needs it."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The filters of warnings belong to the whole process. If one scan is read while another is written,
# the block that ends first would let the other speak.
_QUIET = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what pydicom and highdicom say, because it repeats values of fields.

    One thread at a time; the others wait.
    """
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read(path: Path, *, pixels: bool = False) -> Any:
    """Return the fields of a file as a `pydicom.Dataset`; pydicom raises many types of errors."""
    import pydicom

    return pydicom.dcmread(path, stop_before_pixels=not pixels)
