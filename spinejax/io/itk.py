"""SimpleITK, imported when the first file needs it. No other module imports it."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from spinejax import geometry
from spinejax.errors import InputError


def library() -> ModuleType:
    """Return the module SimpleITK; ITK's warnings, which it prints by itself, are off."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def affine_of(path: Path, reader: Any) -> np.ndarray:
    """Return the affine (4, 4) to RAS mm of the first three axes of a file.

    Args:
        path: for messages.
        reader: a SimpleITK.ImageFileReader that has read the header.

    Raises:
        InputError: the grid is unusable.
    """
    axes = reader.GetDimension()
    direction = np.reshape(reader.GetDirection(), (axes, axes))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * reader.GetSpacing()[:3]
    affine[:3, 3] = reader.GetOrigin()[:3]
    affine = geometry.LPS_TO_RAS @ affine
    if not geometry.is_usable_affine(affine):
        raise InputError(
            f"{path}: the header's grid is unusable ({geometry.affine_problem(affine)}); export "
            "the scan again"
        )
    return affine
