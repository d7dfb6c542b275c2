"""The U-Net and CHASPPRAU-Net in PyTorch: the functions of `spinejax.models`, with its parameters.

A network is made from our module and its parameters, and runs in eager mode, channels last.
"""

import math
import os

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

# As many threads as jax has on a CPU.
torch.set_num_threads(
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PEER = "PyTorch" if DEVICE == "cuda" or jax.default_backend() == "cpu" else "PyTorch on the CPU"


def tensor(array) -> Tensor:
    return torch.tensor(np.asarray(array))


def images(array) -> Tensor:
    """(b, h, w, c) as PyTorch has it: axes (b, c, h, w), channels last in memory."""
    return torch.tensor(np.asarray(array), device=DEVICE).permute(0, 3, 1, 2)


def conv(layer, rate: int = 1) -> nn.Conv2d:
    kernel = tensor(layer["kernel"]).permute(3, 2, 0, 1)
    width, channels, side, _ = kernel.shape
    bias = "bias" in layer
    module = nn.Conv2d(channels, width, side, padding=rate * (side // 2), dilation=rate, bias=bias)
    module.weight.data = kernel.contiguous()
    if bias:
        module.bias.data = tensor(layer["bias"])
    return module


def up(layer) -> nn.ConvTranspose2d:
    kernel = tensor(layer["kernel"]).permute(2, 3, 0, 1)
    module = nn.ConvTranspose2d(kernel.shape[0], kernel.shape[1], 2, stride=2)
    module.weight.data, module.bias.data = kernel.contiguous(), tensor(layer["bias"])
    return module


def dense(layer) -> nn.Linear:
    kernel = tensor(layer["kernel"]).T
    module = nn.Linear(kernel.shape[1], kernel.shape[0], bias=False)
    module.weight.data = kernel.contiguous()
    return module


def conv_norm(layer, rate: int = 1) -> nn.Sequential:
    group = layer["norm"]["group"]
    width = len(group["scale"])
    norm = nn.GroupNorm(math.gcd(8, width), width, eps=1e-6)
    norm.weight.data, norm.bias.data = tensor(group["scale"]), tensor(group["bias"])
    return nn.Sequential(conv(layer["conv"], rate), norm)


def conv_norm_relu(layer, rate: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_norm(layer, rate), nn.ReLU(inplace=True))


def encoded(levels: nn.ModuleList, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return what the deepest level gives, and what those above it give, from the top."""
    skips = []
    for index, level in enumerate(levels):
        if index:
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = level(x)
    return x, skips


class UNet(nn.Module):
    def __init__(self, model, parameters) -> None:
        super().__init__()

        def level(layer) -> nn.Sequential:
            return nn.Sequential(
                conv(layer["conv1"]),
                nn.ReLU(inplace=True),
                conv(layer["conv2"]),
                nn.ReLU(inplace=True),
            )

        count = len(model.widths)
        self.encoder = nn.ModuleList(level(parameters[f"encoder{i + 1}"]) for i in range(count))
        below = range(count - 1, 0, -1)
        self.up = nn.ModuleList(up(parameters[f"up{i}"]) for i in below)
        self.decoder = nn.ModuleList(level(parameters[f"decoder{i}"]) for i in below)
        self.logits = conv(parameters["logits"]["conv"])

    def forward(self, x: Tensor) -> Tensor:
        x, skips = encoded(self.encoder, x)
        for up, level in zip(self.up, self.decoder, strict=True):
            x = level(torch.cat([skips.pop(), up(x)], dim=1))
        return self.logits(x)


class Block(nn.Module):
    def __init__(self, layer, residual: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_norm_relu(layer["conv1"]), conv_norm(layer["conv2"])
        shortcut = layer.get("shortcut")
        self.shortcut = conv_norm(shortcut) if shortcut else nn.Identity()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return functional.relu(y + self.shortcut(x) if self.residual else y, inplace=True)


class Stage(nn.Module):
    def __init__(self, layer, model) -> None:
        super().__init__()
        self.roots, self.branches = nn.ModuleList(), nn.ModuleList()
        for root in model.root_rates:
            name = f"root{root}"
            self.roots.append(conv_norm_relu(layer[name], root))
            self.branches.append(
                nn.ModuleList(
                    conv_norm_relu(layer[f"{name}_branch{rate}"], rate)
                    for rate in model.branch_rates
                )
            )
        self.fuse = conv_norm_relu(layer["fuse"])

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for root, branches in zip(self.roots, self.branches, strict=True):
            y = root(x)
            parts += [branch(y) for branch in branches]
        return self.fuse(torch.cat(parts, dim=1))


class Pyramid(nn.Module):
    def __init__(self, layer, model) -> None:
        super().__init__()
        stages = layer["chaspp"]
        self.stages = nn.Sequential(
            *(Stage(stages[f"stage{i + 1}"], model) for i in range(model.stages))
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.stages(x)


class Attention(nn.Module):
    def __init__(self, layer, model) -> None:
        super().__init__()
        dot = layer["dot_product"]
        self.query, self.key, self.value, self.out = (
            dense(dot[name]) for name in ("query", "key", "value", "out")
        )
        self.key_size = model.attention_key_size

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        sides = skip.shape[2:]
        blocks = [
            next(d for d in range(1, side + 1) if side % d == 0 and side // d <= self.key_size)
            for side in sides
        ]
        pooled = functional.avg_pool2d(skip, blocks).permute(0, 2, 3, 1).flatten(1, 2)
        attended = functional.scaled_dot_product_attention(
            self.query(gate.permute(0, 2, 3, 1).flatten(1, 2)), self.key(pooled), self.value(pooled)
        )
        return skip + self.out(attended).unflatten(1, sides).permute(0, 3, 1, 2)


class CHASPPRAUNet(nn.Module):
    """With pyramid "chaspp", attention "dot_product", norm "group", and no dropout."""

    def __init__(self, model, parameters) -> None:
        super().__init__()
        chosen = model.pyramid, model.attention, model.norm
        if chosen != ("chaspp", "dot_product", "group"):
            raise ValueError(f"no PyTorch network of {chosen}")

        def encoder(layer) -> nn.Sequential:
            pyramids = [Pyramid(layer[name], model) for name in sorted(layer) if "pyramid" in name]
            return nn.Sequential(*pyramids, Block(layer["block"], model.residual))

        count = len(model.widths)
        self.encoder = nn.ModuleList(encoder(parameters[f"encoder{i + 1}"]) for i in range(count))
        levels = [parameters[f"decoder{i}"] for i in range(count - 1, 0, -1)]
        self.up = nn.ModuleList(up(layer["up"]) for layer in levels)
        self.attention = nn.ModuleList(Attention(layer["attention"], model) for layer in levels)
        self.decoder = nn.ModuleList(Block(layer["block"], False) for layer in levels)
        self.logits = conv(parameters["logits"]["conv"])

    def forward(self, x: Tensor) -> Tensor:
        x, skips = encoded(self.encoder, x)
        for up, attend, level in zip(self.up, self.attention, self.decoder, strict=True):
            x = up(x)
            x = level(torch.cat([attend(skips.pop(), x), x], dim=1))
        return self.logits(x)


def network(model, parameters) -> nn.Module:
    """Return our network `model` (flax) with these parameters, in PyTorch."""
    kind = {"UNet": UNet, "CHASPPRAUNet": CHASPPRAUNet}[type(model).__name__]
    made = kind(model, parameters).to(DEVICE, memory_format=torch.channels_last)
    if sum(p.numel() for p in made.parameters()) != sum(
        x.size for x in jax.tree.leaves(parameters)
    ):
        raise RuntimeError("the two networks differ in their parameters")
    return made
