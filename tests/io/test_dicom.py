"""DICOM series against SimpleITK's own reader, and against positions in closed form."""

import locale
import logging
import math
import os
import time
import zipfile

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    EnhancedCTImageStorage,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from scipy.spatial.transform import Rotation

from spinejax import geometry
from spinejax.data import cache
from spinejax.datasets import copies, verse
from spinejax.errors import InputError
from spinejax.io import dicom, grids, nifti, scanfile
from tests.support.dicom_files import PATIENT, image, save, series, write
from tests.support.nifti_files import oblique_affine, one_line

SHAPE = (8, 7, 6)
AXIAL = np.array([[-0.5, 0, 0, 40], [0, -0.75, 0, 30], [0, 0, 2.0, -400], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def shown(caplog):
    caplog.set_level(logging.INFO, "spinejax")
    return caplog


def values(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(-1024, 2000, shape).astype(np.int16)


def of_itk(folder):
    """The same folder as ITK reads it, in its order of the files."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def points(count=20):
    return np.random.default_rng(1).integers(0, SHAPE, (count, 3))


@pytest.mark.parametrize("affine", [AXIAL, oblique_affine()], ids=["axial", "oblique"])
def test_values_and_places_are_those_of_itk(tmp_path, affine):
    rng = np.random.default_rng(2)
    images = series(values(), affine)
    for ds in images:  # each image has its own slope and intercept
        ds.RescaleSlope, ds.RescaleIntercept = int(rng.integers(1, 4)), int(rng.integers(-1024, 9))
    volume, found = scanfile.read_volume(write(tmp_path / "ct", images)), of_itk(tmp_path / "ct")
    expected = np.maximum(sitk.GetArrayFromImage(found).transpose(2, 1, 0), -1024)
    np.testing.assert_array_equal(volume.native, expected)
    assert volume.native.dtype == np.int16
    for index in points():
        x, y, z = found.TransformIndexToPhysicalPoint(index.tolist())
        at = geometry.voxel_to_world(volume.native_affine, index)
        np.testing.assert_allclose(at, (-x, -y, z), atol=1e-4)
    assert scanfile.shape_of(tmp_path / "ct") == SHAPE
    # Labels lie on the same grid.
    labels = rng.integers(0, 26, SHAPE).astype(np.uint8)
    nifti.write_labels(tmp_path / "a.nii.gz", labels, volume)
    back = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), labels.transpose(2, 1, 0))
    for index in points():
        np.testing.assert_allclose(
            back.TransformIndexToPhysicalPoint(index.tolist()),
            found.TransformIndexToPhysicalPoint(index.tolist()),
            atol=1e-3,
        )


def test_a_slope_that_is_no_whole_number(tmp_path):
    images = series(values(), AXIAL, RescaleSlope="0.25")
    volume = scanfile.read_volume(write(tmp_path, images))
    assert volume.native.dtype == np.float32
    expected = np.maximum((values().astype(float) + 1024) * 0.25 - 1024, -1024)
    np.testing.assert_allclose(volume.native, expected)


@pytest.mark.parametrize("degrees", [12.0, -20.0])
def test_gantry_tilt_is_a_sheared_grid_and_is_said(tmp_path, shown, degrees):
    """Columns are turned about x; the table still moves along z."""
    turn = math.radians(degrees)
    column = np.array([0, math.cos(turn), math.sin(turn)])
    start, step = np.array([-40.0, -30, -400]), 2.5
    images = [
        image(
            np.full((8, 7), 1000 + k), start + (0, 0, k * step),
            directions=((1, 0, 0), column), GantryDetectorTilt=degrees,
        )
        for k in range(6)
    ]  # fmt: skip
    volume = scanfile.read_volume(write(tmp_path / "ct", images))
    assert f"gantry tilt of {abs(degrees):.1f} degrees" in shown.text
    assert "upright" in shown.text and "do not lean" not in shown.text
    for i, j, k in points():
        x, y, z = start + (i * 0.5, 0, k * step) + j * 0.75 * column
        at = geometry.voxel_to_world(volume.native_affine, np.array((i, j, k)))
        np.testing.assert_allclose(at, (-x, -y, z), atol=1e-5)
    assert volume.voxel_ml == pytest.approx(0.5 * 0.75 * step * math.cos(turn) / 1000)
    upright = grids.straight(volume)
    steps = geometry.steps_mm(upright.affine)
    np.testing.assert_allclose(steps, np.diag(np.diag(steps)))
    nifti.write_labels(tmp_path / "a.nii", np.ones(SHAPE, np.uint8), volume)
    back = scanfile.read_labels(tmp_path / "a.nii")
    np.testing.assert_allclose(back.native_affine, volume.native_affine, atol=1e-4)


@pytest.fixture
def own_locale():
    """ITK's writer of compressed DICOM, which only this file calls, changes that of the process."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


PYDICOM = {"RLE": RLELossless, "JPEG-LS": JPEGLSLossless}  # what pydicom writes


@pytest.mark.parametrize("how", ["RLE", "JPEG-LS", "JPEG", "JPEG2000"])
def test_compressed_images_are_decoded(tmp_path, how, own_locale):
    hu = values((16, 12, 4))
    for k, ds in enumerate(series(hu, AXIAL)):
        path = save(tmp_path / f"{k}.dcm", ds)
        if how in PYDICOM:
            ds.compress(PYDICOM[how])
            save(path, ds)
            continue
        plain = sitk.ReadImage(str(path), sitk.sitkInt16)
        tags = {key: plain.GetMetaData(key) for key in plain.GetMetaDataKeys()}
        out = sitk.GetImageFromArray(hu[:, :, k].T[None])
        out.CopyInformation(plain)
        for key, value in (tags | {"0028|1052": "0"}).items():
            out.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor(how)
        writer.SetFileName(str(path))
        writer.Execute(out)
        assert plain.GetSize() == (16, 12, 1)
    volume = scanfile.read_volume(tmp_path)
    np.testing.assert_array_equal(volume.native, hu)
    np.testing.assert_allclose(volume.native_affine, AXIAL, atol=1e-6)


def _edited(change, images=None):
    """Return a writer of a good series after `change` of its images."""

    def make(folder):
        found = series(values(), AXIAL) if images is None else images()
        return write(folder, change(found) or found)

    return make


def _all(**tags):
    return _edited(lambda images: [_set(ds, **tags) for ds in images])


def _one(**tags):
    return _edited(lambda images: [images[0], _set(images[1], **tags), *images[2:]])


def _set(ds, **tags):
    for name, value in tags.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    if "SOPClassUID" in tags:
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    return ds


def _moved(offsets):
    def change(images):
        for ds, offset in zip(images, offsets, strict=True):
            place = np.array(ds.ImagePositionPatient, float) + offset
            ds.ImagePositionPatient = [f"{value:.6f}" for value in place]

    return _edited(change)


def _cut(folder):
    write(folder, series(values(), AXIAL), "{}.dcm")
    path = folder / "3.dcm"
    path.write_bytes(path.read_bytes()[:-40])
    return folder


def _pointer(folder):
    write(folder, series(values(), AXIAL), "{}.dcm")
    (folder / "9.dcm").write_text("version https://git-lfs.github.com/spec/v1\n")
    return folder


BAD = {
    "gap": (_edited(lambda images: images[:2] + images[4:]), "2 slices are missing.*6 mm.*2 mm"),
    "gaps": (
        _edited(lambda images: images[::2] + images[-1:]), "slices? (is|are) missing|mm apart"
    ),
    "two at one position": (
        _edited(lambda images: [*images, image(np.zeros((8, 7)), (-40, -30, -398))]),
        "are at one position",
    ),
    "uneven": (_moved([(0, 0, z) for z in (0, 0, 0, 0.6, 1.4, 2.9)]), "mm apart.*dcm2niix"),
    "shifted sideways": (_moved([(0, 0, 0)] * 3 + [(2, 0, 0)] * 3), "sideways"),
    "lying down": (_moved([(0, 9 * k, 0) for k in range(6)]), "lean by 77 degrees"),
    "no position": (_one(ImagePositionPatient=None), "gives no position"),
    "no direction": (_all(ImageOrientationPatient=None), "gives no direction"),
    "no pixel size": (_all(PixelSpacing=None), "gives no pixel size"),
    "skew directions": (_all(ImageOrientationPatient=[1, 0, 0, 0.5, 1, 0]), "right angles"),
    "no slope": (_one(RescaleSlope=None), "rescale slope is missing.*not HU"),
    "no intercept": (_one(RescaleIntercept=None), "rescale intercept is missing.*not HU"),
    "slope of zero": (_all(RescaleSlope=0), "rescale slope is 0"),
    "electron densities": (_all(RescaleType="EDW"), "are electron densities, not HU"),
    "white air": (_all(PhotometricInterpretation="MONOCHROME1"), "no grey picture"),
    "MR": (_all(SOPClassUID=MRImageStorage, Modality="MR"), r"no CT image \(6 x MR\)"),
    "PET by its modality": (_all(Modality="PT"), r"no CT image \(6 x PT\)"),
    "screenshots": (_all(SOPClassUID=SecondaryCaptureImageStorage), "6 x secondary capture"),
    "localiser": (_all(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "holds no scan.*localiser"),
    "a single slice": (_edited(lambda images: images[:1]), "holds no scan.*a single slice"),
    "cut": (_cut, r"3\.dcm cannot be read: truncated"),
    "pointer": (_pointer, r"9\.dcm cannot be read"),
    "no file": (lambda folder: folder.mkdir() or folder, "without DICOM files"),
    "text": (
        lambda folder: (folder.mkdir(), (folder / "README").write_text("x")) and folder,
        "without DICOM files",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_trusted_is_refused_in_one_line(tmp_path, name, capfd, shown):
    make, message = BAD[name]
    folder = make(tmp_path / "ct")
    with pytest.raises(InputError, match=message) as error:
        scanfile.read_volume(folder)
    line = one_line(error)
    assert line.startswith(f"{folder}: ") and ";" in line
    assert not any(word in line + shown.text for word in ("Muster", "Erika", "4711"))
    assert capfd.readouterr() == ("", "")  # ITK and GDCM print nothing


def test_a_multi_frame_image_without_fields_of_its_frames_is_refused(tmp_path):
    frames = np.zeros((8, 7), int)
    ds = image(frames, (0, 0, 0), NumberOfFrames=3, SOPClassUID=EnhancedCTImageStorage)
    ds.PixelData = ds.PixelData * 3
    path = save(tmp_path / "a.dcm", ds)
    with pytest.raises(InputError, match="multi-frame image whose frames.*; export") as error:
        scanfile.read_volume(path)
    assert one_line(error).startswith(f"{path}: ")


def _study(folder):
    """A localiser, a thick and a thin reconstruction, a part of the region, and a screenshot."""
    thin = AXIAL @ np.diag([1, 1, 0.5, 1])
    for name, slices, affine, fields in (
        ("1", 2, AXIAL, {"SeriesNumber": 1, "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ("2", SHAPE[2], AXIAL, {"SeriesNumber": 2, "SeriesDescription": f"Thick {PATIENT}"}),
        ("3", 12, thin, {"SeriesNumber": 3, "SeriesDescription": "Thin"}),
        ("4", 7, thin, {"SeriesNumber": 3, "SeriesDescription": "Part"}),
        ("5", 13, AXIAL, {"SeriesNumber": 9, "SOPClassUID": SecondaryCaptureImageStorage}),
    ):
        uids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": f"1.{name}"}
        write(folder / name, series(values((8, 7, slices)), affine, **uids, **fields))
    return folder


def test_the_series_that_shows_most_is_taken_and_others_by_number(tmp_path, shown):
    folder = _study(tmp_path / "p1")
    assert [str(one) for one in dicom.series_in(folder)] == [
        "1 (Bone): 2 slices of 0.5 x 0.75 x 2 mm, localiser",
        "2 (Thick ***^***): 6 slices of 0.5 x 0.75 x 2 mm",
        "3 (Thin): 12 slices of 0.5 x 0.75 x 1 mm",
        "4 (Part): 7 slices of 0.5 x 0.75 x 1 mm",  # the scanner's 3 is taken
    ]
    volume = scanfile.read_volume(folder)
    assert volume.native.shape == (8, 7, 12)
    choice = [line for line in shown.messages if "--series=N" in line]
    assert len(choice) == 1 and "reading series 3 (Thin): 12 slices" in choice[0]
    assert "2 (Thick ***^***)" in choice[0] and "Muster" not in shown.text
    assert scanfile.read_volume(folder, series=2).native.shape == SHAPE
    assert scanfile.read_volume(folder, series=4).native.shape == (8, 7, 7)
    with pytest.raises(InputError, match="there is no series 7; choose from 1 .*; 2 .*; 3 "):
        scanfile.read_volume(folder, series=7)
    with pytest.raises(InputError, match="localiser, so no scan"):
        scanfile.read_volume(folder, series=1)
    with pytest.raises(InputError, match="is no DICOM and has no series 2"):
        scanfile.read_volume(tmp_path / "a.nii.gz", series=2)


def test_a_series_of_several_acquisitions(tmp_path):
    first = series(values(seed=1), AXIAL, AcquisitionNumber=1)
    above = AXIAL.copy()
    above[2, 3] += 12
    second = series(values(seed=2), above, AcquisitionNumber=2)
    whole = scanfile.read_volume(write(tmp_path / "follow", first + second))
    expected = np.concatenate([values(seed=1), values(seed=2)], axis=2)
    np.testing.assert_array_equal(whole.native, expected)
    again = series(values(seed=3), AXIAL, AcquisitionNumber=2)
    folder = write(tmp_path / "twice", first + again)
    assert [str(one)[:24] for one in dicom.series_in(folder)] == [
        "4 (Bone, acquisition 1):", "5 (Bone, acquisition 2):",
    ]  # fmt: skip
    np.testing.assert_array_equal(scanfile.read_volume(folder, series=4).native, values(seed=1))
    np.testing.assert_array_equal(scanfile.read_volume(folder, series=5).native, values(seed=3))


def test_copies_loss_and_a_tilt_in_the_header_alone_are_said(tmp_path, shown):
    images = series(values(), AXIAL, LossyImageCompression="01", GantryDetectorTilt=15)
    volume = scanfile.read_volume(write(tmp_path, images + images[:2]))
    np.testing.assert_array_equal(volume.native, values())
    assert "2 images are second copies" in shown.text
    assert "compressed with loss" in shown.text and "do not lean" in shown.text


def test_an_archive_is_read_like_its_folder_wherever_its_names_lead(tmp_path):
    folder = write(tmp_path / "ct", series(values(), AXIAL))
    archive = tmp_path / "scan.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for number, path in enumerate(folder.iterdir()):
            out.write(path, f"../../MUSTER/{number}")
        out.writestr("__MACOSX/x", b"x")
        out.writestr("README.txt", b"x")
    volume = scanfile.read_volume(archive)
    np.testing.assert_array_equal(volume.native, values())
    np.testing.assert_allclose(volume.native_affine, AXIAL)
    assert scanfile.case_id(archive) == "scan" and scanfile.parts(archive) == (archive,)
    assert volume.disk.path == archive
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct", "scan.zip"]
    cut = tmp_path / "cut.zip"
    cut.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(InputError, match="damaged or no zip archive") as error:
        scanfile.read_volume(cut)
    assert one_line(error).startswith(f"{cut}: ")


def test_names_of_patients_in_names_of_files_are_not_repeated(tmp_path, shown):
    images = series(values(), AXIAL, RescaleSlope=None)
    folder = write(tmp_path / "ct", images, "MUSTER_ERIKA_{:04}_Li.dcm")
    with pytest.raises(InputError, match=r"\*\*\*_\*\*\*_000\d_Li\.dcm: its rescale slope"):
        scanfile.read_volume(folder)


def test_dicom_scans_in_a_folder_of_scans(tmp_path):
    """TCIA's layout, exports with DICOMDIR, a folder beside its mask, archives."""
    one = series(values((4, 4, 2)), AXIAL)
    other = series(values((4, 4, 2)), AXIAL, StudyInstanceUID="1.9", SeriesInstanceUID="1.9.1")
    write(tmp_path / "a/study/series1", one, "{}.dcm")
    write(tmp_path / "a/study/series2", one)
    write(tmp_path / "b/dicom", other)
    write(tmp_path / "c", other)
    for name in ("b/b_seg.nii.gz", "c/c_seg.nii.gz", "d.nii.gz", "e/README", "set.zip"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as out:
        out.write(tmp_path / "c/IM0000", "x/IM0000")

    cases = {case.id: case for case in verse.index_dataset(tmp_path)}
    assert cases.keys() == {"a", "b", "c", "d", "f"}
    for case in "bc":
        assert (
            cases[case].image.is_dir()
            and cases[case].labels == tmp_path / f"{case}/{case}_seg.nii.gz"
        )

    def listed(root):
        found = (p / n for p, _, names in scanfile.walk(root) for n in names)
        return {str(path.relative_to(tmp_path)) for path in found if scanfile.is_listed(path)}

    assert listed(tmp_path) == {
        "a", "b/dicom", "b/b_seg.nii.gz", "c", "c/c_seg.nii.gz", "d.nii.gz", "f.zip"
    }  # fmt: skip
    assert listed(tmp_path / "a") == {"a"}
    assert listed(tmp_path / "c") == {"c", "c/c_seg.nii.gz"}
    assert listed(tmp_path / "f.zip") == {"f.zip"}


def test_stray_dicom_files_hide_no_other_scan(tmp_path, shown):
    one = series(values((4, 4, 2)), AXIAL)
    write(tmp_path / "downloads", one[:1])
    for name in ("a_ct.nii.gz", "rawdata/b_ct.nii.gz"):
        (tmp_path / "downloads" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "downloads" / name).touch()
    assert {case.id for case in verse.index_dataset(tmp_path / "downloads")} == {"a", "b"}
    assert "downloads: its own DICOM files are left out" in shown.text


def test_patients_without_a_number_of_the_study_stay_apart(tmp_path):
    for name in ("p1", "p2"):
        write(tmp_path / "anon" / name, series(values((4, 4, 2)), AXIAL, StudyInstanceUID=""))
    assert {case.id for case in verse.index_dataset(tmp_path)} == {"p1", "p2"}


def test_a_single_patient_in_images_is_found_like_several(tmp_path):
    write(tmp_path / "images/p1", series(values((4, 4, 2)), AXIAL))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/p1.nii.gz").touch()
    [case] = verse.index_dataset(tmp_path)
    assert case.id == "p1" and case.labels == tmp_path / "labels/p1.nii.gz"


def test_a_damaged_archive_among_scans_is_left_out(tmp_path):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a.dcm", np.random.default_rng(0).bytes(5000))
    data = bytearray(path.read_bytes())
    data[60:90] = bytes(30)
    path.write_bytes(data)
    assert not dicom.holds_dicom(path)


def _places(heights):
    """Images of which only the place matters."""
    return [
        dicom._Image(None, f"{k}", {}, np.array([0, 0, z]), np.eye(3)[:2], np.ones(2))
        for k, z in enumerate(heights)
    ]


@settings(max_examples=30, deadline=None)
@given(st.floats(0.3, 10), st.integers(4, 60), st.integers(1, 58), st.floats(-500, 500))
def test_rounded_positions_are_even_and_a_missing_slice_is_found(step, count, missing, start):
    heights = start + step * np.arange(count)
    rounded = np.round(heights, 1 if step > 1 else 2)
    assert dicom._unevenness(_places(rounded)) == ""
    less = np.delete(heights, 1 + missing % (count - 2))
    assert "1 slice is missing" in dicom._unevenness(_places(less)) or count == 4
    assert dicom._unevenness(_places(less)) != ""


def test_rotation_of_a_series_turns_its_grid(tmp_path):
    affine = AXIAL.copy()
    turn = Rotation.from_euler("zyx", (70, -100, 33), degrees=True).as_matrix()
    affine[:3, :3] = turn @ affine[:3, :3]
    volume = scanfile.read_volume(write(tmp_path, series(values(), affine)))
    np.testing.assert_allclose(volume.native_affine, affine, atol=1e-5)


def test_a_change_of_any_file_is_noticed_by_the_cache(tmp_path):
    images = series(values((4, 4, 3)), AXIAL)
    folder = write(tmp_path / "ct", images)

    def digest():
        for path in folder.iterdir():  # content of recent files is not remembered
            os.utime(path, (0, len(path.read_bytes())))
        known = cache.digests_in(tmp_path)
        found = known.of_voxels(folder)
        known.save()
        return found

    before = digest()
    assert digest() == before == copies.voxel_digest(scanfile.read_volume(folder))
    first = folder / "IM0000"
    content = first.read_bytes()
    first.write_bytes(content[:-2] + b"\x07\x07")
    assert digest() != before


def test_fields_of_unchanged_files_are_read_once(tmp_path, monkeypatch):
    folder = write(tmp_path / "ct", series(values(), AXIAL, SeriesDescription="bone"))
    read = []
    reader = dicom._reader
    monkeypatch.setattr(dicom, "_reader", lambda path: read.append(path.name) or reader(path))

    def looked():
        read.clear()
        return str(*dicom.series_in(folder))

    for path in folder.iterdir():  # files that have just changed are not remembered
        os.utime(path, (time.time() + 1000,) * 2)
    assert [looked() for _ in range(2)] == ["4 (bone): 6 slices of 0.5 x 0.75 x 2 mm"] * 2
    assert len(read) == 6
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    before = looked()
    assert len(read) == 6 and looked() == before and not read
    assert scanfile.shape_of(folder) == SHAPE and not read
    for path in folder.iterdir():  # a change that keeps size and time
        path.write_bytes(path.read_bytes().replace(b"bone", b"lung"))
        os.utime(path, (1e9, 1e9))
    assert "(lung)" in looked() and len(read) == 6
    (folder / "IM0005").unlink()
    assert "5 slices" in looked() and not read
