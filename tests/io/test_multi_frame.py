"""Multi-frame CT against the same slices as single images, and against ITK and highdicom."""

import logging
import zipfile

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from spinejax.errors import InputError
from spinejax.io import dicom, dicom_seg, scanfile
from tests.support.dicom_files import enhanced, image, save, series, write
from tests.support.nifti_files import oblique_affine, one_line

SHAPE = (8, 7, 6)
AXIAL = np.array([[-0.5, 0, 0, 40], [0, -0.75, 0, 30], [0, 0, 2.0, -400], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def shown(caplog):
    caplog.set_level(logging.INFO, "spinejax")
    return caplog


def values(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(-1024, 2000, shape).astype(np.int16)


def shuffled(images):
    return [images[k] for k in np.random.default_rng(3).permutation(len(images))]


@pytest.mark.parametrize("affine", [AXIAL, oblique_affine()], ids=["axial", "oblique"])
def test_frames_are_read_like_single_images(tmp_path, affine, capfd):
    rng = np.random.default_rng(2)
    images = series(values(), affine)
    for ds in images:  # each frame has its own slope and intercept
        ds.RescaleSlope, ds.RescaleIntercept = int(rng.integers(1, 4)), int(rng.integers(-1024, 9))
    twin = scanfile.read_volume(write(tmp_path / "single", images))
    path = save(tmp_path / "ct/a.dcm", enhanced(shuffled(images)))
    for where in (path, path.parent):
        volume = scanfile.read_volume(where)
        np.testing.assert_array_equal(volume.native, twin.native)
        np.testing.assert_array_equal(volume.native_affine, twin.native_affine)
        assert scanfile.shape_of(where) == SHAPE and scanfile.parts(where) == (path,)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("share", [True, False])
def test_values_are_those_of_itk_where_frames_share_a_rescale(tmp_path, share):
    path = save(tmp_path / "a.dcm", enhanced(series(values(), AXIAL), share=share))
    volume = scanfile.read_volume(path)
    np.testing.assert_array_equal(volume.native, values())
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0)
    np.testing.assert_array_equal(volume.native, expected)
    np.testing.assert_allclose(volume.native_affine, AXIAL)


@pytest.mark.parametrize("syntax", [RLELossless, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_frames_of_other_transfer_syntaxes(tmp_path, syntax):
    hu = values(shape=(16, 12, 4))
    whole = enhanced(series(hu, AXIAL))
    if syntax == RLELossless:
        whole.compress(syntax)
    elif syntax == ExplicitVRBigEndian:
        whole.PixelData = np.frombuffer(whole.PixelData, "<u2").astype(">u2").tobytes()
    whole.file_meta.TransferSyntaxUID = syntax
    volume = scanfile.read_volume(save(tmp_path / "a.dcm", whole))
    np.testing.assert_array_equal(volume.native, hu)


@pytest.mark.filterwarnings("ignore:The string .* is unlikely to represent the intended person")
def test_highdicom_s_conversion_of_a_real_ct(tmp_path, real_data):
    folder = real_data / "dcmqi/ct-3slice"
    images = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    for ds in images:
        for name in ("StudyID", "AccessionNumber"):
            setattr(ds, name, ds.get(name) or "")
    made = highdicom.legacy.LegacyConvertedEnhancedCTImage(
        images, highdicom.UID(), 7, highdicom.UID(), 1
    )
    made.save_as(tmp_path / "a.dcm")
    volume, twin = scanfile.read_volume(tmp_path / "a.dcm"), scanfile.read_volume(folder)
    np.testing.assert_array_equal(volume.array, twin.array)
    np.testing.assert_allclose(volume.affine, twin.affine)


def test_stacks_and_localisers_of_one_file_are_series(tmp_path):
    first, second = series(values(), AXIAL, StackID="1"), series(values(1), AXIAL, StackID="2")
    localiser = image(np.zeros((8, 7)), (0, 0, 0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    mixed = [one for pair in zip(first, second, strict=True) for one in pair]
    path = save(tmp_path / "a.dcm", enhanced([localiser, *mixed]))
    listed = [str(one).partition(" of")[0] for one in dicom.series_in(path)]
    assert listed == ["4 (Bone, acquisition 2): 6 slices", "5 (Bone, acquisition 3): 6 slices",
                      "6 (Bone): 1 slice"]  # fmt: skip
    np.testing.assert_array_equal(scanfile.read_volume(path, series=4).native, values())
    np.testing.assert_array_equal(scanfile.read_volume(path, series=5).native, values(1))


def test_a_series_of_several_files_and_second_copies_in_an_archive(tmp_path, shown):
    images = series(values(), AXIAL)
    parts = [enhanced(images[:2]), enhanced(images[2:])]
    with zipfile.ZipFile(tmp_path / "ct.zip", "w") as out:
        for number, whole in enumerate([*parts, parts[0]]):
            path = save(tmp_path / f"{number}.dcm", whole)
            out.write(path, f"x/{number}")
    volume = scanfile.read_volume(tmp_path / "ct.zip")
    np.testing.assert_array_equal(volume.native, values())
    assert "2 images are second copies" in shown.text


def _without(name, frame=None):
    def change(images):
        for ds in images if frame is None else [images[frame]]:
            delattr(ds, name)

    return change


def _lose(count):
    def change(whole):
        whole.PixelData = whole.PixelData[:-count]

    return change


BAD = {
    "gap": (lambda images: images.pop(2), None, r"1 slice is missing.*a\.dcm, frame 2 and"),
    "two at one position": (
        lambda images: images.append(image(np.zeros((8, 7)), (-40, -30, -398))), None,
        r"a\.dcm, frame 2 and a\.dcm, frame 7 are at one position",
    ),
    "no position": (_without("ImagePositionPatient", 3), None, "frame 4: gives no position"),
    "no slope": (_without("RescaleSlope"), None, "rescale slope is missing.*not HU"),
    "no pixel size": (_without("PixelSpacing"), None, "gives no pixel size"),
    "atomic numbers": (
        lambda images: [setattr(ds, "RescaleType", "Z_EFF") for ds in images], None,
        "are atomic numbers, not HU",
    ),
    "localisers": (
        lambda images: [setattr(ds, "ImageType", ["ORIGINAL", "LOCALIZER"]) for ds in images],
        None, "holds no scan.*localiser",
    ),
    "fewer groups": (
        None, lambda whole: whole.PerFrameFunctionalGroupsSequence.pop(), "frames have no fields"
    ),
    "no groups": (
        None, lambda whole: delattr(whole, "PerFrameFunctionalGroupsSequence"),
        "frames have no fields",
    ),
    "more pixels than the header says": (
        None, lambda whole: setattr(whole, "BitsAllocated", 12), "cannot be read|or is damaged"
    ),
    "cut": (None, _lose(100), "cannot be read|or is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_trusted_is_refused_in_one_line(tmp_path, name, capfd, shown):
    change, edit, words = BAD[name]
    images = series(values(), AXIAL)
    if change:
        change(images)
    whole = enhanced(images)
    if edit:
        edit(whole)
    path = save(tmp_path / "a.dcm", whole)
    with pytest.raises(InputError, match=words) as error:
        scanfile.read_volume(path)
    line = one_line(error)
    assert line.startswith(f"{path}: ") and ";" in line
    assert not any(word in line + shown.text for word in ("Muster", "Erika", "4711"))
    assert capfd.readouterr() == ("", "")


def test_a_truncated_file_is_refused(tmp_path):
    path = save(tmp_path / "a.dcm", enhanced(series(values(), AXIAL)))
    for size in (path.stat().st_size - 60, 900, 400):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(InputError, match="truncated or damaged|or is damaged"):
            scanfile.read_volume(path)


@pytest.mark.parametrize("share", [True, False])
def test_a_segmentation_refers_to_the_frames(tmp_path, share):
    images = shuffled(series(values(), AXIAL, FrameOfReferenceUID="1.2.9"))
    whole = enhanced(images, share=share)
    scan = scanfile.read_volume(save(tmp_path / "ct.dcm", whole))
    array = np.zeros(SHAPE, np.uint8)
    array[1:3, 2:6, 2:5], array[2:5, 3, 1] = 19, 20
    dicom_seg.write_segmentation(tmp_path / "a.seg.dcm", array, scan, {19: "T12", 20: "L1"})
    found = highdicom.seg.segread(tmp_path / "a.seg.dcm")
    mask = found.get_pixels_by_source_frame(
        whole.SOPInstanceUID,
        range(1, 7),
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    heights = [float(ds.ImagePositionPatient[2]) for ds in images]
    slices = np.argsort(np.argsort(heights))  # slice of each frame
    expected = np.array([0] * 19 + [1, 2])[array].transpose(2, 1, 0)[slices]
    np.testing.assert_array_equal(mask, expected)


def test_a_segmentation_of_frames_in_several_files_is_refused(tmp_path):
    images = series(values(), AXIAL, FrameOfReferenceUID="1.2.9")
    for number, part in enumerate((images[:2], images[2:])):
        save(tmp_path / f"ct/{number}.dcm", enhanced(part))
    with pytest.raises(InputError, match="in 2 files, and seg.dcm can refer to one; leave"):
        dicom_seg.check_source(tmp_path / "ct")
