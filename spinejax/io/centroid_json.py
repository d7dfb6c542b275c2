"""Vertebra centroids: reads the three VerSe conventions, writes VerSe JSON and 3D Slicer markups.

The conventions differ in the frame of X, Y, Z:

* Subject-based: the first record is `{"direction": ["P", "I", "R"]}`. X, Y, Z are voxel indices of
  the image's array in that orientation; voxel centres are whole numbers.
* MICCAI'19: no direction; mm in the frame whose axes grow to I, P, L.
* MICCAI'20: no direction; mm in the frame whose axes grow to P, I, R.

In the mm frames the centre of the first voxel is at 0 mm, so an index is mm / spacing. No
document says so; it was measured: the MICCAI'20 numbers, as restated by Payer et al. (2020), agree
with spacing times the centre of mass of the masks within 0.2 mm for verse004 (1 x 1 x 2 mm) and
0.6 mm for GL003 (0.29 x 0.29 x 1.25 mm). An axis is reversed by `size - 1 - index`; the
`size * spacing - mm` of published scripts is wrong by one voxel.

The subject-based and the '19 points mark the vertebral body. The '20 points mark the whole
vertebra, up to 15 mm further back.
"""

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spinejax import geometry, labels
from spinejax.errors import InputError
from spinejax.files import StrPath, read_regular, write_json
from spinejax.io import file_names
from spinejax.volume import LabelVolume, Volume

FRAMES = {"verse19": "IPL", "verse20": "PIR"}
"""Edition -> the directions in which X, Y, Z of its MICCAI files grow."""

Points = dict[int, np.ndarray]

_FARTHEST = 1e5  # voxels or mm: no scan is that long

_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/"
    "Schema/markups-schema-v1.0.3.json#"
)


def read_centroids(
    path: StrPath,
    volume: Volume,
    *,
    edition: str | None = None,
    mask: LabelVolume | None = None,
) -> Points:
    """Read a file of any of the three conventions.

    A direction record decides. Without one, the convention that puts more points into their own
    label of `mask` decides; then `edition`; then the name (`_iso-ctd.json` is '20,
    `verse004_ctd.json` is '19).

    Args:
        path: JSON file.
        volume: the scan or its mask; only its grid is used.
        edition: "verse19" or "verse20".
        mask: the label map, on any grid.

    Returns:
        VerSe id -> (3,) float64 voxel index in `volume.array`, from head to foot. Records with a
        coordinate that is NaN or null are skipped.

    Raises:
        InputError: the file is missing or no JSON list of centroids, has an unknown label or
            direction or a point that no scan can hold, or its convention is unclear.
    """
    path = Path(path)
    direction, points = _parse(path)
    if direction is not None:
        return _from_frame(points, volume, direction, in_mm=False)
    candidates = {
        name: _from_frame(points, volume, axes, in_mm=True) for name, axes in FRAMES.items()
    }
    if mask is not None:
        hits = {name: count_inside(found, volume, mask) for name, found in candidates.items()}
        if hits["verse19"] != hits["verse20"]:
            return candidates[max(hits, key=hits.__getitem__)]
    if edition is None:
        edition = file_names.edition_by_name(path.name, file_names.verse_ids(path.name))
    if edition not in FRAMES:
        raise InputError(
            f"{path}: no direction record, and neither name nor mask tells VerSe'19 from '20; put "
            'a first record such as {"direction": ["L", "P", "S"]} into the list'
        )
    return candidates[edition]


def read_direction(path: StrPath) -> str | None:
    """Return the orientation code of the direction record, e.g. "PIR"; None without a record."""
    return _parse(Path(path))[0]


def count_inside(points: Mapping[int, np.ndarray], volume: Volume, mask: LabelVolume) -> int:
    """Return how many points, voxel indices (3,) of `volume`, lie in their own label of `mask`."""
    return sum(label_at(point, volume, mask) == label for label, point in points.items())


def label_at(point: np.ndarray, volume: Volume, mask: LabelVolume) -> int:
    """Return the label of `mask` at a voxel index (3,) of `volume`; 0 outside the mask's grid."""
    world = geometry.voxel_to_world(volume.affine, point)
    index = np.rint(geometry.world_to_voxel(mask.affine, world))
    if (index < 0).any() or (index >= mask.shape).any():
        return 0
    i, j, k = index.astype(int)
    return int(mask.array[i, j, k])


def write_centroids(
    path: StrPath,
    centroids: Mapping[int, np.ndarray],
    volume: Volume,
    *,
    overwrite: bool = False,
) -> None:
    """Write VerSe's subject-based JSON with points in the orientation of the scan's file.

    Args:
        path: JSON file; it appears whole or not at all.
        centroids: VerSe id -> (3,) voxel index in `volume.array`.
        volume: the scan.
        overwrite: replace a file that this program did not write, too.

    Raises:
        InputError: the file may not be replaced.
    """
    records: list[dict[str, Any]] = [{"direction": list(volume.orientation)}]
    for label in sorted(centroids, key=labels.order):
        x, y, z = (round(float(value), 2) for value in volume.native_index(centroids[label]))
        records.append({"label": int(label), "X": x, "Y": y, "Z": z})
    write_json(path, records, "centroids", overwrite=overwrite)


def write_markups(
    path: StrPath,
    centroids: Mapping[int, np.ndarray],
    volume: Volume,
    *,
    overwrite: bool = False,
) -> None:
    """Write 3D Slicer markups (`.mrk.json`, schema 1.0.3): named points in LPS mm.

    Args:
        path: JSON file; it appears whole or not at all.
        centroids: VerSe id -> (3,) voxel index in `volume.array`.
        volume: the scan.
        overwrite: replace a file that this program did not write, too.

    Raises:
        InputError: the file may not be replaced.
    """
    points = []
    for number, label in enumerate(sorted(centroids, key=labels.order), start=1):
        right, anterior, superior = geometry.voxel_to_world(volume.affine, centroids[label])
        position = [round(float(value), 3) for value in (-right, -anterior, superior)]
        points.append(
            {
                "id": str(number),
                "label": labels.name(label),
                "position": position,
                "positionStatus": "defined",
            }
        )
    markup = {
        "type": "Fiducial",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "controlPoints": points,
    }
    write_json(path, {"@schema": _SCHEMA, "markups": [markup]}, "centroids", overwrite=overwrite)


def _from_frame(
    points: Mapping[int, tuple[float, float, float]], volume: Volume, axes: str, *, in_mm: bool
) -> Points:
    """Return voxel indices for points in the frame `axes`, in voxels or mm from the first voxel."""
    # Only the affine is wanted, so the array is a broadcast scalar, which takes no memory.
    grid = np.broadcast_to(np.zeros((), np.uint8), volume.shape)
    _, frame = geometry.reorient(grid, volume.affine, axes)
    scale = np.asarray(geometry.spacing_mm(frame)) if in_mm else np.ones(3)
    index_from_frame = np.linalg.inv(volume.affine) @ frame
    return {
        label: geometry.voxel_to_world(index_from_frame, np.asarray(points[label]) / scale)
        for label in sorted(points, key=labels.order)
    }


def _parse(path: Path) -> tuple[str | None, dict[int, tuple[float, float, float]]]:
    """Return the direction record, if any, and the finite records of a file."""
    records = _load(path)
    direction: str | None = None
    points: dict[int, tuple[float, float, float]] = {}
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise InputError(f"{path}: record {number} is no object with label, X, Y and Z")
        if "direction" in record:
            direction = _direction(path, record["direction"])
            continue
        try:
            label = _number(record["label"])
            x, y, z = (_number(record[axis]) for axis in "XYZ")
            if not label.is_integer():
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(
                f"{path}: record {number} must have a whole-number label and numbers X, Y and Z"
            ) from None
        label = int(label)
        if label not in labels.NAMES:
            raise InputError(f"{path}: label {label} is no vertebra (1 to 25, or 28 for T13)")
        if any(abs(value) > _FARTHEST for value in (x, y, z)):
            raise InputError(
                f"{path}: the centroid of {labels.name(label)} lies at {x:.3g}, {y:.3g}, {z:.3g}, "
                "outside of any scan; correct or remove it"
            )
        if label in points:
            raise InputError(f"{path}: {labels.name(label)} has two centroids; remove one of them")
        if all(map(math.isfinite, (x, y, z))):
            points[label] = (x, y, z)
    return direction, points


def _number(value: Any) -> float:
    # Unknown coordinates are NaN in VerSe; strict JSON writers write null.
    if isinstance(value, bool):
        raise TypeError
    return math.nan if value is None else float(value)


def _load(path: Path) -> list[Any]:
    try:
        value = json.loads(read_regular(path))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):  # also undecodable bytes
        raise InputError(f"{path}: is not JSON; copy or download it again") from None
    if not isinstance(value, list):
        raise InputError(f"{path}: is not a list of centroids as VerSe has it")
    return value


def _direction(path: Path, value: Any) -> str:
    letters = value if isinstance(value, list | str) else []
    code = "".join(letter for letter in letters if isinstance(letter, str)).upper()
    if code not in geometry.ALL_ORIENTATIONS or len(letters) > 3:
        raise InputError(
            f"{path}: direction {reprlib.repr(value)} must be three letters of R/L, A/P, S/I, e.g. "
            '["P", "I", "R"]'
        )
    return code
