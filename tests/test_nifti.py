"""Scans in and out, against nibabel and real scans; and every kind of file that is no scan."""

import gzip
import logging
import os
import resource
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from spinejax import geometry
from spinejax.data import nifti, voxelfile
from spinejax.errors import InputError
from spinejax.volume import DiskGrid, LabelVolume, Volume

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


def scan_values(shape=(6, 7, 8), seed=0):
    return np.random.default_rng(seed).integers(-1000, 2000, shape)


def save(path, array, affine=None, image=nib.Nifti1Image, **fields):
    made = image(array, oblique_affine() if affine is None else affine)
    for name, value in fields.items():
        made.header[name] = value
    nib.save(made, path)
    return path


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint16", "float32", "float64", "int64", "i1"])
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
def test_any_type_on_disk_is_read_as_int16_where_values_are_whole(tmp_path, dtype, name):
    values = scan_values() % 100 if dtype in ("uint16", "i1") else scan_values()
    image = nib.Nifti1Image(values.astype(dtype), oblique_affine(), dtype=dtype)
    nib.save(image, tmp_path / name)
    volume = nifti.read_volume(tmp_path / name)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, values)
    np.testing.assert_array_equal(volume.affine, nib.load(tmp_path / name).affine)
    assert volume.spacing_mm == pytest.approx((0.5, 0.75, 2.0), rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "slope", "inter", "expected"),
    [
        ("uint16", 1, -1024, np.int16),
        ("int16", 2, 5, np.int16),
        ("int16", 0.5, 0, np.float32),
        ("uint8", 8, -1000, np.int16),
        ("float32", 1000, -1000, np.float32),
        ("int32", 100, 0, np.float32),
    ],
)
def test_slope_and_intercept_are_applied(tmp_path, dtype, slope, inter, expected):
    rng = np.random.default_rng(1)
    raw = rng.uniform(0, 1, (5, 6, 7)) if dtype == "float32" else rng.integers(0, 250, (5, 6, 7))
    if dtype == "int32":
        raw[0, 0, 0] = 500  # 50 000 does not fit int16
    layout = voxelfile.Layout((5, 6, 7), np.dtype(dtype), slope, inter)
    header = nib.Nifti1Header()
    header.set_data_shape((5, 6, 7))
    header.set_data_dtype(dtype)
    header.set_sform(oblique_affine(), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["scl_slope"], header["scl_inter"] = slope, inter
    block = header.binaryblock + bytes(4)
    (tmp_path / "a.nii").write_bytes(block + raw.astype(dtype).tobytes(order="F"))
    volume = nifti.read_volume(tmp_path / "a.nii")
    assert volume.array.dtype == expected
    truth = nib.load(tmp_path / "a.nii").get_fdata()
    np.testing.assert_allclose(volume.array, np.maximum(truth, -1024), rtol=1e-6)
    assert layout.nbytes == raw.astype(dtype).nbytes


@pytest.mark.parametrize("slope", [0, np.nan, np.inf])
def test_a_slope_that_says_nothing_is_ignored(tmp_path, slope):
    path = save(tmp_path / "a.nii", scan_values().astype(np.int16))
    data = bytearray(path.read_bytes())
    data[112:116] = np.float32(slope).tobytes()
    data[116:120] = np.float32(np.nan).tobytes()
    path.write_bytes(bytes(data))
    np.testing.assert_array_equal(nifti.read_volume(path).array, scan_values())


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
def test_values_outside_the_scan_circle_become_air(tmp_path, dtype):
    values = scan_values().astype(dtype)
    values[0, 0, :4] = (-2048, -1291, -1025, -1024)
    if dtype.startswith("float"):
        values[1, 0, :3] = (np.nan, np.inf, -np.inf)
    if dtype == "float64":
        values[1, 0, 3] = 1e300
    volume = nifti.read_volume(save(tmp_path / "a.nii.gz", values))
    assert volume.array.dtype == np.int16
    assert (volume.array[0, 0, :4] == -1024).all()
    if dtype.startswith("float"):
        assert (volume.array[1, 0, :3] == -1024).all()
    if dtype == "float64":
        assert volume.array[1, 0, 3] == -1024
    untouched = np.isfinite(values) & (values >= -1024) & (values < 1e5)
    np.testing.assert_array_equal(volume.array[untouched], values[untouched])


def test_fractions_are_kept_in_float32_even_when_they_come_late(tmp_path, monkeypatch):
    monkeypatch.setattr(voxelfile, "_SLAB_VOXELS", 1)
    values = scan_values().astype(np.float64)
    values[0, 0, -1] = 0.5
    volume = nifti.read_volume(save(tmp_path / "a.nii.gz", values))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, values)


@pytest.mark.parametrize("image", [nib.Nifti1Image, nib.Nifti2Image], ids=["nifti1", "nifti2"])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_both_versions_and_byte_orders_are_read_and_written_back(tmp_path, image, endianness):
    header = image.header_class(endianness=endianness)
    header.set_data_dtype(np.dtype("int16").newbyteorder(endianness))
    made = image(scan_values().astype(np.int16), oblique_affine(), header)
    nib.save(made, tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").header.endianness == endianness
    volume = nifti.read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array, scan_values())
    assert volume.array.dtype.isnative
    nifti.write_volume(tmp_path / "b.nii", volume)
    np.testing.assert_array_equal(nib.load(tmp_path / "b.nii").get_fdata(), scan_values())


def test_a_wrong_ending_does_not_matter(tmp_path):
    plain = save(tmp_path / "a.nii", scan_values().astype(np.int16))
    zipped = save(tmp_path / "b.nii.gz", scan_values().astype(np.int16))
    os.rename(plain, tmp_path / "c.nii.gz")
    os.rename(zipped, tmp_path / "d.nii")
    for name in ("c.nii.gz", "d.nii"):
        np.testing.assert_array_equal(nifti.read_volume(tmp_path / name).array, scan_values())


def test_header_extensions_are_skipped(tmp_path):
    made = nib.Nifti1Image(scan_values().astype(np.int16), oblique_affine())
    made.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    nib.save(made, tmp_path / "a.nii.gz")
    volume = nifti.read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array, scan_values())
    nifti.write_labels(tmp_path / "b.nii.gz", np.ones(volume.shape, np.uint8), volume)
    assert nib.load(tmp_path / "b.nii.gz").get_fdata().min() == 1


@pytest.mark.parametrize("shape", [(6, 7, 8, 1), (6, 7, 8, 1, 1), (6, 7, 1), (6, 7, 1, 1)])
def test_trailing_singleton_axes_are_dropped_and_restored(tmp_path, shape):
    path = save(tmp_path / "a.nii.gz", scan_values(shape).astype(np.int16))
    volume = nifti.read_volume(path)
    assert volume.shape == shape[:3]
    labels = (volume.array % 29).astype(np.uint8)
    nifti.write_labels(tmp_path / "b.nii.gz", labels, volume)
    back = nib.load(tmp_path / "b.nii.gz")
    assert back.shape == shape
    np.testing.assert_array_equal(np.asarray(back.dataobj).reshape(shape[:3]), labels)


# --- affines -------------------------------------------------------------------------------------


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


def test_sform_wins_and_a_disagreement_is_logged(tmp_path, caplog):
    path = forms(tmp_path / "a.nii", oblique_affine(), 1, shifted(20), 1)
    with caplog.at_level(logging.WARNING, "spinejax"):
        volume = nifti.read_volume(path)
    np.testing.assert_allclose(volume.affine, oblique_affine(), atol=1e-5)
    assert len(caplog.records) == 1
    assert "disagree by up to 20 mm" in caplog.text
    assert "a.nii" in caplog.text


def test_a_small_disagreement_is_silent(tmp_path, caplog):
    nifti.read_volume(forms(tmp_path / "a.nii", oblique_affine(), 1, shifted(0.1), 1))
    assert not caplog.records


@pytest.mark.parametrize("broken", [np.zeros((4, 4)), np.full((4, 4), np.nan)], ids=["zero", "nan"])
def test_an_unusable_sform_gives_way_to_the_qform(tmp_path, caplog, broken):
    volume = nifti.read_volume(forms(tmp_path / "a.nii", broken, 1, oblique_affine(), 1))
    np.testing.assert_allclose(volume.affine, oblique_affine(), atol=1e-4)
    assert "sform is unusable" in caplog.text
    labels = np.ones(volume.shape, np.uint8)
    nifti.write_labels(tmp_path / "b.nii", labels, volume)
    np.testing.assert_allclose(nifti.read_labels(tmp_path / "b.nii").affine, volume.affine)


@pytest.mark.parametrize("code", [1, 2, 3, 4])
def test_qform_alone_agrees_with_nibabel(tmp_path, code):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        affine = np.eye(4)
        affine[:3, :3] = Rotation.random(rng=rng).as_matrix() * rng.choice([-1, 1], 3)
        affine[:3, :3] *= rng.uniform(0.3, 3, 3)
        affine[:3, 3] = rng.uniform(-300, 300, 3)
        path = forms(tmp_path / "a.nii", None, 0, affine, code)
        volume = nifti.read_volume(path)
        np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
        np.testing.assert_allclose(volume.affine, affine, atol=1e-4)


def test_half_turns_whose_quaternion_rounds_above_one_are_read(tmp_path):
    affine = np.diag([-0.7, -0.7, 1.2, 1])
    path = forms(tmp_path / "a.nii", None, 0, affine, 1)
    data = bytearray(path.read_bytes())
    data[264:268] = np.float32(1.0000004).tobytes()  # quatern_d
    path.write_bytes(bytes(data))
    np.testing.assert_allclose(nifti.read_volume(path).affine, affine, atol=1e-5)


def test_without_codes_the_voxel_sizes_are_used_as_nibabel_does(tmp_path, caplog):
    path = forms(tmp_path / "a.nii", None, 0, None, 0, zooms=(1, 2, 3))
    volume = nifti.read_volume(path)
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
    assert volume.spacing_mm == (1, 2, 3)
    assert "no orientation" in caplog.text


def test_a_sheared_affine_is_kept_exactly(tmp_path, caplog):
    affine = oblique_affine()
    affine[:3, 2] += (0.3, 0, 0)
    affine = affine.astype(np.float32).astype(np.float64)
    nifti.write_volume(tmp_path / "a.nii.gz", Volume(scan_values().astype(np.int16), affine))
    volume = nifti.read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.affine, affine)
    assert not caplog.records


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("mm", 1), ("micron", 0.001)])
def test_units_are_honoured(tmp_path, unit, factor):
    affine = np.diag([0.5, 0.5, 2, 1]) / factor
    affine[3, 3] = 1
    made = nib.Nifti1Image(scan_values().astype(np.int16), affine)
    made.header.set_xyzt_units(unit)
    nib.save(made, tmp_path / "a.nii.gz")
    volume = nifti.read_volume(tmp_path / "a.nii.gz")
    assert volume.spacing_mm == pytest.approx((0.5, 0.5, 2), rel=1e-6)
    nifti.write_labels(tmp_path / "b.nii.gz", np.zeros(volume.shape, np.uint8), volume)
    back = nib.load(tmp_path / "b.nii.gz")
    assert back.header.get_xyzt_units()[0] == unit
    np.testing.assert_array_equal(back.affine, nib.load(tmp_path / "a.nii.gz").affine)


def test_a_unit_that_cannot_be_meant_is_ignored(tmp_path, caplog):
    made = nib.Nifti1Image(scan_values().astype(np.int16), np.diag([0.5, 0.5, 2, 1]))
    made.header.set_xyzt_units("meter")
    nib.save(made, tmp_path / "a.nii.gz")
    assert nifti.read_volume(tmp_path / "a.nii.gz").spacing_mm == (0.5, 0.5, 2)
    assert "ignoring the unit meter" in caplog.text


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", geometry.ALL_ORIENTATIONS)
def test_labels_made_in_canonical_space_go_back_voxel_for_voxel(tmp_path, code):
    array, affine = geometry.reorient(scan_values(), oblique_affine((1, 1, 2)), code)
    path = save(tmp_path / "a.nii.gz", np.ascontiguousarray(array, np.int16), affine)
    volume = nifti.read_volume(path)
    assert volume.orientation == code == "".join(nib.aff2axcodes(nib.load(path).affine))
    canonical, canonical_affine = geometry.reorient(volume.array, volume.affine, "LPS")
    labels = (canonical % 29).astype(np.uint8)
    back, _ = geometry.reorient(labels, canonical_affine, volume.orientation)
    nifti.write_labels(tmp_path / "b.nii.gz", back, volume)
    scan, written = nib.load(path), nib.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(scan.dataobj) % 29)
    for field in GRID_FIELDS:
        np.testing.assert_array_equal(written.header[field], scan.header[field])
    assert written.get_data_dtype() == np.uint8
    assert written.dataobj.slope == 1
    assert written.dataobj.inter == 0


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["int16", "int32", "float32", "float64"]),
    st.integers(0, 4),
    st.integers(0, 4),
)
def test_written_labels_repeat_the_header_of_any_scan(tmp_path_factory, seed, dtype, sform, qform):
    folder = tmp_path_factory.mktemp("any")
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(rng=rng).as_matrix() * rng.choice([-1, 1], 3)
    affine[:3, :3] *= rng.uniform(0.3, 3, 3)
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    shape = tuple(rng.integers(1, 9, 3))
    made = nib.Nifti1Image(scan_values(shape).astype(dtype), affine)
    made.header.set_sform(affine, sform)
    made.header.set_qform(affine, qform)
    made.set_sform(affine, sform)
    made.set_qform(affine, qform)
    nib.save(made, folder / "a.nii.gz")
    volume = nifti.read_volume(folder / "a.nii.gz")
    labels = rng.integers(0, 29, shape).astype(np.uint8)
    nifti.write_labels(folder / "b.nii.gz", labels, volume)
    scan, written = nib.load(folder / "a.nii.gz"), nib.load(folder / "b.nii.gz")
    for field in GRID_FIELDS:
        np.testing.assert_array_equal(written.header[field], scan.header[field])
    np.testing.assert_array_equal(written.affine, scan.affine)
    np.testing.assert_array_equal(volume.affine, scan.affine)
    np.testing.assert_array_equal(nifti.read_labels(folder / "b.nii.gz").array, labels)


@pytest.mark.parametrize(
    ("dtype", "slope", "inter"),
    [("int16", 1, 0), ("uint16", 1, -1024), ("int32", 1, 0), ("float32", 1, 0), ("float64", 2, 9)],
)
def test_written_volumes_are_what_nibabel_reads(tmp_path, dtype, slope, inter):
    volume = Volume(scan_values().astype(np.int16), oblique_affine())
    nifti.write_volume(tmp_path / "a.nii.gz", volume, dtype, slope=slope, inter=inter)
    theirs = nib.load(tmp_path / "a.nii.gz")
    assert theirs.get_data_dtype() == dtype
    np.testing.assert_array_equal(theirs.get_fdata(), volume.array)
    np.testing.assert_allclose(theirs.affine, volume.affine, atol=1e-5)
    np.testing.assert_allclose(theirs.header.get_qform(), volume.affine, atol=1e-4)
    assert (int(theirs.header["sform_code"]), int(theirs.header["qform_code"])) == (1, 1)
    assert theirs.header.get_xyzt_units()[0] == "mm"


def test_a_value_that_does_not_fit_the_type_is_refused_before_writing(tmp_path):
    volume = Volume(scan_values().astype(np.int16), oblique_affine())
    with pytest.raises(ValueError, match="do not fit uint16"):
        nifti.write_volume(tmp_path / "a.nii", volume, "uint16")
    assert not list(tmp_path.iterdir())


def test_labels_on_a_grid_described_by_matrices_alone(tmp_path):
    path = Path("elsewhere.nii.gz")
    affine = oblique_affine()
    disk = DiskGrid(path, (3, 4, 5, 1), affine, 2, affine, 1, "mm")
    like = Volume(np.zeros((3, 4, 5), np.int16), affine, disk)
    nifti.write_labels(tmp_path / "a.nii.gz", np.ones((3, 4, 5), np.uint8), like)
    back = nib.load(tmp_path / "a.nii.gz")
    assert back.shape == (3, 4, 5, 1)
    assert (int(back.header["sform_code"]), int(back.header["qform_code"])) == (2, 1)
    np.testing.assert_allclose(back.affine, affine, atol=1e-5)


def test_the_same_labels_give_the_same_bytes(tmp_path):
    like = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4))
    for name in ("a.nii.gz", "b.nii.gz"):
        nifti.write_labels(tmp_path / name, np.ones((3, 4, 5), np.uint8), like)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_write_labels_refuses_another_shape_type_or_ending(tmp_path):
    like = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4))
    for wrong in (np.ones((3, 4, 6), np.uint8), np.ones((3, 4, 5), np.int16)):
        with pytest.raises(ValueError, match="must be uint8"):
            nifti.write_labels(tmp_path / "a.nii.gz", wrong, like)
    with pytest.raises(InputError, match=r"end in \.nii or \.nii\.gz"):
        nifti.write_labels(tmp_path / "a.png", np.ones((3, 4, 5), np.uint8), like)
    cropped = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4), _disk((9, 9, 9)))
    with pytest.raises(ValueError, match="not on the grid"):
        nifti.write_labels(tmp_path / "a.nii.gz", np.ones((3, 4, 5), np.uint8), cropped)
    assert not list(tmp_path.iterdir())


def _disk(shape):
    return DiskGrid(Path("x.nii.gz"), shape, np.eye(4), 1, np.eye(4), 1, "mm")


# --- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", "i1"])
def test_labels_of_any_type_are_read_as_uint8(tmp_path, dtype):
    labels = np.random.default_rng(0).integers(0, 29, (6, 7, 8))
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(labels.astype(dtype), np.eye(4), dtype=dtype), path)
    read = nifti.read_labels(path)
    assert isinstance(read, LabelVolume)
    assert read.array.dtype == np.uint8
    np.testing.assert_array_equal(read.array, labels)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_labels_that_a_writer_has_quantised_are_rounded(tmp_path, dtype):
    labels = np.random.default_rng(0).integers(0, 29, (6, 7, 8))
    made = nib.Nifti1Image(labels.astype(np.float64), np.eye(4))
    made.set_data_dtype(dtype)  # nibabel chooses a slope that spreads 0..28 over the whole type
    nib.save(made, tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").dataobj.slope not in (0, 1)
    np.testing.assert_array_equal(nifti.read_labels(tmp_path / "a.nii.gz").array, labels)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (0.5, "float32", "whole numbers"),
        (np.nan, "float64", "whole numbers"),
        (np.inf, "float32", "whole numbers"),
        (-3, "int16", "label -3 is out of range"),
        (-1, "int8", "label -1 is out of range"),
        (29, "uint8", "label 29 is out of range; allowed are 0 to 28"),
        (1000, "int32", "label 1000 is out of range"),
        (2**40, "int64", "is out of range"),
        (1e30, "float64", "is out of range"),
    ],
)
def test_values_that_are_no_labels_are_refused(tmp_path, value, dtype, message):
    labels = np.zeros((4, 4, 4), dtype)
    labels[1, 2, 3] = value
    path = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(labels, np.eye(4), dtype=dtype), path)
    with pytest.raises(InputError, match=message) as error:
        nifti.read_labels(path)
    assert one_line(error).startswith(str(path))


def test_which_labels_are_valid_can_be_said(tmp_path):
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, :2] = (41, 255)
    path = save(tmp_path / "a.nii.gz", labels)
    np.testing.assert_array_equal(nifti.read_labels(path, None).array, labels)
    with pytest.raises(InputError, match="label 255 is out of range; allowed are 0, 41"):
        nifti.read_labels(path, {0, 41})


# --- pairs ---------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    """A scan on an oblique grid and a mask with a block in it."""
    labels = np.zeros((20, 21, 22), np.uint8)
    labels[5:12, 6:14, 7:15] = 20
    affine = oblique_affine((1, 1, 1))
    image = save(tmp_path / "image.nii.gz", scan_values((20, 21, 22)).astype(np.int16), affine)
    return image, labels, affine


def test_a_mask_a_little_off_is_taken_as_it_is(tmp_path, pair, caplog):
    image, labels, affine = pair
    affine[0, 3] += 0.3
    mask = save(tmp_path / "mask.nii.gz", labels, affine)
    scan, read = nifti.read_pair(image, mask)
    np.testing.assert_array_equal(read.array, labels)
    np.testing.assert_array_equal(read.affine, scan.affine)
    assert not caplog.records


@pytest.mark.parametrize("code", geometry.ALL_ORIENTATIONS)
def test_a_mask_in_another_axis_order_is_turned(tmp_path, pair, code, caplog):
    image, labels, affine = pair
    turned, turned_affine = geometry.reorient(labels, affine, code)
    mask = save(tmp_path / "mask.nii.gz", np.ascontiguousarray(turned), turned_affine)
    _, read = nifti.read_pair(image, mask)
    np.testing.assert_array_equal(read.array, labels)
    assert not caplog.records


def test_a_mask_on_a_shifted_grid_is_resampled(tmp_path, pair, caplog):
    image, labels, affine = pair
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ (3, 0, 0)  # three voxels along the first axis
    mask = save(tmp_path / "mask.nii.gz", labels, moved)
    _, read = nifti.read_pair(image, mask)
    expected = np.zeros_like(labels)
    expected[3:] = labels[:-3]
    np.testing.assert_array_equal(read.array, expected)
    assert "resampling the mask" in caplog.text
    assert "mask.nii.gz" in caplog.text
    # The same displacement is nothing where the tolerance says so.
    np.testing.assert_array_equal(nifti.read_pair(image, mask, 5)[1].array, labels)


def test_a_cropped_mask_is_put_where_it_belongs(tmp_path, pair):
    image, labels, affine = pair
    cropped = affine.copy()
    cropped[:3, 3] = geometry.voxel_to_world(affine, np.array([5, 6, 7]))
    mask = save(tmp_path / "mask.nii.gz", labels[5:12, 6:14, 7:15], cropped)
    np.testing.assert_array_equal(nifti.read_pair(image, mask)[1].array, labels)


def test_a_finer_mask_is_resampled_to_nearly_the_same_volume(tmp_path, pair):
    image, labels, affine = pair
    fine = geometry.resampled_affine(affine, labels.shape, (0.5, 0.5, 0.5))
    doubled = labels.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    mask = save(tmp_path / "mask.nii.gz", doubled, fine)
    read = nifti.read_pair(image, mask)[1]
    np.testing.assert_array_equal(read.array, labels)


def test_a_mask_elsewhere_is_refused(tmp_path, pair):
    image, labels, affine = pair
    affine[0, 3] += 1000
    mask = save(tmp_path / "mask.nii.gz", labels, affine)
    with pytest.raises(InputError, match="does not overlap") as error:
        nifti.read_pair(image, mask)
    message = one_line(error)
    assert str(mask) in message
    assert str(image) in message


def test_a_mask_whose_labels_all_miss_the_scan_is_refused(tmp_path, pair):
    image, labels, affine = pair
    affine[:3, 3] += affine[:3, :3] @ (18, 0, 0)
    mask = save(tmp_path / "mask.nii.gz", labels, affine)
    with pytest.raises(InputError, match="no labelled voxel"):
        nifti.read_pair(image, mask)


def test_a_mask_without_orientation_is_paired_by_shape(tmp_path, pair, caplog):
    image, labels, _ = pair
    nib.save(nib.Nifti1Image(labels, None), tmp_path / "mask.nii.gz")
    _, read = nifti.read_pair(image, tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(read.array, labels)
    assert "taken to be on the grid" in caplog.text


def test_a_mask_that_agrees_with_the_other_form_of_the_scan_is_paired(tmp_path, caplog):
    image = forms(tmp_path / "image.nii", oblique_affine(), 1, shifted(20), 1)
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[2:4, 2:4, 2:4] = 3
    made = nib.Nifti1Image(labels, shifted(20))
    nib.save(made, tmp_path / "mask.nii.gz")
    _, read = nifti.read_pair(image, tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(read.array, labels)
    assert "taken to be on the grid" in caplog.text


# --- what is no scan -----------------------------------------------------------------------------


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
        nifti.read_volume(path)
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
                volume = nifti.read_volume(path)
            except InputError as error:
                assert "\n" not in str(error)
                continue
            nifti.write_labels(tmp_path / "c.nii", np.zeros(volume.shape, np.uint8), volume)
            back = nifti.read_labels(tmp_path / "c.nii")
            np.testing.assert_array_equal(back.affine, volume.affine)


@pytest.mark.parametrize("name", ["huge.nii", "huge.nii.gz"])
def test_a_header_that_claims_too_much_allocates_nothing(tmp_path, name):
    path = _huge(tmp_path, name=name)
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            nifti.read_volume(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_more_than_the_free_memory_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz", scan_values((30, 30, 30)).astype(np.int16))
    monkeypatch.setattr(voxelfile, "available_bytes", lambda: 1000)
    with pytest.raises(InputError, match="bytes of memory") as error:
        nifti.read_volume(path)
    assert str(path) in one_line(error)


def test_available_memory_is_known_here():
    assert voxelfile.available_bytes() > 1e6


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz", scan_values().astype(np.int16))
    if os.geteuid() == 0:

        def denied(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", denied)
    else:
        path.chmod(0)
    with pytest.raises(InputError, match="permission denied") as error:
        nifti.read_volume(path)
    assert str(path) in one_line(error)


# --- writing where it cannot be done -------------------------------------------------------------


def test_an_unwritable_folder_is_named(tmp_path, monkeypatch):
    like = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4))
    folder = tmp_path / "locked"
    folder.mkdir()
    if os.geteuid() == 0:

        def denied(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("tempfile.mkstemp", denied)
    else:
        folder.chmod(0o500)
    with pytest.raises(InputError, match="permission denied; choose") as error:
        nifti.write_labels(folder / "a.nii.gz", np.ones((3, 4, 5), np.uint8), like)
    assert str(folder / "a.nii.gz") in one_line(error)


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    like = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a parent is a file"):
        nifti.write_labels(tmp_path / "file" / "a.nii", np.ones((3, 4, 5), np.uint8), like)
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        nifti.write_labels(tmp_path / "folder.nii", np.ones((3, 4, 5), np.uint8), like)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.nii"]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(tmp_path, name):
    like = Volume(np.zeros((64, 64, 64), np.int16), np.eye(4))
    labels = np.random.default_rng(0).integers(0, 29, (64, 64, 64)).astype(np.uint8)
    path = tmp_path / name
    nifti.write_labels(path, np.zeros_like(labels), like)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond 20 kB: the kernel fails the write half-way, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(InputError, match="no space left") as error:
            nifti.write_labels(path, labels, like)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(path) in one_line(error)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-verse014_ct.nii.gz", "sub-verse014"),
        ("sub-verse014_seg-vert_msk.nii.gz", "sub-verse014"),
        ("sub-verse521_dir-ax_ct.nii.gz", "sub-verse521_dir-ax"),
        ("verse004_seg.nii.gz", "verse004"),
        ("verse506_CT-iso.nii.gz", "verse506_CT-iso"),
        ("case.7.nii", "case.7"),
        ("scan_CT.NII.GZ", "scan"),
        ("_ct.nii.gz", "_ct"),
    ],
)
def test_case_ids(name, expected):
    assert nifti.case_id(f"/some/where/{name}") == expected


def test_nifti_names():
    assert nifti.is_nifti("a.nii")
    assert nifti.is_nifti(Path("x/a.NII.gz"))
    for name in ("a.nii.gz.part", "a.json", ".tmp-abc-a.nii.gz", "._a.nii.gz", "nii"):
        assert not nifti.is_nifti(name)


# --- memory and real scans -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int16", "float64"])
def test_reading_needs_little_beside_the_result(tmp_path, dtype):
    shape = (256, 256, 200)
    array = np.zeros(shape, dtype)
    array[:, :, ::7] = 300
    path = save(tmp_path / "a.nii.gz", array)
    result = np.prod(shape) * 2
    del array
    tracemalloc.start()
    try:
        volume = nifti.read_volume(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert volume.array.nbytes == result
    assert peak < result + 100e6


def test_real_scans_are_read_as_nibabel_reads_them(real_data):
    paths = sorted(p for p in real_data.rglob("*_ct.nii.gz"))
    paths += sorted(real_data.rglob("*_label-22_ct.nii.gz"))
    assert len(paths) >= 4
    for path in paths:
        volume = nifti.read_volume(path)
        theirs = nib.load(path)
        assert volume.array.dtype == np.int16
        np.testing.assert_array_equal(volume.affine, theirs.affine)
        raw = np.asarray(theirs.dataobj)
        np.testing.assert_array_equal(volume.array, np.maximum(raw, np.array(-1024, raw.dtype)))
    lidc = real_data / "lidc" / "LIDC-IDRI-0003_ct.nii.gz"
    assert np.asarray(nib.load(lidc).dataobj).min() == -2048
    assert nifti.read_volume(lidc).array.min() == -1024


def test_real_masks_are_read_and_written_back_on_their_own_grid(real_data, tmp_path):
    paths = sorted(p for p in real_data.rglob("*.nii.gz") if not p.name.endswith("_ct.nii.gz"))
    assert len(paths) >= 7
    for path in paths:
        labels = nifti.read_labels(path, None)
        nifti.write_labels(tmp_path / "a.nii.gz", labels.array, labels)
        theirs, ours = nib.load(path), nib.load(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
        np.testing.assert_array_equal(ours.affine, theirs.affine)
        for field in GRID_FIELDS:
            np.testing.assert_array_equal(ours.header[field], theirs.header[field])


def test_real_pairs_are_on_one_grid(real_data, caplog):
    verse = real_data / "verse"
    image, labels = nifti.read_pair(
        verse / "rawdata/sub-verse014/sub-verse014_ct.nii.gz",
        verse / "derivatives/sub-verse014/sub-verse014_seg-vert_msk.nii.gz",
    )
    assert image.orientation == "PIR"
    assert np.unique(labels.array).tolist() == [0, 20, 21, 22, 23, 24]
    # Bone is denser than what surrounds it: the pair lies on one another.
    assert image.array[labels.array > 0].mean() > image.array[labels.array == 0].mean() + 100
    totalsegmentator = real_data / "totalsegmentator"
    image, labels = nifti.read_pair(
        totalsegmentator / "example_ct.nii.gz",
        totalsegmentator / "example_vertebrae_verse-ids.nii.gz",
    )
    assert image.shape == labels.shape
    assert not caplog.records
    with pytest.raises(InputError, match="out of range"):
        nifti.read_labels(totalsegmentator / "example_vertebrae_totalseg-ids.nii.gz")
