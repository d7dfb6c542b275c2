"""NRRD files against SimpleITK, which writes them, and against positions in closed form."""

import os

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from spinejax import geometry
from spinejax.data import cache
from spinejax.datasets import copies
from spinejax.errors import InputError
from spinejax.io import nifti, scanfile, voxels
from tests.support.nifti_files import one_line

SHAPE = (9, 8, 7)
TURN = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix()


def values(dtype=np.int16):
    """(z, y, x), as SimpleITK's arrays are."""
    return np.random.default_rng(0).integers(-1000, 2000, SHAPE[::-1]).astype(dtype)


def save(path, array, compressed=False):
    image = sitk.GetImageFromArray(array)
    image.SetDirection(np.ravel(TURN).tolist())
    image.SetSpacing((0.5, 0.75, 2.0))
    image.SetOrigin((-12.5, 30.0, -400.0))
    sitk.WriteImage(image, str(path), useCompression=compressed)
    return path


def edited(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "gzip"])
def test_voxels_lie_where_simpleitk_says_and_so_do_labels(tmp_path, compressed):
    path = save(tmp_path / "a_ct.nrrd", values(), compressed)
    volume, image = scanfile.read_volume(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(volume.native, values().transpose(2, 1, 0))
    nifti.write_labels(tmp_path / "a.nii.gz", np.ones(SHAPE, np.uint8), volume)
    back = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    for index in [(0, 0, 0), (8, 0, 0), (0, 7, 0), (0, 0, 6), (3, 5, 2)]:
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        at = geometry.voxel_to_world(volume.native_affine, np.array(index))
        np.testing.assert_allclose(at, (-x, -y, z), atol=1e-5)
        np.testing.assert_allclose(back.TransformIndexToPhysicalPoint(index), (x, y, z), atol=1e-3)
    assert scanfile.shape_of(path) == SHAPE and scanfile.case_id(path) == "a"
    assert scanfile.is_scan(path) and scanfile.parts(path) == (path,)


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "gzip"])
def test_voxels_in_a_file_beside_the_header(tmp_path, compressed):
    """SimpleITK writes .nhdr with .raw or .raw.gz; both are parts of the scan, for digests."""
    path = save(tmp_path / "a_ct.nhdr", values(), compressed)
    (data,) = set(tmp_path.iterdir()) - {path}
    volume = scanfile.read_volume(path)
    twin = scanfile.read_volume(save(tmp_path / "b.nrrd", values()))
    np.testing.assert_array_equal(volume.native, values().transpose(2, 1, 0))
    np.testing.assert_array_equal(volume.native_affine, twin.native_affine)
    assert scanfile.parts(path) == (path, data)
    assert scanfile.shape_of(path) == SHAPE and scanfile.case_id(path) == "a"
    assert scanfile.is_scan(path) and not scanfile.is_scan(data)
    before = cache.digests_in(tmp_path).of_voxels(path)
    assert before == copies.voxel_digest(volume)
    save(path, values() + 1, compressed)
    for one in (path, data):  # content of recent files is not remembered
        os.utime(one, (0, 0))
    assert cache.digests_in(tmp_path).of_voxels(path) != before


def test_voxels_behind_a_header_of_their_own_and_without_an_empty_line(tmp_path):
    """Three bytes to skip, and a header that ends with the file."""
    path = tmp_path / "a.nhdr"
    path.write_text(
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 3 4\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nendian: little\n"
        "encoding: raw\nbyte skip: 3\ndata file: sub/a b.bin\n"
    )
    (tmp_path / "sub").mkdir()
    stored = np.arange(24, dtype="<i2")
    (tmp_path / "sub/a b.bin").write_bytes(b"xyz" + stored.tobytes())
    expected = stored.reshape(2, 3, 4, order="F")
    np.testing.assert_array_equal(scanfile.read_volume(path).native, expected)


def _apart(change):
    """Return a maker of a header and its voxel file, after `change` of both."""

    def make(folder):
        path = save(folder / "a.nhdr", values())
        change(path, folder / "a.raw")
        return path

    return make


APART = {
    "missing": (lambda head, raw: raw.unlink(), r"'a\.raw' is not beside it"),
    "cut": (lambda head, raw: _cut(raw, 0.5), "can hold"),
    "empty": (lambda head, raw: raw.write_bytes(b""), "the file is empty"),
    "folder": (lambda head, raw: (raw.unlink(), raw.mkdir()), "is a folder"),
    "FIFO": (lambda head, raw: (raw.unlink(), os.mkfifo(raw)), "is a FIFO"),
    "another folder": (
        lambda head, raw: edited(head, b"a.raw", b"../a.raw"), r"'\.\./a\.raw' is not beside it"
    ),
    "absolute": (lambda head, raw: edited(head, b"a.raw", b"/etc/passwd"), "is not beside it"),
    "itself": (lambda head, raw: edited(head, b"a.raw", b"a.nhdr"), "header of its own"),
    "list": (lambda head, raw: edited(head, b"a.raw", b"LIST\na.raw\nb.raw"), "several files"),
    "pattern": (lambda head, raw: edited(head, b"a.raw", b"a%03d.raw 1 7 1"), "several files"),
    "none": (lambda head, raw: edited(head, b"a.raw", b""), "several files .none named"),
    "larger": (lambda head, raw: edited(head, b"9 8 7", b"9 8 70"), "can hold"),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_bad_voxel_files_are_refused_in_one_line(tmp_path, name, capfd):
    change, message = APART[name]
    path = _apart(change)(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        scanfile.read_volume(path)
    assert one_line(error).startswith(f"{tmp_path}/a.") and ";" in one_line(error)
    assert capfd.readouterr() == ("", "")


def test_a_space_of_slicer_is_turned(tmp_path):
    """In the space RAS, the directions are the columns of the affine as they are."""
    path = tmp_path / "a.nrrd"
    header = (
        "NRRD0004\ntype: float\ndimension: 3\nspace: right-anterior-superior\nsizes: 2 2 2\n"
        "space directions: (0,2,0) (-3,0,0) (0,0,4)\nspace origin: (5,6,7)\nendian: little\n"
        "encoding: raw\n\n"
    )
    path.write_bytes(header.encode() + np.arange(8, dtype="<f4").tobytes())
    volume = scanfile.read_volume(path)
    expected = [[0, -3, 0, 5], [2, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.native_affine, expected)
    np.testing.assert_array_equal(volume.native, np.arange(8).reshape(2, 2, 2, order="F"))


def test_a_mask_and_a_fourth_axis_of_length_one(tmp_path):
    array = np.zeros(SHAPE[::-1], np.uint8)
    array[1, 2, 3:5] = (20, 21)
    path = save(tmp_path / "a_seg.nrrd", array)
    np.testing.assert_array_equal(scanfile.read_labels(path).native, array.transpose(2, 1, 0))
    sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(str(path))]), str(tmp_path / "b.nrrd"))
    four = scanfile.read_labels(tmp_path / "b.nrrd")
    np.testing.assert_array_equal(four.native, array.transpose(2, 1, 0))
    np.testing.assert_allclose(four.native_affine, scanfile.read_labels(path).native_affine)


def _cut(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def _series(folder):
    path = folder / "a.nrrd"
    image = sitk.GetImageFromArray(values())
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(path))
    return path


def _leading_axis(folder):
    """A first axis of length one of which the header does not say what it is."""
    path = folder / "a.nrrd"
    header = (
        "NRRD0004\ntype: short\ndimension: 4\nsizes: 1 4 5 6\nendian: little\nencoding: raw\n\n"
    )
    path.write_bytes(header.encode() + np.arange(120, dtype="<i2").tobytes())
    return path


def _color(folder):
    path = folder / "a.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), "u1"), isVector=True), str(path))
    return path


def _changed(old, new):
    return lambda folder: edited(save(folder / "a.nrrd", values()), old, new)


BAD = {
    "missing": (lambda d: d / "a.nrrd", "no such file"),
    "page": (
        lambda d: (d / "a.nrrd").write_text("<html><body>") and d / "a.nrrd", "an HTML page"
    ),
    "cut": (lambda d: _cut(save(d / "a.nrrd", values()), 0.8), "can hold"),
    "header cut": (lambda d: _cut(save(d / "a.nrrd", values()), 0.1), "no end"),
    "gzip cut": (lambda d: _cut(save(d / "a.nrrd", values(), True), 0.8), "truncated or damaged"),
    "volumes": (_series, "several volumes"),
    "colours": (_color, "several volumes or channels|type vector"),
    "first axis": (_leading_axis, "may be one of channels or of space"),
    "apart": (_changed(b"encoding", b"data file: a.raw\nencoding"), "'a.raw' is not beside it"),
    "metres": (_changed(b"endian", b'space units: "m" "m" "m"\nendian'), "lengths are in 'm'"),
    "huge": (_changed(b"sizes: 9 8 7", b"sizes: 9000 8000 7000"), "can hold"),
    "sizes": (_changed(b"sizes: 9 8 7", b"sizes: 9 8 -7"), "sizes make no image"),
    "flat": (_changed(b"sizes: 9 8 7", b"sizes: 72 7"), "2D image"),
    "type": (_changed(b"type: short", b"type: shirt"), "ITK cannot read its header"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path, name, capfd):
    make, message = BAD[name]
    with pytest.raises(InputError, match=message) as error:
        scanfile.read_volume(make(tmp_path))
    assert one_line(error).startswith(f"{tmp_path / 'a.nrrd'}: ") and ";" in one_line(error)
    assert capfd.readouterr() == ("", "")


def test_more_than_the_free_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(voxels, "available_bytes", lambda: 100)
    with pytest.raises(InputError, match="bytes of memory"):
        scanfile.read_volume(save(tmp_path / "a.nrrd", values()))


def test_a_missing_space_is_warned_of(tmp_path, caplog):
    path = edited(save(tmp_path / "a.nrrd", values()), b"left-posterior-superior", b"scanner-xyz")
    scanfile.read_volume(path)
    assert "orientation is unknown" in caplog.text
