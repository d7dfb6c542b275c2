"""NRRD files against SimpleITK, which writes them, and against positions in closed form."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from spinejax import geometry
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
    "apart": (_changed(b"encoding", b"data file: a.raw\nencoding"), "in another file"),
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
