"""Checks of a config before anything is built from it, and against that of an earlier start."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from spinejax.data.patch_feed import SPLIT_UNITS
from spinejax.data.patches import LABEL_RULES, RUS_KINDS
from spinejax.errors import InputError, check_choice
from spinejax.inference.cascade import PRIORS
from spinejax.inference.patch_scan import PADDINGS
from spinejax.inference.sequence import ANOMALIES
from spinejax.io.scanfile import LABELS
from spinejax.phantom import stream_feed
from spinejax.phantom.person.anatomy import RATES
from spinejax.phantom.scanner.physics import REGIONS
from spinejax.train.parallel import KINDS

MOST_DIFFERENCES = 12  # that are named
COMPUTE_DTYPES = ("float32", "bfloat16")
EDITIONS = ("", "verse19", "verse20")
SOURCES = ("verse", "phantom", stream_feed.SOURCE)
BEST = ("dice", "loss")

FREE_KEYS = frozenset(
    {
        "data.root",
        "data.cache_dir",
        "data.threads",
        "data.prefetch",
        "train.checkpoint_every_steps",
        "train.log_every_steps",
        "train.parallel",
        "train.pictures",
    }
)
"""Keys that may change between two starts of one run, since no parameter depends on them.

A moved dataset is found by its new `data.root`; the cases of each split must be the same ones. All
of `predict` is free too.
"""

_Check = tuple[Callable[[Any], bool], str]


_MOST = 2**31 - 1  # what jax's integers hold


def _integer(low: int, high: int = _MOST) -> _Check:
    return (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
        f"a whole number from {low} to {high}",
    )


def _number(low: float, high: float = float("inf"), *, above: bool = False) -> _Check:
    def fits(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return (low < value if above else low <= value) and value <= high and value < float("inf")

    limit = f"above {low:g}" if above else f"of at least {low:g}"
    return fits, f"a number {limit}" + (f" and at most {high:g}" if high < float("inf") else "")


_BOOLEAN: _Check = (lambda v: isinstance(v, bool), "true or false")
_SIZE: _Check = (
    lambda v: isinstance(v, list | tuple) and len(v) == 2 and all(_integer(1)[0](s) for s in v),
    "two whole numbers of at least 1",
)

_CUBE: _Check = (
    lambda v: isinstance(v, list | tuple) and len(v) == 3 and all(_integer(1)[0](s) for s in v),
    "three whole numbers of at least 1",
)

_SCALE: _Check = (
    lambda v: (
        isinstance(v, list | tuple)
        and len(v) == 2
        and all(_number(0, above=True)[0](s) for s in v)
        and v[0] <= v[1]
    ),
    "(low, high), two numbers above 0 with low <= high",
)
_CLAMP: _Check = (
    lambda v: (
        isinstance(v, list | tuple)
        and len(v) == 2
        and all(_number(-32768)[0](s) for s in v)
        and v[0] < v[1]
    ),
    "(low, high), two numbers with low < high",
)

_CHECKS: dict[str, _Check] = {
    "seed": _integer(0),
    "data.exclude_gl": _BOOLEAN,
    "data.size": _SIZE,
    "data.cube.size": _CUBE,
    "data.test_fraction": _number(0, 1),
    "data.val_fraction": _number(0, 1),
    "data.folds": _integer(2),
    "data.fold": _integer(0),
    "data.preprocess.clamp_hu": _CLAMP,
    "data.preprocess.smoothing_sigma_mm": _number(0),
    "data.preprocess.smoothing_sigma_px": _number(0),
    "data.preprocess.smoothing_kernel_px": _integer(1),
    "data.preprocess.spacing_mm": _number(0, above=True),
    "data.phantom.cases": _integer(0),
    "data.phantom.seed": _integer(0),
    "data.phantom.epoch_batches": _integer(1),
    **{f"data.phantom.rates.{name}": _number(0, 1) for name in RATES if name != "fractures"},
    "data.phantom.rates.fractures": _number(0, 1000),
    "data.phantom.distractors": _BOOLEAN,
    "data.phantom.acquisition": _BOOLEAN,
    "data.phantom.label_cut": _BOOLEAN,
    "data.phantom.min_spacing_mm": _number(0, above=True),
    "data.phantom.max_spacing_mm": _number(0, above=True),
    "data.phantom.min_extent_mm": _number(0, above=True),
    "data.phantom.max_extent_mm": _number(0, above=True),
    "data.spine_free_fraction": _number(0, 1),
    "data.patches.size": _integer(1),
    "data.patches.stride": _integer(1),
    "data.patches.rus_ratio": _number(0, above=True),
    "data.threads": _integer(0),
    "data.prefetch": _integer(0),
    "augment.enabled": _BOOLEAN,
    "augment.scale": _SCALE,
    "augment.rotation_deg": _number(0, 180),
    "augment.translation_px": _number(0),
    "augment.flip_probability": _number(0, 1),
    "augment.shift_hu": _number(0),
    "augment.gain": _number(0, 1),
    "augment.noise_hu": _number(0),
    "optim.learning_rate": _number(0, above=True),
    "optim.momentum": _number(0, 1),
    "optim.weight_decay": _number(0),
    "optim.warmup_steps": _integer(0),
    "optim.decay_every_epochs": _number(0, above=True),
    "optim.decay_factor": _number(0, 1, above=True),
    "optim.clip_norm": _number(0),
    "optim.accumulate_steps": _integer(1),
    "optim.ema_decay": _number(0, 0.999999),
    "train.epochs": _number(0),
    "train.steps": _integer(0),
    "train.batch_size": _integer(1),
    "train.eval_every_epochs": _number(0, above=True),
    "train.checkpoint_every_steps": _integer(0),
    "train.log_every_steps": _integer(1),
    "train.pictures": _integer(0),
    "train.remat": _BOOLEAN,
    "predict.batch_size": _integer(1),
    "predict.overlap": _number(0, 0.95),
    "predict.threshold": _number(0, 1),
    "predict.margin_mm": _number(0),
    "predict.shifts": _integer(1, 8),
    "predict.drop_cut": _BOOLEAN,
    "predict.opening_mm": _number(0),
    "predict.min_component_ml": _number(0),
    "predict.fill_holes": _BOOLEAN,
    "predict.drop_islands": _BOOLEAN,
}


_LATER = {"data.cube.prior_sacrum": 0.0, "loss.offset_weight": 0.0, "predict.shifts": 1}
"""Fields that runs of earlier versions lack, with what those versions did."""


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value} of nested mappings."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def check_config(config: ConfigDict) -> None:
    """Refuse values that the training cannot use; models, losses and data check their own.

    Raises:
        InputError: names the key, its value and what is allowed.
    """
    flat = flatten(config)
    for key, (fits, allowed) in _CHECKS.items():
        if key not in flat:
            raise InputError(f"the config has no {key}; start from configs/common.py")
        if not fits(flat[key]):
            raise InputError(f"{key}={flat[key]!r} must be {allowed}")
    check_choice("train.parallel", flat["train.parallel"], KINDS)
    check_choice("train.compute_dtype", flat["train.compute_dtype"], COMPUTE_DTYPES)
    check_choice("data.source", flat["data.source"], SOURCES)
    check_choice("data.labels", flat.get("data.labels"), LABELS)
    check_choice("data.edition", flat.get("data.edition", ""), EDITIONS)
    check_choice("data.phantom.region", flat.get("data.phantom.region"), REGIONS)
    check_choice("data.patches.label_rule", flat.get("data.patches.label_rule"), LABEL_RULES)
    check_choice("data.patches.split_unit", flat.get("data.patches.split_unit"), SPLIT_UNITS)
    check_choice("data.patches.rus", flat.get("data.patches.rus"), RUS_KINDS)
    check_choice("train.best", flat.get("train.best"), BEST)
    check_choice("predict.padding", flat.get("predict.padding"), PADDINGS)
    check_choice("data.cube.spine_prior", flat.get("data.cube.spine_prior"), PRIORS)
    for name in flat.get("predict.anomalies", ()):
        check_choice("predict.anomalies", name, ANOMALIES)
    for key, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{key}={value!r} must be a finite number")
    if not flat["train.steps"] and not flat["train.epochs"]:
        raise InputError("train.epochs and train.steps are both 0; set one of them")


def plain(config: ConfigDict) -> dict[str, Any]:
    """Return the config as JSON holds it: nested dicts, sequences as lists."""
    return json.loads(config.to_json())


def read_config(workdir: Path) -> ConfigDict:
    """Return the resolved config of a run, sequences as tuples, with the fields of `_LATER`.

    Raises:
        InputError: the folder is not a run's.
    """
    file = workdir / "config.json"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{workdir} is not the folder of a run (no readable config.json); give --workdir of a "
            "finished or running `spinejax train`"
        ) from error
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); restore it from a copy") from error
    if not isinstance(config, dict):
        raise InputError(f"{file} is damaged (it holds no fields); restore it from a copy")
    for run in (config, config.get("vertebrae")):
        for key, value in _LATER.items():
            *sections, name = key.split(".")
            found = run
            for section in sections:
                found = found.get(section) if isinstance(found, dict) else None
            if isinstance(found, dict):
                found.setdefault(name, value)
    return ConfigDict(_tuples(config))


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    return value


def _is_free(key: str) -> bool:
    """Whether no parameter depends on a key: one of `FREE_KEYS` or of `predict`, of either run."""
    key = key.removeprefix("vertebrae.")
    return key in FREE_KEYS or key.startswith("predict.")


def check_same(old: ConfigDict, new: ConfigDict, workdir: Path) -> None:
    """Refuse to go on in `workdir` with a config that would train something else.

    Raises:
        InputError: names the differing keys with their old and new values, MOST_DIFFERENCES at
            most.
    """
    before, after = flatten(plain(old)), flatten(plain(new))
    missing = "(absent)"
    differing = [
        f"{key} (there {before.get(key, missing)!r}, now {after.get(key, missing)!r})"
        for key in sorted(before | after)
        if before.get(key, missing) != after.get(key, missing) and not _is_free(key)
    ]
    if differing:
        # What the run is comes before its details.
        first = ("name ", "task ", "model.name ")
        differing.sort(key=lambda text: not text.startswith(first))
        shown = ", ".join(differing[:MOST_DIFFERENCES])
        more = len(differing) - MOST_DIFFERENCES
        raise InputError(
            f"{workdir} holds a run of another config: {shown}{f' and {more} more' * (more > 0)}; "
            "give this one another --workdir, or the old values to resume"
        )
