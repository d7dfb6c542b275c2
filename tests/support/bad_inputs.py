"""A data set of bad and odd inputs: one entry a file, with what every command must make of it.

`IMAGES`, `MASKS` and `CENTROIDS` are the tables. A key is the id of the case. An entry writes one
file of the case; the other files of the case are good ones. `write` makes the whole data set, in
which the case `good` has good files alone.
"""

import gzip
import json
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.support import dicom_files

AFFINE = np.diag([-4.0, -4.0, 4.0, 1.0])
SHAPE = (24, 24, 32)
LEVELS = (20, 19, 18)


@dataclass(frozen=True)
class Bad:
    """One file of a case.

    make: writes it, given its path.
    says: a regular expression that matches the line about it; "" if there must be none.
    refused: whether the case cannot be used. Else it is used, with a warning that matches `says`.
    ending: of its name, after the id of the case.
    """

    make: Callable[[Path], object]
    says: str
    refused: bool = True
    ending: str = ".nii.gz"


def ct(seed: int = 0) -> np.ndarray:
    """Return (x, y, z) int16: a cylinder of soft tissue in air with a column of bone."""
    values = np.random.default_rng(seed).normal(0, 60, SHAPE)
    index = np.indices(SHAPE).astype(float)
    radius = sum(((index[k] - SHAPE[k] / 2) / (SHAPE[k] / 2)) ** 2 for k in range(2))
    values[radius > 0.9] = -1000
    values[radius < 0.05] += 500
    return np.clip(values, -1024, 3000).astype(np.int16)


def mask() -> np.ndarray:
    """Return (x, y, z) uint8: three vertebrae in the column of `ct`."""
    labels = np.zeros(SHAPE, np.uint8)
    for k, label in enumerate(LEVELS):
        labels[8:14, 8:14, 3 + 9 * k : 10 + 9 * k] = label
    return labels


def saved(array: np.ndarray, affine: np.ndarray = AFFINE, **fields: object) -> Callable:
    """Return a writer of a NIfTI file; `fields` are fields of its header."""

    def make(path: Path) -> None:
        image = nib.Nifti1Image(array, affine)
        image.set_data_dtype(array.dtype)
        for name, value in fields.items():
            image.header[name] = value
        content = image.to_bytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)

    return make


def raw(content: bytes) -> Callable:
    """Return a writer of these bytes."""
    return lambda path: path.write_bytes(content)


def zipped(content: bytes) -> Callable:
    """Return a writer of these bytes, gzipped."""
    return raw(gzip.compress(content))


def patched(offset: int, data: bytes) -> Callable:
    """Return a writer of a good CT whose header has other bytes at `offset`."""

    def make(path: Path) -> None:
        saved(ct())(path)
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[offset : offset + len(data)] = data
        path.write_bytes(gzip.compress(bytes(content)))

    return make


def header(**changes: object) -> bytes:
    """Return the text of a MetaImage header; a field that is None is left out."""
    fields: dict[str, object] = {
        "NDims": 3,
        "DimSize": "24 24 32",
        "ElementType": "MET_SHORT",
        "ElementSpacing": "4 4 4",
        **changes,
    }
    text = "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None)
    return (text if "ElementDataFile" in fields else f"{text}ElementDataFile = LOCAL\n").encode()


VOXELS = ct().tobytes(order="F")


def mha(**changes: object) -> Callable:
    """Return a writer of a MetaImage of a good CT with another header."""
    return raw(header(**changes) + VOXELS)


def mhd(name: str, place: Callable[[Path], object]) -> Callable:
    """Return a writer of a MetaImage header and, by `place`, of its voxel file `name`."""

    def make(path: Path) -> None:
        path.write_bytes(header(ElementDataFile=name))
        place(path.parent / name)

    return make


def bound_socket(path: Path) -> None:
    """Make a socket; its path may be longer than a socket's address."""
    here = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


def device(path: Path) -> None:
    """Make a link to a device that never ends: to make a device itself needs rights."""
    path.symlink_to("/dev/zero")


def series(path: Path, without: slice = slice(0)) -> None:
    """Write a good CT as a folder of DICOM files, less those of some slices."""
    images = dicom_files.series(ct(), AFFINE)
    del images[without]
    dicom_files.write(path, images)


LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234\n".encode()
HTML = b"<!DOCTYPE html>\n<html><body>Quota exceeded</body></html>\n"
DICOM = b"\0" * 128 + b"DICM" + bytes(200)
AGAIN = "download it again"
GOOD = gzip.compress(b"")

IMAGES = {
    # Content that is no scan.
    "lfs": Bad(raw(LFS), "Git LFS.*git lfs pull"),
    "lfs_mha": Bad(raw(LFS), "Git LFS.*git lfs pull", ending=".mha"),
    "annex": Bad(raw(b"/annex/objects/SHA256E-s1--0.nii.gz\n"), "git annex get"),
    "html": Bad(raw(HTML), f"HTML.*{AGAIN}"),
    "html_zipped": Bad(zipped(HTML), f"HTML.*{AGAIN}"),
    "html_mha": Bad(raw(HTML), f"HTML.*{AGAIN}", ending=".mha"),
    "html_plain": Bad(raw(b"\n <html lang='en'>"), f"HTML.*{AGAIN}", ending=".nii"),
    "xml": Bad(raw(b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"), AGAIN),
    "json": Bad(raw(b'{"error": "login"}'), f"JSON.*{AGAIN}"),
    "text": Bad(raw(b"not a scan\n" * 9), "plain text"),
    "dicom": Bad(raw(DICOM), "DICOM.*folder of its series"),
    "dicom_mha": Bad(raw(DICOM), "DICOM.*folder of its series", ending=".mha"),
    "dicom_gap": Bad(lambda path: series(path, slice(9, 12)), "3 slices are missing", ending=""),
    "dicom_good": Bad(lambda path: series(path), "", False, ending=""),
    "zip": Bad(raw(b"PK\x03\x04" + bytes(60)), "zip archive.*unpack"),
    "tar": Bad(zipped(bytes(257) + b"ustar" + bytes(300)), "tar archive.*unpack"),
    "zipped_twice": Bad(zipped(GOOD), "gzip.*unpack"),
    "png": Bad(raw(b"\x89PNG\r\n\x1a\n" + bytes(60)), "PNG"),
    "nrrd": Bad(raw(b"NRRD0004\n"), "NRRD.*nrrd"),
    "hdf5": Bad(raw(b"\x89HDF\r\n\x1a\n" + bytes(60)), "HDF5"),
    "mha_as_nifti": Bad(mha(), r"MetaImage.*\.mha"),
    "nifti_as_mha": Bad(saved(ct()), r"\.nii", ending=".mha"),
    "empty": Bad(raw(b""), f"empty.*{AGAIN}"),
    "empty_zipped": Bad(zipped(b""), f"empty.*{AGAIN}"),
    "zeros": Bad(raw(bytes(5000)), f"zeros.*{AGAIN}"),
    "noise": Bad(raw(np.random.default_rng(0).bytes(5000)), AGAIN),
    "gzip_cut": Bad(lambda path: _cut(path, 0.5), f"truncated.*{AGAIN}"),
    "gzip_end_cut": Bad(lambda path: _cut(path, 0.9999), f"truncated.*{AGAIN}"),
    "header_cut": Bad(raw(struct.pack("<i", 348) + bytes(9)), f"truncated.*{AGAIN}"),
    # Things that are no regular file.
    "fifo": Bad(os.mkfifo, "FIFO, not a regular file"),
    "socket": Bad(bound_socket, "socket, not a regular file"),
    "device": Bad(device, "device, not a regular file"),
    "folder": Bad(Path.mkdir, "folder, not a regular file"),
    "nowhere": Bad(lambda path: path.symlink_to("no such file"), "link to no such file"),
    "loop": Bad(lambda path: path.symlink_to(path.name), "link|symbolic links"),
    "raw_fifo": Bad(mhd("raw_fifo.raw", os.mkfifo), "FIFO, not a regular", ending=".mhd"),
    "raw_folder": Bad(mhd("raw_folder.raw", Path.mkdir), "folder, not a regular", ending=".mhd"),
    "raw_gone": Bad(raw(header(ElementDataFile="gone.raw")), "gone.raw. is not", ending=".mhd"),
    # NIfTI headers.
    "shape_2d": Bad(saved(ct()[0]), "2D image"),
    "shape_4d": Bad(saved(np.stack([ct(), ct()], -1)), "2 volumes"),
    "shape_zero": Bad(patched(42, bytes(2)), "make no image"),
    "shape_negative": Bad(patched(42, b"\xff\xff"), "make no image"),
    "shape_huge": Bad(patched(42, struct.pack("<3h", *[32767] * 3)), "claims 32767"),
    "rgb": Bad(patched(70, b"\x80\0"), "RGB"),
    "datatype": Bad(patched(70, b"\x63\0"), "unknown type"),
    "affine_nan": Bad(patched(280, struct.pack("<4f", *[np.nan] * 4)), "affine is unusable"),
    "slope_nan": Bad(patched(112, struct.pack("<f", np.nan)), "", False),
    "slope_zero": Bad(patched(112, struct.pack("<f", 0)), "", False),
    "inter_inf": Bad(patched(112, struct.pack("<2f", 1, np.inf)), "scl_inter.*export"),
    "offset_huge": Bad(patched(108, struct.pack("<f", 1e9)), "can hold"),
    "offset_nan": Bad(patched(108, struct.pack("<f", np.nan)), "", False),
    "nan_only": Bad(saved(np.full(SHAPE, np.nan, np.float32)), "finite"),
    # Intensities and voxel sizes that no CT has.
    "hu_1024": Bad(saved(ct() + np.int16(1024)), r"looks like HU \+ 1024", False),
    "hu_negated": Bad(saved(-ct()), "wrong sign", False),
    "hu_clipped": Bad(saved(ct().clip(-160, 240)), "clipped at -160", False),
    "zero_to_one": Bad(saved(((ct() + 1024.0) / 4096).astype(np.float32)), "rescaled"),
    "constant": Bad(saved(np.full(SHAPE, 40, np.int16)), "every voxel is 40"),
    "flat_numbers": Bad(saved(mask()), "label map"),
    "spacing_350": Bad(saved(ct(), np.diag([-350.0, -350, 350, 1])),
                       "micrometres|one header is wrong"),
    # MetaImage headers.
    "mha_good": Bad(mha(), "", False, ending=".mha"),
    "field_twice": Bad(raw(b"NDims = 2\n" + header() + VOXELS), "NDims twice", ending=".mha"),
    "no_ndims": Bad(mha(NDims=None), "make no image", ending=".mha"),
    "ndims_2": Bad(mha(NDims=2, DimSize="24 24", ElementSpacing="4 4"), "2D image", ending=".mha"),
    "ndims_4": Bad(mha(NDims=4, DimSize="24 24 16 2", ElementSpacing="4 4 4 1"), "several volumes",
                   ending=".mha"),
    "ndims_word": Bad(mha(NDims="three"), "make no image", ending=".mha"),
    "dimsize_word": Bad(mha(DimSize="24 24 many"), "make no image", ending=".mha"),
    "dimsize_huge": Bad(mha(DimSize="99999 99999 99999"), "claims 99999", ending=".mha"),
    "dimsize_digits": Bad(mha(DimSize="24 24 " + "9" * 40), "claims|make no image|ITK",
                          ending=".mha"),
    "spacing_word": Bad(mha(ElementSpacing="4 4 thick"), "is not 3 numbers", ending=".mha"),
    "spacing_zero": Bad(mha(ElementSpacing="4 4 0"), "ITK cannot|unusable", ending=".mha"),
    "spacing_inf": Bad(mha(ElementSpacing="4 4 inf"), "is not 3 numbers", ending=".mha"),
    "type_odd": Bad(mha(ElementType="MET_STRING"), "type|ITK", ending=".mha"),
    "channels": Bad(mha(ElementNumberOfChannels=3), "channels", ending=".mha"),
    "header_endless": Bad(raw(b"NDims = 3\n" * 20_000), "no end", ending=".mha"),
    "data_list": Bad(mha(ElementDataFile="LIST\na.raw"), "several files", ending=".mha"),
    "data_pattern": Bad(mha(ElementDataFile="a%03d.raw 1 3 1"), "several files", ending=".mha"),
    "data_absolute": Bad(mha(ElementDataFile="/etc/passwd"), "not beside it", ending=".mha"),
    "data_self": Bad(mha(ElementDataFile="data_self.mha"), "header of its own", ending=".mha"),
    "data_dot": Bad(mha(ElementDataFile="."), "data_dot.mha: its voxel file '.' is a folder",
                    ending=".mha"),
    "data_long": Bad(mha(ElementDataFile="a" * 5000), "a{90}[.]{3} is not beside it",
                     ending=".mha"),
    "matrix_scaled": Bad(mha(TransformMatrix="4 0 0 0 4 0 0 0 4"), "voxel size is in doubt",
                         ending=".mha"),
    "mesh": Bad(mha(ObjectType="Mesh"), "no image", ending=".mha"),
    "mha_bom": Bad(raw(b"\xef\xbb\xbf# a note\n" + header() + VOXELS), "", False, ending=".mha"),
    "dimsize_underscore": Bad(mha(DimSize="2_4 24 32"), "make no image", ending=".mha"),
    "spacing_underscore": Bad(mha(ElementSpacing="4 4 4_0"), "is not 3 numbers", ending=".mha"),
    "data_outside": Bad(mha(ElementDataFile="../labels/good.nii.gz"), "not beside it",
                        ending=".mha"),
}  # fmt: skip

MASKS = {
    "mask_lfs": Bad(raw(LFS), "Git LFS.*git lfs pull"),
    "mask_html": Bad(raw(HTML), f"HTML.*{AGAIN}"),
    "mask_fifo": Bad(os.mkfifo, "FIFO, not a regular file"),
    "mask_device": Bad(device, "device, not a regular file"),
    "mask_nowhere": Bad(lambda path: path.symlink_to("no such file"), "link to no such file"),
    "mask_cut": Bad(lambda path: _cut(path, 0.5), "truncated"),
    "mask_negative": Bad(saved(-mask().astype(np.int16)), "out of range"),
    "mask_fractional": Bad(saved(mask() * np.float32(0.7)), "is no label"),
    "mask_spacing_lost": Bad(
        saved(mask(), np.diag([-1.0, -1, 1, 1])), "one header is wrong|not on one grid"
    ),
    "mask_of_hu": Bad(saved(ct()), "out of range"),
}

DIRECTION = {"direction": ["L", "P", "S"]}


def points(*records: object) -> Callable:
    """Return a writer of a centroid file."""
    return lambda path: path.write_text(json.dumps([DIRECTION, *records]))


def point(**fields: object) -> dict[str, object]:
    """Return a record of a centroid."""
    return {"label": 20, "X": 11, "Y": 11, "Z": 6, **fields}


CENTROIDS = {
    "ctd_1e308": Bad(points(point(X=1e308)), "outside of any scan"),
    "ctd_infinite": Bad(points(point(X=float("inf"))), "outside of any scan"),
    "ctd_huge": Bad(points(point(X=10**400)), "record 1 must have"),
    "ctd_far": Bad(points(point(X=-9000)), "centroids are at|outside its mask"),
    "ctd_nan": Bad(points(point(X=float("nan"))), "no centroid|lacks a centroid"),
    "ctd_left": Bad(points(point(X="left")), "record 1 must have"),
    "ctd_list": Bad(points(point(X=[1])), "record 1 must have"),
    "ctd_true": Bad(points(point(label=True)), "record 1 must have"),
    "ctd_half": Bad(points(point(label=20.5)), "record 1 must have"),
    "ctd_unlabelled": Bad(points({"X": 1, "Y": 2, "Z": 3}), "record 1 must have"),
    "ctd_label_99": Bad(points(point(label=99)), "label 99 is no vertebra"),
    "ctd_twice": Bad(points(point(), point()), "two centroids"),
    "ctd_nested": Bad(points([[[]]]), "record 1 is no object"),
    "ctd_null": Bad(points(None), "record 1 is no object"),
    "ctd_direction": Bad(raw(b'[{"direction": ["P", "P", "R"]}]'), "direction"),
    "ctd_direction_deep": Bad(raw(b'[{"direction": ' + b"[" * 800 + b"]" * 800 + b"}]"),
                              "direction|is not JSON"),
    "ctd_bomb": Bad(raw(b"[" * 100_000), "is not JSON"),
    "ctd_object": Bad(raw(b"{}"), "is not a list"),
    "ctd_html": Bad(raw(HTML), f"is not JSON.*{AGAIN}"),
    "ctd_empty": Bad(raw(b""), "is not JSON"),
    "ctd_bytes": Bad(raw(b"\xff\xfe\xfa"), "is not JSON"),
    "ctd_fifo": Bad(os.mkfifo, "FIFO, not a regular file"),
    "ctd_device": Bad(device, "device, not a regular file"),
}  # fmt: skip


def _cut(path: Path, share: float) -> None:
    saved(ct())(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def write(root: Path) -> None:
    """Write the data set: train/, val/ and test/ in `root`, each with images/, labels/, centroids/.

    The bad files are in train/.
    """
    record = points(*(point(label=label, Z=6 + 9 * k) for k, label in enumerate(LEVELS)))
    cases = ("good", *IMAGES, *MASKS, *CENTROIDS)
    for seed, case in enumerate((*cases, "good_val", "good_test")):
        part = root / {"good_val": "val", "good_test": "test"}.get(case, "train")
        good = Bad(saved(ct(seed)), ""), Bad(saved(mask()), ""), Bad(record, "", ending="_ctd.json")
        kinds = zip(
            ("images", "labels", "centroids"), (IMAGES, MASKS, CENTROIDS), good, strict=True
        )
        for folder, table, default in kinds:
            (part / folder).mkdir(parents=True, exist_ok=True)
            file = table.get(case, default)
            ending = default.ending if table is CENTROIDS else file.ending
            file.make(part / folder / f"{case}{ending}")
