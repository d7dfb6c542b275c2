"""Networks: one file each, and one dict of them by name."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from spinejax.errors import InputError, check_choice
from spinejax.models.chasppraunet import CHASPPRAUNet
from spinejax.models.densenet import DenseNet
from spinejax.models.dtvnet import DTVNet
from spinejax.models.layers import Dtype, Network
from spinejax.models.mlpnn import MLPNN
from spinejax.models.mobilenet import MobileNetV2
from spinejax.models.mrunet import MRUNet
from spinejax.models.multiresunet import MultiResUNet
from spinejax.models.opconvnet import OPConvNet
from spinejax.models.padbn import PaDBN
from spinejax.models.pcnn import APCNN, PCNN
from spinejax.models.resnet import ResNet
from spinejax.models.resunet import ResUNet
from spinejax.models.saunet import SAUNet
from spinejax.models.spineparsenet import SpineParseNet
from spinejax.models.unet import UNet
from spinejax.models.unet3d import UNet3D
from spinejax.models.vgg import VGG
from spinejax.models.vnet import VNet
from spinejax.schema import Allowed, Choice, Field, Flag, Several, Whole, check_block

MODELS: dict[str, type[Network]] = {
    "apcnn": APCNN,
    "chasppraunet": CHASPPRAUNet,
    "densenet": DenseNet,
    "dtvnet": DTVNet,
    "mlpnn": MLPNN,
    "mobilenet": MobileNetV2,
    "mrunet": MRUNet,
    "multiresunet": MultiResUNet,
    "opconvnet": OPConvNet,
    "padbn": PaDBN,
    "pcnn": PCNN,
    "resnet": ResNet,
    "resunet": ResUNet,
    "saunet": SAUNet,
    "spineparsenet": SpineParseNet,
    "unet": UNet,
    "unet3d": UNet3D,
    "vgg": VGG,
    "vnet": VNet,
}


def fields(name: str) -> dict[str, Field]:
    """Return the fields that a config's `model` block may have for a network, by name.

    Default, type and meaning come from the network's class, see `layers.Network`.

    Raises:
        InputError: there is no such network.
    """
    check_choice("model.name", name, MODELS)
    network = MODELS[name]
    meanings = _attributes(network)
    found = {"name": Field("model.name", name, Choice(MODELS), "Network, one file in models/.")}
    built = {field.name for field in dataclasses.fields(Network)}
    for field in dataclasses.fields(network):
        if field.name not in built:
            meaning, allowed = meanings.get(field.name, ""), _allowed(field.type)
            found[field.name] = Field(f"model.{field.name}", field.default, allowed, meaning)
    return found


def _allowed(kind: Any) -> Allowed:
    """Return which values a field of a type may have."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Annotated:
        return arguments[1]
    if typing.get_origin(kind) is typing.Literal:
        return Choice(arguments)
    if typing.get_origin(kind) is tuple:
        return Several(_allowed(arguments[0]))
    if kind not in (int, bool):
        raise TypeError(f"{kind}: annotate the field with its allowed values, see layers.Rate")
    return Flag() if kind is bool else Whole(1, 8192)


def _attributes(network: type) -> dict[str, str]:
    """Return name -> meaning from the section "Attributes" of a class's docstring."""
    section = str(inspect.getdoc(network)).partition("Attributes:\n")[2].partition("\n\n")[0]
    lines = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(f"{text[:1].upper()}{text[1:]}".split()) for name, text in lines}


def check(block: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse a `model` block with an unknown network, field or value.

    Args:
        block: `name`, a key of MODELS, and fields of that network; a field that is left out has the
            network's default.
        prefix: what messages put before the names of fields.

    Raises:
        InputError: names the field, its value, and what is allowed.
    """
    known = fields(block.get("name", ""))
    check_block(block, known, "model", prefix)
    values = {name: block.get(name, field.default) for name, field in known.items()}
    for name in MODELS[values["name"]].PER_STAGE:
        if len(values[name]) != len(values["widths"]):
            raise InputError(
                f"{prefix}model.{name} = {values[name]} must have one value for each of the "
                f"{len(values['widths'])} stages of model.widths = {values['widths']}"
            )


def build_model(
    block: Mapping[str, Any],
    *,
    out_channels: int = 1,
    dtype: Dtype = jnp.float32,
    remat: bool = False,
    axis_name: str | None = None,
) -> nn.Module:
    """Return the network of a config's `model` block.

    Args:
        block: see `check`.
        out_channels: channels of the logits; 1 means binary.
        dtype: of computation; parameters stay float32.
        remat: recompute activations in the backward pass, to save memory.
        axis_name: device axis over which batch normalisation is synchronised.

    Raises:
        InputError: as `check`.
    """
    check(block)
    # JSON holds lists; a module's fields must be hashable.
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in block.items()}
    built: dict[str, Any] = dict(dtype=dtype, remat=remat, axis_name=axis_name)
    return MODELS[values.pop("name")](out_channels=out_channels, **values, **built)
