"""Networks: one file each, and one dict of them by name."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from spinejax.errors import InputError, check_choice
from spinejax.models.attention import ATTENTIONS
from spinejax.models.chasppraunet import CHASPPRAUNet
from spinejax.models.densenet import DenseNet
from spinejax.models.layers import NORMS, STEMS, Dtype
from spinejax.models.mobilenet import MobileNetV2
from spinejax.models.mrunet import MRUNet
from spinejax.models.opconvnet import PADDINGS, OPConvNet
from spinejax.models.pyramid import PYRAMIDS
from spinejax.models.resnet import BLOCKS, SHORTCUTS, ResNet
from spinejax.models.unet import UNet
from spinejax.models.unet3d import UNet3D
from spinejax.models.vgg import VGG
from spinejax.models.vnet import VNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "chasppraunet": CHASPPRAUNet,
    "densenet": DenseNet,
    "mobilenet": MobileNetV2,
    "mrunet": MRUNet,
    "opconvnet": OPConvNet,
    "resnet": ResNet,
    "unet": UNet,
    "unet3d": UNet3D,
    "vgg": VGG,
    "vnet": VNet,
}

CLASSIFIERS = ("densenet", "mobilenet", "opconvnet", "resnet", "vgg")
"""Networks that give a whole patch one class; the others give each pixel one."""

VOLUMETRIC = ("mrunet", "unet3d", "vnet")
"""Networks of cubes (b, x, y, z, c), which give each voxel a class; the others see slices."""

MULTIPLIERS = frozenset({"width_multiplier"})
"""Fields that are any number above 0; other fractions are rates of dropout."""

CHOICES = {
    "attention": ATTENTIONS,
    "block": BLOCKS,
    "norm": NORMS,
    "paddings": PADDINGS,
    "pyramid": PYRAMIDS,
    "shortcut": SHORTCUTS,
    "stem": STEMS,
}

# What the builder passes itself, so that a config does not.
BUILT = frozenset({"out_channels", "dtype", "remat", "axis_name", "parent", "name"})


def build_model(
    fields: Mapping[str, Any],
    *,
    out_channels: int = 1,
    dtype: Dtype = jnp.float32,
    remat: bool = False,
    axis_name: str | None = None,
) -> nn.Module:
    """Return the network of a config's `model` block.

    Args:
        fields: `name`, a key of MODELS, and fields of that network; what is left out has the
            network's default.
        out_channels: Channels of the logits; 1 means binary.
        dtype: Of computation; parameters stay float32.
        remat: Trade computation for memory in the backward pass.
        axis_name: Device axis over which batch normalisation is synchronised.

    Raises:
        InputError: The name, a field or the value of an option is unknown; a number is out of
            range.
    """
    values = dict(fields)
    name = values.pop("name", None)
    check_choice("model.name", name, MODELS)
    build = MODELS[str(name)]
    parameters = inspect.signature(build).parameters
    known = set(parameters) - BUILT
    for field, value in values.items():
        check_choice("config field model", field, known)
        default = parameters[field].default
        _check_type(field, value, default)
        # ConfigDicts read lists from JSON; a module's fields must be hashable.
        values[field] = tuple(value) if isinstance(value, list) else value
        if field in CHOICES:
            for item in values[field] if isinstance(default, tuple) else (value,):
                check_choice(f"model.{field}", item, CHOICES[field])
    stages = {
        field: values.get(field, parameters[field].default)
        for field in getattr(build, "PER_STAGE", ())
    }
    for field, value in stages.items():
        if len(value) != len(stages["widths"]):
            raise InputError(
                f"model.{field} = {value} must have one value for each of the "
                f"{len(stages['widths'])} stages of model.widths = {stages['widths']}"
            )
    return build(**values, out_channels=out_channels, dtype=dtype, remat=remat, axis_name=axis_name)


def _check_type(field: str, value: Any, default: Any) -> None:
    """Raise InputError unless `value` is of the kind of the network's `default` and in range."""

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    if isinstance(default, bool):
        good, wanted = isinstance(value, bool), "True or False"
    elif isinstance(default, int):
        good, wanted = whole(value), "a whole number above 0"
    elif field in MULTIPLIERS:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        good, wanted = number and 0 < value < math.inf, "a number above 0"
    elif isinstance(default, float):  # dropout
        good = isinstance(value, int | float) and 0 <= value < 1
        wanted = "a number in [0, 1)"
    elif isinstance(default, tuple):
        words = isinstance(default[0], str)
        fits = (lambda item: isinstance(item, str)) if words else whole
        good = isinstance(value, list | tuple) and bool(value) and all(map(fits, value))
        wanted = "one or more words" if words else "one or more whole numbers above 0"
    else:
        return
    if not good:
        raise InputError(f"model.{field} = {value!r} must be {wanted}")
