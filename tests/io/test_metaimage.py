"""MetaImage files against SimpleITK itself, which writes them and knows where voxels lie."""

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from spinejax import geometry, scoring
from spinejax.errors import InputError
from spinejax.io import metaimage, nifti, scanfile, voxels
from tests.support.nifti_files import one_line

SHAPE = (9, 8, 7)
AXES = np.eye(3)
DIRECTIONS = {
    "identity": AXES,
    "flipped": np.diag([-1.0, 1, -1]),
    "permuted": AXES[[1, 2, 0]],
    "permuted back": AXES[[2, 0, 1]],
    "sagittal first": np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]),
    "left-handed": AXES[[1, 0, 2]],
    "tilted": Rotation.from_euler("x", 12, degrees=True).as_matrix(),
    "oblique": Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix(),
    "oblique left-handed": Rotation.from_euler("zyx", (9, 5, -3), degrees=True).as_matrix()
    @ np.diag([1.0, 1, -1]),
}
TYPES = ["Int8", "UInt8", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64"]


def values(shape=SHAPE, low=-1000, high=2000, dtype=np.int16):
    """(z, y, x), as SimpleITK's arrays are."""
    return np.random.default_rng(0).integers(low, high, shape[::-1]).astype(dtype)


def image_of(array, direction=AXES, spacing=(0.5, 0.75, 2.0), origin=(-12.5, 30.0, -400.0)):
    image = sitk.GetImageFromArray(array)
    image.SetDirection(np.ravel(direction).tolist())
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def save(path, array, compressed=False, **grid):
    sitk.WriteImage(image_of(array, **grid), str(path), useCompression=compressed)
    return path


def edited(path, *changes):
    """Replace text in the header."""
    content = path.read_bytes()
    for old, new in changes:
        assert old.encode() in content
        content = content.replace(old.encode(), new.encode(), 1)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_voxels_lie_where_simpleitk_says(tmp_path, name, suffix):
    image = image_of(values(), DIRECTIONS[name])
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image, str(path))
    volume = scanfile.read_volume(path)
    assert volume.native.shape == SHAPE and volume.native.dtype == np.int16
    for index in [(0, 0, 0), (8, 0, 0), (0, 7, 0), (0, 0, 6), (8, 7, 6), (3, 5, 2)]:
        x, y, z = image.TransformIndexToPhysicalPoint(index)  # to the left, posterior, superior
        world = geometry.voxel_to_world(volume.native_affine, np.array(index))
        np.testing.assert_allclose(world, (-x, -y, z), atol=1e-5)
        assert volume.native[index] == image.GetPixel(index)
    spacing_mm = geometry.spacing_mm(volume.native_affine)
    assert spacing_mm == pytest.approx((0.5, 0.75, 2.0), abs=1e-6)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_labels_are_written_as_nifti_on_the_same_grid(tmp_path, name):
    image = image_of(values(), DIRECTIONS[name])
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    volume = scanfile.read_volume(tmp_path / "a.mha")
    labels = np.random.default_rng(1).integers(0, 26, SHAPE).astype(np.uint8)
    nifti.write_labels(tmp_path / "a.nii.gz", labels, volume)
    # ITK reads NIfTI with a code of its own, from qform and sform.
    back = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), labels.transpose(2, 1, 0))
    for index in [(0, 0, 0), (8, 7, 6), (8, 0, 0), (0, 7, 0)]:
        np.testing.assert_allclose(
            back.TransformIndexToPhysicalPoint(index),
            image.TransformIndexToPhysicalPoint(index),
            atol=1e-3,
        )
    ours = scanfile.read_labels(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(ours.native_affine, volume.native_affine, atol=1e-4)


def test_a_sheared_grid_is_written_without_a_qform(tmp_path):
    path = save(tmp_path / "a.mha", values())
    edited(path, ("TransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix = 1 0 0 0.2 1 0 0 0 1"))
    volume = scanfile.read_volume(path)
    nifti.write_labels(tmp_path / "b.nii", np.ones(SHAPE, np.uint8), volume)
    back = scanfile.read_labels(tmp_path / "b.nii")
    assert (back.disk.sform_code, back.disk.qform_code) == (1, 0)
    np.testing.assert_allclose(back.native_affine, volume.native_affine, atol=1e-4)


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "compressed"])
@pytest.mark.parametrize("name", TYPES)
def test_every_integer_type_is_read(tmp_path, name, compressed):
    dtype = np.dtype(name.lower())
    array = values(low=max(-100, np.iinfo(dtype).min), high=120, dtype=dtype)
    for path in (tmp_path / "a.mha", tmp_path / "a.mhd"):
        volume = scanfile.read_volume(save(path, array, compressed))
        assert volume.native.dtype == np.int16
        np.testing.assert_array_equal(volume.native, array.transpose(2, 1, 0))


def test_values_are_cleaned_as_those_of_nifti(tmp_path):
    array = values(dtype=np.float32) + np.float32(0.25)
    array[0, 0, :4] = (np.nan, np.inf, -np.inf, -3000)
    path = save(tmp_path / "a.mha", array)
    nifti_path = tmp_path / "a.nii.gz"
    sitk.WriteImage(image_of(array), str(nifti_path))
    volume, other = scanfile.read_volume(path), scanfile.read_volume(nifti_path)
    assert volume.native.dtype == other.native.dtype == np.float32
    np.testing.assert_array_equal(volume.native, other.native)
    np.testing.assert_array_equal(volume.native[:4, 0, 0], -1024)
    whole = save(tmp_path / "b.mha", values(dtype=np.float64))
    assert scanfile.read_volume(whole).native.dtype == np.int16


@pytest.mark.parametrize(
    "changes",
    [
        [("BinaryDataByteOrderMSB = False", "BinaryDataByteOrderMSB = True")],
        [("BinaryDataByteOrderMSB = False", "ElementByteOrderMSB = true")],
        [("BinaryDataByteOrderMSB = False", "ElementByteOrderMSB = False")],
        [("BinaryData = True\n", "")],
        [("ElementDataFile = LOCAL", "ElementDataFile=Local")],
        [("ElementDataFile = LOCAL\n", "HeaderSize = -1\nElementDataFile = LOCAL\n")],
        [("ElementSpacing", "ElementSize"), ("Offset", "Origin")],
        [("TransformMatrix", "Orientation"), ("Offset", "Position")],
        [("ElementSpacing = 0.5", "ElementSpacing = -0.5")],
        [("NDims = 3", "Comment = a = b : c\n\n NDims  =  3 ")],
        [("NDims = 3", "NDims : 3"), ("DimSize = ", "DimSize : ")],
        [("AnatomicalOrientation = RAI", "AnatomicalOrientation = ASL")],
        [("MET_SHORT", "MET_USHORT")],
        [("ElementType", "ID = 7\nElementMin = none\nElementType")],
        # What converters pass on: fields of NIfTI and DICOM.
        [("NDims = 3", "NDims = 3\ndim[0] = 3\n0008|0005 = ISO_IR 100\ndescrip = \nx.y = a:b")],
    ],
    ids=lambda changes: changes[0][1],
)
def test_spellings_of_the_header_mean_what_they_mean_to_itk(tmp_path, changes):
    path = edited(save(tmp_path / "a.mha", values(low=0), direction=DIRECTIONS["tilted"]), *changes)
    volume, image = scanfile.read_volume(path), sitk.ReadImage(str(path))
    expected = np.maximum(sitk.GetArrayFromImage(image).astype(np.int32), -1024)
    np.testing.assert_array_equal(volume.native, expected.transpose(2, 1, 0))
    x, y, z = image.TransformIndexToPhysicalPoint((8, 7, 6))
    corner = geometry.voxel_to_world(volume.native_affine, np.array((8, 7, 6)))
    np.testing.assert_allclose(corner, (-x, -y, z), atol=1e-4)


@pytest.mark.parametrize("header_size", ["100", "-1"])
def test_a_raw_file_may_have_a_header_of_its_own(tmp_path, header_size):
    array = values()
    path = edited(
        save(tmp_path / "a.mhd", array),
        ("ElementDataFile", f"HeaderSize = {header_size}\nElementDataFile"),
    )
    (tmp_path / "a.raw").write_bytes(b"x" * 100 + array.tobytes())
    np.testing.assert_array_equal(scanfile.read_volume(path).native, array.transpose(2, 1, 0))


def test_a_fourth_axis_of_length_one_is_dropped(tmp_path):
    image = sitk.JoinSeries([image_of(values(), DIRECTIONS["tilted"])])
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    volume = scanfile.read_volume(tmp_path / "a.mha")
    plain = scanfile.read_volume(save(tmp_path / "b.mha", values(), direction=DIRECTIONS["tilted"]))
    np.testing.assert_array_equal(volume.native, plain.native)
    np.testing.assert_allclose(volume.native_affine, plain.native_affine)


def test_labels_of_any_type_and_number(tmp_path):
    array = np.zeros(SHAPE[::-1], np.uint16)
    array[1, 2, 3:6] = (1, 20, 28)
    path = save(tmp_path / "a_label.mhd", array, compressed=True)
    np.testing.assert_array_equal(scanfile.read_labels(path).native, array.transpose(2, 1, 0))
    array[1, 2, 3:6] = (100, 300, 1900)
    save(path, array)
    with pytest.raises(InputError, match="label 1900 is out of range.*data.labels=binary") as error:
        scanfile.read_labels(path)
    assert one_line(error).startswith(f"{path}: ")
    read = scanfile.read_labels(path, valid=None).native
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read > 0, array.transpose(2, 1, 0) > 0)
    assert len(np.unique(read)) == 4  # neighbours stay apart
    image, labels = scanfile.read_pair(save(tmp_path / "a.mha", values()), path, valid=None)
    assert labels.shape == image.shape


def test_any_number_up_to_the_widest_type_is_foreground(tmp_path):
    for dtype, largest in ((np.uint16, 2**16 - 1), (np.int64, 2**62), (np.float32, 2**24)):
        array = np.zeros(SHAPE[::-1], dtype)
        array[0, 0, :5] = (1, 255, 256, 510, largest)
        read = scanfile.read_labels(save(tmp_path / "a.mha", array), valid=None).native
        np.testing.assert_array_equal(read.transpose(2, 1, 0) > 0, array > 0)
        assert read[:4, 0, 0].tolist() == [1, 255, 1, 255]
    for value in (-1, 0.5, np.nan):
        array = np.zeros(SHAPE[::-1], np.float32)
        array[0, 0, 0] = value
        with pytest.raises(InputError, match="out of range|whole numbers"):
            scanfile.read_labels(save(tmp_path / "a.mha", array), valid=None)


def test_masks_of_two_formats_are_scored_alike(tmp_path):
    rng = np.random.default_rng(3)
    found, true = (rng.random(SHAPE[::-1]) > 0.5 for _ in range(2))
    reference = save(tmp_path / "ref_label.mha", true.astype(np.uint16) * 1900)
    prediction = tmp_path / "pred.nii.gz"
    sitk.WriteImage(image_of(found.astype(np.uint8)), str(prediction))
    with pytest.raises(InputError, match="1900 is out of range; allowed are 0 to 255.*binary"):
        scoring.score(prediction, reference)
    scores = scoring.score(prediction, reference, labels="binary")
    dice = 2 * (found & true).sum() / (found.sum() + true.sum())
    assert scores["cases"]["ref"]["binary"]["dice"] == pytest.approx(dice)


def _plain(folder, **options):
    return save(folder / "a.mhd", values((60, 50, 14)), **options)


def _without_raw(folder):
    path = _plain(folder)
    (folder / "a.raw").unlink()
    return path


def _shortened(path, part, keep):
    content = part.read_bytes()
    part.write_bytes(content[: int(len(content) * keep)])
    return path


def _flipped_bits(path, part):
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 0xFF
    part.write_bytes(content)
    return path


def _written(path, content):
    path.write_bytes(content)
    return path


def _color(folder):
    path = folder / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True), path)
    return path


def _series(folder):
    path = folder / "a.mha"
    sitk.WriteImage(sitk.JoinSeries([image_of(values())] * 3), path)
    return path


def _changed(old, new, compressed=False):
    return lambda folder: edited(save(folder / "a.mha", values(), compressed), (old, new))


BAD = {
    "missing": (lambda d: d / "none.mha", "no such file"),
    "folder": (lambda d: (d / "a.mha").mkdir() or d / "a.mha", "is a folder"),
    "empty": (lambda d: _written(d / "a.mha", b""), "empty"),
    "noise": (
        lambda d: _written(d / "a.mha", np.random.default_rng(0).bytes(5000)),
        "is not a MetaImage file",
    ),
    "text": (lambda d: _written(d / "a.mhd", b"hello\nworld\n"), "not a MetaImage file"),
    "endless": (lambda d: _written(d / "a.mhd", b"NDims = 3\n" * 20000), "its header has no end"),
    "header cut": (lambda d: _written(d / "a.mhd", b"NDims = 3\nDim"), "its header has no end"),
    "header ends": (lambda d: _written(d / "a.mhd", b"NDims = 3\n"), "its header has no end"),
    "no fields": (
        lambda d: _written(d / "a.mha", b"NDims = 3\nElementDataFile = LOCAL\n"),
        "make no image",
    ),
    "no raw": (_without_raw, "'a.raw' is not beside it"),
    "raw cut": (lambda d: _shortened(_plain(d), d / "a.raw", 0.5), "the file can hold"),
    "raw empty": (lambda d: _shortened(_plain(d), d / "a.raw", 0), "the file is empty"),
    "zraw cut": (
        lambda d: _shortened(_plain(d, compressed=True), d / "a.zraw", 0.5),
        "truncated or damaged|truncated, voxels end",
    ),
    "zraw without its checksum": (
        lambda d: _shortened(_plain(d, compressed=True), d / "a.zraw", 0.9999),
        "truncated or damaged",
    ),
    "zraw damaged": (
        lambda d: _flipped_bits(_plain(d, compressed=True), d / "a.zraw"),
        "truncated or damaged",
    ),
    "mha cut": (
        lambda d: _shortened(save(d / "a.mha", values()), d / "a.mha", 0.7),
        "the file can hold",
    ),
    "fewer voxels than claimed": (
        _changed("DimSize = 9 8 7", "DimSize = 9 8 14", compressed=True),
        "truncated, voxels end in slice",
    ),
    "size as power": (_changed("9 8 7", "9 8 7e0"), "make no image"),
    "size of digits": (_changed("9 8 7", "9 8 " + "7" * 5000), "make no image"),
    "spacing with underscore": (_changed("-12.5 30", "-12.5 3_0"), "Offset is not 3 numbers"),
    "its own voxel file": (
        _changed("ElementDataFile = LOCAL", "ElementDataFile = a.mha"), "a header of its own"
    ),
    "another folder": (
        _changed("ElementDataFile = LOCAL", "ElementDataFile = ."), "is a folder"
    ),
    "scaled matrix": (
        _changed("1 0 0 0 1 0 0 0 1", "2 0 0 0 2 0 0 0 2"), "length 2, 2, 2, not 1"
    ),
    "mesh": (_changed("ObjectType = Image", "ObjectType = Mesh"), "'Mesh', no image"),
    "huge": (_changed("9 8 7", "30000 30000 30000"), "30000 x 30000 x 30000 voxels of int16"),
    "huge, compressed": (_changed("9 8 7", "9000 9000 9000", compressed=True), "the file can hold"),
    "negative side": (_changed("9 8 7", "9 8 -7"), "make no image"),
    "no slices": (_changed("9 8 7", "9 8 0"), "make no image"),
    "two sides": (_changed("9 8 7", "9 8"), "make no image"),
    "axes no number": (_changed("NDims = 3", "NDims = three"), "make no image"),
    "2D": (lambda d: save(d / "a.mha", values()[0], direction=np.eye(2), spacing=(1, 1),
                          origin=(0, 0)), r"is a 2D image \(9 x 8\)"),
    "series": (_series, r"several volumes \(9 x 8 x 7 x 3\)"),
    "RGB": (_color, "several channels"),
    "complex": (
        lambda d: save(d / "a.mha", values().astype(np.complex64)), "several channels"
    ),
    "unknown type": (_changed("MET_SHORT", "MET_FOO"), "ITK cannot read its header [(]Unk"),
    "as text": (_changed("BinaryData = True", "BinaryData = False"), "stored as text"),
    "list": (_changed("ElementDataFile = LOCAL", "ElementDataFile = LIST"), "several files"),
    "pattern": (
        _changed("ElementDataFile = LOCAL", "ElementDataFile = a%02d.raw 1 7 1"), "several files"
    ),
    "header size": (_changed("NDims", "HeaderSize = ?\nNDims"), "HeaderSize"),
    "offset of two": (_changed("Offset = -12.5 30", "Offset = 30"), "Offset is not 3 numbers"),
    "matrix of words": (_changed("1 0 0 0 1 0 0 0 1", "a b c"), "Matrix is not 9 numbers"),
    "NaN spacing": (_changed("ElementSpacing = 0.5", "ElementSpacing = nan"), "not 3 numbers"),
    "zero matrix": (_changed("1 0 0 0 1 0 0 0 1", "0 0 0 0 0 0 0 0 0"), "grid is unusable"),
    "zero spacing": (_changed("ElementSpacing = 0.5", "ElementSpacing = 0"), "grid is unusable"),
    "no voxel finite": (
        lambda d: save(d / "a.mha", np.full((3, 4, 5), np.nan, np.float32)), "finite number"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path, kind, capfd):
    make, message = BAD[kind]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        scanfile.read_volume(path)
    line = one_line(error)
    assert re.match(rf"{re.escape(str(tmp_path))}/(a|none)\.(mha|mhd|raw|zraw): ", line)
    assert any(mark in line for mark in (";", ",")), line
    # ITK prints to the process's own stderr.
    assert capfd.readouterr() == ("", "")


def test_damaged_headers_are_read_or_refused_and_nothing_else(tmp_path, capfd):
    rng = np.random.default_rng(0)
    intact = save(tmp_path / "a.mha", values()).read_bytes()
    end = intact.index(b"LOCAL")
    for _ in range(300):
        content = bytearray(intact)
        for at in rng.integers(0, end, rng.integers(1, 4)):
            content[at] = rng.choice([0, 10, 32, 45, 48, 57, 61, 255, rng.integers(256)])
        path = tmp_path / "b.mha"
        path.write_bytes(content)
        try:
            volume = scanfile.read_volume(path)
        except InputError as error:
            assert "\n" not in str(error)
            continue
        assert np.isfinite(volume.native_affine).all()
    # Another test may have let the program's own warnings go to stderr; ITK prints nothing.
    out, err = capfd.readouterr()
    assert not out and all(line.startswith("WARNING: ") for line in err.splitlines())


@pytest.mark.parametrize("junk", [b"\xef\xbb\xbf", b"# note\n", b"ID = word\n", b"Color = 1\n"])
def test_lines_that_itk_cannot_read_do_not_matter(tmp_path, capfd, junk):
    path = save(tmp_path / "a.mha", values())
    expected = scanfile.read_volume(path)
    path.write_bytes(junk + path.read_bytes())
    volume = scanfile.read_volume(path)
    np.testing.assert_array_equal(volume.native, expected.native)
    np.testing.assert_array_equal(volume.native_affine, expected.native_affine)
    assert capfd.readouterr() == ("", "")


def test_a_header_without_voxel_size_is_warned_of(tmp_path, caplog):
    path = edited(save(tmp_path / "a.mha", values()), ("ElementSpacing = 0.5 0.75 2\n", ""))
    assert scanfile.read_volume(path).spacing_mm == (1, 1, 1)
    assert "no voxel size" in caplog.text


def test_more_than_the_free_memory_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "a.mha", values((30, 30, 30)))
    monkeypatch.setattr(voxels, "available_bytes", lambda: 1000)
    with pytest.raises(InputError, match="bytes of memory"):
        scanfile.read_volume(path)


def test_names():
    for name in ("a.mha", "b.MHD", "c.nii", "d.nii.gz"):
        assert scanfile.is_scan(name)
    for name in ("a.raw", "a.zraw", ".a.mha", "a.mha.part", "a.mhd.json"):
        assert not scanfile.is_scan(name)
    assert scanfile.case_id("x/case1_label.mhd") == scanfile.case_id("case1.mhd") == "case1"
    assert metaimage.is_metaimage(Path("x/a.MHA")) and not metaimage.is_metaimage("a.nii.gz")


def test_parts_are_what_the_voxels_depend_on(tmp_path):
    assert scanfile.parts(save(tmp_path / "a.mha", values())) == (tmp_path / "a.mha",)
    path = save(tmp_path / "b.mhd", values(), compressed=True)
    assert scanfile.parts(path) == (path, tmp_path / "b.zraw")
    assert scanfile.parts(tmp_path / "c.nii.gz") == (tmp_path / "c.nii.gz",)
