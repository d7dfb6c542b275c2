"""Scans and labels go back as they came, or not at all; real scans too."""

import resource
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from spinejax import files, geometry
from spinejax.errors import InputError
from spinejax.io import nifti, scanfile
from spinejax.volume import DiskGrid, Volume
from tests.support.nifti_files import (
    GRID_FIELDS,
    oblique_affine,
    one_line,
    save,
    scan_values,
    unprivileged,
)


@pytest.mark.parametrize("code", geometry.ALL_ORIENTATIONS)
def test_labels_made_in_canonical_space_go_back_voxel_for_voxel(tmp_path, code):
    array, affine = geometry.reorient(scan_values(), oblique_affine((1, 1, 2)), code)
    path = save(tmp_path / "a.nii.gz", np.ascontiguousarray(array, np.int16), affine)
    volume = scanfile.read_volume(path)
    assert volume.orientation == code == "".join(nib.aff2axcodes(nib.load(path).affine))
    assert geometry.orientation(volume.affine) == "LPS"
    labels = (volume.array % 29).astype(np.uint8)
    nifti.write_labels(tmp_path / "b.nii.gz", volume.to_native(labels), volume)
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
    volume = scanfile.read_volume(folder / "a.nii.gz")
    labels = rng.integers(0, 26, shape).astype(np.uint8)
    nifti.write_labels(folder / "b.nii.gz", labels, volume)
    scan, written = nib.load(folder / "a.nii.gz"), nib.load(folder / "b.nii.gz")
    for field in GRID_FIELDS:
        np.testing.assert_array_equal(written.header[field], scan.header[field])
    np.testing.assert_array_equal(written.affine, scan.affine)
    np.testing.assert_array_equal(volume.native_affine, scan.affine)
    np.testing.assert_array_equal(scanfile.read_labels(folder / "b.nii.gz").native, labels)


@pytest.mark.parametrize(
    ("dtype", "slope", "inter"),
    [("int16", 1, 0), ("uint16", 1, -1024), ("int32", 1, 0), ("float32", 1, 0), ("float64", 2, 9)],
)
def test_written_volumes_are_what_nibabel_reads(tmp_path, dtype, slope, inter):
    volume = Volume(scan_values().astype(np.int16), oblique_affine())
    nifti.write_volume(tmp_path / "a.nii.gz", volume, dtype, slope=slope, inter=inter)
    theirs = nib.load(tmp_path / "a.nii.gz")
    assert theirs.get_data_dtype() == dtype
    np.testing.assert_array_equal(theirs.get_fdata(), volume.native)
    np.testing.assert_allclose(theirs.affine, volume.native_affine, atol=1e-5)
    np.testing.assert_allclose(theirs.header.get_qform(), volume.native_affine, atol=1e-4)
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


def test_an_unwritable_folder_is_named(tmp_path):
    like = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4))
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    with unprivileged(), pytest.raises(InputError, match="permission denied; choose") as error:
        nifti.write_labels(folder / "a.nii.gz", np.ones((3, 4, 5), np.uint8), like)
    assert str(folder / "a.nii.gz") in one_line(error)


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    like = Volume(np.zeros((3, 4, 5), np.int16), np.eye(4))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is not a folder"):
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
    assert {p.name for p in tmp_path.iterdir()} == {name, files.LIST}


def test_real_scans_are_read_as_nibabel_reads_them(real_data):
    paths = sorted(p for p in real_data.rglob("*_ct.nii.gz"))
    paths += sorted(real_data.rglob("*_label-22_ct.nii.gz"))
    assert len(paths) >= 4
    for path in paths:
        volume = scanfile.read_volume(path)
        theirs = nib.load(path)
        assert volume.native.dtype == np.int16
        np.testing.assert_array_equal(volume.native_affine, theirs.affine)
        raw = np.asarray(theirs.dataobj)
        np.testing.assert_array_equal(volume.native, np.maximum(raw, np.array(-1024, raw.dtype)))
    lidc = real_data / "lidc" / "LIDC-IDRI-0003_ct.nii.gz"
    assert np.asarray(nib.load(lidc).dataobj).min() == -2048
    assert scanfile.read_volume(lidc).native.min() == -1024


def test_real_masks_are_read_and_written_back_on_their_own_grid(real_data, tmp_path):
    paths = sorted(p for p in real_data.rglob("*.nii.gz") if not p.name.endswith("_ct.nii.gz"))
    assert len(paths) >= 7
    for path in paths:
        labels = scanfile.read_labels(path, None)
        nifti.write_labels(tmp_path / "a.nii.gz", labels.native, labels)
        theirs, ours = nib.load(path), nib.load(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
        np.testing.assert_array_equal(ours.affine, theirs.affine)
        for field in GRID_FIELDS:
            np.testing.assert_array_equal(ours.header[field], theirs.header[field])


def test_real_pairs_are_on_one_grid(real_data, caplog):
    verse = real_data / "verse"
    image, labels = scanfile.read_pair(
        verse / "rawdata/sub-verse014/sub-verse014_ct.nii.gz",
        verse / "derivatives/sub-verse014/sub-verse014_seg-vert_msk.nii.gz",
    )
    assert image.orientation == "PIR"
    assert np.unique(labels.array).tolist() == [0, 20, 21, 22, 23, 24]
    # Bone is denser than what surrounds it: the pair lies on one another.
    assert image.array[labels.array > 0].mean() > image.array[labels.array == 0].mean() + 100
    totalsegmentator = real_data / "totalsegmentator"
    image, labels = scanfile.read_pair(
        totalsegmentator / "example_ct.nii.gz",
        totalsegmentator / "example_vertebrae_verse-ids.nii.gz",
    )
    assert image.shape == labels.shape
    assert not caplog.records
    with pytest.raises(InputError, match="out of range"):
        scanfile.read_labels(totalsegmentator / "example_vertebrae_totalseg-ids.nii.gz")
