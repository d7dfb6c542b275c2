"""Segmentations for 3D Slicer, read back by ITK, and names in NIfTI's header."""

import gzip
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from spinejax import geometry, labels
from spinejax.errors import InputError
from spinejax.io import nifti, scanfile, slicer
from spinejax.volume import Volume
from tests.support.nifti_files import oblique_affine, save

NAMES = {19: "T12", 28: "T13", 20: "L1"}


def scan_and_labels(code, affine=None):
    array = np.zeros((6, 7, 8), np.uint8)
    array[1:3, 2:6, 5:8], array[4, 0, 3:5], array[2:5, 3, 1] = 19, 28, 20
    made, affine = geometry.reorient(array, oblique_affine() if affine is None else affine, code)
    made = np.ascontiguousarray(made)
    return made, Volume(made.astype(np.int16), affine)


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "ASL"])
def test_itk_reads_voxels_grid_names_and_colours(tmp_path, code):
    array, scan = scan_and_labels(code)
    path = tmp_path / "case.seg.nrrd"
    slicer.write_segmentation(path, array, scan, NAMES)
    image = sitk.ReadImage(str(path))
    assert image.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array.transpose(2, 1, 0))
    for index in ((0, 0, 0), (5, 0, 0), (1, 3, 5)):
        right, front, up = geometry.voxel_to_world(scan.native_affine, np.array(index))
        point = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(point, (-right, -front, up), atol=1e-9)
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert fields["Segmentation_MasterRepresentation"] == "Binary labelmap"
    for number, (label, name) in enumerate(NAMES.items()):
        mine = {
            k.partition("_")[2]: v for k, v in fields.items() if k.startswith(f"Segment{number}_")
        }
        assert (mine["Name"], mine["LabelValue"], mine["Layer"]) == (name, str(label), "0")
        rgb = np.array(mine["Color"].split(), float)
        np.testing.assert_allclose(rgb * 255, labels.RGB[label], atol=1e-3)
        where = np.argwhere(array == label)
        extent = np.stack([where.min(0), where.max(0)], axis=1).ravel()
        assert mine["Extent"] == " ".join(map(str, extent))
        code_of = {19: "23215003", 20: "66794005"}.get(label, "51282000")
        context, category, kind, *rest = mine["Tags"].split("~")
        assert kind.split("^")[:2] == ["SCT", code_of] and len(rest) == 4 and rest[-1][-1] == "|"
    assert "Segment3_Name" not in fields


def test_the_header_is_that_of_the_nrrd_specification(tmp_path):
    """A line a field, an empty line, then the gzipped voxels, the first axis fastest."""
    array, scan = scan_and_labels("LPS", np.diag([-2.0, -1.0, 3.0, 1.0]))
    slicer.write_segmentation(tmp_path / "a.seg.nrrd", array, scan, NAMES)
    header, _, voxels = (tmp_path / "a.seg.nrrd").read_bytes().partition(b"\n\n")
    magic, *lines = header.decode().split("\n")
    fields = dict(line.split(": ", 1) for line in lines if ":=" not in line)
    assert magic == "NRRD0004"
    assert (fields["type"], fields["dimension"], fields["sizes"]) == ("uint8", "3", "6 7 8")
    assert fields["space directions"] == "(2.0,0.0,0.0) (0.0,1.0,0.0) (0.0,0.0,3.0)"
    assert fields["space origin"] == "(0.0,0.0,0.0)"
    assert gzip.decompress(voxels) == array.tobytes(order="F")


def test_files_of_somebody_else_and_wrong_arrays_are_refused(tmp_path):
    array, scan = scan_and_labels("LPS")
    path = tmp_path / "a.seg.nrrd"
    path.write_text("mine")
    with pytest.raises(InputError, match="did not write this file"):
        slicer.write_segmentation(path, array, scan, NAMES)
    assert path.read_text() == "mine"
    with pytest.raises(ValueError, match="must be uint8"):
        slicer.write_segmentation(path, array[1:], scan, NAMES)
    with pytest.raises(ValueError, match="must name the labels"):
        slicer.write_segmentation(path, array, scan, {19: "T12"})


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_names_are_in_the_header_of_nifti_files(tmp_path, kind):
    array, scan = scan_and_labels("RAS")
    path = save(tmp_path / "ct.nii.gz", array.astype(np.int16), scan.native_affine, kind)
    scan = scanfile.read_volume(path)
    nifti.write_labels(tmp_path / "a_seg.nii.gz", array, scan, names=NAMES)
    image = nib.load(tmp_path / "a_seg.nii.gz")
    assert isinstance(image, kind)
    np.testing.assert_array_equal(np.asarray(image.dataobj), array)
    (extension,) = image.header.extensions
    table = ElementTree.fromstring(extension.get_content()).iter("Label")
    assert {int(one.attrib["Key"]): one.text for one in table} == NAMES
    np.testing.assert_array_equal(scanfile.read_labels(tmp_path / "a_seg.nii.gz").native, array)
    if kind is nib.Nifti1Image:  # ITK does not read NIfTI-2
        itk = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a_seg.nii.gz")))
        np.testing.assert_array_equal(itk, array.transpose(2, 1, 0))
