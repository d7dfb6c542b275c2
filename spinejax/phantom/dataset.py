"""Write phantoms as a data set in VerSe's layout: CT, masks, body centroids."""

import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import spinejax
from spinejax import geometry, numerics
from spinejax.errors import InputError, check_choice
from spinejax.files import expanded, write_json, write_text
from spinejax.io import centroid_json, nifti
from spinejax.phantom import subjects
from spinejax.phantom.body.column import centroids
from spinejax.phantom.person.anatomy import check_rates
from spinejax.phantom.scanner import acquisition, scan_plan, view
from spinejax.progress import Progress, silent
from spinejax.volume import Volume

_ATTEMPTS = 20  # at a field of view that shows a whole vertebra
DESCRIPTION = "dataset_description.json"
_README = """Synthetic spine CT written by spinejax {version} (`spinejax phantom --seed={seed}`).

No patient is shown here. The layout is that of VerSe (subject-based):
rawdata/sub-*/sub-*_ct.nii[.gz]                          CT in HU, of several data types
derivatives/sub-*/sub-*_seg-vert_msk.nii.gz              VerSe ids; vertebrae that the edge of the
                                                         scan cuts are not labelled
derivatives/sub-*/sub-*_seg-subreg_ctd.json              body centroids, voxel indices of the CT
"""


def case_name(index: int) -> str:
    """Name of a case by its number."""
    return f"sub-phantom{index:03d}"


def case_paths(out: Path, index: int) -> tuple[Path, Path, Path]:
    """Paths of CT (.nii if that exists, else .nii.gz), mask and centroids of a case."""
    name = case_name(index)
    derived = out / "derivatives" / name
    image = out / "rawdata" / name / f"{name}_ct.nii.gz"
    return (
        image.with_suffix("") if image.with_suffix("").is_file() else image,
        derived / f"{name}_seg-vert_msk.nii.gz",
        derived / f"{name}_seg-subreg_ctd.json",
    )


def write_dataset(
    out: str | os.PathLike[str],
    cases: int,
    seed: int,
    *,
    max_spacing_mm: float = 3.0,
    min_extent_mm: float = 116.0,
    max_extent_mm: float = 400.0,
    min_spacing_mm: float = 0.3,
    max_voxels: int = 2_000_000,
    rates: Mapping[str, float] | None = None,
    label_cut: bool = False,
    region: str = "any",
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress = silent,
) -> list[str]:
    """Render phantoms and write them; existing cases are kept.

    A case depends to the bit on `seed`, its number and the limits alone, not on the number of cases
    or processes.

    Args:
        out: Folder; made if needed.
        cases: Number of phantoms.
        seed: 0 to 2**31 - 1.
        max_spacing_mm: Coarsest voxel size.
        min_extent_mm: Least height of a scan.
        max_extent_mm: Longest side of a scan, at least 80 mm.
        min_spacing_mm: Finest voxel size (in the plane of thick slices).
        max_voxels: Fields of view are made to fit this many voxels.
        rates: Frequencies of variants, fractures and scoliosis, by the names of `anatomy`; others
            keep their defaults.
        label_cut: Label vertebrae that the edge of the scan cuts, too; VerSe leaves them out.
        region: Where scans are centred: "any", "cervical", "thoracic" or "lumbar".
        workers: Number of processes that write.
        overwrite: Complete a case although one of its files is not this program's, and replace it.
        progress: Shows how many scans are written.

    Returns:
        Ids of all cases, without the `sub-`.

    Raises:
        InputError: unusable numbers, or a folder that cannot be written or holds other files or
            phantoms of another seed or other limits.
    """
    limits = check_limits(
        cases,
        seed,
        min_spacing_mm=min_spacing_mm,
        max_spacing_mm=max_spacing_mm,
        min_extent_mm=min_extent_mm,
        max_extent_mm=max_extent_mm,
        max_voxels=max_voxels,
        rates=rates,
        label_cut=label_cut,
        region=region,
    )
    root = expanded(out)
    try:
        _describe(root, limits, overwrite=overwrite)
        missing = [index for index in range(cases) if not _complete(root, index)]
        with progress("phantoms", len(missing), "scan") as bar:
            for _ in _written(root, missing, limits, workers, overwrite):
                bar.advance()
    except OSError as error:
        raise InputError(
            f"{root}: cannot write phantoms there ({error.strerror or error}); choose a folder "
            "with write permission and free space"
        ) from error
    return [case_name(index).removeprefix("sub-") for index in range(cases)]


def check_limits(
    cases: int,
    seed: int,
    *,
    min_spacing_mm: float,
    max_spacing_mm: float,
    min_extent_mm: float,
    max_extent_mm: float,
    max_voxels: int,
    rates: Mapping[str, float] | None = None,
    label_cut: bool = False,
    region: str = "any",
) -> dict[str, Any]:
    """Check the limits of `write_dataset` and return them as `draw_case` takes them.

    Raises:
        InputError: a number is unusable.
    """
    if cases < 1:
        raise InputError(f"cases={cases}: at least one phantom is needed; give a number from 1 up")
    if not 0 <= seed < 2**31:
        raise InputError(f"seed={seed}: give a number from 0 to {2**31 - 1}")
    if not 0.1 <= min_spacing_mm <= max_spacing_mm <= 10.0:
        raise InputError(
            f"voxel sizes from {min_spacing_mm} to {max_spacing_mm} mm: the limits must rise and "
            "lie between 0.1 and 10"
        )
    if not 80.0 <= max_extent_mm <= 2000.0:
        raise InputError(f"max_extent_mm={max_extent_mm}: a vertebra needs 80 mm; give 80 to 2000")
    if not 0 < min_extent_mm <= 2000.0:
        raise InputError(f"min_extent_mm={min_extent_mm}: give a height in mm above 0, to 2000")
    if max_voxels < 1000:
        raise InputError(f"max_voxels={max_voxels}: a scan needs more; give at least 1000")
    check_choice("region", region, scan_plan.REGIONS)
    chosen = check_rates(rates or {})
    return {
        "seed": seed,
        "min_spacing_mm": min_spacing_mm,
        "max_spacing_mm": max_spacing_mm,
        "min_extent_mm": min_extent_mm,
        "max_extent_mm": max_extent_mm,
        "max_voxels": max_voxels,
        **({"rates": chosen} if chosen else {}),
        **({"label_cut": True} if label_cut else {}),
        **({"region": region} if region != "any" else {}),
    }


def _complete(root: Path, index: int) -> bool:
    """Whether all files of a case exist; the CT may be uncompressed."""
    image, *others = case_paths(root, index)
    found = image.is_file() or image.with_suffix("").is_file()
    return found and all(path.is_file() for path in others)


def _written(
    root: Path, missing: list[int], limits: dict[str, Any], workers: int, overwrite: bool
) -> Iterator[None]:
    """Write cases, in this process or in others, and yield after each."""
    if workers == 1 or len(missing) < 2:
        for index in missing:
            _write_case(root, index, limits, overwrite)
            yield
        return
    # JAX has threads, which a fork does not survive.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(missing)), mp_context=context) as pool:
        futures = [pool.submit(_write_case, root, index, limits, overwrite) for index in missing]
        for future in as_completed(futures):
            future.result()
            yield


def _describe(root: Path, limits: dict[str, Any], *, overwrite: bool) -> None:
    """Write the description of the folder, or refuse a folder with other content."""
    path = root / DESCRIPTION
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("Phantom")
        except (ValueError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path}: not readable as JSON; delete it or choose another folder"
            ) from error
        if found is None:
            raise InputError(f"{root} holds a data set of another kind; choose another folder")
        if found != limits:
            raise InputError(
                f"{root} holds phantoms of other settings ({found}); choose another folder or "
                "delete this one"
            )
        return
    if root.is_dir() and any(not path.name.startswith(".") for path in root.iterdir()):
        raise InputError(
            f"{root} holds other files; choose an empty or a new folder, so that phantoms and "
            "scans stay apart"
        )
    description = {
        "Name": "spinejax phantoms",
        "BIDSVersion": "1.6.0",
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "spinejax", "Version": spinejax.__version__}],
        "Phantom": limits,
    }
    root.mkdir(parents=True, exist_ok=True)
    # First, so that a start that was interrupted recognises its own folder.
    write_json(path, description, "phantom", overwrite=overwrite)
    text = _README.format(version=spinejax.__version__, seed=limits["seed"])
    write_text(root / "README", text, "phantom", overwrite=overwrite)


@jax.jit
def _keys(seed: jax.Array, index: jax.Array, attempt: jax.Array) -> jax.Array:
    """Data (2, 2) of the keys of the person and of the protocol."""
    key = jax.random.fold_in(jax.random.key(seed), index)
    of_scan = jax.random.fold_in(jax.random.fold_in(key, 1), attempt)
    return jax.random.key_data(jnp.stack([key, of_scan]))


@numerics.fixed()
def plan_case(
    seed: int, index: int, limits: dict[str, Any]
) -> tuple[Any, scan_plan.Scan, np.ndarray, np.ndarray]:
    """Draw the person and the scan of a case.

    Returns:
        What `anatomy` and `scan_plan.plan_scan` return; (26,) bool, the vertebrae that the scan
        shows whole; (26, 3) where it shows the body centroids, canonical LPS mm.
    """
    lengths = {name: limits[name] for name in limits if name.endswith("_mm")}
    numbers = {**lengths, "max_voxels": limits["max_voxels"]}
    how = subjects.options(limits.get("rates", {}), numbers, limits.get("region", "any"))
    rng = np.random.default_rng([seed, index])
    for attempt in range(_ATTEMPTS):
        keys = np.asarray(_keys(seed, index, attempt))
        person, protocol = subjects.read(subjects.rows(keys[None], how)[0])
        scan = scan_plan.plan_scan(rng, protocol, geometry.ALL_ORIENTATIONS)
        whole, points = (np.asarray(v) for v in _landmarks(person, scan.protocol))
        if whole.any():
            break
    return jax.tree.map(jnp.asarray, person), scan, whole, points


@numerics.fixed()
def draw_case(
    seed: int, index: int, limits: dict[str, Any]
) -> tuple[Volume, np.ndarray, dict[int, np.ndarray], scan_plan.Storage]:
    """One case: CT in HU, mask uint8 and centroids by id (voxel indices), both on the CT's grid."""
    parameters, scan, whole, points = plan_case(seed, index, limits)
    image, labels = acquisition.acquire(parameters, scan)
    ids = np.asarray(parameters["spine"]["id"])
    if limits.get("label_cut"):
        kept = {int(i) for i in np.unique(labels) if i}
    else:
        # The outermost points are few; voxels on the first or last slice decide.
        cut = np.union1d(labels[:, :, 0], labels[:, :, -1])
        kept = {int(i) for i in ids[whole] if i not in cut}
    lookup = np.array([i if i in kept else 0 for i in range(256)], np.uint8)
    affine = geometry.LPS_TO_RAS @ scan.affine
    stored, affine = geometry.reorient(image, affine, scan.orientation)
    volume = Volume(np.ascontiguousarray(stored), affine)
    centres = {
        int(i): geometry.world_to_voxel(volume.affine, geometry.LPS_TO_RAS[:3, :3] @ point)
        for i, point in zip(ids, points.astype(float), strict=True)
        if int(i) in kept
    }
    # The body of a cut vertebra may lie outside the scan.
    most = np.array(volume.shape) - 0.5
    centres = {i: at for i, at in centres.items() if (at >= -0.5).all() and (at <= most).all()}
    return volume, lookup[labels], centres, scan.storage


@jax.jit
def _landmarks(parameters: Any, protocol: scan_plan.Protocol) -> tuple[jax.Array, jax.Array]:
    """Find the vertebrae that a scan shows whole, and the place of each centroid."""
    whole = view.whole_vertebrae(
        parameters, protocol["lower"], protocol["upper"], protocol=protocol
    )
    return whole, view.shown_at(centroids(parameters)[1], protocol)


def _write_case(root: Path, index: int, limits: dict[str, Any], overwrite: bool) -> None:
    volume, mask, points, storage = draw_case(limits["seed"], index, limits)
    image_path, mask_path, centroid_path = case_paths(root, index)
    if not storage.compressed:
        image_path = image_path.with_suffix("")
    nifti.write_volume(
        image_path,
        volume,
        storage.dtype,
        slope=storage.slope,
        inter=storage.inter,
        overwrite=overwrite,
    )
    nifti.write_labels(mask_path, volume.to_native(mask), volume, overwrite=overwrite)
    # Last, so that it marks a complete case.
    centroid_json.write_centroids(centroid_path, points, volume, overwrite=overwrite)
