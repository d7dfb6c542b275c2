"""A forward pass and a training step of the networks of slices, beside the same in PyTorch.

U-Net is the published one, CHASPPRAU-Net that of `configs/phantom_to_real.py`, without dropout. A
step has the loss (binary cross entropy), its gradient and Adam, in float32. Both begin with the
same parameters, and the benchmark fails unless they give the same numbers. A batch is divided over
our devices as in training and prediction. PyTorch computes with channels last, its fused Adam, and
as many threads as this process has cores.
"""

import jax
import numpy as np
import optax

from spinejax.configs import phantom_to_real
from spinejax.inference.devices import fetch, over_local_devices
from spinejax.losses import ce
from spinejax.models import build_model
from spinejax.training import parallel
from spinejax.training.state import initial_variables
from tests.benchmarks import timing

LIMIT = 1.0


def ours(model, parameters, image, label):
    """Return two functions: logits, and the loss of one more training step."""
    forward, _ = over_local_devices(
        lambda parameters, image: model.apply({"params": parameters}, image)[0],
        parameters,
        len(image),
    )
    mapped = parallel.make_parallel_dividing("pmap", len(image))
    optimiser = optax.adam(1e-3)

    def step(held, batch):
        def loss(parameters):
            return ce(model.apply({"params": parameters}, image, train=True)[0], label)

        (parameters, state), (image, label) = held, batch
        found = jax.value_and_grad(loss)(parameters)
        value, gradient = jax.lax.pmean(found, parallel.AXIS)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(parameters, updates), state), value

    update = mapped.map(step, sharded=(False, False), donate=True)
    held = [mapped.replicate((parameters, optimiser.init(parameters)))]

    def one_step():
        held[0], value = update(held[0], mapped.put((image, label)))
        jax.block_until_ready(held)
        return float(value)

    return lambda: fetch(forward(image)), one_step


def theirs(model, parameters, image, label):
    """Return the like for PyTorch."""
    import torch

    from tests.benchmarks import torch_networks

    network, trained = (torch_networks.network(model, parameters) for _ in range(2))
    image = torch_networks.images(image)
    target = torch.tensor(label, dtype=torch.float32, device=torch_networks.DEVICE)
    optimiser = torch.optim.Adam(trained.parameters(), lr=1e-3, fused=True)
    criterion = torch.nn.BCEWithLogitsLoss()

    def forward():
        with torch.inference_mode():
            return network(image).permute(0, 2, 3, 1).cpu().numpy()

    def one_step():
        optimiser.zero_grad(set_to_none=True)
        loss = criterion(trained(image)[:, 0], target)
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return forward, one_step


def example(fields, shape):
    """Return a network without dropout, its parameters, images of `shape`, and labels."""
    model = build_model(dict(fields, dropout=0.0))
    rng = np.random.default_rng(0)
    image = rng.normal(size=shape).astype(np.float32)
    label = (image[..., 0] > 1).astype(np.int32)
    variables = initial_variables(lambda key: model.init(key, image[:1]), jax.random.key(0))
    return model, jax.tree.map(np.asarray, variables["params"]), image, label


def pair(fields, shape):
    """Return forward pass and step of a network, ours and PyTorch's, by name."""
    work_on = example(fields, shape)
    calls = {}
    for who, make in (("ours", ours), ("theirs", theirs)):
        calls["forward", who], calls["step", who] = make(*work_on)
    for work, times in (("forward", 1), ("step", 3)):  # later losses show the gradients
        found, expected = (
            np.stack([calls[work, who]() for _ in range(times)]) for who in ("ours", "theirs")
        )
        worst = np.max(np.abs(found - expected))
        if worst > (1e-4 if work == "forward" else 1e-3):
            raise RuntimeError(f"{fields['name']}, {work}: PyTorch differs by {worst:.1e}")
    return calls


def networks(toy):
    """Return name -> (fields of the network, shape of its input)."""
    config = phantom_to_real.get_config("debug" if toy else None)
    b = 2 if toy else 8
    unet = dict(name="unet", **(dict(widths=(4, 8)) if toy else {}))
    return {
        "U-Net": (unet, (b, 32, 32, 3) if toy else (b, 128, 128, 3)),
        "CHASPPRAU-Net": (config.model.to_dict(), (b, *config.data.size, 1)),
    }


def rows(toy=False):
    """Return the rows of the table; `toy` sizes only show that all of it runs."""
    from tests.benchmarks.torch_networks import PEER

    found = []
    for name, (fields, shape) in networks(toy).items():
        times = timing.interleaved(pair(fields, shape), 1 if toy else 11, warm_up=2)
        for work, word in (("step", "training step"), ("forward", "forward pass")):
            text = f"{name}, {word}, {shape[0]} slices of {shape[1]} x {shape[2]}"
            both = times[work, "ours"], PEER, times[work, "theirs"]
            found.append(timing.versus(text, *both, limit=LIMIT))
    return found
