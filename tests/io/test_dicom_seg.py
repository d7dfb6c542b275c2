"""DICOM segmentations, read back by highdicom: names, codes, colours, places and voxels."""

import logging
import math
import zipfile

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from highdicom.color import CIELabColor
from pydicom.sr.codedict import codes

from spinejax import geometry, labels
from spinejax.errors import InputError
from spinejax.io import dicom, dicom_seg, nifti, scanfile
from spinejax.predictor import Segmentation
from spinejax.volume import Volume
from tests.support.dicom_files import PATIENT, image, series, write
from tests.support.nifti_files import oblique_affine, one_line

SHAPE = (8, 7, 6)
AXIAL = np.array([[-0.5, 0, 0, 40], [0, -0.75, 0, 30], [0, 0, 2.0, -400], [0, 0, 0, 1]])
NAMES = {19: "T12", 28: "T13", 20: "L1"}
FIELDS = {"FrameOfReferenceUID": "1.2.3.9", "PatientBirthDate": "19500203", "PatientSex": "F"}


def labels_of(shape=SHAPE):
    array = np.zeros(shape, np.uint8)
    array[1:3, 2:6, 2:5], array[4, 0, 3:5], array[2:5, 3, 1] = 19, 28, 20
    return array


def hu(shape=SHAPE):
    return np.random.default_rng(0).integers(-1024, 2000, shape).astype(np.int16)


def mask_by_slice(found, number, images):
    """The voxels (slices, rows, columns) of a segment, by the slices that its frames refer to."""
    uids = [one.SOPInstanceUID for one in images]
    return found.get_pixels_by_source_instance(uids, segment_numbers=[number])[..., 0]


@pytest.mark.parametrize("affine", [AXIAL, oblique_affine()], ids=["axial", "oblique"])
def test_highdicom_reads_names_codes_colours_places_and_voxels(tmp_path, affine):
    images, array = series(hu(), affine, **FIELDS), labels_of()
    scan = scanfile.read_volume(write(tmp_path / "ct", images))
    path = tmp_path / "a.seg.dcm"
    dicom_seg.write_segmentation(path, array, scan, NAMES, model="abc")
    found = highdicom.seg.segread(path)
    assert found.segmentation_type.value == "BINARY" and found.DeviceSerialNumber == "abc"
    for number, (label, name) in enumerate(NAMES.items(), start=1):
        segment = found.get_segment_description(number)
        assert segment.segment_label == name
        level = getattr(codes.cid7603, f"{name}Vertebra") if label != 28 else ("51282000", "SCT")
        assert segment.segmented_property_type.value == level[0]
        assert segment.segmented_property_type.scheme_designator == "SCT"
        assert segment.segmented_property_category == codes.cid7150.AnatomicalStructure
        colour = CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue)
        assert colour.to_rgb(clip=True) == pytest.approx(labels.RGB[label], abs=1)
        expected = (array == label).transpose(2, 1, 0)
        np.testing.assert_array_equal(mask_by_slice(found, number, images), expected)
    with pytest.raises(IndexError, match="4"):
        found.get_segment_description(4)
    # Frames lie where the labels lie, as highdicom places them.
    volume = found.get_volume(combine_segments=True)
    for index in np.argwhere(volume.array):
        x, y, z = volume.affine[:3, :3] @ index + volume.affine[:3, 3]
        world = np.array([-x, -y, z])
        inside = geometry.voxel_to_world(np.linalg.inv(scan.native_affine), world)
        np.testing.assert_allclose(inside, np.rint(inside), atol=1e-3)
        label = [*NAMES][volume.array[tuple(index)] - 1]
        assert array[tuple(np.rint(inside).astype(int))] == label
    assert np.count_nonzero(volume.array) == np.count_nonzero(array)


def test_the_series_its_study_and_its_patient_are_those_of_the_source(tmp_path):
    images = series(hu(), AXIAL, StudyDate="20240102", **FIELDS)
    scan = scanfile.read_volume(write(tmp_path / "ct", images))
    for name in ("a", "b"):
        dicom_seg.write_segmentation(tmp_path / f"{name}.seg.dcm", labels_of(), scan, NAMES)
    found, again = (pydicom.dcmread(tmp_path / f"{name}.seg.dcm") for name in ("a", "b"))
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientBirthDate",
                 "PatientSex", "StudyDate"):  # fmt: skip
        assert found[name].value == images[0][name].value
    assert found.PatientName == PATIENT and found.Modality == "SEG"
    assert found.SeriesInstanceUID != images[0].SeriesInstanceUID
    (referred,) = found.ReferencedSeriesSequence
    assert referred.SeriesInstanceUID == images[0].SeriesInstanceUID
    mine = {one.ReferencedSOPInstanceUID for one in referred.ReferencedInstanceSequence}
    assert mine == {one.SOPInstanceUID for one in images}
    # An object has one content for ever, so a new one has a new number.
    assert found.SOPInstanceUID != again.SOPInstanceUID
    assert found.SeriesInstanceUID != again.SeriesInstanceUID


def test_a_tilted_series_keeps_its_own_slices(tmp_path):
    turn = math.radians(12)
    column = np.array([0, math.cos(turn), math.sin(turn)])
    images = [
        image(np.full((8, 7), 1000 + k), (-40, -30, -400 + 2.5 * k),
              directions=((1, 0, 0), column), **FIELDS)
        for k in range(6)
    ]  # fmt: skip
    scan, array = scanfile.read_volume(write(tmp_path / "ct", images)), labels_of()
    dicom_seg.write_segmentation(tmp_path / "a.seg.dcm", array, scan, NAMES)
    found = highdicom.seg.segread(tmp_path / "a.seg.dcm")
    for number, label in enumerate(NAMES, start=1):
        expected = (array == label).transpose(2, 1, 0)
        np.testing.assert_array_equal(mask_by_slice(found, number, images), expected)
    places = {
        tuple(map(float, frame.PlanePositionSequence[0].ImagePositionPatient))
        for frame in found.PerFrameFunctionalGroupsSequence
    }
    used = np.flatnonzero(array.any(axis=(0, 1)))
    assert places == {(-40.0, -30.0, -400 + 2.5 * k) for k in used}


def test_a_series_of_an_archive_is_found_by_its_number(tmp_path):
    small = hu((8, 7, 4))
    folder = tmp_path / "ct"
    write(folder / "1", series(hu(), AXIAL, **FIELDS))
    write(folder / "2", series(small, AXIAL, SeriesInstanceUID="1.7", **FIELDS))
    with zipfile.ZipFile(tmp_path / "ct.zip", "w") as out:
        for path in sorted(folder.rglob("IM*")):
            out.write(path, str(path.relative_to(folder)))
    number = dicom.series_in(folder)[1].number
    scan = scanfile.read_volume(tmp_path / "ct.zip", series=number)
    array = np.zeros((8, 7, 4), np.uint8)
    array[1, 2, 3] = 20
    dicom_seg.write_segmentation(tmp_path / "a.seg.dcm", array, scan, {20: "L1"})
    (referred,) = pydicom.dcmread(tmp_path / "a.seg.dcm").ReferencedSeriesSequence
    assert referred.SeriesInstanceUID == "1.7"


def test_a_spine_without_names_is_one_segment(tmp_path):
    scan = scanfile.read_volume(write(tmp_path / "ct", series(hu(), AXIAL, **FIELDS)))
    mask = (labels_of() > 0).view(np.uint8)
    dicom_seg.write_segmentation(tmp_path / "a.seg.dcm", mask, scan, {1: "spine"})
    segment = highdicom.seg.segread(tmp_path / "a.seg.dcm").get_segment_description(1)
    assert segment.segment_label == "spine" and segment.segmented_property_type == codes.SCT.Spine


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda images: [delattr(ds, "FrameOfReferenceUID") for ds in images],
         "has no FrameOfReferenceUID"),
        (lambda images: setattr(images[2], "FrameOfReferenceUID", "1.9"),
         "another FrameOfReferenceUID"),
        (lambda images: setattr(images[2], "StudyInstanceUID", "1.9"),
         "another StudyInstanceUID"),
    ],
)  # fmt: skip
def test_slices_that_cannot_be_referred_to_are_refused(tmp_path, change, words):
    images = series(hu(), AXIAL, **FIELDS)
    change(images)
    folder = write(tmp_path / "ct", images)
    with pytest.raises(InputError, match=f"{words}.*; leave seg.dcm out") as error:
        dicom_seg.check_source(folder)
    assert one_line(error).startswith(f"{folder}: series 4: ")


def test_what_highdicom_says_about_a_field_is_not_repeated(tmp_path, monkeypatch):
    folder = write(tmp_path / "ct", series(hu(), AXIAL, **FIELDS))

    def refuse(**_):
        raise ValueError(f"{PATIENT} is no name")

    monkeypatch.setattr(highdicom.seg, "Segmentation", refuse)
    with pytest.raises(InputError, match=r"makes no segmentation of it \(ValueError\)") as error:
        dicom_seg.check_source(folder)
    assert PATIENT not in one_line(error)


def test_odd_fields_of_the_patient_are_emptied_and_never_said(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    odd = {"PatientName": "Muster Erika ^^^^^^^", "PatientSex": "female", "PatientID": "4711" * 40}
    with pytest.warns(UserWarning):
        images = series(hu(), AXIAL, **(FIELDS | odd))
        folder = write(tmp_path / "ct", images)
    scan = scanfile.read_volume(folder)
    dicom_seg.write_segmentation(tmp_path / "a.seg.dcm", labels_of(), scan, NAMES)
    assert pydicom.dcmread(tmp_path / "a.seg.dcm").PatientSex == ""
    said = caplog.text + "".join(capfd.readouterr())
    assert "Muster" not in said and "4711" not in said


@pytest.mark.parametrize(
    ("sets", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
)
def test_names_in_asian_scripts_are_kept(tmp_path, sets, name):
    tags = {"SpecificCharacterSet": sets, "PatientName": name}
    scan = scanfile.read_volume(write(tmp_path / "ct", series(hu(), AXIAL, **FIELDS, **tags)))
    dicom_seg.write_segmentation(tmp_path / "a.seg.dcm", labels_of(), scan, NAMES)
    assert pydicom.dcmread(tmp_path / "a.seg.dcm").PatientName == name


def test_other_scans_and_changed_ones_are_refused(tmp_path):
    array = labels_of()
    plain = Volume(hu(), AXIAL)
    with pytest.raises(InputError, match="was not read from DICOM.*leave seg.dcm out"):
        dicom_seg.write_segmentation(tmp_path / "a.seg.dcm", array, plain, NAMES)
    nifti.write_volume(tmp_path / "ct.nii.gz", plain)
    with pytest.raises(InputError, match=r"ct\.nii\.gz: is no DICOM.*leave seg\.dcm out"):
        dicom_seg.check_source(tmp_path / "ct.nii.gz")
    folder = write(tmp_path / "ct", series(hu(), AXIAL, **FIELDS))
    scan = scanfile.read_volume(folder)
    above = AXIAL.copy()
    above[2, 3] += 7
    write(folder, series(hu(), above, **FIELDS))
    with pytest.raises(InputError, match="changed since the scan was read; predict again"):
        dicom_seg.write_segmentation(tmp_path / "a.seg.dcm", array, scan, NAMES)
    with pytest.raises(ValueError, match="must be uint8"):
        dicom_seg.write_segmentation(tmp_path / "a.seg.dcm", array[1:], scan, NAMES)
    with pytest.raises(ValueError, match=r"must name the labels.*\[19, 20, 28\], has"):
        dicom_seg.write_segmentation(tmp_path / "a.seg.dcm", array, scan, {19: "T12"})
    assert not list(tmp_path.glob("*.seg.dcm"))


def test_a_segmentation_is_no_scan_of_its_folder(tmp_path):
    """A folder of results, one of them a DICOM segmentation, is no DICOM scan."""
    folder = write(tmp_path / "ct", series(hu(), AXIAL, **FIELDS))
    scan = scanfile.read_volume(folder)
    out = tmp_path / "out"
    dicom_seg.write_segmentation(out / "a.seg.dcm", labels_of(), scan, NAMES)
    assert dicom.study_in(out, ["a.seg.dcm"]) is None
    dicom_seg.write_segmentation(folder / "a.seg.dcm", labels_of(), scan, NAMES)
    np.testing.assert_array_equal(scanfile.read_volume(folder).array, scan.array)


def test_save_writes_it_on_request_and_not_for_an_empty_result(tmp_path, caplog):
    scan = scanfile.read_volume(write(tmp_path / "ct", series(hu(), AXIAL, **FIELDS)))
    full = Segmentation(scan.to_canonical(labels_of()), scan, "a", named=True)
    arguments = {"picture": False, "page": False, "formats": ["seg.dcm"]}
    paths = full.save(tmp_path / "out", **arguments)
    assert paths[-1].name == "a.seg.dcm"
    found = highdicom.seg.segread(paths[-1])
    twin = np.asarray(nib.load(paths[0]).dataobj)
    numbers = {one.SegmentLabel: one.SegmentNumber for one in found.SegmentSequence}
    assert numbers == {"T13": 1, "T12": 2, "L1": 3}  # from head to foot
    assert found.get_volume(combine_segments=True).array.astype(bool).sum() == (twin > 0).sum()
    empty = Segmentation(np.zeros(scan.shape, np.uint8), scan, "a", named=True)
    paths = empty.save(tmp_path / "out", **arguments)
    assert "a.seg.dcm" not in {path.name for path in paths}
    assert not (tmp_path / "out/a.seg.dcm").exists() and "nothing was found" in caplog.text
    other = Segmentation(full.mask, Volume(scan.array, scan.affine), "a", named=True)
    with pytest.raises(InputError, match="was not read from DICOM"):
        other.save(tmp_path / "none", **arguments)
    assert not (tmp_path / "none").exists()


def test_a_real_ct_written_as_dicom_and_its_vertebrae(tmp_path, real_data):
    """VerSe's sub-verse014, in sagittal slices."""
    verse = real_data / "verse"
    ct = scanfile.read_volume(verse / "rawdata/sub-verse014/sub-verse014_ct.nii.gz")
    images = series(ct.native.clip(-1024), ct.native_affine, **FIELDS)
    scan = scanfile.read_volume(write(tmp_path / "ct", images))
    mask = "derivatives/sub-verse014/sub-verse014_seg-vert_msk.nii.gz"
    array = scan.to_native(scanfile.read_pair(tmp_path / "ct", verse / mask)[1].array)
    names = {label: labels.NAMES[label] for label in range(20, 25)}
    dicom_seg.write_segmentation(tmp_path / "a.seg.dcm", array, scan, names)
    found = highdicom.seg.segread(tmp_path / "a.seg.dcm")
    for number, (label, name) in enumerate(names.items(), start=1):
        assert found.get_segment_description(number).segment_label == name
        expected = (array == label).transpose(2, 1, 0)
        assert expected.any()
        np.testing.assert_array_equal(mask_by_slice(found, number, images), expected)


def test_a_real_ct_and_its_mask(tmp_path, real_data):
    """dcmqi's three slices and the vertebra that somebody drew in them."""
    root = real_data / "dcmqi"
    scan = scanfile.read_volume(root / "ct-3slice")
    mask = scanfile.read_labels(root / "spine_seg.nrrd", range(256))
    array = scan.to_native((mask.array == 2).astype(np.uint8) * 18)
    path = tmp_path / "a.seg.dcm"
    dicom_seg.write_segmentation(path, array, scan, {18: "T11"})
    found = highdicom.seg.segread(path)
    with dicom.checked(root / "ct-3slice") as (chosen, _):
        images = [pydicom.dcmread(one.path, stop_before_pixels=True) for one in chosen.images]
    assert array.any()
    np.testing.assert_array_equal(mask_by_slice(found, 1, images), array.transpose(2, 1, 0) > 0)
