"""Spine CT segmentation and vertebra recognition in JAX and Flax.

The names in `__all__` are the Python API, see docs/api.md. Each is imported when it is first used,
so that `import spinejax` is fast and does not import jax.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spinejax import phantom
    from spinejax.config_files import get_config
    from spinejax.evaluation import evaluate
    from spinejax.io.nifti import write_labels
    from spinejax.io.scanfile import read_volume as read_scan
    from spinejax.predictor import Model, Segmentation, load
    from spinejax.scoring import score
    from spinejax.training.pipeline import train

__version__ = "0.1.0"

__all__ = [
    "Model",
    "Segmentation",
    "__version__",
    "evaluate",
    "get_config",
    "load",
    "phantom",
    "read_scan",
    "score",
    "train",
    "write_labels",
]

_HOMES = {
    "Model": "predictor:Model",
    "Segmentation": "predictor:Segmentation",
    "evaluate": "evaluation:evaluate",
    "get_config": "config_files:get_config",
    "load": "predictor:load",
    "phantom": "phantom:",
    "read_scan": "io.scanfile:read_volume",
    "score": "scoring:score",
    "train": "training.pipeline:train",
    "write_labels": "io.nifti:write_labels",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    found = import_module(f"{__name__}.{module}")
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return __all__
