"""Trained networks as StableHLO programs; the only place that knows `jax.export`.

A program takes windows of a scan in HU on the grid of the network and returns probabilities and
labels. It holds the preprocessing of each voxel, the normalisation, the networks with their
parameters, their average, and the threshold. What needs the scan's own grid comes before it:
smoothing in mm and resampling. What needs the whole scan is an input: its statistics, for the
normalisations that use them.

Each program has three files:

    NAME.stablehlo  what `jax.export.deserialize` reads: for CPUs and CUDA, any number of windows
    NAME.mlirbc     a portable artifact of StableHLO for other runtimes: one window, for CPUs
    NAME.json       inputs, outputs, the steps before the program, versions; see docs/programs.md
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from spinejax import __version__, labels, losses
from spinejax.data import normalise, preprocess
from spinejax.data.preprocess import SlicePreprocess
from spinejax.errors import InputError
from spinejax.files import atomic_path, check_output, write_json
from spinejax.tasks import MaskTask, NameTask, OutlineTask, Task, build_task
from spinejax.training.model_file import SPINE, Network
from spinejax.volume import PLANES

FORMAT = 1
KIND = "program"
PROGRAM, PORTABLE, ABOUT = ".stablehlo", ".mlirbc", ".json"
PLATFORMS = ("cpu", "cuda")
DIRECTIONS = ("left", "posterior", "superior")
"""Where the index grows along each axis of a scan."""

_BATCH = "b"
_About = dict[str, dict[str, Any]]
"""Name of an input or output -> what its JSON says."""


def write(
    folder: Path,
    networks: Mapping[str, Sequence[Network]],
    *,
    card: Mapping[str, Any],
    overwrite: bool | None = None,
) -> list[Path]:
    """Write the programs of a model into a folder, three files each.

    Networks of one role are averaged within one program. Those that segment slices of several
    planes become a program for each plane, whose name ends in the plane.

    Args:
        folder: made if missing.
        networks: by role.
        card: what to say about the model; plain JSON.
        overwrite: see `files.check_output`.

    Returns:
        The paths of the JSON files.

    Raises:
        InputError: a file may not be replaced, or a network has no windows.
    """
    parts: dict[str, list[Network]] = {}
    for role, members in networks.items():
        planes = {network.config.data.get("plane") for network in members}
        for network in members:
            several = role == SPINE and len(planes) > 1
            name = f"{role}-{network.config.data.plane}" if several else role
            parts.setdefault(name, []).append(network)
    for name in parts:
        for ending in (PROGRAM, PORTABLE, ABOUT):
            check_output(folder / f"{name}{ending}", KIND, overwrite=overwrite)
    # All before the first file is written: a later network may have no windows.
    programs = {name: _program(members) for name, members in parts.items()}
    paths = []
    for name, (serialised, portable, about) in programs.items():
        for ending, data in ((PROGRAM, serialised), (PORTABLE, portable)):
            with atomic_path(folder / f"{name}{ending}", KIND, overwrite=overwrite) as temporary:
                temporary.write_bytes(data)
        paths.append(folder / f"{name}{ABOUT}")
        files = {"program": f"{name}{PROGRAM}", "portable": f"{name}{PORTABLE}"}
        write_json(paths[-1], files | about | {"card": card}, KIND, overwrite=overwrite)
    return paths


def _program(members: Sequence[Network]) -> tuple[bytes, bytes, dict[str, Any]]:
    """Return a program as `jax.export` serialises it, as a portable artifact, and its JSON."""
    config = members[0].config
    task, how = build_task(config), preprocess.from_config(config.data)
    if isinstance(task, MaskTask) and task.whole:
        raise InputError(
            f"{members[0].source}: model.name={config.model.name!r} reads a whole scan at once and "
            "has no windows; give another model, or leave --format=stablehlo out"
        )
    inputs = _inputs(members, task, how)
    compiled = jax.jit(_function(members, list(inputs), how))

    def exported(batch: Any, platforms: Sequence[str]) -> export.Exported:
        shapes = (
            jax.ShapeDtypeStruct((batch, *one["shape"]), one["dtype"]) for one in inputs.values()
        )
        return export.export(compiled, platforms=platforms)(*shapes)

    (any_number,) = export.symbolic_shape(_BATCH)
    program = exported(any_number, PLATFORMS)
    data = bytes(program.serialize())
    found = jax.tree.unflatten(program.out_tree, program.out_avals)
    known = [one.pixels_mm for one in members if one.pixels_mm is not None]
    about = {
        "format": FORMAT,
        "spinejax": __version__,
        "jax": jax.__version__,
        "calling_convention_version": program.calling_convention_version,
        "platforms": list(program.platforms),
        "sha256": hashlib.sha256(data).hexdigest(),
        "task": config.task,
        "averaged": len(members),
        "before": _before(how),
        "inputs": [
            {"name": name, **one, "shape": [_BATCH, *one["shape"]]} for name, one in inputs.items()
        ],
        "outputs": [
            {
                "name": name,
                "shape": [_BATCH, *found[name].shape[1:]],
                "dtype": str(found[name].dtype),
                **one,
            }
            for name, one in _outputs(members, task, how).items()
        ],
        "trained_pixels_mm": [min(mm[0] for mm in known), max(mm[1] for mm in known)]
        if known
        else None,
    }
    return data, exported(1, PLATFORMS[:1]).mlir_module_serialized, about


def _axes(task: Task, how: SlicePreprocess) -> list[str]:
    """Return the names of the axes of a window."""
    fixed = PLANES[how.plane] if isinstance(task, MaskTask) else None
    return [name for axis, name in enumerate(DIRECTIONS) if axis != fixed]


def _inputs(members: Sequence[Network], task: Task, how: SlicePreprocess) -> _About:
    """Return the inputs of a program in their order; shapes are those of one window."""
    config = members[0].config
    axes, sides = _axes(task, how), task.input_shape[:-1]
    spacing_mm = how.spacing_mm if how.mode in ("resample", "isotropic") else None
    margin = how.kernel_px[1] if how.mode == "native" else 0
    reflects = config.predict.get("padding") == "reflect"
    image: dict[str, Any] = {
        "shape": [side + 2 * margin for side in sides],
        "dtype": "float32",
        "unit": "HU",
        "axes": list(axes),
        "spacing_mm": [spacing_mm for _ in sides],
        "margin": margin,
        "beyond_the_scan": "reflect" if reflects else how.fill_hu,
    }
    if task.neighbours:
        image["shape"].append(2 * task.neighbours + 1)
        image["axes"].append(DIRECTIONS[PLANES[how.plane]])
        image["spacing_mm"].append(None)
    if isinstance(task, OutlineTask):
        shift = (0.0, *(mm / how.spacing_mm for mm in config.data.cube.shift_mm))
        image["body_centre"] = [(side - 1) / 2 - by for side, by in zip(sides, shift, strict=True)]
    found = {"image": image}
    if isinstance(task, NameTask) and config.data.cube.spine_prior == "channel":
        found["spine"] = {
            "shape": list(sides),
            "dtype": "uint8",
            "unit": "1 in the spine, 0 elsewhere",
            "axes": list(axes),
        }
    if any(one.config.data.normalise in normalise.NEED_STATS for one in members):
        found["stats"] = {
            "shape": [4],
            "dtype": "float32",
            "unit": "HU",
            "axes": ["mean, standard deviation, minimum, maximum of the whole preprocessed scan"],
        }
    return found


def _outputs(members: Sequence[Network], task: Task, how: SlicePreprocess) -> _About:
    """Return what the outputs of a program mean."""
    config, axes = members[0].config, _axes(task, how)
    if isinstance(task, NameTask):
        ids = (0, *labels.VERSE_IDS)
        names = ["background", *(labels.name(i) for i in labels.VERSE_IDS)]
        found: _About = {
            "label": {
                "axes": axes,
                "labels": {str(i): name for i, name in zip(ids, names, strict=True)},
            },
            "probability": {"axes": [*axes, "class"], "classes": names},
        }
        if _gives_offsets(members):
            found["offset"] = {
                "axes": [*axes, "direction"],
                "directions": list(DIRECTIONS),
                "unit": "cm",
            }
        return found
    what = "vertebra" if isinstance(task, OutlineTask) else "spine"
    if isinstance(task, MaskTask) and task.model.SEES == "patches":
        axes = []
        place: dict[str, Any] = {"pixel": [side // 2 for side in task.input_shape[:-1]]}
    else:
        place = {}
    return {
        "label": {
            "axes": axes,
            "labels": {"0": "background", "1": what},
            "threshold": config.predict.threshold,
            **place,
        },
        "probability": {"axes": axes, "of": what, **place},
    }


def _gives_offsets(members: Sequence[Network]) -> bool:
    return members[0].config.loss.get(losses.OFFSET_WEIGHT, 0.0) > 0


def _before(how: SlicePreprocess) -> list[dict[str, Any]]:
    """Return the steps from a scan in HU to the grid of a program, in their order."""
    steps: list[dict[str, Any]] = []
    if how.intensity == "clamp":
        if how.smoothing_sigma_mm:
            size = {"sigma_mm": how.smoothing_sigma_mm, "truncate": preprocess.TRUNCATE}
            steps.append({"step": "smooth", **size, "edges": "nearest"})
        if how.mode != "native":  # else the program clips
            steps.append({"step": "clip", "range_hu": list(how.clamp_hu)})
    elif how.mode != "native":
        steps.append({"step": "zero outside", "range_hu": list(how.clamp_hu)})
        sigma, radius = how.kernel_px
        if radius:
            size = {"sigma_px": sigma, "kernel_px": 2 * radius + 1}
            steps.append({"step": "smooth in the slice", **size, "edges": "nearest"})
    if how.mode == "resize":
        steps.append({"step": "resample", "pixels": list(how.size), "order": 1})
    elif how.mode != "native":
        steps.append({"step": "resample", "spacing_mm": how.spacing_mm, "order": 1})
    return steps


def _prepared(how: SlicePreprocess, image: jax.Array) -> jax.Array:
    """Return the preprocessed HU of windows; a margin for smoothing is cut off.

    Args:
        how: the preprocessing.
        image: (b, ...) float32 HU after the steps of `_before`.
    """
    low, high = how.clamp_hu
    if how.intensity == "clamp":
        image = jnp.clip(image, low, high)
    elif how.mode == "native":
        image = jnp.where((image < low) | (image > high), 0.0, image)
        sigma, radius = how.kernel_px
        weights = preprocess.gaussian_kernel(sigma, radius) if radius else [1.0]
        for axis in (1, 2):
            side = image.shape[axis] - 2 * radius
            parts = [
                float(weight) * jax.lax.slice_in_dim(image, at, at + side, axis=axis)
                for at, weight in enumerate(weights)
            ]
            image = sum(parts[1:], parts[0])
    return jnp.round(image)  # scans are kept as whole numbers


def _function(
    members: Sequence[Network], names: Sequence[str], how: SlicePreprocess
) -> Callable[..., dict[str, jax.Array]]:
    """Return the function of the inputs `names`, in their order, that a program computes."""
    networks: list[tuple[Any, Any]] = [(build_task(one.config), one.variables) for one in members]
    threshold = members[0].config.predict.get("threshold")

    def run(*arrays: jax.Array) -> dict[str, jax.Array]:
        given = dict(zip(names, arrays, strict=True))
        image = _prepared(how, given["image"])
        stats = given.get("stats", jnp.zeros((image.shape[0], 4)))
        found = []
        for task, variables in networks:
            if isinstance(task, NameTask):
                spine = given.get("spine", jnp.zeros(image.shape, jnp.uint8))
                found.append(task.class_probability(variables, image, spine, stats))
            else:
                found.append(task.probability(variables, image, stats))
        mean = sum(found[1:], found[0]) / len(found)
        if threshold is not None:
            return {"label": (mean >= threshold).astype(jnp.uint8), "probability": mean}
        probability = mean[..., : labels.NUM_CLASSES]
        ids = jnp.array([0, *labels.VERSE_IDS], jnp.uint8)
        result = {"label": ids[jnp.argmax(probability, -1)], "probability": probability}
        if mean.shape[-1] > labels.NUM_CLASSES:
            result["offset"] = mean[..., labels.NUM_CLASSES :]
        return result

    return run
