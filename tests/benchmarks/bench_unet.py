"""One training step of the plain U-Net against the same network in PyTorch.

    python tests/benchmarks/bench_unet.py [--batch 8] [--side 128] [--threads 2] [--repeats 9]

Same shapes, parameters (1,941,105), loss (binary cross entropy) and optimiser (Adam, 0.001) in
float32. Steps of the two alternate, so that both meet the same machine; medians and their ratio
are printed, and how far the losses of the two differ. Needs the `bench` extra.

On a machine that is busy with other work, PyTorch's threads wait for each other and the ratio
flatters us: measure with --threads 1, where the processor time, printed too, is fair.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    return parser.parse_args()


def jax_step(batch: int, side: int) -> tuple[Callable[[], float], dict]:
    """Return a function that takes one step and returns its loss, and the first parameters."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from spinejax.losses import ce
    from spinejax.models import build_model
    from spinejax.models.layer_table import count_parameters

    model = build_model(dict(name="unet"))
    image, label = data(batch, side)
    image, label = jnp.asarray(image), jnp.asarray(label)
    parameters = jax.jit(model.init)(jax.random.key(0), image[:1])["params"]
    if count_parameters(parameters) != 1_941_105:
        raise RuntimeError("not the published network")
    first = jax.tree.map(np.asarray, parameters)
    optimiser = optax.adam(1e-3)

    def step(parameters, state, image, label):
        def loss(parameters):
            return ce(model.apply({"params": parameters}, image, train=True)[0], label)

        value, gradient = jax.value_and_grad(loss)(parameters)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(parameters, updates), state, value

    jitted = jax.jit(step, donate_argnums=(0, 1))
    held = [parameters, optimiser.init(parameters)]

    def one() -> float:
        held[0], held[1], value = jitted(*held, image, label)
        jax.block_until_ready(held)
        return float(value)

    return one, first


def torch_step(batch: int, side: int, threads: int, first: dict) -> Callable[[], float]:
    """Return the like for PyTorch, starting from the same parameters."""
    import numpy as np
    import torch
    from torch import nn

    torch.set_num_threads(threads)

    def conv(layer: dict) -> nn.Conv2d:
        kernel = torch.tensor(layer["kernel"].transpose(3, 2, 0, 1))
        module = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], padding="same")
        module.weight.data, module.bias.data = kernel.contiguous(), torch.tensor(layer["bias"])
        return module

    def up(layer: dict) -> nn.ConvTranspose2d:
        kernel = torch.tensor(np.ascontiguousarray(layer["kernel"].transpose(2, 3, 0, 1)))
        module = nn.ConvTranspose2d(kernel.shape[0], kernel.shape[1], 2, stride=2)
        module.weight.data, module.bias.data = kernel, torch.tensor(layer["bias"])
        return module

    def level(layer: dict) -> nn.Sequential:
        return nn.Sequential(conv(layer["conv1"]), nn.ReLU(), conv(layer["conv2"]), nn.ReLU())

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.ModuleList(level(first[f"encoder{i}"]) for i in range(1, 6))
            self.up = nn.ModuleList(up(first[f"up{i}"]) for i in range(4, 0, -1))
            self.decoder = nn.ModuleList(level(first[f"decoder{i}"]) for i in range(4, 0, -1))
            self.logits = conv(first["logits"]["conv"])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skips = []
            for index, level in enumerate(self.encoder):
                if index:
                    skips.append(x)
                    x = nn.functional.max_pool2d(x, 2)
                x = level(x)
            for up, level in zip(self.up, self.decoder, strict=True):
                x = level(torch.cat([skips.pop(), up(x)], dim=1))
            return self.logits(x)

    model = UNet()
    if sum(p.numel() for p in model.parameters()) != 1_941_105:
        raise RuntimeError("not the published network")
    image, label = data(batch, side)
    image = torch.tensor(image).permute(0, 3, 1, 2).contiguous()
    target = torch.tensor(label, dtype=torch.float32)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.BCEWithLogitsLoss()

    def one() -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = criterion(model(image)[:, 0], target)
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return one


def data(batch: int, side: int):
    import numpy as np

    rng = np.random.default_rng(0)
    image = rng.normal(size=(batch, side, side, 3)).astype(np.float32)
    return image, (image[..., 0] > 1).astype(np.int32)


def main() -> None:
    args = parse()
    # XLA's thread pool has one thread per core that the process may use.
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))[: args.threads]
        os.sched_setaffinity(0, cores)
    ours, first = jax_step(args.batch, args.side)
    theirs = torch_step(args.batch, args.side, args.threads, first)
    losses, times, processor = ([], []), ([], []), ([], [])
    for repeat in range(args.repeats + 2):
        for index, step in enumerate((ours, theirs)):
            start, busy = time.perf_counter(), time.process_time()
            losses[index].append(step())
            if repeat >= 2:  # the first compile and warm up
                times[index].append(time.perf_counter() - start)
                processor[index].append(time.process_time() - busy)
    worst = max(abs(a - b) for a, b in zip(*losses, strict=True))
    print(f"{args.batch} x {args.side} x {args.side} x 3, {args.threads} threads, Adam, float32")
    print(f"losses agree within {worst:.1e} over {len(losses[0])} steps")
    for name, measured in (("wall", times), ("processor", processor)):
        ours_ms, theirs_ms = (statistics.median(t) * 1e3 for t in measured)
        print(
            f"{name} time of a step (median): spinejax {ours_ms:.1f} ms, PyTorch "
            f"{theirs_ms:.1f} ms, ratio {ours_ms / theirs_ms:.2f}"
        )


if __name__ == "__main__":
    main()
