"""Trained models, ready for whole scans: `load` makes a `Model`, which makes a `Segmentation`.

A run of slices or patches segments the spine. A run of cubes names vertebrae. The two together are
the pipeline of Saeed et al. 2023: the first run finds the spine, the second names the vertebrae in
it. The second run lies in the folder `vertebrae` of the first one, or the caller names it. A run of
cubes also works alone, unless its network was trained to see the mask of the spine. A third run may
outline each named vertebra in a cube of its own; it lies in the folder `outlines` of the first one,
or the caller names it.

`export` writes runs into one file (`training.model_file`), which stands for them everywhere. The
packaged models are such files.
"""

import csv
import hashlib
import io
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

from spinejax import (
    __version__,
    geometry,
    labels,
    losses,
    machine,
    morphometry,
    numerics,
    plausible,
    records,
    schema,
)
from spinejax.data import normalise, preprocess
from spinejax.errors import InputError, check_choice, shown
from spinejax.files import (
    StrPath,
    check_output,
    expanded,
    is_ours,
    remove,
    write_json,
    write_text,
)
from spinejax.inference import cascade, ensemble, masks, planes, windows2d
from spinejax.inference.outlines import OutlineSettings, make_outliner, outline
from spinejax.inference.sequence import Calibration, Record
from spinejax.inference.windows3d import make_cube_predictor
from spinejax.io import centroid_json, dicom_seg, grids, nifti, scanfile, slicer, stl, voxels
from spinejax.progress import Progress, silent
from spinejax.schema import CUBES, OUTLINES, SECOND, SLICES, THIRD
from spinejax.tasks import MaskTask, NameTask, OutlineTask, Task, build_task
from spinejax.training import model_file, parallel, program_file
from spinejax.training.checkpoint import FOLDERS, read_networks
from spinejax.training.model_file import SPINE, Network
from spinejax.volume import PLANES, Volume, check_neighbours

logger = logging.getLogger("spinejax")

OTHER_SCALE = 1.5
"""A scan causes a warning if its pixels are this many times larger or smaller than in training."""

Scan = StrPath | Volume | nifti.SpatialImage | np.ndarray


@dataclass(frozen=True, eq=False)
class Vertebra:
    """A vertebra that was found and written.

    Attributes:
        name: "C1" to "C7", "T1" to "T13", "L1" to "L6".
        id: its number in the labels, a VerSe id.
        centroid: (3,) voxel index of the vertebral body's centre, in the axes of `labels`.
        centroid_mm: (3,) the same point in mm, in NIfTI's RAS+ world.
        volume_ml: volume of its voxels.
        probability: that the name is right, see `inference.sequence`.
        margin: log probability of the best sequence of names minus that of the best one in which
            this vertebra has another name.
        cut: whether an end of the scan cuts it.
    """

    name: str
    id: int
    centroid: np.ndarray
    centroid_mm: np.ndarray
    volume_ml: float
    probability: float
    margin: float
    cut: bool


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The spine or the vertebrae that a `Model` found in a scan.

    Attributes:
        mask: (x, y, z) uint8 on the grid of `scan.array`: VerSe ids if `named`, else 0 and 1.
        scan: the scan.
        name: what the scan is called.
        named: whether the labels are VerSe ids.
        centroids: VerSe id -> (3,) voxel index in `mask` of the vertebral body's centre.
        record: the decisions of the decoder that names vertebrae; None where it found none.
        model: the digest of the model.
        seconds: that finding it took, without reading and writing files.
        warnings: what is doubtful about the scan or the result, without paths.
    """

    mask: np.ndarray
    scan: Volume
    name: str
    named: bool = False
    centroids: dict[int, np.ndarray] = field(default_factory=dict)
    record: Record | None = None
    model: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Segmentation of {self.name}: {self.summary()}>"

    @property
    def labels(self) -> np.ndarray:
        """The labels in the order of the scan's file or of the array that was given, (x, y, z)."""
        return self.scan.to_native(self.mask)

    @property
    def vertebrae(self) -> tuple[Vertebra, ...]:
        """The vertebrae in `labels`, from head to foot; none if they are not named."""
        if self.record is None:
            return ()
        counts = np.zeros(labels.MAX_ID + 1, np.int64)
        for part in self.mask:  # slice by slice, because bincount copies its input to 8 bytes each
            counts += np.bincount(part.ravel(order="K"), minlength=labels.MAX_ID + 1)
        return tuple(
            Vertebra(
                name=labels.name(verse_id),
                id=verse_id,
                centroid=self.scan.native_index(self.centroids[verse_id]),
                centroid_mm=geometry.voxel_to_world(self.scan.affine, self.centroids[verse_id]),
                volume_ml=float(counts[verse_id]) * self.scan.voxel_ml,
                probability=probability,
                margin=margin,
                cut=verse_id in self.record.cut,
            )
            for verse_id, probability, margin in zip(
                self.record.labels, self.record.probabilities, self.record.margins, strict=True
            )
            if verse_id in self.centroids
        )

    @cached_property
    def measures(self) -> dict[int, morphometry.Morphometry]:
        """VerSe id -> heights, HU, angles and other measures of each vertebra in `labels`."""
        if self.record is None:
            return {}
        return morphometry.measure(self.mask, self.scan, self.centroids, cut=self.record.cut)

    @property
    def cobb_angles(self) -> dict[str, morphometry.CobbAngle]:
        """The Cobb angles of the spine, see `morphometry.cobb_angles`."""
        return morphometry.cobb_angles(self.measures)

    @property
    def volume_ml(self) -> float:
        """Volume of all labels."""
        return np.count_nonzero(self.mask) * self.scan.voxel_ml

    def summary(self) -> str:
        """Return what was found in one line.

        For example "L1-L5 written; T11, T12 cut by the scan's edge and left out", or "L1-L3
        written; numbering uncertain: L1-L3 (0.55) or L2-L4 (0.40)", with probabilities, or for
        labels without names "63 ml of spine written".
        """
        if not self.named:
            ml = self.volume_ml
            if not ml:
                return "no spine found, the labels are empty"
            return (
                f"{ml:.0f} ml of spine written" if ml >= 1 else f"only {ml:.1g} ml of spine written"
            )
        record = self.record
        if record is None or not record.labels:
            return "no vertebra found, the labels are empty"
        written = [i for i in record.labels if i not in record.dropped]
        ends = dict.fromkeys(labels.name(written[i]) for i in (0, -1)) if written else ["nothing"]
        parts = [f"{'-'.join(ends)} written"]
        kept = [i for i in record.cut if i not in record.dropped]
        if kept:
            parts.append(f"{_names(kept)} cut by the scan's edge")
        if record.dropped:
            parts.append(f"{_names(record.dropped)} cut by the scan's edge and left out")
        if record.skipped:
            parts.append(f"{_names(record.skipped)} not found")
        if record.anomalies:
            found = [f"{name} ({record.variants[name]:.2f})" for name in record.anomalies]
            parts.append(f"variant of the spine: {', '.join(found)}")
        if record.unnamed == 1:
            parts.append("1 piece left out, which is no vertebra")
        elif record.unnamed:
            parts.append(f"{record.unnamed} pieces left out, which are no vertebrae")
        if not record.certain:
            likely = tuple(one for one in record.namings[:3] if one.probability >= 0.05)
            likely = likely if len(likely) > 1 else record.namings[:2]  # never only what is written
            parts.append(f"numbering uncertain: {' or '.join(map(str, likely))}")
        return "; ".join(parts)

    def _record(self) -> dict[str, Any]:
        """Return the content of the record's file."""
        found: dict[str, Any] = {
            "case": self.name,
            "spinejax": __version__,
            "model": self.model,
            "input": _input_digest(self.scan),
            "versions": {
                "python": platform.python_version(),
                "jax": jax.__version__,
                "numpy": np.__version__,
            },
            "seconds": round(self.seconds, 1),
            "peak_gb": round(machine.peak_bytes() / 1e9, 1),
            "hardware": parallel.hardware(),
            "summary": self.summary(),
            "warnings": list(self.warnings),
            "note": _NOTE,
        }
        record = self.record
        if record is None:
            return found | {"vertebrae": [], "cobb_angles": {}}
        numbers = zip(
            record.labels, record.probabilities, record.margins, record.others, strict=True
        )
        return found | {
            "calibrated": record.calibrated,
            "certain": record.certain,
            "vertebrae": [
                {
                    "name": labels.name(verse_id),
                    "id": verse_id,
                    "probability": round(probability, 4),
                    "margin": round(margin, 4) if math.isfinite(margin) else None,
                    "next_name": labels.name(other) if other else None,
                    "cut": verse_id in record.cut,
                    "written": verse_id in self.centroids,
                    **self._measures(verse_id),
                }
                for verse_id, probability, margin, other in numbers
            ],
            "cobb_angles": {
                name: {
                    "cobb_deg": _rounded(angle.cobb_deg, 1),
                    "upper": angle.upper,
                    "lower": angle.lower,
                    "not_measured": angle.not_measured or None,
                }
                for name, angle in self.cobb_angles.items()
            },
            "namings": [
                {
                    "names": [labels.name(i) for i in one.labels],
                    "probability": round(one.probability, 4),
                }
                for one in record.namings
            ],
            "variants": {name: round(value, 4) for name, value in record.variants.items()},
            "not_found": [labels.name(i) for i in record.skipped],
            "no_vertebra": record.unnamed,
            "reversed": record.reversed,
        }

    def _measures(self, verse_id: int) -> dict[str, Any]:
        """Return the place and the measures of a vertebra for the record's file."""
        one = self.measures.get(verse_id)
        if one is None:
            why = "left out of the labels"
            one = morphometry.Morphometry(not_measured=dict.fromkeys(morphometry.NUMBERS, why))
        at = self.centroids.get(verse_id)
        world = None if at is None else geometry.voxel_to_world(self.scan.affine, at)
        return {
            "centre_mm": _point(world),
            "centre_voxel": _point(None if at is None else self.scan.native_index(at)),
            **{
                name: _rounded(getattr(one, name), _DIGITS.get(name.rpartition("_")[2], 3))
                for name in morphometry.NUMBERS
            },
            "not_measured": one.not_measured,
        }

    def save(
        self,
        folder: StrPath,
        name: str | None = None,
        *,
        reference: np.ndarray | None = None,
        picture: bool = True,
        page: bool = True,
        formats: Collection[str] = (),
        overwrite: bool = False,
    ) -> tuple[Path, ...]:
        """Write labels, centroids, record, page and picture; each file appears whole or not at all.

        Earlier results of this program are replaced, other files are not: a mask that was corrected
        by hand stays.

        Args:
            folder: where the files go; made if missing.
            name: the files are called `<name>_seg.nii.gz` and, if vertebrae are named,
                `<name>_ctd.json` (VerSe), `<name>_ctd.mrk.json` (3D Slicer) and `<name>.json` (the
                record), `<name>.html` (the page) and `<name>_quicklook.png`. None takes the name of
                the scan.
            reference: (x, y, z) true labels on the grid of `mask`, to be drawn in the picture.
            picture: whether to draw it.
            page: whether to write the page with the viewer, see `reports.viewer`.
            formats: further formats of the labels, of `FORMATS`: "seg.nrrd" writes
                `<name>.seg.nrrd`, a segmentation for 3D Slicer with names and colours; "seg.dcm"
                writes `<name>.seg.dcm`, a DICOM segmentation, which holds the patient's name and
                needs a scan that was read from DICOM (`io.dicom_seg`); "stl" writes the surface of
                each label into `<name>_meshes/`, in mm (`io.stl`). The last two write nothing where
                nothing was found.
            overwrite: replace other files, too, except the scan.

        Returns:
            The paths of the files.

        Raises:
            InputError: a file may not be replaced, `formats` asks for one that the scan does not
                allow or whose package is missing (nothing is written then), `name` is a path, the
                folder cannot be written, or the disk is full.
        """
        from spinejax.reports import figures, viewer  # only pictures and pages need them

        name = self.name if name is None else name
        check_formats("formats", formats)
        names = {1: "spine"}
        if self.named:
            names = {i: labels.NAMES[i] for i in labels.from_head_to_foot(self.mask)}
        present = names if self.mask.any() else {}
        known = partial(
            outputs, folder, name, named=self.named, picture=picture, page=page, formats=formats
        )
        targets = known(levels=present.values())
        source = () if self.scan.disk is None else [self.scan.disk.path]
        for path, kind in targets.items():
            check_output(path, kind, inputs=source, overwrite=overwrite)
        if _DICOM in formats:
            dicom_seg.check_scan(self.scan)
            if not present:
                logger.warning("%s: nothing was found, so no DICOM segmentation is written", name)
        paths = tuple(targets)
        nifti.write_labels(paths[0], self.labels, self.scan, names=names, overwrite=overwrite)
        record = self._record() if self.named or page else {}
        if self.named:
            centroid_json.write_centroids(paths[1], self.centroids, self.scan, overwrite=overwrite)
            centroid_json.write_markups(paths[2], self.centroids, self.scan, overwrite=overwrite)
            write_json(paths[3], record, "record", overwrite=overwrite)
        if page:
            text = viewer.page(
                self.scan,
                self.mask,
                record,
                self.centroids,
                title=name,
                summary=self.summary(),
                named=self.named,
            )
            write_text(expanded(folder) / f"{name}.html", text, "page", overwrite=overwrite)
        for path in paths:
            if path.name.endswith(slicer.ENDING):
                slicer.write_segmentation(path, self.labels, self.scan, names, overwrite=overwrite)
        if present and _DICOM in formats:
            segmented = expanded(folder) / f"{name}{FORMATS[_DICOM]}"
            dicom_seg.write_segmentation(
                segmented, self.labels, self.scan, names, model=self.model, overwrite=overwrite
            )
        if _MESHES in formats:
            meshes = {
                i: expanded(folder) / f"{name}{_mesh_ending(level)}" for i, level in present.items()
            }
            stl.write_meshes(meshes, self.labels, self.scan.native_affine, overwrite=overwrite)
        for path, kind in known().items():  # what an earlier result had and this one has not
            if path not in targets:
                remove(path, kind)
        if picture:
            figures.quicklook(
                self.scan,
                self.mask,
                reference,
                paths[-1],
                title=name,
                centroids=self.centroids,
                overwrite=overwrite,
            )
        return paths


_DICOM, _MESHES = dicom_seg.ENDING[1:], "stl"
FORMATS = {slicer.ENDING[1:]: slicer.ENDING, _DICOM: dicom_seg.ENDING, _MESHES: "_meshes"}
"""Format of labels beside NIfTI -> the ending of its files, or of the folder with them."""

_PACKAGES = {_DICOM: "highdicom", _MESHES: "scikit-image"}


def check_formats(field: str, formats: Collection[str]) -> None:
    """Check that labels can be written in formats.

    Args:
        field: name of the flag or argument, for messages.
        formats: the words for it.

    Raises:
        InputError: a format is unknown, or its package is not installed.
    """
    for one in formats:
        check_choice(field, one, FORMATS)
        package = _PACKAGES.get(one)
        if package is None:
            continue
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            raise InputError(
                f"{field}={one}: the package {package} is not installed; install it with "
                f"`pip install {package}`, or leave {one} out"
            ) from None


def outputs(
    folder: StrPath,
    name: str,
    *,
    named: bool,
    picture: bool = True,
    page: bool = True,
    formats: Collection[str] = (),
    levels: Collection[str] | None = None,
) -> dict[Path, str]:
    """Return the files that `Segmentation.save` writes, in its order, with their kinds.

    Args:
        folder: as for `Segmentation.save`.
        name: as for `Segmentation.save`.
        named: whether labels are VerSe ids.
        picture: as for `Segmentation.save`.
        page: as for `Segmentation.save`.
        formats: as for `Segmentation.save`.
        levels: names of the labels; None takes all that there may be.

    Raises:
        InputError: `name` is a path, which might lead out of the folder, or empty.
    """
    if not isinstance(name, str) or not name or "/" in name or os.sep in name or "\0" in name:
        raise InputError(f"name = {shown(name)} cannot name files; give a word without slashes")
    found = {"_seg.nii.gz": "labels"}
    if named:
        found |= {"_ctd.json": "centroids", "_ctd.mrk.json": "centroids", ".json": "record"}
    if page:
        found[".html"] = "page"
    if levels is None:
        levels = [*labels.NAMES.values()] if named else ["spine"]
    for one in formats:
        if one == _MESHES:
            found |= {_mesh_ending(level): "mesh" for level in levels}
        elif one != _DICOM or levels:
            found[FORMATS[one]] = "labels"
    if picture:
        found["_quicklook.png"] = "picture"
    return {expanded(folder) / f"{name}{ending}": kind for ending, kind in found.items()}


def _mesh_ending(level: str) -> str:
    return f"{FORMATS[_MESHES]}/{level}.stl"


TABLE = "vertebrae.csv"
"""The table of a folder of results."""

_COLUMNS = (
    "case", "name", "id", "probability", "margin", "next_name", "cut", "written",
    "centre_x_mm", "centre_y_mm", "centre_z_mm", *morphometry.NUMBERS,
)  # fmt: skip


def write_table(folder: StrPath, *, overwrite: bool = False) -> Path:
    """Write `vertebrae.csv`: a row a vertebra, of all records that `Segmentation.save` has written.

    Records that were changed since are left out.

    Args:
        folder: of the records.
        overwrite: replace a file that this program did not write, too.

    Returns:
        The path of the table.

    Raises:
        InputError: the table may not be replaced, or the folder cannot be written.
    """
    path = expanded(folder) / TABLE
    check_output(path, "table", overwrite=overwrite)
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for file in sorted(path.parent.glob("*.json")):
        if not is_ours(file, "record"):
            continue
        found = records.read(file, {"case": str, "vertebrae": [dict]}, "predict its scan again")
        for one in found["vertebrae"]:
            centre = one.get("centre_mm") or [None] * 3
            axes = {f"centre_{axis}_mm": at for axis, at in zip("xyz", centre, strict=True)}
            writer.writerow({"case": found["case"], **one, **axes})
    write_text(path, text.getvalue(), "table", overwrite=overwrite)
    return path


_NOTE = (
    "Heights, ratios, grades and angles are measurements by a program. They are no diagnosis, and "
    "a person has to check them."
)
_DIGITS = {"ml": 2, "mm": 2, "mean": 1, "median": 1, "deg": 1}
"""Decimal places in the record, by the last word of a measure's name."""


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _point(at: np.ndarray | None) -> list[float] | None:
    return None if at is None else [round(float(one), 2) for one in at]


def _input_digest(scan: Volume) -> str:
    """Return the digest of a scan's HU, shape and affine.

    The HU count as float32 and the affine in thousandths of a millimetre, so that a scan has the
    same digest in every format, number type and orientation.
    """
    affine = np.round(scan.affine, 3) + 0.0  # + 0.0 makes -0 to 0
    found = hashlib.sha256(f"{scan.shape}".encode() + affine.tobytes())
    for part in scan.array.T:
        found.update((np.ascontiguousarray(part, "<f4") + np.float32(0)).data)  # -0 is 0
    return found.hexdigest()


def _names(ids: Sequence[int]) -> str:
    return ", ".join(labels.name(i) for i in ids)


@dataclass(frozen=True, eq=False)
class Model:
    """A trained network, the average of several, or a pipeline of two; `load` makes it.

    Attributes:
        config: the config of the (first) run.
        variables: the variables of its network.
        digest: of all configs and parameters. Models with equal digests find the same in a scan.
        named: whether it names vertebrae.
    """

    config: ConfigDict
    variables: dict[str, Any]
    digest: str
    named: bool
    _segment: Callable[[Volume, str, Progress], Segmentation]
    _bytes: Callable[[Volume], int]

    @numerics.fixed()
    def segment(
        self,
        scan: Scan,
        *,
        affine: np.ndarray | None = None,
        name: str = "",
        progress: Progress = silent,
    ) -> Segmentation:
        """Find the spine or the vertebrae in a scan.

        Args:
            scan: a CT in HU, in any orientation: the path of a file, a `Volume`, a nibabel image,
                or an array (x, y, z) with its `affine`.
            affine: (4, 4) of an array, from voxel indices to mm in NIfTI's RAS+ world.
            name: what to call the scan; by default its file's name.
            progress: shows the progress in slices or cubes.

        Returns:
            Labels on the scan's own grid, and the vertebrae.

        Raises:
            InputError: the scan cannot be read, cannot be a CT (`plausible.check`), is smaller than
                the network's stride, or needs more memory than is free.
        """
        began = time.monotonic()
        volume = as_volume(scan, affine)
        if not name:
            name = "scan" if volume.disk is None else scanfile.case_id(volume.disk.path)
        where = _where(volume, name)
        doubts = plausible.check(volume, where)
        for doubt in doubts:
            logger.warning("%s: %s", where, doubt)
        machine.require(self.estimate_bytes(volume), where)
        upright = grids.straight(volume)
        found = replace(self._segment(upright, name, progress), model=self.digest)
        found = found if upright is volume else _on_grid_of(volume, found)
        seconds = time.monotonic() - began
        return replace(found, seconds=seconds, warnings=(*doubts, *found.warnings))

    def estimate_bytes(self, scan: Volume) -> int:
        """Estimate the bytes that `segment` needs for a scan, beside scan and network."""
        grid = geometry.straight_grid(scan.shape, scan.affine)
        if grid is None:
            return self._bytes(scan)
        upright = Volume(np.broadcast_to(scan.array.flat[:1], grid[0]), grid[1])
        return self._bytes(upright) + upright.array.nbytes


def _on_grid_of(scan: Volume, found: Segmentation) -> Segmentation:
    """Return what was found in a straightened scan on the scan's own grid."""
    affine = found.scan.affine
    mask = geometry.resample(found.mask, affine, scan.shape, scan.affine, order=0, fill=0)
    centroids = {
        label: geometry.world_to_voxel(scan.affine, geometry.voxel_to_world(affine, point))
        for label, point in found.centroids.items()
    }
    return replace(found, mask=mask, scan=scan, centroids=centroids)


def as_volume(scan: Scan, affine: np.ndarray | None = None) -> Volume:
    """Return a scan as a `Volume`; see `Model.segment` for what is accepted.

    Raises:
        InputError: the scan cannot be read, an array has no usable affine, or a `Volume` does not
            hold finite numbers (x, y, z).
    """
    if isinstance(scan, np.ndarray):
        if affine is None:
            raise InputError("an array has no voxel size and no directions; give affine=, too")
        return voxels.from_array(scan, affine)
    if affine is not None:
        raise InputError("affine= belongs to an array; a file or an image has its own")
    if isinstance(scan, str | os.PathLike):
        return scanfile.read_volume(expanded(scan))
    if not isinstance(scan, Volume):
        return nifti.from_image(scan)
    array = scan.array
    if array.ndim != 3 or not array.size or array.dtype.kind not in "iuf":
        raise InputError(
            f"a Volume of {array.dtype} and shape {array.shape} is no scan; give numbers (x, y, z)"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            "the Volume has voxels that are NaN or infinite; give its array and affine=, which "
            "counts them as air"
        )
    return scan


def sources(models: StrPath | Sequence[StrPath]) -> list[Path]:
    """Return where models are, each the file of a model or the folder of a run.

    Args:
        models: see `load`.

    Raises:
        InputError: there is none, or it cannot be a path.
    """
    several = [models] if isinstance(models, str | os.PathLike) else models
    if not isinstance(several, list | tuple) or not several:
        raise InputError(
            f"{shown(models)} is no run; give the folder of a run, a file, or a list of them"
        )
    for one in several:
        if not isinstance(one, str | os.PathLike):
            raise InputError(f"{shown(one)} is no path; give the folder of a run")
    return [model_file.located(one) for one in several]


def _networks(
    model: StrPath | Sequence[StrPath],
    vertebrae: StrPath | Sequence[StrPath] | None,
    outlines: StrPath | Sequence[StrPath] | None,
    checkpoint: str,
) -> tuple[list[Network], list[Network], list[Network]]:
    """Return the networks that are averaged, that name vertebrae, and that outline these.

    Raises:
        InputError: a model cannot be used, or the networks do not fit together.
    """
    check_choice("checkpoint", checkpoint, FOLDERS)
    places = sources(model)
    given = {SECOND: vertebrae, THIRD: outlines}
    wanted = [name for name, those in given.items() if those is None]
    found = [read_networks(place, checkpoint, further=wanted) for place in places]
    roles = [SPINE if SPINE in one else min(one, key=model_file.ROLES.index) for one in found]
    first = [network for one, name in zip(found, roles, strict=True) for network in one[name]]
    _check_alike(first)
    if first[0].config.task == OUTLINES:
        raise InputError(
            f"{places[0]} outlines vertebrae that other models have found and named; give those, "
            f"and --outlines={places[0]}"
        )
    alone = first[0].config.task == CUBES
    if alone and vertebrae is not None:
        raise InputError(
            f"{places[0]} names vertebrae and --vertebrae={vertebrae} comes after it; exchange "
            "the two: the run that segments the spine comes first"
        )
    if alone and first[0].config.data.cube.spine_prior == "channel":
        raise InputError(
            f"{places[0]}: this network needs the mask of an earlier one "
            "(data.cube.spine_prior=channel); give the run that segments the spine, and "
            f"--vertebrae={places[0]}"
        )
    inside = {
        name: [] if alone and name == SECOND else _inside(name, places, found) for name in wanted
    }
    second, third = (
        inside[name] if those is None else _given(name, sources(those), checkpoint)
        for name, those in given.items()
    )
    if third and not (alone or second):
        raise InputError(
            f"{third[0].source} outlines named vertebrae, and {places[0]} names none; give a model "
            "with --vertebrae, too"
        )
    return first, second, third


def _given(name: str, places: Sequence[Path], checkpoint: str) -> list[Network]:
    """Return the networks of a role from the models that the flag of its name gives."""
    networks = []
    for place in places:
        one = read_networks(place, checkpoint, further=())
        if name not in one:
            raise InputError(
                f"--{name}={place} is a model of task={next(iter(one.values()))[0].config.task}; "
                f"give one that {model_file.DOES[name]}"
            )
        networks += one[name]
    _check_alike(networks)
    return networks


def _inside(
    name: str, places: Sequence[Path], found: Sequence[Mapping[str, list[Network]]]
) -> list[Network]:
    """Return the networks of a role that the first models bring along; all of them or none."""
    having = [place for place, one in zip(places, found, strict=True) if name in one]
    if having and len(having) < len(places):
        number = {SECOND: "second", THIRD: "third"}[name]
        raise InputError(
            f"{len(having)} of {len(places)} models have a {number} network (the first: "
            f"{having[0]}); give those to use as --{name}"
        )
    networks = [network for one in found for network in one.get(name, [])]
    _check_alike(networks)
    return networks


def _calibrated(
    first: list[Network],
    second: list[Network],
    third: list[Network],
    file: StrPath,
    *,
    flip: bool = False,
) -> tuple[list[Network], list[Network], dict[str, Any]]:
    """Return the first two of `_networks` with the numbers of a calibration's file, and it."""
    path, remedy = expanded(file), "give the calibration.json that `spinejax calibrate` wrote"
    shape = {"name_weight": float, "level_error": float, "model": str}
    found = records.read(path, shape, remedy)
    if first[0].config.task != CUBES and not second:
        raise InputError(f"{path}: the model names no vertebrae; leave --calibration out")
    naming = [*first, *second]  # the third network changes no name
    if found["model"] not in (_digest([*naming, *more], flip=flip) for more in ([], third)):
        logger.warning("%s was made with another model; its probabilities may be wrong", path)
    changed = []
    for network in second or first:
        config = network.config.copy_and_resolve_references()
        for name in ("name_weight", "level_error"):
            schema.check_value(f"predict.{name}", found[name])
            config.predict[name] = float(found[name])
        changed.append(replace(network, config=config))
    return (first, changed, found) if second else (changed, [], found)


def export(
    output: StrPath,
    model: StrPath | Sequence[StrPath],
    *,
    vertebrae: StrPath | Sequence[StrPath] | None = None,
    outlines: StrPath | Sequence[StrPath] | None = None,
    checkpoint: str = "best",
    half: Collection[str] = (),
    card: Mapping[str, Any] | None = None,
    calibration: StrPath | None = None,
    overwrite: bool = False,
) -> Path:
    """Write trained runs into one file, which `load` reads like the runs.

    Fields of their configs that name folders are left empty: `data.root`, `data.cache_dir`,
    `train.init_from`.

    Args:
        output: the file; its name ends in ".spinejax" or ".safetensors". The two have one form.
        model: see `load`.
        vertebrae: see `load`.
        outlines: see `load`.
        checkpoint: see `load`.
        half: some of "spine", "vertebrae" and "outlines": networks whose parameters are stored as
            float16, in half the bytes.
        card: what to say about the model: data, scores, limits; plain JSON.
        calibration: see `load`; its tables go into the card, under "calibration".
        overwrite: replace a file that this program did not write, too.

    Returns:
        The path of the file.

    Raises:
        InputError: as `load`, or the file cannot be written.
    """
    path = expanded(output)
    if path.suffix not in model_file.ENDINGS:
        raise InputError(
            f"{path}: the name of a model's file ends in {' or '.join(model_file.ENDINGS)}"
        )
    check_output(path, "model", overwrite=overwrite)  # before any reading
    first, second, third = _networks(model, vertebrae, outlines, checkpoint)
    card = dict(card or {})
    if calibration is not None:
        first, second, found = _calibrated(first, second, third, calibration)
        # Failures name files of this machine.
        card["calibration"] = {name: value for name, value in found.items() if name != "failed"}
    by_role = _by_role(first, second, third)
    for name in half:
        check_choice("half", name, by_role)
    model_file.write(path, by_role, card=card, half=half, overwrite=overwrite)
    return path


@numerics.fixed()
def export_programs(
    folder: StrPath,
    model: StrPath | Sequence[StrPath],
    *,
    vertebrae: StrPath | Sequence[StrPath] | None = None,
    outlines: StrPath | Sequence[StrPath] | None = None,
    checkpoint: str = "best",
    card: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the networks of trained runs as StableHLO programs, which run with jax and flatbuffers.

    Args:
        folder: gets `spine.stablehlo`, `vertebrae.stablehlo` and `outlines.stablehlo` as far as the
            model has such networks, and beside each a `.json` that says what it takes and gives,
            and a `.mlirbc` for other runtimes (docs/programs.md).
        model: see `load`.
        vertebrae: see `load`.
        outlines: see `load`.
        checkpoint: see `load`.
        card: what to say about the model; plain JSON.
        overwrite: replace files that this program did not write, too.

    Returns:
        The paths of the `.json` files.

    Raises:
        InputError: as `load`, a file cannot be written, or a network has no windows.
    """
    path = expanded(folder)
    if path.suffix in model_file.ENDINGS:
        raise InputError(f"{path}: programs are several files; give the name of a folder")
    networks = _by_role(*_networks(model, vertebrae, outlines, checkpoint))
    return program_file.write(path, networks, card=card or {}, overwrite=overwrite)


def _by_role(
    first: list[Network], second: list[Network], third: list[Network]
) -> dict[str, list[Network]]:
    """Return the result of `_networks` by role, without roles that have none."""
    found = {model_file.role(first[0].config): first}
    return found | {name: those for name, those in ((SECOND, second), (THIRD, third)) if those}


@numerics.fixed()
def load(
    model: StrPath | Sequence[StrPath] = model_file.PACKAGED[0],
    *,
    vertebrae: StrPath | Sequence[StrPath] | None = None,
    outlines: StrPath | Sequence[StrPath] | None = None,
    checkpoint: str = "best",
    flip: bool = False,
    calibration: StrPath | None = None,
) -> Model:
    """Load a trained model for whole scans.

    Args:
        model: "phantom", the model in the package; the file of a model, `NAME.spinejax`; or the
            folder of a run. A list of several is averaged: seeds, folds, networks that see the same
            preprocessed scans. The folder of a run that is called phantom is "./phantom".
        vertebrae: a model or several that name vertebrae. None takes the second network of `model`,
            if there is one.
        outlines: a model or several that outline the named vertebrae anew. None takes the third
            network of `model`, if there is one.
        checkpoint: of runs, "best" or "latest".
        flip: average over the scan and its mirror image, left and right exchanged. Networks of
            sagittal slices cannot do this.
        calibration: the file calibration.json of `spinejax calibrate`, made with this model; None
            takes the numbers of the model.

    Raises:
        InputError: there is no such model, it is damaged, `checkpoint` is unknown, or the networks
            do not fit together; the calibration is damaged, or the model names no vertebrae.
    """
    first, second, third = _networks(model, vertebrae, outlines, checkpoint)
    if calibration is not None:
        first, second, _ = _calibrated(first, second, third, calibration, flip=flip)
    config = first[0].config
    find: _Find | None = None
    memory: Callable[[Volume], int]
    name: _Name | None = None
    if config.task == CUBES:
        name, cubes = _namer(first, flip=flip)
        memory = partial(cascade.estimate_bytes, settings=cubes, classes=labels.NUM_CLASSES)
    else:
        if flip and not second and {run.config.data.plane for run in first} == {"sagittal"}:
            raise InputError(
                f"--flip: {first[0].source} sees sagittal slices, which have no left and right "
                "side; leave --flip out"
            )
        find, memory = _masker(first, flip=flip)
        if second:
            name, _ = _namer(second, flip=flip)
    draw = _outliner(third, flip=flip) if third else None

    def segment(volume: Volume, title: str, progress: Progress) -> Segmentation:
        spine, notes = find(volume, title, progress) if find else (None, ())
        if name:
            found = name(volume, spine, title, progress)
            found = replace(found, warnings=(*notes, *found.warnings))
            return draw(found, progress) if draw else found
        # Then there is a mask.
        return Segmentation(spine, volume, title, warnings=notes)  # type: ignore[arg-type]

    digest = _digest([*first, *second, *third], flip=flip)
    return Model(config, first[0].variables, digest, name is not None, segment, memory)


def _digest(runs: Sequence[Network], *, flip: bool) -> str:
    found = hashlib.sha256(f"{flip}".encode())
    for run in runs:
        found.update(json.dumps(schema.plain(run.config), sort_keys=True).encode())
        for leaf in jax.tree.leaves(run.variables):
            found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


_ALIKE = (
    "task", "data.preprocess", "data.plane", "data.size", "data.neighbours", "data.cube.size",
    "data.cube.spine_prior", "data.cube.shift_mm", "data.labels",
)  # fmt: skip
"""Fields in which runs that are averaged must agree: they see the same preprocessed scans."""
_PLANE = "data.plane"
_OF_PLANES = (_PLANE, "data.size", "data.neighbours")
"""Those that may differ between runs of slices of two planes (`inference.planes`)."""


def _check_alike(runs: Sequence[Network]) -> None:
    if not runs:
        return
    first = schema.flatten(schema.plain(runs[0].config))
    for run in runs[1:]:
        other = schema.flatten(schema.plain(run.config))
        for key in sorted(first | other):
            if key in _OF_PLANES and first["task"] == SLICES and first[_PLANE] != other[_PLANE]:
                continue
            if key.startswith(_ALIKE) and first.get(key) != other.get(key):
                raise InputError(
                    f"{run.source} cannot be averaged with {runs[0].source}: {key} is "
                    f"{other.get(key)!r} there and {first.get(key)!r} here; give runs that agree "
                    "in it"
                )
    if len({_gives_offsets(run.config) for run in runs}) > 1:
        raise InputError(
            f"{runs[0].source} and others cannot be averaged: only some were trained with "
            "loss.offset_weight; give runs that agree in it"
        )


def _gives_offsets(config: ConfigDict) -> bool:
    return config.loss.get(losses.OFFSET_WEIGHT, 0.0) > 0


def _mode(runs: Sequence[Network]) -> str:
    """Return an intensity mode of the runs, one that needs statistics if there is any."""
    modes = [run.config.data.normalise for run in runs]
    return next((mode for mode in modes if mode in normalise.NEED_STATS), modes[0])


def scan_settings(config: ConfigDict, task: Task) -> masks.ScanSettings:
    """Return how a run of slices or patches predicts a scan."""
    how = config.predict
    rows, columns, _ = task.input_shape
    return masks.ScanSettings(
        preprocess=preprocess.from_config(config.data),
        size=(rows, columns),
        normalise=config.data.normalise,
        threshold=how.threshold,
        opening_mm=how.opening_mm,
        min_component_ml=how.min_component_ml,
        fill_holes=how.fill_holes,
        drop_islands=how.drop_islands,
        neighbours=task.neighbours,
    )


def cube_settings(config: ConfigDict, task: Task, batch_size: int) -> cascade.CubeSettings:
    """Return how a run of cubes names the vertebrae of a scan, `batch_size` windows in a call."""
    how = config.predict
    x, y, z, _ = task.input_shape
    return cascade.CubeSettings(
        preprocess=preprocess.from_config(config.data),
        normalise=config.data.normalise,
        window=(x, y, z),
        overlap=how.overlap,
        batch_size=batch_size,
        shifts=how.shifts,
        prior=config.data.cube.spine_prior,
        offsets=_gives_offsets(config),
        margin_mm=how.margin_mm,
        anomalies=how.anomalies,
        calibration=Calibration(how.name_weight, how.level_error),
        drop_cut=how.drop_cut,
    )


_Kind = TypeVar("_Kind", bound=Task)


def _task(run: Network, kind: type[_Kind]) -> _Kind:
    """Return the task of a network, of the kind that its role has."""
    task = build_task(run.config)
    if not isinstance(task, kind):
        raise ValueError(f"{run.source}: task={run.config.task} is no {kind.__name__}")
    return task


_Find = Callable[[Volume, str, Progress], tuple[np.ndarray, tuple[str, ...]]]
_Name = Callable[[Volume, np.ndarray | None, str, Progress], Segmentation]


def _masker(runs: Sequence[Network], *, flip: bool) -> tuple[_Find, Callable[[Volume], int]]:
    """Return the function that segments the spine, and the one that estimates its memory."""
    networks, least_side, whole = [], 1, False
    for run in runs:
        task = _task(run, MaskTask)
        predict, plane = task.stack_predictor(run.variables), run.config.data.plane
        if flip and plane != "sagittal":
            predict = ensemble.mirrored_stack(predict)
        rows, columns, _ = task.input_shape
        overlap = run.config.predict.get("overlap", 0.0)  # patches have none
        networks.append(
            planes.PlaneNetwork(plane, (rows, columns), overlap, predict, task.neighbours)
        )
        least_side = max(least_side, task.least_side)
        whole = whole or task.whole
    config = runs[0].config
    scans = replace(
        scan_settings(config, build_task(config)),
        normalise=_mode(runs),
        neighbours=max(network.neighbours for network in networks),
    )
    search = config.predict.get("search") == "coarse"
    shared = search or whole or len({network.plane for network in networks}) > 1
    if shared:
        planes.check(scans)
    predict = ensemble.mean_stack([network.predict for network in networks])
    known = [run.pixels_mm for run in runs if run.pixels_mm is not None]
    pixels_mm = (min(mm[0] for mm in known), max(mm[1] for mm in known)) if known else None

    def find(volume: Volume, title: str, progress: Progress) -> tuple[np.ndarray, tuple[str, ...]]:
        notes: list[str] = []
        where = _where(volume, title)
        for network in networks:
            count = volume.shape[PLANES[network.plane]]
            check_neighbours(where, count, network.plane, network.neighbours)
        for plane in dict.fromkeys(network.plane for network in networks):
            grid = preprocess.slice_geometry(volume, replace(scans.preprocess, plane=plane))
            if min(grid.shape) < least_side:
                raise InputError(
                    f"{where}: its {plane} slices are {grid.shape[0]}x{grid.shape[1]} pixels, "
                    f"smaller than the network's stride of {least_side}; give a larger scan, or "
                    f"check the voxel size "
                    f"({' x '.join(f'{side:.3g}' for side in volume.spacing_mm)} mm)"
                )
            note = _other_scale(grid.spacing_mm, pixels_mm)
            if note is not None:
                logger.warning("%s: %s", where, note)
                notes.append(note)
        if shared:
            mask = planes.predict_scan(
                networks, volume, scans, search=search, title=title, progress=progress
            )
        else:
            with progress(title, grid.n_slices, "slice") as bar:
                mask = masks.predict_scan(predict, volume, scans, advance=bar.advance)
        return mask, tuple(dict.fromkeys(notes))

    if shared:
        held = windows2d.WHOLE_BYTES if whole else 0
        return find, partial(planes.estimate_bytes, settings=scans, network=held)
    return find, partial(masks.estimate_bytes, settings=scans)


def _namer(runs: Sequence[Network], *, flip: bool) -> tuple[_Name, cascade.CubeSettings]:
    """Return the function that names vertebrae, with or without a mask, and its settings."""
    config = runs[0].config
    members = []
    for run in runs:
        task = _task(run, NameTask)
        member, rows = make_cube_predictor(
            task.class_probability, run.variables, batch_size=config.predict.batch_size
        )
        members.append(member)
    cubes = replace(cube_settings(config, task, rows), normalise=_mode(runs))
    predict = ensemble.mean_cubes(members)
    if flip:
        predict = ensemble.mirrored_cubes(predict, offsets=cubes.offsets)

    def name(
        volume: Volume, spine: np.ndarray | None, title: str, progress: Progress
    ) -> Segmentation:
        used = cubes if spine is not None else replace(cubes, prior="none")
        with progress(title, cascade.count_windows(volume, spine, used), "cube") as bar:
            found = cascade.label_scan(predict, volume, spine, used, advance=bar.advance)
        notes: tuple[str, ...] = ()
        if found.record is not None and found.record.reversed:
            logger.warning("%s: %s", _where(volume, title), _REVERSED)
            notes = (_REVERSED,)
        return Segmentation(
            found.labels, volume, title, True, found.centroids, found.record, warnings=notes
        )

    return name, replace(cubes, prior="none")


def outline_settings(config: ConfigDict, task: Task, batch_size: int) -> OutlineSettings:
    """Return how a run outlines named vertebrae, `batch_size` cubes in a call."""
    x, y, z, _ = task.input_shape
    back, up = config.data.cube.shift_mm
    return OutlineSettings(
        preprocess=preprocess.from_config(config.data),
        normalise=config.data.normalise,
        size=(x, y, z),
        shift_mm=(back, up),
        batch_size=batch_size,
        threshold=config.predict.threshold,
    )


def _outliner(
    runs: Sequence[Network], *, flip: bool
) -> Callable[[Segmentation, Progress], Segmentation]:
    """Return the function that outlines the vertebrae of a segmentation anew."""
    config = runs[0].config
    members = []
    for run in runs:
        task = _task(run, OutlineTask)
        member, rows = make_outliner(
            task.probability, run.variables, batch_size=config.predict.batch_size
        )
        members.append(member)
    how = replace(outline_settings(config, task, rows), normalise=_mode(runs))
    predict = ensemble.mean_cubes(members)
    if flip:
        predict = ensemble.mirrored_cubes(predict)

    def draw(found: Segmentation, progress: Progress) -> Segmentation:
        with progress(found.name, len(found.centroids), "vertebra") as bar:
            mask, centroids = outline(
                predict, found.scan, found.mask, found.centroids, how, advance=bar.advance
            )
        return replace(found, mask=mask, centroids=centroids)

    return draw


def _where(volume: Volume, title: str) -> str:
    return title if volume.disk is None else str(volume.disk.path)


_REVERSED = (
    "the names would fit far better from foot to head; check the orientation in the header. The "
    "labels follow the header"
)


def _other_scale(
    pixels_mm: tuple[float, float], trained_mm: tuple[float, float] | None
) -> str | None:
    """Return a warning if the network's pixels differ much in size from those of training."""
    if trained_mm is None:
        return None
    low, high = trained_mm
    if min(pixels_mm) * OTHER_SCALE >= low and max(pixels_mm) <= high * OTHER_SCALE:
        return None
    seen = " x ".join(f"{side:.2f}" for side in pixels_mm)
    return (
        f"the network sees its slices in pixels of {seen} mm and was trained on pixels of "
        f"{low:.2f} to {high:.2f} mm, so the spine looks larger or smaller than in training; "
        "expect a poor result, or train with data.preprocess.mode=resample"
    )
