"""Saving and restoring a run; the only place that knows Orbax.

    <workdir>/checkpoints/latest/<step>/   the two newest states, whole: what a resumed run needs
    <workdir>/checkpoints/best/<step>/     the network of the best validation score, no optimiser

There are two folders, because a state saved on SIGTERM has no score yet: it must neither replace
the best nor be dropped. The two newest states are kept, in case files of the newest are damaged.

Each step holds three items: "variables" ({"params", "batch_stats", "ema"}, enough for prediction),
"optimizer" (only in latest), and "meta" (JSON). Arrays are saved as numpy, so they belong to no
device and can be restored on any number of devices and processes. A complete step gets
`crc32.json`, the checksums of its files, so that damage is noticed before anything is read. If a
run was killed just before, its step is used without checksums.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from spinejax import records
from spinejax.errors import InputError, did_you_mean, is_disk_full
from spinejax.files import StrPath, crc32, expanded, write_json
from spinejax.models import MODELS
from spinejax.schema import SECOND, THIRD
from spinejax.sweep_state import LOCK, is_locked
from spinejax.tasks import Task
from spinejax.training import model_file, parallel, run_folder
from spinejax.training.model_file import Network
from spinejax.training.run_folder import read_config
from spinejax.training.state import TrainState, inference_variables, initial_variables
from spinejax.training.step import named_key

logger = logging.getLogger("spinejax")

FOLDERS = ("latest", "best")
_TRASH = "_todelete"
_CHECKSUMS = "crc32.json"


class Meta(NamedTuple):
    """Facts about a saved step.

    step: number of updates.
    evaluated: whether the state has been evaluated.
    score: validation Dice or minus validation loss, by `train.best`; the best checkpoint has the
        highest. None if the state was not evaluated since the last start.
    devices: number of devices that trained it.
    """

    step: int
    evaluated: bool
    score: float | None
    devices: int


_META = {"step": int, "evaluated": bool, "score": (float, None), "devices": int}


def folder(workdir: Path, which: str) -> Path:
    """Return the folder of the "latest" or "best" checkpoints of a run."""
    if which not in FOLDERS:
        raise ValueError(f"`which` (={which!r}) must be one of {FOLDERS}")
    return (workdir / "checkpoints" / which).absolute()


def _checksums(folder: Path) -> dict[str, int]:
    """Return the CRC-32 of every file of a step, by its path in the folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _CHECKSUMS)
    return {str(p.relative_to(folder)): crc32(p) for p in files}


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _write_error(path: Path, error: Exception) -> InputError:
    if is_disk_full(error):
        return run_folder.full(path)
    return InputError(
        f"{path}: the checkpoint cannot be written ({_one_line(error)}); make room or give the run "
        "another --workdir, then start it again: it continues from the last whole checkpoint"
    )


class _Manager(ocp.CheckpointManager):
    """Does not ask whether a process was told to stop.

    JAX says yes to one question only. If Orbax asked while it saves, the training loop, which asks
    before every step (`signals.Stop`), might never hear of it.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def _manager(path: Path, keep: int) -> _Manager:
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(keep),
        # Orbax renames a step before deleting it: a kill leaves no incomplete folder of its name.
        todelete_subdir=_TRASH,
        cleanup_tmp_directories=True,
    )
    handlers = {
        "variables": ocp.StandardCheckpointHandler(),
        "optimizer": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }
    return _Manager(path, item_handlers=handlers, options=options)


def _steps(path: Path) -> list[int]:
    """Return the steps that have a folder, newest first, including damaged ones."""
    if not path.is_dir():
        return []
    return sorted((int(p.name) for p in path.iterdir() if p.name.isdecimal()), reverse=True)


def begun(workdir: Path) -> bool:
    """Return whether a run has saved a state in `workdir` that can be resumed."""
    return bool(_steps(folder(workdir, "latest")))


def saved(workdir: Path) -> list[tuple[str, int, Meta | None]]:
    """Return the saved states of a run: "latest" or "best", the step, and the facts about it.

    Within each of the two the newest comes first. The facts are None where they cannot be read.
    """

    def facts(path: Path, step: int) -> Meta | None:
        try:
            return _read_meta(path, step)
        except InputError:
            return None

    places = {which: folder(workdir, which) for which in FOLDERS}
    return [
        (which, step, facts(path, step)) for which, path in places.items() for step in _steps(path)
    ]


def _items(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    variables = {"params": state.params, "batch_stats": state.batch_stats, "ema": state.ema}
    return variables, {"opt_state": state.opt_state, "step": state.step}


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for pending saves at its end.

    Every process of the run must call the same methods in the same order.
    """

    def __init__(self, workdir: Path) -> None:
        """Open or make the folders, and remove the rests of a killed run.

        Raises:
            InputError: the folder cannot be written, or Orbax cannot open a damaged step.
        """
        self._paths = {which: folder(workdir, which) for which in FOLDERS}
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Callable[[], None] | None = None  # returns when the last save is on disk
        self._writing: Future[None] | None = None  # the last save, in one process
        try:
            for path in self._paths.values():
                path.mkdir(parents=True, exist_ok=True)
                self._empty_trash(path)
            parallel.barrier("checkpoint folders")
            self._managers = {
                "latest": _manager(self._paths["latest"], keep=2),
                "best": _manager(self._paths["best"], keep=1),
            }
        except OSError as error:
            raise _write_error(workdir / "checkpoints", error) from error
        except Exception as error:  # Orbax's, of many kinds, for a step with damaged metadata
            steps = [path / str(step) for path in self._paths.values() for step in _steps(path)]
            damaged = next((step for step in steps if not _is_whole(step)), workdir / "checkpoints")
            raise InputError(
                f"checkpoint {damaged} is damaged ({_one_line(error)}); move it away, and the same "
                "command goes on from an older one, or begins again where there is none"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except InputError:
            if kind is None:  # else the exception from inside the block says more
                raise
        finally:
            self._writer.shutdown()
            for manager in self._managers.values():
                with suppress(Exception):  # Orbax raises what the last save raised once more
                    manager.close()

    def wait(self) -> None:
        """Block until all saves are on disk.

        Raises:
            InputError: one failed, for example because the disk is full.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending()

    def check(self) -> None:
        """Raise the error of the last save if it has failed already; does not block.

        Raises:
            InputError: as `wait`.
        """
        if self._writing is not None and self._writing.done():
            self.wait()

    def _finish(self, which: str) -> None:
        try:
            self._managers[which].wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise _write_error(self._paths[which], error) from error
        self._empty_trash(self._paths[which])
        if parallel.process_index() == 0:
            self._write_checksums(self._paths[which])

    @staticmethod
    def _write_checksums(path: Path) -> None:
        for step in _steps(path):
            file = path / str(step) / _CHECKSUMS
            try:
                if not file.exists():
                    write_json(file, _checksums(file.parent))
            except OSError as error:
                raise _write_error(path, error) from error

    def save(self, state: TrainState, meta: Meta, *, best: bool, latest: bool = True) -> None:
        """Save the state under "latest", and its network under "best" if asked.

        Returns as soon as the last save is on disk and the arrays of this one are copied; a thread
        in the background writes them and their checksums. The best is on disk before the latest is
        begun: a run killed between the two repeats the evaluation.

        With several processes, only the latest is written in the background, and its checksums
        follow at the next save: the processes have to meet at barriers in one order.

        Args:
            state: replicated; the caller may donate it afterwards.
            meta: `meta.step` equals `state.step`.
            best: whether this is the best evaluation so far.
            latest: whether to save under "latest"; not needed for a state that was just restored.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        self.wait()
        host = parallel.host_copy(state)
        variables, optimizer = _items(host)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves((variables, optimizer)))
        # Room for both copies, uncompressed, before old ones are deleted; files fill whole blocks.
        run_folder.require_room(self._paths["latest"], 2 * size + 2**20)
        items = {}
        if best:
            items["best"] = {"variables": {**inference_variables(variables), "ema": None}}
        if latest:
            items["latest"] = {"variables": variables, "optimizer": optimizer}

        def write() -> None:
            for which in items:
                self._write(which, meta, items[which])
                self._finish(which)

        if parallel.process_count() == 1:
            self._writing = self._writer.submit(write)
            self._pending = self._writing.result
            return
        for which in items:
            self.wait()
            self._write(which, meta, items[which])
            self._pending = partial(self._finish, which)

    def _write(self, which: str, meta: Meta, items: dict[str, Any]) -> None:
        manager = self._managers[which]
        # An existing step is damaged, or newer than the step that was resumed. Orbax would silently
        # refuse to overwrite it.
        for step in _steps(self._paths[which]):
            if step >= meta.step:
                self._remove(which, step)
        args = {k: ocp.args.StandardSave(v) for k, v in items.items()}
        try:
            saved = manager.save(
                meta.step, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta._asdict()))
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise _write_error(self._paths[which], error) from error
        if not saved:
            raise RuntimeError(f"Orbax did not save step {meta.step} in {self._paths[which]}")

    def _remove(self, which: str, step: int) -> None:
        """Remove one step; rename it first, so that a kill leaves no incomplete step."""
        path = self._paths[which]
        parallel.barrier("before removing a checkpoint")
        if parallel.process_index() == 0:
            trash = path / _TRASH
            trash.mkdir(exist_ok=True)
            (path / str(step)).rename(trash / f"removed-{step}")
            self._empty_trash(path)
        parallel.barrier("after removing a checkpoint")
        self._managers[which].reload()

    @staticmethod
    def _empty_trash(path: Path) -> None:
        if parallel.process_index() == 0:
            shutil.rmtree(path / _TRASH, ignore_errors=True)

    def forget_best(self) -> None:
        """Remove the best checkpoint of a start that was killed before its first latest."""
        self.wait()
        for step in _steps(self._paths["best"]):
            self._remove("best", step)

    def best(self) -> Meta | None:
        """Return the facts about the best checkpoint; None if there is none that can be read."""
        for step in _steps(self._paths["best"]):
            try:
                return _read_meta(self._paths["best"], step)
            except InputError as error:
                logger.warning("%s", error)
        return None

    def restore(self, like: TrainState) -> tuple[TrainState, Meta] | None:
        """Return the newest complete state as host arrays; None if nothing was saved yet.

        A state that cannot be read is skipped with a warning.

        Args:
            like: a state with the right structure, shapes and dtypes; its values are not used.

        Raises:
            InputError: there are checkpoints, but none can be read.
        """
        path = self._paths["latest"]
        target = dict(zip(("variables", "optimizer"), _items(_abstract(like)), strict=True))
        problem = None
        for step in _steps(path):
            try:
                meta, items = _read(path, step, target)
            except InputError as error:
                problem = error
                logger.warning("%s; trying an older one", error)
                continue
            variables, optimizer = items["variables"], items["optimizer"]
            state = TrainState(
                step=optimizer["step"],
                params=variables["params"],
                batch_stats=variables["batch_stats"],
                opt_state=optimizer["opt_state"],
                ema=variables["ema"],
            )
            return state, meta
        if problem is not None:
            best = _whole_step(self._paths["best"])
            kept = f"the best, of step {best}, is whole and can predict; " if best else ""
            raise InputError(
                f"{problem}; no older one is complete either: {kept}remove {path.parent} to start "
                "this run from the beginning"
            )
        return None


def _abstract(tree: Any) -> Any:
    """Return shapes and dtypes as numpy zeros: Orbax then restores numpy, on no device."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)


def _read_meta(path: Path, step: int) -> Meta:
    file = path / str(step) / "meta" / "metadata"
    return Meta(**records.read(file, _META, "the step cannot be used"))


def _read(path: Path, step: int, target: dict[str, Any] | None) -> tuple[Meta, dict[str, Any]]:
    """Read the items of one step; without a target only "variables", as nested dicts of numpy.

    Raises:
        InputError: the step is damaged, or belongs to another network.
    """
    _check_files(path / str(step))
    meta = _read_meta(path, step)
    items = {}
    names = ("variables",) if target is None else tuple(target)
    # Orbax and tensorstore raise many kinds of errors for damaged files; here all mean the same.
    try:
        with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as reader:
            for name in names:
                like = None if target is None else target[name]
                items[name] = reader.restore(path / str(step) / name, like)
    except Exception as error:
        raise InputError(
            f"checkpoint {path / str(step)} cannot be read ({_one_line(error)})"
        ) from error
    # Orbax silently restores arrays of another shape and casts other dtypes.
    if target is not None and _shapes(items) != _shapes(target):
        raise InputError(f"checkpoint {path / str(step)} belongs to another network")
    return meta, items


def _alone() -> ocp.options.MultiprocessingOptions:
    """Return options that let a process read without waiting for the others of its run."""
    own = jax.process_index()  # Orbax counts the processes itself, also inside `parallel.apart`
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )


def _shapes(tree: Any) -> list[tuple[Any, Any]]:
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def _check_files(folder: Path) -> None:
    """Compare the files of a step with their checksums, if the step has them.

    If Orbax found the damage, tensorstore's pending reads would print errors of their own.

    Raises:
        InputError: a file is missing or differs.
    """
    file = folder / _CHECKSUMS
    if not file.exists():
        return
    expected = records.read(file, {str: int}, "the step cannot be used")
    try:
        found = _checksums(folder)
    except (OSError, InputError) as error:
        raise InputError(f"checkpoint {folder} cannot be read ({_one_line(error)})") from error
    changed = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if changed:
        raise InputError(f"checkpoint {folder} is damaged ({changed[0]} is missing or changed)")


def _whole_step(path: Path) -> int | None:
    """Return the newest step whose files are as they were written; None if there is none."""
    return next((step for step in _steps(path) if _is_whole(path / str(step))), None)


def _is_whole(step: Path) -> bool:
    try:
        _check_files(step)
        _read_meta(step.parent, int(step.name))
    except InputError:
        return False
    return True


@contextmanager
def _kept(path: Path, step: int, workdir: Path) -> Iterator[Path]:
    """Yield a folder with a step that stays while it is read, although a training may remove it.

    Raises:
        InputError: the step is gone.
    """
    if not is_locked(workdir / LOCK):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="spinejax-") as copy:
        try:
            # A training that writes the checksums meanwhile renames their temporary file.
            unfinished = shutil.ignore_patterns(".tmp-*")
            shutil.copytree(path / str(step), Path(copy, str(step)), ignore=unfinished)
        except (OSError, shutil.Error) as error:
            reason = _one_line(error)
            raise InputError(f"checkpoint {path / str(step)} cannot be read ({reason})") from error
        yield Path(copy)


def load_for_inference(
    workdir: str | Path, which: str = "best"
) -> tuple[ConfigDict, dict[str, Any]]:
    """Return (config, variables {"params", "batch_stats"}) of a run, as numpy arrays.

    If the run has an exponential moving average, the parameters are the averages. For a run that
    has not been validated yet "best" means "latest".

    Raises:
        InputError: the folder holds no run, no checkpoint yet, or none that can be read.
    """
    workdir = expanded(workdir)
    config = read_config(workdir)
    path = folder(workdir, which)
    if which == "best" and not _steps(path):
        path = folder(workdir, "latest")
    steps, problem = _steps(path), None
    while steps:
        problem = None
        for step in steps:
            try:
                with _kept(path, step, workdir) as place:
                    _, items = _read(place, step, None)
            except InputError as error:
                problem = error
                if step in _steps(path):
                    logger.warning("%s; trying an older one", error)
                continue
            variables = {"batch_stats": {}, "ema": None, **items["variables"]}
            return config, inference_variables(variables)
        # A training that goes on removes old steps while they are read, and adds new ones.
        steps, before = _steps(path), steps
        if steps == before:
            break
    if problem is not None:
        other = "latest" if path.name == "best" else "best"
        whole = _whole_step(folder(workdir, other))
        if whole is None:
            raise InputError(f"{problem}; train again in another --workdir")
        raise InputError(
            f"{problem}; the {other} checkpoint, of step {whole}, is whole: use it with "
            f"--checkpoint={other}"
        )
    raise InputError(f"{workdir} has no checkpoint yet; let `spinejax train` run longer")


def read_networks(
    source: StrPath, which: str = "best", *, further: Collection[str] = (SECOND, THIRD)
) -> dict[str, list[Network]]:
    """Return the networks of a packaged model, of a model's file, or of a run, by their role.

    Args:
        source: the name of a packaged model, the path of a file, or the folder of a run.
        which: the checkpoint of a run, "best" or "latest".
        further: roles of the networks in folders of a run that are read, too.

    Raises:
        InputError: there is no such model, it is damaged, or it has no checkpoint yet.
    """
    path = model_file.located(source)
    if model_file.is_file(path):
        return model_file.read(path).networks
    if not path.exists():
        hint = did_you_mean(str(path), model_file.PACKAGED)
        if str(path) in model_file.PACKAGED:
            hint = f"; --model={path} is the packaged model"
        raise InputError(
            f"{path} is not the folder of a run: there is no such folder"
            f"{hint or '; give phantom, FILE.spinejax, or the folder of a run'}"
        )
    config = run_folder.checked_config(path)
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    if MODELS[config.model.name].LEARNS:  # else there is no checkpoint
        _, variables = load_for_inference(path, which)
    network = Network(
        str(path),
        config,
        variables,
        run_folder.recorded_pixels_mm(path),
        run_folder.recorded_training(path),
    )
    found = {model_file.role(config): [network]}
    for role in further:
        if role not in found and (path / role / "config.json").exists():
            found |= read_networks(path / role, which, further=())
    return found


def pretrained(config: ConfigDict, task: Task, source: StrPath = "") -> Network | None:
    """Return the network with whose variables training begins, complete.

    It is the first network with the same role, and for slices of the same plane, of the model that
    `source` or else `train.init_from` names. None if both are empty. With `train.init_partly`,
    arrays that do not fit are random, and "random" in `training` lists them.

    Raises:
        InputError: there is no such model, or it has no such network.
    """
    source = source or config.train.init_from
    if not source:
        return None
    role = model_file.role(config)
    try:
        networks = read_networks(source, further=[role])
    except InputError as error:
        raise InputError(f"train.init_from={source}: {error}") from error
    found = networks.get(role, [])
    if model_file.is_file(model_file.located(source)) and role == model_file.SPINE:
        planes = [network.config.data.plane for network in found]
        found = [one for one in found if one.config.data.plane == config.data.plane]
        if planes and not found:
            raise InputError(
                f"train.init_from={source}: no network of {config.data.plane} slices, only of "
                f"{', '.join(planes)}; set data.plane to one of these, or train.init_from=''"
            )
    if not found:
        raise InputError(
            f"train.init_from={source}: no network that {model_file.DOES[role]}; give another "
            "model, or '' to begin with random weights"
        )
    found = [replace(one, variables=task.model.adopted(one.variables)) for one in found]
    wrong = [model_file.misfit(task, network.variables) for network in found]
    if not all(wrong):
        return found[wrong.index("")]
    if not config.train.init_partly:
        raise InputError(
            f"train.init_from={source}: another network: {wrong[0]}; give a model with the same "
            "`model` and task, train.init_partly=true to take what fits, or '' to begin with "
            "random weights"
        )
    key = named_key(config.seed, "init")
    shapes = jax.eval_shape(task.init, key)
    unfit = [model_file.unfit(one.variables, shapes) for one in found]
    number = min(range(len(found)), key=lambda one: len(unfit[one]))
    lines = unfit[number]
    if len(lines) == len(jax.tree.leaves(shapes)):
        raise InputError(
            f"train.init_from={source}: another network, of which nothing fits: {lines[0]}; give "
            "another model, or '' to begin with random weights"
        )
    variables = model_file.fitted(found[number].variables, initial_variables(task.init, key))
    training = {**found[number].training, "random": lines}
    return replace(found[number], variables=variables, training=training)
