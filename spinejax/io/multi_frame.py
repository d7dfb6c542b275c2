"""Multi-frame CT (Enhanced CT) as the single images that `dicom.py` reads.

An Enhanced CT (DICOM PS3.3, A.38) holds many slices in one file. Position, direction, voxel size
and rescale of each are in functional groups: those of the frame, or those that all frames share.
GDCM gives no value of a group and one rescale for all frames. So each frame is written into a file
of its own, with its fields where a single image has them (PS3.3, A.3) and its pixels as they are
stored, and then everything is checked and decoded as for a series of single images.
"""

from pathlib import Path
from typing import Any

from spinejax.io.dicom_fields import quiet, read

KINDS = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""Classes of objects: Enhanced CT, and one that was converted from single images."""

_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_COMMON = (
    "SpecificCharacterSet", "ImageType", "Modality", "SeriesDescription", "PatientName",
    "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "LossyImageCompression",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip
# Functional group -> its fields, and those of a single image (PS3.3, C.7.6.16 and C.8.15.3).
_GROUPS = {
    "PixelMeasuresSequence": {"PixelSpacing": "PixelSpacing"},
    "PlanePositionSequence": {"ImagePositionPatient": "ImagePositionPatient"},
    "PlaneOrientationSequence": {"ImageOrientationPatient": "ImageOrientationPatient"},
    "PixelValueTransformationSequence": {
        "RescaleSlope": "RescaleSlope",
        "RescaleIntercept": "RescaleIntercept",
        "RescaleType": "RescaleType",
    },
    "CTImageFrameTypeSequence": {"FrameType": "ImageType"},
    "CTAcquisitionDetailsSequence": {"GantryDetectorTilt": "GantryDetectorTilt"},
}


def split(path: Path, folder: Path) -> list[Path]:
    """Write the frames of a file as single images.

    Args:
        path: the file, of a class of `KINDS`.
        folder: an empty one for the images.

    Returns:
        The images in the order of the frames; none if the frames cannot be told apart, or the file
        is damaged.

    Raises:
        OSError: a file cannot be read or written.
    """
    with quiet():
        try:
            whole = read(path, pixels=True)
            shared = (whole.get("SharedFunctionalGroupsSequence") or [None])[0]
            each = list(whole.PerFrameFunctionalGroupsSequence)
            pixels = _pixels(whole)
            if not len(each) == len(pixels) == int(whole.NumberOfFrames):
                return []
            numbers = _acquisitions(each)
            found = []
            for frame, (groups, number) in enumerate(zip(each, numbers, strict=True), start=1):
                image = _single(whole, shared, groups, number, frame)
                _put(image, pixels[frame - 1], whole.file_meta.TransferSyntaxUID)
                found.append(folder / f"{frame}.dcm")
                image.save_as(found[-1], enforce_file_format=True)
        except (OSError, MemoryError):
            raise
        except Exception:  # pydicom raises many types for a damaged file
            return []
    return found


def _pixels(whole: Any) -> list[bytes]:
    """Return the pixels of each frame as they are stored; none if there are more or fewer."""
    from pydicom.encaps import generate_frames

    count = int(whole.NumberOfFrames)
    if whole.file_meta.TransferSyntaxUID.is_encapsulated:
        offsets = None
        if "ExtendedOffsetTable" in whole:
            offsets = (whole.ExtendedOffsetTable, whole.ExtendedOffsetTableLengths)
        frames = generate_frames(whole.PixelData, number_of_frames=count, extended_offsets=offsets)
        return list(frames)
    bits = whole.Rows * whole.Columns * whole.SamplesPerPixel * whole.BitsAllocated
    size, rest = divmod(bits, 8)
    # The data end at an even byte.
    if rest or not 0 <= len(whole.PixelData) - count * size <= 1:
        return []
    return [whole.PixelData[k * size : (k + 1) * size] for k in range(count)]


def _acquisitions(each: list[Any]) -> list[int]:
    """Return a number for each frame, which frames of one stack, time and acquisition share."""
    keys = []
    for groups in each:
        content = (groups.get("FrameContentSequence") or [{}])[0]
        names = ("StackID", "TemporalPositionIndex", "FrameAcquisitionNumber")
        keys.append(tuple(content.get(name) for name in names))
    order = {key: number for number, key in enumerate(dict.fromkeys(keys), start=1)}
    return [order[key] for key in keys]


def _single(whole: Any, shared: Any, groups: Any, number: int, frame: int) -> Any:
    """Return the fields of a frame as those of a single image."""
    from pydicom.dataset import Dataset

    image = Dataset()
    for name in _COMMON:
        if name in whole:
            image[name] = whole[name]
    image.SOPClassUID = _CT_IMAGE
    if whole.get("SOPInstanceUID"):  # of a second copy of the file, it is the same
        image.SOPInstanceUID = f"{whole.SOPInstanceUID}.{frame}"
    image.AcquisitionNumber = number
    for group, fields in _GROUPS.items():
        for place in (groups, shared):
            if place is not None and place.get(group):
                for theirs, mine in fields.items():
                    if theirs in place[group].value[0]:
                        setattr(image, mine, place[group].value[0][theirs].value)
                break
    return image


def _put(image: Any, pixels: bytes, syntax: Any) -> None:
    """Give an image its pixels and the syntax in which they are stored."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate

    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = _CT_IMAGE
    image.file_meta.MediaStorageSOPInstanceUID = image.get("SOPInstanceUID") or "2.25.1"
    image.file_meta.TransferSyntaxUID = syntax
    if syntax.is_encapsulated:
        image.add_new("PixelData", "OB", encapsulate([pixels]))
        image["PixelData"].is_undefined_length = True
    else:
        image.add_new("PixelData", "OW" if image.BitsAllocated > 8 else "OB", pixels)
