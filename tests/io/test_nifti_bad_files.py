"""Every kind of file that is no scan is refused in one line."""

import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from spinejax.errors import InputError
from spinejax.io import nifti, scanfile, voxels
from tests.support.nifti_files import forms, one_line, save, scan_values, unprivileged


def patched(path, array, offset, data):
    save(path, array)
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(bytes(content))
    return path


def _truncated(folder, keep=0.5):
    path = save(folder / "t.nii.gz", scan_values((40, 40, 40)).astype(np.int16))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return path


def _text(folder):
    path = folder / "text.nii.gz"
    path.write_text("not a scan\n" * 100)
    return path


def _zipped_text(folder):
    path = folder / "text.nii.gz"
    path.write_bytes(gzip.compress(b"not a scan\n" * 100))
    return path


def _empty(folder):
    path = folder / "empty.nii.gz"
    path.touch()
    return path


def _tiny(folder):
    path = folder / "tiny.nii"
    path.write_bytes((348).to_bytes(4, "little") + bytes(10))
    return path


def _rgb(folder):
    values = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return save(folder / "rgb.nii.gz", values)


def _corrupted(folder):
    path = save(folder / "c.nii.gz", scan_values((40, 40, 40)).astype(np.int16))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    return path


def _huge(folder, image=nib.Nifti1Image, name="huge.nii.gz"):
    header = image.header_class()
    size = int(header["sizeof_hdr"])
    first = 352 if size == 348 else 544
    sides = (30000, 30000, 30000) if size == 348 else (100_000, 100_000, 100_000)
    header.set_data_shape(sides)
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1" if size == 348 else b"n+2\0\r\n\x1a\n", first
    block = header.binaryblock + bytes(first - size) + bytes(100_000)
    path = folder / name
    path.write_bytes(gzip.compress(block) if name.endswith(".gz") else block)
    return path


def _analyze(folder):
    nib.save(nib.AnalyzeImage(scan_values().astype(np.int16), np.eye(4)), folder / "a.img")
    return folder / "a.hdr"


def _nifti_pair(folder):
    nib.save(nib.Nifti1Pair(scan_values().astype(np.int16), np.eye(4)), folder / "a.img")
    return folder / "a.hdr"


INT16 = scan_values().astype(np.int16)
BAD_FILES = {
    "missing": (lambda d: d / "none.nii.gz", "no such file"),
    "folder": (lambda d: d, "is a folder"),
    "empty": (_empty, "the file is empty"),
    "truncated in the voxels": (_truncated, "truncated"),
    "truncated before its checksum": (lambda d: _truncated(d, 0.99999), "truncated"),
    "corrupted": (_corrupted, "truncated or damaged"),
    "text": (_text, "not a NIfTI file"),
    "zipped text": (_zipped_text, "not a NIfTI file"),
    "header only begun": (_tiny, "truncated inside the header"),
    "2D": (lambda d: save(d / "a.nii.gz", INT16[0]), r"is a 2D image \(7 x 8\)"),
    "4D": (lambda d: save(d / "a.nii", scan_values((4, 4, 4, 3))[:].astype("i2")), "3 volumes"),
    "RGB": (_rgb, "RGB"),
    "complex": (lambda d: save(d / "a.nii", INT16.astype(np.complex64)), "complex"),
    "binary": (lambda d: patched(d / "a.nii", INT16, 70, b"\1\0"), "unknown type"),
    "unknown type": (lambda d: patched(d / "a.nii", INT16, 70, b"\x63\0"), "unknown type"),
    "zero affine": (lambda d: forms(d / "a.nii", np.zeros((4, 4)), 1, None, 0), "unusable"),
    "NaN affine": (lambda d: forms(d / "a.nii", np.full((4, 4), np.nan), 1, None, 0), "unusable"),
    "flat affine": (lambda d: forms(d / "a.nii", np.diag([1, 1, 0, 1]), 1, None, 0), "unusable"),
    "zero voxel size": (
        lambda d: forms(d / "a.nii", None, 0, None, 0, zooms=(0, 1, 1)),
        "unusable",
    ),
    "huge": (_huge, r"30000 x 30000 x 30000 voxels of int16.* at most"),
    "huge, not zipped": (lambda d: _huge(d, name="huge.nii"), "the file can hold"),
    "10^15 voxels": (lambda d: _huge(d, nib.Nifti2Image), "100000 x 100000 x 100000"),
    "short": (lambda d: patched(d / "a.nii", INT16, 42, b"\xff\x00"), "the file can hold"),
    "negative side": (lambda d: patched(d / "a.nii", INT16, 42, b"\xff\xff"), "make no image"),
    "no axes": (lambda d: patched(d / "a.nii", INT16, 40, b"\0\0"), "make no image"),
    "NaN only": (lambda d: save(d / "a.nii", np.full((3, 3, 3), np.nan)), "finite"),
    "infinite only": (lambda d: save(d / "a.nii", np.full((3, 3, 3), -np.inf, "f4")), "finite"),
    "Analyze": (_analyze, r"\.hdr/\.img pair"),
    "NIfTI pair": (_nifti_pair, r"\.hdr/\.img pair"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_in_one_line_that_names_them(tmp_path, kind):
    make, message = BAD_FILES[kind]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        scanfile.read_volume(path)
    line = one_line(error)
    assert line.startswith(f"{path}: ")
    # A remedy follows the problem.
    assert any(mark in line for mark in (";", ",")), line


def test_damaged_headers_are_read_or_refused_and_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    for image, size in ((nib.Nifti1Image, 348), (nib.Nifti2Image, 540)):
        intact = save(tmp_path / "a.nii", INT16, image=image).read_bytes()
        for _ in range(200):
            content = bytearray(intact)
            for at in rng.integers(0, size, rng.integers(1, 4)):
                content[at] = rng.choice([0, 127, 128, 255, rng.integers(256)])
            path = tmp_path / "b.nii"
            path.write_bytes(bytes(content))
            try:
                volume = scanfile.read_volume(path)
            except InputError as error:
                assert "\n" not in str(error)
                continue
            nifti.write_labels(tmp_path / "c.nii", np.zeros(volume.native.shape, np.uint8), volume)
            back = scanfile.read_labels(tmp_path / "c.nii")
            np.testing.assert_array_equal(back.native_affine, volume.native_affine)


@pytest.mark.parametrize("name", ["huge.nii", "huge.nii.gz"])
def test_a_header_that_claims_too_much_allocates_nothing(tmp_path, name):
    path = _huge(tmp_path, name=name)
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            scanfile.read_volume(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_more_than_the_free_memory_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz", scan_values((30, 30, 30)).astype(np.int16))
    monkeypatch.setattr(voxels, "available_bytes", lambda: 1000)
    with pytest.raises(InputError, match="bytes of memory") as error:
        scanfile.read_volume(path)
    assert str(path) in one_line(error)


def test_available_memory_is_known_here():
    assert voxels.available_bytes() > 1e6


def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    path = save(tmp_path / "a.nii.gz", scan_values().astype(np.int16))
    path.chmod(0)
    with unprivileged(), pytest.raises(InputError, match="permission denied") as error:
        scanfile.read_volume(path)
    assert str(path) in one_line(error)
