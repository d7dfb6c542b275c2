"""DICOM-SEG: the labels of a DICOM series as a segmentation that a PACS can show beside it.

highdicom writes the object (DICOM PS3.3, A.51): one binary segment a vertebra, with its name, its
SNOMED CT code and its colour, on the slices of the series. The standard wants the patient and the
study of the series in it, and a PACS files it by them. So this is the one result that holds the
patient's name. No message repeats it: what highdicom and pydicom say is not passed on.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from spinejax import __version__, geometry, labels
from spinejax.errors import InputError
from spinejax.files import StrPath, atomic_path, check_output, expanded
from spinejax.io import dicom
from spinejax.io.dicom import Series
from spinejax.io.dicom_fields import quiet, read
from spinejax.io.grids import check_native
from spinejax.volume import Volume

ENDING = ".seg.dcm"

# The segmentation gets a number that the series of a study rarely have.
_NUMBER = 1000
# Fields of patient and study that may be empty, but not missing (PS3.3, C.7.1.1 and C.7.2.1).
_MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime",
)  # fmt: skip
_NEEDED = ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID",
           "FrameOfReferenceUID")  # fmt: skip
_LEAVE_OUT = "leave seg.dcm out"


def check_source(path: Path, series: int | None = None) -> None:
    """Check that a scan's labels can be written as DICOM-SEG, by one of a single voxel.

    Args:
        path: the scan, as for `dicom.opened`.
        series: as for `dicom.opened`.

    Raises:
        InputError: it is no DICOM, cannot be read, lacks a field that a segmentation refers to, or
            has one with which highdicom makes no segmentation.
    """
    if not dicom.is_dicom(path):
        raise InputError(f"{path}: is no DICOM, which seg.dcm refers to; {_LEAVE_OUT}")
    with dicom.checked(path, series) as (chosen, affine):
        where = f"{path}: series {chosen.number}"
        segments = np.zeros(dicom.size(chosen)[::-1], np.uint8)
        segments[0, 0, 0] = 1
        _segmentation(where, chosen, _sources(where, chosen), segments, affine, {1: "spine"}, "")


def check_scan(scan: Volume) -> None:
    """Check that a scan was read from DICOM and that its files are still there; see `check_source`.

    Raises:
        InputError: as for `check_source`.
    """
    if scan.disk is None:
        raise InputError(f"the scan was not read from DICOM, which seg.dcm refers to; {_LEAVE_OUT}")
    check_source(scan.disk.path, scan.disk.series)


def write_segmentation(
    path: StrPath,
    array: np.ndarray,
    like: Volume,
    names: Mapping[int, str],
    *,
    model: str = "",
    overwrite: bool = False,
) -> None:
    """Write a label map as a DICOM segmentation of the series that it belongs to.

    The files of the series are read again, for the patient, the study and the slices. The file
    appears whole or not at all.

    Args:
        path: ends in .seg.dcm.
        array: (x, y, z) uint8 on the grid of `like.native`, as for `nifti.write_labels`.
        like: the scan, read from DICOM.
        names: label -> name, of one or more labels and of every label above 0 in `array`, in the
            order of the segments.
        model: digest of the model, the serial number of the device that made the object.
        overwrite: replace a file that this program did not write, too, unless it is the scan.

    Raises:
        InputError: the scan was not read from DICOM, or its files were changed since; the file may
            not be replaced, the folder cannot be written, or the disk is full.
        ValueError: `array` is not uint8, not of the shape of `like.native`, or has another label.
    """
    path = expanded(path)
    check_native(array, like)
    found = geometry.label_boxes(array).keys()
    if not names or not names.keys() >= found:
        raise ValueError(f"`names` must name the labels {sorted(found)}, has {sorted(names)}")
    if like.disk is None or like.disk.series is None:
        raise InputError(f"{path}: the scan was not read from DICOM; {_LEAVE_OUT}")
    source = like.disk.path
    check_output(path, "labels", inputs=[source], overwrite=overwrite)
    to_segment = np.zeros(256, np.uint8)
    to_segment[list(names)] = np.arange(1, len(names) + 1)
    with dicom.checked(source, like.disk.series) as (series, affine):
        where = f"{source}: series {series.number}"
        _check_grid(where, like, affine, dicom.size(series))
        images = _sources(where, series)
        # highdicom reads each slice once for each segment: slow unless a slice is one piece.
        segments = np.ascontiguousarray(to_segment[array.transpose(2, 1, 0)])
        made = _segmentation(where, series, images, segments, like.native_affine, names, model)
    with atomic_path(path, "labels", overwrite=overwrite) as temporary, quiet():
        made.save_as(temporary, enforce_file_format=True)


def _check_grid(where: str, like: Volume, affine: np.ndarray, shape: tuple[int, ...]) -> None:
    same = shape == like.native.shape and np.allclose(affine, like.native_affine, atol=1e-3)
    if not same:
        raise InputError(f"{where}: its files were changed since the scan was read; predict again")


def _sources(where: str, series: Series) -> list[Any]:
    """Return the fields of the files of a series, without pixels, in the order of the slices.

    Raises:
        InputError: a file cannot be read, lacks a field, or is of another study or space; or
            frames are in several files.
    """
    names: dict[Path, str] = {}
    for image in series.images:
        names.setdefault(image.whole or image.path, image.name)
    if series.images[0].frame and len(names) > 1:
        raise InputError(
            f"{where}: its frames are in {len(names)} files, and seg.dcm can refer to one; "
            f"{_LEAVE_OUT}"
        )
    found: list[Any] = []
    for path, name in names.items():
        try:
            with quiet():
                fields = read(path)
                missing = [field for field in _NEEDED if not fields.get(field)]
                _complete(fields)
        except Exception as error:  # pydicom raises many types
            kind = type(error).__name__
            raise InputError(
                f"{where}: pydicom cannot read {name} ({kind}); {_LEAVE_OUT}"
            ) from None
        if missing:
            raise InputError(
                f"{where}: {name} has no {missing[0]}, which seg.dcm refers to; {_LEAVE_OUT}"
            )
        found.append(fields)
        for field in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            if fields.get(field) != found[0].get(field):
                raise InputError(
                    f"{where}: {name} has another {field} than the first slice, so seg.dcm "
                    f"cannot refer to them as one; {_LEAVE_OUT}"
                )
    return found


def _complete(fields: Any) -> None:
    """Empty those fields of patient and study that are missing, or that highdicom would refuse."""
    from pydicom.charset import python_encoding
    from pydicom.valuerep import DA, TM

    sets = fields.get("SpecificCharacterSet")
    sets = [sets or ""] if isinstance(sets, str | None) else list(sets)
    if not any(sets):  # an empty field means the same as none
        fields.pop("SpecificCharacterSet", None)
    # highdicom refuses sets that change within a text, as in Japan and Korea.
    elif any(one.startswith("ISO 2022") for one in sets) and python_encoding.keys() >= set(sets):
        fields.decode()
        fields.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
    kinds = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
    for name in _MAY_BE_EMPTY:
        value = fields.get(name) or ""
        with suppress(ValueError):
            kinds.get(name, str)(value)
            if name != "PatientSex" or value in ("M", "F", "O"):
                setattr(fields, name, value)
                continue
        setattr(fields, name, "")


def _by_frame(segments: np.ndarray, series: Series, images: list[Any]) -> np.ndarray:
    """Return slices (n, rows, columns) in the order of the frames of a multi-frame image."""
    frames = [image.frame for image in series.images]
    if not frames[0]:
        return segments
    found = np.zeros((int(images[0].NumberOfFrames), *segments.shape[1:]), np.uint8)
    found[np.array(frames) - 1] = segments
    return found


def _segmentation(
    where: str,
    series: Series,
    images: list[Any],
    segments: np.ndarray,
    affine: np.ndarray,
    names: Mapping[int, str],
    model: str,
) -> Any:
    """Return the object.

    Args:
        where: for messages.
        series: of the images.
        images: their fields.
        segments: (slices, rows, columns) uint8, 1 for the first of `names`.
        affine: (4, 4) from (column, row, slice) to mm.
        names: label -> name.
        model: digest.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    columns, rows, _ = geometry.spacing_mm(affine)
    normal = np.cross(affine[:3, 0], affine[:3, 1]) / (columns * rows)
    apart = abs(float(normal @ affine[:3, 2]))
    # Slices may lack a thickness, and one that is not their distance would leave gaps in 3D.
    measures = highdicom.PixelMeasuresSequence(
        pixel_spacing=(rows, columns), slice_thickness=apart, spacing_between_slices=apart
    )
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="spinejax", version=__version__, family=codes.cid7162.ArtificialIntelligence
    )
    with quiet():
        try:
            for one in images:
                _give_geometry(one, measures, series)
            return highdicom.seg.Segmentation(
                source_images=images,
                pixel_array=_by_frame(segments, series, images),
                segmentation_type="BINARY",
                segment_descriptions=[
                    highdicom.seg.SegmentDescription(
                        segment_number=number,
                        segment_label=name,
                        segmented_property_category=codes.cid7150.AnatomicalStructure,
                        segmented_property_type=_code(label, name),
                        algorithm_type="AUTOMATIC",
                        algorithm_identification=algorithm,
                        display_color=_colour(label, name),
                    )
                    for number, (label, name) in enumerate(names.items(), start=1)
                ],
                series_instance_uid=highdicom.UID(),
                series_number=series.number + _NUMBER,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="spinejax",
                manufacturer_model_name="spinejax",
                software_versions=__version__,
                device_serial_number=model or "unknown",
                content_label="VERTEBRAE",
                content_description="Vertebrae found by a program",
                series_description="Vertebrae (spinejax)",
                pixel_measures=measures,
            )
        except Exception as error:  # its message would repeat the fields of the patient
            raise InputError(
                f"{where}: highdicom makes no segmentation of it ({type(error).__name__}); "
                f"{_LEAVE_OUT}"
            ) from None


def _give_geometry(image: Any, measures: Any, series: Series) -> None:
    """Give an image the fields that highdicom compares with, although they may be missing."""
    if not series.images[0].frame:
        image.SliceThickness = measures[0].SliceThickness
        return
    groups = image.PerFrameFunctionalGroupsSequence[series.images[0].frame - 1]
    shared = (image.get("SharedFunctionalGroupsSequence") or [type(groups)()])[0]
    shared.PixelMeasuresSequence = measures
    if "PlaneOrientationSequence" in groups:
        shared.PlaneOrientationSequence = groups.PlaneOrientationSequence
    image.SharedFunctionalGroupsSequence = [shared]


def _code(label: int, name: str) -> Any:
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    if labels.NAMES.get(label) != name:
        return codes.SCT.Spine
    if label not in labels.SNOMED:
        return Code(labels.SNOMED_VERTEBRA, "SCT", "Vertebra")
    return Code(labels.SNOMED[label], "SCT", f"{name} vertebra")


def _colour(label: int, name: str) -> Any:
    import highdicom

    rgb = labels.RGB[label if labels.NAMES.get(label) == name else 20]
    return highdicom.color.CIELabColor.from_rgb(*rgb)
