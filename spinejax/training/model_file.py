"""A trained model in one file, `NAME.spinejax`; the only place that knows safetensors.

The file is one of safetensors, whatever its ending: `NAME.safetensors` is the same.

The file holds networks by their role: those that segment the spine ("spine"), which are averaged,
those that name the vertebrae in it ("vertebrae"), and those that outline the named vertebrae anew
("outlines"). A tensor is called `<role>/<number>/<params|batch_stats>/<path>`. The metadata of the
file are texts:

    format     the number of this format
    spinejax   the version that wrote the file
    networks   JSON: role -> for each network its resolved "config"; "pixels_mm", the finest and the
               coarsest pixel spacing of its training scans in mm, or null; and "training", what
               its run recorded: commit, steps, parameters, seconds, hardware, versions
    card       JSON: what its authors say about the model
    sha256     SHA-256 of "networks" and all tensors

The models of the package lie in `spinejax/packaged`. A user means one by its bare name.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from spinejax import __version__, records, schema, tasks
from spinejax.errors import InputError, describe_os_error
from spinejax.files import StrPath, atomic_path, expanded, open_regular
from spinejax.tasks import Task, build_task
from spinejax.training import run_folder

FORMAT = 1
ENDINGS = (".spinejax", ".safetensors")
SPINE = "spine"
ROLES = (SPINE, schema.SECOND, schema.THIRD)
PACKAGED = ("phantom",)
"""The names of the packaged models; the first is the default."""

DOES = {
    SPINE: "segments the spine",
    schema.SECOND: "names vertebrae",
    schema.THIRD: "outlines vertebrae",
}
"""Role -> what its networks do, for messages."""

FOLDER = Path(__file__).parents[1] / "packaged"
_REMEDY = "give a file that `spinejax export` wrote, or copy it again"
_NETWORKS = {str: [{"config": dict, "pixels_mm": ([float], None), "training": dict}]}
_PATHS = ("data.root", "data.cache_dir", "train.init_from")
"""Fields that name folders of the machine that trained; a file leaves them empty."""


@dataclass(frozen=True, eq=False)
class Network:
    """A trained network, ready to predict.

    Attributes:
        source: where it comes from, for messages.
        config: its resolved config.
        variables: {"params", "batch_stats"}, float32 numpy arrays.
        pixels_mm: finest and coarsest pixel spacing, in mm, of the scans that trained it; None
            where it is not known.
        training: what the run recorded of its training, see `run_folder.recorded_training`.
    """

    source: str
    config: ConfigDict
    variables: dict[str, Any]
    pixels_mm: tuple[float, float] | None
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> dict[str, Any]:
        """What a run records that begins with this network: "config", "seed" and `training`."""
        return {"config": self.config.name, "seed": self.config.seed, **self.training}


class ModelFile(NamedTuple):
    """The content of a file: networks by role, the card, and the SHA-256 of the networks."""

    networks: dict[str, list[Network]]
    card: dict[str, Any]
    sha256: str


def role(config: ConfigDict) -> str:
    """Return the role of a network with this config."""
    further = {schema.CUBES: schema.SECOND, schema.OUTLINES: schema.THIRD}
    return further.get(config.task, SPINE)


def located(source: StrPath) -> Path:
    """Return where a model is: the file of a packaged one, else the path that the user gave.

    Only a `str` can be the name of a packaged model: a folder of that name is `./phantom`.
    """
    if isinstance(source, str) and source in PACKAGED:
        return FOLDER / f"{source}.safetensors"
    return expanded(source)


def is_file(path: Path) -> bool:
    """Return whether a path is that of a model's file, not of a run's folder."""
    return path.suffix in ENDINGS or path.is_file()


def write(
    path: Path,
    networks: Mapping[str, Sequence[Network]],
    *,
    card: Mapping[str, Any],
    half: Collection[str] = (),
    overwrite: bool | None = None,
) -> None:
    """Write networks into one file, which appears whole or not at all.

    Args:
        path: the file.
        networks: by role.
        card: what to say about the model; plain JSON.
        half: roles whose parameters are stored as float16.
        overwrite: see `files.check_output`.

    Raises:
        InputError: the file may not be replaced, or parameters do not fit in float16.
    """
    tensors: dict[str, np.ndarray] = {}
    about: dict[str, list[dict[str, Any]]] = {}
    for name, members in networks.items():
        about[name] = []
        for number, network in enumerate(members):
            about[name].append(
                {
                    "config": _without_paths(network.config),
                    "pixels_mm": network.pixels_mm,
                    "training": dict(network.training),
                }
            )
            for leaf, array in _flat(network.variables).items():
                small = name in half and leaf.startswith("params/")
                with np.errstate(over="ignore"):
                    stored = np.array(array, np.float16 if small else np.float32, order="C")
                if not np.isfinite(stored).all():
                    raise InputError(
                        f"{network.source}: {leaf} has values that "
                        f"{'float16 cannot hold; leave --half out' if small else 'are no numbers'}"
                    )
                tensors[f"{name}/{number}/{leaf}"] = stored
    text = json.dumps(about, allow_nan=False)
    notes = {
        "format": str(FORMAT),
        "spinejax": __version__,
        "networks": text,
        "card": json.dumps(card, allow_nan=False),
        "sha256": _digest(text, tensors),
    }
    with atomic_path(path, "model", overwrite=overwrite) as temporary:
        temporary.write_bytes(save(tensors, metadata=notes))


def read(path: Path) -> ModelFile:
    """Read and check a file.

    Raises:
        InputError: there is no such file, it is damaged, a newer version wrote it, or its tensors
            are not those of the networks of its configs.
    """
    notes, tensors = _content(path)
    text = notes["networks"]
    if _digest(text, tensors) != notes["sha256"]:
        raise InputError(f"{path} is damaged (the content differs from its SHA-256); {_REMEDY}")
    about, card = _json(path, text, _NETWORKS), _json(path, notes["card"], dict)
    unknown = sorted(about.keys() - set(ROLES))
    if unknown or not any(about.values()):
        found = f"networks of the role {unknown[0]!r}" if unknown else "no networks"
        raise InputError(
            f"{path} holds {found}, written by spinejax {notes['spinejax']}; {_UPDATE}"
        )
    networks: dict[str, list[Network]] = {}
    for name, members in about.items():
        for number, member in enumerate(members):
            source, prefix = f"{path} ({name}/{number})", f"{name}/{number}/"
            leaves = {
                leaf.removeprefix(prefix): array.astype(np.float32)
                for leaf, array in tensors.items()
                if leaf.startswith(prefix)
            }
            try:
                arrays = traverse_util.unflatten_dict(leaves, sep="/")
                variables = {"params": {}, "batch_stats": {}, **arrays}
                config = run_folder.config_of(member["config"])
                tasks.check(config)
                if role(config) != name:
                    raise InputError(f"task={config.task} has another role")
                # The tests compare the packaged files, so that their users need not wait for it.
                wrong = "" if path.parent == FOLDER else misfit(build_task(config), variables)
            except (ValueError, TypeError, AttributeError) as error:
                wrong = str(error)
            if wrong:
                raise InputError(f"{source} is damaged ({wrong}); {_REMEDY}")
            pixels = tuple(member["pixels_mm"]) if member["pixels_mm"] else None
            network = Network(source, config, variables, pixels, member["training"])
            networks.setdefault(name, []).append(network)
    return ModelFile(networks, card, notes["sha256"])


_UPDATE = "install a newer version of spinejax"


def _content(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return the metadata of a file of this format, and its tensors as they are stored."""
    try:
        open_regular(path).close()
        with safe_open(path, framework="numpy") as file:
            notes = file.metadata() or {}
            if "format" not in notes or "spinejax" not in notes:
                raise InputError(f"{path} is no model of spinejax; {_REMEDY}")
            if notes["format"] != str(FORMAT):
                raise InputError(
                    f"{path}: spinejax {notes['spinejax']} wrote this file in format "
                    f"{notes['format']}, and this version, {__version__}, reads format {FORMAT}; "
                    f"{_UPDATE}"
                )
            lacking = {"networks", "card", "sha256"} - notes.keys()
            if lacking:
                raise InputError(f"{path} is damaged (it has no {min(lacking)}); {_REMEDY}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except InputError:
        raise
    except FileNotFoundError as error:
        if path.parent == FOLDER:
            raise InputError(
                f"the packaged model {path.stem!r} is missing in this installation ({path}); "
                "install spinejax again, or give --model=RUN with the folder of a run"
            ) from error
        raise InputError(f"{path}: no such file; {_REMEDY}") from error
    except OSError as error:
        raise InputError(describe_os_error(error)) from error
    except (SafetensorError, LookupError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(
            f"{path} is no model of spinejax, or it is damaged ({reason}); {_REMEDY}"
        ) from error
    return notes, tensors


def _json(path: Path, text: str, shape: Any) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged (its metadata are no JSON); {_REMEDY}") from error
    records.check(value, shape, path, _REMEDY)
    return value


def _digest(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256(text.encode())
    for name, array in sorted(tensors.items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _without_paths(config: ConfigDict) -> dict[str, Any]:
    fields = {
        key: "" if key.removeprefix(f"{schema.SECOND}.") in _PATHS else value
        for key, value in schema.flatten(schema.plain(config)).items()
    }
    return schema.nested(fields)


def _flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of variables by their paths, such as "params/Conv_0/kernel"."""
    return traverse_util.flatten_dict(
        {part: variables.get(part, {}) for part in ("params", "batch_stats")}, sep="/"
    )


def fitted(variables: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables `fresh` of a network, or those of another where name and shape fit."""
    theirs, ours = _flat(variables), _flat(fresh)
    taken = {
        leaf: np.asarray(array) if _unlike(leaf, theirs, ours) else theirs[leaf]
        for leaf, array in ours.items()
    }
    return {"batch_stats": {}, **traverse_util.unflatten_dict(taken, sep="/")}


def unfit(variables: Mapping[str, Any], shapes: Mapping[str, Any]) -> list[str]:
    """Return a line for each array of a network that `fitted` leaves fresh, by their `shapes`."""
    theirs, ours = _flat(variables), _flat(shapes)
    return [line for leaf in sorted(ours) if (line := _unlike(leaf, theirs, ours))]


def misfit(task: Task, variables: Mapping[str, Any]) -> str:
    """Return how variables differ from those of a task's network; "" if they fit."""
    theirs = _flat(variables)
    ours = _flat(jax.eval_shape(task.init, jax.random.key(0)))
    return next(filter(None, (_unlike(one, theirs, ours) for one in sorted({*theirs, *ours}))), "")


def _unlike(leaf: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Return how an array of a model differs from that of the network; "" if the shapes agree."""
    there, here = (tuple(found[leaf].shape) if leaf in found else None for found in (theirs, ours))
    if there == here:
        return ""
    if there is None:
        return f"the network has the array {leaf} of shape {here}, and the model lacks it"
    if here is None:
        return f"the model has the array {leaf} of shape {there}, and the network lacks it"
    return f"the array {leaf} has shape {there} in the model and {here} in the network"
