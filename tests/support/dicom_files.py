"""DICOM series of made-up volumes, written with pydicom."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
PATIENT = "Muster^Erika"


def image(
    stored: np.ndarray,
    position: np.ndarray,
    *,
    directions: np.ndarray = AXIAL,
    spacing: tuple[float, float] = (0.5, 0.75),
    slope: float = 1.0,
    intercept: float = -1024.0,
    **tags: object,
) -> Dataset:
    """Return an image of a CT.

    Args:
        stored: (columns, rows) integers.
        position: (3,) of the first voxel in LPS mm.
        directions: (2, 3) of a row and of a column.
        spacing: distances of columns and of rows in mm.
        slope: stored * slope + intercept are HU.
        intercept: see `slope`.
        tags: keyword of DICOM -> its value; None leaves it out.
    """
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    fields: dict[str, object] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "SeriesNumber": 4,
        "SeriesDescription": "Bone",
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientName": PATIENT,
        "PatientID": "ID4711",
        "ImagePositionPatient": [f"{value:.9g}" for value in position],
        "ImageOrientationPatient": [f"{value:.9g}" for value in np.ravel(directions)],
        "PixelSpacing": [f"{value:.9g}" for value in reversed(spacing)],
        "RescaleSlope": f"{slope:.9g}",
        "RescaleIntercept": f"{intercept:.9g}",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[1],
        "Columns": stored.shape[0],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "PixelData": np.ascontiguousarray(stored.T, "<u2").tobytes(),
        **tags,
    }
    for name, value in fields.items():
        if value is not None:
            setattr(ds, name, value)
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def save(path: Path, ds: Dataset) -> Path:
    """Write an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def series(hu: np.ndarray, affine: np.ndarray, **tags: object) -> list[Dataset]:
    """Return the images of a scan.

    Args:
        hu: (x, y, z) whole numbers from -1024.
        affine: (4, 4) to RAS mm; the first two axes are at right angles.
        tags: see `image`.
    """
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    sides = np.linalg.norm(lps[:3, :2], axis=0)
    return [
        image(
            hu[:, :, k].astype(int) + 1024,
            lps[:3, 3] + k * lps[:3, 2],
            directions=(lps[:3, :2] / sides).T,
            spacing=(float(sides[0]), float(sides[1])),
            InstanceNumber=k + 1,
            **tags,
        )
        for k in range(hu.shape[2])
    ]


def enhanced(images: list[Dataset], *, share: bool = False, **tags: object) -> Dataset:
    """Return a multi-frame image of CT, a frame an image, in their order.

    Args:
        images: of `image`, alike but for position, direction, spacing, rescale and image type.
        share: give directions, spacing and rescale once for all frames.
        tags: see `image`.
    """
    first = images[0]
    whole = Dataset()
    whole.update(first)
    whole.file_meta = FileMetaDataset()
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
                 "RescaleIntercept", "AcquisitionNumber", "ImageType"):  # fmt: skip
        if name in whole:
            delattr(whole, name)

    def group(ds: Dataset, **fields: str) -> Dataset:
        one = Dataset()
        for mine, theirs in fields.items():
            if theirs in ds:
                setattr(one, mine, ds[theirs].value)
        return one

    def common(ds: Dataset) -> Dataset:
        found = Dataset()
        found.PixelMeasuresSequence = [group(ds, PixelSpacing="PixelSpacing")]
        found.PlaneOrientationSequence = [
            group(ds, ImageOrientationPatient="ImageOrientationPatient")
        ]
        names = {name: name for name in ("RescaleSlope", "RescaleIntercept", "RescaleType")}
        found.PixelValueTransformationSequence = [group(ds, **names)]
        return found

    def own(ds: Dataset) -> Dataset:
        found = Dataset() if share else common(ds)
        found.PlanePositionSequence = [group(ds, ImagePositionPatient="ImagePositionPatient")]
        found.CTImageFrameTypeSequence = [group(ds, FrameType="ImageType")]
        found.FrameContentSequence = [
            group(ds, FrameAcquisitionNumber="AcquisitionNumber", StackID="StackID")
        ]
        return found

    whole.SharedFunctionalGroupsSequence = [common(first) if share else Dataset()]
    whole.PerFrameFunctionalGroupsSequence = [own(ds) for ds in images]
    whole.NumberOfFrames = len(images)
    whole.SOPClassUID = EnhancedCTImageStorage
    whole.SOPInstanceUID = generate_uid()
    whole.PixelData = b"".join(ds.PixelData for ds in images)
    for name, value in tags.items():
        setattr(whole, name, value)
    whole.file_meta.MediaStorageSOPClassUID = whole.SOPClassUID
    whole.file_meta.MediaStorageSOPInstanceUID = whole.SOPInstanceUID
    whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return whole


def write(folder: Path, images: list[Dataset], name: str = "IM{:04}") -> Path:
    """Write images, numbered in an order that is not theirs."""
    order = np.random.default_rng(0).permutation(len(images))
    for number, index in enumerate(order):
        save(folder / name.format(number), images[index])
    return folder
