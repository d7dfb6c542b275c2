"""What a file that is no scan holds, by its first bytes, and what its owner should do about it."""

import re

HEAD_BYTES = 1024
"""How many bytes `explain` looks at."""

_AGAIN = "download it again"
_UNPACK = "unpack it and give the scan in it"
_CONVERT = "convert it to .nii.gz"
# First bytes -> what the file is, and the remedy.
_MAGIC = (
    (b"version https://git-lfs", "a Git LFS pointer", "fetch its content with `git lfs pull`, or "
     "download it again"),
    (b"/annex/objects/", "a git-annex pointer", "fetch its content with `git annex get`"),
    (b"../.git/annex/", "a git-annex pointer", "fetch its content with `git annex get`"),
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"PK\x05\x06", "an empty zip archive", _AGAIN),
    (b"\x1f\x8b", "a gzip file in a gzip file", "unpack it once with gunzip"),
    (b"BZh", "a bzip2 file", _UNPACK),
    (b"\xfd7zXZ", "an xz file", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK),
    (b"7z\xbc\xaf", "a 7-zip archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"NRRD", "a NRRD file", "end its name in .nrrd, or in .nhdr if its voxels are apart"),
    (b"\x89HDF", "an HDF5 or MINC file", _CONVERT),
    (b"CDF", "a MINC file", _CONVERT),
    (b"\x93NUMPY", "a NumPy array", "save it as NIfTI together with its affine"),
    (b"\x89PNG", "a PNG picture", "give the CT itself"),
    (b"\xff\xd8\xff", "a JPEG picture", "give the CT itself"),
    (b"GIF8", "a GIF picture", "give the CT itself"),
    (b"II*\0", "a TIFF picture", _CONVERT),
    (b"MM\0*", "a TIFF picture", _CONVERT),
    (b"%PDF", "a PDF", "give the CT itself"),
)  # fmt: skip
_HTML = re.compile(rb"<(!doctype html|html|head|body)\b", re.IGNORECASE)


def explain(head: bytes, wanted: str) -> str:
    """Return what a file is instead of `wanted`, and the remedy: "is a PDF, not ...; give ...".

    Args:
        head: its first `HEAD_BYTES` bytes, after decompression.
        wanted: for example "a NIfTI file".
    """
    what, remedy = _look(head)
    named = f"is {what}, not {wanted}" if what else f"is not {wanted}"
    return f"{named}, whatever its name; {remedy}"


def _look(head: bytes) -> tuple[str, str]:
    """Return what the bytes are, "" if they tell nothing, and the remedy."""
    for magic, what, remedy in _MAGIC:
        if head.startswith(magic):
            return what, remedy
    if head[128:132] == b"DICM":
        return "a DICOM file", "give the folder of its series"
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
        return "a NIfTI file", "end its name in .nii, or in .nii.gz if it is compressed"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.strip(b"\0"):
        return "filled with zeros" if head else "empty", _AGAIN
    if re.match(rb"(ObjectType|NDims)\s*=", text):
        return "a MetaImage file", "end its name in .mha, or in .mhd if its voxels are apart"
    if text[:1] == b"<":
        page = "an HTML page" if _HTML.search(text) else "an XML file"
        return f"{page}, such as a log-in or quota message", _AGAIN
    if text[:1] in (b"{", b"["):
        return "JSON, such as an error message of a server", _AGAIN
    if text.isascii() and all(byte >= 32 or byte in b"\t\n\r\f" for byte in text):
        return "plain text", f"{_AGAIN}, or give the scan itself"
    return "", "convert the scan to .nii.gz, or download it again"
