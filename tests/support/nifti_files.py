"""Making NIfTI files with nibabel for the tests of ours."""

import os
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from spinejax import geometry

GRID_FIELDS = (
    "dim pixdim xyzt_units sform_code qform_code srow_x srow_y srow_z "
    "quatern_b quatern_c quatern_d qoffset_x qoffset_y qoffset_z"
).split()


def oblique_affine(spacing=(0.5, 0.75, 2.0)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (5, -10, 20), degrees=True).as_matrix()
    affine[:3, :3] *= spacing
    affine[:3, 3] = (-12.5, 30, -400)
    return affine


def resampled_grid(affine, shape, spacing_mm):
    """Affine and shape of the grid of another spacing with the same extent and centre."""
    old = np.array(geometry.spacing_mm(affine))
    sides = np.maximum(1, np.round(np.array(shape) * old / spacing_mm)).astype(int)
    target = affine.copy()
    target[:3, :3] *= np.array(spacing_mm) / old
    centre = geometry.voxel_to_world(affine, (np.array(shape) - 1) / 2)
    target[:3, 3] = centre - target[:3, :3] @ ((sides - 1) / 2)
    return target, tuple(sides.tolist())


def scan_values(shape=(6, 7, 8), seed=0):
    return np.random.default_rng(seed).integers(-1000, 2000, shape)


def tissue(shape, seed=0):
    """Noise about the HU of tissue: the least that passes for a CT."""
    return np.random.default_rng(seed).normal(20, 60, shape).astype(np.int16)


def save(path, array, affine=None, image=nib.Nifti1Image, **fields):
    made = image(array, oblique_affine() if affine is None else affine)
    for name, value in fields.items():
        made.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(made, path)
    return path


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def forms(path, sform, sform_code, qform, qform_code, zooms=None):
    """A file with these two affines; the qform is set last so that it owns pixdim."""
    made = nib.Nifti1Image(scan_values().astype(np.int16), None)
    made.header.set_sform(sform, sform_code)
    made.header.set_qform(qform, qform_code)
    if zooms is not None:
        made.header["pixdim"][1:4] = zooms
    header = made.header.copy()
    header["magic"], header["vox_offset"] = b"n+1", 352
    body = scan_values().astype(np.int16).tobytes(order="F")
    path.write_bytes(header.binaryblock + bytes(4) + body)
    return path


def shifted(mm):
    affine = oblique_affine()
    affine[0, 3] += mm
    return affine


@contextmanager
def unprivileged():
    """Run the block as a user whom permissions bind, also where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError as error:
        pytest.skip(f"root here cannot become another user: {error}")
    try:
        yield
    finally:
        os.seteuid(0)
