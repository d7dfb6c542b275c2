"""Networks of patches and of cubes on a slice and a scan, on as many devices as jax is given.

    python -m tests.support.scan_devices OUT.npz

A process of its own, because the number of (fake) devices is fixed when jax starts. Run by
tests/inference/test_devices.py.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from spinejax.inference import devices, patch_scan, windows3d
from spinejax.models.opconvnet import OPConvNet

PATCH = 24
NO_STATS = np.zeros(4, np.float32)


def found() -> dict[str, np.ndarray]:
    """Return logits and classes, and the number of devices that computed each."""
    counts: dict[str, int] = {}

    def counting(name):
        def fetch(array):
            if isinstance(array, jax.Array):
                counts[name] = max(counts.get(name, 0), len(array.devices()))
            return devices.fetch(array)

        return fetch

    rng = np.random.default_rng(0)
    model = OPConvNet(widths=(4, 6, 8), fc_widths=(12,), pools=(3, 2, 2))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, PATCH, PATCH, 1)))
    stack = np.zeros((4, 40, 37), np.int16)
    stack[1:, 10:30] = rng.integers(1, 1500, (3, 20, 37))
    result = {}
    for name, whole in (("tiles", True), ("patches", False)):
        patch_scan.fetch = counting(name)
        predict = patch_scan.make_stack_predictor(
            model,
            variables,
            patch=PATCH,
            to_input=lambda image, stats: image.astype(jnp.float32) / 1500,
            fill_hu=0,
            padding="zero",
            batch_size=100,
            tile=16,
            without_patches=whole,
        )
        result[name] = predict(stack, NO_STATS, lambda slices: None)

    def network(variables, image, spine, stats):
        x = image[..., None].astype(jnp.float32) * variables["scale"]
        return jax.nn.softmax(jnp.sin(x + image.mean((1, 2, 3), keepdims=True)[..., None]), -1)

    scale = np.linspace(0.1, 1, 5, dtype=np.float32)
    cubes, rows = windows3d.make_cube_predictor(network, {"scale": scale}, batch_size=3)
    image = rng.integers(0, 9, (20, 14, 30)).astype(np.int16)
    for on_device in (False, True):
        name = "joined on the device" if on_device else "joined by the host"
        windows3d.fetch = counting(name)
        classes = windows3d.predict_classes(
            cubes,
            image,
            None,
            NO_STATS,
            window=(8, 8, 8),
            overlap=0.4,
            batch_size=rows,
            fill=0,
            on_device=on_device,
        )
        result[name] = np.stack(classes[:3])
    return result | {f"devices, {name}": np.array(count) for name, count in counts.items()}


if __name__ == "__main__":
    np.savez(sys.argv[1], **found())
