"""Reading scans: values, affines and names, against nibabel."""

import logging
import os
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from spinejax.io import nifti, scanfile, voxels
from spinejax.volume import Volume
from tests.support.nifti_files import forms, oblique_affine, save, scan_values, shifted


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint16", "float32", "float64", "int64", "i1"])
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
def test_any_type_on_disk_is_read_as_int16_where_values_are_whole(tmp_path, dtype, name):
    values = scan_values() % 100 if dtype in ("uint16", "i1") else scan_values()
    image = nib.Nifti1Image(values.astype(dtype), oblique_affine(), dtype=dtype)
    nib.save(image, tmp_path / name)
    volume = scanfile.read_volume(tmp_path / name)
    assert volume.native.dtype == np.int16
    np.testing.assert_array_equal(volume.native, values)
    np.testing.assert_array_equal(volume.native_affine, nib.load(tmp_path / name).affine)
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
    layout = voxels.Layout((5, 6, 7), np.dtype(dtype), slope, inter)
    header = nib.Nifti1Header()
    header.set_data_shape((5, 6, 7))
    header.set_data_dtype(dtype)
    header.set_sform(oblique_affine(), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["scl_slope"], header["scl_inter"] = slope, inter
    block = header.binaryblock + bytes(4)
    (tmp_path / "a.nii").write_bytes(block + raw.astype(dtype).tobytes(order="F"))
    volume = scanfile.read_volume(tmp_path / "a.nii")
    assert volume.native.dtype == expected
    truth = nib.load(tmp_path / "a.nii").get_fdata()
    np.testing.assert_allclose(volume.native, np.maximum(truth, -1024), rtol=1e-6)
    assert layout.nbytes == raw.astype(dtype).nbytes


@pytest.mark.parametrize("slope", [0, np.nan, np.inf])
def test_a_slope_that_says_nothing_is_ignored(tmp_path, slope):
    path = save(tmp_path / "a.nii", scan_values().astype(np.int16))
    data = bytearray(path.read_bytes())
    data[112:116] = np.float32(slope).tobytes()
    data[116:120] = np.float32(np.nan).tobytes()
    path.write_bytes(bytes(data))
    np.testing.assert_array_equal(scanfile.read_volume(path).native, scan_values())


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
def test_values_outside_the_scan_circle_become_air(tmp_path, dtype):
    values = scan_values().astype(dtype)
    values[0, 0, :4] = (-2048, -1291, -1025, -1024)
    if dtype.startswith("float"):
        values[1, 0, :3] = (np.nan, np.inf, -np.inf)
    if dtype == "float64":
        values[1, 0, 3] = 1e300
    volume = scanfile.read_volume(save(tmp_path / "a.nii.gz", values))
    assert volume.native.dtype == np.int16
    assert (volume.native[0, 0, :4] == -1024).all()
    if dtype.startswith("float"):
        assert (volume.native[1, 0, :3] == -1024).all()
    if dtype == "float64":
        assert volume.native[1, 0, 3] == -1024
    untouched = np.isfinite(values) & (values >= -1024) & (values < 1e5)
    np.testing.assert_array_equal(volume.native[untouched], values[untouched])


def test_fractions_are_kept_in_float32_even_when_they_come_late(tmp_path, monkeypatch):
    monkeypatch.setattr(voxels, "_SLAB_VOXELS", 1)
    values = scan_values().astype(np.float64)
    values[0, 0, -1] = 0.5
    volume = scanfile.read_volume(save(tmp_path / "a.nii.gz", values))
    assert volume.native.dtype == np.float32
    np.testing.assert_array_equal(volume.native, values)


@pytest.mark.parametrize("image", [nib.Nifti1Image, nib.Nifti2Image], ids=["nifti1", "nifti2"])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_both_versions_and_byte_orders_are_read_and_written_back(tmp_path, image, endianness):
    header = image.header_class(endianness=endianness)
    header.set_data_dtype(np.dtype("int16").newbyteorder(endianness))
    made = image(scan_values().astype(np.int16), oblique_affine(), header)
    nib.save(made, tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").header.endianness == endianness
    volume = scanfile.read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.native, scan_values())
    assert volume.native.dtype.isnative
    nifti.write_volume(tmp_path / "b.nii", volume)
    np.testing.assert_array_equal(nib.load(tmp_path / "b.nii").get_fdata(), scan_values())


def test_a_wrong_ending_does_not_matter(tmp_path):
    plain = save(tmp_path / "a.nii", scan_values().astype(np.int16))
    zipped = save(tmp_path / "b.nii.gz", scan_values().astype(np.int16))
    os.rename(plain, tmp_path / "c.nii.gz")
    os.rename(zipped, tmp_path / "d.nii")
    for name in ("c.nii.gz", "d.nii"):
        np.testing.assert_array_equal(scanfile.read_volume(tmp_path / name).native, scan_values())


def test_header_extensions_are_skipped(tmp_path):
    made = nib.Nifti1Image(scan_values().astype(np.int16), oblique_affine())
    made.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    nib.save(made, tmp_path / "a.nii.gz")
    volume = scanfile.read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.native, scan_values())
    nifti.write_labels(tmp_path / "b.nii.gz", np.ones(volume.native.shape, np.uint8), volume)
    assert nib.load(tmp_path / "b.nii.gz").get_fdata().min() == 1


@pytest.mark.parametrize("shape", [(6, 7, 8, 1), (6, 7, 8, 1, 1), (6, 7, 1), (6, 7, 1, 1)])
def test_trailing_singleton_axes_are_dropped_and_restored(tmp_path, shape):
    path = save(tmp_path / "a.nii.gz", scan_values(shape).astype(np.int16))
    volume = scanfile.read_volume(path)
    assert volume.native.shape == shape[:3]
    labels = (volume.native % 29).astype(np.uint8)
    nifti.write_labels(tmp_path / "b.nii.gz", labels, volume)
    back = nib.load(tmp_path / "b.nii.gz")
    assert back.shape == shape
    np.testing.assert_array_equal(np.asarray(back.dataobj).reshape(shape[:3]), labels)


def test_sform_wins_and_a_disagreement_is_logged(tmp_path, caplog):
    path = forms(tmp_path / "a.nii", oblique_affine(), 1, shifted(20), 1)
    with caplog.at_level(logging.WARNING, "spinejax"):
        volume = scanfile.read_volume(path)
    np.testing.assert_allclose(volume.native_affine, oblique_affine(), atol=1e-5)
    assert len(caplog.records) == 1
    assert "disagree by up to 20 mm" in caplog.text
    assert "a.nii" in caplog.text


def test_a_small_disagreement_is_silent(tmp_path, caplog):
    scanfile.read_volume(forms(tmp_path / "a.nii", oblique_affine(), 1, shifted(0.1), 1))
    assert not caplog.records


@pytest.mark.parametrize("broken", [np.zeros((4, 4)), np.full((4, 4), np.nan)], ids=["zero", "nan"])
def test_an_unusable_sform_gives_way_to_the_qform(tmp_path, caplog, broken):
    volume = scanfile.read_volume(forms(tmp_path / "a.nii", broken, 1, oblique_affine(), 1))
    np.testing.assert_allclose(volume.native_affine, oblique_affine(), atol=1e-4)
    assert "sform is unusable" in caplog.text
    labels = np.ones(volume.native.shape, np.uint8)
    nifti.write_labels(tmp_path / "b.nii", labels, volume)
    np.testing.assert_allclose(
        scanfile.read_labels(tmp_path / "b.nii").native_affine, volume.native_affine
    )


@pytest.mark.parametrize("code", [1, 2, 3, 4])
def test_qform_alone_agrees_with_nibabel(tmp_path, code):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        affine = np.eye(4)
        affine[:3, :3] = Rotation.random(rng=rng).as_matrix() * rng.choice([-1, 1], 3)
        affine[:3, :3] *= rng.uniform(0.3, 3, 3)
        affine[:3, 3] = rng.uniform(-300, 300, 3)
        path = forms(tmp_path / "a.nii", None, 0, affine, code)
        volume = scanfile.read_volume(path)
        np.testing.assert_array_equal(volume.native_affine, nib.load(path).affine)
        np.testing.assert_allclose(volume.native_affine, affine, atol=1e-4)


def test_half_turns_whose_quaternion_rounds_above_one_are_read(tmp_path):
    affine = np.diag([-0.7, -0.7, 1.2, 1])
    path = forms(tmp_path / "a.nii", None, 0, affine, 1)
    data = bytearray(path.read_bytes())
    data[264:268] = np.float32(1.0000004).tobytes()  # quatern_d
    path.write_bytes(bytes(data))
    np.testing.assert_allclose(scanfile.read_volume(path).native_affine, affine, atol=1e-5)


def test_without_codes_the_voxel_sizes_are_used_as_nibabel_does(tmp_path, caplog):
    path = forms(tmp_path / "a.nii", None, 0, None, 0, zooms=(1, 2, 3))
    volume = scanfile.read_volume(path)
    np.testing.assert_array_equal(volume.native_affine, nib.load(path).affine)
    assert volume.spacing_mm == (1, 2, 3)
    assert "no orientation" in caplog.text


def test_a_sheared_affine_is_kept_exactly(tmp_path, caplog):
    affine = oblique_affine()
    affine[:3, 2] += (0.3, 0, 0)
    affine = affine.astype(np.float32).astype(np.float64)
    nifti.write_volume(tmp_path / "a.nii.gz", Volume(scan_values().astype(np.int16), affine))
    volume = scanfile.read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.native_affine, affine)
    assert not caplog.records


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("mm", 1), ("micron", 0.001)])
def test_units_are_honoured(tmp_path, unit, factor):
    affine = np.diag([0.5, 0.5, 2, 1]) / factor
    affine[3, 3] = 1
    made = nib.Nifti1Image(scan_values().astype(np.int16), affine)
    made.header.set_xyzt_units(unit)
    nib.save(made, tmp_path / "a.nii.gz")
    volume = scanfile.read_volume(tmp_path / "a.nii.gz")
    assert volume.spacing_mm == pytest.approx((0.5, 0.5, 2), rel=1e-6)
    nifti.write_labels(tmp_path / "b.nii.gz", np.zeros(volume.native.shape, np.uint8), volume)
    back = nib.load(tmp_path / "b.nii.gz")
    assert back.header.get_xyzt_units()[0] == unit
    np.testing.assert_array_equal(back.affine, nib.load(tmp_path / "a.nii.gz").affine)


def test_a_unit_that_cannot_be_meant_is_ignored(tmp_path, caplog):
    made = nib.Nifti1Image(scan_values().astype(np.int16), np.diag([0.5, 0.5, 2, 1]))
    made.header.set_xyzt_units("meter")
    nib.save(made, tmp_path / "a.nii.gz")
    assert scanfile.read_volume(tmp_path / "a.nii.gz").spacing_mm == (0.5, 0.5, 2)
    assert "ignoring the unit meter" in caplog.text


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
        volume = scanfile.read_volume(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert volume.native.nbytes == result
    assert peak < result + 100e6


def test_many_voxels_without_number_are_named(tmp_path, caplog):
    values = scan_values((10, 10, 10)).astype(np.float32)
    values[:2] = np.nan
    scanfile.read_volume(save(tmp_path / "few.nii.gz", values))
    assert not caplog.records
    values[:5] = np.inf
    scanfile.read_volume(save(tmp_path / "many.nii.gz", values))
    assert "many.nii.gz: 50 % of the voxels are NaN or infinite" in caplog.text
